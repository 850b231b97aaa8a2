"""Makes modules importable: this folder's, and the benchmarks' (for the trials of `generate`)."""

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path += [str(FOLDER), str(FOLDER.parent / "benchmarks")]
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB, of each engine that a test starts.
