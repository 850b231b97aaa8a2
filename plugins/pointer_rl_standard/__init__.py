"""The standard plugin: prompts, metrics, generators, rewards, datasets, `clip` and selectors.

Every command loads this module, so it imports only the options. Factories are named by their module
and imported when they are called.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from pointer_rl.hookspecs import hookimpl
from pointer_rl.selectors.options import PointerConfig, SequentialConfig
from pointer_rl_standard.options import (
    OKVQA,
    BeamOptions,
    ChatOptions,
    ClipOptions,
    FirstSuccessOptions,
    FixedOptions,
    GreedyOptions,
    HFOptions,
    JSONLOptions,
    MMROptions,
    OracleOptions,
    PolicyOptions,
    ProbeOptions,
    RandomArmOptions,
    RandomOptions,
    RetrievalOptions,
    SampleOptions,
    ShortAnswerOptions,
    SimilarityOptions,
    VoteOptions,
    VQAOptions,
)
from pointer_rl_standard.rewards import FORMULAS, FormulaReward

if TYPE_CHECKING:
    from pointer_rl.evaluate.arms import Arm
    from pointer_rl.types import Register


@hookimpl
def pointer_rl_register_prompt_builders(register: Register) -> None:
    """Register the prompt layouts."""
    register(
        "short-answer",
        "pointer_rl_standard.prompts:ShortAnswerPromptBuilder",
        options=ShortAnswerOptions,
        summary="One user message of `Question:… Short answer:…` blocks, each after its image",
    )
    register(
        "chat",
        "pointer_rl_standard.prompts:ChatPromptBuilder",
        options=ChatOptions,
        summary="A conversation: the user asks about an image, the assistant answers",
    )


@hookimpl
def pointer_rl_register_metrics(register: Register) -> None:
    """Register the comparisons with the annotators' answers."""
    register(
        "vqa",
        "pointer_rl_standard.metrics:VQAAccuracy",
        summary="The official VQA accuracy over several annotators",
    )
    register(
        "exact",
        "pointer_rl_standard.metrics:ExactMatch",
        summary="Equal to an annotator's answer, ignoring case and spaces",
    )


@hookimpl
def pointer_rl_register_rewards(register: Register) -> None:
    """Register the formulas of Lever-Plus."""
    for name, (options, summary) in FORMULAS.items():
        register(name, partial(FormulaReward, name), options=options, summary=summary)


@hookimpl
def pointer_rl_register_generators(register: Register) -> None:
    """Register the ways to propose candidates."""
    register(
        "beam",
        "pointer_rl_standard.generators:BeamGenerator",
        options=BeamOptions,
        summary="The policy's best pointers, by beam search",
    )
    register(
        "sample",
        "pointer_rl_standard.generators:SampleGenerator",
        options=SampleOptions,
        summary="Pointers drawn from the policy, at one or more temperatures",
    )
    register(
        "random",
        "pointer_rl_standard.generators:RandomGenerator",
        options=RandomOptions,
        summary="Pointers drawn uniformly from the pool",
    )
    register(
        "retrieval",
        "pointer_rl_standard.generators:RetrievalGenerator",
        options=RetrievalOptions,
        summary="Pointers of the rows most similar to the query",
    )
    register(
        "mmr",
        "pointer_rl_standard.generators:MMRGenerator",
        options=MMROptions,
        summary="Rows that are similar to the query and unlike each other",
    )
    register(
        "probe",
        "pointer_rl_standard.generators:ProbeGenerator",
        options=ProbeOptions,
        summary="Pointers that differ in one row: the best rows, each with the same random others",
    )
    register(
        "first-success",
        "pointer_rl_standard.searches:FirstSuccess",
        options=FirstSuccessOptions,
        summary="Probes, one after the other, until the query has a success",
    )
    register(
        "greedy",
        "pointer_rl_standard.searches:Greedy",
        options=GreedyOptions,
        summary="Finds the best first row, then the best next one beside it",
    )


