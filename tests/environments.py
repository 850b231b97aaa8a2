"""A fresh environment, into which a test installs packages: the heavy ones are shared."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Environment:
    """A virtual environment that sees the packages of this one, and pointer-rl's source."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """Where commands are run."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = folder / "venv" / "bin" / "python"
        self.bin = self.python.parent
        site = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
        # An editable install's own .pth is not read from there: its folders stand here.
        shared = [sysconfig.get_paths()["purelib"], ROOT, ROOT / "plugins", ROOT / "schemas"]
        (site / "shared.pth").write_text("".join(f"{path}\n" for path in shared))
        self._cache = folder / "cache"

    def install(self, *packages: Path) -> None:
        """Build and install source folders, without a network."""
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet"]
        options = ("--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index")
        done = subprocess.run([*pip, *options, *packages], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def run(self, *args: str | Path, code: int = 0) -> str:
        """What `pointer-rl` prints, of both streams, when it ends with that exit status."""
        program = "import sys; from pointer_rl.cli.main import main; main()"
        return self._run([self.python, "-c", program, *args], code)

    def pytest(self, *args: str | Path) -> str:
        """What pytest prints where all tests pass."""
        return self._run([self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *args], 0)

    def _run(self, command: list[str | Path], code: int) -> str:
        environment = {**os.environ, "POINTER_RL_CACHE": str(self._cache)}
        environment.pop("POINTER_RL_PLUGINS", None)
        done = subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr
