"""For all suites: reproducible property tests, no network, no user's cache folder."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["POINTER_RL_PLUGINS"] = ""

settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """A cache of this session's own."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["POINTER_RL_CACHE"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def untimed(monkeypatch):
    """However slow the machine is, no line of progress comes because time has passed."""
    monkeypatch.setattr("pointer_rl.cli.progress._CHECK", 1e6)