@hookimpl
def pointer_rl_register_datasets(register: Register) -> None:
    """Register the loaders of each file format."""
    register(
        "vqa",
        "pointer_rl_standard.vqa_files:load_vqa",
        options=VQAOptions,
        summary="Question and annotation files in VQAv2's format (VQAv2, OK-VQA)",
        aliases={"okvqa_local": OKVQA},
    )
    register(
        "hf",
        "pointer_rl_standard.hf_dataset:load_hf",
        options=HFOptions,
        summary="A dataset of the Hugging Face `datasets` library",
        needs={"datasets": "pointer-rl[hf]"},
    )
    register(
        "jsonl",
        "pointer_rl_standard.jsonl_dataset:load_jsonl",
        options=JSONLOptions,
        summary="JSON lines: image, question and answers",
    )


@hookimpl
def pointer_rl_register_encoders(register: Register) -> None:
    """Register CLIP and SigLIP."""
    register(
        "clip",
        "pointer_rl_standard.clip:ClipEncoder",
        options=ClipOptions,
        summary="CLIP or SigLIP, through transformers: image, question or both",
    )


@hookimpl
def pointer_rl_register_executors(register: Register) -> None:
    """Register where windows of queries run."""
    register(
        "in-process",
        "pointer_rl.session.windows:InProcess",
        summary="One window after the other, in this process",
    )


@hookimpl
def pointer_rl_register_arms(register: Register) -> None:
    """Register the arms that every evaluation compares, and two that learn."""
    register(
        "zero-shot",
        "pointer_rl.evaluate.arms:ZeroShotArm",
        summary="No demonstrations",
    )
    register(
        "random",
        partial(_create_arm, "RandomArm"),
        options=RandomArmOptions,
        summary="Random pointers, averaged",
    )
    register(
        "similarity",
        partial(_create_arm, "SimilarityArm"),
        options=SimilarityOptions,
        summary="The rows most similar to the query",
    )
    register("policy", _policy_arm, options=PolicyOptions, summary="A policy's likeliest pointer")
    register(
        "vote",
        partial(_create_arm, "VoteArm"),
        options=VoteOptions,
        summary="The majority of an arm's demonstrations' answers, without a model",
    )
    register(
        "oracle",
        partial(_create_arm, "OracleArm"),
        options=OracleOptions,
        summary="The best of a fixed number of pointers, random and similar ones",
    )
    register(
        "attainable",
        "pointer_rl.evaluate.arms:AttainableArm",
        summary="One row of each set that the dataset knows the query to need",
    )
    register(
        "answer-match",
        "pointer_rl_standard.answer_match:AnswerMatchArm",
        summary="The rows likeliest to have the query's answer, learned without asking a model",
    )
    register(
        "fixed",
        "pointer_rl_standard.fixed_pointer:FixedArm",
        options=FixedOptions,
        summary="One pointer for all queries: the best on training queries, by successive halving",
    )


@hookimpl
def pointer_rl_register_selectors(register: Register) -> None:
    """Register the engine's own selectors."""
    register(
        "pointer",
        "pointer_rl.selectors:PointerSelector",
        options=PointerConfig,
        summary="Cross-attention over the pool, then cosines",
    )
    register(
        "sequential",
        "pointer_rl.selectors:SequentialSelector",
        options=SequentialConfig,
        summary="`pointer` with a query that each chosen row changes: one row of each kind",
    )


def _create_arm(name: str, options: Any) -> Arm:
    """An arm of the engine, whose arguments are named as its options are."""
    from pointer_rl.evaluate import arms

    arm: Arm = getattr(arms, name)(**asdict(options))
    return arm


def _policy_arm(options: PolicyOptions) -> Arm:
    from pathlib import Path

    from pointer_rl.evaluate.arms import PolicyArm
    from pointer_rl.evaluate.run import open_policy

    opened = open_policy(Path(options.path))
    return PolicyArm(opened.policy, opened.training_calls)
