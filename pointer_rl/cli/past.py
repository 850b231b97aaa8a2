"""The configuration of a past run, from what its file says of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pointer_rl.cli.beams import beams
from pointer_rl.cli.configuration import options_of, plugin_tables
from pointer_rl.cli.evaluate import evaluate
from pointer_rl.cli.generate import generate
from pointer_rl.cli.params import long_name
from pointer_rl.cli.train import sft, train
from pointer_rl.errors import InputError
from pointer_rl.json_stream import find_member
from pointer_rl.records.formats import read_meta
from pointer_rl.selectors.bundle import BundleInfo, load_bundle

Table = dict[str, Any]
_SHARED = ("dataset", "backend", "encoder", "prompt", "metric", "decoding", "selector", "reward")
_OPENING = """\
# The configuration of {path}, written by pointer-rl config --of.
# Files of embeddings and policies, budgets, and what to write are not recorded: add them.
# Relative paths are as they were given, and hold if this file is in the folder of the run."""


def configuration_of_run(path: Path) -> str:
    """The options of the run that wrote RL data, beam data, an evaluation or a bundle, as TOML.

    Raises InputError for a file that says nothing of its run.
    """
    try:
        command, run, shared, own = _described(path)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: the description of its run is damaged, or from another version ({error!r})"
        ) from error
    tables: dict[str, Table] = {}
    for kind in _SHARED:
        described = shared.get(kind)
        if not isinstance(described, Mapping) or (kind != "decoding" and not described.get("name")):
            continue
        values = described if kind == "decoding" else described.get("options") or {}
        named = {} if kind == "decoding" else {"plugin": described["name"]}
        tables[kind] = {**named, **_given(values)}
    model = tables.get("backend", {}).get("model", "")
    if model.startswith("companion of "):
        del tables["backend"]["model"]
    plugins = plugin_tables(command)
    options = {
        long_name(option): run[str(option.name)]
        for option in options_of(command).values()
        if long_name(option) not in plugins
        and isinstance(run.get(str(option.name)), (bool, int, float, str))
    }
    name = str(command.name)
    tables[name] = {**options, **{key: each for key, each in own.items() if not _is_table(each)}}
    tables |= {f"{name}.{_key(key)}": each for key, each in own.items() if _is_table(each)}
    parts = [_OPENING.format(path=path)]
    for title, table in tables.items():
        lines = [f"{_key(key)} = {_value(each)}" for key, each in table.items()]
        parts.append("\n".join([f"[{title}]", *lines]))
    return "\n\n".join(parts) + "\n"


def _described(path: Path) -> tuple[click.Command, Table, Table, Table]:
    """The command, its recorded options, the plugins by kind, and further keys of its table."""
    if path.is_dir():
        return _trained(load_bundle(path).info)
    meta = read_meta(path)
    if meta is not None and "generators" in meta:
        return generate, meta, meta, _generators(meta)
    if meta is not None and "beam_size" in meta:
        return beams, meta, meta, {"any-length": True} if "max_shots" in meta else {}
    settings = find_member(path, "settings") if meta is None and path.suffix == ".json" else None
    if isinstance(settings, dict) and "random_seeds" in settings:
        arms = settings.get("arms", [])
        own: Table = {
            "shots": ",".join(map(str, settings["shots"])),
            "seeds": settings["random_seeds"],
            **({"arm": [each["name"] for each in arms]} if arms else {}),
            **{each["name"]: _given(each["options"]) for each in arms if each["options"]},
        }
        if settings.get("train_options"):
            own["train-opt"] = settings["train_options"]
        return evaluate, {**settings, "seeds": None}, settings, own
    raise InputError(
        f"{path}: does not say how it was made: give RL data, beam data, an evaluation, or the "
        "folder of a policy"
    )


def _generators(meta: Mapping[str, Any]) -> Table:
    """The flags of the built-in generators, and tables for what these cannot say."""
    options = {each["name"]: _given(each["options"]) for each in meta["generators"]}
    counts = {"num-beams": ("beam", "width"), "num-retrieval": ("retrieval", "num")}
    counts |= {"num-random": ("random", "num"), "num-samples-per-temp": ("sample", "num_samples")}
    own: Table = {flag: options.get(name, {}).pop(key, 0) for flag, (name, key) in counts.items()}
    if "sample" in options:
        own["temps"] = options["sample"].pop("temperatures")
    built_in = {name for name, _ in counts.values()}
    further = [name for name in options if name not in built_in]
    if further:
        own["generator"] = further
    if "max_shots" in meta:
        own |= {"shots": meta["max_shots"], "any-length": True}
    return own | {name: each for name, each in options.items() if each}


def _trained(info: BundleInfo) -> tuple[click.Command, Table, Table, Table]:
    run: Table = dict(info.training.get("options", {}))
    shared: Table = {key: each for key, each in run.items() if isinstance(each, Mapping)}
    shared |= {"dataset": info.dataset, "encoder": asdict(info.encoder)}
    shared["selector"] = {"name": run.get("selector"), "options": run.get("selector_options", {})}
    own: Table = {"shots": info.shots}
    if "temperature" in run:
        return sft, {**run, "rce_epochs": run["epochs"], "rce_lr": run["lr"]}, shared, own
    shared["reward"] = {"name": run.get("reward"), "options": run.get("reward_options", {})}
    online = run.get("online")
    if isinstance(online, Mapping):
        search = online.get("search")
        names = ("max_calls", "rounds", "pointers", "rce_epochs", "grpo_epochs")
        own |= {"online": True, **{each.replace("_", "-"): online[each] for each in names}}
        if search:
            del own["pointers"]
            own |= {"generator": search["name"], search["name"]: _given(search["options"])}
    return train, run, shared, own


def _given(options: Mapping[str, Any]) -> Table:
    """Without options that are None, which TOML cannot say, and is what they are by default."""
    return {key: each for key, each in options.items() if each is not None}


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: object) -> str:
    """As TOML, whose strings and numbers are written as JSON's, but for DEL."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(key)} = {_value(each)}' for key, each in value.items())}}}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
