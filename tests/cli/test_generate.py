from __future__ import annotations

import json
import pickle

import pytest
import torch

from pointer_rl.datasets.embeddings import save_embeddings
from pointer_rl.selectors import PointerConfig, PointerSelector, save_selector

CONFIG = PointerConfig(d_model=6, hidden_dim=6, num_layers=1, num_heads=1, history="gated")


def records(path):
    content = json.loads(path.read_text())
    return content.pop("_meta"), content


def refused(result, says, backends=()):
    """Exit 2, one line, and no VLM was asked."""
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("pointer-rl: error: ")
    assert says in lines[0]
    assert "Traceback" not in result.output
    assert not any(backend.asked for backend in backends)


def test_it_writes_the_seeds_format(world):
    result = world.generate()
    assert result.exit_code == 0, result.output
    meta, found = records(world.output)
    assert list(found) == [f"e{i}" for i in range(8)]
    assert (meta["shots"], meta["seed"], meta["backend"]["fingerprint"]) == (2, 0, "copy")
    assert meta["metric"]["name"] == "vqa"
    assert meta["policy"] is None
    for query_id, record in found.items():
        own = int(query_id[1:])
        for candidate in record["pointer_candidates"]:
            assert own not in candidate["pointer"]
            answer = "ab"[candidate["pointer"][-1] % 2]
            assert candidate["vqa_pred_answer"] == answer
            assert candidate["vqa_correct"] == int(answer == "ab"[own % 2])
    assert "random" in result.stdout
    assert "best of each query" in result.stdout
    assert all(" queries" in line for line in result.stderr.splitlines())  # progress


def test_what_it_writes_is_valid(world, cli):
    world.generate("--score-answers")
    result = cli("validate", str(world.output))
    assert result.exit_code == 0, result.output


def test_the_same_seed_gives_the_same_bytes(world):
    save_selector(world.folder / "ckpt", PointerSelector.seeded(CONFIG, 0))
    options = ("--sft-ckpt", str(world.folder / "ckpt"), "--overwrite")
    world.generate(*options, selector=True)
    first = world.output.read_bytes()
    world.generate(*options, selector=True)
    assert world.output.read_bytes() == first
    world.generate(*options, "--seed", "1", selector=True)
    assert world.output.read_bytes() != first


def test_the_guides_spellings_are_read(world):
    save_selector(world.folder / "ckpt", PointerSelector.seeded(CONFIG, 0))
    beams = world.folder / "beams.json"
    beams.write_text(json.dumps({"e3": {"id_list": [[1, 3]], "score_list": [0.1]}}))
    result = world.generate(
        *("--sft_ckpt", str(world.folder / "ckpt"), "--beam_data", str(beams)),
        *("--num_beams", "2", "--temps", "0.5", "1.3", "--num_samples_per_temp", "1"),
        *("--vqa_model", "copy", "--device", "cpu"),
        selector=True,
    )
    assert result.exit_code == 0, result.output
    meta, found = records(world.output)
    assert list(found) == ["e3"]
    generators = {each["name"]: each["options"] for each in meta["generators"]}
    assert generators["sample"]["temperatures"] == [0.5, 1.3]
    assert generators["beam"]["width"] == 2
    methods = [c["gen_method"] for c in found["e3"]["pointer_candidates"]]
    assert methods.count("beam") == 2


def test_beam_data_keyed_by_rows_is_read_as_ancestors_do(world, caplog):
    beams = world.folder / "beams.json"
    beams.write_text(json.dumps({"5": {"id_list": [], "score_list": []}}))
    world.generate("--beam-data", str(beams))
    assert list(records(world.output)[1]) == ["e5"]
    assert "taken as rows" in caplog.text
    beams.write_text(json.dumps({"77": {}}))
    refused(world.generate("--overwrite", "--beam-data", str(beams)), "no query '77'")


def test_shots_limit_dedup_and_generator_options(world):
    result = world.generate(
        *("--shots", "3", "--limit", "2", "--dedup", "unordered", "--num-retrieval", "0"),
        *("--generator", "retrieval", "--generator-opt", "retrieval.num=2"),
    )
    assert result.exit_code == 0, result.output
    meta, found = records(world.output)
    assert len(found) == 2
    assert meta["dedup"] == "unordered"
    for record in found.values():
        pointers = [c["pointer"] for c in record["pointer_candidates"]]
        assert {len(pointer) for pointer in pointers} == {3}
        assert len({frozenset(pointer) for pointer in pointers}) == len(pointers)
        methods = [c["gen_method"] for c in record["pointer_candidates"]]
        assert methods.count("retrieval") == 2
    refused(world.generate("--overwrite", "--generator-opt", "x.num=2"), "write NAME.KEY=VALUE")


