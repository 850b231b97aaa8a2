"""`pointer-rl select`, with an encoder that looks at one pixel."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

import PIL.Image
import pytest
import torch
from toy_selectors import StoppingSelector, installed

from pointer_rl.datasets.embeddings import load_embeddings, save_embeddings
from pointer_rl.datasets.identity import ExampleHasher
from pointer_rl.hookspecs import hookimpl
from pointer_rl.registry import registry
from pointer_rl.selectors import PointerConfig, PointerSelector
from pointer_rl.selectors.bundle import BundleInfo, EncoderInfo, load_bundle, save_bundle
from pointer_rl.selectors.selecting import Policy
from pointer_rl.session import resolve
from pointer_rl.types import Companions

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class PixelOptions:
    """As a user's own encoder has them."""

    model: str = "here"
    """Where the model lies: does not decide an embedding."""
    scales: tuple[float, ...] = (1.0, 0.5)
    """Decide it."""
    device: str = "auto"
    """Of this machine."""


class Pixel:
    """Red of the first pixel and length of the question, at two scales."""

    dim = 4
    made: list[PixelOptions]

    def __init__(self, options: PixelOptions) -> None:
        assert isinstance(options.scales, tuple)
        self.made.append(options)
        self.scales = options.scales
        self.fingerprint = f"pixel {options.scales}"

    def encode(self, examples):
        rows = [(each.image.open().getpixel((0, 0))[0], len(each.question)) for each in examples]
        vectors = torch.tensor(rows, dtype=torch.float32)
        return torch.cat([torch.sin(vectors * scale) for scale in self.scales], dim=1)


@pytest.fixture
def made(monkeypatch) -> Iterator[list[PixelOptions]]:
    """Registers the encoder `pixel` beside the built-in plugins: the options of each made."""
    Pixel.made = []
    module = ModuleType("pixel_plugin")

    def pointer_rl_register_encoders(register):
        aliases = {"coarse": {"scales": (0.5,)}}
        register("pixel", Pixel, options=PixelOptions, summary="one pixel", aliases=aliases)

    module.pointer_rl_register_encoders = hookimpl(pointer_rl_register_encoders)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    points = [
        *entry_points(group="pointer_rl"),
        EntryPoint("pixel", module.__name__, "pointer_rl"),
    ]
    monkeypatch.setattr("pointer_rl.registry.entry_points", lambda group: points)
    monkeypatch.setenv("POINTER_RL_PLUGINS", "pixel")
    registry.cache_clear()
    yield Pixel.made
    registry.cache_clear()


class Place:
    """A folder with eight images, questions, embeddings and a bundle; commands run in it."""

    def __init__(self, folder: Path, cli) -> None:
        self.folder, self.cli = folder, cli
        lines = [{"id": f"e{i}", "image": f"{i}.png", "question": "?" * i} for i in range(8)]
        for i in range(8):
            PIL.Image.new("RGB", (2, 2), (i, 0, 0)).save(folder / f"{i}.png")
        self.write("pool.jsonl", [{**line, "answer": "yes"} for line in lines])
        self.write("new.jsonl", lines[:3])
        PIL.Image.new("RGB", (2, 2), (1, 0, 0)).save(folder / "new.png")
        self.embed("pool.jsonl", "pool", "cand_emb.safetensors")
        self.embed("new.jsonl", "queries", "query_emb.safetensors", "unanswered=yes")
        self.bundle("policy", "cand_emb.safetensors")

    def write(self, name: str, lines: list[dict[str, object]]) -> None:
        (self.folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))

    def embed(self, data: str, split: str, output: str, *options: str) -> None:
        more = [each for option in options for each in ("--dataset-opt", option)]
        done = self.cli(
            *("embed", "--dataset", "jsonl", "--dataset-opt", f"path={data}", *more),
            *("--encoder", "pixel", "--split", split, "--output-path", output),
        )
        assert done.exit_code == 0, done.output

    def bundle(self, folder: str, pool: str, kind: type[PointerSelector] = PointerSelector) -> None:
        """An untrained policy over the pool of that embeddings file."""
        embeddings = load_embeddings(self.folder / pool)
        config = PointerConfig(d_model=4, hidden_dim=4, num_layers=1, num_heads=1, history="gated")
        selector = kind.seeded(config, 0)
        if isinstance(selector, StoppingSelector):
            with torch.no_grad():
                selector.stop.weight.mul_(9)
        save_bundle(
            self.folder / folder,
            selector,
            embeddings.vectors,
            embeddings.ids or [f"row{row}" for row in range(len(embeddings.vectors))],
            BundleInfo(shots=2, encoder=EncoderInfo.of(embeddings), dataset={"name": "pool"}),
            ["q"],
        )

    def select(self, *args: str) -> list[dict[str, object]]:
        done = self.cli("select", *args)
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]

    def refused(self, *args: str) -> str:
        """The line that says why."""
        done = self.cli("select", *args)
        assert done.exit_code == 2, done.output
        assert done.stdout == ""
        [line] = done.stderr.splitlines()
        return line


