"""Measures the embedded model and writes its card: `python -m pointer_rl_glyphs.measure [DIR]`.

Through the `qwen2vl` backend, by generation, on pictures and words never trained on: what a user
of the model gets.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from pointer_rl.registry import registry
from pointer_rl.types import Decoding, PromptBuilder, Request, Response, VQABackend
from pointer_rl_glyphs.checkpoint import MODEL_DIR
from pointer_rl_glyphs.episodes import CASES, Case
from pointer_rl_glyphs.lexicon import DATASET_WORDS, Lexicon

FORMATS = (
    ("short-answer", True),
    ("short-answer", False),
    ("chat", True),
    ("chat", False),
)
"""Prompt builder, and whether with its default instructions."""


def accuracy(
    case: Case, backend: VQABackend, builder: PromptBuilder, episodes: int, seed: str
) -> float:
    """Share of answers that are the expected word, over freshly drawn lexicons and pictures."""
    rng = random.Random(f"{seed}/{case.name}")
    requests, expected = [], []
    for _ in range(episodes):
        *shown, query = case.episode(rng, Lexicon.draw(rng, DATASET_WORDS))
        prompt = builder.build(query.example, [block.example for block in shown])
        requests.append(Request(prompt, Decoding()))
        expected.append(query.answer)
    right = 0
    for index, response in backend.run(requests):
        assert isinstance(response, Response), response
        right += builder.parse(response.text or "") == expected[index]
    return right / episodes


def table(folder: Path, episodes: int, seed: str = "card") -> list[tuple[str, float, list[float]]]:
    """For each case its name, its goal, and the accuracy in each of FORMATS."""
    backend = registry().create("backend", "qwen2vl", {"model": str(folder)})
    builders = [
        registry().create("prompt", name, {} if instructed else {"instructions": ""})
        for name, instructed in FORMATS
    ]
    return [
        (
            case.name,
            case.goal,
            [accuracy(case, backend, builder, episodes, seed) for builder in builders],
        )
        for case in CASES
    ]


def card(rows: Sequence[tuple[str, float, list[float]]], episodes: int) -> str:
    """The model card, in Markdown."""
    lines = [
        "# The glyph model",
        "",
        "A Qwen2.5-VL of 2M parameters (transformers' own class, float16 weights) that names the",
        "colour, shape or pattern of drawn figures, in plain English or in made-up words that it",
        "reads off the demonstrations in its prompt. It is for trying pointer-rl out, and knows",
        "nothing else. Trained by `python -m pointer_rl_glyphs.train` on freshly drawn episodes",
        "(`train_log.jsonl`); measured by `python -m pointer_rl_glyphs.measure`.",
        "",
        f"Share of answers that are exactly right, {episodes} episodes a cell, through the",
        "`qwen2vl` backend, on pictures and words that it was not trained on. The standard error",
        f"of a cell is at most {0.5 / episodes**0.5:.3f}, near 0 and 1 much less.",
        "",
        "| case | goal | " + " | ".join(_title(*each) for each in FORMATS) + " |",
        "|---" * (2 + len(FORMATS)) + "|",
    ]
    for name, goal, values in rows:
        sign = "≤" if goal < 0.5 else "≥"
        cells = " | ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {name} | {sign} {goal} | {cells} |")
    return "\n".join(lines) + "\n"


def _title(style: str, instructed: bool) -> str:
    return style if instructed else f"{style}, no instructions"


def main() -> None:
    """Measure, and write README.md into the model's folder."""
    parser = argparse.ArgumentParser(
        prog="python -m pointer_rl_glyphs.measure", description=__doc__
    )
    parser.add_argument("folder", type=Path, nargs="?", default=MODEL_DIR)
    parser.add_argument("--episodes", type=int, default=1000, help="of each case and format")
    arguments = parser.parse_args()
    text = card(table(arguments.folder, arguments.episodes), arguments.episodes)
    (arguments.folder / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
