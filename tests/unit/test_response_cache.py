from __future__ import annotations

import dataclasses
import math
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointer_rl.datasets.images import ImageBytes, ImageFile
from pointer_rl.errors import InputError, PluginError
from pointer_rl.session import cache as cache_module
from pointer_rl.session.cache import APPLICATION_ID, VERSION, ResponseCache, request_key
from pointer_rl.session.caching import CachedBackend
from pointer_rl.testing import FakeBackend
from pointer_rl.types import BackendError, Decoding, Message, Prompt, Request, Response, Usage

CAT, DOG = ImageBytes(b"cat", "cat"), ImageBytes(b"dog", "dog")


def request(*parts, decoding=Decoding(), score=(), role="user"):
    return Request(Prompt((Message(role, parts or ("hello",)),)), decoding, score)


def texts(*words):
    return [request(word) for word in words]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "responses.sqlite"


def cached(path, answer=lambda text: f"answer to {text}"):
    backend = FakeBackend(answer)
    return CachedBackend(backend, ResponseCache(path)), backend


def missing(backend, requests):
    """Texts of those that the backend would be asked."""
    return [each.prompt.text for each in backend.split_cached(requests)[1]]


class Invariant(FakeBackend):
    batch_invariant = True


@contextmanager
def suppress_read_only():
    try:
        yield
    except InputError as error:
        if "readonly" not in str(error):
            raise


def answers(backend, requests):
    results = list(backend.run(requests))
    assert sorted(index for index, _ in results) == list(range(len(requests)))
    return [result for _, result in sorted(results, key=lambda each: each[0])]


class TestKeys:
    PLAIN = request(CAT, "a", DOG, "b", score=("x", "y"))

    @pytest.mark.parametrize(
        "other",
        [
            request(DOG, "a", CAT, "b", score=("x", "y")),
            request(CAT, "a", DOG, "c", score=("x", "y")),
            request(CAT, DOG, "ab", score=("x", "y")),
            request(CAT.key, "a", DOG, "b", score=("x", "y")),
            request(CAT, "a", DOG, "b", score=("y", "x")),
            request(CAT, "a", DOG, "b", score=("xy",)),
            request(CAT, "a", DOG, "b"),
            request(CAT, "a", DOG, "b", score=("x", "y"), role="system"),
            request(CAT, "a", DOG, "b", score=("x", "y"), decoding=None),
            *(
                request(CAT, "a", DOG, "b", score=("x", "y"), decoding=Decoding(**field))
                for field in (
                    {"max_new_tokens": 9},
                    {"num_beams": 2},
                    {"length_penalty": 0.5},
                    {"stop": ("b",)},
                )
            ),
            Request(
                Prompt((Message("user", (CAT, "a")), Message("user", (DOG, "b")))),
                Decoding(),
                ("x", "y"),
            ),
        ],
    )
    def test_whatever_decides_a_response_is_in_its_key(self, other):
        assert request_key("f", other) != request_key("f", self.PLAIN)

    def test_backends_do_not_share_and_equal_images_do(self):
        assert request_key("f", self.PLAIN) != request_key("g", self.PLAIN)
        again = request(ImageBytes(b"cat", "a copy"), "a", DOG, "b", score=("x", "y"))
        assert request_key("f", again) == request_key("f", self.PLAIN)

    def test_every_field_of_decoding_is_tried_above(self):
        named = {"max_new_tokens", "num_beams", "length_penalty", "stop"}
        assert {field.name for field in dataclasses.fields(Decoding)} == named

    def test_no_image_is_opened(self):
        class Closed:
            key = "k"

            def open(self):
                raise AssertionError

        request_key("f", request(Closed(), "a"))


