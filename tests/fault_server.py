"""A server with the OpenAI chat API that fails on demand, on 127.0.0.1, in a thread.

Its model is a rule: what it answers is a function of the prompt, and the log-probability of a
token a function of the tokens before it. With `vllm=True` it speaks vLLM's additions: /version,
/tokenize, prompt_logprobs, return_token_ids. Its tokens are characters, and a few marks.
"""

from __future__ import annotations

import base64
import json
import socket
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "tiny/vlm"
START, END, IMAGE = 0x110000, 0x110001, 0x110002
"""Tokens beyond all characters: of a message, and of images."""
IMAGE_TOKENS = 5

FAULTS = (
    *("429", "429 after", "429 date", "429 ms", "500", "502", "503", "reset", "cut", "hang"),
    *("garbage", "html", "empty", "trickle", "list", "no choices", "no message", "numbers"),
    *("error in 200", "oversize", "deep", "no finish", "abort", "tool object", "huge number"),
)
"""Each is over when the request is asked again."""
FINISHES = {
    "length empty": ("length", ""),
    "length null": ("length", None),
    "length cut": ("length", "re: wh"),
    "filtered": ("content_filter", "re: wh"),
    "filtered empty": ("content_filter", ""),
    "tool call": ("tool_calls", None),
    "function call": ("function_call", ""),
    "stop null": ("stop", None),
    "unknown finish": ("\x1b[31mbored", "re: what?"),
    "finish list": (["stop"], "re: what?"),
}
"""Replies that end otherwise than with a whole answer: finish_reason and content."""
KEY_FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "upper": str.upper,
    "broken": lambda key: f"{key[:5]}\n{key[5:]}",
    "spaced": " ".join,
    "URL": lambda key: "".join(f"%{ord(each):02x}" for each in key),
    "JSON": lambda key: "".join(f"\\u{ord(each):04x}" for each in key),
    "base64": lambda key: base64.b64encode(f"Bearer {key}!".encode()).decode(),
}
"""How a server may give the key back: the fault `key FORM` has it in the answer, `500 key FORM` in
an error message, and both have it in a header, with the request's own."""
KEY_FAULTS = (*(f"key {form}" for form in KEY_FORMS), *(f"500 key {form}" for form in KEY_FORMS))
SCORE_FAULTS = {"logprob above": 0.7, "logprob text": "-1", "logprob none": None}
"""Replies in which every log-probability is none."""
FATAL = (*FINISHES, "400", "401", "404", "redirect", "quota", "long wait", "thinking")
"""Asking again would not help."""


def render(messages: Sequence[dict[str, Any]]) -> list[int]:
    """The tokens of messages, each with its end and a line end."""
    tokens: list[int] = []
    for message in messages:
        tokens += [START, *map(ord, f"{message['role']}\n")]
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            tokens += (
                [IMAGE] * IMAGE_TOKENS if part["type"] == "image_url" else map(ord, part["text"])
            )
        tokens += [END, ord("\n")]
    return tokens


def prompt_tokens(body: dict[str, Any]) -> list[int]:
    """As vLLM renders a chat: with the head of an answer, or the last message left open."""
    tokens = render(body["messages"])
    if body.get("continue_final_message"):
        return tokens[:-2]
    if body.get("add_generation_prompt", True):
        tokens += [START, *map(ord, "assistant\n")]
    return tokens


def logprob(tokens: Sequence[int], position: int) -> float:
    """Of the token at the position, after those before it."""
    return -(zlib.crc32(repr(list(tokens[: position + 1])).encode()) % 5000) / 1000


def text_of(body: dict[str, Any]) -> str:
    """All that a request says in words."""
    return " ".join(
        part["text"]
        for message in body["messages"]
        for part in (
            [{"type": "text", "text": message["content"]}]
            if isinstance(message["content"], str)
            else message["content"]
        )
        if part["type"] == "text"
    )


def _with_logprobs(value: Any, logprob: Any) -> Any:
    """A reply with another value for each of its log-probabilities."""
    if isinstance(value, list):
        return [_with_logprobs(each, logprob) for each in value]
    if isinstance(value, dict):
        return {
            name: logprob if name == "logprob" else _with_logprobs(each, logprob)
            for name, each in value.items()
        }
    return value


