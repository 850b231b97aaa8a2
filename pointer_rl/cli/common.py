"""What the commands that ask a backend have in common: their options, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pointer_rl.session.session import TrialOptions

__all__ = [
    "FILE",
    "GuideCommand",
    "asking_options",
    "backend_options",
    "read_trial_options",
    "trial_options",
]

FILE = click.Path(dir_okay=True, path_type=Path)
Function = TypeVar("Function", bound=Callable[..., Any])


class GuideCommand(click.Command):
    """Reads the guide's spellings too: underscores in options."""

    def __init__(self, name: str | None, **options: Any) -> None:
        super().__init__(name, **options)
        self.context_settings["token_normalize_func"] = lambda token: token.replace("_", "-")


_BACKEND_OPTIONS = [
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
    click.option(
        "--limit",
        type=click.IntRange(min=1),
        help="Only so many queries: the first (evaluate, doctor: a random subset).",
    ),
    click.option("--device", help="cpu, cuda, cuda:1, …; by default the first GPU, if any."),
]
_STORE_OPTIONS = [
    click.option(
        "--store",
        type=FILE,
        help="Where responses are kept, so that none is paid for twice "
        "[default: responses.sqlite in the cache folder].",
    ),
    click.option("--no-store", is_flag=True, help="Keep no responses, and use none that are kept."),
]
_EMBEDDING_OPTIONS = [
    click.option("--query-emb", type=FILE, help="Embeddings of the queries."),
    click.option("--cand-emb", type=FILE, help="Embeddings of the pool."),
]
_DECODING_OPTIONS = [
    click.option(
        "--decoding-opt",
        multiple=True,
        metavar="KEY=VALUE",
        help="max_new_tokens, num_beams, length_penalty, stop (comma-separated).",
    ),
]


def trial_options(command: Function) -> Function:
    """Add the options that `read_trial_options` reads: backend, embeddings, decoding."""
    options = [*_BACKEND_OPTIONS, *_STORE_OPTIONS, *_EMBEDDING_OPTIONS, *_DECODING_OPTIONS]
    return _add(options, command)


def backend_options(command: Function) -> Function:
    """Those of them that a command needs which proposes with no policy and generates no text."""
    return _add([*_BACKEND_OPTIONS, *_STORE_OPTIONS], command)


def asking_options(command: Function) -> Function:
    """Those that a command needs which generates, with no policy, and keeps no response."""
    return _add([*_BACKEND_OPTIONS, *_DECODING_OPTIONS], command)


def _add(options: Sequence[Callable[[Function], Function]], command: Function) -> Function:
    for option in reversed(options):
        command = option(command)
    return command


def read_trial_options(given: dict[str, Any]) -> TrialOptions:
    """The values of `trial_options`, `backend_options` or `asking_options`."""
    from pointer_rl.options import build_options, parse_assignments
    from pointer_rl.session.cache import default_store
    from pointer_rl.session.session import Named, TrialOptions
    from pointer_rl.types import Decoding

    def named(kind: str) -> Named:
        return Named(given[kind], parse_assignments(given[f"{kind}_opt"], f"--{kind}-opt"))

    given = {"store": None, "no_store": False, **given}
    if given["store"] is not None and given["no_store"]:
        raise click.UsageError("--store and --no-store exclude each other")
    decoding = parse_assignments(given.get("decoding_opt", ()), "--decoding-opt")
    return TrialOptions(
        dataset=named("dataset"),
        backend=named("backend"),
        prompt=named("prompt"),
        metric=named("metric"),
        decoding=build_options(Decoding, decoding, "decoding"),
        store=None if given["no_store"] else given["store"] or default_store(),
        **{key: given.get(key) for key in ("query_emb", "cand_emb", "limit", "device")},
    )
