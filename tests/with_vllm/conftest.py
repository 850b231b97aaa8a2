"""Makes the benchmarks' modules importable: they have the trials of `generate`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
