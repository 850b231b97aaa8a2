"""One of each that a third party may add: the hooks, and nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

import click

from pointer_rl import hookimpl


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """Options of the dataset."""

    path: str
    """A folder of pictures, each named after its answer, as in red-3.png."""


@dataclass(frozen=True, kw_only=True)
class CopyOptions:
    """Options of the backend."""

    default: str = "unknown"
    """What it answers where nothing was shown."""


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


@hookimpl
def pointer_rl_register_datasets(register):
    register("acme", _dataset, options=FolderOptions, summary="a folder of pictures")


@hookimpl
def pointer_rl_register_commands(cli):
    @cli.command()
    @click.argument("name", default="world")
    def acme(name):
        """Greet NAME."""
        click.echo(f"hello {name}")
