"""What the JSON Schema finds wrong with a record, in plain words.

jsonschema-rs decides whether a record is valid, in microseconds. For a rejected record jsonschema,
the reference implementation, reports the findings. It takes milliseconds, so the caller limits its
findings; jsonschema-rs reports the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import jsonschema_rs

import pointer_rl_schemas

if TYPE_CHECKING:
    import jsonschema
    from jsonschema.protocols import Validator

Path = tuple[str | int, ...]


class Fault(NamedTuple):
    """Something wrong in a record."""

    rule: str
    path: Path
    message: str
    fix: str


class _Violation(NamedTuple):
    """What both validators say of a value that breaks a keyword of the schema."""

    path: Path
    """The value's place in the record."""
    value: Any
    keyword: str
    expected: Any
    """The keyword's value in the schema."""
    condition: str
    """The definition whose `then` or `else` has the keyword, such as "beam-fields"; else ""."""


class SchemaChecker:
    """Checks values against one definition of a schema."""

    def __init__(self, schema: str, definition: str) -> None:
        whole = pointer_rl_schemas.load(schema)
        self._root = {
            "$schema": whole["$schema"],
            "$defs": whole["$defs"],
            "$ref": f"#/$defs/{definition}",
        }
        # By identity, because a jsonschema error names the schema as an object and its place only
        # without the $refs on the way.
        self._conditions = {
            id(part): name
            for name, each in whole["$defs"].items()
            for branch in ("then", "else")
            for part in _objects(each.get(branch))
        }
        self._fast = jsonschema_rs.Draft202012Validator(self._root)

    @cached_property
    def _reference(self) -> Validator:
        import jsonschema  # takes 0.2 s, and valid files do not need it

        return jsonschema.Draft202012Validator(self._root)

    def is_valid(self, value: Any) -> bool:
        """Whether the value follows the definition."""
        try:
            return self._fast.is_valid(value)
        except UnicodeEncodeError:  # half a surrogate pair, which jsonschema-rs cannot take
            return bool(self._reference.is_valid(value))

    def faults(self, value: Any, limit: int | None = None) -> list[Fault]:
        """Everything wrong with a value, one fault for each place and missing field.

        jsonschema reports at most `limit` violations. jsonschema-rs reports the others, and values
        that only it rejects, such as NaN.
        """
        if self.is_valid(value):
            return []
        try:
            fast = [self._from_fast(each, value) for each in self._fast.iter_errors(value)]
        except UnicodeEncodeError:  # as in is_valid
            fast, limit = [], None
        errors = () if limit == 0 else islice(self._reference.iter_errors(value), limit)
        violations = list(map(self._from_reference, errors))
        if len(violations) in (0, limit):
            violations += fast
        found: dict[tuple[Path, str], Fault] = {}
        for violation in violations:
            for missing, fault in self._explain(violation):
                found.setdefault((fault.path, missing), fault)
        return list(found.values())

    # --- reading the validators' errors ---

    def _from_fast(self, error: jsonschema_rs.ValidationError, value: Any) -> _Violation:
        *parents, keyword = error.schema_path
        schema: Any = self._root
        for part in parents:
            schema = schema[part]
        path = tuple(error.instance_path)
        for part in path:  # error.instance has null for a number that overflows, such as 1e999
            value = value[part]
        return self._violation(path, value, schema, keyword)

    def _from_reference(self, error: jsonschema.ValidationError) -> _Violation:
        path = tuple(error.absolute_path)
        return self._violation(path, error.instance, error.schema, str(error.validator))

    def _violation(self, path: Path, value: Any, schema: Any, keyword: Any) -> _Violation:
        condition = self._conditions.get(id(schema), "")
        return _Violation(path, value, keyword, schema[keyword], condition)

    # --- explaining them ---

    def _explain(self, violation: _Violation) -> Iterator[tuple[str, Fault]]:
        """Faults, each with the missing field that it is about, if any."""
        path, value, keyword, expected, condition = violation
        rule = condition or f"schema.{keyword}"
        if keyword == "uniqueItems" and path[-1:] == ("pointer",):
            rule = "row-repeated"
        prefix = f"{self._root['$defs'][condition]['title']}: " if condition else ""
        if keyword == "required":  # the validators do not agree on how to name the field
            for missing in expected:
                if missing not in value:
                    message = f"{prefix}{missing} is missing"
                    yield missing, Fault(rule, path, message, self._fix((*path, missing)))
            return
        fix = "remove it" if keyword == "not" else self._fix(path)
        yield "", Fault(rule, path, prefix + _message(violation), fix)

    def _fix(self, path: Path) -> str:
        return f"write {_name(path)}: {self._describe(path)}"

    def _describe(self, path: Path) -> str:
        """The description of the field at `path`."""
        nodes = self._resolve(self._root)
        description = ""
        for part in (None, *path):
            if isinstance(part, int):
                nodes = self._resolve(_first(nodes, "items", {}))
            elif part is not None:
                fields = [each["properties"] for each in nodes if "properties" in each]
                nodes = self._resolve(_first(fields, part, {}))
            description = _first(nodes, "description", description)
        return description

    def _resolve(self, node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """A schema and those that it refers to unconditionally, itself first."""
        nodes = [node]
        for reference in (node.get("$ref"), node.get("then", {}).get("$ref")):
            if reference is not None:
                nodes += self._resolve(self._root["$defs"][reference.rsplit("/", 1)[-1]])
        return nodes


def _objects(node: Any) -> Iterator[dict[str, Any]]:
    """All objects in a part of a schema, itself included."""
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from _objects(child)


def _first(nodes: Iterable[Mapping[str, Any]], key: str, default: Any) -> Any:
    return next((each[key] for each in nodes if key in each), default)


def _message(violation: _Violation) -> str:
    value, expected = violation.value, violation.expected
    field = _name(violation.path)
    is_value = f"{field} is {_show(value)}"
    match violation.keyword:
        case "not":
            return f"{is_value} and must not be there"
        case "type":
            types = [expected] if isinstance(expected, str) else expected
            return f"{is_value}, not of type {' or '.join(types)}"
        case "enum":
            return f"{is_value}, none of {', '.join(map(_show, expected))}"
        case "minimum":
            return f"{is_value}, below {_show(expected)}"
        case "exclusiveMinimum":
            return f"{is_value}, not above {_show(expected)}"
        case "maximum":
            return f"{is_value}, above {_show(expected)}"
        case "pattern":
            return f"{is_value}, not of the form {expected}"
        case "minLength":
            return f"{field} is empty"
        case "uniqueItems":
            repeated = [each for index, each in enumerate(value) if each in value[:index]]
            return f"{field} holds {', '.join(map(_show, repeated))} more than once"
    return f"{is_value}, against {violation.keyword}"


def _name(path: Path) -> str:
    if not path:
        return "the value"
    return f"an item of {_name(path[:-1])}" if isinstance(path[-1], int) else path[-1]


def _show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
