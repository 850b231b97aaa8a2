"""The standard plugin: prompts, metrics, generators, rewards, datasets and the clip encoder.

Every command loads this module, so the factories import what is heavy.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pointer_rl.hookspecs import hookimpl
from pointer_rl_standard.dataset_options import OKVQA, HFOptions, JSONLOptions, VQAOptions
from pointer_rl_standard.options import (
    BeamOptions,
    ChatOptions,
    ClipOptions,
    ProbeOptions,
    RandomOptions,
    RetrievalOptions,
    SampleOptions,
    ShortAnswerOptions,
)
from pointer_rl_standard.rewards import FORMULAS, FormulaReward

if TYPE_CHECKING:
    from pointer_rl.types import (
        Dataset,
        Encoder,
        Generator,
        Metric,
        PromptBuilder,
        Register,
    )


@hookimpl
def pointer_rl_register_prompt_builders(register: Register) -> None:
    """Two layouts."""
    register(
        "short-answer",
        _short_answer,
        options=ShortAnswerOptions,
        summary="One user message of `Question:… Short answer:…` blocks, each after its image",
    )
    register(
        "chat",
        _chat,
        options=ChatOptions,
        summary="A conversation: the user asks about an image, the assistant answers",
    )


@hookimpl
def pointer_rl_register_metrics(register: Register) -> None:
    """Two comparisons with the annotators' answers."""
    register("vqa", _vqa_accuracy, summary="The official VQA accuracy over several annotators")
    register(
        "exact", _exact_match, summary="Equal to an annotator's answer, ignoring case and spaces"
    )


@hookimpl
def pointer_rl_register_rewards(register: Register) -> None:
    """The formulas of Lever-Plus."""
    for name, formula in FORMULAS.items():
        make = partial(FormulaReward, formula)
        register(name, make, options=formula.options, summary=formula.summary)


@hookimpl
def pointer_rl_register_generators(register: Register) -> None:
    """Five ways to propose candidates."""
    register(
        "beam", _beam, options=BeamOptions, summary="The policy's best pointers, by beam search"
    )
    register(
        "sample",
        _sample,
        options=SampleOptions,
        summary="Pointers drawn from the policy, at one or more temperatures",
    )
    register(
        "random", _random, options=RandomOptions, summary="Pointers drawn uniformly from the pool"
    )
    register(
        "retrieval",
        _retrieval,
        options=RetrievalOptions,
        summary="Pointers of the rows most similar to the query",
    )
    register(
        "probe",
        _probe,
        options=ProbeOptions,
        summary="Pointers that differ in one row: the best rows, each with the same random others",
    )


@hookimpl
def pointer_rl_register_datasets(register: Register) -> None:
    """The file formats."""
    register(
        "vqa",
        _vqa,
        options=VQAOptions,
        summary="Question and annotation files in VQAv2's format (VQAv2, OK-VQA)",
        aliases={"okvqa_local": OKVQA},
    )
    register(
        "hf",
        _hf,
        options=HFOptions,
        summary="A dataset of the Hugging Face `datasets` library",
        needs={"datasets": "pointer-rl[hf]"},
    )
    register(
        "jsonl", _jsonl, options=JSONLOptions, summary="JSON lines: image, question and answers"
    )


@hookimpl
def pointer_rl_register_encoders(register: Register) -> None:
    """CLIP and SigLIP."""
    register(
        "clip",
        _clip,
        options=ClipOptions,
        summary="CLIP or SigLIP, through transformers: image, question or both",
    )


def _short_answer(options: ShortAnswerOptions) -> PromptBuilder:
    from pointer_rl_standard.prompts import ShortAnswerPromptBuilder

    return ShortAnswerPromptBuilder(options)


def _chat(options: ChatOptions) -> PromptBuilder:
    from pointer_rl_standard.prompts import ChatPromptBuilder

    return ChatPromptBuilder(options)


def _vqa_accuracy() -> Metric:
    from pointer_rl_standard.metrics import VQAAccuracy

    return VQAAccuracy()


def _exact_match() -> Metric:
    from pointer_rl_standard.metrics import ExactMatch

    return ExactMatch()


def _beam(options: BeamOptions) -> Generator:
    from pointer_rl_standard.generators import BeamGenerator

    return BeamGenerator(options)


def _sample(options: SampleOptions) -> Generator:
    from pointer_rl_standard.generators import SampleGenerator

    return SampleGenerator(options)


def _random(options: RandomOptions) -> Generator:
    from pointer_rl_standard.generators import RandomGenerator

    return RandomGenerator(options)


def _retrieval(options: RetrievalOptions) -> Generator:
    from pointer_rl_standard.generators import RetrievalGenerator

    return RetrievalGenerator(options)


def _probe(options: ProbeOptions) -> Generator:
    from pointer_rl_standard.generators import ProbeGenerator

    return ProbeGenerator(options)


def _vqa(options: VQAOptions) -> Dataset:
    from pointer_rl_standard.vqa_files import load_vqa

    return load_vqa(options)


def _hf(options: HFOptions) -> Dataset:
    from pointer_rl_standard.hf_dataset import load_hf

    return load_hf(options)


def _jsonl(options: JSONLOptions) -> Dataset:
    from pointer_rl_standard.jsonl_dataset import load_jsonl

    return load_jsonl(options)


def _clip(options: ClipOptions) -> Encoder:
    from pointer_rl_standard.clip import ClipEncoder

    return ClipEncoder(options)
