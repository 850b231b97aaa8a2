"""What the commands that ask a backend have in common: their options, and how they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
from click.core import ParameterSource

from pointer_rl.cli.configuration import apply_configuration, blame
from pointer_rl.cli.help import Context, write_commands, write_options
from pointer_rl.cli.output import echo
from pointer_rl.cli.params import FilePath, KeyValue, PluginName
from pointer_rl.train.trackers import TrackerName

if TYPE_CHECKING:
    from pointer_rl.cli.progress import Progress
    from pointer_rl.options import Assignment
    from pointer_rl.session.session import PluginRef, SessionOptions


class FiniteRange(click.FloatRange):
    """A number in a range. NaN, which compares with nothing, is in none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


FILE = FilePath(path_type=Path)
Function = TypeVar("Function", bound=Callable[..., Any])
Option = Callable[[Any], Any]


class GuideCommand(click.Command):
    """Reads the guide's spellings too, underscores in options, and configuration files."""

    context_class = Context

    def __init__(self, name: str | None, **options: Any) -> None:
        super().__init__(name, **options)
        self.context_settings.setdefault(
            "token_normalize_func", lambda token: token.replace("_", "-")
        )
        self.context_settings["show_default"] = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            rest = super().parse_args(ctx, args)
        except click.BadParameter as error:
            raise blame(ctx, error) from error
        apply_configuration(ctx)
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_options(self, ctx, formatter)


class GuideGroup(click.Group):
    """A group of such commands."""

    command_class = GuideCommand
    context_class = Context

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_commands(self, ctx, formatter, {})


def number_option(
    name: str,
    default: int | None = None,
    *,
    help: str,
    minimum: int = 1,
    metavar: str = "N",
) -> Option:
    """An option that takes an integer from `minimum` up."""
    return click.option(
        name,
        type=click.IntRange(min=minimum),
        default=default,
        show_default=True,
        metavar=metavar,
        help=help,
    )


def seed_option(help: str = "Random seed.") -> Option:
    """`--seed`, 0 by default."""
    return click.option(
        "--seed", type=click.IntRange(0, 2**63 - 1), default=0, metavar="N", help=help
    )


def plugin_options(
    kind: str,
    default: str | None,
    help: str,
    *names: str,
    owner: str | None = None,
    required: bool = False,
) -> list[Option]:
    """`--KIND NAME` and `--KIND-opt KEY=VALUE`; `names` are further spellings of the first.

    owner: whose options they are in the help, if not the kind's.
    """
    registered = "backend" if kind == "against" else kind
    return [
        click.option(
            *(f"--{kind}", *names, kind),
            type=PluginName(registered),
            default=default,
            required=required,
            show_default=True,
            metavar="NAME",
            help=help,
        ),
        click.option(
            f"--{kind}-opt",
            multiple=True,
            type=KeyValue(registered, kind),
            help=f"Option of the {owner or kind} (repeatable).",
        ),
    ]


DEVICE = click.option("--device", help="cpu, cuda, cuda:1, …  [default: the first GPU, if any].")
BACKEND_OPTIONS = [
    *plugin_options(
        "backend", "qwen2vl", "VQA backend, or an alias such as qwen2.5_vl_3B.", "--vqa-model"
    ),
    *plugin_options("dataset", "glyphs", "Dataset loader."),
    *plugin_options("prompt", "short-answer", "Prompt builder."),
    *plugin_options("metric", "vqa", "Accuracy metric."),
    number_option(
        "--limit",
        help="Only so many queries: the first (evaluate, doctor: a random subset)  [default: all].",
    ),
    DEVICE,
]
STORE_OPTIONS = [
    click.option(
        "--store",
        type=FILE,
        help="Where responses are kept, so that none is paid for twice "
        " [default: responses.sqlite in the cache folder].",
    ),
    click.option("--no-store", is_flag=True, help="Keep no responses, and use none that are kept."),
]
ENCODER_OPTIONS = plugin_options(
    "encoder",
    None,
    "Encoder of queries and pool  [default: that of the policy or data, else the dataset's].",
)
EMBEDDING_OPTIONS = [
    *ENCODER_OPTIONS,
    click.option("--query-emb", type=FILE, help="Embeddings of the queries, instead of --encoder."),
    click.option("--cand-emb", type=FILE, help="Embeddings of the pool, instead of --encoder."),
]
DECODING_OPTION = click.option(
    "--decoding-opt",
    multiple=True,
    type=KeyValue("decoding"),
    help="max_new_tokens, num_beams, length_penalty, stop (comma-separated).",
)
TRIAL_OPTIONS = [*BACKEND_OPTIONS, *STORE_OPTIONS, *EMBEDDING_OPTIONS, DECODING_OPTION]
_IN_PROCESS = "in-process"
EXECUTOR_OPTIONS = plugin_options("executor", _IN_PROCESS, "What runs the windows of queries.")
RESUME = click.option(
    "--resume", is_flag=True, help="Accepted: an interrupted run is always continued."
)
ACCEPT_CHANGED = click.option(
    "--accept-changed",
    type=click.Choice(["plugins", "inputs"]),
    multiple=True,
    help="Continue a run although the code of its plugins, or its inputs (images, questions, "
    "answers, embeddings), changed since it began. Both states are recorded.",
)
LOG_TO = click.option(
    "--log-to",
    type=click.Choice(get_args(TrackerName)),
    multiple=True,
    help="Also show the metrics in TensorBoard or Trackio (repeatable).",
)
SCORE_ANSWERS = click.option(
    "--score-answers",
    is_flag=True,
    help="Record the annotators' answers' probability too (one more pass for each answer).",
)
SHOTS = number_option("--shots", 2, help="Demonstrations in a pointer.")


