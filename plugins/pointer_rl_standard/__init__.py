"""The standard plugin: prompts, metrics, generators, rewards, datasets, `clip` and selectors.

Every command loads this module, so it imports nothing. Factories and options are named by their
module, and imported when they are needed.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from pointer_rl.hookspecs import hookimpl

if TYPE_CHECKING:
    from pointer_rl.evaluate.arms import Arm
    from pointer_rl.types import Register, Reward
    from pointer_rl_standard.options import PolicyOptions

OKVQA = {
    "questions": "OpenEnded_mscoco_train2014_questions.json",
    "annotations": "mscoco_train2014_annotations.json",
}
"""Options of `vqa` for OK-VQA, whose file names differ from VQAv2's."""
REWARDS = {
    "hard_plus_soft": ("HardSoftOptions", "correct + accuracy"),
    "hard_plus_soft_v2": ("HardSoftOptions", "2·correct + accuracy"),
    "hard_only": ("HardOptions", "correct"),
    "soft_only": ("SoftOptions", "accuracy"),
    "separated": (
        "HardSoftOptions",
        "2·correct + accuracy, so that right and wrong answers never overlap",
    ),
    "hard01_plus_gtprob": ("HardSoftOptions", "correct + probability of the annotators' answers"),
    "hard01_plus_gtprob_separated": (
        "HardSoftOptions",
        "2·correct + probability of the annotators' answers",
    ),
    "hard_plus_gtprob_plus_rel": (
        "HardRelOptions",
        "correct + probability of the annotators' answers + similarity to them if wrong",
    ),
    "legacy": (
        "LegacyOptions",
        "alpha·(score under the policy) + beta·correctness, as in the first Lever-Plus",
    ),
}
"""Name of the reward → its options, in `rewards`, and its summary."""


@hookimpl
def pointer_rl_register_prompt_builders(register: Register) -> None:
    """Register the prompt layouts."""
    register(
        "short-answer",
        "pointer_rl_standard.prompts:ShortAnswerPromptBuilder",
        options="pointer_rl_standard.options:ShortAnswerOptions",
        summary="One user message of `Question:… Short answer:…` blocks, each after its image",
    )
    register(
        "chat",
        "pointer_rl_standard.prompts:ChatPromptBuilder",
        options="pointer_rl_standard.options:ChatOptions",
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
    for name, (options, summary) in REWARDS.items():
        register(
            name,
            partial(_create_reward, name),
            options=f"pointer_rl_standard.rewards:{options}",
            summary=summary,
        )


@hookimpl
def pointer_rl_register_generators(register: Register) -> None:
    """Register the ways to propose candidates."""
    register(
        "beam",
        "pointer_rl_standard.generators:BeamGenerator",
        options="pointer_rl_standard.options:BeamOptions",
        summary="The policy's best pointers, by beam search",
    )
    register(
        "sample",
        "pointer_rl_standard.generators:SampleGenerator",
        options="pointer_rl_standard.options:SampleOptions",
        summary="Pointers drawn from the policy, at one or more temperatures",
    )
    register(
        "random",
        "pointer_rl_standard.generators:RandomGenerator",
        options="pointer_rl_standard.options:RandomOptions",
        summary="Pointers drawn uniformly from the pool",
    )
    register(
        "retrieval",
        "pointer_rl_standard.generators:RetrievalGenerator",
        options="pointer_rl_standard.options:RetrievalOptions",
        summary="Pointers of the rows most similar to the query",
    )
    register(
        "mmr",
        "pointer_rl_standard.generators:MMRGenerator",
        options="pointer_rl_standard.options:MMROptions",
        summary="Rows that are similar to the query and unlike each other",
    )
    register(
        "probe",
        "pointer_rl_standard.generators:ProbeGenerator",
        options="pointer_rl_standard.options:ProbeOptions",
        summary="Pointers that differ in one row: the best rows, each with the same random others",
    )
    register(
        "first-success",
        "pointer_rl_standard.searches:FirstSuccess",
        options="pointer_rl_standard.options:FirstSuccessOptions",
        summary="Probes, one after the other, until the query has a success and a failure",
    )
    register(
        "greedy",
        "pointer_rl_standard.searches:Greedy",
        options="pointer_rl_standard.options:GreedyOptions",
        summary="Finds the best first row, then the best next one beside it",
    )


@hookimpl
def pointer_rl_register_datasets(register: Register) -> None:
    """Register the loaders of each file format."""
    register(
        "vqa",
        "pointer_rl_standard.vqa_files:load_vqa",
        options="pointer_rl_standard.options:VQAOptions",
        summary="Question and annotation files in VQAv2's format (VQAv2, OK-VQA)",
        aliases={"okvqa_local": OKVQA},
    )
    register(
        "hf",
        "pointer_rl_standard.hf_dataset:load_hf",
        options="pointer_rl_standard.options:HFOptions",
        summary="A dataset of the Hugging Face `datasets` library",
        needs={"datasets": "pointer-rl[hf]"},
    )
    register(
        "jsonl",
        "pointer_rl_standard.jsonl_dataset:load_jsonl",
        options="pointer_rl_standard.options:JSONLOptions",
        summary="JSON lines: image, question and answers",
    )
    register(
        "vl-icl",
        "pointer_rl_standard.vl_icl:load_vl_icl",
        options="pointer_rl_standard.options:VLICLOptions",
        summary="VL-ICL Bench: tasks that are learned from demonstrations alone",
    )


@hookimpl
def pointer_rl_register_encoders(register: Register) -> None:
    """Register CLIP and SigLIP."""
    register(
        "clip",
        "pointer_rl_standard.clip:ClipEncoder",
        options="pointer_rl_standard.options:ClipOptions",
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
        options="pointer_rl_standard.options:RandomArmOptions",
        summary="Random pointers, averaged",
    )
    register(
        "similarity",
        partial(_create_arm, "SimilarityArm"),
        options="pointer_rl_standard.options:SimilarityOptions",
        summary="The rows most similar to the query",
    )
    register(
        "policy",
        _policy_arm,
        options="pointer_rl_standard.options:PolicyOptions",
        summary="A policy's likeliest pointer",
    )
    register(
        "vote",
        partial(_create_arm, "VoteArm"),
        options="pointer_rl_standard.options:VoteOptions",
        summary="The majority of an arm's demonstrations' answers, without a model",
    )
    register(
        "oracle",
        partial(_create_arm, "OracleArm"),
        options="pointer_rl_standard.options:OracleOptions",
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
        options="pointer_rl_standard.options:FixedOptions",
        summary="One pointer for all queries: the best on training queries, by successive halving",
    )


@hookimpl
def pointer_rl_register_selectors(register: Register) -> None:
    """Register the engine's own selectors."""
    register(
        "pointer",
        "pointer_rl.selectors:PointerSelector",
        options="pointer_rl.selectors.options:PointerConfig",
        summary="Cross-attention over the pool, then cosines",
    )
    register(
        "sequential",
        "pointer_rl.selectors:SequentialSelector",
        options="pointer_rl.selectors.options:SequentialConfig",
        summary="`pointer` with a query that each chosen row changes: one row of each kind",
    )


def _create_reward(name: str, options: Any) -> Reward:
    """The formula of that name."""
    from pointer_rl_standard.rewards import FormulaReward

    return FormulaReward(name, options)


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
    return PolicyArm(opened.policies, opened.training_calls, opened.encoder)
