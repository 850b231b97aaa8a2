"""`pointer-rl push`, `Policy.from_pretrained` and `hub:` names, against a Hub on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback

import pytest
import torch
from fake_hub import LARGE, TOKEN, Repository

import pointer_rl
from pointer_rl.datasets.embeddings import save_embeddings
from pointer_rl.errors import InputError
from pointer_rl.hub import upload
from pointer_rl.selectors import PointerConfig, PointerSelector
from pointer_rl.selectors.bundle import (
    BUNDLE_FILES,
    BundleInfo,
    EncoderInfo,
    save_bundle,
    update_evaluation,
)

# huggingface_hub's use of its own HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
NAME = "me/policy"
SIZE, DIM = 40, 32


@pytest.fixture
def policy(tmp_path):
    """A bundle with files above and below the size from which git-lfs has them."""
    folder = tmp_path / "policy"
    config = PointerConfig(d_model=DIM, hidden_dim=16, num_layers=1, num_heads=2)
    vectors = torch.randn(SIZE, DIM, generator=torch.Generator().manual_seed(1))
    info = BundleInfo(
        shots=2,
        encoder=EncoderInfo(fingerprint="toy 1"),
        dataset={"name": "pets", "options": {}},
    )
    pool = [f"p{row}" for row in range(SIZE)]
    save_bundle(folder, PointerSelector.seeded(config, 0), vectors, pool, info, ["q1", "q2"])
    update_evaluation(folder, {"verdict": "better than random by 9.0 points"})
    (folder / "checkpoint.safetensors").write_bytes(b"not of the bundle")
    sizes = [path.stat().st_size for path in folder.iterdir()]
    assert min(sizes) < LARGE < max(sizes)
    return folder


def contents(folder, names=BUNDLE_FILES):
    return {name: (folder / name).read_bytes() for name in names}


def succeeds(result):
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def one_line(result, *parts):
    assert result.exit_code == 2, result.output
    [line] = result.output.splitlines()
    for part in parts:
        assert part in line


def refused(name, *parts):
    with pytest.raises(InputError) as caught:
        pointer_rl.Policy.from_pretrained(name, "cpu")
    for part in (name, *parts):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- policies ---


def test_what_is_pushed_is_pulled_byte_for_byte(hub, policy, cli, tmp_path):
    output = succeeds(cli("push", NAME, str(policy)))
    repository = hub.repositories[f"models/{NAME}"]
    assert output == [
        f"wrote {hub.url}/{NAME}/commit/{repository.head}",
        f"its name in commands is hub:{NAME}",
    ]
    assert repository.files == contents(policy)
    assert repository.private
    queries = torch.randn(3, DIM, generator=torch.Generator().manual_seed(2))
    pulled = pointer_rl.Policy.from_pretrained(NAME, "cpu")
    assert pulled.select(queries) == pointer_rl.Policy.load(policy, "cpu").select(queries)
    [snapshot] = (tmp_path / "cache" / "models--me--policy" / "snapshots").iterdir()
    assert contents(snapshot) == contents(policy)
    assert {path.name for path in snapshot.iterdir()} == set(BUNDLE_FILES)


def test_pushing_again_replaces_it_and_an_older_revision_stays(hub, policy, cli):
    succeeds(cli("push", NAME, str(policy)))
    repository = hub.repositories[f"models/{NAME}"]
    first = repository.head
    succeeds(cli("push", NAME, str(policy)))
    assert repository.head == first, "nothing had changed"
    update_evaluation(policy, {"verdict": "another"})
    succeeds(cli("push", NAME, str(policy)))
    assert repository.files == contents(policy)
    from_pretrained = pointer_rl.Policy.from_pretrained
    assert from_pretrained(NAME, "cpu").info.evaluation == {"verdict": "another"}
    before = from_pretrained(f"{NAME}@{first}", "cpu").info.evaluation
    assert before == {"verdict": "better than random by 9.0 points"}
    refused(f"{NAME}@v9", "no such revision")


def test_commands_take_it_by_its_name_and_ask_the_hub_only_then(hub, policy, cli, tmp_path):
    queries = str(tmp_path / "q.safetensors")
    vectors = torch.randn(2, DIM, generator=torch.Generator().manual_seed(3))
    save_embeddings(tmp_path / "q.safetensors", vectors, ["a", "b"], "toy 1")
    local = succeeds(cli("select", str(policy), "--query-emb", queries))
    assert hub.seen == []
    succeeds(cli("push", NAME, str(policy)))
    assert succeeds(cli("select", f"hub:{NAME}", "--query-emb", queries)) == local
    one_line(cli("select", NAME, "--query-emb", queries), "me/policy: no such folder")
    one_line(cli("select", "hub:policy", "--query-emb", queries), "write OWNER/NAME")


def test_a_configuration_that_was_not_named_downloads_nothing(hub, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pointer-rl.toml").write_text('[train]\nsft-ckpt = "hub:me/policy"\n')
    one_line(cli("train", "--output-dir", "out"), "sft-ckpt", "only a file given as --config")
    assert hub.seen == []
    (tmp_path / "study").mkdir()
    study = (tmp_path / "pointer-rl.toml").rename(tmp_path / "study" / "study.toml")
    named = cli("train", "--config", str(study), "--rl-data", "x", "--output-dir", "out")
    one_line(named, "me/policy", "no such repository")


def test_an_evaluation_is_not_recorded_in_the_hubs_copy(hub, policy, cli):
    succeeds(cli("push", NAME, str(policy)))
    result = cli("evaluate", "--policy", f"RL=hub:{NAME}", "--record")
    one_line(result, "a copy of the Hub's")


@pytest.mark.parametrize("name", [name for name in BUNDLE_FILES if name != "README.md"])
def test_a_file_that_was_tampered_with_is_refused(hub, policy, cli, name):
    succeeds(cli("push", NAME, str(policy)))
    repository = hub.repositories[f"models/{NAME}"]
    data = bytearray(repository.files[name])
    if name == "bundle.json":
        data = data.replace(b'"better than', b'"bitter than')
    elif name == "config.json":
        data = data.replace(b'"temperature": 0.1', b'"temperature": 0.2')
    else:
        data[-2] ^= 1
    assert data != repository.files[name]
    repository.commit({**repository.files, name: bytes(data)})
    said = refused(NAME, "damaged", name, "models--me--policy to download it again")
    assert "copy or train" not in said


def test_a_bundle_of_a_newer_version_is_not_called_damaged(hub, policy):
    text = (policy / "bundle.json").read_text()
    newer = text.replace('"bundle_version": 1', '"bundle_version": 99')
    assert newer != text
    repository = hub.repositories[f"models/{NAME}"] = Repository(private=False)
    repository.commit({**contents(policy), "bundle.json": newer.encode()})
    assert refused(NAME, "version 99").endswith("upgrade pointer-rl")


def test_a_card_may_be_edited_and_foreign_files_are_not_downloaded(hub, policy, cli, tmp_path):
    succeeds(cli("push", NAME, str(policy)))
    repository = hub.repositories[f"models/{NAME}"]
    foreign = ("model.pkl", "pytorch_model.bin", "selector.py", "sub/config.json")
    repository.commit(
        {**repository.files, "README.md": b"# mine", **dict.fromkeys(foreign, b"\x80\x04.")}
    )
    pointer_rl.Policy.from_pretrained(NAME, "cpu")
    assert not any(name in request for request in hub.seen for name in foreign)
    [snapshot] = (tmp_path / "cache" / "models--me--policy" / "snapshots").iterdir()
    assert {path.name for path in snapshot.iterdir()} == set(BUNDLE_FILES)


def test_what_is_no_bundle_or_damaged_is_neither_pushed_nor_pulled(hub, policy, cli, tmp_path):
    (policy / "query_ids.txt").write_text("q1\n")
    one_line(cli("push", NAME, str(policy)), "damaged", "query_ids.txt")
    (policy / "bundle.json").unlink()
    one_line(cli("push", NAME, str(policy)), "neither a policy bundle nor Parquet files")
    one_line(cli("push", NAME, str(tmp_path / "none")), "none: no such folder")
    one_line(cli("push", "policy", str(policy)), "'policy' is not the name of a repository; write")
    one_line(
        cli("push", f"{NAME}@v1", str(policy)), "is not the name of a repository; write OWNER/NAME"
    )
    assert hub.seen == []
    repository = hub.repositories[f"models/{NAME}"] = Repository(private=False)
    repository.commit({"weights.bin": b"w"})
    refused(NAME, "not a policy bundle")


# --- what can go wrong ---


def test_a_missing_repository_a_refused_token_and_a_gate_are_told_apart(
    hub, policy, cli, monkeypatch
):
    refused(NAME, "no such repository")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    one_line(cli("push", NAME, str(policy)), NAME, "(401)", "HF_TOKEN")
    assert hub.repositories == {}
    hub.repositories[f"models/{NAME}"] = Repository(private=True)
    refused(NAME, "no such repository, or a private one")
    monkeypatch.delenv("HF_TOKEN")
    one_line(cli("push", NAME, str(policy)), NAME, "(401)", "HF_TOKEN")


@pytest.mark.parametrize("status", [400, 403, 500])
def test_a_server_that_repeats_the_token_does_not_get_it_printed(hub, policy, cli, status):
    hub.refuses = (status, f"denied to Bearer {TOKEN}")
    result = cli("push", NAME, str(policy))
    one_line(result, NAME, "(403)" if status == 403 else "denied to Bearer (token)")
    assert TOKEN not in result.output
    with pytest.raises(InputError) as caught:
        upload(NAME, policy, "model", BUNDLE_FILES)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    assert TOKEN not in refused(NAME)


def test_offline_it_comes_from_the_cache_and_is_missed_if_it_is_not_there(
    hub, policy, cli, monkeypatch
):
    succeeds(cli("push", NAME, str(policy)))
    pointer_rl.Policy.from_pretrained(NAME, "cpu")
    asked = len(hub.seen)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pointer_rl.Policy.from_pretrained(NAME, "cpu")
    refused("me/other", "not in the cache", "HF_HUB_OFFLINE")
    one_line(cli("push", NAME, str(policy)), NAME, "HF_HUB_OFFLINE")
    assert len(hub.seen) == asked


def test_a_hub_out_of_reach_is_said_in_a_line(hub, policy, cli, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    one_line(cli("push", NAME, str(policy)), NAME, "the Hub cannot be used")
    refused(NAME, "the Hub cannot be reached")


def test_the_environment_says_where_the_hub_is(hub, policy, tmp_path):
    """In a process of its own, as a user has it: huggingface_hub reads it when it is imported."""
    environment = {
        **{**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")},
        **{"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    }
    code = (
        "import sys, pointer_rl\n"
        "from pointer_rl.cli.main import cli\n"
        "cli(['push', *sys.argv[1:]], standalone_mode=False)\n"
        "print(len(pointer_rl.Policy.from_pretrained(sys.argv[1], 'cpu').pool_ids))"
    )
    command = [sys.executable, "-c", code, NAME, str(policy)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[1:] == [f"its name in commands is hub:{NAME}", str(SIZE)]
    assert (tmp_path / "home" / "hub" / "models--me--policy").is_dir()


# --- datasets ---


def test_a_dataset_is_its_parquet_files_and_their_card(hub, cli, tmp_path):
    folder = tmp_path / "data set"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# Shapes\n")
    (folder / "data" / "train.parquet").write_bytes(b"PAR1" + bytes(LARGE))
    (folder / ".env").write_text("SECRET=1")
    uploaded = ("README.md", "data/train.parquet")
    output = succeeds(cli("push", "me/shapes", str(folder)))
    repository = hub.repositories["datasets/me/shapes"]
    assert output == [f"wrote {hub.url}/me/shapes/commit/{repository.head}"]
    assert repository.files == {name: (folder / name).read_bytes() for name in uploaded}
    (folder / "data" / "train.parquet").rename(folder / "data" / "all.parquet")
    repository.commit({**repository.files, "LICENSE": b"cc0"})
    succeeds(cli("push", "me/shapes", str(folder)))
    assert set(repository.files) == {"README.md", "data/all.parquet", "LICENSE"}
