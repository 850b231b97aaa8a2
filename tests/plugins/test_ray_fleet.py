"""Runs on a fleet of processes, which die: the file is that of one process, byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter

import fleet_plugin
import PIL.Image
import pytest
import torch

from pointer_rl.errors import InputError, PluginError
from pointer_rl.generate.run import GenerateRun, run_generate
from pointer_rl.registry import registry
from pointer_rl.session.observer import Observer
from pointer_rl.session.session import PluginRef, SessionOptions
from pointer_rl.testing import ExecutorTests
from pointer_rl.types import Pool
from pointer_rl_ray.options import RayOptions
from pointer_rl_ray.sharing import Packer, SentFile, Unpacker

QUERIES = 40


@pytest.fixture(autouse=True)
def fleets():
    """Loaded anew: other suites may have cleared the registry. Gives the fleets that are made."""
    fleets = fleet_plugin.load()
    yield fleets
    for fleet in fleets:
        fleet.abandon(list(fleet.processes))
    registry.cache_clear()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return fleet_plugin.make_world(tmp_path_factory.mktemp("world"), QUERIES)


class Heard(Observer):
    """What is said, and what is done when a window is finished or something is said."""

    def __init__(self, at_finish=lambda: None, at_say=lambda: None):
        self.said, self.trials, self.fleet = [], 0, []
        self.at_finish, self.at_say = at_finish, at_say

    def say(self, sentence):
        self.said.append(sentence)
        self.at_say()

    def trial(self, outcome, methods=()):
        self.trials += 1

    def finish(self, queries):
        self.fleet.append(self.describe())
        self.at_finish()

    def workers(self, describe):
        self.describe = describe


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def generate(world, output, executor="processes", *, workers=3, observer=None, **options):
    backend = {key: str(value) for key, value in options.pop("backend", {}).items()}
    store = options.pop("store", None)
    run = GenerateRun(
        output_path=output,
        session=SessionOptions(
            dataset=PluginRef("jsonl", {"path": str(world / "data.jsonl")}),
            backend=PluginRef("touchy", backend),
            prompt=PluginRef("short-answer"),
            metric=PluginRef("vqa"),
            cache=store,
            executor=PluginRef(
                executor, {"num_workers": workers} if executor == "processes" else {}
            ),
        ),
        generators=[PluginRef("random", {"num": 4})],
        window=4,
        **options,
    )
    return run_generate(run, observer or Observer())


def records(path):
    """The lines of the records: `_meta` has the options of the backend, which differ."""
    return [line for line in path.read_bytes().splitlines() if not line.startswith(b'"_meta"')]


def questions(log):
    """How often each prompt was asked, and the question in it."""
    return Counter(log.read_text().splitlines())


@pytest.mark.parametrize("sways", [False, True])
def test_same_bytes_with_more_workers(world, tmp_path, sways):
    backend = {"sways": sways}
    generate(world, tmp_path / "a.json", "in-process", backend=backend, score_answers=True)
    heard = Heard()
    done = generate(world, tmp_path / "b.json", backend=backend, score_answers=True, observer=heard)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert done.asked == heard.trials == done.all.candidates
    first, *each = heard.fleet[-1]
    assert first == f"workers: {len(each)}"
    assert 1 <= len(each) <= 3
    for line in each:
        assert re.fullmatch(r"worker \d: ([\d.]+/s, )?(idle|queries \d+ to \d+ for \d+ s)", line)
    rates = [line for fleet in heard.fleet for line in fleet[1:] if "/s" in line]
    assert rates


def test_answers_are_kept_here_and_asked_once(world, tmp_path):
    log, store = tmp_path / "log", tmp_path / "store.sqlite"
    first = generate(world, tmp_path / "a.json", store=store, backend={"log": log})
    assert max(questions(log).values()) == 1
    (tmp_path / "a.json").rename(tmp_path / "b.json")
    again = generate(world, tmp_path / "a.json", store=store, backend={"log": log})
    assert max(questions(log).values()) == 1
    assert (again.asked, again.from_cache) == (0, first.asked)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize("seed", range(4))
def test_workers_are_killed_at_random(world, tmp_path, fleets, seed):
    """Whoever dies, the bytes are the same, and what was stored is not asked again."""
    log, store = tmp_path / "log", tmp_path / "store.sqlite"
    generate(world, tmp_path / "a.json", "in-process")
    rng = random.Random(seed)

    def kill():
        if rng.random() < 0.5:
            rng.choice(list(fleets[-1].processes.values()))[0].kill()

    heard = Heard(at_finish=kill)
    backend = {"log": log, "seconds": 0.01}
    generate(world, tmp_path / "b.json", store=store, backend=backend, observer=heard)
    assert records(tmp_path / "a.json") == records(tmp_path / "b.json")
    assert any("died" in each for each in heard.said)
    died = sum("died" in each for each in heard.said)
    assert heard.describe()[0].endswith(f"({died} died)")
    # A death costs at most a window's trials, which are asked again.
    again = sum(questions(log).values()) - len(questions(log))
    assert again <= sum("died" in each for each in heard.said) * 16


def test_a_trial_that_kills_its_worker_fails_alone(world, tmp_path):
    """Two queries are deadly, and all their trials; every other is as in one process."""
    generate(world, tmp_path / "a.json", "in-process")
    heard = Heard()
    done = generate(world, tmp_path / "b.json", backend={"deadly": "q17?"}, observer=heard)
    right, found = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    [failed] = [key for key in right if right[key] != found[key] and key != "_meta"]
    assert failed == "e17"
    trials = found["e17"]["pointer_candidates"]
    assert all("given up" in each["eval_error"] for each in trials)
    assert done.all.failed == len(trials)
    assert "given up" in heard.said[-1]
    assert heard.describe()[0].endswith(f" ({len(heard.said)} died)")


def test_runs_that_share_workers_keep_apart(world, tmp_path, fleets):
    """Sessions of one process: other seeds, and another number of demonstrations."""
    for seed, shots in ((0, 2), (1, 2), (2, 1)):
        for name, executor in (("a", "in-process"), ("b", "processes")):
            output = tmp_path / f"{name}{seed}.json"
            generate(world, output, executor, seed=seed, shots=shots, workers=1)
        made = [(tmp_path / f"{name}{seed}.json").read_bytes() for name in "ab"]
        assert made[0] == made[1]
    assert len(fleets) == 1


def test_workers_that_died_while_idle_are_no_fault_of_a_window(world, tmp_path, fleets):
    heard = Heard()
    for number in range(2):
        generate(world, tmp_path / f"{number}.json", seed=number, observer=heard)
        for process, _ in fleets[0].processes.values():
            process.kill()
            process.join()
    generate(world, tmp_path / "2.json", seed=2, observer=heard)
    assert all(each.endswith("go to another worker") for each in heard.said)


def test_a_worker_with_another_model_ends_the_run(world, tmp_path, fleets):
    version = tmp_path / "version"
    version.write_text("1")

    def change():
        version.write_text("2")
        for process, _ in fleets[0].processes.values():
            process.kill()

    with pytest.raises(InputError, match="the backend is touchy2, and that of the run touchy1"):
        generate(
            world,
            tmp_path / "a.json",
            observer=Heard(at_finish=change),
            backend={"version": version, "seconds": 0.01},
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_workers": 0}, "at least one worker"),
        ({"num_workers": 1, "gpus_per_worker": -1.0}, "it starts at 0"),
        ({"gpus_per_worker": 0.0}, "give num_workers too"),
        ({"address": "auto", "dashboard": True}, "only for a Ray that starts here"),
    ],
)
def test_options_that_make_no_sense_are_one_line(options, said):
    with pytest.raises(InputError, match=said):
        RayOptions(**options)


def test_warnings_of_a_worker_are_logged_here(world, tmp_path, caplog):
    generate(world, tmp_path / "a.json", backend={"warn": "q7?"})
    said = [each.message for each in caplog.records if each.name == "pointer_rl.touchy"]
    assert len(said) == 4
    assert all(each.startswith("worker ") and "q7?" in each for each in said)


def test_a_backend_that_cannot_be_made_is_one_line(world, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        generate(world, tmp_path / "a.json", backend={"needs": tmp_path / "nowhere"})


def test_images_are_sent_to_workers_that_cannot_read_them(world, tmp_path, monkeypatch):
    generate(world, tmp_path / "a.json", "in-process")
    parent = os.getpid()
    exists = os.path.exists
    monkeypatch.setattr(
        "pointer_rl_ray.sharing.os.path.exists",
        lambda path: exists(path) and (os.getpid() == parent or not str(path).endswith(".png")),
    )
    generate(world, tmp_path / "b.json")
    assert records(tmp_path / "a.json") == records(tmp_path / "b.json")


def test_a_missing_image_fails_as_in_one_process(tmp_path):
    rows = [
        {"id": f"e{n}", "image": f"{n % 3}.png", "question": "q?", "answers": ["a"] * 3}
        for n in range(6)
    ]
    for number in range(2):
        PIL.Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, executor in (("a.json", "in-process"), ("b.json", "processes")):
        generate(tmp_path, tmp_path / name, executor, shots=1)
    assert b"2.png" in (tmp_path / "a.json").read_bytes()
    assert records(tmp_path / "a.json") == records(tmp_path / "b.json")


@pytest.fixture
def ctrl_c():
    """Heeded, also where the suite runs in the background of a script."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.mark.usefixtures("ctrl_c")
