"""Options of plugins: frozen keyword-only dataclasses.

They are given as `key=value` on a command line, and with types in a configuration file or Python.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union

from pointer_rl.errors import InputError, did_you_mean

T = TypeVar("T")
FilePath = Annotated[str, "file"]
"""The type of an option that is a path. In a configuration file it is relative to that file."""
FileOrName = Annotated[str, "file or name"]
"""The same for a path or something else, such as an id on the Hub: a path if there is one."""
SecretRoute = Annotated[str, "secret route"]
"""The type of an option that says which secret is sent, or where to. A configuration file that is
found in the current folder, and was not named, may not set it."""
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_TYPES = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


@dataclass(frozen=True)
class OptionInfo:
    """One field of an options class, as `pointer-rl plugins show` prints it."""

    name: str
    type: str
    default: Any
    required: bool
    help: str


class Assignment(NamedTuple):
    """An option of a plugin from a configuration file, where values have types."""

    key: str
    value: object

    def __str__(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"{self.key}={value}"


def parse_assignments(pairs: Iterable[str | Assignment], flag: str) -> dict[str, object]:
    """`["a=1", "my-plugin.b-c=x=y"]` → `{"a": "1", "my-plugin.b_c": "x=y"}`.

    Assignments keep their values.

    Raises InputError, which names `flag`, for text without `=` and for a key given twice.
    """
    assignments: dict[str, object] = {}
    for pair in pairs:
        value: object
        key, equals, value = (
            pair.partition("=") if isinstance(pair, str) else (pair[0], "=", pair[1])
        )
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

    Strings are converted to the field's type, and lists to tuples. Raises InputError, which names
    `owner` ("backend qwen2vl"), for an unknown key, a value of another type, a missing required
    option, and a ValueError of the class itself.
    """
    converted = convert_options(cls, values, owner)
    missing = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if _required(field) and field.name not in converted
    ]
    if missing:
        raise InputError(f"{owner} needs the option {', '.join(missing)} (give key=value)")
    try:
        return cls(**converted)
    except ValueError as error:
        raise InputError(f"{owner}: {error}") from error


def convert_options(cls: type, values: Mapping[str, object], owner: str) -> dict[str, object]:
    """The values with the types of the options class. Raises InputError as `build_options` does."""
    names = [field.name for field in dataclasses.fields(cls)]
    hints = typing.get_type_hints(cls)
    converted: dict[str, object] = {}
    for key, value in values.items():
        if key not in names:
            raise InputError(f"{owner} has no option {key!r}{did_you_mean(key, names)}")
        try:
            converted[key] = convert_value(value, hints[key])
        except ValueError as error:
            raise InputError(f"{owner}, option {key}={value}: {error}") from error
    return converted


def relative_to(folder: Path, cls: type, values: Mapping[str, object]) -> dict[str, object]:
    """The values, with paths (`FilePath`, `FileOrName`) taken relative to a folder."""
    hints = typing.get_type_hints(cls, include_extras=True)

    def resolve(value: object, hint: Any) -> object:
        kinds = {hint, *typing.get_args(hint)}
        if isinstance(value, str) and (
            FilePath in kinds or (FileOrName in kinds and (folder / value).exists())
        ):
            return str(folder / value)
        return value

    return {key: resolve(value, hints.get(key)) for key, value in values.items()}


def secret_routes(cls: type) -> set[str]:
    """Names of the options of type `SecretRoute`."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name for name, hint in hints.items() if SecretRoute in {hint, *typing.get_args(hint)}}


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


def convert_value(value: object, hint: Any) -> object:
    """The value as an option of that type. Raises ValueError if it is not of this type."""
    if isinstance(value, str):
        return convert_text(value, hint)
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return convert_value(value, next(each for each in arguments if each is not type(None)))
    if origin is Literal and value not in arguments:
        raise ValueError(f"not one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError("not a list")
        return tuple(convert_value(each, arguments[0]) for each in value)
    if hint is float and type(value) is int:
        return float(value)
    if hint in _TYPES and type(value) is not hint:
        raise ValueError(f"not {_TYPES[hint]}")
    return value


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
            raise ValueError(f"not {_TYPES[bool]}")
        return _BOOLEANS[text.lower()]
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError(f"not {_TYPES[hint]}") from None
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