@given(
    text=st.none() | st.text(st.characters(codec=None)),
    logprobs=st.lists(st.floats(allow_nan=False)),
    usage=st.builds(Usage, *[st.integers(0, 2**40)] * 3),
)
def test_responses_come_back_bit_identical(text, logprobs, usage, tmp_path_factory):
    cache = ResponseCache(tmp_path_factory.mktemp("cache") / "responses.sqlite")
    cache.put("f", [(b"key", Response(text, tuple(logprobs), usage))])
    back = cache.get([b"key"])[b"key"]
    assert (back.text, back.usage) == (text, usage)
    assert struct.pack(f"{len(logprobs)}d", *back.score_logprobs) == struct.pack(
        f"{len(logprobs)}d", *logprobs
    )


def test_the_columns_are_readable_sql(path):
    cache = ResponseCache(path)
    cache.put("vlm-3b", [(b"key", Response("a cat", (-0.5, -math.inf), Usage(7, 2, 1)))])
    connection = sqlite3.connect(path)
    [row] = connection.execute(
        "SELECT fingerprint, text, score_logprobs, json_extract(score_logprobs, '$[0]'),"
        " prompt_tokens, generated_tokens, images, date(created) = date('now')"
        " FROM responses JOIN backends ON id = backend WHERE key = ?",
        (b"key".hex(),),
    )
    connection.close()
    assert row == ("vlm-3b", "a cat", "[-0.5, null]", -0.5, 7, 2, 1, 1)


