"""Trains the glyph model: `python -m pointer_rl_glyphs.training.train DIR` (some 90 minutes).

There are four phases. Vision: the vision tower learns to name shape, colour, pattern and stamp.
Reading: the language model learns to read an answer off the demonstrations, with the tower frozen.
Joint: both are trained on episodes of every length.
Pairs: the language model learns to answer with two words, read off two demonstrations.

The answer loss alone does not train the model: finding the asked value, finding the block that
shows it, and copying its word get no gradient until all three exist. Two linear probes, discarded
afterwards, therefore supervise the middle layers: the asked key must be readable after layer 3 at
the last token before an answer, and after layer 4 at the answer's first token. With only long
episodes and many repeats, copying (an induction head) starts after about 250 steps; with short
episodes mixed in, it had not started after 500.

`--from FOLDER` runs the last phase alone, on the weights of another training. The shipped model was
made so, with `--pair-steps 900 --images 50`, from that of commit cbc0e6d, which had no such phase.

Run the same command again to resume an interrupted training. All randomness of a step comes from
(seed, step), so the weights are bit-identical to those of an uninterrupted run on the same machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pointer_rl.errors import InputError
from pointer_rl.registry import registry
from pointer_rl.types import PromptBuilder
from pointer_rl_glyphs.lexicon import (
    COLORS,
    DATASET_WORDS,
    KEYS,
    PATTERNS,
    SHAPES,
    TRAINING_WORDS,
    Lexicon,
)
from pointer_rl_glyphs.training.checkpoint import (
    INSTRUCTIONS,
    build_model,
    build_tokenizer,
    save_checkpoint,
)
from pointer_rl_glyphs.training.episodes import (
    CASES,
    Episode,
    pair_episode,
    training_episode,
)
from pointer_rl_glyphs.training.muon import Muon
from pointer_rl_glyphs.training.tensors import (
    Batch,
    ImageBank,
    grid,
    patches,
    pixel_values,
    tokenise,
)

BLOCKS_PER_STEP = 160
READING_LENGTHS = (8,)
JOINT_LENGTHS = (1, 2, 3, 4, 5, 5, 6, 7, 8, 8)
PAIR_LENGTHS = (3, 3, 4, 5, 6, 7, 7)
"""Numbers of blocks in an episode, of which the last is the query. Each step draws one."""
CHECKPOINT_EVERY = 250
WARMUP = 50


class Trainer:
    """The model with its probes and optimisers, and the training steps of all phases."""

    def __init__(
        self,
        seed: int,
        vision_steps: int,
        reading_steps: int,
        joint_steps: int,
        pair_steps: int,
        images: int,
        start: Path | None = None,
    ) -> None:
        """`start`: a model folder with the weights to begin with; none: they are drawn."""
        self.seed = seed
        self.vision_steps, self.reading_steps = vision_steps, reading_steps
        self.joint_steps, self.pair_steps = joint_steps, pair_steps
        self._features: torch.Tensor | None = None
        phases = (vision_steps, reading_steps, joint_steps, pair_steps)
        self.plan: list[int | str] = [seed, *phases, images]
        """Everything that determines the weights; a training with another plan is not resumed."""
        torch.manual_seed(seed)
        self.tokenizer = build_tokenizer()
        self.model = build_model(self.tokenizer)
        if start is not None:
            weights = (start / "model.safetensors").read_bytes()
            self.plan.append(hashlib.sha256(weights).hexdigest()[:16])
            begun = type(self.model).from_pretrained(start, dtype=torch.float32)
            self.model.load_state_dict(begun.state_dict())
        width = self.model.config.text_config.hidden_size
        self.heads = nn.ModuleList(
            nn.Linear(width, n) for n in (len(SHAPES), len(COLORS), len(PATTERNS), 2)
        )
        self.probes = nn.ModuleList(nn.Linear(width, len(KEYS)) for _ in range(2))
        self.bank = ImageBank(seed, images)
        visual = self.model.model.visual
        text = [
            parameter
            for name, parameter in self.model.named_parameters()
            if not name.startswith("model.visual.")
        ]
        matrices = [p for p in text if p.ndim == 2 and p.shape[0] != len(self.tokenizer)]
        others = [p for p in text if p.ndim != 2 or p.shape[0] == len(self.tokenizer)]
        self.vision_optimizer = torch.optim.AdamW(
            [*visual.parameters(), *self.heads.parameters()], lr=1.5e-3
        )
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=0.005),  # at 0.02, copying takes twice as long to begin
            torch.optim.AdamW(
                [
                    {"params": [*others, *self.probes.parameters()], "lr": 3e-3},
                    {"params": list(visual.parameters()), "lr": 3e-4},
                ],
                betas=(0.9, 0.98),
                weight_decay=0.0,
            ),
        ]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        self._parts: dict[str, Any] = {
            "model": self.model,
            "heads": self.heads,
            "probes": self.probes,
            "vision_optimizer": self.vision_optimizer,
            "muon": self.optimizers[0],
            "adamw": self.optimizers[1],
        }
        self._builders: dict[tuple[str, str], PromptBuilder] = {
            (style, text): registry().create("prompt", style, {"instructions": text})
            for style in ("short-answer", "chat")
            for text in ("", *INSTRUCTIONS)
        }

    # --- phases ---

    def vision_step(self, step: int) -> dict[str, float]:
        """Predict the features of images from the mean of their merged tokens."""
        rng = random.Random(f"{self.seed}/vision/{step}")
        rows = torch.tensor(rng.sample(range(len(self.bank.patches)), BLOCKS_PER_STEP))
        mean = self._see(self.bank.patches[rows]).mean(1)
        features = self.bank.features[rows].T
        logits = [head(mean) for head in self.heads]
        losses = list(map(cross_entropy, logits, features))
        for group in self.vision_optimizer.param_groups:
            group["lr"] = 1.5e-3 * min(1.0, 1.25 * (1 - step / self.vision_steps))
        self.vision_optimizer.zero_grad()
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        self.vision_optimizer.step()
        right = map(_accuracy, logits, features)
        return dict(zip(("shape", "color", "pattern", "stamp"), right, strict=True))

    def reading_step(self, step: int) -> dict[str, float]:
        """Long episodes in one prompt format, with the vision tower frozen."""
        rng = random.Random(f"{self.seed}/reading/{step}")
        episodes = _draw(rng, READING_LENGTHS, partial(training_episode, repeats=0.6, english=0.1))
        builder = self._builders["short-answer", ""]
        return self._step(rng, episodes, builder, self._frozen(), _warm(step))

    def joint_step(self, step: int) -> dict[str, float]:
        """Episodes of all lengths in all prompt formats, with the vision tower trained."""
        rng = random.Random(f"{self.seed}/joint/{step}")
        self._features = None
        episodes = _draw(rng, JOINT_LENGTHS, training_episode)
        scale = 1 - step / self.joint_steps
        return self._step(rng, episodes, self._draw_builder(rng), None, scale)

    def pair_step(self, step: int) -> dict[str, float]:
        """Episodes that ask for two words and, a third of them, as before; with the tower frozen.

        The rates are lower, so that what has been learned before is kept.
        """
        rng = random.Random(f"{self.seed}/pairs/{step}")
        if rng.random() < 0.65:
            episodes = _draw(rng, PAIR_LENGTHS, pair_episode)
        else:
            episodes = _draw(rng, JOINT_LENGTHS, training_episode)
        scale = 0.4 * _warm(step) * (1 - step / self.pair_steps)
        return self._step(rng, episodes, self._draw_builder(rng), self._frozen(), scale)

    def _frozen(self) -> torch.Tensor:
        """The bank's image tokens [N, 4, width]; the vision tower must not change from now on."""
        if self._features is None:
            with torch.no_grad():
                parts = [self._see(part) for part in torch.split(self.bank.patches, 512)]
            self._features = torch.cat(parts)
        return self._features

    def _step(
        self,
        rng: random.Random,
        episodes: Sequence[Episode],
        builder: PromptBuilder,
        features: torch.Tensor | None,
        scale: float,
    ) -> dict[str, float]:
        """One update on episodes of one length.

        `features`: the bank's image tokens [N, 4, width], or None to compute them with gradients.
        `scale`: factor of all learning rates.
        """
        batch = tokenise(episodes, builder, self.tokenizer, query_weight=2.0)
        images = [block.image for episode in episodes for block in episode]
        rows = self.bank.rows(images, rng)
        seen = self._see(self.bank.patches[rows]) if features is None else features[rows]
        logits, probe_logits = self._read(batch, seen)
        answer_loss = (
            cross_entropy(logits, batch.targets, reduction="none") * batch.weights
        ).sum() / batch.weights.sum().clamp(min=1)
        probe_losses = [cross_entropy(each, batch.keys) for each in probe_logits]
        loss = answer_loss + 0.5 * torch.stack(probe_losses).sum()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * scale
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()
        return {
            "loss": float(answer_loss.detach()),
            "right": _accuracy(logits, batch.targets),
            "probe_3": _accuracy(probe_logits[0], batch.keys),
            "probe_4": _accuracy(probe_logits[1], batch.keys),
        }

    def _draw_builder(self, rng: random.Random) -> PromptBuilder:
        style = rng.choice(("short-answer", "chat"))
        kind = rng.random()
        default = INSTRUCTIONS[0] if style == "short-answer" else INSTRUCTIONS[1]
        text = "" if kind < 0.35 else default if kind < 0.7 else rng.choice(INSTRUCTIONS)
        return self._builders[style, text]

    def _see(self, patches_NPx: torch.Tensor) -> torch.Tensor:
        """Image tokens [N, 4, width] of patches [N, 16, 588]."""
        merged: torch.Tensor = self.model.model.visual(
            pixel_values(patches_NPx), grid_thw=grid(len(patches_NPx))
        ).pooler_output
        return merged.reshape(len(patches_NPx), -1, merged.shape[-1])

    def _read(
        self, batch: Batch, images_NTH: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits of the supervised tokens [T, V] and of both probes [A, 36]."""
        model = self.model.model
        is_image = batch.input_ids == self.model.config.image_token_id
        embedded = model.get_input_embeddings()(batch.input_ids)
        embedded = embedded.masked_scatter(is_image[..., None], images_NTH)
        positions, _ = model.get_rope_index(
            batch.input_ids,
            mm_token_type_ids=is_image.int(),
            image_grid_thw=grid(len(images_NTH)),
            attention_mask=batch.attention_mask,
        )
        output = model.language_model(
            inputs_embeds=embedded,
            position_ids=positions,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
            use_cache=False,
        )
        last = output.last_hidden_state[batch.positions[:, 0], batch.positions[:, 1]]
        episode, asked = batch.asked_at.T
        third, fourth = output.hidden_states[3], output.hidden_states[4]
        return self.model.lm_head(last), [
            self.probes[0](third[episode, asked]),
            self.probes[1](fourth[episode, asked + 1]),
        ]

    @torch.no_grad()
    def evaluate(self, cases_each: int = 60) -> dict[str, float]:
        """Share of exactly right answers by case, for images and words not trained on."""
        rng = random.Random("evaluation")
        result = {}
        for style in ("short-answer", "chat"):
            for case in CASES:
                episodes = [
                    case.episode(rng, Lexicon.draw(rng, DATASET_WORDS)) for _ in range(cases_each)
                ]
                batch = tokenise(episodes, self._builders[style, ""], self.tokenizer, 1.0)
                images = [block.image for episode in episodes for block in episode]
                logits, _ = self._read(batch, self._see(patches(images)))
                right = torch.ones(len(images), dtype=torch.bool)
                wrong = logits.argmax(-1) != batch.targets
                right[batch.target_blocks[wrong]] = False
                result[f"{style}, {case.name}"] = float(
                    right[case.shots :: case.shots + 1].float().mean()
                )
        return result

    # --- state ---

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])


def _draw(
    rng: random.Random, lengths: Sequence[int], make: Callable[..., Episode]
) -> list[Episode]:
    """Episodes for a step, all of one of these lengths."""
    length = rng.choice(lengths)
    number = min(40, BLOCKS_PER_STEP // length)
    return [make(rng, length, TRAINING_WORDS) for _ in range(number)]


def _warm(step: int) -> float:
    return min(1.0, (step + 1) / WARMUP)


def _accuracy(logits: torch.Tensor, targets: torch.Tensor) -> float:
    return float((logits.argmax(-1) == targets).float().mean())


def train(folder: Path, trainer: Trainer) -> None:
    """Run the remaining steps, logging to folder/log.jsonl, then write folder/model."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = folder / "state.pt"
    step = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        if state["plan"] != trainer.plan:
            raise InputError(
                f"{saved}: begun with {state['plan']} as seed, steps and images, now "
                f"{trainer.plan}: give the same values, or another folder"
            )
        step = state["step"]
        trainer.load_state(state)
    phases = (
        (trainer.vision_steps, trainer.vision_step),
        (trainer.reading_steps, trainer.reading_step),
        (trainer.joint_steps, trainer.joint_step),
        (trainer.pair_steps, trainer.pair_step),
    )
    total = sum(steps for steps, _ in phases)
    with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
        started, first = time.monotonic(), step
        while step < total:
            within = step
            for steps, run in phases:
                if within < steps:
                    figures = run(within)
                    break
                within -= steps
            step += 1
            if step % 25 == 0:
                seconds = (time.monotonic() - started) / (step - first)
                _log(log, {"step": step, "seconds_per_step": seconds, **figures})
            if step % CHECKPOINT_EVERY == 0 or step == total:
                partial = saved.with_suffix(".partial")
                torch.save({"step": step, "plan": trainer.plan, **trainer.state()}, partial)
                os.replace(partial, saved)
                if step > trainer.vision_steps:
                    _log(log, {"step": step, "evaluation": trainer.evaluate()})
    save_checkpoint(trainer.model, folder / "model")
    shutil.copy(folder / "log.jsonl", folder / "model" / "train_log.jsonl")


def _log(log: IO[str], record: dict[str, Any]) -> None:
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()}
    log.write(json.dumps(rounded) + "\n")
    log.flush()
    print(json.dumps(rounded), flush=True)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m pointer_rl_glyphs.training.train", description=__doc__
    )
    parser.add_argument("folder", type=Path, help="for the log, the state and the finished model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vision-steps", type=int, default=700)
    parser.add_argument("--reading-steps", type=int, default=600)
    parser.add_argument("--joint-steps", type=int, default=1300)
    parser.add_argument("--pair-steps", type=int, default=900)
    parser.add_argument("--images", type=int, default=100, help="per combination of features")
    parser.add_argument(
        "--from", type=Path, dest="start", metavar="FOLDER", help="a model to train on pairs alone"
    )
    arguments = vars(parser.parse_args())
    folder = arguments.pop("folder")
    if arguments["start"] is not None:
        arguments.update(vision_steps=0, reading_steps=0, joint_steps=0)
    train(folder, Trainer(**arguments))


if __name__ == "__main__":
    main()
