"""The snippets of the README and of every how-to, run as they are printed, in their order.

A page that comes is run too. What cannot be run here is listed below, with its reason.
"""

from __future__ import annotations

import shutil

import pytest
from fake_hub import TOKEN
from fault_server import FaultServer
from snippet_world import make_world
from snippets import ROOT, Reader, blocks

PAGES = {"README": "README.md"} | {
    path.stem: f"docs/how-to/{path.name}" for path in sorted((ROOT / "docs/how-to").glob("*.md"))
}
del PAGES["your-backend"]  # tests/e2e/test_third_party.py installs what it shows

QWEN = {"Qwen/Qwen2.5-VL-3B-Instruct": "qwen"}
CLIP = {"openai/clip-vit-large-patch14": "clip"}
OPEN_FLAMINGO = {
    "openflamingo/OpenFlamingo-3B-vitl-mpt1b": "flamingo/checkpoint",
    "anas-awadalla/mpt-1b-redpajama-200b": "flamingo/language",
    "openai/clip-vit-large-patch14": "flamingo/vision",
    "OpenFlamingo-3B-vitl-mpt1b": "flamingo/checkpoint",
    "mpt-1b-redpajama-200b": "flamingo/language",
    "clip-vit-large-patch14": "flamingo/vision",
}
PICTURES = {f"e{number}.png": f"e{number}.png" for number in range(12)}

GIVEN = {
    "README": {
        **QWEN,
        **CLIP,
        "selector.ckpt": "selector.ckpt",
        "demo/online": "policy",
        "demo/rl.json": "rl.json",
        "photo.png": "e0.png",
    },
    "any-model": {"llava-hf/llava-1.5-7b-hf": "llava"},
    "check-data": {"data/rl.json": "rl.json", "data/more.jsonl": "part1.jsonl"},
    "check-your-setup": {**QWEN, **PICTURES, "data.jsonl": "some.jsonl"},
    "evaluate": {"runs/sft": "policy", "runs/rl": "policy"},
    "export": {"rl.json": "rl.json"},
    "flamingo": OPEN_FLAMINGO,
    "gpus": QWEN,
    "look-at-trials": {"rl.json": "rl.json"},
    "guide": {
        **QWEN,
        **PICTURES,
        "results/okvqa/model_cpk/v2/xxx.ckpt": "selector.ckpt",
        "results/okvqa/generated_data/beam_RandSampler.json": "okvqa_beams.json",
        **{
            f"results/okvqa/cache/{name}_embeddings.pt": "okvqa_embeddings.pt"
            for name in ("query", "candidate", "img")
        },
    },
    "merge": {f"part{number}.jsonl": f"part{number}.jsonl" for number in (1, 2, 3)},
    "old-data": {
        "rl_data_k64.json": "k64.json",
        "beam_RandSampler.json": "lever_beams.json",
        "query_embeddings.pt": "embeddings.pt",
        "candidate_embeddings.pt": "embeddings.pt",
    },
    "parquet": {"rl.json": "rl.json"},
    "python": {
        **PICTURES,
        "mine.jsonl": "some.jsonl",
        "query_emb.safetensors": "query_emb.safetensors",
    },
    "report": {"rl.json": "rl.json", "demo": "policy"},
    "rescore": {"rl.json": "rl.json"},
    "share": {
        "demo/online": "policy",
        "new.png": "e0.png",
        "query_emb.safetensors": "query_emb.safetensors",
    },
    "use-a-policy": {
        **PICTURES,
        "policy": "policy",
        "new.png": "e0.png",
        "new.jsonl": "new.jsonl",
        "query_emb.safetensors": "query_emb.safetensors",
    },
    "your-dataset": {
        **QWEN,
        **CLIP,
        **PICTURES,
        "mine.jsonl": "some.jsonl",
        "selector": "selector",
    },
    "your-plugin": QWEN,
}
"""What a page takes for granted: name on the page → in `make_world`'s folder."""

