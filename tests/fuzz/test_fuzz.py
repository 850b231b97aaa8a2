"""Spoiled files, each through everything that reads its kind: success, or an error of one line.

`make test-faults` spoils 10,000 (POINTER_RL_FUZZ); the default suite a small share.
"""

from __future__ import annotations

import copy
import io
import json
import os
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import ODD, Valid, as_json, documents, spoiled
from PIL import Image

import pointer_rl_schemas
from pointer_rl.datasets.embeddings import Embeddings, load_embeddings, save_embeddings
from pointer_rl.datasets.images import ImageFile
from pointer_rl.errors import InputError, PointerRLError
from pointer_rl.json_stream import parse_json
from pointer_rl.local import chat
from pointer_rl.records.beam_dataset import BeamDataset, BeamDatasetWithEmbedding
from pointer_rl.records.convert import convert_file
from pointer_rl.records.layouts import detect_layout
from pointer_rl.records.merge import merge_files
from pointer_rl.records.rescore import rescore_file
from pointer_rl.selectors.bundle import load_bundle, read_query_ids
from pointer_rl.selectors.checkpoints import load_selector
from pointer_rl.selectors.options import PointerConfig
from pointer_rl.selectors.pointer import PointerSelector
from pointer_rl.session.cache import ResponseCache
from pointer_rl.session.journal import Journal
from pointer_rl.train.groups import Groups
from pointer_rl.train.sources import open_source
from pointer_rl.train.state import TrainState, load_state, new_optimizer, save_state
from pointer_rl.types import Response
from pointer_rl.validate import ValidationConfig, validate_file

FILES = int(os.environ.get("POINTER_RL_FUZZ", "100"))
SECONDS = 10
VERSIONS = Path(__file__).parents[1] / "data" / "versions"
counts: dict[str, Counter[str]] = {}
slowest: dict[str, float] = {}


def files(percent: float) -> Callable[[Any], Any]:
    """So many of the spoiled files are of this kind. The campaign's differ from run to run."""
    return settings(
        max_examples=max(3, round(FILES * percent / 100)),
        derandomize="POINTER_RL_FUZZ" not in os.environ,
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )


@pytest.fixture(scope="module", autouse=True)
def _table(request):
    """Print the campaign's table at its end."""
    yield
    if "POINTER_RL_FUZZ" not in os.environ:
        return
    lines = [f"\n{'':24}{'files':>8}{'readings':>10}{'accepted':>10}{'refused':>9}{'slowest':>9}"]
    for kind, count in counts.items():
        lines.append(
            f"{kind:24}{count['files']:8,}{count['accepted'] + count['refused']:10,}"
            f"{count['accepted']:10,}{count['refused']:9,}{slowest[kind]:7.1f} s"
        )
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))


def survive(kind: str, *readers: Callable[[], object]) -> list[Any]:
    """What each returns, or its error, which must be ours, of one line, and soon."""
    count = counts.setdefault(kind, Counter())
    count["files"] += 1
    results = []
    for read in readers:
        began = time.process_time()
        try:
            results.append(read())
            count["accepted"] += 1
        except PointerRLError as error:
            text = str(error)
            assert text, "an error says something"
            assert not any(each < " " or "\x7f" <= each < "\xa0" for each in text), repr(text)
            count["refused"] += 1
            results.append(error)
        took = time.process_time() - began
        slowest[kind] = max(slowest.get(kind, 0.0), took)
        assert took < SECONDS, f"{took:.0f} s"
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# --- RL data and beam data --------------------------------------------------------------------


def _valid() -> list[dict[str, Any]]:
    found = []
    for name in ("1.0/generated", "1.0/failed", "1.0/beams", "older/guide", "older/v4"):
        found.append(json.loads((VERSIONS / f"{name}.json").read_text()))
    for name in ("older/k64", "older/lever_beams"):
        found.append(json.loads((VERSIONS / f"{name}.json").read_text()))
    # Two queries each: a mutation then hits what matters.
    small = []
    for document in found:
        keys = [key for key in document if not key.startswith("_")][:2]
        small.append({key: document[key] for key in ("_meta", *keys) if key in document})
        for key in keys:
            for field in ("pointer_candidates", "beams"):
                if isinstance(document[key].get(field), list):
                    document[key][field] = document[key][field][:3]
    return small