class TestCachedBackend:
    def test_what_was_answered_is_not_asked_again(self, path):
        backend, inner = cached(path)
        first = answers(backend, texts("a", "b", "a"))
        assert [each.text for each in first] == ["answer to a", "answer to b", "answer to a"]
        assert (len(inner.asked), backend.asked, backend.hits) == (2, 2, 0)
        again, inner = cached(path)
        assert answers(again, texts("b", "c", "b")) == [
            first[1],
            Response("answer to c"),
            first[1],
        ]
        assert [each.prompt.text for each in inner.asked] == ["c"]
        assert (again.asked, again.hits) == (1, 2)
        assert again.fingerprint == inner.fingerprint

    def test_another_backend_finds_nothing_of_it(self, path):
        backend, _ = cached(path)
        answers(backend, texts("a"))
        inner = FakeBackend(lambda text: "other")
        inner.fingerprint = "another"
        other = CachedBackend(inner, ResponseCache(path))
        assert answers(other, texts("a")) == [Response("other")]

    def test_what_would_be_asked_is_told_and_not_asked(self, path):
        backend, inner = cached(path)
        answers(backend, texts("a", "b"))
        unreadable = request(ImageFile(path.parent / "none.png"), "c")
        known, lacking = backend.split_cached([*texts("a", "a", "c", "c", "d"), unreadable])
        assert (known, [each.prompt.text for each in lacking]) == (1, ["c", "d"])
        assert backend.split_cached([]) == (0, [])
        assert len(inner.asked) == backend.asked == 2

    def test_failures_are_shared_in_a_call_and_asked_again_in_the_next(self, path):
        backend, inner = cached(path, lambda text: BackendError("no memory"))
        failure = BackendError("no memory")
        assert answers(backend, texts("a", "a")) == [failure, failure]
        assert backend.asked == 1
        assert answers(backend, texts("a")) == [failure]
        assert len(inner.asked) == backend.asked == 2

    def test_an_image_that_is_not_there_fails_its_request_alone(self, path):
        backend, _ = cached(path)
        requests = [*texts("a"), request(ImageFile(path.parent / "none.png"), "b")]
        good, bad = answers(backend, requests)
        assert good.text == "answer to a"
        assert "none.png: cannot read the image" in bad.message
        assert backend.asked == 1

    @pytest.mark.parametrize("kind", [FakeBackend, Invariant])
    def test_a_call_that_is_cut_is_asked_again_whole_unless_its_responses_are_invariant(
        self, path, kind
    ):
        def backend(inner):
            return CachedBackend(inner, ResponseCache(path))

        results = backend(kind(str.upper)).run(texts("a", "b", "c"))
        next(results)  # the last is answered first
        next(results)
        results.close()
        kept = ["a"] if kind is Invariant else ["a", "b", "c"]
        assert missing(backend(kind(str.upper)), texts("a", "b", "c")) == kept

        class Breaks(kind):
            def run(self, requests):
                yield 0, Response("kept")
                raise RuntimeError("the model fell over")

        with pytest.raises(RuntimeError, match="fell over"):
            list(backend(Breaks(str)).run(texts("x", "y")))
        kept = ["y"] if kind is Invariant else ["x", "y"]
        assert missing(backend(kind(str)), texts("x", "y")) == kept

    def test_responses_that_are_invariant_are_cached_before_the_next(self, path, monkeypatch):
        monkeypatch.setattr("pointer_rl.session.caching._SECONDS", 0)
        results = CachedBackend(Invariant(str), ResponseCache(path)).run(texts("a", "b", "c"))
        next(results)
        assert missing(cached(path)[0], texts("a", "b", "c")) == ["a", "b"]
        results.close()

    @pytest.mark.parametrize(
        ("asked", "response"),
        [
            (request("a"), Response(None)),
            (request("a", decoding=None, score=("x",)), Response(None, (math.nan,))),
        ],
    )
    def test_what_lacks_a_part_is_a_failure_and_not_kept(self, path, asked, response):
        class Lacks(FakeBackend):
            def run(self, requests):
                yield 0, response

        backend = CachedBackend(Lacks(str), ResponseCache(path))
        [(index, result)] = backend.run([asked])
        assert index == 0
        assert isinstance(result, BackendError)
        assert backend.split_cached([asked]) == (0, [asked])

    def test_scores_alone_are_kept(self, path):
        class Scores(FakeBackend):
            def run(self, requests):
                yield 0, Response(None, (-1 / 3, -math.inf))

        asked = request("a", decoding=None, score=("x", "y"))
        first = answers(CachedBackend(Scores(str), ResponseCache(path)), [asked])
        assert answers(cached(path)[0], [asked]) == first == [Response(None, (-1 / 3, -math.inf))]

    def test_without_a_cache_equal_requests_of_a_call_share_a_trial(self):
        inner = FakeBackend(lambda text: text)
        backend = CachedBackend(inner)
        assert [each.text for each in answers(backend, texts("a", "b", "a"))] == ["a", "b", "a"]
        assert len(inner.asked) == backend.asked == 2
        assert missing(backend, texts("a", "a")) == ["a"]

    @pytest.mark.parametrize("given", [[0, 0], [7], [-1], []])
    def test_a_backend_that_breaks_its_promise_is_named(self, path, given):
        class Breaks(FakeBackend):
            def run(self, requests):
                for index in given:
                    yield index, Response("x")

        with pytest.raises(PluginError, match="fake"):
            list(CachedBackend(Breaks(str), ResponseCache(path)).run(texts("a")))

    def test_a_number_of_log_probabilities_that_is_wrong_is_not_cached(self, path):
        class Wrong(FakeBackend):
            def run(self, requests):
                yield 0, Response("x", (-1.0,))

        backend = CachedBackend(Wrong(str), ResponseCache(path))
        asked = request("a", score=("x", "y"))
        with pytest.raises(PluginError, match="returned 1 log-probabilities for 2 answers"):
            list(backend.run([asked]))
        assert backend.split_cached([asked]) == (0, [asked])


def items(count, size=0):
    return [
        (request_key("f", request(str(i))), Response(f"{i}" + "x" * size, (-i / 7,)))
        for i in range(count)
    ]


def filled(path, count=100, size=0):
    cache = ResponseCache(path)
    cache.put("f", items(count, size))
    return cache