@pytest.fixture
def place(tmp_path, made, cli, monkeypatch) -> Place:
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path, cli)
    made.clear()
    return place


def test_questions_in_a_file_and_their_embeddings_choose_the_same(place, made):
    by_file = place.select("policy", "--queries", "new.jsonl")
    assert [line["query_id"] for line in by_file] == ["e0", "e1", "e2"]
    for line in by_file:
        assert list(line) == ["query_id", "pointer", "demonstrations", "logprob"]
        assert line["demonstrations"] == [f"e{row}" for row in line["pointer"]]
        assert len(line["pointer"]) == 2
        assert line["logprob"] < 0
    assert len(made) == 1
    assert place.select("policy", "--query-emb", "query_emb.safetensors") == by_file
    assert len(made) == 1


def test_one_question_chooses_as_it_does_in_a_file(place):
    [alone] = place.select("policy", "--question", "?", "--image", "new.png")
    [_, listed, _] = place.select("policy", "--queries", "new.jsonl")
    assert alone["query_id"] == "0"
    assert alone["demonstrations"] == listed["demonstrations"]
    assert alone["logprob"] == pytest.approx(listed["logprob"], abs=1e-5)


def test_it_chooses_what_the_policy_does(place):
    chosen = Policy.load("policy").select(load_embeddings(Path("query_emb.safetensors")), 5)
    printed = place.select("policy", "--query-emb", "query_emb.safetensors", "--shots", "5")
    assert [tuple(line["pointer"]) for line in printed] == [each.rows for each in chosen]


EMB = ("--query-emb", "query_emb.safetensors")
DATASET = ("--dataset", "jsonl", "--dataset-opt", "path=pool.jsonl")


def test_on_a_terminal_it_says_what_it_selected(place, terminal):
    chosen = place.select("policy", "--queries", "new.jsonl", "--json")[2]
    done = place.cli("select", "policy", "--queries", "new.jsonl", *DATASET)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    lines = done.stdout.split("\n\n")[2].splitlines()
    assert lines == [
        "query e2: ??",
        "  2.png",
        f"  log-probability {chosen['logprob']:.4g}",
        *(
            line
            for number, row in enumerate(chosen["pointer"], 1)
            for line in (f"  {number}. row {row} (e{row}): {'?' * row} → yes", f"     {row}.png")
        ),
    ]


def test_ids_alone_are_said_if_the_pool_is_not_known(place, terminal):
    [chosen, *_] = place.select("policy", *EMB, "--json")
    done = place.cli("select", "policy", *EMB)
    assert done.exit_code == 0, done.output
    why = "pointer-rl: demonstrations are shown by id alone: unknown dataset 'pool'"
    assert done.stderr.startswith(why)
    first = chosen["pointer"][0]
    assert done.stdout.splitlines()[:3] == [
        "query e0",
        f"  log-probability {chosen['logprob']:.4g}",
        f"  1. row {first} (e{first})",
    ]
    lines = (place.folder / "pool.jsonl").read_text().splitlines()
    (place.folder / "pool.jsonl").write_text("\n".join(lines[::-1]))
    error = place.refused("policy", *EMB, *DATASET)
    assert "policy: the dataset's pool (8 examples) has other ids than the recorded one" in error


