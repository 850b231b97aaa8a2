"""Draws the images of the pages anew: `make figures`, from what `make demo` leaves.

The others take hours and come from benchmarks: `python tests/benchmarks/bench_cost.py
docs/images/cost.png`, and `make bench-learning`, which draws runs/learning/learning.png.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from pointer_rl import Session
from pointer_rl.report.page import write_report

IMAGES = Path(__file__).parent / "images"
ROOT = Path(__file__).parents[1]
SIDE, GAP = 168, 24
_PHOTOGRAPH = """
const [chromium, url, selector, height, path] = process.argv.slice(1);
(async () => {
  const browser = await require("puppeteer-core").launch({
    executablePath: chromium, args: ["--no-sandbox", "--disable-gpu"],
  });
  const tab = await browser.newPage();
  await tab.setViewport({ width: 1180, height: 900 });
  await tab.goto(url);
  const y = await tab.$eval(selector, (each) => each.getBoundingClientRect().top);
  // Images load when they are seen.
  await tab.evaluate((to) => scrollTo({ top: to, behavior: "instant" }), y);
  await new Promise((done) => setTimeout(done, 1000));
  await tab.evaluate(() => scrollTo({ top: 0, behavior: "instant" }));
  const clip = { x: 0, y, width: 1180, height: Number(height) };
  await tab.screenshot({ path, clip, captureBeyondViewport: true });
  await browser.close();
})();
"""


def draw_glyphs(path: Path) -> None:
    """Two rows of the pool and a query, as `tutorial/first-dataset.md` describes them."""
    session = Session("glyphs", limit=1)
    shown = [session.dataset.pool[3], session.dataset.pool[275], session.queries[0]]
    whole = Image.new("RGB", (len(shown) * (SIDE + GAP) - GAP, SIDE), "white")
    for place, example in enumerate(shown):
        image = example.image.open().resize((SIDE, SIDE), Image.Resampling.NEAREST)
        whole.paste(image, (place * (SIDE + GAP), 0))
    whole.save(path, optimize=True)


def photograph(page: Path, selector: str, height: int, path: Path) -> None:
    """What Chromium shows of a page from an element on, in few colours."""
    environment = {**os.environ, "NODE_PATH": str(ROOT / "build/browser/node_modules")}
    arguments = [shutil.which("chromium") or "chromium", page.as_uri(), selector, height, path]
    command = ["node", "-e", _PHOTOGRAPH, *map(str, arguments)]
    subprocess.run(command, env=environment, check=True)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


def main(demo: Path) -> None:
    """Draw all of them."""
    draw_glyphs(IMAGES / "glyphs.png")
    shutil.copyfile(demo / "accuracy.png", IMAGES / "accuracy.png")
    with TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_report([demo], page)
        photograph(page, "body", 1410, IMAGES / "report.png")
        photograph(page, "#gallery", 760, IMAGES / "report-queries.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
