"""What is planned before a model is called: prefixes, answer trees, positions, tokens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from qwen_reference import MODEL_NAMES

from pointer_rl_qwen2vl import chunk
from pointer_rl_qwen2vl.checkpoint import load_checkpoint
from pointer_rl_qwen2vl.chunk import Limits
from pointer_rl_qwen2vl.inputs import PromptEncoder
from pointer_rl_qwen2vl.language import Piece
from pointer_rl_qwen2vl.options import Qwen2VLOptions
from pointer_rl_qwen2vl.planning import AnswerTree, find_prefixes, lay_out
from pointer_rl_qwen2vl.shapes import EXACT, ROUNDED, Shapes
from pointer_rl_qwen2vl.vision import Features

# Few symbols, so that much is shared; negative ones are images.
ELEMENTS = st.integers(-2, 2)
PROMPTS = st.lists(st.lists(ELEMENTS, min_size=1, max_size=7), max_size=12).map(sorted)


def width(element: int) -> int:
    return 1 if element >= 0 else 5


def path(plan, parent: int | None) -> list[int]:
    """The prefixes that lead to one, the first first."""
    found: list[int] = []
    while parent is not None:
        found.insert(0, parent)
        parent = plan.nodes[parent].parent
    return found


@given(PROMPTS, st.sampled_from([1, 3, 8, 1000]))
def test_prefixes_and_what_follows_make_up_each_prompt(prompts, min_saving):
    plan = find_prefixes(prompts, width, min_saving)
    assert len(plan.parents) == len(prompts)
    for prompt, parent in zip(prompts, plan.parents, strict=True):
        built: list[int] = []
        for depth, index in enumerate(path(plan, parent)):
            node = plan.nodes[index]
            assert (node.start, node.depth) == (len(built), depth)
            assert node.parent is None or node.parent < index
            built += prompts[node.row][node.start : node.end]
        assert built == prompt[: len(built)]
        assert len(built) < len(prompt)  # the last element is each one's own


@given(PROMPTS)
def test_with_no_threshold_nothing_is_computed_twice(prompts):
    plan = find_prefixes(prompts, width, 1)
    spent = sum(sum(map(width, prompts[n.row][n.start : n.end])) for n in plan.nodes)
    for prompt, parent in zip(prompts, plan.parents, strict=True):
        start = 0 if parent is None else plan.nodes[parent].end
        spent += sum(map(width, prompt[start:]))
    distinct = {tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt))}
    naive = sum(width(prefix[-1]) for prefix in distinct)
    assert spent == naive + sum(width(prompt[-1]) for prompt in prompts)


@given(PROMPTS, st.integers(1, 30))
def test_a_prefix_saves_what_it_has_to(prompts, min_saving):
    plan = find_prefixes(prompts, width, min_saving)
    for index, node in enumerate(plan.nodes):
        users = plan.parents.count(index) + [n.parent for n in plan.nodes].count(index)
        size = sum(map(width, prompts[node.row][node.start : node.end]))
        assert size * (users - 1) >= min_saving


@given(st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=8))
def test_an_answer_tree_holds_each_beginning_once(answers):
    tree = AnswerTree.merge(answers, end=9)
    beginnings = {tuple(answer[:end]) for answer in answers for end in range(1, len(answer) + 1)}
    assert len(tree.token_ids) == len(beginnings)
    for answer, predicted in zip(answers, tree.predicted, strict=True):
        assert [token for _, token in predicted] == [*answer, 9]
        places = [place for place, _ in predicted]
        assert places[0] == 0
        for number, place in enumerate(places[1:]):
            assert tree.token_ids[place - 1] == answer[number]
            assert tree.depths[place - 1] == number
            seen = [place - 1 for place in places[1 : number + 2]]
            unseen = tree.unrelated[1][tree.unrelated[0] == place - 1]
            assert sorted({*range(place)} - {*unseen.tolist()}) == sorted(seen)
            assert tree.children[places[number], answer[number]] == place


GRIDS = ((1, 1), (2, 3), (4, 2))
IMAGE_TOKEN = 77


def features(element: int) -> Features:
    rows, columns = GRIDS[-element - 1]
    return Features(torch.zeros(rows * columns, 4), (), (rows, columns))


@pytest.mark.parametrize("family", list(MODEL_NAMES))
def test_positions_are_the_models_own_wherever_a_prompt_is_cut(tiny_qwen, family):
    model_class = getattr(transformers, f"{MODEL_NAMES[family]}ForConditionalGeneration")
    model = model_class.from_pretrained(tiny_qwen(family)).model

    @given(st.lists(st.integers(-3, 3), min_size=1, max_size=9), st.data())
    def check(elements, data):
        whole = lay_out(elements, 0, features, IMAGE_TOKEN)
        ids = torch.tensor([whole.token_ids])
        # Images that touch could not be told apart: there is always a token between them.
        touching = any(a < 0 and b < 0 for a, b in itertools.pairwise(elements))
        if not touching:
            grids = [(1, 2 * GRIDS[-e - 1][0], 2 * GRIDS[-e - 1][1]) for e in elements if e < 0]
            theirs, delta = model.get_rope_index(
                ids,
                (ids == IMAGE_TOKEN).long(),
                image_grid_thw=torch.tensor(grids) if grids else None,
            )
            assert theirs[:, 0].tolist() == whole.positions.tolist()
            assert whole.next_position == len(whole.token_ids) + delta.item()
        cut = data.draw(st.integers(0, len(elements)))
        before = lay_out(elements[:cut], 0, features, IMAGE_TOKEN)
        after = lay_out(elements[cut:], before.next_position, features, IMAGE_TOKEN)
        assert before.token_ids + after.token_ids == whole.token_ids
        joined = np.concatenate([before.positions, after.positions], axis=1)
        assert joined.tolist() == whole.positions.tolist()
        assert after.next_position == whole.next_position

    check()


def test_prompts_tokenised_in_pieces_are_as_tokenised_whole(tiny_qwen):
    checkpoint = load_checkpoint(Qwen2VLOptions(model=str(tiny_qwen("qwen3_vl")), device="cpu"))
    encoder = PromptEncoder(checkpoint)
    pieces = ["<|im_start|>", "<|im_end|>", "<|image_pad|>", "a dog", " ", "\n", "<|im", "é", "́"]

    @given(st.lists(st.lists(st.sampled_from(pieces), max_size=9).map("".join), max_size=4))
    def check(texts):
        for text in texts:
            assert encoder._tokenise_rendered(text) == checkpoint.tokenizer(text)["input_ids"]

    check()
    assert encoder._special is not None


def test_a_tokenizer_that_looks_across_its_special_tokens_is_given_whole_prompts(tiny_qwen):
    checkpoint = load_checkpoint(Qwen2VLOptions(model=str(tiny_qwen("qwen3_vl")), device="cpu"))
    greedy = transformers.AddedToken("<|greedy|>", lstrip=True, special=True)
    checkpoint.tokenizer.add_tokens([greedy])
    encoder = PromptEncoder(checkpoint)
    assert encoder._special is None
    text = "a dog <|greedy|>"
    assert encoder._tokenise_rendered(text) == checkpoint.tokenizer(text)["input_ids"]


@given(
    sizes=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), min_size=1, max_size=20),
    room=st.integers(0, 8),
    limits=st.builds(Limits, batch=st.integers(1, 200), cache=st.integers(1, 400)),
    shapes=st.sampled_from([EXACT, ROUNDED]),
)
def test_groups_hold_each_row_once_and_fit_into_the_cache(sizes, room, limits, shapes):
    pieces = [
        Piece(lay_out([1] * length, 0, {}.__getitem__, -1), np.arange(prefix))
        for prefix, length in sizes
    ]
    groups = chunk._groups(pieces, room, limits, shapes)
    assert sorted(row for group in groups for batch in group for row in batch) == [
        *range(len(pieces))
    ]
    for group in groups:
        rows, columns = 0, 0
        for batch in group:
            prefixes, lengths = zip(*(sizes[row] for row in batch), strict=True)
            assert len(batch) == 1 or len(batch) * max(lengths) <= limits.batch
            columns = max(columns, room + max(prefixes) + max(lengths))
            rows += len(batch)
        cache_rows, cache_columns = chunk._cache_size(pieces, group, room, shapes)
        assert cache_rows >= rows
        assert cache_columns >= columns
        assert rows == 1 or cache_rows * cache_columns <= limits.cache


@given(number=st.integers(1, 10**6), sizes=st.sampled_from([1, 2, 4, 8]))
def test_shapes_are_rounded_up_to_a_few_sizes(number, sizes):
    round_up = Shapes(rows_per_octave=sizes).rows
    assert number <= round_up(number) < number * (1 + 1 / sizes) + 1
    assert round_up(round_up(number)) == round_up(number)
    octave = [round_up(each) for each in range(513, 1025)]
    assert len(set(octave)) == sizes
