from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.errors import InputError
from pointer_rl.options import build_options, describe_options, parse_assignments


@dataclass(frozen=True, kw_only=True)
class Options:
    path: str
    """Where it is."""
    count: int = 3
    """How many.

    A second paragraph.
    """
    rate: float | None = None
    fast: bool = False
    kind: Literal["a", "b"] = "a"
    stops: tuple[str, ...] = ()
    sizes: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count must not be negative")


@dataclass(frozen=True, kw_only=True)
class MoreOptions(Options):
    depth: int = 1
    """How deep."""


def test_inherited_options_keep_their_help():
    found = {each.name: each.help for each in describe_options(MoreOptions)}
    assert (found["path"], found["depth"]) == ("Where it is.", "How deep.")


def build(**values: object) -> Options:
    return build_options(Options, {"path": "p", **values}, "backend x")


def test_strings_become_the_fields_types():
    built = build(count="7", rate="0.5", fast="yes", kind="b", stops="x,y", sizes="1,2.5")
    assert built == Options(
        path="p", count=7, rate=0.5, fast=True, kind="b", stops=("x", "y"), sizes=(1.0, 2.5)
    )
    assert build(rate="none").rate is None
    assert build(fast="False").fast is False


def test_values_of_other_types_are_taken_as_they_are():
    assert build(count=9, stops=("a",)).stops == ("a",)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"cuont": "1"}, "backend x has no option 'cuont'; did you mean 'count'? (known: count,"),
        ({"count": "many"}, "backend x, option count=many: not an integer"),
        ({"rate": "fast"}, "not a number"),
        ({"fast": "maybe"}, "not true or false"),
        ({"kind": "c"}, "not one of a, b"),
        ({"count": "-1"}, "backend x: count must not be negative"),
    ],
)
def test_what_does_not_fit_is_one_line(values, says):
    with pytest.raises(InputError) as caught:
        build(**values)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_required_option_is_asked_for():
    with pytest.raises(InputError, match="backend x needs the option path"):
        build_options(Options, {}, "backend x")


def test_descriptions_come_from_the_source():
    path, count, *_ = describe_options(Options)
    assert (path.name, path.type, path.required, path.help) == ("path", "str", True, "Where it is.")
    assert (count.default, count.required) == (3, False)
    assert count.help == "How many.\n\nA second paragraph."
    assert [each.type for each in describe_options(Options)][4] == "a|b"


@given(
    st.dictionaries(
        st.text(alphabet="abcxyz_", min_size=1), st.text().filter(lambda text: "\0" not in text)
    )
)
def test_assignments_round_trip(values):
    assert parse_assignments([f"{k}={v}" for k, v in values.items()], "--opt") == values


def test_hyphens_are_underscores_in_options_but_not_in_plugin_names():
    assert parse_assignments(["a-b=1", "my-gen.k-v=2"], "--x") == {"a_b": "1", "my-gen.k_v": "2"}


@pytest.mark.parametrize("pairs", [["novalue"], ["=x"], ["a=1", "a=2"]])
def test_bad_assignments_name_the_flag(pairs):
    with pytest.raises(InputError, match="--backend-opt"):
        parse_assignments(pairs, "--backend-opt")
