"""Trains a tiny OpenFlamingo on pictures of glyphs, from nothing, on one core in minutes.

An episode is a row of blocks, `<image>Question:colour? Short answer:<word><|endofchunk|>`. Which
word names which colour is drawn anew for each episode: it can only be read off earlier blocks, by
what their pictures show. So a right answer needs the picture of the query, those of the
demonstrations, and each seen from its own place in the text.

While it is trained, two linear probes read the colour off a middle layer, as for the glyph model
(facts in pointer_rl_glyphs/training/train.py); they are thrown away.

Shapes: B episodes, K blocks, L tokens, W width.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pointer_rl_flamingo.model import OpenFlamingoConfig, OpenFlamingoModel
from pointer_rl_flamingo.openflamingo import add_special_tokens, save
from pointer_rl_flamingo.pixels import pixels
from pointer_rl_glyphs.images import GlyphImage
from pointer_rl_glyphs.lexicon import COLORS
from pointer_rl_glyphs.training.muon import Muon

SIDE = 28
WORDS = [first + second for first in ("ba", "do", "ki", "lu", "me") for second in ("n", "p", "s")]
QUESTION = "colour?"
BLOCKS = 6
EPISODES = 32
"""In a step."""
PROBED = (2, 3)
"""Layers after which the colour is read: before an answer, at its first token."""


def make_tokenizer() -> Any:
    """Each word is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [f"Question:{QUESTION} Short answer:{word}" for word in WORDS]
    tokenizer.train_from_iterator(texts * 3, trainer)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return add_special_tokens(
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    )


def make_model(tokenizer: Any, kind: str) -> OpenFlamingoModel:
    width, layers = 64, 5
    if kind == "mpt":
        text: Any = transformers.MptConfig(
            d_model=width,
            n_heads=4,
            n_layers=layers,
            max_seq_len=256,
            vocab_size=len(tokenizer),
            attn_config={"qk_ln": True},
        )
    else:
        text = transformers.GPTNeoXConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=4 * width,
            vocab_size=len(tokenizer),
            max_position_embeddings=256,
            tie_word_embeddings=False,
        )
    vision = transformers.CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=7,
    )
    return OpenFlamingoModel(
        OpenFlamingoConfig(
            vision_config=vision,
            text_config=text,
            media_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            eoc_token_id=tokenizer.convert_tokens_to_ids("<|endofchunk|>"),
            resampler_depth=1,
            num_latents=4,
            num_heads=2,
            head_dim=32,
        )
    )


