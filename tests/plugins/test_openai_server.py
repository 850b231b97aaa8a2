"""The openai backend's options, the server that they lead to, and the fingerprint."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fault_server import MODEL, FaultServer

from pointer_rl.errors import InputError, MissingExtraError
from pointer_rl.options import build_options
from pointer_rl.registry import registry
from pointer_rl_openai import create_backend
from pointer_rl_openai.options import OpenAIOptions
from pointer_rl_openai.server import Address, server_addresses


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def connect(server: FaultServer, **options: object):
    return create_backend(
        OpenAIOptions(**{"base_url": server.base_url, "backoff": 0.001, **options})
    )


# --- options ---


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"base_url": "127.0.0.1:8000/v1"}, "must be an http"),
        ({"base_url": "http://"}, "must be an http"),
        ({"base_url": "http://a:99999/v1"}, "must be an http"),
        ({"base_url": "http://[::1/v1"}, "must be an http"),
        ({"base_url": "http://a b/v1"}, "must be an http"),
        ({"base_url": "http://a/v1,"}, "must be an http"),
        ({"base_url": "http://a/v1, http://a/v1/"}, "names a server twice"),
        ({"base_url": "http://me:SECRET@host/v1"}, "api_key_env"),
        ({"base_url": "http://host/v1?key=SECRET"}, "api_key_env"),
        ({"api_key_env": "sk-SECRET"}, "not the key"),
        ({"api_key_env": ""}, "not the key"),
        ({"timeout": "0"}, "timeout must be"),
        ({"timeout": "nan"}, "timeout must be"),
        ({"backoff": "-1"}, "backoff must be"),
        ({"retries": "-1"}, "retries"),
        ({"max_concurrency": "0"}, "max_concurrency"),
        ({"prompt_price": "-1"}, "prompt_price"),
        ({"generated_price": "inf"}, "generated_price"),
    ],
)
def test_options_that_make_no_sense_are_refused_without_repeating_a_key(options, why):
    with pytest.raises(InputError, match=why) as caught:
        build_options(OpenAIOptions, options, "backend openai")
    assert "SECRET" not in str(caught.value)


def test_the_address_is_the_options_else_the_environments_else_openais(monkeypatch):
    def address(**options: str) -> str:
        [found] = server_addresses(OpenAIOptions(**options))
        return found.base_url

    with pytest.raises(InputError, match="no server is named"):
        address()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    assert address() == "https://api.openai.com/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://there:1/v1/")
    assert address() == "http://there:1/v1"
    assert address(base_url="http://here:2/v1") == "http://here:2/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:SECRET@there/v1")
    with pytest.raises(InputError, match=r"OPENAI_BASE_URL: .*user") as caught:
        address()
    assert "SECRET" not in str(caught.value)


def test_a_key_that_is_named_must_be_there_and_be_one(monkeypatch):
    with FaultServer(key="k") as server:
        with pytest.raises(InputError, match="NO_SUCH_KEY is not set"):
            connect(server, api_key_env="NO_SUCH_KEY")
        monkeypatch.setenv("ODD_KEY", "sk-ключ")
        with pytest.raises(InputError, match="ODD_KEY holds characters") as caught:
            connect(server, api_key_env="ODD_KEY")
        assert "ключ" not in str(caught.value)
        monkeypatch.setenv("GOOD_KEY", "k\n")
        connect(server, api_key_env="GOOD_KEY")


# --- what the server says ---


def test_the_one_model_of_a_server_needs_no_name():
    with FaultServer() as server:
        assert connect(server).fingerprint == connect(server, model=MODEL).fingerprint
    with (
        FaultServer(models=("b", "a")) as server,
        pytest.raises(InputError, match=r"model=NAME; .* serves a, b"),
    ):
        connect(server)


def test_a_model_that_vllm_does_not_serve_is_refused_and_of_others_not_known():
    with FaultServer(vllm=True) as server, pytest.raises(InputError, match="did you mean 'tiny/v"):
        connect(server, model="tiny/vim")
    with FaultServer() as server:
        connect(server, model="loaded/when-asked")


@pytest.mark.parametrize(
    ("server", "why"),
    [
        (FaultServer(key="k"), r"models: HTTP 401: .*api_key_env.*is base_url right"),
        (FaultServer(models=None), "serves none that it names"),
    ],
    ids=["key", "no list"],
)
def test_a_server_that_does_not_let_us_in_is_one_line(server, why, caplog):
    with server, pytest.raises(InputError, match=why) as caught:
        connect(server)
    assert "\n" not in str(caught.value)


def test_no_server_is_one_line():
    with FaultServer() as server:
        pass
    with pytest.raises(InputError, match="is the server running") as caught:
        connect(server, model="m", retries=1)
    assert "\n" not in str(caught.value)


def test_a_server_without_a_list_of_models_is_used_with_a_warning(caplog):
    with FaultServer(models=None) as server:
        connect(server, model="m")
    assert "usually ends in /v1" in caplog.text


def test_a_missing_package_is_named_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(MissingExtraError, match=r"httpx2: pip install 'pointer-rl\[openai\]'"):
        registry().create("backend", "openai", {"base_url": "http://127.0.0.1:1/v1"})


# --- the fingerprint ---


def test_the_fingerprint_is_the_model_and_what_decides_its_answers():
    with FaultServer(vllm=True) as server:
        same = {
            connect(server, **options).fingerprint
            for options in (
                {},
                {"timeout": 7.0, "retries": 1, "max_concurrency": 2, "backoff": 0.1},
                {"prompt_price": 1.0, "generated_price": 1.0},
            )
        }
        others = {
            connect(server, **options).fingerprint
            for options in ({"seed": 1}, {"revision": "2026-11"}, {"images": "file"})
        }
    with FaultServer(vllm=True) as elsewhere:  # another port
        same.add(connect(elsewhere).fingerprint)
    for server in (
        FaultServer(),
        FaultServer(vllm=True, version="0.12.0"),
        FaultServer(vllm=True, models=("tiny/other",)),
    ):
        with server:
            others.add(connect(server).fingerprint)
    assert len(same) == 1
    assert len(others - same) == 6
    [fingerprint] = same
    assert fingerprint.startswith("openai-tiny-vlm-")


@pytest.mark.parametrize(
    ("url", "provider"),
    [
        ("http://127.0.0.1:8000/v1", None),
        ("http://10.0.3.4:8000/v1", None),
        ("http://[::1]:8000/v1", None),
        ("http://node17:8000/v1", None),
        ("https://api.somewhere.com/v1", "api.somewhere.com"),
        ("https://8.8.8.8/v1", "8.8.8.8"),
    ],
)
def test_a_providers_name_counts_and_a_nodes_does_not(url, provider):
    assert Address(url).provider == provider


def test_what_is_beside_the_api():
    assert Address("http://a:1/v1").next_to_api("tokenize") == "http://a:1/tokenize"
    assert Address("http://a:1/api").next_to_api("tokenize") == "http://a:1/api/tokenize"


def test_showing_the_options_imports_no_http_client():
    code = (
        "import sys\n"
        "from pointer_rl.cli.main import cli\n"
        "try:\n    cli(['plugins', 'show', 'openai'])\nexcept SystemExit as end:\n"
        "    assert not end.code\n"
        "assert not {'httpx2', 'torch', 'PIL', 'asyncio'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "max_concurrency" in done.stdout
