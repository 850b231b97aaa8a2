"""What the commands that ask a backend have in common: their options, and how they are read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pointer_rl.cli.progress import Progress
    from pointer_rl.session.session import PluginRef, SessionOptions

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


_EXECUTOR_OPTIONS = [
    click.option(
        "--executor",
        default="in-process",
        show_default=True,
        metavar="NAME",
        help="What runs the windows of queries.",
    ),
    click.option(
        "--executor-opt",
        multiple=True,
        metavar="KEY=VALUE",
        help="Option of the executor (repeatable).",
    ),
]


def trial_options(command: Function) -> Function:
    """Add the options that `read_session_options` reads: backend, embeddings, decoding."""
    options = [*_BACKEND_OPTIONS, *_STORE_OPTIONS, *_EMBEDDING_OPTIONS, *_DECODING_OPTIONS]
    return _add(options, command)


def backend_options(command: Function) -> Function:
    """Add those for a command that proposes without a policy and generates no text."""
    return _add([*_BACKEND_OPTIONS, *_STORE_OPTIONS], command)


def asking_options(command: Function) -> Function:
    """Add those for a command that generates without a policy and caches no responses."""
    return _add([*_BACKEND_OPTIONS, *_DECODING_OPTIONS], command)


def executor_options(command: Function) -> Function:
    """Add the options that `read_executor` reads."""
    return _add(_EXECUTOR_OPTIONS, command)


def _add(options: Sequence[Callable[[Function], Function]], command: Function) -> Function:
    for option in reversed(options):
        command = option(command)
    return command


def plugin_ref(given: dict[str, Any], kind: str) -> PluginRef:
    """The plugin that `--KIND NAME --KIND-opt KEY=VALUE` name."""
    from pointer_rl.options import parse_assignments
    from pointer_rl.session.session import PluginRef

    options = parse_assignments(given[f"{kind}_opt"], f"--{kind}-opt")
    if options and given[kind] is None:
        raise click.UsageError(f"--{kind}-opt: give --{kind}, whose options these are")
    return PluginRef(given[kind], options)


def plugin_refs(
    chosen: Mapping[str, Mapping[str, object]], assignments: Sequence[str], flag: str
) -> list[PluginRef]:
    """Plugins by name with their options, to which `assignments`, NAME.KEY=VALUE each, are added.

    flag: the option that the assignments come from, for messages.
    """
    from pointer_rl.errors import InputError
    from pointer_rl.options import parse_assignments
    from pointer_rl.session.session import PluginRef

    options = {name: dict(values) for name, values in chosen.items()}
    for key, value in parse_assignments(assignments, flag).items():
        name, dot, option = key.rpartition(".")
        if not dot or name not in options:
            raise InputError(
                f"{flag} {key}: write NAME.KEY=VALUE for one of {', '.join(options) or 'none'}"
            )
        options[name][option] = value
    return [PluginRef(name, values) for name, values in options.items()]


def read_executor(given: dict[str, Any]) -> PluginRef:
    """The value of `executor_options`."""
    return plugin_ref(given, "executor")


def read_session_options(given: dict[str, Any]) -> SessionOptions:
    """The values of `trial_options`, `backend_options` or `asking_options`."""
    from pointer_rl.options import build_options, parse_assignments
    from pointer_rl.session.cache import default_store
    from pointer_rl.session.session import SessionOptions
    from pointer_rl.types import Decoding

    given = {"store": None, "no_store": False, **given}
    if given["store"] is not None and given["no_store"]:
        raise click.UsageError("--store and --no-store exclude each other")
    decoding = parse_assignments(given.get("decoding_opt", ()), "--decoding-opt")
    return SessionOptions(
        dataset=plugin_ref(given, "dataset"),
        backend=plugin_ref(given, "backend"),
        prompt=plugin_ref(given, "prompt"),
        metric=plugin_ref(given, "metric"),
        decoding=build_options(Decoding, decoding, "decoding"),
        cache=None if given["no_store"] else given["store"] or default_store(),
        **{key: given.get(key) for key in ("query_emb", "cand_emb", "limit", "device")},
    )


@contextmanager
def resumable(progress: Progress, kept: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C in this block into one line, with what `kept` says, and exit status 130."""
    try:
        yield
    except KeyboardInterrupt:
        progress.stop()
        click.echo(f"pointer-rl: interrupted: {kept()}", err=True)
        sys.exit(130)


def kept_in(output: Path, progress: Progress) -> str:
    """What an unfinished run leaves, and how it is continued."""
    from pointer_rl.session.journal import partial_path

    if not progress.done:
        return "no query was done, nothing is written"
    where = partial_path(output)
    return f"{progress.done:,} queries are in {where}; the same command continues from there"
