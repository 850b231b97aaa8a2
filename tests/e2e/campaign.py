"""Run as a program: attacks on every command that writes, and a table of how they ended.

    campaign.py FOLDER [--kills N] [--fresh N] [--disks N] [--damages N] [--seed N] [--only …]

Each command first runs undisturbed. Then it is killed at random instants and begun again, on and
on; what it has written whenever it finishes must be the same files with the same bytes, and no
others. The same holds after a run on a disk that fills up, which must end in one line. At last bits
of every kind of file are flipped, or its end is cut off: what reads it must end in one line or, if
the file has checksums, in what the whole file gives.

A child is a fork of this process, so that what takes seconds to import is imported once; `--fresh`
says how many of the kills hit a process of its own, imports included. Exits 1 if anything failed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

QUERIES = 60
PATIENCE = 120
"""Seconds after which a child hangs."""

PLUGIN = """
import hashlib
import time

import torch

from pointer_rl.hookspecs import hookimpl
from pointer_rl.types import BackendError, Response


class Swayed:
    '''The last digits of its scores depend on who shares the call, as a GPU's do.'''

    fingerprint = "swayed"

    def run(self, requests):
        sway = len(requests) * 1e-9
        for index, request in enumerate(requests):
            time.sleep(0.0005)
            text = request.prompt.text
            if "q13?" in text.rpartition("Question")[2]:
                yield index, BackendError("never answered")
            else:
                scores = tuple(-len(answer) - index * sway for answer in request.score)
                answer = hashlib.sha256(text.encode()).digest()[0] % 2
                yield index, Response("yes" if answer else "no", scores)


class Hashed:
    fingerprint = "hashed"
    dim = 6

    def encode(self, examples):
        time.sleep(0.01)
        rows = [hashlib.sha256(each.question.encode()).digest()[:6] for each in examples]
        return torch.tensor([list(row) for row in rows]) / 256.0 - 0.5


@hookimpl
def pointer_rl_register_backends(register):
    register("swayed", Swayed, summary="depends on its batch")


@hookimpl
def pointer_rl_register_encoders(register):
    register("hashed", Hashed, summary="hashes questions")