def test_pointers_of_any_length(world, cli):
    result = world.generate("--shots", "2", "--any-length", "--num-random", "9")
    assert result.exit_code == 0, result.output
    assert cli("validate", str(world.output)).exit_code == 0
    meta, found = records(world.output)
    assert (meta.get("shots"), meta["max_shots"]) == (None, 2)
    for record in found.values():
        lengths = [len(each["pointer"]) for each in record["pointer_candidates"]]
        assert lengths[:3] == [0, 1, 2], "retrieval: none, the nearest, the two nearest"
        assert set(lengths) == {0, 1, 2}
        assert lengths.count(0) == 1
    refused(world.generate("--shots", "2", "--num-random", "9"), "is another run")


def test_an_image_that_is_none_fails_its_trials_alone(world):
    (world.folder / "2.png").write_text("no image")
    result = world.generate()
    assert result.exit_code == 0, result.output
    assert "trials failed; first: " in result.stderr
    _, found = records(world.output)
    for query_id, record in found.items():
        for candidate in record["pointer_candidates"]:
            failed = query_id == "e2" or 2 in candidate["pointer"]
            assert candidate.get("eval_failed", False) == failed
            assert ("vqa_correct" in candidate) != failed
            if failed:
                assert "2.png: not a readable image" in candidate["eval_error"]


def test_an_existing_file_is_kept_unless_told(world):
    world.output.parent.mkdir()
    world.output.write_text("precious")
    refused(world.generate(), "exists, and is not the output of a run")
    assert world.output.read_text() == "precious"
    assert world.generate("--overwrite").exit_code == 0
    assert world.output.read_text() != "precious"


def test_jsonl_holds_the_same_records(world):
    world.generate()
    _, whole = records(world.output)
    world.output = world.output.with_suffix(".jsonl")
    assert world.generate().exit_code == 0
    meta, *lines = map(json.loads, world.output.read_text().splitlines())
    assert list(meta) == ["_meta"]
    assert {line.pop("query_id"): line for line in lines} == whole


def test_a_run_in_which_every_trial_failed_exits_1(world):
    for i in range(8):
        (world.folder / f"{i}.png").write_text(f"no image {i}")
    result = world.generate()
    assert result.exit_code == 1
    assert "not a readable image" in result.stderr


