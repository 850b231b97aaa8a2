"""`pointer-rl train` and `pointer-rl sft`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pointer_rl.cli.common import (
    ACCEPT_CHANGED,
    DEVICE,
    EMBEDDING_OPTIONS,
    EXECUTOR_OPTIONS,
    FILE,
    LOG_TO,
    RESUME,
    SCORE_ANSWERS,
    TRIAL_OPTIONS,
    GuideCommand,
    encoder_ref,
    number_option,
    plugin_options,
    plugin_refs,
    read_session_options,
    resumable,
    with_options,
)
from pointer_rl.cli.output import echo
from pointer_rl.cli.params import BUNDLE, KeyValue, PluginName

if TYPE_CHECKING:
    from pointer_rl.session.session import PluginRef
    from pointer_rl.train.config import TrainConfig
    from pointer_rl.train.run import Output, TrainResult

_LAST_SEED = 2**31 - 1
_OUTPUT = [
    click.option(
        "--output-dir",
        required=True,
        type=FILE,
        help="Folder for the policy bundle, metrics.jsonl and the checkpoint.",
    ),
    RESUME,
    ACCEPT_CHANGED,
    click.option("--overwrite", is_flag=True, help="Start over in a folder that holds a run."),
    LOG_TO,
]
_START = [
    click.option("--img-emb", type=FILE, help="One file of embeddings for queries and pool alike."),
    click.option(
        "--sft-ckpt",
        type=BUNDLE,
        help="Policy bundle (also hub:OWNER/NAME) or checkpoint to start from.",
    ),
    number_option("--shots", help="Demonstrations in a pointer  [default: the data's]."),
    *plugin_options(
        "selector",
        "pointer",
        "Selector to train, if --sft-ckpt does not give one.",
        owner="new selector",
    ),
    number_option(
        "--layers",
        help="Number of cross-attention layers of a new `pointer` selector  [default: 3].",
    ),
    number_option("--heads", help="Number of attention heads of each layer  [default: 8]."),
    number_option(
        "--hidden-dim", help="Size of the hidden layers  [default: that of the embeddings]."
    ),
    click.option(
        "--history",
        type=click.Choice(["static", "gated"]),
        help="Whether each chosen row updates the query vector (gated) or not  [default: static].",
    ),
    number_option("--batch-size", help="Queries per step  [default: 32]."),
    click.option(
        "--own-pools",
        "per_query_pool",
        is_flag=True,
        help="Let a query attend to, and choose from, the `pool` of its record alone.",
    ),
    click.option(
        "--held-out",
        type=float,
        metavar="SHARE",
        help="Share of the images that only choose the policy  [default: 0.1].",
    ),
    click.option(
        "--seed", type=click.IntRange(0, _LAST_SEED), metavar="N", help="Random seed  [default: 0]."
    ),
    number_option(
        "--seeds",
        1,
        help="Train with so many seeds, from --seed on, each into a folder seed-N of --output-dir. "
        "`evaluate` takes them as one arm, and reports their spread.",
    ),
]
_LEARNING = [
    click.option(
        "--recipe",
        type=click.Choice(["default", "guide"]),
        default="default",
        show_default=True,
        help="Defaults of the options below: ours, or those of the request that pointer-rl began "
        "with.",
    ),
    number_option(
        "--rce-epochs",
        minimum=0,
        help="Epochs of RCE; with --online, in each round too  [default: 20, and 8 per round].",
    ),
    number_option(
        "--grpo-epochs",
        minimum=0,
        help="Epochs of GRPO; with --online, in each round too  [default: 5, and 2 per round].",
    ),
    click.option("--rce-lr", type=float, help="Learning rate of RCE  [default: 0.001]."),
    click.option("--grpo-lr", type=float, help="Learning rate of GRPO  [default: 0.0001]."),
    click.option(
        "--contrast",
        type=float,
        help="Weight of the contrast within groups, in RCE  [default: 3.0].",
    ),
    click.option("--kl-beta", type=float, help="Weight of the KL term, in GRPO  [default: 0.3]."),
    click.option(
        "--clip", type=float, help="The ratio's range, 1 ± clip, in GRPO  [default: 0.2]."
    ),
    click.option(
        "--advantage",
        type=click.Choice(["mean", "mean-std"]),
        help="Reward less its group's mean, over the standard deviation or not  [default: "
        "mean-std].",
    ),
    click.option(
        "--grpo-on",
        type=click.Choice(["all", "sampled"]),
        help="Candidates that GRPO learns from  [default: all].",
    ),
    click.option(
        "--reward-mode",
        type=PluginName("reward"),
        default="hard_plus_soft",
        show_default=True,
        metavar="NAME",
        help="What a candidate's outcome is worth.",
    ),
    click.option(
        "--reward-opt",
        multiple=True,
        type=KeyValue("reward", "reward_mode"),
        help="Option of the reward (repeatable).",
    ),
    click.option(
        "--demonstration-price",
        type=float,
        metavar="PRICE",
        help="Taken from a candidate's reward for each demonstration shown  [default: 0.0].",
    ),
]
_ONLINE = [
    click.option("--online", is_flag=True, help="Ask the backend while learning."),
    number_option(
        "--max-calls",
        help="Most trials in all rounds; those in the cache count too. --online needs it.",
    ),
    number_option("--rounds", help="Number of online rounds  [default: 4]."),
    number_option(
        "--pointers", minimum=2, help="Pointers to try per query and round  [default: 4]."
    ),
    click.option(
        "--generator",
        type=PluginName("generator"),
        metavar="NAME",
        help="Search that proposes in the rounds, such as first-success  [default: probes].",
    ),
    click.option(
        "--generator-opt",
        multiple=True,
        type=KeyValue("generator"),
        help="Option of the search.",
    ),
    SCORE_ANSWERS,
]
_ONLY_ONLINE = {
    parameter.name
    for parameter in click.command()(
        with_options([*_ONLINE, *EXECUTOR_OPTIONS, *TRIAL_OPTIONS])(lambda: None)
    ).params
} - {"online", "encoder", "encoder_opt", "query_emb", "cand_emb", "device"}
"""Options that mean nothing to training on logged data."""


@click.command(cls=GuideCommand)
@click.option(
    "--rl-data",
    "--beam-data",
    "rl_data",
    type=FILE,
    help="RL data, as `generate` writes it.",
)
@with_options([*_OUTPUT, *_START, *_LEARNING, *_ONLINE, *EXECUTOR_OPTIONS, *TRIAL_OPTIONS])
def train(**given: Any) -> None:
    """Train a policy on RL data: reward-weighted cross-entropy (RCE), then GRPO.

    Writes a policy bundle, which `evaluate` measures and `select` uses. The policy that is kept is
    the one with the highest expected reward on held-out queries. Embeddings are those of the
    encoder that the data name, or of --encoder, unless --query-emb and --cand-emb, or --img-emb,
    give files.

    With --online it also asks the backend, in rounds: the policy proposes, the backend answers,
    and it learns from all there is so far. The options of backend, dataset, prompt, metric,
    decoding and store are for --online alone.
    """
    from pointer_rl.errors import InputError

    if given["online"]:
        _each_seed(given, lambda given: _train_online(given, _config(given)))
        return
    context = click.get_current_context()
    for name in given.keys() & _ONLY_ONLINE:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise InputError(f"--{name.replace('_', '-')} is for --online")
    if given["rl_data"] is None:
        raise InputError("give --rl-data, or --online to ask the backend while learning")
    _each_seed(given, lambda given: _train_on_data(given, _config(given), supervised=False))


@click.command(cls=GuideCommand)
@click.option("--beam-data", required=True, type=FILE, help="Beam data, as `beams` writes it.")
@with_options([*_OUTPUT, *_START])
@click.option(
    "--epochs", "rce_epochs", type=click.IntRange(min=1), help="Number of epochs  [default: 20]."
)
@click.option("--lr", "rce_lr", type=float, help="Learning rate  [default: 0.001].")
@click.option(
    "--temperature",
    type=float,
    default=1.0,
    show_default=True,
    help="T of the beams' weights, softmax(score / T).",
)
@with_options([*EMBEDDING_OPTIONS, DEVICE])
def sft(**given: Any) -> None:
    """Train a policy on InfoScore beams, by teacher forcing.

    A query's beams are weighted by softmax(score / temperature). The policy that is kept is the
    one with the highest likelihood of held-out beams. RL data, whose rewards are known, will do
    too: then it is the one with the highest expected reward.
    """
    given |= {"recipe": "default", "grpo_epochs": 0, "contrast": 0.0}
    given |= {"reward_mode": "hard_plus_soft", "reward_opt": ()}

    def train_on_beams(given: dict[str, Any]) -> None:
        config = _config(
            given,
            rce_temperatures=(given["temperature"], given["temperature"]),
            all_steps=True,
            include_zero_variance=True,
        )
        _train_on_data(given, config, supervised=True)

    _each_seed(given, train_on_beams)


def _each_seed(given: dict[str, Any], train: Callable[[dict[str, Any]], None]) -> None:
    """Train once into --output-dir, or for each of several seeds into a folder of its own."""
    from pointer_rl.errors import InputError
    from pointer_rl.selectors.bundle import is_bundle, seed_folder, seed_folders

    folder, start, number = given["output_dir"], given["sft_ckpt"], given["seeds"]
    there = [path for path in seed_folders(folder) if any(path.iterdir())]
    if number == 1:
        if there:
            raise InputError(
                f"{there[0]}: --output-dir holds several seeds; name another, or give --seeds"
            )
        train(given)
        return
    first = given["seed"] or 0
    if first + number - 1 > _LAST_SEED:
        raise InputError(f"--seeds {number} from --seed {first} on: the last is above {_LAST_SEED}")
    each = {seed: seed_folder(folder, seed) for seed in range(first, first + number)}
    others = [path for path in there if path not in each.values()]
    if others or is_bundle(folder):
        raise InputError(
            f"{others[0] if others else folder}: another training's; name another --output-dir"
        )
    starts = dict.fromkeys(each, start)
    if start is not None and seed_folders(start):
        starts = {seed: seed_folder(start, seed) for seed in each}
        missing = next((path for path in starts.values() if not is_bundle(path)), None)
        if missing is not None:
            raise InputError(f"{missing}: no bundle, and --sft-ckpt needs one for each seed")
    for path in each.values():
        path.mkdir(parents=True, exist_ok=True)  # all at once, so that none is missed until the end
    for seed, path in each.items():
        echo(f"seed {seed}:")
        train({**given, "seed": seed, "output_dir": path, "sft_ckpt": starts[seed]})


def _config(given: dict[str, Any], **fixed: Any) -> TrainConfig:
    from pointer_rl.train.config import RECIPES, TrainConfig

    # A flag that is not set is False; 0 is a value (`--grpo-epochs 0`), and equal to False.
    chosen = {
        each.name: given[each.name]
        for each in fields(TrainConfig)
        if given.get(each.name) is not None and given[each.name] is not False
    }
    options = {**RECIPES[given["recipe"]], **chosen, **fixed}
    return TrainConfig(selector_options=_selector_options(given), **options)


def _selector_options(given: dict[str, Any]) -> dict[str, object]:
    from pointer_rl.errors import InputError
    from pointer_rl.options import parse_assignments

    options: dict[str, object] = {**parse_assignments(given["selector_opt"], "--selector-opt")}
    flags = {"layers": "num_layers", "heads": "num_heads"}
    for flag in ("layers", "heads", "hidden_dim", "history"):
        name = flags.get(flag, flag)
        if given[flag] is not None:
            if name in options:
                raise InputError(f"--selector-opt {name}: given twice")
            options[name] = given[flag]
    return options


def _reward(given: dict[str, Any]) -> PluginRef:
    from pointer_rl.options import parse_assignments
    from pointer_rl.session.session import PluginRef

    return PluginRef(given["reward_mode"], parse_assignments(given["reward_opt"], "--reward-opt"))


def _output(given: dict[str, Any]) -> Output:
    from pointer_rl.train.run import Output

    return Output(
        folder=given["output_dir"],
        **{name: given[name] for name in ("overwrite", "log_to", "accept_changed")},
    )


def _train_on_data(given: dict[str, Any], config: TrainConfig, supervised: bool) -> None:
    from pointer_rl.cli.progress import Progress
    from pointer_rl.train.run import TrainRun, run_training

    run = TrainRun(
        data=given["beam_data" if supervised else "rl_data"],
        supervised=supervised,
        output=_output(given),
        config=config,
        reward=_reward(given),
        encoder=encoder_ref(given),
        **{
            name: given[name]
            for name in ("shots", "img_emb", "query_emb", "cand_emb", "sft_ckpt", "device")
        },
    )
    with Progress(epoch_text) as progress, resumable(progress, lambda: _kept(given)):
        result = run_training(run, progress)
    _tell(result)


def _train_online(given: dict[str, Any], config: TrainConfig) -> None:
    from pointer_rl.cli.progress import Progress
    from pointer_rl.errors import InputError
    from pointer_rl.train.online import OnlineConfig, OnlineRun, run_online

    if given["max_calls"] is None:
        raise InputError("--online needs --max-calls, the most trials that it may run")
    if given["img_emb"] is not None:
        raise InputError("--online: give --query-emb and --cand-emb rather than --img-emb")
    search = _search(given)
    names = ("rounds", "pointers", "rce_epochs", "grpo_epochs")
    more = {name: given[name] for name in names if given[name] is not None}
    run = OnlineRun(
        session=read_session_options(given),
        output=_output(given),
        online=OnlineConfig(max_calls=given["max_calls"], **more),
        config=config,
        data=given["rl_data"],
        search=search,
        reward=_reward(given),
        score_answers=given["score_answers"],
        shots=given["shots"],
        sft_ckpt=given["sft_ckpt"],
    )

    with Progress(epoch_text) as progress, resumable(progress, lambda: _kept(given)):
        result = run_online(run, progress)
    _tell(result)


def _search(given: dict[str, Any]) -> PluginRef | None:
    from pointer_rl.errors import InputError

    name = given["generator"]
    if name is not None and given["pointers"] is not None:
        raise InputError(f"--pointers is for probes: give --generator-opt {name}.budget=N")
    chosen: dict[str, dict[str, object]] = {} if name is None else {name: {}}
    return next(iter(plugin_refs(chosen, given["generator_opt"], "--generator-opt")), None)


def _kept(given: dict[str, Any]) -> str:
    return f"the same command continues from {given['output_dir']}"


def _tell(result: TrainResult) -> None:
    from pointer_rl.session.journal import AlreadyFinished

    for sentence in result.sentences():
        echo(sentence)
    finished = AlreadyFinished(result.folder)
    echo(str(finished) if result.unchanged else f"wrote {result.folder}")


def epoch_text(line: Mapping[str, Any]) -> str:
    """A line for people; metrics.jsonl has every number."""
    shown = ("rce", "cross_entropy", "contrast", "ppo", "kl", "entropy", "clipped")
    numbers = [f"{name.replace('_', '-')} {line[name]:.3f}" for name in shown if name in line]
    place = f"round {line['round']}  " if line["round"] else ""
    criterion = line["keep_by"]
    worth = f"held-out {criterion.replace('_', '-')} {line[f'held_out_{criterion}']:.3f}"
    if line["stage"] == "start":
        random = line[f"held_out_random_{criterion}"]
        worth += f" ({line['held_out_queries']:,} queries; a random choice has {random:.3f})"
    return "  ".join([f"{place}{line['stage']:<5} {line['epoch']:>3}", *numbers, worth])
