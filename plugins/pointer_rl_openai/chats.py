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

    async def send(
        self,
        prompt: Prompt,
        fields: Callable[[], dict[str, Any]],
        read: Callable[[object], T],
        *,
        answer: str | None = None,
        tokenise: bool = False,
    ) -> T | Failure:
        """Ask for a completion or, with `tokenise`, for vLLM's tokens of the chat without images.

        `fields` returns further fields of the request when it is sent, and `read` reads the reply.
        An answer is put after the prompt as a message of the assistant.
        """
        address = self._server.address
        url = address.next_to_api("tokenize") if tokenise else address.chat
        said = [] if answer is None else [{"role": "assistant", "content": answer}]

        def body() -> dict[str, Any]:
            more = fields()  # First: it may raise, and then no image needs to be encoded.
            if tokenise:
                common = {"model": self._server.model}
                messages = chat_messages(prompt, lambda image: None, merge_text=True)
            else:
                common = self._common
                messages = chat_messages(prompt, self._image_part, merge_text=True)
            return {**common, "messages": messages + said, **more}

        parts = [part for message in prompt.messages for part in message.parts]
        texts = [part for part in (*parts, answer) if isinstance(part, str)]
        return await self._asker.ask(Call(url=url, body=body, read=read, private=texts))

    def _image_part(self, image: ImageRef) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": self._images.url(image)}}