def test_the_first_interrupt_finishes_what_is_under_way(world, tmp_path):
    heard = Heard(at_finish=interrupt)
    options = {"backend": {"seconds": 0.01, "log": tmp_path / "log"}}
    with pytest.raises(KeyboardInterrupt):
        generate(world, tmp_path / "b.json", workers=2, observer=heard, **options)
    [said] = heard.said
    assert "Ctrl-C again stops" in said
    asked = questions(tmp_path / "log")
    assert 16 <= len(asked) <= 3 * 16  # the window that was done, and one of each worker
    # The journal has all that was asked, and another number of workers continues from there.
    generate(world, tmp_path / "b.json", workers=1, **options)
    assert max(questions(tmp_path / "log").values()) == 1
    generate(world, tmp_path / "a.json", "in-process")
    assert records(tmp_path / "a.json") == records(tmp_path / "b.json")


@pytest.mark.usefixtures("ctrl_c")
def test_the_second_interrupt_stops(world, tmp_path):
    heard = Heard(at_finish=interrupt, at_say=interrupt)
    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        generate(
            world,
            tmp_path / "b.json",
            workers=2,
            observer=heard,
            backend={"seconds": 0.05, "log": log},
        )
    time.sleep(0.2)
    asked = len(questions(log))
    assert asked < 3 * 16  # windows were cut off,
    time.sleep(0.2)
    assert len(questions(log)) == asked  # and nobody goes on with them