def test_a_policy_that_can_stop_may_choose_fewer_or_none(place):
    with installed():
        place.bundle("stopping", "cand_emb.safetensors", StoppingSelector)
        lines = place.select("stopping", "--query-emb", "cand_emb.safetensors", "--shots", "4")
    assert [] in [line["pointer"] for line in lines]
    assert len({len(line["pointer"]) for line in lines}) > 1
    for line in lines:
        assert line["demonstrations"] == [f"e{row}" for row in line["pointer"]]
        assert line["logprob"] < 0


def test_embed_says_what_embeds_and_the_bundle_keeps_it(place):
    options = {"model": "here", "scales": [1.0, 0.5]}  # not its device, which is this machine's
    assert load_bundle("policy").info.encoder == EncoderInfo(
        fingerprint="pixel (1.0, 0.5)", name="pixel", options=options
    )
    for name in ("cand_emb.safetensors", "query_emb.safetensors"):
        plugin = load_embeddings(Path(name)).encoder_plugin
        assert plugin == {"name": "pixel", "options": options}


def test_what_embeds_a_datasets_companions_is_kept_too(place, monkeypatch, tmp_path):
    monkeypatch.setenv("POINTER_RL_CACHE", str(tmp_path / "cache"))
    plugin = resolve.registry().configure("dataset", "jsonl", {"path": "pool.jsonl"})
    dataset = dataclasses.replace(plugin.create(), companions=Companions("none", "pixel"))
    resolve.dataset_embeddings(dataset, dataset.queries[:2], ExampleHasher())
    made = [load_embeddings(path) for path in (tmp_path / "cache" / "embeddings").iterdir()]
    assert [each.encoder_plugin and each.encoder_plugin["name"] for each in made] == ["pixel"]


def test_an_option_of_the_encoder_replaces_the_bundles(place, made):
    args = ("policy", "--queries", "new.jsonl", "--device", "cpu")
    place.select(*args)
    place.select(*args, "--encoder-opt", "model=there", "--encoder-opt", "device=cuda:7")
    assert made == [PixelOptions(device="cpu"), PixelOptions(model="there", device="cuda:7")]


def test_an_encoder_may_be_named_to_check_it(place):
    args = ("policy", "--queries", "new.jsonl")
    assert place.select(*args, "--encoder", "pixel") == place.select(*args)
    error = place.refused(*args, "--encoder", "coarse")
    assert "policy: a bundle for another encoder (pixel (1.0, 0.5))" in error
    assert "these embeddings come from pixel (0.5,)" in error
    error = place.refused(*args, "--encoder-opt", "scales=1,2")
    assert "these embeddings come from pixel (1.0, 2.0)" in error


def test_a_bundle_that_knows_no_encoder_takes_a_named_one_or_embeddings(place):
    vectors = load_embeddings(Path("cand_emb.safetensors")).vectors
    torch.save(vectors, "plain.pt")
    place.bundle("plain", "plain.pt")
    expected = [line["pointer"] for line in place.select("policy", "--queries", "new.jsonl")]
    for args in (
        ("--query-emb", "query_emb.safetensors"),
        ("--queries", "new.jsonl", "--encoder", "pixel"),
    ):
        chosen = place.select("plain", *args)
        assert [line["pointer"] for line in chosen] == expected
        assert chosen[0]["demonstrations"] == [f"row{row}" for row in expected[0]]
    error = place.refused("plain", "--queries", "new.jsonl")
    assert "does not name the encoder of its embeddings (unknown): name it (--encoder)" in error


