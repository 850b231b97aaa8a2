"""`pointer-rl select`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pointer_rl.cli.common import (
    DEVICE,
    FILE,
    GuideCommand,
    number_option,
    plugin_options,
    with_options,
)
from pointer_rl.cli.output import echo, echo_wrapped, on_terminal
from pointer_rl.cli.params import BUNDLE
from pointer_rl.cli.trials import Page, format_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pointer_rl.datasets.parts import Part
    from pointer_rl.selectors.selecting import Policy, Selection
    from pointer_rl.session.session import PluginRef
    from pointer_rl.types import Dataset, Example

QUESTION_OPTIONS = [
    click.option("--question", help="A question, about --image."),
    click.option("--image", type=FILE, help="The image of --question."),
    click.option(
        "--queries",
        type=FILE,
        help="Questions as JSON lines: image and question (answers are not needed).",
    ),
]
SELECTION_OPTIONS = [
    number_option(
        "--shots",
        help="Demonstrations for each question  [default: as many as the policy was trained for].",
    ),
    *plugin_options(
        "encoder", None, "Encoder of the questions  [default: the one that BUNDLE names]."
    ),
    *plugin_options(
        "dataset", None, "Dataset with the policy's pool  [default: the one that BUNDLE names]."
    ),
]
JSON_OPTION = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON lines on a terminal, too."
)


@click.command(cls=GuideCommand)
@click.argument("bundle", type=BUNDLE)
@with_options(QUESTION_OPTIONS)
@click.option("--query-emb", type=FILE, help="Embeddings of questions, by the bundle's encoder.")
@with_options(SELECTION_OPTIONS)
@with_options([DEVICE, JSON_OPTION])
def select(bundle: Path, as_json: bool, **given: Any) -> None:
    """Choose demonstrations for new questions, with the policy in the folder BUNDLE.

    Prints them in words on a terminal, and otherwise a JSON line for each question: query_id,
    pointer (rows of the pool), demonstrations (their ids), in the order in which they are shown,
    and logprob. A policy that can stop chooses up to --shots demonstrations; an empty pointer
    shows none.

    BUNDLE may also be on the Hugging Face Hub: hub:OWNER/NAME or hub:OWNER/NAME@REVISION.
    """
    from pointer_rl.datasets.embeddings import load_embeddings
    from pointer_rl.errors import InputError

    query_emb = given["query_emb"]
    if query_emb is not None and (given["encoder"] is not None or given["encoder_opt"]):
        raise InputError("--encoder embeds questions; those of --query-emb are embedded already")
    questions = read_questions(given)
    policy = load_policy(bundle, given)
    queries = questions if query_emb is None else load_embeddings(query_emb)
    chosen = policy.select(queries, given["shots"])
    if not on_terminal() or as_json:
        for each in chosen:
            echo(json.dumps(describe_selection(each)))
        return
    page = _page(bundle, policy, given)
    for index, each in enumerate(chosen):
        query = questions[index] if questions else None
        page.query(each.query_id, *((query.question, query.image) if query else ()))
        echo_wrapped(f"log-probability {format_number(each.logprob)}", indent=2)
        page.demonstrations(each.rows, indent=2)
        echo("")


def describe_selection(chosen: Selection) -> dict[str, Any]:
    """A selection for a line of JSON."""
    return {
        "query_id": chosen.query_id,
        "pointer": chosen.rows,
        "demonstrations": chosen.ids,
        "logprob": chosen.logprob,
    }


def load_policy(bundle: Path, given: dict[str, Any]) -> Policy:
    """The policy of a bundle, with `SELECTION_OPTIONS` and --device."""
    from pointer_rl.options import parse_assignments
    from pointer_rl.selectors.selecting import Policy

    return Policy.load(
        bundle,
        given["device"] or "auto",
        encoder=given["encoder"],
        encoder_options=parse_assignments(given["encoder_opt"], "--encoder-opt"),
    )


def read_questions(given: dict[str, Any]) -> Sequence[Example]:
    """The questions of `QUESTION_OPTIONS`; none if there is --query-emb instead."""
    from pointer_rl.datasets.images import ImageFile
    from pointer_rl.errors import InputError
    from pointer_rl.registry import registry
    from pointer_rl.types import Example

    question, image, queries = given["question"], given["image"], given["queries"]
    query_emb = given.get("query_emb")
    ways = [question is not None or image is not None, queries is not None, query_emb is not None]
    if sum(ways) != 1 or (question is None) != (image is None):
        embedded = ", or --query-emb" if "query_emb" in given else ""
        raise InputError(f"give either --question and --image, or --queries{embedded}")
    if question == "":
        raise InputError("--question is empty: write the question about the image")
    if query_emb is not None:
        return ()
    if queries is not None:
        options = {"path": str(queries), "unanswered": True}
        found: Sequence[Example] = registry().create("dataset", "jsonl", options).queries
        return found
    return [Example(id="0", row=0, image=ImageFile(image), question=question, answers=())]


def pool_dataset(bundle: Path, policy: Policy, given: dict[str, Any]) -> PluginRef:
    """The dataset that the bundle, or `SELECTION_OPTIONS`, names."""
    from pointer_rl.datasets.recorded import recorded_dataset
    from pointer_rl.options import parse_assignments
    from pointer_rl.session.session import PluginRef

    options = parse_assignments(given["dataset_opt"], "--dataset-opt")
    return PluginRef(*recorded_dataset(policy.info.dataset, bundle, given["dataset"], options))


def pool_part(policy: Policy, given: dict[str, Any]) -> Part | None:
    """The part of the dataset that the policy knows, if `pointer-rl run` held images out."""
    from pointer_rl.datasets.parts import part_of

    return part_of(policy.info.dataset) if given["dataset"] is None else None


def check_policys_pool(bundle: Path, policy: Policy, pool: Sequence[Example]) -> None:
    """Raise InputError if these are not the examples that the policy's rows stand for."""
    from pointer_rl.datasets.identity import digest_ids
    from pointer_rl.datasets.recorded import check_pool

    check_pool(pool, digest_ids(policy.pool_ids), bundle)


def _page(bundle: Path, policy: Policy, given: dict[str, Any]) -> Page:
    """With the pool's questions; if its dataset cannot be opened, says why, and has the ids."""
    from pointer_rl.errors import PointerRLError

    try:
        dataset: Dataset = pool_dataset(bundle, policy, given).configure("dataset").create()
        part = pool_part(policy, given)
        dataset = dataset if part is None else part.of(dataset)
        check_policys_pool(bundle, policy, dataset.pool)
        return Page(dataset.pool)
    except PointerRLError as error:
        if given["dataset"] is not None or given["dataset_opt"]:
            raise
        echo(f"pointer-rl: demonstrations are shown by id alone: {error}", err=True)
        return Page(ids=policy.pool_ids)