CONFIGURATION = "needs a study of the reader's; tests/cli/test_config.py has one"
GPUS = "needs GPUs, or a cluster; tests/with_ray has one of a machine"
INSTALLS = "installs from an index"
ROUTE = "takes half an hour; test_own_data.py runs it at a small size"
IN_TOOLS = "needs tools that are not among the packages of the tests: tests/tools"
IN_VLLM = "needs vLLM, which has an environment of its own: tests/with_vllm"
NOT_RUN: dict[str, dict[str, str]] = {
    "run": {
        "pointer-rl run --output-dir route --dataset jsonl --dataset-opt path=train.jsonl"
        " --vqa-model qwen2.5_vl_3B --encoder clip"
        " --encoder-opt model=openai/clip-vit-large-patch14": (
            "minutes; tests/cli/test_run.py has such data"
        ),
        "pointer-rl run --output-dir route --dataset-opt train_size=300 --dataset-opt pool_size=128"
        " --test-opt split=test --max-calls 2000 --test-limit 100": (
            "minutes; tests/e2e/test_glyph_world.py runs it in small"
        ),
        "[1/7] beams: route/beams.json": "printed by that",
    },
    "README": {
        "git clone … pointer-rl && cd pointer-rl": "the address is the reader's",
        "pip install . # or: pip install '.[plot,parquet,openai]'; pyproject.toml has all"
        " extras": "installs; wheel_smoke.sh does",
        "make demo # sets up .venv, and runs the whole route on the embedded"
        " world": "minutes; make demo does",
        "make test": "this is it",
        "shots arm queries calls accuracy vs random interval gap recovered": "make demo prints it",
    },
    "configuration": {
        "shots = 2 # an option of every command that has it": CONFIGURATION,
        "pointer-rl generate --config study.toml --output-path rl.json": CONFIGURATION,
        "pointer-rl evaluate --config study.toml --policy rl=out --output-path"
        " evaluation.json": CONFIGURATION,
        "pointer-rl config --of rl.json # the configuration of a past run, as TOML": CONFIGURATION,
    },
    "export": {
        "pip install 'pointer-rl[inspect]'": INSTALLS,
        "pip install 'pointer-rl[hf]'": INSTALLS,
        "pointer-rl export result.json --to inspect --output-path logs": IN_TOOLS,
        "wrote logs/result-zero-shot.eval (15.8 kB)": IN_TOOLS,
        "inspect view --log-dir logs": IN_TOOLS,
        'correct == "I"': "typed into Inspect's viewer",
        "from inspect_ai.log import read_eval_log_sample_summaries": IN_TOOLS,
    },
    "gpus": {
        "pytest tests/gpu": "needs a GPU",
        "docker build --file docs/docker/Dockerfile --tag pointer-rl .": "needs Docker",
        'docker run --rm --gpus all --user "$(id -u):$(id -g)" --volume "$PWD:/work" pointer-rl'
        " doctor": "needs Docker",
    },
    "kept-responses": {
        "pip install datasette": INSTALLS,
        "datasette ~/.cache/pointer-rl/responses.sqlite --open": IN_TOOLS,
        "datasette ~/.cache/pointer-rl/responses.sqlite --get '/responses.json?sql=SELECT text,"
        " count(*) AS n FROM responses GROUP BY text ORDER BY n DESC LIMIT 3&_shape=array'": (
            IN_TOOLS
        ),
        '[{"text": "dage", "n": 20}, {"text": "bife", "n": 15}, {"text": "noli", "n": 14}]': (
            IN_TOOLS
        ),
    },
    "long-runs": {
        "0:00:30 16/60 queries, 163 trials, 22/s, about 21 s left, correct: 29% (sample 11%, beam"
        " 49%)": "standard error; test_progress.py compares it",
        "pointer-rl: interrupted: 256 queries are in rl.partial.jsonl; the same command continues"
        " from there": "nobody presses Ctrl-C here; test_generate_resume.py does",
    },
    "ray": {
        "pip install 'pointer-rl[ray]'": INSTALLS,
        "pointer-rl generate --vqa-model qwen2.5_vl_3B --output-path rl.json --executor ray": GPUS,
        "ray start --head # on the first node": GPUS,
        "ray start --address=FIRST_NODE:6379 # on the others": GPUS,
        "pointer-rl generate --vqa-model qwen2.5_vl_3B --output-path rl.json --executor ray"
        " --executor-opt address=auto": GPUS,
        "worker 2 (node7, GPU 1) died: queries 129 to 256 go to another worker": GPUS,
        "0:00:48 ━━━━━━━━━━━━━╸━━━━━━━━ 28/48 queries, 138 trials, 6.0/s, about 13 s left": (
            "drawn on a terminal; tests/cli/test_progress.py has such a display"
        ),
        "sbatch --array=1-8 --gpus=1 --wrap 'pointer-rl generate --vqa-model qwen2.5_vl_3B --window"
        " 1024 --shard $SLURM_ARRAY_TASK_ID/8 --store part$SLURM_ARRAY_TASK_ID.sqlite --output-path"
        " part$SLURM_ARRAY_TASK_ID.jsonl'": "needs SLURM",
        "pointer-rl merge part?.jsonl --output-path rl.jsonl # when all are done": "needs SLURM",
    },
    "old-data": {
        "pointer-rl: error: old.json: '17': candidate 0: position 64 in a pool of 64 rows": (
            "of a damaged file; test_convert.py has one"
        ),
    },
    "own-data": {
        "pointer-rl run --config easy-vqa.toml --output-dir runs/easy-vqa": ROUTE,
        "pointer-rl run --config easy-vqa.toml --output-dir runs/easy-files --dataset vqa"
        " --dataset-opt root=data --dataset-opt questions=questions.json --dataset-opt"
        " annotations=annotations.json --dataset-opt images=images --dataset-opt"
        " image_name={image_id}.png": ROUTE,
        "pointer-rl run --config easy-vqa.toml --output-dir runs/easy-hf --dataset hf --dataset-opt"
        " path=data/easy --dataset-opt answers_column=answer": ROUTE,
        "stage queries calls": ROUTE,
    },
    "parquet": {
        "pip install 'pointer-rl[parquet]'": INSTALLS,
        "import polars as pl": "polars is not among the packages of the tests",
        "SELECT query_id, unnest(pointer_candidates, recursive := true) FROM 'rl.parquet';": (
            "DuckDB is not among the packages of the tests"
        ),
    },
    "recipes": {
        "pointer-rl run --config okvqa-qwen2.5-vl-3b.toml --output-dir runs/okvqa --plan": (
            "needs OK-VQA and the weights; test_recipes.py has stand-ins"
        ),
    },
    "servers": {
        "pip install 'pointer-rl[openai]'": INSTALLS,
        """vllm serve Qwen/Qwen2.5-VL-7B-Instruct --limit-mm-per-prompt '{"image": 5}'""": (
            "needs vLLM and a GPU"
        ),
        "HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 .venv-vllm/bin/python -m"
        " vllm.entrypoints.openai.api_server --model plugins/pointer_rl_glyphs/model"
        " --served-model-name glyphs --host 127.0.0.1 --port 8000 --dtype float32 --max-model-len"
        " 2048 --block-size 32 --enforce-eager --limit-mm-per-prompt"
        """ '{"image": 9, "video": 0}'""": IN_VLLM,
        "pointer-rl doctor --parity --against openai --against-opt"
        " base_url=http://127.0.0.1:8000/v1 --limit 64": IN_VLLM,
        "128 trials of 64 random queries, 2 random demonstrations each, were asked of the backends"
        " qwen2vl and openai.": IN_VLLM,
        "pointer-rl generate --output-path rl.json --limit 50 --backend openai --backend-opt"
        " base_url=http://127.0.0.1:8000/v1,http://127.0.0.1:8001/v1": (
            "the page's first file would be in its place; test_openai.py has several servers"
        ),
        "pip install 'transformers[serving]'": INSTALLS,
        "transformers serve path/to/checkpoint --host 127.0.0.1 --port 8000 --device cpu": (
            "goes on until it is stopped, and needs transformers[serving]"
        ),
    },
    "share": {
        "pointer-rl evaluate --policy ann=hub:ann/glyph-demonstrations"
        "@2c4eea73c0682a93acd6485c71ec9b12fc4e8ba6": "of another bundle; test_push.py has commits",
        "pointer-rl train --sft-ckpt hub:ann/glyph-demonstrations --rl-data rl.json --output-dir"
        " runs/further": "data of the same pool are the reader's; test_push.py names such a start",
        "**online, 2 shots: better than random by 69.7 points (99 % interval 56.0 to 80.6; 100"
        " queries). It does not beat: answer-match, offline, vote offline**": (
            "of a run, minutes long; test_bundle.py compares cards"
        ),
        "pointer-rl push ann/glyph-trials hub/": "test_push.py has such a folder",
    },
    "train": {
        **dict.fromkeys(
            (
                "pointer-rl run --output-dir demo --log-to trackio --log-to tensorboard",
                "trackio show --project pointer-rl # goes on until it is stopped",
                "trackio list runs --project pointer-rl",
                "tensorboard --logdir demo",
                "Runs in 'pointer-rl':",
            ),
            "needs trackio; tests/tools has it",
        ),
        "the run: held-out expected reward 0.919 → 1.313 (round 4; 34 queries, where a random"
        " choice has 0.868)": "of another run, minutes long",
    },
    "use-a-policy": {
        "query 0: What is the filling of the figure?": (
            "a terminal is shown it; test_answer.py has one"
        ),
    },
    "vllm": {
        "pip install 'pointer-rl[vllm]'": INSTALLS,
        "pointer-rl generate --backend vllm --backend-opt model=Qwen/Qwen2.5-VL-3B-Instruct"
        " --output-path rl.json --limit 20 --score-answers": IN_VLLM,
        "pointer-rl doctor --parity --backend qwen2vl --against vllm --against-opt"
        " enforce_eager=true --limit 64": IN_VLLM,
        "128 trials of 64 random queries, 2 random demonstrations each, were asked of the backends"
        " qwen2vl and vllm.": IN_VLLM,
        "pointer-rl generate --backend vllm --backend-opt enforce_eager=true --backend-opt"
        " max_model_len=2048 --output-path rl.json --limit 128 --score-answers --no-store": IN_VLLM,
    },
    "your-plugin": {
        "pip install -e 'pointer-rl-price[dev]'": "installs; tests/e2e/test_third_party.py does",
        "pytest pointer-rl-price": "needs it installed; tests/e2e/test_third_party.py does it",
    },
}
"""Page → command of the shell, or first line of another block → why it is not run here.

Runs of blanks are one.
"""

