"""Run as a program: `pointer-rl ARGS…` in a child that is killed at random and begun again.

    kill_driver.py KILLS SEED ARGS… --output-path OUTPUT

First it runs undisturbed, to another output and, where ARGS name a store, with another one. From
then on whatever a child finishes must be the same bytes; it is then removed, the store too, and all
begins anew, until KILLS children were killed. Each child is a fork of this process, so that what
takes a second to import is imported once.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

STORE = "killed.sqlite"


def start(args: list[str]) -> int:
    child = os.fork()
    if not child:
        from pointer_rl.cli.main import cli

        try:
            cli(args, standalone_mode=False)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def finish(child: int) -> None:
    assert os.waitpid(child, 0)[1] == 0


def main() -> None:
    import pointer_rl.generate.run  # noqa: F401
    import pointer_rl_standard.generators  # noqa: F401

    kills, seed, args = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    rng = random.Random(seed)
    output = Path(args[-1])
    undisturbed = Path(f"undisturbed{output.suffix}")
    other = {STORE: "undisturbed.sqlite", str(output): str(undisturbed)}
    begun = time.monotonic()
    finish(start([other.get(arg, arg) for arg in args]))
    whole = time.monotonic() - begun
    while kills:
        child = start(args)
        time.sleep(rng.uniform(0, whole / 2))
        done, status = os.waitpid(child, os.WNOHANG)
        if not done:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills -= 1
            continue
        assert status == 0
        assert output.read_bytes() == undisturbed.read_bytes()
        for path in (output, *Path().glob(f"{STORE}*")):
            path.unlink()
    finish(start(args))
    assert output.read_bytes() == undisturbed.read_bytes()


if __name__ == "__main__":
    main()
