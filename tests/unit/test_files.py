"""Files appear whole or not at all, and leftovers of dead processes are removed."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from pointer_rl.errors import InputError
from pointer_rl.files import (
    AtomicFile,
    check_writable,
    locked,
    new_folder,
    remove_leftovers,
    temporary_path,
    write_tensors,
    write_text,
)

LOCKS = """
import sys
from pathlib import Path
from pointer_rl.files import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""
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
    with pytest.raises(InputError, match=r"b: cannot be written \(a\.txt is not a folder\)"):
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


def test_the_next_writer_into_a_folder_removes_leftovers(tmp_path, leftover):
    leftover("a.txt")
    leftover("b.txt")
    (tmp_path / ".hidden.tmp").touch()
    write_text(tmp_path / "c.txt", "")
    assert names(tmp_path) == [".hidden.tmp", "c.txt"]
    remove_leftovers(tmp_path / "none")


def test_files_of_living_processes_and_of_other_hosts_stay(tmp_path, leftover):
    left = leftover("a.txt")
    foreign = left.with_name(".a.txt.1@another.tmp")
    # Whether it lives does not show in the number: that of a dead process is given out again.
    reused = left.rename(left.with_name(f".a.txt.{os.getppid()}@{platform.node()}.tmp"))
    foreign.touch()
    with AtomicFile(tmp_path / "a.txt"):
        assert not reused.exists()
        mine = temporary_path(tmp_path / "a.txt").name
        remove_leftovers(tmp_path)
        assert names(tmp_path) == sorted([mine, foreign.name])
    os.utime(foreign, (0, 0))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "a"

    def fail():
        with new_folder(path) as folder:
            (folder / "half").touch()
            remove_leftovers(tmp_path)
            assert folder.exists()
            assert not path.exists()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == []
    with new_folder(path) as folder:
        (folder / "whole").touch()
    assert names(path) == ["whole"]
    with pytest.raises(InputError, match=r"a: cannot be written \(File exists\)"), new_folder(path):
        pass


def test_one_may_wait_for_the_other(tmp_path):
    path = tmp_path / "out.json"
    said = []
    command = [sys.executable, "-c", LOCKS, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with locked(path, lambda sentence: (said.append(sentence), other.kill())):
            assert other.wait() != 0
    assert [each.endswith("; waiting for it") for each in said] == [True]
    assert f"process {other.pid} on " in said[0]


def test_one_process_at_a_time_and_a_dead_ones_lock_is_no_lock(tmp_path):
    path = tmp_path / "new" / "out.json"
    with (
        subprocess.Popen(
            [sys.executable, "-c", LOCKS, str(path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
        ) as other,
    ):
        assert other.stdout.readline() == b"locked\n"
        says = rf"out\.json: another process is writing it \(process {other.pid} on .+\): wait for"
        with pytest.raises(InputError, match=says), locked(path):
            pass
        with locked(path.with_name("other.json")):
            pass
        other.kill()
    (left,) = path.parent.iterdir()
    with locked(path):
        assert names(path.parent) == [left.name]
    assert names(path.parent) == []


def test_a_lock_that_is_held_for_a_moment_is_waited_for(tmp_path):
    # `remove_leftovers` of another process takes the locks of what may have been left.
    place = tmp_path / ".rl.json.pointer-rl.lock"
    with place.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        release = threading.Timer(0.1, fcntl.flock, (held, fcntl.LOCK_UN))
        release.start()
        with locked(tmp_path / "rl.json"):
            release.join()


def test_a_folder_is_no_name_for_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for use in (write_text, lambda path, _: locked(path).__enter__()):
        with pytest.raises(InputError, match="it is a folder; name a file"):
            use(Path("."), "")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_pipe_or_a_device_is_not_replaced(tmp_path, overwrite):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(InputError, match="it is a pipe or a device; name a file"):
        check_writable(path, overwrite=overwrite)
    assert path.is_fifo()


def test_where_there_are_no_locks_a_warning_says_so(tmp_path, leftover, monkeypatch, caplog):
    left = leftover("a.txt")

    def refuse(descriptor, how):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "b.txt"):
        write_text(tmp_path / "b.txt", "")
    assert "b.txt: the file system has no locks" in caplog.text
    assert names(tmp_path) == [left.name, "b.txt"], "its process may be alive"


def test_a_lock_leaves_no_folder_behind(tmp_path):
    with locked(tmp_path / "new" / "a"):
        pass
    assert names(tmp_path) == []
    with locked(tmp_path / "new" / "a"):
        (tmp_path / "new" / "a").touch()
    assert names(tmp_path / "new") == ["a"]


@pytest.mark.parametrize("name", ["run\udcff", "a\0b"])
def test_names_that_nothing_can_be_written_under(tmp_path, name):
    for use in (write_text, lambda path, _: locked(path).__enter__()):
        with pytest.raises(InputError, match=r"(run.udcff|a.x00b): not a name in UTF-8"):
            use(tmp_path / name, "")
        with pytest.raises(InputError, match="not a name in UTF-8"):
            use(tmp_path / name / "file", "")
    assert names(tmp_path) == []


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda x: x != "__metadata__"),
        st.tuples(
            st.sampled_from(
                [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
            ),
            st.lists(st.integers(0, 3), max_size=3),
        ),
        max_size=5,
    ),
    st.none() | st.text(st.characters(codec="utf-8")),
)
def test_safetensors_reads_the_tensors_that_are_written(tmp_path_factory, shapes, note):
    folder = tmp_path_factory.mktemp("tensors")
    tensors = {name: torch.rand(shape).to(dtype) for name, (dtype, shape) in shapes.items()}
    metadata = None if note is None else {"note": note}
    write_tensors(folder / "file", tensors, metadata)
    with safe_open(folder / "file", framework="pt") as file:
        assert file.metadata() == metadata
    found = load_file(folder / "file")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