FOREIGN = {
    "view": "CREATE VIEW mine AS SELECT 1",
    "trigger": "CREATE TRIGGER mine AFTER INSERT ON responses BEGIN DELETE FROM responses; END",
    "endless view for a table": "DROP TABLE backends; CREATE VIEW backends AS WITH RECURSIVE n(id)"
    " AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) SELECT id, 'f' AS fingerprint FROM n",
    "expression": "DROP TABLE backends; CREATE TABLE backends (id INTEGER PRIMARY KEY,"
    " fingerprint TEXT UNIQUE CHECK (length(randomblob(900000000)) > 0))",
}
"""SQL that a foreign store may hold, to be run when it is used."""


class TestDamage:
    @pytest.mark.parametrize("content", [b"my diary", b"SQLite format 3\0" + b"\1" * 5000])
    def test_a_foreign_file_is_refused_and_stays_as_it_is(self, path, content):
        path.parent.mkdir()
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a database; name a response cache with --store"):
            ResponseCache(path)
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]

    def test_a_foreign_database_is_refused_and_stays_as_it_is(self, path):
        path.parent.mkdir()
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE mine (thing)")
        connection.close()
        before = path.read_bytes()
        with pytest.raises(InputError, match="not a response cache; name"):
            ResponseCache(path)
        assert path.read_bytes() == before

    def test_an_empty_file_is_a_new_cache_unless_one_must_exist(self, path):
        path.parent.mkdir()
        path.touch()
        with pytest.raises(InputError, match="the file is empty"):
            ResponseCache(path, must_exist=True)
        assert path.read_bytes() == b""
        filled(path)

    def older_version(self, connection):
        connection.execute("PRAGMA user_version = 1")

    def lost_table(self, connection):
        connection.execute("DROP TABLE responses")

    @pytest.mark.parametrize("change", [older_version, lost_table])
    def test_a_damaged_cache_or_one_of_an_older_version_is_set_aside(self, path, caplog, change):
        filled(path).close()
        with sqlite3.connect(path) as connection:
            change(self, connection)
        connection.close()
        assert ResponseCache(path).get([key for key, _ in items(100)]) == {}
        assert path.with_name("responses.sqlite.damaged-1").exists()
        assert len(caplog.records) == 1

    def test_a_cache_of_a_newer_version_is_refused_with_advice(self, path):
        filled(path).close()
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version = 99")
        connection.close()
        before = path.read_bytes()
        for must_exist in (True, False):
            with pytest.raises(InputError, match="version 99, newer than 3: upgrade pointer-rl"):
                ResponseCache(path, must_exist=must_exist)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]

    def test_a_text_that_has_our_mark_is_not_renamed(self, path):
        path.parent.mkdir()
        notes = b"n" * 68 + APPLICATION_ID.to_bytes(4, "big") + b"otes of mine" * 9
        path.write_bytes(notes)
        with pytest.raises(InputError, match="not a database; name a response cache"):
            ResponseCache(path)
        assert path.read_bytes() == notes
        assert os.listdir(path.parent) == [path.name]

    @pytest.mark.parametrize("what", FOREIGN)
    @pytest.mark.parametrize("must_exist", [True, False])
    def test_a_foreign_store_runs_no_query_of_its_own(self, path, caplog, what, must_exist):
        filled(path).close()
        connection = sqlite3.connect(path)
        connection.executescript(FOREIGN[what])
        connection.close()
        before = path.read_bytes()
        if must_exist or what in ("view", "trigger"):
            with pytest.raises(InputError, match=r"which no response cache has|its tables are not"):
                ResponseCache(path, must_exist=must_exist)
            assert path.read_bytes() == before
        else:  # as many tables as ours: it may be ours, damaged
            assert ResponseCache(path).summaries() == []
            assert "set aside" in caplog.text

    def test_an_empty_file_becomes_one(self, path, caplog):
        path.parent.mkdir()
        path.touch()
        filled(path).close()
        assert not caplog.records

    @settings(max_examples=60)
    @given(seed=st.integers(0, 2**32))
    def test_random_damage_raises_no_other_error_and_never_blocks_the_next_run(
        self, seed, tmp_path_factory
    ):
        path = tmp_path_factory.mktemp("damage") / "s.sqlite"
        filled(path).close()
        rng = random.Random(seed)
        content = bytearray(path.read_bytes())
        start = rng.randrange(len(content))
        end = start + rng.choice([1, 50, 4096])
        content[start:end] = rng.randbytes(len(content[start:end]))
        # Without these it is a foreign file, or a newer version's.
        content[:16] = b"SQLite format 3\0"
        content[60:64] = VERSION.to_bytes(4, "big")
        content[68:72] = APPLICATION_ID.to_bytes(4, "big")
        if rng.random() < 0.3:
            del content[rng.randrange(72, len(content)) :]
        path.write_bytes(content)
        # The damaged header may say that the file is read-only.
        with suppress_read_only():
            cache = ResponseCache(path)
            truth = dict(items(100))
            assert cache.get(list(truth)).keys() <= truth.keys()
            cache.put("f", items(100))
            assert cache.get(list(truth)) == truth

    @pytest.mark.parametrize("column", ["text", "score_logprobs"])
    def test_a_row_that_cannot_be_decoded_is_asked_again_and_the_others_are_kept(
        self, path, caplog, column
    ):
        filled(path).close()
        with sqlite3.connect(path) as connection:
            connection.execute(
                f"UPDATE responses SET {column} = CAST(x'5bff' AS TEXT) WHERE text = '55'"
            )
        connection.close()
        cache = ResponseCache(path)
        keys = [key for key, _ in items(100)]
        found = cache.get(keys)
        assert [i for i, key in enumerate(keys) if key not in found] == [55]
        assert "1 damaged responses are ignored" in caplog.text
        assert len(list(cache.rows())) == 99
        cache.put("f", items(100))
        assert cache.get(keys) == dict(items(100))

    def test_damage_that_shows_later_is_one_line_and_the_next_run_begins_anew(self, path, caplog):
        filled(path, 400, size=16_000).close()  # more than SQLite keeps in memory
        cache = ResponseCache(path)
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(random.Random(0).randbytes(size - 4096))
        keys = [key for key, _ in items(400)]
        with pytest.raises(InputError, match=r"the response cache is damaged .* run the command"):
            cache.get(keys)
        cache.close()
        assert not caplog.records
        cache = ResponseCache(path)
        assert "set aside as" in caplog.text
        cache.put("f", items(400))
        assert cache.get(keys) == dict(items(400))

    def test_a_file_that_another_process_set_aside_is_one_line_and_loses_nothing(self, path):
        old = filled(path, 400, size=16_000)
        old.close()
        old = ResponseCache(path)
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(random.Random(0).randbytes(path.stat().st_size - 4096))
        new = filled(path, 50)  # sets the damaged file aside and begins a new one
        with pytest.raises(InputError, match=str(path)):
            old.put("f", items(60)[50:])
        old.close()
        assert new.get([key for key, _ in items(400)]) == dict(items(50))

    def test_looking_into_a_file_changes_nothing(self, path):
        with pytest.raises(InputError, match="no such file"):
            ResponseCache(path, must_exist=True)
        path.parent.mkdir()
        path.write_text("my diary")
        with pytest.raises(InputError, match="file is not a database; name a response cache"):
            ResponseCache(path, must_exist=True)
        assert os.listdir(path.parent) == [path.name]
        assert path.read_text() == "my diary"


