"""One of each that a third party may add: the hooks, and nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

import click

from pointer_rl import hookimpl


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """Options of the dataset."""

    path: str
    """A folder of images, each named after its answer, as in red-3.png."""


@dataclass(frozen=True, kw_only=True)
class CopyOptions:
    """Options of the backend."""

    default: str = "unknown"
    """What it answers if there is no demonstration."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of the search."""

    budget: int = 4
    """Most trials per query."""


@dataclass(frozen=True, kw_only=True)
class SelectorOptions:
    """Options of the selector."""

    d_model: int
    """Size of the embeddings. Training fills it in."""


def _backend(options):
    from acme_vqa.backend import CopyBackend

    return CopyBackend(options)


def _prompt():
    from acme_vqa.prompt import ArrowPrompt

    return ArrowPrompt()


def _metric():
    from acme_vqa.metric import FirstWord

    return FirstWord()


def _generator():
    from acme_vqa.generator import Ends

    return Ends()


def _search(options):
    from acme_vqa.search import Swaps

    return Swaps(options)


def _selector(options):
    from acme_vqa.selector import StoppingSelector

    return StoppingSelector(options)


def _executor():
    from acme_vqa.executor import PickledPairs

    return PickledPairs()


def _arm():
    from acme_vqa.arm import LastRows

    return LastRows()


def _dataset(options):
    from acme_vqa.dataset import load

    return load(options)


@hookimpl
def pointer_rl_register_backends(register):
    register(
        "acme",
        _backend,
        options=CopyOptions,
        summary="repeats what was shown last",
        aliases={"acme-mute": {"default": "nothing"}},
    )
    register("acme-cloud", _backend, summary="not on this machine", needs={"acme_sdk": "acme[sdk]"})


@hookimpl
def pointer_rl_register_prompt_builders(register):
    register("acme", _prompt, summary="question -> answer")


@hookimpl
def pointer_rl_register_metrics(register):
    register("acme", _metric, summary="the first words are equal")


@hookimpl
def pointer_rl_register_generators(register):
    register("acme", _generator, summary="the first and the last rows")
    register("acme-swaps", _search, options=SearchOptions, summary="swaps rows of the best pointer")


@hookimpl
def pointer_rl_register_datasets(register):
    register("acme", _dataset, options=FolderOptions, summary="a folder of images")


@hookimpl
def pointer_rl_register_selectors(register):
    register("acme", _selector, options=SelectorOptions, summary="dot products, and a stop")


@hookimpl
def pointer_rl_register_executors(register):
    register("acme-pairs", _executor, summary="the second of two windows first, of a pickled job")


@hookimpl
def pointer_rl_register_arms(register):
    register("acme-last", _arm, summary="the last rows of the pool")


@hookimpl
def pointer_rl_register_commands(cli):
    @cli.command()
    @click.argument("name", default="world")
    def acme(name):
        """Greet NAME."""
        click.echo(f"hello {name}")