class FaultServer:
    """`with FaultServer(faults=["429", "cut"]) as server: …`; the address is `server.base_url`.

    faults: for the first chat requests, one each (None: none). answer: from a request's body to the
    text. at_once: more requests in flight get a 429. shift: added to the token ids that
    prompt_logprobs names. logprob: of a token at a position.
    """

    def __init__(
        self,
        faults: Iterable[str | None] = (),
        *,
        answer: Callable[[dict[str, Any]], str] = lambda body: f"re: {text_of(body)}",
        vllm: bool = False,
        models: Sequence[str] | None = (MODEL,),
        key: str | None = None,
        at_once: int | None = None,
        hang_seconds: float = 30.0,
        delay_seconds: float = 0.0,
        prompt_logprobs: bool = True,
        shift: int = 0,
        logprob: Callable[[Sequence[int], int], Any] = logprob,
        version: str = "0.11.0",
        port: int = 0,
    ) -> None:
        self.faults = deque(faults)
        self.always: str | None = None
        """The fault of all further requests."""
        self.answer = answer
        self.vllm = vllm
        self.models = models
        self.key = key
        self.at_once = at_once
        self.hang_seconds = hang_seconds
        self.delay_seconds = delay_seconds
        self.prompt_logprobs = prompt_logprobs
        self.shift = shift
        self.logprob = logprob
        self.version = version
        self.system_fingerprint: str | None = None
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        """Path, headers and body of each, faults included."""
        self.times: list[float] = []
        """When each chat request came."""
        self.in_flight = 0
        self.peak = 0
        self.refused = 0
        self._http = _Listener(("127.0.0.1", port), self._handler())
        self.base_url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> FaultServer:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """From here on there is no server."""
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    def chats(self) -> list[dict[str, Any]]:
        """The bodies of chat requests."""
        return [body for path, _, body in self.requests if path == "/v1/chat/completions"]

    def paths(self) -> list[str]:
        """What was asked for, in order."""
        return [path for path, _, _ in self.requests]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        class Handler(_Handler):
            server_state = self

        return Handler


class _Listener(ThreadingHTTPServer):
    request_queue_size = 128  # or the sixth to connect at once waits for a second
    daemon_threads = True
    block_on_close = False