"""


@dataclass(frozen=True)
class Command:
    """A command that writes, run in a folder that holds `inputs`."""

    name: str
    args: tuple[str, ...]
    gives: tuple[str, ...] = ()
    """What it wrote, undisturbed, that is an input of the commands after it."""


@dataclass(frozen=True)
class Damage:
    """A file that is damaged, and a command that reads it."""

    name: str
    file: str
    args: tuple[str, ...]
    output: str | None = None
    """What the command writes; None: what it prints."""
    checked: bool = True
    """Whether no damage may change the outcome silently."""
    before: tuple[str, ...] = ()
    """A command that is run first."""


DATA = ("--dataset", "jsonl", "--dataset-opt", "path=data.jsonl")
EMBEDDED = ("--query-emb", "emb.safetensors", "--cand-emb", "emb.safetensors")
MODEL = (*DATA, "--backend", "swayed", *EMBEDDED)
PROPOSE = (
    *("--num-random", "3", "--num-retrieval", "0", "--num-beams", "0"),
    *("--num-samples-per-temp", "0", "--score-answers", "--window", "8"),
)
SIZES = ("--layers", "1", "--heads", "2", "--held-out", "0.3")
TRAIN = ("--beam-data", "rl.json", *EMBEDDED, *SIZES, "--output-dir", "out")
GENERATE = ("generate", *MODEL, *PROPOSE)

COMMANDS = [
    Command(
        "generate",
        (*GENERATE, "--store", "store.sqlite", "--output-path", "rl.json"),
        ("rl.json", "store.sqlite"),
    ),
    Command("generate .jsonl", (*GENERATE, "--no-store", "--output-path", "out.jsonl")),
    Command("generate .parquet", (*GENERATE, "--no-store", "--output-path", "out.parquet")),
    Command(
        "beams",
        (
            *("beams", *DATA, "--backend", "swayed", "--no-store", "--shots", "1"),
            *("--sub-pool", "8", "--beam-size", "2", "--output-path", "beams.json"),
        ),
        ("beams.json",),
    ),
    Command(
        "train",
        ("train", *TRAIN, "--rce-epochs", "3", "--grpo-epochs", "2"),
        ("out",),
    ),
    Command(
        "train --online",
        (
            *("train", "--online", *MODEL, *SIZES, "--no-store", "--max-calls", "160"),
            *("--rounds", "2", "--pointers", "8", "--shots", "1", "--output-dir", "online"),
            *("--rce-epochs", "2", "--grpo-epochs", "1"),
        ),
    ),
    Command(
        "sft",
        (
            *("sft", "--beam-data", "beams.json", *EMBEDDED, *SIZES),
            *("--output-dir", "first", "--epochs", "4"),
        ),
    ),
    Command(
        "evaluate",
        (
            *("evaluate", *MODEL, "--no-store", "--policy", "mine=out"),
            *("--output-path", "evaluation.json"),
        ),
    ),
    Command(
        "run",
        (
            *("run", *MODEL, "--no-store", "--max-calls", "500", "--test-limit", "6"),
            *("--shots", "1", "--output-dir", "route"),
        ),
    ),
    Command(
        "embed",
        (
            *("embed", *DATA, "--encoder", "hashed", "--split", "pool", "--batch-size", "4"),
            *("--output-path", "pool.safetensors"),
        ),
    ),
    Command("convert .jsonl", ("convert", "rl.json", "converted.jsonl"), ("converted.jsonl",)),
    Command("convert .parquet", ("convert", "rl.json", "rl.parquet"), ("rl.parquet",)),
    Command("rescore", ("rescore", "rl.json", "--output-path", "rescored.json")),
    Command("merge", ("merge", "rl.json", "converted.jsonl", "--output-path", "merged.json")),
    Command("cache export", ("cache", "export", "--store", "store.sqlite", "responses.jsonl")),
    Command("cache prune", ("cache", "prune", "--store", "store.sqlite", "--all")),
    Command("plugins new", ("plugins", "new", "mine", "--kind", "backend")),
    Command(
        "glyphs",
        (
            *("glyphs", "glyphs", "--dataset-opt", "pool_size=8", "--dataset-opt", "train_size=8"),
            *("--dataset-opt", "validation_size=4", "--dataset-opt", "test_size=4"),
        ),
    ),
]

SELECT = ("select", "out", "--query-emb", "emb.safetensors")
DAMAGES = [
    Damage(
        "journal",
        "out.partial.jsonl",
        (*GENERATE, "--no-store", "--output-path", "out.json"),
        "out.json",
        before=(*GENERATE, "--no-store", "--output-path", "out.json", "--max-calls", "120"),
    ),
    Damage(
        "training checkpoint",
        "out/checkpoint.safetensors",
        ("train", *TRAIN, "--rce-epochs", "3", "--grpo-epochs", "2"),
        "out/bundle.json",
    ),
    Damage("Parquet", "rl.parquet", ("convert", "rl.parquet", "back.json"), "back.json"),
    Damage("policy's weights", "out/model.safetensors", SELECT),
    Damage("policy's pool", "out/pool.safetensors", SELECT),
    Damage("policy's queries", "out/query_ids.txt", SELECT),
    Damage("bundle.json", "out/bundle.json", SELECT, checked=False),
    Damage(
        "response cache",
        "store.sqlite",
        (*GENERATE, "--store", "store.sqlite", "--output-path", "again.json"),
        checked=False,
    ),
    Damage(
        "response cache, looked at",
        "store.sqlite",
        ("cache", "info", "--store", "store.sqlite"),
        checked=False,
    ),
    Damage("RL data", "rl.json", ("validate", "rl.json"), checked=False),
    Damage("RL data, trained on", "rl.json", ("train", *TRAIN, "--rce-epochs", "1"), checked=False),
    Damage(".jsonl", "converted.jsonl", ("convert", "converted.jsonl", "x.json"), checked=False),
    Damage("beam data", "beams.json", ("convert", "beams.json", "x.json"), checked=False),
    Damage("embeddings", "emb.safetensors", SELECT, checked=False),
    Damage(
        "dataset",
        "data.jsonl",
        (
            *("embed", *DATA, "--encoder", "hashed", "--split", "pool"),
            *("--output-path", "x.safetensors"),
        ),
        checked=False,
    ),
]

EXISTS = re.compile(r"exists; remove it|\(File exists\)|is not empty: name another")
"""What commands that are not resumed say of an output that an earlier attempt has finished."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
KILLS = ("SIGKILL", "SIGTERM", "SIGINT twice", "STOP, CONT")


