"""`pointer-rl select`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pointer_rl.cli.common import FILE, GuideCommand
from pointer_rl.cli.output import echo
from pointer_rl.cli.params import KeyValue, PluginName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pointer_rl.datasets.embeddings import Embeddings
    from pointer_rl.types import Example


@click.command(cls=GuideCommand)
@click.argument("bundle", type=FILE)
@click.option("--question", help="A question, about --image.")
@click.option("--image", type=FILE, help="The image of --question.")
@click.option(
    "--queries",
    type=FILE,
    help="Questions as JSON lines: image and question (answers are not needed).",
)
@click.option("--query-emb", type=FILE, help="Embeddings of questions, by the bundle's encoder.")
@click.option(
    "--shots",
    type=click.IntRange(min=1),
    help="Demonstrations for each question (default: the number that the policy was trained for).",
)
@click.option(
    "--encoder",
    type=PluginName("encoder"),
    metavar="NAME",
    help="Encoder of the questions, if the bundle does not name it.",
)
@click.option(
    "--encoder-opt",
    multiple=True,
    type=KeyValue("encoder", "encoder"),
    help="An option of the encoder, in place of the bundle's (repeatable).",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cpu, cuda, cuda:1, …; auto is the first GPU, if any.",
)
def select(
    bundle: Path,
    question: str | None,
    image: Path | None,
    queries: Path | None,
    query_emb: Path | None,
    shots: int | None,
    encoder: str | None,
    encoder_opt: tuple[str, ...],
    device: str,
) -> None:
    """Choose demonstrations for new questions, with the policy in the folder BUNDLE.

    Prints a JSON line for each question: query_id, pointer (rows of the pool), demonstrations
    (their ids), in the order in which they are shown, and logprob. A policy that can stop chooses
    up to --shots demonstrations; an empty pointer shows none.
    """
    from pointer_rl.errors import InputError
    from pointer_rl.options import parse_assignments
    from pointer_rl.selectors.selecting import Policy

    _check(question, image, queries, query_emb)
    if query_emb is not None and (encoder is not None or encoder_opt):
        raise InputError("--encoder embeds questions; those of --query-emb are embedded already")
    policy = Policy.load(
        bundle,
        device,
        encoder=encoder,
        encoder_options=parse_assignments(encoder_opt, "--encoder-opt"),
    )
    for chosen in policy.select(_read(question, image, queries, query_emb), shots):
        line = {
            "query_id": chosen.query_id,
            "pointer": chosen.rows,
            "demonstrations": chosen.ids,
            "logprob": chosen.logprob,
        }
        echo(json.dumps(line))


def _check(
    question: str | None, image: Path | None, queries: Path | None, query_emb: Path | None
) -> None:
    from pointer_rl.errors import InputError

    ways = [question is not None or image is not None, queries is not None, query_emb is not None]
    if sum(ways) != 1 or (question is None) != (image is None):
        raise InputError("give either --question and --image, or --queries, or --query-emb")
    if question == "":
        raise InputError("--question is empty: write the question about the image")


def _read(
    question: str | None, image: Path | None, queries: Path | None, query_emb: Path | None
) -> Sequence[Example] | Embeddings:
    from pointer_rl.datasets.embeddings import load_embeddings
    from pointer_rl.datasets.images import ImageFile
    from pointer_rl.registry import registry
    from pointer_rl.types import Dataset, Example

    if query_emb is not None:
        return load_embeddings(query_emb)
    if queries is not None:
        options = {"path": str(queries), "unanswered": True}
        dataset: Dataset = registry().create("dataset", "jsonl", options)
        return dataset.queries
    assert question is not None
    assert image is not None
    return [Example(id="0", row=0, image=ImageFile(image), question=question, answers=())]