VALID = Valid(_valid())
VECTORS = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))


def read_all(kind: str, path: Path, folder: Path, suffix: str) -> list[Any]:
    """A file of records through every command that reads one."""
    other = folder / "other.json"
    other.write_bytes(as_json(VALID[0]))
    output = folder / f"output{suffix}"

    def train() -> object:
        queries, pool = folder / "queries.safetensors", folder / "pool.safetensors"
        if not pool.exists():
            save_embeddings(pool, VECTORS, [str(row) for row in range(len(VECTORS))])
            save_file = safetensors.torch.save_file
            save_file({"embeddings": VECTORS}, queries)
        source = open_source(path, None, queries, pool)
        both = Embeddings(None, VECTORS, None)
        BeamDatasetWithEmbedding(path, both, both)
        return Groups.of(
            BeamDatasetWithEmbedding(path, source.queries, source.pool), None, per_query_pool=True
        )

    return survive(
        kind,
        lambda: validate_file(path, ValidationConfig(max_findings=100_000)),
        lambda: convert_file(path, output, overwrite=True),
        lambda: rescore_file(path, output, metric="exact", overwrite=True),
        lambda: rescore_file(path, output, overwrite=True),
        lambda: merge_files([path], output, overwrite=True),
        lambda: merge_files([path, other], output, overwrite=True),
        lambda: BeamDataset(path),
        lambda: BeamDataset(path, "legacy"),
        train,
    )


suffixes = st.sampled_from([".json", ".jsonl", ".parquet"])


@files(35)
@given(documents(VALID), suffixes)
def test_json(folder, document, suffix):
    path = folder / "data.json"
    data = as_json(document)
    path.write_bytes(data)
    report = read_all("RL and beam data", path, folder, suffix)[0]
    _agrees(report, data)


@files(10)
@given(documents(VALID).flatmap(lambda each: spoiled(as_json(each), least=1)), suffixes)
def test_damaged_json(folder, data, suffix):
    path = folder / "data.json"
    path.write_bytes(data)
    report = read_all("the same, damaged", path, folder, suffix)[0]
    _agrees(report, data)


@files(10)
@given(documents(VALID).flatmap(lambda each: spoiled(as_json(each, lines=True))), suffixes)
def test_json_lines(folder, data, suffix):
    path = folder / "data.jsonl"
    path.write_bytes(data)
    read_all(".jsonl", path, folder, suffix)


def _definition(schema: str, name: str) -> Any:
    whole = pointer_rl_schemas.load(schema)
    definition = {"$defs": whole["$defs"], "$ref": f"#/$defs/{name}"}
    return jsonschema.Draft202012Validator(definition)


PLAIN = {
    "record": _definition("pointer_candidates", "record"),
    "meta": _definition("pointer_candidates", "meta"),
    "beams": _definition("beams", "record"),
}


def _agrees(report: Any, data: bytes) -> None:
    """Where only the schema speaks, `validate` and plain jsonschema have the same verdict."""
    if isinstance(report, InputError):
        return
    document = json.loads(data)
    try:
        parse_json(data)
    except ValueError:  # NaN: a finding of another rule
        return
    rules = [finding.rule for finding in report.findings]
    if "duplicate-key" in rules:
        return
    is_valid = True
    for key, value in document.items():
        layout = detect_layout(value)
        if key == "_meta" or (key and not key.startswith("_") and layout != "beam"):
            name = "meta" if key == "_meta" else "beams" if layout == "beams" else "record"
            is_valid &= PLAIN[name].is_valid(value)
    ours = [each for each in rules if each.startswith("schema.") or each.endswith("-fields")]
    assert is_valid == (not ours and "row-repeated" not in rules), (is_valid, rules)


