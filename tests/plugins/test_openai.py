"""The openai backend against a server that fails on demand."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import ANY

import pytest
from fault_server import (
    END,
    FATAL,
    FAULTS,
    FINISHES,
    KEY_FORMS,
    SCORE_FAULTS,
    START,
    FaultServer,
    logprob,
    prompt_tokens,
    text_of,
)
from qwen_reference import make_image

from pointer_rl.errors import InputError
from pointer_rl.registry import registry
from pointer_rl.session.cache import ResponseCache
from pointer_rl.session.caching import CachedBackend
from pointer_rl.types import BackendError, Decoding, Message, Prompt, Request, Response, Usage
from pointer_rl_openai import create_backend, transport
from pointer_rl_openai.backend import OpenAIBackend
from pointer_rl_openai.keys import holds_key
from pointer_rl_openai.options import OpenAIOptions

GREEDY = Decoding(max_new_tokens=6)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transport, "LARGEST_BODY", 2_000_000)


def connect(server: FaultServer, **options: object) -> OpenAIBackend:
    quick = {"base_url": server.base_url, "backoff": 0.002, "timeout": 5.0}
    return create_backend(OpenAIOptions(**{**quick, **options}))


def ask(text: str, decoding: Decoding | None = GREEDY, score: tuple[str, ...] = ()) -> Request:
    return Request(Prompt((Message("user", (text,)),)), decoding, score)


def answers(backend, requests: Sequence[Request]) -> list[Response | BackendError]:
    results = list(backend.run(requests))
    assert sorted(index for index, _ in results) == list(range(len(requests)))
    return [result for _, result in sorted(results, key=lambda each: each[0])]


def texts(results: Sequence[Response | BackendError]) -> list[str | None]:
    return [each.text if isinstance(each, Response) else None for each in results]


# --- asking ---


def test_a_request_is_sent_as_the_protocol_says():
    prompt = Prompt(
        (
            Message("system", ("Be ", "brief.")),
            Message("user", ("What is ", "this?")),
            Message("assistant", ("a cat",)),
            Message("user", ("And this?",)),
        )
    )
    with FaultServer() as server:
        [result] = answers(connect(server, seed=3), [Request(prompt, GREEDY)])
        [body] = server.chats()
    assert body == {
        "model": "tiny/vlm",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is this?"},
            {"role": "assistant", "content": "a cat"},
            {"role": "user", "content": "And this?"},
        ],
        "max_tokens": 6,
        "temperature": 0,
        "seed": 3,
    }
    assert result == Response(
        "re: Be brief. What is this? a cat And this?",
        usage=Usage(len(prompt_tokens(body)), len(result.text) + 1),
    )


def test_vllm_is_told_to_leave_the_checkpoints_repetition_penalty_out():
    with FaultServer(vllm=True) as server:
        answers(connect(server), [ask("question")])
        assert server.chats()[0]["repetition_penalty"] == 1.0


def test_results_belong_to_their_requests():
    requests = [ask(f"question {number}") for number in range(40)]
    with FaultServer(delay_seconds=0.001) as server:
        results = answers(connect(server), requests)
        assert 1 < server.peak <= 32
    assert texts(results) == [f"re: question {number}" for number in range(40)]


def test_no_requests_need_no_server():
    with FaultServer() as server:
        backend = connect(server)
    assert answers(backend, []) == []


def test_stop_strings_are_sent_four_at_most_and_all_cut():
    stop = ("one", "two", "three", "four", "uestion")
    with FaultServer() as server:
        [result] = answers(connect(server), [ask("question", Decoding(stop=stop))])
        assert server.chats()[0]["stop"] == ["one", "two", "three", "four"]
    assert result.text == "re: q"


def test_beams_are_refused_and_nothing_is_asked():
    with FaultServer() as server:
        [result] = answers(connect(server), [ask("question", Decoding(num_beams=2))])
        assert server.chats() == []
    assert isinstance(result, BackendError)
    assert "num_beams=1" in result.message


def test_no_more_are_in_flight_than_were_allowed():
    with FaultServer(delay_seconds=0.01) as server:
        answers(connect(server, max_concurrency=3), [ask(str(number)) for number in range(12)])
        assert server.peak == 3


def test_it_works_where_an_event_loop_is_running():
    async def in_a_notebook() -> list[Response | BackendError]:
        return answers(connect(server), [ask("question")])

    with FaultServer() as server:
        assert texts(asyncio.run(in_a_notebook())) == ["re: question"]


def test_who_has_enough_waits_for_nobody():
    with FaultServer([None, "hang", "hang"], hang_seconds=600) as server:
        backend = connect(server, timeout=500.0, max_concurrency=1)
        results = backend.run([ask(str(number)) for number in range(3)])
        next(results)
        results.close()
        assert not [each for each in threading.enumerate() if each.name == "pointer-rl-openai"]
        assert len(server.chats()) <= 2


def test_it_can_be_sent_to_another_process_and_takes_no_key_along(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")
    with FaultServer(key="sk-secret-123") as server:
        pickled = pickle.dumps(connect(server))
        assert b"secret" not in pickled
        assert texts(answers(pickle.loads(pickled), [ask("question")])) == ["re: question"]


def test_registered():
    entry = registry().find("backend", "openai")
    assert entry.factory is create_backend


# --- faults ---


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_no_answer(fault):
    requests = [ask(f"question {number}") for number in range(6)]
    timeout = 0.3 if fault in ("hang", "trickle") else 5.0
    with FaultServer([None, fault, fault, None]) as server:
        results = answers(connect(server, timeout=timeout, max_concurrency=2), requests)
        assert len(server.chats()) == 8  # it did happen, twice
    assert texts(results) == [f"re: question {number}" for number in range(6)]


def test_the_whole_script_at_once():
    requests = [ask(f"question {number}") for number in range(60)]
    with FaultServer(FAULTS * 2) as server:
        results = answers(connect(server, timeout=0.5), requests)
        assert not server.faults
    assert texts(results) == [f"re: question {number}" for number in range(60)]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_a_value_and_is_asked_again_by_the_next_run(fault, tmp_path):
    requests = [ask(f"question {number}") for number in range(3)]
    store = ResponseCache(tmp_path / "store.sqlite")
    timeout = 0.15 if fault in ("hang", "trickle") else 5.0
    with FaultServer([None]) as server:
        server.always = fault
        backend = connect(server, retries=1, max_concurrency=1, timeout=timeout)
        first = answers(CachedBackend(backend, store), requests)
        assert sorted(isinstance(each, BackendError) for each in first) == [False, True, True]
        for each in first:
            if isinstance(each, BackendError):
                # What is refused while others are answered does not count.
                assert f"(asked {2 + (fault[:3] in ('429', '503'))} times)" in each.message
                assert "\n" not in each.message
        server.always = None
        again = CachedBackend(backend, store)
        assert texts(answers(again, requests)) == [f"re: question {n}" for n in range(3)]
        assert (again.hits, again.asked) == (1, 2)
    store.close()


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("400", "HTTP 400"),
        ("401", "api_key_env"),
        ("404", "HTTP 404"),
        ("redirect", "HTTP 307"),
        ("length empty", "ran out of tokens before it answered (finish_reason length): raise max_"),
        ("length null", "--decoding-opt max_new_tokens=N"),
        ("length cut", "was cut off (finish_reason length): raise max_new_tokens"),
        ("filtered", "filter"),
        ("filtered empty", "filter"),
        ("tool call", "called a tool"),
        ("function call", "called a tool"),
        ("stop null", "no text (finish_reason stop)"),
        ("unknown finish", r'whole (finish_reason "\u001b[31mbored")'),
        ("finish list", "whole (finish_reason missing)"),
        ("thinking", "thought and did not answer"),
        ("quota", "HTTP 429: quota!"),
        ("long wait", "86,400 s"),
    ],
)
def test_what_no_repetition_mends_is_asked_once(fault, why):
    assert fault in FATAL
    with FaultServer([fault]) as server:
        results = answers(
            connect(server, max_concurrency=1), [ask("question 1"), ask("question 2")]
        )
        assert len(server.chats()) == 2
    [failure] = [each for each in results if isinstance(each, BackendError)]
    assert why in failure.message


def test_every_fault_that_stays_is_tried():
    [mark] = [
        each
        for each in test_what_no_repetition_mends_is_asked_once.pytestmark
        if each.name == "parametrize"
    ]
    assert {fault for fault, _ in mark.args[1]} == set(FATAL)


@pytest.mark.parametrize(
    ("finish", "content", "stop", "answer"),
    [
        ("stop", "a cat", (), "a cat"),
        ("stop", "", (), ""),  # the model ended its turn at once
        ("stop", " ", (), " "),
        ("eos_token", "a cat", (), "a cat"),
        ("stop_sequence", "a cat", ("\n",), "a cat"),
        ("length", "a cat\nQuest", ("\n",), "a cat"),  # whole: it is cut before that anyway
        ("length", "\nQuestion", ("\n",), ""),
        ("length", "a cat\nQuest", (".",), None),
        ("length", "a cat", (), None),
        ("content_filter", "a cat\n", ("\n",), None),
    ],
)
def test_an_answer_is_what_the_server_says_is_whole(finish, content, stop, answer, monkeypatch):
    monkeypatch.setitem(FINISHES, "ended", (finish, content))
    with FaultServer(["ended"]) as server:
        results = answers(connect(server), [ask("what?", Decoding(stop=stop))])
    assert texts(results) == [answer]


def test_a_server_is_scored_though_its_generation_is_cut():
    """A request for scores generates a token, and is cut there."""
    with FaultServer(vllm=True) as server:
        server.always = "length cut"
        [result] = answers(connect(server), [ask("what? ", None, ("red cat",))])
    assert result.score_logprobs == pytest.approx([naive_score("what? ", "red cat")], rel=1e-12)


@pytest.mark.parametrize("logprob", [0.5, 1e-2, "NaN", "-1.0", None, True, -(10**400), [-1.0]])
def test_a_log_probability_that_is_none_is_a_failure(logprob):
    with FaultServer(vllm=True, logprob=lambda tokens, position: logprob) as server:
        [result] = answers(connect(server), [ask("what? ", None, ("red cat",))])
    assert isinstance(result, BackendError)
    assert "that is not a log-probability" in result.message


def test_a_log_probability_rounded_to_just_above_0_is_0():
    with FaultServer(vllm=True, logprob=lambda tokens, position: 1e-6) as server:
        [result] = answers(connect(server), [ask("what? ", None, ("red cat",))])
    assert result.score_logprobs == (0.0,)


def test_a_server_that_bears_little_is_asked_less_and_loses_nothing():
    requests = [ask(f"question {number}") for number in range(60)]
    with FaultServer(at_once=2, delay_seconds=0.003) as server:
        backend = connect(server, max_concurrency=24, retries=2)
        results = answers(backend, requests)
        refused = server.refused
        assert 0 < refused < 120
        # What was learnt is kept for the next window, which is shorter: it still tries more at
        # times, and how often it is refused then depends on the machine.
        server.requests.clear()
        answers(backend, requests[:20])
        assert 2 * (server.refused - refused) < refused
    assert texts(results) == [f"re: question {number}" for number in range(60)]


def test_what_one_request_is_told_to_wait_all_wait():
    with FaultServer(["429 after"]) as server:
        answers(connect(server, max_concurrency=1), [ask("1"), ask("2")])
        first, second, *_ = server.times
        assert second - first >= 0.03


def test_a_server_that_goes_away_and_comes_back(tmp_path):
    requests = [ask(f"question {number}") for number in range(30)]
    with FaultServer() as server:
        backend = connect(server, retries=1)
        port = int(server.base_url.rsplit(":", 1)[1].split("/")[0])
    for _ in range(2):
        results = answers(backend, requests)
        assert all("no connection to 127.0.0.1" in each.message for each in results)
    with FaultServer(port=port):
        assert None not in texts(answers(backend, requests))
        assert None not in texts(answers(backend, requests))


# --- secrets ---


@pytest.mark.parametrize("fault", ["400", "500", "error in 200", "401"])
def test_neither_key_nor_prompt_is_told(fault, monkeypatch, caplog):
    monkeypatch.setenv("SERVER_KEY", "sk-secret-123")
    said = "What a private question!"

    def tell(body):
        return f"sk-secret-123 {text_of(body)}"

    with caplog.at_level(0), FaultServer([fault] * 3, key="sk-secret-123", answer=tell) as server:
        backend = connect(server, api_key_env="SERVER_KEY", retries=1, max_concurrency=1)
        failure, _ = answers(backend, [ask(said), ask("other")])
        monkeypatch.setenv("SERVER_KEY", "sk-wrong-secret")
        [refused] = answers(backend, [ask(said)])
        assert server.requests[-1][1]["authorization"] == "Bearer sk-wrong-secret"
    told = caplog.text + failure.message + refused.message + backend.fingerprint
    assert refused.message.startswith("HTTP 401 (the key comes from")
    assert "secret" not in told
    assert "private" not in told


@pytest.mark.parametrize("form", KEY_FORMS)
def test_a_reply_with_the_key_is_a_failure_in_every_form(form, monkeypatch, caplog, tmp_path):
    key = "sk-Secret-123-aBcD"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    store = ResponseCache(tmp_path / "store.sqlite")
    faults = [f"key {form}", f"500 key {form}", None]
    with caplog.at_level(0), FaultServer(faults, key=key) as server:
        backend = connect(server, retries=0, max_concurrency=1)
        results = answers(CachedBackend(backend, store), [ask(f"question {n}") for n in range(3)])
    store.close()
    assert results[0] == BackendError("the reply contains the API key, and is not used")
    assert results[1] == BackendError("HTTP 500")
    assert results[2].text == "re: question 2"
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    told = caplog.text + repr(results) + written.decode(errors="replace")
    assert not holds_key(told, key)
    assert "question 2" in told


@pytest.mark.parametrize("form", KEY_FORMS)
def test_a_model_id_with_the_key_is_an_error(form, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")
    with FaultServer(models=(f"tiny/{KEY_FORMS[form]('sk-secret-123')}",)) as server:
        with pytest.raises(InputError, match="the reply contains the API key") as caught:
            connect(server)
        assert not holds_key(str(caught.value), "sk-secret-123")


def test_a_placeholder_for_a_key_may_occur_in_an_answer(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    with FaultServer(answer=lambda body: "an empty bottle") as server:
        assert texts(answers(connect(server), [ask("question")])) == ["an empty bottle"]


@pytest.mark.parametrize("fault", SCORE_FAULTS)
def test_an_answer_whose_tokens_log_probabilities_are_none_is_scored_by_itself(fault):
    requests = [ask("a", None, ("red cat",)), ask("question", GREEDY, ("red cat",))]
    with FaultServer(vllm=True, answer=lambda body: "red cat") as server:
        expected = answers(connect(server, max_concurrency=1), requests)
        server.faults.extend([None, fault])
        assert answers(connect(server, max_concurrency=1), requests) == [
            expected[0],
            replace(expected[1], usage=ANY),
        ]
        server.faults.extend([fault])
        failure, _ = answers(connect(server, max_concurrency=1), requests)
    assert "that is not a log-probability" in failure.message


def test_without_a_key_none_is_sent():
    with FaultServer() as server:
        answers(connect(server), [ask("question")])
        assert all("authorization" not in headers for _, headers, _ in server.requests)


def test_a_changed_system_fingerprint_is_told_once(caplog):
    with FaultServer() as server:
        backend = connect(server)
        for name in ("fp_1", "fp_1", "fp_2", "fp_3"):
            server.system_fingerprint = name
            answers(backend, [ask("question")])
            assert len(caplog.records) == (name > "fp_1")
    assert "system_fingerprint changed" in caplog.text


# --- several servers ---


def shots(*texts: str) -> Request:
    """A prompt with an image before each text."""
    parts = [part for text in texts for part in (make_image(len(text)), text)]
    return Request(Prompt((Message("user", tuple(parts)),)), GREEDY)


def asked(server: FaultServer) -> list[str]:
    return [text_of(body) for body in server.chats()]


def test_requests_are_sent_in_the_order_of_their_prompts():
    requests = [ask(text) for text in ("b 2", "a 1", "b 1", "a 2", "b 3")]
    with FaultServer() as server:
        results = answers(connect(server, max_concurrency=1), requests)
        assert asked(server) == ["a 1", "a 2", "b 1", "b 2", "b 3"]
    assert texts(results) == [f"re: {request.prompt.text}" for request in requests]


def test_prompts_that_begin_alike_go_to_the_same_server():
    requests = [shots("x" * first, "y" * last) for last in (7, 8, 9) for first in (1, 2, 3, 4)]
    with FaultServer() as one, FaultServer() as other:
        urls = f"{one.base_url},{other.base_url}/"
        backend = connect(one, base_url=urls)
        assert backend.fingerprint == connect(other).fingerprint
        for part in (requests[:6], requests[6:]):
            assert texts(answers(backend, part)) == [
                f"re: {request.prompt.messages[0].parts[1]} {request.prompt.messages[0].parts[3]}"
                for request in part
            ]
        halves = [{text.split()[0] for text in asked(server)} for server in (one, other)]
        assert len(one.chats()) == len(other.chats()) == 6
    assert not halves[0] & halves[1]


def test_a_server_that_goes_away_leaves_its_requests_to_the_others():
    requests = [ask(f"question {number}", GREEDY, ("yes",)) for number in range(8)]
    with FaultServer(vllm=True) as one, FaultServer(vllm=True) as other:
        backend = connect(one, base_url=f"{one.base_url},{other.base_url}", retries=1)
        expected = answers(backend, requests)
        one.close()
        for _ in range(2):
            assert answers(backend, requests) == expected
    assert all(isinstance(each, BackendError) for each in answers(backend, requests))


def test_a_server_that_dies_under_way_leaves_its_requests_to_the_others():
    requests = [ask(f"question {number}") for number in range(12)]
    with FaultServer() as one, FaultServer() as other:
        count = itertools.count()

        def die(body: dict[str, Any]) -> str:
            if next(count) == 2:
                one.always = "reset"  # Of connections that are open.
                one.close()
            return f"re: {text_of(body)}"

        one.answer = die
        urls = f"{one.base_url},{other.base_url}"
        backend = connect(one, base_url=urls, retries=1, max_concurrency=1)
        results = answers(backend, requests)
    assert texts(results) == [f"re: question {number}" for number in range(12)]


def test_servers_that_share_requests_must_serve_the_same():
    with (
        FaultServer(vllm=True) as one,
        FaultServer(vllm=True, version="0.12.0") as other,
        pytest.raises(InputError, match="must be of the same version and serve the same model"),
    ):
        connect(one, base_url=f"{one.base_url},{other.base_url}")


# --- scores ---


def test_scores_are_the_log_probabilities_of_the_answers_tokens_and_end():
    requests = [
        ask("what? ", None, ("red cat", "", "käse")),
        ask("who? ", GREEDY, ("red cat",)),
        ask("when?"),
    ]
    with FaultServer(vllm=True) as server:
        results = answers(connect(server), requests)
        for request, result in zip(requests, results, strict=True):
            expected = [naive_score(request.prompt.text, answer) for answer in request.score]
            assert result.score_logprobs == pytest.approx(expected, rel=1e-12)
        paths = server.paths()
    assert texts(results) == [None, "re: who? ", "re: when?"]
    # Of each distinct answer once, whatever it follows.
    assert paths.count("/tokenize") == 3 * 3
    assert paths.count("/v1/chat/completions") == 4 + 2
    assert results[0].usage.prompt_tokens > 3 * len("what? ")


def naive_score(question: str, answer: str) -> float:
    """Written out: the chat up to the answer, then each of its characters and the end."""
    tokens = [START, *map(ord, f"user\n{question}"), END, ord("\n")]
    tokens += [START, *map(ord, "assistant\n")]
    total = 0.0
    for token in (*map(ord, answer), END):
        tokens.append(token)
        total += logprob(tokens, len(tokens) - 1)
    return total


def test_an_answer_that_was_generated_needs_no_request_of_its_own():
    requests = [ask(f"question {number}", GREEDY, ("red cat", "dog")) for number in range(9)]
    with FaultServer(vllm=True, answer=lambda body: "red cat") as server:
        results = answers(connect(server), requests)
        # The first request shows that scoring works before anything is generated.
        assert len(server.chats()) == 3 + 8 * 2
    for request, result in zip(requests, results, strict=True):
        expected = [naive_score(request.prompt.text, answer) for answer in request.score]
        assert result.score_logprobs == pytest.approx(expected, rel=1e-12)
        assert result.text == "red cat"


def test_answers_are_tokenised_once_for_all_calls():
    with FaultServer(vllm=True) as server:
        backend = connect(server)
        for number in range(3):
            answers(backend, [ask(f"question {number}", GREEDY, ("red cat",))])
        assert server.paths().count("/tokenize") == 3


def test_a_server_that_cannot_score_is_paid_for_nothing():
    requests = [ask(f"question {number}", GREEDY, ("yes", "no")) for number in range(5)]
    with FaultServer() as server:
        results = answers(connect(server, max_concurrency=1), requests)
        assert server.chats() == []
        assert server.paths().count("/tokenize") == 1
    assert all("cannot score answers" in each.message for each in results)


def test_a_server_without_prompt_logprobs_is_found_out_by_its_reply():
    requests = [ask(f"question {number}", GREEDY, ("yes",)) for number in range(5)]
    with FaultServer(vllm=True, prompt_logprobs=False) as server:
        results = answers(connect(server, max_concurrency=1), requests)
        assert len(server.chats()) == 1
    assert all("cannot score answers" in each.message for each in results)


def test_log_probabilities_of_other_tokens_are_an_error():
    with FaultServer(vllm=True, shift=1) as server:
        [result] = answers(connect(server), [ask("question", None, ("yes",))])
    assert isinstance(result, BackendError)
    assert "not of the tokens" in result.message


@pytest.mark.parametrize("fault", ["500", "429", "cut", "garbage"])
def test_scores_survive_faults(fault):
    requests = [ask(f"question {number}", GREEDY, ("yes", "no")) for number in range(3)]
    with FaultServer(vllm=True) as server:
        expected = answers(connect(server), requests)
        server.faults.extend([fault, None, fault])
        assert answers(connect(server), requests) == expected


# --- counting ---


def test_cost_is_by_the_prices_and_none_without():
    used = Usage(2_000_000, 500_000, 3)
    with FaultServer() as server:
        assert connect(server).cost(used) is None
        assert connect(server, prompt_price=0.5).cost(used) == 1.0
        assert connect(server, prompt_price=0.5, generated_price=2).cost(used) == 2.0


def test_the_store_counts_what_was_asked_and_not_what_was_kept(tmp_path):
    requests = [ask(f"question {number}") for number in range(3)]
    store = ResponseCache(tmp_path / "store.sqlite")
    with FaultServer() as server:
        priced = connect(server, prompt_price=1e6)
        first, second = CachedBackend(priced, store), CachedBackend(priced, store)
        results = answers(first, requests)
        answers(second, requests)
        assert CachedBackend(connect(server)).cost is None
    assert first.used == sum((each.usage for each in results), Usage())
    assert first.cost == first.used.prompt_tokens > 0
    assert (second.used, second.cost) == (Usage(), 0.0)
    store.close()
