"""Options of plugins: frozen keyword-only dataclasses, given as `key=value` on a command line."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union

from pointer_rl.errors import InputError, did_you_mean

T = TypeVar("T")
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class OptionInfo:
    """One field of an options class, as `pointer-rl plugins show` prints it."""

    name: str
    type: str
    default: Any
    required: bool
    help: str


def parse_assignments(pairs: Iterable[str], flag: str) -> dict[str, str]:
    """`["a=1", "my-plugin.b-c=x=y"]` → `{"a": "1", "my-plugin.b_c": "x=y"}`.

    Raises InputError, which names `flag`, for text without `=` and for a key given twice.
    """
    assignments: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        owner, dot, option = key.strip().rpartition(".")
        key = owner + dot + option.replace("-", "_")
        if not equals or not option:
            raise InputError(f"{flag} {pair}: write it as key=value")
        if key in assignments:
            raise InputError(f"{flag} {key}: given twice")
        assignments[key] = value
    return assignments


def build_options(cls: type[T], values: Mapping[str, object], owner: str) -> T:
    """Make an instance of an options class.

    Strings are converted to the field's type, and lists, which come from JSON, to tuples; other
    values are used as they are. Raises InputError, which names `owner` ("backend qwen2vl"), for an
    unknown key, a string that cannot be converted, a missing required option, and a ValueError of
    the class itself.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    converted: dict[str, object] = {}
    for key, value in values.items():
        if key not in fields:
            raise InputError(f"{owner} has no option {key!r}{did_you_mean(key, fields)}")
        if isinstance(value, list):
            value = tuple(value)
        try:
            converted[key] = convert_text(value, hints[key]) if isinstance(value, str) else value
        except ValueError as error:
            raise InputError(f"{owner}, option {key}={value}: {error}") from error
    missing = [name for name, field in fields.items() if _required(field) and name not in converted]
    if missing:
        raise InputError(f"{owner} needs the option {', '.join(missing)} (give key=value)")
    try:
        return cls(**converted)
    except ValueError as error:
        raise InputError(f"{owner}: {error}") from error


def describe_options(cls: type) -> list[OptionInfo]:
    """Describe each field of an options class, in order."""
    docs = _field_docstrings(cls)
    hints = typing.get_type_hints(cls)
    return [
        OptionInfo(
            name=field.name,
            type=_type_name(hints[field.name]),
            default=None if _required(field) else field.default,
            required=_required(field),
            help=docs.get(field.name, ""),
        )
        for field in dataclasses.fields(cls)
    ]


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING


def convert_text(text: str, hint: Any) -> object:
    """Convert text to the type of an option.

    Raises ValueError for text that is not of this type, and TypeError for a type that options
    cannot have.
    """
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if type(None) in arguments and text.lower() in ("", "none"):
            return None
        return convert_text(text, next(each for each in arguments if each is not type(None)))
    if origin is Literal:
        if text not in arguments:
            raise ValueError(f"not one of {', '.join(map(str, arguments))}")
        return text
    if origin is tuple:
        return tuple(convert_text(part, arguments[0]) for part in text.split(",") if part)
    if hint is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError("not true or false")
        return _BOOLEANS[text.lower()]
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError(f"not {'an integer' if hint is int else 'a number'}") from None
    if hint is str:
        return text
    raise TypeError(f"an option of type {hint} cannot be given on a command line")


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return str(hint).replace("typing.", "")


def _field_docstrings(cls: type) -> dict[str, str]:
    """The string literal under each field; none if the source is missing (a frozen program)."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _own_docstrings(base)
    return docs


def _own_docstrings(cls: type) -> dict[str, str]:
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            docs[statement.target.id] = inspect.cleandoc(following.value.value)
    return docs
