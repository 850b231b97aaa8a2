"""The hooks that a plugin may implement, marked with `hookimpl`.

Each hook is called once per plugin. `register` is a `pointer_rl.types.Register`, to be called for
each thing that the plugin adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from pointer_rl.types import Register

hookspec = pluggy.HookspecMarker("pointer_rl")
hookimpl = pluggy.HookimplMarker("pointer_rl")


@hookspec
def pointer_rl_register_backends(register: Register) -> None:
    """Register VQA backends: factories of `VQABackend`."""


@hookspec
def pointer_rl_register_prompt_builders(register: Register) -> None:
    """Register prompt builders: factories of `PromptBuilder`."""


@hookspec
def pointer_rl_register_metrics(register: Register) -> None:
    """Register accuracy metrics: factories of `Metric`."""


@hookspec
def pointer_rl_register_generators(register: Register) -> None:
    """Register candidate generators: factories of `Generator` or `SearchGenerator`."""


@hookspec
def pointer_rl_register_rewards(register: Register) -> None:
    """Register rewards: factories of `Reward`."""


@hookspec
def pointer_rl_register_datasets(register: Register) -> None:
    """Register dataset loaders: factories of `Dataset`."""


@hookspec
def pointer_rl_register_encoders(register: Register) -> None:
    """Register encoders: factories of `Encoder`."""


@hookspec
def pointer_rl_register_selectors(register: Register) -> None:
    """Register selectors: factories of `pointer_rl.selectors.Selector`."""


@hookspec
def pointer_rl_register_executors(register: Register) -> None:
    """Register executors: factories of `Executor`."""


@hookspec
def pointer_rl_register_arms(register: Register) -> None:
    """Register arms of an evaluation: factories of `pointer_rl.evaluate.arms.Arm`."""


@hookspec
def pointer_rl_register_commands(cli: click.Group) -> None:
    """Add commands to `pointer-rl`."""