class TestRefusals:
    def test_answers_that_the_metric_cannot_judge(self, world, backends):
        for row in world.rows:
            row["answers"] = row["answers"][:1]
        world.write()
        refused(world.generate(), "two annotators or more", backends)
        assert world.generate("--metric", "exact").exit_code == 0

    @pytest.mark.parametrize("device", ["bogus", "cuda:99"])
    def test_a_device_that_is_not_there(self, world, backends, device):
        save_selector(world.folder / "ckpt", PointerSelector.seeded(CONFIG, 0))
        options = ("--sft-ckpt", str(world.folder / "ckpt"), "--device", device)
        refused(world.generate(*options, selector=True), f"device {device!r}", backends)

    def test_missing_files(self, world, backends):
        world.query_emb.unlink()
        refused(world.generate(), "q.safetensors: no such file", backends)

    def test_embeddings_are_asked_for(self, world, backends, cli):
        result = cli(
            *("generate", "--backend", "copy", "--dataset", "jsonl"),
            *("--dataset-opt", f"path={world.data}", "--output-path", str(world.output)),
        )
        refused(result, "give --encoder NAME, such as clip, or --query-emb", backends)

    def test_a_selector_is_asked_for(self, world, backends):
        refused(world.generate(selector=True), "give --sft-ckpt", backends)

    def test_a_model_is_asked_for(self, world):
        refused(world.generate("--backend", "qwen2vl"), "--backend-opt model=")

    @pytest.mark.parametrize("rows", [5, 9])
    def test_embeddings_of_another_length(self, world, backends, rows):
        world.query_emb = world.folder / "q.npy"
        import numpy as np

        np.save(world.query_emb, np.ones((rows, 6), dtype=np.float32))
        refused(world.generate(), f"{rows} rows for 8 examples", backends)

    def test_embeddings_of_another_dimension(self, world, backends):
        ids = [row["id"] for row in world.rows]
        save_embeddings(world.cand_emb, torch.ones(8, 5), ids)
        refused(world.generate(), "6 dimensions and the pool embeddings 5", backends)

    def test_embeddings_of_other_examples(self, world, backends):
        save_embeddings(world.cand_emb, torch.ones(8, 6), [f"x{i}" for i in range(8)])
        refused(world.generate(), "no row for the example 'e0'", backends)

    def test_nan_embeddings(self, world, backends):
        vectors = torch.ones(8, 6)
        vectors[3, 2] = torch.nan
        save_embeddings(world.query_emb, vectors, [row["id"] for row in world.rows])
        refused(world.generate(), "row 3 holds NaN", backends)

    def test_more_shots_than_pool(self, world, backends):
        refused(world.generate("--shots", "9"), "9 shots need a pool", backends)

    def test_more_shots_than_a_query_may_choose(self, world, backends):
        assert world.generate("--shots", "7").exit_code == 0
        backends.clear()
        result = world.generate("--shots", "8", "--overwrite")
        refused(result, "query e0 may choose 7 of the pool's 8", backends)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (("--backend", "qwen2v"), "unknown backend 'qwen2v'; did you mean 'qwen2vl'?"),
            (("--metric", "vqaa"), "unknown metric 'vqaa'; did you mean 'vqa'?"),
            (("--prompt", "shortanswer"), "did you mean 'short-answer'?"),
            (("--dataset", "jsonk"), "did you mean 'jsonl'?"),
            (("--generator", "retreival"), "did you mean 'retrieval'?"),
            (("--dataset-opt", "pth=1"), "dataset jsonl has no option 'pth'; did you mean"),
            (("--backend-opt", "x=1"), "backend copy takes no options"),
            (("--decoding-opt", "max_new_tokens=0"), "must be at least 1"),
            (("--decoding-opt", "beams=2"), "decoding has no option 'beams'"),
        ],
    )
    def test_unknown_names_name_the_nearest(self, world, backends, options, says):
        refused(world.generate(*options), says, backends)

    def test_a_checkpoint_for_other_embeddings(self, world, backends):
        config = PointerConfig(d_model=5, hidden_dim=5, num_layers=1, num_heads=1, history="static")
        save_selector(world.folder / "ckpt", PointerSelector.seeded(config, 0))
        result = world.generate("--sft-ckpt", str(world.folder / "ckpt"), selector=True)
        refused(result, "embeddings of 5 dimensions and these have 6", backends)

    def test_a_checkpoint_of_another_architecture(self, world, backends):
        torch.save({"lstm.weight": torch.ones(2, 2)}, world.folder / "other.pt")
        refused(world.generate("--sft-ckpt", str(world.folder / "other.pt")), "other.pt", backends)

    def test_a_pickle_with_code_is_not_run(self, world, backends):
        class Evil:
            def __reduce__(self):
                return (open, (str(world.folder / "owned"), "w"))

        for flag in ("--sft-ckpt", "--query-emb"):
            (world.folder / "evil.pt").write_bytes(pickle.dumps(Evil()))
            refused(world.generate(flag, str(world.folder / "evil.pt")), "evil.pt", backends)
            assert not (world.folder / "owned").exists()

    def test_truncated_json(self, world, backends):
        beams = world.folder / "beams.json"
        beams.write_text('{"e1": {"id_list": [[1')
        refused(world.generate("--beam-data", str(beams)), "beams.json", backends)

    def test_two_queries_of_one_id(self, world, backends):
        world.rows[5]["id"] = "e2"
        world.write()
        refused(world.generate(), "e2", backends)

    @pytest.mark.parametrize(
        ("dataset", "says"),
        [("twins", "two queries have the id a"), ("underscored", "query id '_b'")],
    )
    def test_ids_that_cannot_be_keys_whatever_the_loader(self, cli, world, dataset, says):
        result = cli("generate", "--dataset", dataset, "--output-path", str(world.output))
        refused(result, says)

    def test_an_output_folder_that_cannot_be_written(self, world, backends):
        (world.folder / "file").write_text("")
        world.output = world.folder / "file" / "rl.json"
        refused(world.generate(), "cannot be written", backends)
        assert backends == []

    def test_no_generator(self, world, backends):
        result = world.generate("--num-random", "0", "--num-retrieval", "0")
        refused(result, "no generator", backends)


def test_a_usage_error_is_clicks(cli):
    result = cli("generate")
    assert result.exit_code == 2
    assert "--output-path" in result.stderr