SMALLER: dict[str, dict[str, str]] = {
    "any-model": {"--limit 20": "--limit 4"},
    "beams": {"--limit 50": "--limit 3", "limit=50": "limit=3"},
    "check-your-setup": {"--limit 16": "--limit 4"},
    "evaluate": {
        "--train-opt split=train": "--train-opt split=train --dataset-opt train_size=40 "
        "--arm-opt fixed.pointers=4 --arm-opt fixed.budget=20",
        "--limit 200": "--limit 30",
        "--shots 1..4": "--shots 1..2 --limit 10",
        "limit=200": "limit=10",
        "It does not beat: answer-match": "It does not beat: image, answer-match, vote mixed",
    },
    "flamingo": {"--limit 20": "--limit 3"},
    "generate-and-validate": {"--limit 40": "--limit 8", "--limit 200": "--limit 8"},
    "gpus": {
        "--limit 4096 --window 1024": "--limit 40 --window 20",
        "--limit 16": "--limit 4",
        "train --rl-data": "train --rce-epochs 1 --grpo-epochs 1 --rl-data",
    },
    "guide": {"epochs 25": "epochs 2"},
    "long-runs": {"--limit 600": "--limit 60", "--limit 256 --window 64": "--limit 40 --window 20"},
    "run": {
        "train_size=300": "train_size=40",
        "--max-calls 2000": "--max-calls 480",
    },
    "own-data": {"NUMBER = 1200": "NUMBER = 30"},
    "servers": {"--limit 50": "--limit 5"},
    "train": {
        "--limit 300": "--limit 60",
        "probe.num=20": "probe.num=10",
        "train --rl-data": "train --rce-epochs 12 --layers 1 --held-out 0.3 --rl-data",
        "grpo epoch 5": "rce epoch 12",
        "split=test": "split=test --limit 10",
        "--max-calls 20000": "--max-calls 100 --rounds 1",
        "--limit 250": "--limit 6",
    },
}
"""Page → sizes → smaller ones for the default suite, and what else they make the page show."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What users of the pages have already, and responses that were kept."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POINTER_RL_CACHE", str(folder / "cache"))
        make_world(folder)
    return folder


@pytest.fixture
def read(world, tmp_path, monkeypatch, request):
    """Reads a page; `smaller` are sizes to use instead of the printed ones."""
    monkeypatch.setenv("POINTER_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # the pages show a CPU's output
    shutil.copytree(world / "cache", tmp_path / "cache")

    def read_page(name, smaller):
        if name == "share":
            hub = request.getfixturevalue("hub")
            smaller = {**smaller, "https://huggingface.co/ann": f"{hub.url}/ann", "hf_…": TOKEN}
        if name == "own-data":
            reason = "needs the dataset easy-vqa: pip install easy-vqa"
            pytest.importorskip("easy_vqa", reason=reason)
        desk = tmp_path / "desk"
        desk.mkdir()
        for given, source in GIVEN.get(name, {}).items():
            (desk / given).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (world / source).is_dir() else shutil.copy
            copy(world / source, desk / given)
        with FaultServer() as server:
            stand_ins = {
                "/data/okvqa": str(world / "vqa"),
                "/data/vqav2": str(world / "vqa"),
                "http://127.0.0.1:8000/v1": server.base_url,
                "https://api.example.com/v1": server.base_url,
                "OPENAI_API_KEY=…": "OPENAI_API_KEY=secret",
                "cuda:0": "cpu",
                '"e3"': '"1000003"',  # an id of the glyphs that the world's policy chooses from
                **smaller,
            }
            reader = Reader(desk, monkeypatch, stand_ins, NOT_RUN.get(name, {}))
            for block in blocks(PAGES[name]):
                reader.read(block)

    return read_page


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # huggingface_hub's
@pytest.mark.parametrize("name", PAGES)
def test_a_pages_snippets_do_what_it_says(name, read):
    read(name, SMALLER.get(name, {}))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLER)
def test_they_do_at_the_printed_sizes(name, read):
    read(name, {})


def _pairs(listed):
    return [(name, line) for name in listed for line in listed[name]]


@pytest.mark.parametrize(("name", "line"), _pairs(NOT_RUN))
def test_what_is_listed_as_not_run_is_there(name, line):
    found = blocks(PAGES[name])
    assert line in [each.head for each in found] + [each for b in found for each in b.commands]


@pytest.mark.parametrize(("name", "size"), _pairs(SMALLER))
def test_sizes_that_are_made_smaller_are_there(name, size):
    assert size in (ROOT / PAGES[name]).read_text(encoding="utf-8")