# --- Parquet ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(folder):
    """Valid Parquet files, as tables."""
    parquet = pytest.importorskip("pyarrow.parquet")
    found = []
    for name in ("generated.json", "beams.json"):
        convert_file(VERSIONS / "1.0" / name, folder / "valid.parquet", overwrite=True)
        found.append(parquet.read_table(folder / "valid.parquet")[:3])
    return found


@st.composite
def odd_tables(draw: Any, table: Any) -> Any:
    """A table with a column renamed, dropped, of another type or of other values."""
    import pyarrow as arrow

    for _ in range(draw(st.integers(0, 2))):
        column = draw(st.integers(0, table.num_columns - 1))
        name = table.column_names[column]
        match draw(st.sampled_from(["drop", "rename", "odd", "extra", "meta"])):
            case "drop" if table.num_columns > 1:
                table = table.remove_column(column)
            case "rename":
                new = draw(st.sampled_from(["query_id", "extra", "beams", "x", "_keys", "pool"]))
                names = list(table.column_names)
                names[column] = new
                table = table.rename_columns(names)
            case "odd":
                values = draw(st.sampled_from([ODD[0], 1, 1.5, "x", b"\xff", [1], [[1]], {"a": 1}]))
                column_ = arrow.array([values] * table.num_rows)
                table = table.set_column(column, name, column_)
            case "extra" if table.column_names.count("extra") == 1:
                odd = draw(st.sampled_from([each for each in ODD if not isinstance(each, str)]))
                texts = [json.dumps(odd), json.dumps({"query": odd}), "{", "\n"]
                texts.append(json.dumps({"pointer_candidates": {"0": odd}, "pool": odd}))
                column_ = arrow.array([draw(st.sampled_from(texts))] * table.num_rows)
                place = table.column_names.index("extra")
                table = table.set_column(place, "extra", column_)
            case "meta":
                odd = draw(st.sampled_from(ODD))
                values = [{"_meta": odd}, odd, {"_x": odd}, {"_meta": {"shots": odd}}, {"q": 1}]
                text = json.dumps(draw(st.sampled_from(values)))
                table = table.replace_schema_metadata({"pointer_rl": text})
    return table


@files(12)
@given(data=st.data())
def test_parquet(folder, tables, data):
    import pyarrow.parquet

    table = data.draw(odd_tables(data.draw(st.sampled_from(tables))))
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(
        table, buffer, compression=data.draw(st.sampled_from(["none", "zstd"]))
    )
    path = folder / "data.parquet"
    path.write_bytes(data.draw(spoiled(buffer.getvalue())))
    read_all("Parquet", path, folder, data.draw(suffixes))


# --- embeddings -------------------------------------------------------------------------------

ABOUT = {
    "encoder": "clip x",
    "examples": "0" * 64,
    "ids": list("abcd"),
    "encoder_plugin": {"name": "clip", "options": {"mode": "both"}},
}
FOUR = VECTORS[:4].contiguous()


