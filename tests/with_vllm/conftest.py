"""Makes the benchmarks' modules importable (they have the trials of `generate`), and saves memory."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB, of each engine.
