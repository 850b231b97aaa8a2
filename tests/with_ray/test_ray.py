"""The executor `ray` on Ray itself: on this machine, and on a cluster whose parts are killed."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

import fleet_plugin
import pytest

from pointer_rl.errors import InputError, MissingExtraError
from pointer_rl.registry import registry

if find_spec("ray") is None:  # and not imported here: see `_start`
    pytest.skip("Ray is not installed", allow_module_level=True)

PLUGIN = Path(fleet_plugin.__file__)
KILLS = int(os.environ.get("POINTER_RL_RAY_KILLS", "20"))
"""Kills of the test that kills; the campaign has 200."""
QUERIES = 48


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return fleet_plugin.make_world(tmp_path_factory.mktemp("world"), QUERIES)


def command(world, output, *more, seconds=0.01):
    return [
        *(sys.executable, "-m", "pointer_rl", "--plugin", str(PLUGIN), "generate"),
        *("--dataset", "jsonl", "--dataset-opt", f"path={world / 'data.jsonl'}"),
        *("--backend", "touchy", "--backend-opt", f"seconds={seconds}"),
        *("--num-beams", "0", "--num-samples-per-temp", "0", "--num-retrieval", "0"),
        *("--num-random", "4", "--window", "4", "--output-path", str(output), *more),
    ]


def run(*args, **options):
    done = subprocess.run(command(*args, **options), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def here(workers, **options):
    given = {"num_workers": workers, **options}
    return ("--executor", "ray", *(f"--executor-opt={key}={each}" for key, each in given.items()))


def listening(driver):
    """The addresses other than loopback on which this process or one of Ray's listens."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found.add((fields[1].split(":")[0], fields[9]))
    ours = set()
    for process in Path("/proc").iterdir():
        try:
            name = (process / "cmdline").read_bytes()
            if not (name.startswith(b"ray::") or b"ray/core" in name or process.name == driver):
                continue
            for each in (process / "fd").iterdir():
                target = os.readlink(each)
                if target.startswith("socket:["):
                    ours.add(target[8:-1])
        except OSError:
            continue
    loopback = {"0100007F", "0" * 24 + "01000000", "0000000000000000FFFF00000100007F"}
    return {address for address, inode in found if inode in ours} - loopback


def test_two_workers_write_the_bytes_of_one_process(world, tmp_path):
    run(world, tmp_path / "a.json", "--no-store")
    run(world, tmp_path / "b.json", "--no-store", *here(2))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.slow  # other tests on this machine may have Ray listen elsewhere
def test_only_loopback_is_used(world, tmp_path):
    process = subprocess.Popen(command(world, tmp_path / "a.json", "--no-store", *here(1)))
    seen = set()
    while process.poll() is None:
        seen |= listening(str(process.pid))
        time.sleep(0.2)
    assert process.returncode == 0
    assert not seen


def test_a_machine_without_gpu_needs_a_number(world, tmp_path):
    done = subprocess.run(
        command(world, tmp_path / "a.json", "--executor", "ray"), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("this machine has no GPU: give --executor-opt num_workers=N\n")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "no Ray at 127.0.0.1:1: Connection refused"),
        ("ray://127.0.0.1:1", "give auto, or HOST:PORT of the cluster's head"),
        ("here", "give auto, or HOST:PORT of the cluster's head"),
    ],
)
def test_no_cluster_is_one_line(address, said):
    with pytest.raises(InputError, match=re.escape(said)):
        registry().create("executor", "ray", {"num_workers": 1, "address": address})


@pytest.mark.skipif(find_spec("aiohttp_cors") is not None, reason="the dashboard is installed")
def test_a_dashboard_that_is_not_installed_is_one_line():
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'ray[default]'")):
        registry().create("executor", "ray", {"num_workers": 1, "dashboard": True})


# --- a cluster that is killed -----------------------------------------------------------------


def actors():
    """The processes of our workers."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if (process / "cmdline").read_bytes().startswith(b"ray::_Actor"):
                found.append(int(process.name))
        except (OSError, ValueError):
            continue
    return found


def later(driver, seconds):
    """The workers, so many seconds after there are any; none if the driver ends before."""
    begun = None
    while driver.poll() is None:
        alive = actors()
        if alive and begun is None:
            begun = time.monotonic()
        if alive and time.monotonic() - begun >= seconds:
            return alive
        time.sleep(0.05)
    return []


@pytest.mark.slow
def test_a_cluster_is_killed_at_random(world, tmp_path):
    """Workers, nodes and drivers are killed at random instants, and the bytes are the same."""
    from ray.cluster_utils import Cluster

    run(world, tmp_path / "a.json", "--no-store", seconds=0.06)
    node = {"num_cpus": 2, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    nodes = [cluster.add_node(**node) for _ in range(2)]
    rng = random.Random(0)
    victims = cycle(["worker", "node", "worker", "driver", "worker"])
    killed: Counter[str] = Counter()
    runs = 0
    try:
        while killed.total() < KILLS:
            runs += 1
            output = tmp_path / f"{runs}.json"
            store = ("--store", str(tmp_path / f"{runs}.sqlite"))
            done = False
            while not done:
                # At least three seconds of answering, for some kills.
                workers = here(4, address=cluster.address)
                driver = subprocess.Popen(
                    command(world, output, *store, *workers, seconds=0.06),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                while killed.total() < KILLS and (alive := later(driver, rng.uniform(0, 3))):
                    victim = next(victims)
                    with suppress(ProcessLookupError):  # it ended just now
                        if victim == "driver":
                            driver.kill()
                        elif victim == "node":
                            cluster.remove_node(nodes.pop(0), allow_graceful=False)
                            nodes.append(cluster.add_node(**node))
                        else:
                            os.kill(rng.choice(alive), signal.SIGKILL)
                        killed[victim] += 1
                _, said = driver.communicate(timeout=300)
                done = driver.returncode == 0
                assert done or driver.returncode == -signal.SIGKILL, said
            assert output.read_bytes() == (tmp_path / "a.json").read_bytes(), runs
    finally:
        cluster.shutdown()
        print(f"\n{runs} runs, killed: {dict(killed)}")
