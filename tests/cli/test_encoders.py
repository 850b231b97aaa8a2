"""Commands that embed by themselves: where embeddings come from, and where they are kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import pytest
import torch
from fakes import CopyBackend

from pointer_rl.datasets.embeddings import load_embeddings, save_embeddings
from pointer_rl.datasets.identity import ExampleHasher
from pointer_rl.files import embeddings_folder
from pointer_rl.records.formats import read_meta
from pointer_rl.registry import registry
from pointer_rl.selectors.bundle import EncoderInfo, load_bundle
from pointer_rl.session.observer import Observer
from pointer_rl.session.resolve import dataset_embeddings
from pointer_rl.types import Candidate

from .conftest import World, install_plugin, run_cli


@dataclass(frozen=True, kw_only=True)
class PixelOptions:
    scale: float = 1.0
    """Decides an embedding."""
    model: str = "here"
    """Where it lies: does not."""
    device: str = "auto"


class Pixel:
    """Looks at the first pixel and the question."""

    dim = 4
    encoded: list[str]

    def __init__(self, options) -> None:
        self.scale = options.scale
        self.fingerprint = f"pixel {options.scale}"

    def encode(self, examples):
        self.encoded += [each.id for each in examples]
        rows = [(each.image.open().getpixel((0, 0))[0], each.row) for each in examples]
        vectors = torch.tensor(rows, dtype=torch.float32) * self.scale
        return torch.cat([vectors.sin(), vectors.cos()], dim=1)


class Neighbours:
    """The next allowed rows; uses neither policy nor embeddings."""

    needs_embeddings = False

    def propose(self, policy, queries, pool, rngs):
        rows = (each.nonzero()[: queries.shots, 0].tolist() for each in queries.allowed)
        return [[Candidate(tuple(each), "mine")] for each in rows]


class Silent(Neighbours):
    needs_embeddings = True


@pytest.fixture
def place(monkeypatch, tmp_path):
    monkeypatch.setenv("POINTER_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Pixel.encoded = []

    def generators(register):
        register("mine", Neighbours, summary="neighbours")
        register("silent", Silent, summary="neighbours")

    install_plugin(
        monkeypatch,
        pointer_rl_register_backends=lambda register: register("copy", CopyBackend, summary="c"),
        pointer_rl_register_encoders=lambda register: register(
            "pixel",
            Pixel,
            options=PixelOptions,
            summary="",
            aliases={"hue": {"scale": 2.0}},
        ),
        pointer_rl_register_generators=generators,
    )
    yield Place(tmp_path)
    registry.cache_clear()


class Place(World):
    """16 queries, which are the pool, unless `pool.jsonl` is one of its own; no embeddings."""

    def __init__(self, folder) -> None:
        super().__init__(folder)
        for path in (self.query_emb, self.cand_emb):
            path.unlink()
        self.rows = [
            {"id": f"e{i}", "image": f"{i}.png", "question": "?", "answers": ["ab"[i % 2]] * 10}
            for i in range(16)
        ]
        for i in range(16):
            PIL.Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i}.png")
        self.write()
        self.dataset = ("--dataset", "jsonl", "--dataset-opt", "path=data.jsonl")

    def own_pool(self) -> None:
        rows = [{**row, "id": f"p{row['id'][1:]}"} for row in self.rows]
        (self.folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.dataset += ("--dataset-opt", "pool=pool.jsonl", "--dataset-opt", "images=.")

    def run(self, command: str, *more: str):
        return run_cli(command, "--backend", "copy", *self.dataset, *more)

    def generate(self, *more: str, output: str = "rl.json"):
        none = ("--num-beams", "0", "--num-samples-per-temp", "0", "--shots", "1")
        return self.run("generate", *none, "--num-random", "5", "--output-path", output, *more)

    def train(self, *more: str, output: str = "policy"):
        small = ("--heads", "2", "--layers", "1", "--held-out", "0.3")
        epochs = ("--rce-epochs", "1", "--grpo-epochs", "0")
        return run_cli("train", *small, *epochs, "--output-dir", output, *more)

    def embed(self, output: str, *more: str, split: str = "queries") -> None:
        succeeds(run_cli("embed", *self.dataset, "--split", split, "--output-path", output, *more))

    def encoded(self) -> list[str]:
        """What was embedded since this was last asked."""
        made, Pixel.encoded[:] = list(Pixel.encoded), []
        return made


def succeeds(result) -> str:
    assert result.exit_code == 0, result.output
    return result.output


def one_line(result, *parts) -> None:
    assert result.exit_code == 2, result.output
    message = result.output.strip().splitlines()[-1]
    assert message.startswith("pointer-rl: error: ")
    for part in parts:
        assert part in message


def inputs(path: str):
    return read_meta(Path(path))["inputs"]


PIXEL = {"name": "pixel", "options": {"scale": 1.0, "model": "here"}}


def test_the_whole_route_embeds_each_example_once(place, cli):
    place.own_pool()
    succeeds(place.generate("--encoder", "pixel"))
    assert sorted(place.encoded()) == sorted(f"{side}{i}" for side in "ep" for i in range(16))
    assert inputs("rl.json")["encoder"] == "pixel 1.0"
    assert inputs("rl.json")["encoder_plugin"] == PIXEL
    assert "query_embeddings_sha256" not in inputs("rl.json")
    succeeds(place.train("--beam-data", "rl.json"))
    info = load_bundle("policy").info
    assert info.encoder.plugin == PIXEL
    assert info.encoder.fingerprint == "pixel 1.0"
    succeeds(place.run("evaluate", "--policy", "RL=policy", "--shots", "1"))
    succeeds(place.generate("--sft-ckpt", "policy", "--num-beams", "2", output="two.json"))
    assert inputs("two.json") == inputs("rl.json")
    assert place.encoded() == []
    kept = sorted(embeddings_folder().iterdir())
    assert [path.suffix for path in kept] == [".safetensors"] * 2
    succeeds(cli("select", "policy", "--question", "?", "--image", "3.png", "--device", "cpu"))


def test_queries_of_the_pool_and_a_limit_embed_nothing_twice(place):
    succeeds(place.generate("--encoder", "pixel"))
    assert place.encoded() == [f"e{i}" for i in range(16)]
    assert len(list(embeddings_folder().iterdir())) == 1
    place.own_pool()
    succeeds(place.generate("--encoder", "pixel", "--limit", "5", output="five.json"))
    assert place.encoded() == [f"p{i}" for i in range(16)] + [f"e{i}" for i in range(5)]
    succeeds(place.train("--beam-data", "five.json"))  # knows which five
    assert place.encoded() == []


def test_what_an_encoder_makes_is_what_embed_writes(place):
    place.embed("q.safetensors", "--encoder", "pixel")
    written = load_embeddings(place.query_emb)
    assert written.encoder_plugin == PIXEL
    succeeds(place.generate("--encoder", "pixel"))
    (path,) = embeddings_folder().iterdir()
    kept = load_embeddings(path)
    assert torch.equal(kept.vectors, written.vectors)
    assert str(path) in Path("/proc/self/maps").read_text()  # mapped, not read
    assert kept.contents == written.contents


def test_files_come_first_and_never_enter_the_cache(place):
    place.own_pool()
    place.embed("q.safetensors", "--encoder", "pixel")
    place.embed("c.safetensors", "--encoder", "pixel", split="pool")
    place.embed("hue.safetensors", "--encoder", "hue")
    place.encoded()
    files = ("--query-emb", "q.safetensors", "--cand-emb", "c.safetensors")
    one_line(place.generate(*files, "--encoder", "pixel"), "q.safetensors", "c.safetensors", "both")
    succeeds(place.generate(*files))
    assert not embeddings_folder().exists()
    assert "encoder_plugin" not in inputs("rl.json")
    assert inputs("rl.json").keys() >= {"query_embeddings_sha256", "pool_embeddings_sha256"}
    one_line(place.train("--beam-data", "rl.json", *files, "--encoder", "pixel"), "not both")
    succeeds(place.train("--beam-data", "rl.json", *files))
    assert load_bundle("policy").info.encoder.plugin == PIXEL
    assert place.encoded() == []
    # One file: the other side is embedded, by the encoder that the file names.
    wanted = ("--cand-emb", "c.safetensors")
    succeeds(place.generate(*wanted, output="one.json"))
    assert place.encoded() == [f"e{i}" for i in range(16)]
    assert inputs("one.json").keys() >= {"encoder_plugin", "pool_embeddings_sha256"}
    one_line(
        place.generate("--query-emb", "hue.safetensors", "--encoder", "pixel", output="x.json"),
        *("hue.safetensors and the encoder pixel", "different encoders", "pixel 2.0", "pixel 1.0"),
    )


def test_a_configured_encoder_gives_way_to_files(place):
    from click.testing import CliRunner

    from pointer_rl.cli.main import cli

    place.embed("q.safetensors", "--encoder", "pixel")
    files = ("--query-emb", "q.safetensors", "--cand-emb", "q.safetensors")
    given = ["generate", "--backend", "copy", *place.dataset, *files, "--shots", "1"]
    given += ["--num-beams", "0", "--num-samples-per-temp", "0", "--output-path", "rl.json"]
    configured = {"generate": {"encoder": "pixel"}}
    succeeds(CliRunner().invoke(cli, given, default_map=configured))


def test_what_needs_no_embeddings_is_not_asked_for_any(place):
    nothing = ("--num-random", "0", "--num-retrieval", "0", "--generator")
    succeeds(place.generate(*nothing, "mine"))
    succeeds(place.generate("--num-retrieval", "0", output="random.json"))
    assert "encoder" not in inputs("rl.json") | inputs("random.json")
    one_line(
        place.generate(*nothing, "silent", output="x.json"),
        *("no embeddings of the dataset", "for silent", "--encoder NAME", "--query-emb and"),
    )
    succeeds(place.generate(*nothing, "mine", "--encoder", "pixel", output="y.json"))
    assert place.encoded() == []
    one_line(place.generate("--encoder", "pxel"), "did you mean 'pixel'?")


def test_an_online_bundle_names_its_encoder(place):
    online = ("--online", "--max-calls", "64", "--rounds", "1", "--backend", "copy", "--shots", "1")
    more = ("--encoder", "pixel", "--encoder-opt", "scale=3", "--device", "cpu")
    succeeds(place.train(*online, *place.dataset, *more))
    info = load_bundle("policy").info
    assert info.encoder.plugin == {"name": "pixel", "options": {"scale": 3.0, "model": "here"}}
    assert info.encoder.fingerprint == "pixel 3.0"
    # A round's file says it, too.
    (file,) = (place.folder / "policy" / "rounds").glob("*.json")
    place.encoded()
    succeeds(place.train("--beam-data", str(file), output="again"))
    assert load_bundle("again").info.encoder == info.encoder
    assert place.encoded() == []
    place.embed("q.safetensors", "--encoder", "pixel")
    files = ("--query-emb", "q.safetensors", "--cand-emb", "q.safetensors")
    succeeds(place.train(*online, *place.dataset, *files, output="files"))
    assert load_bundle("files").info.encoder.plugin == PIXEL


def test_policies_of_different_encoders_are_compared(place):
    succeeds(place.generate("--encoder", "pixel"))
    for name in ("pixel", "hue"):
        succeeds(place.train("--beam-data", "rl.json", "--encoder", name, output=name))

    def shown(*policies):
        of = [each for name in policies for each in ("--policy", f"{name}={name}")]
        succeeds(place.run("evaluate", *of, "--output-path", "e.json", "--overwrite"))
        content = json.loads((place.folder / "e.json").read_text())
        assert content["settings"]["policies"]["hue"]["encoder"] == "pixel 2.0"
        return content["accuracies"]["2"]["hue"]

    assert shown("pixel", "hue") == shown("hue") == shown("hue", "pixel")


def test_a_run_goes_on_with_its_own_encoder_alone(place):
    succeeds(place.generate("--encoder", "pixel"))
    one_line(place.generate("--encoder", "hue"), "rl.json", "encoder")
    succeeds(place.generate("--encoder", "pixel", "--device", "cpu"))


def test_training_says_what_it_cannot_embed(place):
    succeeds(place.generate("--num-retrieval", "0"))
    one_line(place.train("--beam-data", "rl.json"), "no embeddings", "rl.json", "--encoder NAME")
    succeeds(place.train("--beam-data", "rl.json", "--encoder", "pixel"))
    shutil.move("data.jsonl", "elsewhere.jsonl")
    one_line(
        place.train("--beam-data", "rl.json", "--encoder", "pixel", output="x"),
        *("its dataset cannot be opened", "data.jsonl", "--query-emb and --cand-emb"),
    )
    (place.folder / "data.jsonl").write_text(
        (place.folder / "elsewhere.jsonl").read_text().replace('"?"', '"What?"')
    )
    one_line(
        place.train("--beam-data", "rl.json", "--encoder", "pixel", output="x"),
        "other examples than the file was made from",
    )


def test_old_embeddings_are_pruned(place, cli):
    succeeds(place.generate("--encoder", "pixel"))
    assert "1 file of embeddings" in succeeds(cli("cache", "info"))
    assert "0 files" in succeeds(cli("cache", "prune", "--embeddings", "--older-than", "1"))
    assert cli("cache", "prune", "--embeddings", "--all").exit_code == 2
    assert "1 file of embeddings removed, 0 left" in succeeds(cli("cache", "prune", "--embeddings"))
    assert list(embeddings_folder().iterdir()) == []


def test_an_interrupted_embedding_goes_on_and_counts_as_no_query(place):
    place.rows = [{**place.rows[i % 16], "id": f"e{i}"} for i in range(150)]
    place.write()
    dataset = registry().create("dataset", "jsonl", {"path": "data.jsonl"})
    encoder = EncoderInfo(fingerprint=None, name="pixel")

    class Interrupted(Observer):
        done = batches = 0

        def start(self, total, done=0):
            self.done = done

        def finish(self, queries):
            self.done += queries
            self.batches += 1
            if self.batches == 2:
                raise KeyboardInterrupt

    def embed(queries, observer):
        found = dataset_embeddings(dataset, queries, ExampleHasher(), observer, encoder=encoder)
        return found[0], found[1].embeddings

    with pytest.raises(KeyboardInterrupt):
        embed(dataset.queries, observer := Interrupted())
    assert (observer.batches, observer.done) == (2, 0)
    assert not list(embeddings_folder().glob("*.safetensors"))
    vectors, of_pool = embed(dataset.queries, Observer())
    assert place.encoded() == [f"e{i}" for i in range(150)]
    assert vectors is of_pool
    assert torch.equal(vectors, Pixel(PixelOptions()).encode(dataset.queries))
    assert torch.equal(embed(dataset.queries[::-1], Observer())[0], vectors.flip(0))


def test_embeddings_without_an_encoders_name_do_not_embed_the_other_side(place):
    place.own_pool()
    save_embeddings(place.query_emb, torch.ones(16, 4), [f"e{i}" for i in range(16)])
    one_line(place.generate("--query-emb", "q.safetensors"), "--encoder NAME", "or --cand-emb (")
