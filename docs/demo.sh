#!/bin/sh
# The whole loop on the embedded world, into a folder: `make demo`.
set -eu
out=${1:-demo}
mkdir -p "$out"

step() { printf '\n$ pointer-rl %s\n' "$*"; pointer-rl "$@"; }

# What a VLM thinks of single demonstrations, and a first policy from that.
step beams --output-path "$out/beams.json" --limit 100 --sampler mixed --sub-pool 20 \
    --beam-size 1 --overwrite
step sft --beam-data "$out/beams.json" --output-dir "$out/sft" --epochs 10 \
    --held-out 0.15 --overwrite

# RL data: rows that have a query's answer and others, until the VLM is right once and wrong once.
step generate --backend qwen2vl --output-path "$out/rl.json" --limit 2000 --window 512 --overwrite \
    --num-beams 0 --num-retrieval 0 --num-samples-per-temp 0 --num-random 0 \
    --generator first-success --generator-opt first-success.answers=true
step validate "$out/rl.json"

# Learning from it; then learning while asking.
step train --rl-data "$out/rl.json" --sft-ckpt "$out/sft" --output-dir "$out/offline" --overwrite
step train --online --rl-data "$out/rl.json" --sft-ckpt "$out/offline" --rce-epochs 8 \
    --grpo-epochs 2 --generator first-success --generator-opt first-success.answers=true \
    --max-calls 6000 --rounds 3 --output-dir "$out/online" --overwrite

# Did it help? All on the same questions, which nothing was trained on.
step evaluate --dataset-opt split=test --train-opt split=train --limit 200 --shots 1..3 \
    --policy "SFT=$out/sft" --policy "offline=$out/offline" --policy "online=$out/online" --record \
    --output-path "$out/evaluation.json" --plot "$out/accuracy.png" --overwrite