@pytest.mark.parametrize(
    ("args", "saying"),
    [
        (("policy",), "give either --question and --image, or --queries, or --query-emb"),
        (("policy", "--question", "?"), "give either --question and --image"),
        (("policy", "--question", "", "--image", "new.png"), "--question is empty"),
        (("policy", "--image", "new.png"), "give either --question and --image"),
        (("policy", "--queries", "new.jsonl", *EMB), "give either"),
        (("policy", *EMB, "--encoder", "pixel"), "--query-emb are embedded already"),
        (("policy", *EMB, "--encoder-opt", "model=a"), "--query-emb are embedded already"),
        (("nowhere", *EMB), "nowhere: no such folder"),
        ((".", *EMB), "not a policy bundle"),
        (("new.png", *EMB), "new.png: no such folder"),
        (("policy", *EMB, "--shots", "9"), "9 shots need a pool of at least as many examples"),
        (("policy", *EMB, "--device", "tpu"), "unknown device 'tpu'"),
        (("policy", "--query-emb", "none.pt"), "none.pt: no such file"),
        (("policy", "--query-emb", "other.safetensors"), "a bundle for another encoder"),
        (("policy", "--query-emb", "wide.safetensors"), "5 values a row, the selector takes 4"),
        (("policy", "--queries", "none.jsonl"), "none.jsonl: cannot read it"),
        (("policy", "--queries", "query_emb.safetensors"), "line 1: not JSON"),
        (("policy", "--queries", "new.jsonl", "--encoder", "pxel"), "did you mean 'pixel'?"),
        (("policy", "--queries", "new.jsonl", "--encoder-opt", "mode=a"), "no option 'mode'"),
        (("policy", "--question", "?", "--image", "no.png"), "no.png: cannot read the image"),
        (("policy", "--question", "?", "--image", "new.jsonl"), "not a readable image (no format"),
    ],
)
def test_what_cannot_be_is_one_line(place, args, saying):
    vectors = torch.ones(2, 5)
    save_embeddings(Path("other.safetensors"), vectors[:, :4], ("a", "b"), "another")
    save_embeddings(Path("wide.safetensors"), vectors, ("a", "b"), "pixel (1.0, 0.5)")
    error = place.refused(*args)
    assert error.startswith("pointer-rl: error: ")
    assert saying in error


def test_the_how_tos_python_runs(place, capsys):
    page = (ROOT / "docs/how-to/use-a-policy.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], names)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["e0", "e1", "e2"]
    assert names["chosen"].query_id == "new"
    assert "e3" not in names["chosen"].ids


def test_the_how_tos_commands_run(place):
    page = (ROOT / "docs/how-to/use-a-policy.md").read_text(encoding="utf-8")
    commands = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)[0].splitlines()
    for command in commands:
        program, name, *args = shlex.split(command)
        assert (program, name) == ("pointer-rl", "select")
        place.select(*args)
    assert len(commands) == 3


def test_the_folder_is_a_checkpoint_for_generate(world, tmp_path):
    embeddings = load_embeddings(world.cand_emb)
    config = PointerConfig(d_model=6, hidden_dim=4, num_layers=1, num_heads=1, history="gated")
    save_bundle(
        tmp_path / "policy",
        PointerSelector.seeded(config, 0),
        embeddings.vectors,
        embeddings.ids,
        BundleInfo(shots=2, encoder=EncoderInfo.of(embeddings), dataset={}),
        [],
    )
    done = world.generate("--num-beams", "1", "--sft-ckpt", os.fspath(tmp_path / "policy"))
    assert done.exit_code == 0, done.output
    chosen = Policy.load(tmp_path / "policy").select(load_embeddings(world.query_emb))
    policy = load_bundle(tmp_path / "policy").policy
    assert json.loads(world.output.read_text())["_meta"]["policy"]["sha256"] == policy.hash
    assert len(chosen) == 8