def safetensors_file(header: Any, tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def safetensors_header(data: bytes) -> tuple[Any, bytes]:
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


@files(8)
@given(
    documents(Valid([ABOUT])),
    documents(Valid([safetensors_header(safetensors.torch.save({"e": FOUR}))[0]])),
    st.data(),
)
def test_safetensors_embeddings(folder, about, header, data):
    if isinstance(header, dict) and data.draw(st.booleans()):
        header["__metadata__"] = {"pointer_rl_embeddings": json.dumps(about)}
    path = folder / "e.safetensors"
    path.write_bytes(data.draw(spoiled(safetensors_file(header, FOUR.numpy().tobytes()))))
    survive("embeddings", lambda: load_embeddings(path))


@files(4)
@given(
    st.sampled_from(["<f4", ">f8", "<f2", "O", "<U4", "<i8", "|V8", "<c16", [("a", "<f4")], 5]),
    st.sampled_from([True, False, 1, None]),
    st.sampled_from([(4, 3), (10**12, 3), (-1, 3), (2**62, 2**62), (0, 3), (12,), (), 12, "a"]),
    st.data(),
)
def test_npy_embeddings(folder, kind, order, shape, data):
    header = f"{ {'descr': kind, 'fortran_order': order, 'shape': shape} }\n".encode("latin1")
    header = data.draw(spoiled(header))
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(48)
    path = folder / "e.npy"
    path.write_bytes(data.draw(spoiled(content)))
    survive("embeddings", lambda: load_embeddings(path))


TENSORS: list[Callable[[], object]] = [
    lambda: FOUR,
    lambda: {"e": FOUR, "epoch": 3},
    lambda: FOUR.to_sparse(),
    lambda: FOUR.to("meta"),
    lambda: torch.zeros(1).expand(10**6, 10**6),
    lambda: FOUR.as_strided((10**9, 3), (0, 1)),
    lambda: FOUR.to(torch.complex64),
    lambda: FOUR.to(torch.float8_e4m3fn),
    lambda: torch.nn.Parameter(FOUR.bfloat16()),
    lambda: [FOUR],
    lambda: torch.quantize_per_tensor(FOUR, 0.1, 0, torch.qint8),
    lambda: FOUR * torch.nan,
    lambda: torch.zeros(0, 3),
    lambda: FOUR.conj().t(),
]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@files(4)
@given(st.sampled_from(TENSORS), st.booleans(), st.data())
def test_torch_embeddings(folder, make, zipped, data):
    buffer = io.BytesIO()
    torch.save(make(), buffer, _use_new_zipfile_serialization=zipped)
    path = folder / "e.pt"
    path.write_bytes(data.draw(spoiled(buffer.getvalue())))
    survive("embeddings", lambda: load_embeddings(path))
    survive("checkpoints", lambda: load_selector(path))


# --- checkpoints, bundles ---------------------------------------------------------------------

POLICIES = VERSIONS / "policies"


@files(8)
@given(st.sampled_from(sorted((POLICIES / "bundle").iterdir())), st.data())
def test_bundles(folder, path, data):
    bundle = folder / "bundle"
    bundle.mkdir(exist_ok=True)
    for each in (POLICIES / "bundle").iterdir():
        (bundle / each.name).write_bytes(each.read_bytes())
    content = path.read_bytes()
    if path.suffix == ".json" and data.draw(st.booleans()):
        content = as_json(data.draw(documents(Valid([json.loads(content)]))))
    elif path.suffix == ".safetensors":
        header, tensors = safetensors_header(content)
        content = safetensors_file(data.draw(documents(Valid([header]))), tensors)
    (bundle / path.name).write_bytes(data.draw(spoiled(content)))
    survive(
        "bundles and checkpoints",
        lambda: load_bundle(bundle),
        lambda: read_query_ids(bundle),
        lambda: load_selector(bundle),
        lambda: load_selector(bundle / "model.safetensors", d_model=4),
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@files(2)
@given(spoiled((POLICIES / "lever_plus.ckpt").read_bytes()))
def test_foreign_checkpoints(folder, data):
    path = folder / "foreign.ckpt"
    path.write_bytes(data)
    survive("bundles and checkpoints", lambda: load_selector(path))


@pytest.fixture(scope="module")
def training(folder):
    """A training run's checkpoint."""
    selector = PointerSelector(PointerConfig(d_model=4, hidden_dim=4, num_layers=1, num_heads=1))
    optimizer = new_optimizer(selector)
    sum(each.sum() for each in selector.parameters()).backward()
    optimizer.step()
    policies = {"policy": selector, "best": copy.deepcopy(selector)}
    path = folder / "checkpoint.safetensors"
    save_state(path, TrainState(policies, optimizer, {"seed": 0}, 1, 2, [{"rce": 0.5}]))
    return path.read_bytes()


@files(2)
@given(data=st.data())
def test_training_checkpoints(folder, training, data):
    header, tensors = safetensors_header(training)
    ours = header["__metadata__"]
    if data.draw(st.booleans()):
        key = next(iter(ours))
        ours[key] = json.dumps(data.draw(documents(Valid([json.loads(ours[key])]))))
    else:
        header = data.draw(documents(Valid([header])))
    path = folder / "damaged.safetensors"
    path.write_bytes(data.draw(spoiled(safetensors_file(header, tensors))))
    survive("training checkpoints", lambda: load_state(path, torch.device("cpu")))


# --- journals and stores ----------------------------------------------------------------------


@files(3)
@given(data=st.data())
def test_journals(folder, data):
    meta = VALID[0]["_meta"]
    records = {key: record for key, record in VALID[0].items() if key != "_meta"}
    output = folder / "run.json"
    output.unlink(missing_ok=True)
    with Journal(output, meta, list(records), overwrite=True) as begun:
        begun.append(dict(enumerate(records.values())))
    lines = begun.path.read_bytes().splitlines(keepends=True)
    if data.draw(st.booleans()):
        which = data.draw(st.integers(0, len(lines) - 1))
        line = data.draw(documents(Valid([json.loads(lines[which])])))
        lines[which] = as_json(line) + b"\n"
    begun.path.write_bytes(data.draw(spoiled(b"".join(lines))))

    def resume() -> None:
        with Journal(output, meta, list(records)) as run:
            list(run.records())
            run.finish()

    survive("journals", resume)


@files(1)
@given(data=st.data())
def test_stores(folder, data):
    path = folder / "responses.sqlite"
    for each in folder.glob("responses.sqlite*"):
        each.unlink()
    cache = ResponseCache(path)
    keys = [bytes([each]) * 32 for each in range(20)]
    cache.put("fingerprint", [(key, Response("text", (-1.0,))) for key in keys])
    cache.close()
    path.write_bytes(data.draw(spoiled(path.read_bytes(), least=1)))

    def read() -> None:
        store = ResponseCache(path)
        try:
            store.get(keys)
            store.summaries()
            list(store.rows())
        finally:
            store.close()

    survive("stores", read)


# --- images and chat templates ----------------------------------------------------------------


def _images() -> list[tuple[str, bytes]]:
    found = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        Image.linear_gradient("L").resize((40, 30)).save(buffer, kind)
        found.append((kind.lower(), buffer.getvalue()))
    return found


IMAGES = _images()


@pytest.mark.filterwarnings("ignore::UserWarning")
@files(5)
@given(st.sampled_from(IMAGES).flatmap(lambda each: st.tuples(st.just(each[0]), spoiled(each[1]))))
def test_images(folder, image):
    path = folder / f"image.{image[0]}"
    path.write_bytes(image[1])
    survive("images", lambda: ImageFile(path).open())


TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
INSERTS = (
    *("{{ 'a' * 10**10 }}", "{{ 'a'|center(10**10) }}", "{{ messages[9].x.y }}", "{{ 1 / 0 }}"),
    *("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{"),
    *("{{ ''.__class__.__mro__ }}", "{% include 'x' %}", "{% macro f() %}{{ f() }}{% endmacro %}"),
    *("{% set messages = messages * 10**9 %}", "{{ cycler.__init__.__globals__ }}", "\ud800"),
)


class Tokenizer:
    """As tokenizers of transformers render a chat."""

    def apply_chat_template(self, messages, chat_template, **options):
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment()
        return environment.from_string(chat_template).render(messages=messages, **options)


@files(0.5)
@given(st.sampled_from(INSERTS), st.integers(0, len(TEMPLATE)), st.data())
def test_chat_templates(insert, place, data):
    template = TEMPLATE[:place] + insert + TEMPLATE[place:]
    cut = data.draw(st.integers(0, len(template)))
    template = data.draw(st.sampled_from([template, template[:cut], template[cut:]]))
    messages = [{"role": "user", "content": [chat.text_part("a"), {"type": "image"}]}]
    survive("chat templates", lambda: chat.render_chat(Tokenizer(), messages, template))


def test_the_files_to_begin_with_are_valid(folder):
    np.save(folder / "valid.npy", FOUR.numpy())
    assert torch.equal(load_embeddings(folder / "valid.npy").vectors, FOUR)
    for document in VALID:
        path = folder / "valid.json"
        path.write_bytes(as_json(document))
        results = read_all("valid", path, folder, ".json")
        assert not isinstance(results[0], Exception), results[0]
        assert not isinstance(results[1], Exception), results[1]
    counts.pop("valid")
