"""What the commands that ask a backend have in common: their options, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pointer_rl.trials.workbench import TrialOptions

__all__ = ["FILE", "GuideCommand", "read_trial_options", "trial_options"]

FILE = click.Path(dir_okay=True, path_type=Path)
Function = TypeVar("Function", bound=Callable[..., Any])


class GuideCommand(click.Command):
    """Reads the guide's spellings too: underscores in options."""

    def __init__(self, name: str | None, **options: Any) -> None:
        super().__init__(name, **options)
        self.context_settings["token_normalize_func"] = lambda token: token.replace("_", "-")


_TRIAL_OPTIONS = [
    click.option(
        "--backend",
        "--vqa-model",
        "backend",
        default="qwen2vl",
        show_default=True,
        metavar="NAME",
        help="VQA backend, or an alias such as qwen2.5_vl_3B.",
    ),
    click.option(
        "--backend-opt",
        multiple=True,
        metavar="KEY=VALUE",
        help="Option of the backend (repeatable).",
    ),
    click.option(
        "--dataset", default="glyphs", show_default=True, metavar="NAME", help="Dataset loader."
    ),
    click.option(
        "--dataset-opt",
        multiple=True,
        metavar="KEY=VALUE",
        help="Option of the dataset (repeatable).",
    ),
    click.option(
        "--prompt",
        default="short-answer",
        show_default=True,
        metavar="NAME",
        help="Prompt builder.",
    ),
    click.option(
        "--prompt-opt",
        multiple=True,
        metavar="KEY=VALUE",
        help="Option of the prompt (repeatable).",
    ),
    click.option(
        "--metric", default="vqa", show_default=True, metavar="NAME", help="Accuracy metric."
    ),
    click.option(
        "--metric-opt",
        multiple=True,
        metavar="KEY=VALUE",
        help="Option of the metric (repeatable).",
    ),
    click.option("--query-emb", type=FILE, help="Embeddings of the queries."),
    click.option("--cand-emb", type=FILE, help="Embeddings of the pool."),
    click.option("--limit", type=click.IntRange(min=1), help="Only the first so many queries."),
    click.option(
        "--decoding-opt",
        multiple=True,
        metavar="KEY=VALUE",
        help="max_new_tokens, num_beams, length_penalty, stop (comma-separated).",
    ),
    click.option("--device", help="cpu, cuda, cuda:1, …; by default the first GPU, if any."),
]


def trial_options(command: Function) -> Function:
    """Add the options that `read_trial_options` reads."""
    for option in reversed(_TRIAL_OPTIONS):
        command = option(command)
    return command


def read_trial_options(given: dict[str, Any]) -> TrialOptions:
    """The values of `trial_options`."""
    from pointer_rl.options import build_options, parse_assignments
    from pointer_rl.trials.workbench import Named, TrialOptions
    from pointer_rl.types import Decoding

    def named(kind: str) -> Named:
        return Named(given[kind], parse_assignments(given[f"{kind}_opt"], f"--{kind}-opt"))

    decoding = parse_assignments(given["decoding_opt"], "--decoding-opt")
    return TrialOptions(
        dataset=named("dataset"),
        backend=named("backend"),
        prompt=named("prompt"),
        metric=named("metric"),
        decoding=build_options(Decoding, decoding, "decoding"),
        **{key: given[key] for key in ("query_emb", "cand_emb", "limit", "device")},
    )