class TestUnusable:
    def test_only_files(self, path):
        path.parent.mkdir()
        os.mkfifo(path)
        for must_exist in (True, False):
            with pytest.raises(InputError, match="not a file; name a response cache with --store"):
                ResponseCache(path, must_exist=must_exist)

    def test_places_where_no_file_can_be(self, path):
        path.parent.mkdir()
        path.mkdir()
        with pytest.raises(InputError, match=r"not a file; name a response cache with --store"):
            ResponseCache(path)
        (path.parent / "file").touch()
        with pytest.raises(InputError, match=r"file/s.sqlite: responses cannot be stored there"):
            ResponseCache(path.parent / "file" / "s.sqlite")

    def test_a_file_that_another_process_holds(self, path, monkeypatch):
        monkeypatch.setattr(cache_module, "BUSY_SECONDS", 0.05)
        cache = filled(path)
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(InputError, match="database is locked"):
            cache.put("f", items(3))
        holder.execute("ROLLBACK")
        holder.close()
        cache.put("f", items(3))

    def test_a_full_disk_is_one_line_and_loses_nothing(self, path):
        code = """
import resource, signal, sys
from pathlib import Path
from pointer_rl.errors import InputError
from pointer_rl.session.cache import ResponseCache
from pointer_rl.types import Response
cache = ResponseCache(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for i in range(1000):
    try:
        cache.put("f", [(i.to_bytes(32, "big"), Response("x" * 1000))])
    except InputError as error:
        print(i, error)
        break
"""
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        )
        count, _, message = done.stdout.strip().partition(" ")
        assert "responses cannot be stored there" in message
        assert len(list(ResponseCache(path).rows())) == int(count) > 10


