"""The kit with which the author of a plugin tests it.

A test file inherits the tests of a kind of plugin and names the one to test:

    class TestTint(BackendTests):
        name = "tint"
        options = {"names": "rot,grün,blau"}

`pointer-rl plugins check` runs the same tests on whatever is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pointer_rl.testing.arm import ArmTests
from pointer_rl.testing.backend import BackendTests
from pointer_rl.testing.dataset import DatasetTests
from pointer_rl.testing.encoder import EncoderTests
from pointer_rl.testing.executor import ExecutorTests
from pointer_rl.testing.fakes import (
    EqualMetric,
    FakeBackend,
    PlainPrompt,
    UnreadableImage,
    batch,
    example,
    fake_policy,
    pool,
    tiny_dataset,
)
from pointer_rl.testing.generator import GeneratorTests
from pointer_rl.testing.metric import MetricTests
from pointer_rl.testing.plugin import PluginTests, Result
from pointer_rl.testing.prompt import PromptTests
from pointer_rl.testing.reward import RewardTests
from pointer_rl.testing.selector import SelectorTests

__all__ = [
    "ArmTests",
    "BackendTests",
    "DatasetTests",
    "EncoderTests",
    "EqualMetric",
    "ExecutorTests",
    "FakeBackend",
    "GeneratorTests",
    "MetricTests",
    "PlainPrompt",
    "PluginTests",
    "PromptTests",
    "Result",
    "RewardTests",
    "SelectorTests",
    "UnreadableImage",
    "batch",
    "example",
    "fake_policy",
    "find_tests",
    "pool",
    "tiny_dataset",
]

_TESTS: tuple[type[PluginTests[Any]], ...] = (
    BackendTests,
    PromptTests,
    MetricTests,
    GeneratorTests,
    RewardTests,
    DatasetTests,
    EncoderTests,
    SelectorTests,
    ExecutorTests,
    ArmTests,
)


def find_tests(kind: str, name: str, options: Mapping[str, object]) -> PluginTests[Any]:
    """The tests of a registered plugin, to be run by `run_checks`."""
    tests = next(each for each in _TESTS if each.kind == kind)()
    tests.name, tests.options = name, options
    return tests
