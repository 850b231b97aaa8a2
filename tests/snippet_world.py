"""What the pages take for granted, small: models, datasets, RL data and policies of some user."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from click.testing import CliRunner
from tiny_clip import make_clip
from tiny_flamingo import make_parts
from tiny_models import make_tiny_model

from pointer_rl.cli.main import cli
from pointer_rl.selectors import PointerConfig, PointerSelector, save_selector
from pointer_rl_glyphs.dataset import MODEL_DIR, draw_split
from pointer_rl_glyphs.options import GlyphsOptions

CLIP_DIM = 24
"""Of an image and a question by `make_clip`'s model."""


def make_world(folder: Path) -> None:
    """Fill a folder; what its parts are is said where they are made."""
    _models(folder)
    _questions(folder)
    _older_files(folder)
    _data_and_policies(folder)


def _models(folder: Path) -> None:
    shutil.copytree(MODEL_DIR, folder / "qwen")
    make_clip(folder / "clip")
    make_tiny_model(folder / "llava", "llava")
    make_parts(folder / "flamingo", "mosaic_gpt")


def _questions(folder: Path) -> None:
    """Pictures of glyphs as files; `some.jsonl`, `new.jsonl` without answers, VQAv2's files."""
    vqa = folder / "vqa"
    (vqa / "train2014").mkdir(parents=True)
    lines, questions, annotations = [], [], []
    for number, each in enumerate(draw_split(GlyphsOptions(pool_size=12), "pool")):
        picture = each.image.open().convert("RGB")
        picture.save(folder / f"e{number}.png")
        picture.save(vqa / "train2014" / f"COCO_train2014_{number:012d}.jpg")
        lines.append(
            {"id": f"e{number}", "image": f"e{number}.png", "question": each.question}
            | ({"answers": each.answers})
        )
        ids = {"image_id": number, "question_id": number}
        questions.append({**ids, "question": each.question})
        annotations.append({**ids, "answers": [{"answer": answer} for answer in each.answers]})
    _write_lines(folder / "some.jsonl", lines)
    asked = [{key: line[key] for key in ("id", "image", "question")} for line in lines[:3]]
    _write_lines(folder / "new.jsonl", asked)
    head = {"data_subtype": "train2014"}
    for prefix in ("", "v2_"):  # of OK-VQA, of VQAv2
        start = f"{prefix}OpenEnded_mscoco_train2014"
        _write(vqa / f"{start}_questions.json", {**head, "questions": questions})
        start = f"{prefix}mscoco_train2014"
        _write(vqa / f"{start}_annotations.json", {**head, "annotations": annotations})


def _older_files(folder: Path) -> None:
    """Lever-Plus' RL data, Lever-LM's beam data, embeddings and a selector without ids."""
    outcome = {"gen_method": "random", "vqa_pred_answer": "x"}
    right = {**outcome, "vqa_correct": 1, "vqa_acc_score": 1.0}
    wrong = {**outcome, "vqa_correct": 0, "vqa_acc_score": 0.0}
    candidates = [
        {"pointer": [2, 0], "pointer_global": [5, 3], **right},
        {"pointer": [1, 0], "pointer_global": [4, 3], **wrong},
    ]
    k64 = {"candidate_pool_ids": [3, 4, 5], "pointer_candidates": candidates}
    _write(folder / "k64.json", {"0": k64, "1": k64})
    beams = {str(row): {"id_list": [[4, 3, row]], "score_list": [0.5]} for row in (0, 1)}
    _write(folder / "lever_beams.json", beams)
    torch.save(torch.randn(6, 4), folder / "embeddings.pt")
    okvqa = {
        str(row): {"id_list": [[(row + 1) % 12, (row + 2) % 12, row]], "score_list": [0.5]}
        for row in range(12)
    }
    _write(folder / "okvqa_beams.json", okvqa)
    torch.save(torch.randn(12, CLIP_DIM), folder / "okvqa_embeddings.pt")
    config = PointerConfig(
        d_model=CLIP_DIM, hidden_dim=8, num_layers=1, num_heads=1, history="gated"
    )
    selector = PointerSelector.seeded(config, 0)
    save_selector(folder / "selector", selector)
    torch.save(selector.state_dict(), folder / "selector.ckpt")


def _data_and_policies(folder: Path) -> None:
    """By the commands: RL data of glyphs, whole and in shards; a policy; embeddings of queries."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        for command in (
            "generate --output-path rl.json --limit 12",
            *(
                f"generate --output-path part{shard}.jsonl --limit 12 --window 4 --shard {shard}/3"
                for shard in (1, 2, 3)
            ),
            "train --rl-data rl.json --rce-epochs 2 --grpo-epochs 0 --output-dir policy",
            "embed --dataset glyphs --dataset-opt train_size=3 --encoder glyphs --split queries"
            " --output-path query_emb.safetensors",
        ):
            done = CliRunner().invoke(cli, command.split())
            assert done.exit_code == 0, done.output
    finally:
        os.chdir(before)


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_lines(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
