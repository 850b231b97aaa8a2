"""Send chats to a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pointer_rl.local.chat import chat_messages
from pointer_rl.types import ImageRef, Prompt
from pointer_rl_openai.asking import Asker
from pointer_rl_openai.images import ImageUrls
from pointer_rl_openai.options import OpenAIOptions
from pointer_rl_openai.server import Server
from pointer_rl_openai.transport import Call, Failure

__all__ = ["Chats"]

T = TypeVar("T")


class Chats:
    """Sends chats to one server. They share encoded images.

    Adjacent texts are merged, since servers put line ends between them. A message without images is
    a string, for chat templates that do not accept lists.
    """

    def __init__(self, asker: Asker, server: Server, options: OpenAIOptions) -> None:
        self._asker = asker
        self._server = server
        self._common: dict[str, Any] = {"model": server.model}
        if options.seed is not None:
            self._common["seed"] = options.seed
        self._images = ImageUrls(options.images)

    async def complete(
        self,
        prompt: Prompt,
        fields: Callable[[], dict[str, Any]],
        read: Callable[[object], T],
        *,
        answer: str | None = None,
    ) -> T | Failure:
        """Ask for a chat completion.

        Args:
            prompt: The chat.
            fields: Returns further fields of the request. Called when the request is sent.
            read: Reads the reply.
            answer: Put after the prompt as a message of the assistant.
        """

        def body() -> dict[str, Any]:
            more = fields()
            messages = chat_messages(prompt, self._image_part, merge_text=True)
            return {**self._common, "messages": messages + _said(answer), **more}

        address = self._server.address.chat
        return await self._asker.ask(
            Call(url=address, body=body, read=read, private=_texts(prompt, answer))
        )

    async def tokenise(
        self,
        prompt: Prompt,
        fields: Callable[[], dict[str, Any]],
        read: Callable[[object], T],
        *,
        answer: str | None = None,
    ) -> T | Failure:
        """Ask vLLM for the tokens of a chat, without its images. Arguments as for `complete`."""

        def body() -> dict[str, Any]:
            more = fields()
            messages = chat_messages(prompt, lambda image: None, merge_text=True)
            return {"model": self._server.model, "messages": messages + _said(answer), **more}

        address = self._server.address.beside("tokenize")
        return await self._asker.ask(
            Call(url=address, body=body, read=read, private=_texts(prompt, answer))
        )

    def _image_part(self, image: ImageRef) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": self._images.url(image)}}


def _said(answer: str | None) -> list[dict[str, Any]]:
    return [] if answer is None else [{"role": "assistant", "content": answer}]


def _texts(prompt: Prompt, answer: str | None) -> list[str]:
    parts = (part for message in prompt.messages for part in message.parts)
    return [part for part in (*parts, answer) if isinstance(part, str)]
