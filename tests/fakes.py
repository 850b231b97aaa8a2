"""A backend that reads its prompt, for the suites; further stand-ins: `pointer_rl.testing`."""

from __future__ import annotations

from pointer_rl.testing import FakeBackend
from pointer_rl.types import BackendError


class CopyBackend(FakeBackend):
    """Answers with the last demonstration's answer; fails for an image that does not open."""

    fingerprint = "copy"

    def __init__(self) -> None:
        super().__init__(lambda text: text.split("Short answer:")[-2].split(" Question:")[0])

    def run(self, requests):
        for index, result in super().run(requests):
            try:
                for image in requests[index].prompt.images:
                    image.open()
            except Exception as error:
                result = BackendError(str(error))
            yield index, result
