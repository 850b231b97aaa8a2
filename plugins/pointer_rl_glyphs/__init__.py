"""The embedded world: a small VQA dataset and a small VLM, so that everything runs offline.

Every command loads this module, so factories and options are imported when they are needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointer_rl.hookspecs import hookimpl

if TYPE_CHECKING:
    import click

    from pointer_rl.types import Register


@hookimpl
def pointer_rl_register_datasets(register: Register) -> None:
    """Two datasets of glyphs."""
    register(
        "glyphs",
        "pointer_rl_glyphs.dataset:load_glyphs",
        options="pointer_rl_glyphs.options:GlyphsOptions",
        summary="images of shapes, questions answered in made-up words; brings its own model",
    )
    register(
        "glyphs-pairs",
        "pointer_rl_glyphs.dataset:load_pairs",
        options="pointer_rl_glyphs.options:GlyphsOptions",
        summary="glyphs where half of the answers take two demonstrations, and some none",
    )


@hookimpl
def pointer_rl_register_encoders(register: Register) -> None:
    """The encoder of the glyph model."""
    register(
        "glyphs",
        "pointer_rl_glyphs.encoder:GlyphsEncoder",
        options="pointer_rl_glyphs.options:GlyphsEncoderOptions",
        summary="the glyph model's vision tower and token embeddings",
    )


@hookimpl
def pointer_rl_register_commands(cli: click.Group) -> None:
    """`pointer-rl glyphs`."""
    from pointer_rl_glyphs.command import glyphs

    cli.add_command(glyphs)
