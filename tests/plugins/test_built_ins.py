"""Every built-in plugin passes the tests that third parties are given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_flamingo
import tiny_models
from fault_server import FaultServer
from recipe_files import write_vl_icl
from tiny_clip import make_clip

from pointer_rl.registry import KINDS, registry
from pointer_rl.selectors import PointerConfig, PointerSelector, save_selector
from pointer_rl.testing import Result, find_tests, tiny_dataset

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
NAMES = [f"{kind}:{entry.name}" for kind in KINDS for entry in registry().entries(kind)]


@pytest.fixture
def needed(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Options that the plugin cannot do without, for something small that the test makes."""
    makers = {
        "backend:qwen2vl": "a_qwen",
        "backend:hf": "a_llava",
        "backend:flamingo": "a_flamingo",
        "backend:openai": "a_server",
        "backend:vllm": "no_vllm",
        "encoder:clip": "a_clip",
        "dataset:jsonl": "json_lines",
        "dataset:hf": "parquet_files",
        "dataset:vqa": "vqa_files",
        "dataset:vl-icl": "vl_icl_files",
        "arm:policy": "a_policy",
        "arm:vote": "a_vote",
        "executor:ray": "two_workers",
    }
    name = request.node.callspec.params["name"]
    options: dict[str, Any] = request.getfixturevalue(makers[name]) if name in makers else {}
    return options


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_keeps_its_contract(name: str, needed: dict[str, Any]) -> None:
    results = run_checks(name, needed)
    assert sum(result.state == "ok" for result in results) >= 4
    light = next(each for each in results if each.check == "loading imports nothing heavy")
    assert light.state == "ok"


@pytest.mark.parametrize("name", ["selector:pointer", "selector:sequential"])
def test_a_selector_keeps_it_with_a_stop(name: str) -> None:
    run_checks(name, {"stop": True})


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_hf_keeps_it_with_each_family(family: str, tiny_model: Any) -> None:
    if family in tiny_models.NEEDED:
        pytest.importorskip(tiny_models.NEEDED[family])
    template = {"chat_template": "plain"} if family == "paligemma" else {}
    run_checks("backend:hf", {"model": str(tiny_model(family)), "device": "cpu", **template})


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_qwen2vl_keeps_it_with_each_family(family: str, tiny_qwen: Any) -> None:
    run_checks("backend:qwen2vl", {"model": str(tiny_qwen(family)), "device": "cpu"})


@pytest.mark.slow
@pytest.mark.parametrize("kind", tiny_flamingo.KINDS)
def test_flamingo_keeps_it_on_each_language_model(kind: str, tmp_path: Path) -> None:
    run_checks("backend:flamingo", _flamingo(tmp_path, kind))


@pytest.mark.slow
def test_flamingo_keeps_it_with_idefics(tmp_path: Path) -> None:
    tiny_flamingo.make_idefics(tmp_path, instructed=True)
    run_checks("backend:flamingo", {"model": str(tmp_path), "device": "cpu"})


@pytest.mark.slow
def test_openai_keeps_it_without_log_probabilities() -> None:
    with FaultServer() as server:
        run_checks("backend:openai", {"base_url": server.base_url})


def run_checks(name: str, options: dict[str, Any]) -> list[Result]:
    """The results for KIND:NAME, none of them broken."""
    kind, _, rest = name.partition(":")
    results = list(find_tests(kind, rest, options).run_checks())
    assert [result for result in results if result.state == "broken"] == []
    return results


# --- what they need ---------------------------------------------------------------------------


@pytest.fixture
def a_qwen() -> dict[str, Any]:
    from pointer_rl_glyphs.dataset import MODEL_DIR

    return {"model": str(MODEL_DIR), "device": "cpu"}


@pytest.fixture
def a_llava(tiny_model: Any) -> dict[str, Any]:
    return {"model": str(tiny_model("llava")), "device": "cpu"}


@pytest.fixture
def a_flamingo(tmp_path: Path) -> dict[str, Any]:
    return _flamingo(tmp_path, "gpt_neox")


def _flamingo(folder: Path, kind: str) -> dict[str, Any]:
    parts = tiny_flamingo.make_parts(folder, kind, seed=10)
    return {
        "model": str(parts.checkpoint),
        "language_model": str(parts.language),
        "vision_model": str(parts.vision),
        "device": "cpu",
    }


@pytest.fixture
def a_server() -> Iterator[dict[str, Any]]:
    with FaultServer(vllm=True) as server:
        yield {"base_url": server.base_url}


@pytest.fixture
def no_vllm() -> dict[str, Any]:
    pytest.skip("vLLM has an environment of its own: make test-vllm")


@pytest.fixture
def a_clip(tmp_path: Path) -> dict[str, Any]:
    make_clip(tmp_path)
    return {"model": str(tmp_path), "device": "cpu"}


@pytest.fixture
def a_policy(tmp_path: Path) -> dict[str, Any]:
    config = PointerConfig(d_model=4, hidden_dim=4, num_layers=1, num_heads=1, history="static")
    save_selector(tmp_path, PointerSelector.seeded(config, seed=0))
    return {"path": str(tmp_path)}


@pytest.fixture
def two_workers() -> dict[str, Any]:
    pytest.importorskip("ray")
    return {"num_workers": 2}


@pytest.fixture
def a_vote() -> dict[str, Any]:
    return {"arm": "random"}


def _images(folder: Path) -> list[str]:
    folder.mkdir()
    for example in tiny_dataset().pool:
        (folder / f"{example.row}.png").write_bytes(example.image.data)  # type: ignore[attr-defined]
    return [f"{example.row}.png" for example in tiny_dataset().pool]


@pytest.fixture
def json_lines(tmp_path: Path) -> dict[str, Any]:
    names = _images(tmp_path / "images")
    lines = [
        json.dumps({"image": name, "question": each.question, "answers": each.answers})
        for name, each in zip(names, tiny_dataset().pool, strict=True)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    return {"path": str(tmp_path / "data.jsonl"), "images": str(tmp_path / "images")}


@pytest.fixture
def parquet_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    pool = tiny_dataset().pool
    columns = {
        "image": [{"bytes": each.image.data, "path": None} for each in pool],  # type: ignore[attr-defined]
        "question": [each.question for each in pool],
        "answers": [list(each.answers) for each in pool],
        "question_id": [each.question_id for each in pool],
    }
    made = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    made.to_parquet(str(tmp_path / "data" / "validation-0.parquet"))
    return {"path": str(tmp_path / "data")}


@pytest.fixture
def vqa_files(tmp_path: Path) -> dict[str, Any]:
    _images(tmp_path / "images")
    pool = tiny_dataset().pool
    asked = [
        {"image_id": each.row, "question": each.question, "question_id": each.question_id}
        for each in pool
    ]
    answered = [
        {
            "image_id": each.row,
            "question_id": each.question_id,
            "answers": [{"answer": answer} for answer in each.answers],
        }
        for each in pool
    ]
    questions = {"data_subtype": "train2014", "questions": asked}
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    (tmp_path / "annotations.json").write_text(json.dumps({"annotations": answered}))
    return {
        "root": str(tmp_path),
        "questions": "questions.json",
        "annotations": "annotations.json",
        "images": "images",
        "image_name": "{image_id}.png",
    }


@pytest.fixture
def vl_icl_files(tmp_path: Path) -> dict[str, Any]:
    write_vl_icl(tmp_path, ["operator_induction"])
    return {"root": str(tmp_path), "task": "operator_induction"}
