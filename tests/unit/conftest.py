"""Fixtures of the unit tests: a plugin under test, registered without being installed."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from pointer_rl.hookspecs import hookimpl
from pointer_rl.registry import KINDS, registry


@pytest.fixture
def register(monkeypatch):
    """Registers a factory as the plugin `mine` of a kind."""

    def register_plugin(kind, factory, options=None):
        module = ModuleType("a_plugin_of_mine")

        @hookimpl
        def hook(register):
            register("mine", factory, options=options, summary="mine")

        setattr(module, KINDS[kind], hook)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        point = EntryPoint("mine", module.__name__, "pointer_rl")
        monkeypatch.setattr("pointer_rl.registry.entry_points", lambda group: [point])
        monkeypatch.setenv("POINTER_RL_PLUGINS", "mine")
        registry.cache_clear()

    yield register_plugin
    registry.cache_clear()


@pytest.fixture
def check(register):
    """Registers a factory, and runs the tests of a class on it; `more` sets its attributes."""

    def run(cls, factory, options=None, **more):
        register(cls.kind, factory, options)
        return list(type("TestMine", (cls,), {"name": "mine", **more})().run_checks())

    return run