def make_world(folder: Path) -> None:
    """The inputs of the first command, and the plugin, installed."""
    import PIL.Image
    import torch

    from pointer_rl.datasets.embeddings import save_embeddings

    folder.mkdir(parents=True)
    rows = []
    for i in range(QUERIES):
        PIL.Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i}.png")
        answers = ["yes", "no"] if i % 2 else ["no", "yes"]
        about = {"id": f"e{i}", "image": f"{i}.png", "image_id": i, "question": f"q{i}?"}
        rows.append({**about, "answers": [answers[0]] * 8 + [answers[1]] * 2})
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vectors = torch.randn(QUERIES, 8, generator=torch.Generator().manual_seed(0))
    save_embeddings(folder / "emb.safetensors", vectors, [row["id"] for row in rows], "hashed")


def install_plugin(folder: Path) -> None:
    """Install the plugin, for this process and those that it starts."""
    folder.mkdir(parents=True)
    (folder / "swayed_plugin.py").write_text(PLUGIN)
    info = folder / "swayed_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: swayed-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pointer_rl]\nswayed = swayed_plugin\n")
    sys.path.insert(0, str(folder))
    more = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(folder) + (os.pathsep + more if more else "")
    os.environ["POINTER_RL_PLUGINS"] = "swayed"
    os.environ["OMP_NUM_THREADS"] = "1"


class Child:
    """A command under way."""

    def __init__(
        self,
        folder: Path,
        args: tuple[str, ...],
        *,
        limit: int | None = None,
        fresh: bool = False,
        modules: Path | None = None,
    ) -> None:
        """limit: most bytes of a file that it may write; fresh: whether it imports everything;
        modules: where it writes the names of what it has imported in the end."""
        self.fresh = fresh
        reading, writing = os.pipe()
        self._said = reading
        if fresh:
            self.pid = subprocess.Popen(
                [sys.executable, "-m", "pointer_rl", *args],
                **{"cwd": folder, "stdout": writing, "stderr": writing},
            ).pid
        else:
            # A signal that is here before the child has its own handlers would run this process's.
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            self.pid = os.fork()
            if not self.pid:
                self._run(folder, args, writing, limit, modules)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.close(writing)

    def _run(
        self,
        folder: Path,
        args: tuple[str, ...],
        said: int,
        limit: int | None,
        modules: Path | None,
    ) -> None:
        code: object = 70
        for number in SIGNALS:  # until the program has its own handlers
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            os.chdir(folder)
            for number in (1, 2):
                os.dup2(said, number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            from pointer_rl.cli.main import main

            sys.argv = ["pointer-rl", *args]
            main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            if modules is not None:
                modules.write_text("\n".join(sys.modules))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)

    def poll(self) -> int | None:
        """The exit status; None if it runs, minus the signal's number if it was killed."""
        done, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if done else None

    def wait(self) -> tuple[int, str]:
        """The exit status, and what it said. One that hangs is killed, with status 99."""
        until = time.monotonic() + PATIENCE
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                status = 99
                break
            time.sleep(0.001)
        return status, self.said()

    def said(self) -> str:
        with os.fdopen(self._said, errors="replace") as file:
            return file.read()

    def kill(self, how: str, rng: random.Random) -> None:
        """Send the signals of one of `KILLS`."""
        signals = {
            "SIGKILL": [signal.SIGKILL],
            "SIGTERM": [signal.SIGTERM],
            "SIGINT twice": [signal.SIGINT, signal.SIGINT],
            "STOP, CONT": [signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL],
        }
        try:
            for each in signals[how]:
                os.kill(self.pid, each)
                time.sleep(rng.uniform(0, 0.02))
        except ProcessLookupError:
            pass


class Failed(Exception):  # noqa: N818
    """An attack had an effect."""