class Episodes:
    """Draws episodes as the model takes them. Every one has the same tokens but for the words."""

    def __init__(self, tokenizer: Any, seed: int, pictures: int = 64) -> None:
        self._rng = random.Random(seed)
        self.pixels = torch.stack(
            [
                pixels(GlyphImage.draw_at_random(self._rng, color=color).open(), SIDE)
                for color in COLORS
                for _ in range(pictures)
            ]
        )
        """[colours × pictures, 3, SIDE, SIDE]"""
        self._pictures = pictures
        self._words = [tokenizer(word)["input_ids"] for word in WORDS]
        assert all(len(word) == 1 for word in self._words)
        block = tokenizer(f"<image>Question:{QUESTION} Short answer:{WORDS[0]}<|endofchunk|>\n")
        self._block: list[int] = block["input_ids"]
        self.answer = self._block.index(self._words[0][0])
        """Place of the word in a block."""
        self.length = len(self._block)

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids [B, K·l], pictures [B, K], colours [B, K]"""
        rows, pictures, colors = [], [], []
        for _ in range(EPISODES):
            few = self._rng.sample(range(len(COLORS)), self._rng.choice((2, 3)))
            words = dict(zip(few, self._rng.sample(self._words, len(few)), strict=True))
            shown = [self._rng.choice(few) for _ in range(BLOCKS)]
            row: list[int] = []
            for color in shown:
                block = list(self._block)
                [block[self.answer]] = words[color]
                row += block
            rows.append(row)
            colors.append(shown)
            pictures.append(
                [color * self._pictures + self._rng.randrange(self._pictures) for color in shown]
            )
        return torch.tensor(rows), torch.tensor(pictures), torch.tensor(colors)


def train(model: OpenFlamingoModel, episodes: Episodes, steps: int) -> None:
    """Adam, for GPT-NeoX's matrices Muon; warm-up and linear decay.

    The loss is of words that were shown before, and of every word's end.
    """
    width = model.config.text_config.hidden_size
    probes = nn.ModuleList([nn.Linear(width, len(COLORS)) for _ in PROBED])
    read: dict[int, Tensor] = {}
    gated = [module for module in model.modules() if type(module).__name__ == "FlamingoLayer"]
    hooks = [
        gated[layer].register_forward_hook(
            lambda module, args, out, layer=layer: read.update(
                {layer: out[0] if isinstance(out, tuple) else out}
            )
        )
        for layer in PROBED
    ]
    for module in gated:
        nn.init.constant_(module.gated_cross_attn_layer.attn_gate, 0.5)
        nn.init.constant_(module.gated_cross_attn_layer.ff_gate, 0.5)
    matrices = [
        parameter
        for name, parameter in model.lang_encoder.named_parameters()
        if ".decoder_layer." in name and parameter.ndim == 2
    ]
    # Found by trying: with Adam alone GPT-NeoX does not begin to copy, with Muon MPT is slow.
    with_muon = model.config.text_config.model_type == "gpt_neox"
    taken = {id(parameter) for parameter in matrices} if with_muon else set()
    by_adam = [
        each for each in (*model.parameters(), *probes.parameters()) if id(each) not in taken
    ]
    optimizers = [
        *([Muon(matrices, lr=0.01)] if with_muon else []),
        torch.optim.AdamW(by_adam, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    started = time.process_time()
    model.train()
    for step in range(steps):
        scale = min((step + 1) / 30, (steps - step) / (0.5 * steps), 1.0)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
        ids, pictures, colors = episodes.draw()
        latents = model.encode(episodes.pixels[pictures.flatten()])
        media = model.project(latents.unflatten(0, pictures.shape))
        answers = torch.arange(BLOCKS) * episodes.length + episodes.answer
        every = model(ids, media=media).logits
        logits, following = every[:, answers - 1], every[:, answers]
        earlier = torch.ones(BLOCKS, BLOCKS).tril(-1).bool()
        seen = ((colors[:, :, None] == colors[:, None]) & earlier).any(-1)
        words = ids[:, answers]
        ends = ids[:, answers + 1].flatten()
        loss = cross_entropy(logits[seen], words[seen])
        loss = loss + 0.1 * cross_entropy(following.flatten(0, 1), ends)
        hits = (logits.argmax(-1) == words)[seen].float().mean()
        probed = []
        for probe, layer, place in zip(probes, PROBED, (answers - 1, answers), strict=True):
            scores = probe(read[layer][:, place])
            probed.append((scores.argmax(-1) == colors).float().mean().item())
            loss = loss + 0.5 * cross_entropy(scores.flatten(0, 1), colors.flatten())
        model.zero_grad(set_to_none=True)
        probes.zero_grad(set_to_none=True)
        loss.backward()
        if not with_muon:
            nn.utils.clip_grad_norm_(by_adam, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % 50 == 0:
            print(
                f"step {step + 1}: loss {loss.item():.3f}, words {hits.item():.2f},"
                f" colour {probed[0]:.2f} {probed[1]:.2f},"
                f" {time.process_time() - started:.0f} CPU s",
                flush=True,
            )
    for hook in hooks:
        hook.remove()
    model.eval()


def train_tiny_flamingo(folder: Path, kind: str = "mpt", steps: int = 600) -> None:
    """Train and save. The backend loads the folder."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, kind)
    train(model, Episodes(tokenizer, seed=0), steps)
    save(model, tokenizer, folder)


if __name__ == "__main__":
    train_tiny_flamingo(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