def test_a_clock_that_goes_backwards_changes_nothing(path, monkeypatch):
    cache = filled(path, 10)
    monkeypatch.setattr(cache_module.time, "time", lambda: -5e9)
    cache.put("f", items(20))
    assert cache.get([key for key, _ in items(20)]) == dict(items(20))


WRITER = """
import sys
from pathlib import Path
from pointer_rl.session.cache import ResponseCache
from pointer_rl.types import Response
first, last = map(int, sys.argv[2:])
cache = ResponseCache(Path(sys.argv[1]))
for i in range(first, last):
    cache.put("f", [(i.to_bytes(32, "big"), Response(str(i)))])
    print(i, flush=True)
"""


def writer(path, first, last):
    command = [sys.executable, "-c", WRITER, str(path), str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_begin_it_together_share_it(path):
    """Three writers whose ranges overlap."""
    processes = [writer(path, first, first + 200) for first in (0, 100, 200)]
    for process in processes:
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        assert stderr == ""
    found = {int(row["key"], 16): row["text"] for row in ResponseCache(path).rows()}
    assert found == {i: str(i) for i in range(400)}


def test_a_killed_process_loses_nothing_that_it_had_put(path):
    for _ in range(3):
        process = writer(path, 0, 10**6)
        for _ in range(50):
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = ResponseCache(path).get([i.to_bytes(32, "big") for i in range(last + 1)])
        assert len(found) == last + 1


def test_summaries_and_pruning(path, monkeypatch):
    cache = ResponseCache(path)
    for day, (fingerprint, count) in enumerate([("old", 5), ("new", 3), ("old", 2)]):
        monkeypatch.setattr(cache_module.time, "time", lambda day=day: 86_400.0 * day)
        cache.put(
            fingerprint,
            [(bytes([day, i]) * 16, Response("x" * 2000)) for i in range(count)],
        )
    new, old = cache.summaries()
    day = [f"1970-01-0{number}T00:00:00Z" for number in (1, 2, 3)]
    assert (new.fingerprint, new.responses, new.oldest, new.newest) == ("new", 3, day[1], day[1])
    assert (old.fingerprint, old.responses, old.oldest, old.newest) == ("old", 7, day[0], day[2])
    assert old.bytes > 7 * 2000
    cache.close()
    before = path.stat().st_size
    cache = ResponseCache(path)
    assert cache.prune(fingerprint="none") == 0
    assert cache.prune(fingerprint="old", before=86_400) == 5
    assert [each.responses for each in cache.summaries()] == [3, 2]
    assert cache.prune(before=2 * 86_400) == 3
    assert [each.fingerprint for each in cache.summaries()] == ["old"]
    cache.close()
    assert path.stat().st_size < before