class Campaign:
    """Attacks, and how they ended."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.inputs = folder / "inputs"
        self.work, self.whole = folder / "work", folder / "whole"
        self.modules = folder / "modules"
        install_plugin(folder / "plugin")
        make_world(self.inputs)
        self.attacked: Counter[tuple[str, str]] = Counter()
        self.failed: Counter[tuple[str, str]] = Counter()

    def undisturbed(self, command: Command) -> float:
        """Run it once; returns how long it took."""
        for _ in range(2):  # the first imports what it needs, and then this process does
            self._renew(self.whole)
            begun = time.monotonic()
            status, said = Child(self.whole, command.args, modules=self.modules).wait()
            assert status == 0, f"{command.name}: {status}: {said}"
            took = time.monotonic() - begun
            for module in self.modules.read_text().split():
                with suppress(Exception):
                    importlib.import_module(module)
        self.expected = tree(self.whole)
        return took

    def give(self, command: Command) -> None:
        """Make what it wrote, undisturbed, an input of the commands after it."""
        for name in command.gives:
            copy = shutil.copytree if (self.whole / name).is_dir() else shutil.copy2
            copy(self.whole / name, self.inputs / name)

    def kills(self, command: Command, number: int, took: float, *, fresh: bool) -> None:
        """Kill it so often, and begin it again each time."""
        self._renew(self.work)
        kind = "kills, imports included" if fresh else "kills"
        last = number + self.attacked[command.name, kind]
        while self.attacked[command.name, kind] < last:
            how = KILLS[self.attacked[command.name, kind] % len(KILLS)]
            child = Child(self.work, command.args, fresh=fresh)
            time.sleep(self.rng.uniform(0, took * 1.1))
            status = child.poll()
            if status is not None:
                said = child.said()
            else:
                child.kill(how, self.rng)
                self.attacked[command.name, kind] += 1
                status, said = child.wait()
            with self._noting(command.name, kind, how):
                self._check_killed(command, status, said, fresh)
        with self._noting(command.name, kind, "the end"):
            self._finish(command)

    def _check_killed(self, command: Command, status: int, said: str, fresh: bool) -> None:
        interrupted = status in (1, 130) and (fresh or "Traceback" not in said)
        if status == 0 or EXISTS.search(said):
            self._check_finished()
        elif not interrupted and status not in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
            raise Failed(f"exit status {status}: {said}")
        elif self.rng.random() < 0.3:
            self._finish(command)

    def disks(self, command: Command, number: int) -> None:
        """Run it so often with files of limited size, and then without a limit."""
        sizes = [len(content) for content in self.expected.values() if isinstance(content, bytes)]
        for _ in range(number):
            self._renew(self.work)
            limit = int(max(sizes) * self.rng.random() ** 2)
            self.attacked[command.name, "full disk"] += 1
            with self._noting(command.name, "full disk", f"{limit} bytes"):
                status, said = Child(self.work, command.args, limit=limit).wait()
                if status:
                    check_one_line(status, said)
                self._finish(command)

    def damages(self, damage: Damage, number: int) -> None:
        """Damage a file so often, and read it."""
        self._renew(self.whole)
        if damage.before:
            status, said = Child(self.whole, damage.before).wait()
            assert status == 0, said
        content = (self.whole / damage.file).read_bytes()
        self._renew(self.work, self.whole)
        expected = self._outcome(damage)
        for _ in range(number):
            self._renew(self.work, self.whole)
            damaged = bytearray(content)
            if self.rng.random() < 0.25:
                how = f"cut at {self.rng.randrange(len(content))}"
                del damaged[int(how.split()[-1]) :]
            else:
                place, bit = self.rng.randrange(len(content)), self.rng.randrange(8)
                how = f"bit {bit} of byte {place}"
                damaged[place] ^= 1 << bit
            (self.work / damage.file).write_bytes(damaged)
            self.attacked[damage.name, "damage"] += 1
            with self._noting(damage.name, "damage", how):
                found = self._outcome(damage)
                if damage.checked and found not in (None, expected):
                    raise Failed("the outcome changed silently")

    def _outcome(self, damage: Damage) -> object:
        """What the command writes or prints; None if it ends in one line."""
        if damage.output is not None:
            (self.work / damage.output).unlink(missing_ok=True)
        status, said = Child(self.work, damage.args).wait()
        if status not in (0, 1) or "Traceback" in said:
            check_one_line(status, said)
            return None
        return said if damage.output is None else (self.work / damage.output).read_bytes()

    def _finish(self, command: Command) -> None:
        status, said = Child(self.work, command.args).wait()
        if status and not EXISTS.search(said):
            raise Failed(f"did not finish: {status}: {said}")
        self._check_finished()

    def _check_finished(self) -> None:
        found = tree(self.work)
        self._renew(self.work)
        names = {*found} ^ {*self.expected}
        if names:
            raise Failed(f"other files: {sorted(names)}")
        differ = [name for name, content in found.items() if content != self.expected[name]]
        if differ:
            raise Failed(f"other content: {differ}")

    def _renew(self, folder: Path, source: Path | None = None) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source or self.inputs, folder)

    def _noting(self, name: str, kind: str, how: str) -> Noting:
        return Noting(self, name, kind, how)

    def table(self) -> str:
        """What was attacked, how often, and how often it failed."""
        lines = [
            "| command or file | attack | attacked | survived | failed |",
            "|---|---|--:|--:|--:|",
        ]
        for (name, kind), number in self.attacked.items():
            failed = self.failed[name, kind]
            lines.append(f"| {name} | {kind} | {number} | {number - failed} | {failed} |")
        every, failed = self.attacked.total(), self.failed.total()
        return "\n".join([*lines, f"| all | | {every} | {every - failed} | {failed} |"])


@dataclass
class Noting:
    """Counts an attack as failed, and goes on."""

    campaign: Campaign
    name: str
    kind: str
    how: str

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, Failed):
            return False
        self.campaign.failed[self.name, self.kind] += 1
        print(f"FAILED {self.name}, {self.kind}, {self.how}: {error}", flush=True)
        self.campaign._renew(self.campaign.work)
        return True


def check_one_line(status: int, said: str) -> None:
    lines = [line for line in said.splitlines() if line.startswith("pointer-rl: error: ")]
    if status != 2 or "Traceback" in said or len(lines) != 1 or not said.endswith(f"{lines[-1]}\n"):
        raise Failed(f"no error of one line: {status}: {said}")


def tree(folder: Path) -> dict[str, object]:
    """Every file's content; of a response cache, its responses."""
    from pointer_rl.session.cache import ResponseCache

    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".sqlite":
            rows = list(ResponseCache(path, must_exist=True).rows())
            found[name] = [{**row, "created": None} for row in rows]
        elif path.is_file() and not name.endswith(("-wal", "-shm")):
            found[name] = path.read_bytes()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="which it makes")
    for option in ("kills", "fresh", "disks", "damages", "seed"):
        parser.add_argument(f"--{option}", type=int, default=0, help="of each command or file")
    names = [each.name for each in (*COMMANDS, *DAMAGES)]
    parser.add_argument("--only", nargs="+", default=names, metavar="NAME", help=", ".join(names))
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the table is printed all the same
    campaign = Campaign(given.folder.resolve(), given.seed)
    try:
        attack(campaign, given)
    finally:
        print(campaign.table())
    sys.exit(1 if campaign.failed else 0)


def attack(campaign: Campaign, given: argparse.Namespace) -> None:
    """As often as the options say."""
    begun = time.monotonic()
    for command in COMMANDS:
        if command.name not in given.only:
            continue
        took = campaign.undisturbed(command)
        campaign.kills(command, given.kills, took, fresh=False)
        if given.fresh:
            start = time.monotonic()
            Child(campaign.inputs, ("--version",), fresh=True).wait()
            alone = took + 3 * (time.monotonic() - start)  # it imports more than that
            campaign.kills(command, given.fresh, alone, fresh=True)
        campaign.disks(command, given.disks)
        campaign.give(command)
        print(f"{time.monotonic() - begun:.0f} s: {command.name}, {took:.2f} s a run", flush=True)
    for damage in DAMAGES:
        if given.damages and damage.name in given.only:
            campaign.damages(damage, given.damages)
            print(f"{time.monotonic() - begun:.0f} s: {damage.name}", flush=True)


if __name__ == "__main__":
    main()
