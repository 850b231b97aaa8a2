"""`pointer-rl answer`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pointer_rl.cli.common import (
    DECODING_OPTION,
    DEVICE,
    STORE_OPTIONS,
    GuideCommand,
    plugin_options,
    read_session_options,
    with_options,
)
from pointer_rl.cli.output import echo, echo_wrapped, on_terminal
from pointer_rl.cli.params import BUNDLE
from pointer_rl.cli.select import (
    JSON_OPTION,
    QUESTION_OPTIONS,
    SELECTION_OPTIONS,
    check_policys_pool,
    describe_selection,
    load_policy,
    pool_dataset,
    pool_part,
    read_questions,
)
from pointer_rl.cli.tables import counted
from pointer_rl.cli.trials import Page, quoted

if TYPE_CHECKING:
    from collections.abc import Callable

    from pointer_rl.selectors.selecting import Selection
    from pointer_rl.types import Example, Outcome


@click.command(cls=GuideCommand)
@click.argument("bundle", type=BUNDLE)
@with_options(
    [
        *QUESTION_OPTIONS,
        *plugin_options(
            "backend", "qwen2vl", "VQA backend, or an alias such as qwen2.5_vl_3B.", "--vqa-model"
        ),
        *SELECTION_OPTIONS,
        *plugin_options("prompt", "short-answer", "Prompt builder."),
        DECODING_OPTION,
        DEVICE,
        *STORE_OPTIONS,
        JSON_OPTION,
    ]
)
def answer(bundle: Path, as_json: bool, **given: Any) -> None:
    """Answer new questions with the demonstrations that a policy chooses.

    BUNDLE is the folder of a policy. Prints the answer and what was shown, in words on a terminal
    and otherwise as a JSON line for each question. The demonstrations come from the dataset that
    the bundle names; their images must be readable. Give the prompt and decoding that the policy
    was trained with. Answers are not judged. Exits 1 if a question could not be answered.
    """
    from pointer_rl.session.judge import Trial
    from pointer_rl.session.session import Session

    questions = read_questions(given)
    policy = load_policy(bundle, given)
    unjudged = {**given, "dataset_opt": (), "metric": "vqa", "metric_opt": ()}
    options = read_session_options(unjudged)
    dataset, part = pool_dataset(bundle, policy, given), pool_part(policy, given)
    session = Session(replace(options, dataset=dataset, part=part))
    pool = session.dataset.pool
    check_policys_pool(bundle, policy, pool)
    judge = session.judge()
    show = _in_words(Page(pool)) if on_terminal() and not as_json else _as_json
    failures: list[str] = []
    for start in range(0, len(questions), session.window):
        queries = questions[start : start + session.window]
        chosen = policy.select(queries, given["shots"])
        shown = [[pool[row] for row in each.rows] for each in chosen]
        outcomes = dict(judge.answer(list(map(Trial, queries, shown))))
        for index, query in enumerate(queries):
            outcome = outcomes[index]
            show(query, chosen[index], outcome)
            if outcome.failure is not None:
                failures.append(f"{query.id}: {outcome.failure}")
    if failures:
        of = counted(len(questions), "question")
        echo(f"pointer-rl: {len(failures):,} of {of} not answered ({failures[0]})", err=True)
        raise click.exceptions.Exit(1)


def _as_json(query: Example, chosen: Selection, outcome: Outcome) -> None:
    result: dict[str, Any] = {"answer": outcome.answer, "raw_generation": outcome.raw_generation}
    if outcome.failure is not None:
        result = {"eval_failed": True, "eval_error": outcome.failure}
    echo(json.dumps({**describe_selection(chosen), **result}))


def _in_words(page: Page) -> Callable[[Example, Selection, Outcome], None]:
    def show(query: Example, chosen: Selection, outcome: Outcome) -> None:
        page.query(query.id, query.question, query.image)
        if outcome.failure is None:
            echo_wrapped(f"answer: {outcome.answer}", indent=2, hanging=4, fg="green")
            echo_wrapped(f"generation: {quoted(outcome.raw_generation)}", indent=2, hanging=4)
        else:
            echo_wrapped(f"no answer: {outcome.failure}", indent=2, hanging=4, fg="yellow")
        page.demonstrations(chosen.rows, indent=2)
        echo("")

    return show
