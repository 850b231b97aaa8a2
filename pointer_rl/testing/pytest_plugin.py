"""For pytest: fixtures for the tests of a plugin. Found by its entry point; imports only pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pointer_rl.selectors import SelectorPolicy
    from pointer_rl.testing.fakes import FakeBackend
    from pointer_rl.types import Dataset

__all__ = ["fake_backend", "fake_policy", "tiny_dataset"]


@pytest.fixture
def tiny_dataset() -> Dataset:
    """Four queries and a pool of eight: small pictures of one colour, and questions about them."""
    from pointer_rl.testing import tiny_dataset

    return tiny_dataset()


@pytest.fixture
def fake_backend() -> FakeBackend:
    """Answers with the last word of a prompt, and keeps what it was asked in `asked`."""
    from pointer_rl.testing import FakeBackend

    return FakeBackend()


@pytest.fixture
def fake_policy() -> SelectorPolicy:
    """An untrained selector for embeddings of four numbers: what a generator is handed."""
    from pointer_rl.testing import fake_policy

    return fake_policy()