class _Handler(BaseHTTPRequestHandler):
    server_state: FaultServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer takes 40 ms more

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        state = self.server_state
        self._note(None)
        if not self._authorized():
            return
        if self.path == "/v1/models" and state.models is not None:
            owner = "vllm" if state.vllm else "someone"
            # vLLM's `created` is the time of the request.
            entries = [
                {"id": each, "owned_by": owner, "root": each, "created": time.time()}
                for each in state.models
            ]
            self._json(200, {"object": "list", "data": entries})
        elif self.path == "/version" and state.vllm:
            self._json(200, {"version": state.version})
        else:
            self._json(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._note(body)
        if not self._authorized():
            return
        if self.path == "/tokenize" and state.vllm:
            tokens = prompt_tokens(body)
            self._json(200, {"tokens": tokens, "count": len(tokens), "max_model_len": 4096})
        elif self.path == "/v1/chat/completions":
            with state.lock:
                state.times.append(time.monotonic())
                fault = state.faults.popleft() if state.faults else state.always
                too_many = state.at_once is not None and state.in_flight >= state.at_once
                state.refused += too_many
                state.in_flight += not too_many
                state.peak = max(state.peak, state.in_flight)
            if too_many:
                self._json(429, {"error": {"message": "too many"}})
                return
            try:
                state.closing.wait(state.delay_seconds)
                reply = self._reply(body)
            finally:
                # Before the answer: who has it may send the next at once.
                with state.lock:
                    state.in_flight -= 1
            if fault is None:
                self._json(200, reply)
            else:
                self._fail(fault, body, reply)
        else:
            self._json(404, {"detail": "Not Found"})

    def _note(self, body: Any) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server_state.lock:
            self.server_state.requests.append((self.path, headers, body))

    def _authorized(self) -> bool:
        key = self.server_state.key
        sent = self.headers.get("authorization", "")
        if key is None or sent == f"Bearer {key}":
            return True
        self._json(401, {"error": {"message": f"no such key: {sent}"}})
        return False

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        state = self.server_state
        tokens = prompt_tokens(body)
        text = state.answer(body)
        reply: dict[str, Any] = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": len(tokens), "completion_tokens": len(text) + 1},
        }
        if state.vllm and body.get("return_token_ids"):
            written = [*map(ord, text), END]
            reply["choices"][0]["token_ids"] = written
            reply["choices"][0]["logprobs"] = {
                "content": [
                    {"logprob": state.logprob([*tokens, *written], len(tokens) + place)}
                    for place in range(len(written))
                ]
            }
        if state.system_fingerprint is not None:
            reply["system_fingerprint"] = state.system_fingerprint
        if state.vllm and state.prompt_logprobs and "prompt_logprobs" in body:
            reply["prompt_logprobs"] = [
                {
                    str(token + state.shift): {
                        "logprob": state.logprob(tokens, position),
                        "rank": 3,
                    },
                    "7": {"logprob": -0.01, "rank": 1},
                }
                if position
                else None
                for position, token in enumerate(tokens)
            ]
        return reply

    def _fail(self, fault: str, body: dict[str, Any], reply: Any) -> None:
        said = {"error": {"message": f"{fault}! You said: {text_of(body)}", "code": fault}}
        if " key " in f" {fault}":
            sent = self.headers.get("authorization", "").removeprefix("Bearer ")
            form = fault.partition("key ")[2]
            said["error"]["message"] = f"no such key: {KEY_FORMS[form](sent)}"
            if fault.startswith("key"):
                reply["choices"][0]["message"]["content"] += KEY_FORMS[form](sent)
                self._json(200, reply, {"x-key": sent})
            else:
                self._json(500, said, {"x-key": sent})
            return
        headers = {
            "429 after": {"retry-after": "0.03"},
            "429 date": {"retry-after": formatdate(usegmt=True)},
            "429 ms": {"retry-after-ms": "30"},
            "long wait": {"retry-after": "86400"},
            "redirect": {"location": "http://127.0.0.1:9/"},
        }.get(fault, {})
        statuses = {"quota": 429, "long wait": 429, "redirect": 307}
        status = statuses.get(fault) or int(fault.split()[0] if fault[0].isdigit() else 200)
        if fault == "quota":
            said["error"]["code"] = "insufficient_quota"
        if status != 200:
            self._json(status, said, headers)
        elif fault == "reset":
            self._reset()
        elif fault == "cut":
            data = json.dumps(reply).encode()
            self._head(200, len(data))
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "hang":
            self.server_state.closing.wait(self.server_state.hang_seconds)
            self.close_connection = True
        elif fault == "trickle":
            data = json.dumps(reply).encode()
            self._head(200, len(data))
            for start in range(len(data)):  # each byte comes in time; all of them do not
                if self.server_state.closing.wait(0.02):
                    break
                try:
                    self.wfile.write(data[start : start + 1])
                    self.wfile.flush()
                except OSError:
                    break
            self.close_connection = True
        else:
            self._send(200, self._wrong(fault, reply))

    def _wrong(self, fault: str, reply: dict[str, Any]) -> bytes:
        """A body that is no answer, with status 200."""
        choice = reply["choices"][0]
        changes: dict[str, Any] = {
            "list": [reply],
            "no choices": {**reply, "choices": []},
            "no message": {**reply, "choices": [{"finish_reason": "stop"}]},
            "numbers": {**reply, "choices": [{"message": {"content": 7}}]},
            "oversize": {**reply, "padding": "x" * 3_000_000},
            "error in 200": {"error": {"message": "the worker died"}},
            "no finish": {**reply, "choices": [{"message": choice["message"]}]},
            "abort": {**reply, "choices": [{**choice, "finish_reason": "abort"}]},
            "tool object": {**reply, "choices": [{**choice, "message": {"content": {"a": 1}}}]},
            "huge number": {**reply, "choices": [{**choice, "message": {"content": 10**400}}]},
            "thinking": {
                **reply,
                "choices": [{**choice, "message": {"content": "", "reasoning_content": "Hm."}}],
            },
        }
        for name, value in SCORE_FAULTS.items():
            changes[name] = _with_logprobs(reply, value)
        for name, (finish, content) in FINISHES.items():
            message = {**choice["message"], "content": content}
            ended = {**choice, "message": message, "finish_reason": finish}
            changes[name] = {**reply, "choices": [ended]}
        raw = {
            "garbage": b"\x00\xff{[not json",
            "html": b"<html>Bad gateway</html>",
            "empty": b"",
            "deep": b"[" * 200_000,
        }
        return raw[fault] if fault in raw else json.dumps(changes[fault]).encode()

    def _reset(self) -> None:
        """Close so that the client sees ECONNRESET."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), headers)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        try:
            self._head(status, len(data), headers)
            self.wfile.write(data)
        except OSError:
            self.close_connection = True

    def _head(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
