"""What a stored response is kept under, and how it is written.

The key is the SHA-256 of all that decides a response: the backend's fingerprint, the prompt (roles,
texts, image keys, in order), the decoding, the answers to be scored. The value carries a checksum
over both.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict
from functools import lru_cache

from pointer_rl.types import Decoding, Request, Response, Usage

__all__ = ["VERSION", "decode_response", "encode_response", "request_key"]

VERSION = 1
"""Of keys, values and the tables that hold them: a file of another version is no store of ours."""

_HEAD = struct.Struct("<QQQQ?")
"""Prompt tokens, generated tokens, images, number of log-probabilities, whether there is a text."""
_CHECKSUM = 8
"""Bytes."""


def request_key(fingerprint: str, request: Request) -> bytes:
    """32 bytes. Opens no image; raises InputError where an image's key cannot be had."""
    messages = [
        # A text is a string, an image a list: no text can pass for an image.
        [message.role, [part if isinstance(part, str) else [part.key] for part in message.parts]]
        for message in request.prompt.messages
    ]
    parts = [VERSION, fingerprint, messages, _decoding(request.decoding), request.score]
    return hashlib.sha256(json.dumps(parts).encode()).digest()


@lru_cache(maxsize=16)
def _decoding(decoding: Decoding | None) -> dict[str, object] | None:
    return None if decoding is None else asdict(decoding)


def encode_response(key: bytes, response: Response) -> bytes:
    """Checksum, usage, log-probabilities as float64 to the bit, text in UTF-8."""
    usage, logprobs, text = response.usage, response.score_logprobs, response.text
    head = _HEAD.pack(
        *(usage.prompt_tokens, usage.generated_tokens, usage.images),
        *(len(logprobs), text is not None),
    )
    # Half a surrogate pair may be left in what a byte-level tokenizer decodes.
    encoded = b"" if text is None else text.encode("utf-8", "surrogatepass")
    payload = head + struct.pack(f"<{len(logprobs)}d", *logprobs) + encoded
    return _checksum(key, payload) + payload


def decode_response(key: object, value: object) -> Response | None:
    """None for what `encode_response` did not write under this key."""
    if not isinstance(key, bytes) or not isinstance(value, bytes):
        return None
    payload = value[_CHECKSUM:]
    if _checksum(key, payload) != value[:_CHECKSUM]:
        return None
    prompt_tokens, generated_tokens, images, count, has_text = _HEAD.unpack_from(payload)
    end = _HEAD.size + 8 * count
    return Response(
        payload[end:].decode("utf-8", "surrogatepass") if has_text else None,
        struct.unpack_from(f"<{count}d", payload, _HEAD.size),
        Usage(prompt_tokens, generated_tokens, images),
    )


def _checksum(key: bytes, payload: bytes) -> bytes:
    return hashlib.blake2b(key + payload, digest_size=_CHECKSUM).digest()