def test_it_is_an_executor_like_any_other():
    """Lazy, can be stopped, and passes on errors. (Plugin tests of `ray` itself need Ray.)"""
    checks = ExecutorTests()
    checks.name, checks.options = "processes", {"num_workers": 2}
    checks.test_gives_sound_results()
    checks.test_takes_windows_as_it_needs_them()
    checks.test_can_be_stopped()
    checks.test_passes_on_errors()


# --- jobs as bytes ----------------------------------------------------------------------------


def dataset(folder):
    import pointer_rl_standard.jsonl_dataset as jsonl
    from pointer_rl_standard.options import JSONLOptions

    return jsonl.load_jsonl(JSONLOptions(path=folder / "data.jsonl"))


def test_what_jobs_share_is_put_once(world):
    put = []
    made = dataset(world)
    pool = Pool(made.pool, torch.ones(QUERIES, 8))
    packer = Packer(lambda packed: put.append(packed) or len(put) - 1)
    parcels = [packer.pack((made, pool, list(made.queries[n:]))) for n in range(3)]
    assert len(put) == 2 + 3
    assert all(len(put[parcel.packed].data) < 2_000 for parcel in parcels)
    opened = Unpacker(put.__getitem__)
    for number, parcel in enumerate(parcels):
        its_dataset, its_pool, queries = opened.unpack(parcel)
        assert its_pool.examples is its_dataset.pool
        assert [query.id for query in queries] == [f"e{n}" for n in range(number, QUERIES)]
        assert queries[0] is its_dataset.queries[number]
        assert torch.equal(its_pool.embeddings, pool.embeddings)


def test_tensors_are_not_copied():
    put = []
    tensor = torch.arange(1000.0)
    packer = Packer(lambda packed: put.append(packed) or 0)
    parcel = packer.pack({"tensor": tensor, "whole": tensor.int()})
    assert len(put[0].data) < 1_000
    found = Unpacker(put.__getitem__).unpack(parcel)["tensor"]
    assert found.data_ptr() == tensor.data_ptr()


def test_what_cannot_be_pickled_is_one_line():
    with pytest.raises(PluginError, match="cannot be sent to workers"):
        Packer(lambda packed: packed).pack(threading.Lock())


def test_a_file_keeps_its_name_key_and_limits(world):
    image = dataset(world).queries[3].image
    key = image.key
    parcel = Packer(lambda packed: packed).pack(image)
    found = Unpacker(lambda packed: packed).unpack(parcel)
    assert isinstance(found, SentFile)
    assert (found.name, found.limits, found.key) == (image.name, image.limits, key)
    assert hashlib.sha256(found.read()).hexdigest() == key
