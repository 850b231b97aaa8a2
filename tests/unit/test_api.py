"""The guide's functions, against the code that the command line runs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch

import pointer_rl
from pointer_rl.errors import InputError, PluginError
from pointer_rl.registry import registry
from pointer_rl.selectors import PointerConfig, PointerSelector
from pointer_rl.testing import FakeBackend, example
from pointer_rl.types import BackendError, Prompt
from pointer_rl_glyphs.dataset import MODEL_DIR

CONFIG = PointerConfig(d_model=8, hidden_dim=8, num_layers=1, num_heads=1, history="gated")


@pytest.fixture
def selector():
    return PointerSelector.seeded(CONFIG, 0).eval()


@pytest.fixture
def embeddings():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, generator=generator), torch.randn(6, 8, generator=generator)


def test_everything_public_is_there():
    for name in pointer_rl.__all__:
        assert getattr(pointer_rl, name) is not None
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = pointer_rl.nothing_such


def test_importing_it_imports_no_torch():
    code = "import pointer_rl, sys; pointer_rl.hookimpl; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_step_logits_of_one_query_and_of_a_batch_agree(selector, embeddings):
    query, pool = embeddings
    for chosen in (None, [2], [2, 0]):
        one = pointer_rl.compute_step_logits(selector, query, pool, chosen)
        assert one.shape == (6,)
        batch = pointer_rl.compute_step_logits(selector, query.expand(3, 8), pool, chosen)
        own = pointer_rl.compute_step_logits(
            selector, query.expand(3, 8), pool.expand(3, 6, 8), chosen
        )
        torch.testing.assert_close(batch, one.expand(3, 6))
        torch.testing.assert_close(own, one.expand(3, 6))
        assert one.isneginf().nonzero().flatten().tolist() == sorted(chosen or [])


def test_sampled_log_probability_is_the_product_of_the_steps(selector, embeddings):
    query, pool = embeddings
    rows, logprob = pointer_rl.sample_pointer_with_temperature(
        selector, query, pool, temperature=1.7, shots=3, rng=np.random.default_rng(5)
    )
    total = 0.0
    for step, row in enumerate(rows):
        logits = pointer_rl.compute_step_logits(selector, query, pool, rows[:step])
        total += float((logits.detach().double() / 1.7).log_softmax(-1)[row])
    assert logprob == pytest.approx(total, abs=1e-5)
    assert len(set(rows)) == 3


def test_candidates_have_the_guides_methods(selector, embeddings):
    candidates = pointer_rl.generate_pointer_candidates_for_query(
        selector, *embeddings, num_beams=3, num_random=2, num_samples_per_temp=9
    )
    methods = [candidate.gen_method for candidate in candidates]
    assert methods.count("beam") == 3
    assert {"sample", "random"} <= set(methods)
    assert len({candidate.pointer for candidate in candidates}) == len(candidates)
    again = pointer_rl.generate_pointer_candidates_for_query(
        selector, *embeddings, num_beams=3, num_random=2, num_samples_per_temp=9
    )
    assert again == candidates
    with pytest.raises(InputError, match=r"one query is \[d\]"):
        pointer_rl.generate_pointer_candidates_for_query(selector, embeddings[1], embeddings[1])


def test_the_prompt_is_the_guides_string():
    picture = PIL.Image.new("RGB", (8, 8))
    shown = {"image": picture, "question": "What?", "answer": "a cat"}
    for count in (0, 1, 2, 5):
        prompt = pointer_rl.build_vqa_prompt(picture, "Where?", *[shown] * count)
        *_, message = prompt.messages
        text = " ".join(part for part in message.parts if isinstance(part, str))
        expected = "Question:What? Short answer:a cat " * count + "Question:Where? Short answer:"
        assert text == expected
        assert len(prompt.images) == count + 1
        assert prompt.images[0].open().size == (8, 8)
    with pytest.raises(InputError, match="no 'answer'"):
        pointer_rl.build_vqa_prompt(picture, "?", {"image": picture, "question": "?"})


def test_the_prompt_takes_the_guides_keywords_and_demonstrations_without_an_image():
    picture = PIL.Image.new("RGB", (8, 8))
    ex1, ex2 = {"question": "What?", "answer": "a cat"}, {"question": "Who?", "answer": "Ann"}
    prompt = pointer_rl.build_vqa_prompt(image=picture, question="Where?", ex1=ex1, ex2=ex2)
    assert Prompt(prompt.messages[-1:]).text == (
        "Question:What? Short answer:a cat Question:Who? Short answer:Ann "
        "Question:Where? Short answer:"
    )
    assert [image.open().size for image in prompt.images] == [(8, 8)]
    assert prompt == pointer_rl.build_vqa_prompt(picture, "Where?", ex1, ex2)
    assert not pointer_rl.build_vqa_prompt(None, "Where?", ex2=ex2).images


def test_accuracy_is_the_official_one():
    answers = ["a book"] * 2 + ["book", "notebook"] * 4
    assert pointer_rl.compute_vqa_accuracy("Book.", answers) == (1, pytest.approx(1.0))
    assert pointer_rl.compute_vqa_accuracy("lamp", answers) == (0, 0.0)


def test_a_string_in_place_of_a_list_of_answers_is_refused():
    refused = "list, one string for each annotator.* 'blue'"
    with pytest.raises(InputError, match=refused):
        pointer_rl.compute_vqa_accuracy("blue", "blue")
    with pytest.raises(InputError, match=refused):
        registry().create("metric", "exact").judge("blue", "blue")
    query = {"question": "?", "answers": "blue"}
    with pytest.raises(InputError, match=refused):
        pointer_rl.evaluate_pointer_candidate(FakeBackend("blue"), query, [])
    with pytest.raises(TypeError, match="the string 'blue'"):
        example(0, answers="blue")


def test_a_candidate_is_evaluated_or_its_failure_told():
    query = example(0, answers=("red",) * 10)
    right = pointer_rl.evaluate_pointer_candidate(
        FakeBackend(lambda text: "red, maybe"), query, [example(1, "red")]
    )
    assert (right.answer, right.correct, right.accuracy) == ("red", True, 1.0)
    failed = pointer_rl.evaluate_pointer_candidate(
        FakeBackend(lambda text: BackendError("no memory")), query, []
    )
    assert failed.failure == "no memory"
    assert failed.correct is None


def test_a_candidate_is_evaluated_from_mappings_as_from_examples():
    def answer(text):
        return "red" if "Short answer:red" in text else "blue"

    query = {"question": "Which colour?", "answers": ["red"] * 10}
    shown = {"question": "And this?", "answer": "red"}
    outcomes = [
        pointer_rl.evaluate_pointer_candidate(FakeBackend(answer), query, demonstrations)
        for demonstrations in ([shown], [])
    ]
    assert [each.correct for each in outcomes] == [True, False]


def test_a_model_that_is_unknown_or_missing_is_one_line(tmp_path):
    with pytest.raises(PluginError, match="unknown backend 'qwen2vll'; did you mean 'qwen2vl'"):
        pointer_rl.load_vqa_model("qwen2vll")
    with pytest.raises(InputError, match="none"):
        pointer_rl.load_vqa_model("qwen2vl", "cpu", model=str(tmp_path / "none"))
    with pytest.raises(InputError, match="no installed package nowhere"):
        pointer_rl.load_vqa_model(
            model_name="qwen2vl", device=torch.device("cpu"), model="nowhere:model"
        )


def test_the_glyph_model_has_a_name():
    named = pointer_rl.load_vqa_model(model_name="glyphs", device=torch.device("cpu"))
    by_folder = pointer_rl.load_vqa_model("qwen2vl", "cpu", model=str(MODEL_DIR))
    assert named.fingerprint == by_folder.fingerprint


def test_rewards_of_unknown_modes_and_weights_are_refused():
    assert pointer_rl.compute_reward_for_candidate(vqa_correct=1, vqa_acc_score=0.6) == 1.6
    with pytest.raises(PluginError, match="unknown reward"):
        pointer_rl.compute_reward_for_candidate(vqa_correct=1, reward_mode="soft")
    with pytest.raises(InputError, match="no option 'hard'"):
        pointer_rl.compute_reward_for_candidate(vqa_correct=1, hard=2.0)


def test_a_weight_that_the_mode_ignores_is_refused_with_the_mode_that_has_it():
    with pytest.raises(InputError, match="no option 'alpha', which is one of legacy"):
        pointer_rl.compute_reward_for_candidate(beam_score=2.13, vqa_correct=1, alpha=0.2)
    with pytest.raises(InputError, match="no option 'soft_weight', which is one of hard01"):
        pointer_rl.compute_reward_for_candidate(
            vqa_correct=1, reward_mode="hard_only", soft_weight=0.5
        )
    combined = pointer_rl.compute_reward_for_candidate(
        beam_score=2.13, vqa_correct=0, reward_mode="legacy", alpha=0.2, beta=1.0
    )
    assert combined == pytest.approx(0.2 * 2.13 - 1.0)