def with_options(options: Sequence[Option]) -> Callable[[Function], Function]:
    """Add these options to a command, in this order."""

    def add(command: Function) -> Function:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def plugin_ref(given: dict[str, Any], kind: str) -> PluginRef:
    """The plugin that `--KIND NAME --KIND-opt KEY=VALUE` name."""
    from pointer_rl.options import parse_assignments
    from pointer_rl.session.session import PluginRef

    options = parse_assignments(given[f"{kind}_opt"], f"--{kind}-opt")
    if options and given[kind] is None:
        raise click.UsageError(f"--{kind}-opt: give --{kind}, whose options these are")
    return PluginRef(given[kind], options)


def encoder_ref(given: dict[str, Any]) -> PluginRef | None:
    """The encoder of ENCODER_OPTIONS. One of a configuration gives way to files of embeddings."""
    encoder = plugin_ref(given, "encoder")
    source = click.get_current_context().get_parameter_source("encoder")
    files = given.get("img_emb") or (given.get("query_emb") and given.get("cand_emb"))
    if given["encoder"] is None or (files and source is not ParameterSource.COMMANDLINE):
        return None
    return encoder


def plugin_refs(
    chosen: Mapping[str, Mapping[str, object]], assignments: Sequence[str | Assignment], flag: str
) -> list[PluginRef]:
    """Plugins by name with their options, to which `assignments`, NAME.KEY=VALUE each, are added.

    flag: the option that the assignments come from, for messages.
    """
    from pointer_rl.errors import InputError
    from pointer_rl.options import parse_assignments
    from pointer_rl.session.session import PluginRef

    options = {name: dict(values) for name, values in chosen.items()}
    assignments = [  # a configuration file may have options of plugins that this run does not use
        each
        for each in assignments
        if isinstance(each, str) or each.key.rpartition(".")[0] in options
    ]
    for key, value in parse_assignments(assignments, flag).items():
        name, dot, option = key.rpartition(".")
        if not dot or name not in options:
            raise InputError(
                f"{flag} {key}: write NAME.KEY=VALUE, with the NAME of one that was given "
                f"({', '.join(options) or 'none was'})"
            )
        options[name][option] = value
    return [PluginRef(name, values) for name, values in options.items()]


def read_session_options(given: dict[str, Any]) -> SessionOptions:
    """The values of `TRIAL_OPTIONS`, or of those of them that a command has."""
    from pointer_rl.options import build_options, parse_assignments
    from pointer_rl.session.cache import default_store
    from pointer_rl.session.session import SessionOptions
    from pointer_rl.types import Decoding

    missing = {"store": None, "no_store": False, "encoder": None, "encoder_opt": ()}
    given = {**missing, "executor": _IN_PROCESS, "executor_opt": (), **given}
    if given["store"] is not None and given["no_store"]:
        raise click.UsageError("--store and --no-store exclude each other")
    decoding = parse_assignments(given.get("decoding_opt", ()), "--decoding-opt")
    return SessionOptions(
        dataset=plugin_ref(given, "dataset"),
        backend=plugin_ref(given, "backend"),
        prompt=plugin_ref(given, "prompt"),
        metric=plugin_ref(given, "metric"),
        decoding=build_options(Decoding, decoding, "decoding"),
        encoder=encoder_ref(given),
        executor=plugin_ref(given, "executor"),
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
        echo(f"pointer-rl: interrupted: {kept()}", err=True)
        raise click.exceptions.Exit(130) from None


def kept_in(output: Path, progress: Progress) -> str:
    """What an unfinished run leaves, and how it is continued."""
    from pointer_rl.session.journal import partial_path

    if not progress.done:
        return "no query was done, nothing is written"
    where = partial_path(output)
    return f"{progress.done:,} queries are in {where}; the same command continues from there"
