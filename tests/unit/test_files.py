"""Files appear whole or not at all, and leftovers of dead processes are removed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from pointer_rl.errors import InputError
from pointer_rl.files import (
    AtomicFile,
    check_writable,
    remove_leftovers,
    write_tensors,
    write_text,
)

KILLED = """
import os, sys
from pathlib import Path
from pointer_rl.files import AtomicFile
AtomicFile(Path(sys.argv[1])).file.write(b"half")
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def leftover(tmp_path):
    """Leaves the temporary file of a process that was killed while it wrote `name`."""

    def leave(name):
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)])
        (found,) = tmp_path.glob(f".{name}.*.tmp")
        return found

    return leave


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new folder" / "a.txt"
    with AtomicFile(path) as file:
        file.write(b"text")
        assert not path.exists()
    assert path.read_bytes() == b"text"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(error), AtomicFile(path):
        raise error
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a.txt"]


def test_the_systems_reason_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with (
        pytest.raises(InputError, match=r"a\.txt: cannot be written \(the disk is full\)"),
        AtomicFile(path),
    ):
        raise OSError(28, "the disk is full")
    with pytest.raises(InputError, match=r"b: cannot be written \(File exists\)"):
        write_text(path / "b", "")
    with pytest.raises(InputError, match=r"cannot be written \(it is a folder; name a file\)"):
        write_text(tmp_path, "")
    assert names(tmp_path) == ["a.txt"]


def test_discarding_after_the_commit_keeps_the_file(tmp_path):
    target = AtomicFile(tmp_path / "a.txt")
    target.commit()
    later = AtomicFile(tmp_path / "a.txt")
    target.discard()
    later.commit()
    assert names(tmp_path) == ["a.txt"]


def test_text_and_tensors(tmp_path):
    write_text(tmp_path / "a.txt", "é\n\ud83d")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n\\ud83d"
    write_tensors(tmp_path / "a.safetensors", {"x": torch.arange(3)}, {"key": "value"})
    assert load_file(tmp_path / "a.safetensors")["x"].tolist() == [0, 1, 2]
    assert names(tmp_path) == ["a.safetensors", "a.txt"]


def test_a_place_is_checked_early(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    check_writable(path, overwrite=False)
    assert not path.exists()
    path.write_text("before")
    with pytest.raises(InputError, match=r"a\.txt: exists; remove it, or give --overwrite"):
        check_writable(path, overwrite=False)
    check_writable(path, overwrite=True)
    assert path.read_text() == "before"
    with pytest.raises(InputError, match="cannot be written"):
        check_writable(path / "b", overwrite=True)


def test_the_next_writer_of_a_file_removes_leftovers(tmp_path, leftover):
    leftover("a.txt")
    other = leftover("b.txt")
    write_text(tmp_path / "a.txt", "")
    assert names(tmp_path) == [other.name, "a.txt"]
    remove_leftovers(tmp_path / "b.txt")
    assert names(tmp_path) == ["a.txt"]


def test_leftovers_are_removed_from_a_whole_folder(tmp_path, leftover):
    leftover("a.txt")
    leftover("b.txt")
    (tmp_path / ".hidden.tmp").touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden.tmp"]
    remove_leftovers(tmp_path / "none" / "c.txt")


def test_files_of_living_processes_and_of_other_hosts_stay(tmp_path, leftover):
    left = leftover("a.txt")
    pid, host = left.name.removeprefix(".a.txt.").removesuffix(".tmp").split("@")
    alive = left.with_name(f".a.txt.{os.getppid()}@{host}.tmp")
    foreign = left.with_name(f".a.txt.{pid}@another.tmp")
    alive.touch()
    foreign.touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([alive.name, foreign.name])
    os.utime(foreign, (0, 0))
    os.utime(alive, (0, 0))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [alive.name]
