"""The schema's verdict on a record, in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jsonschema_rs

import pointer_rl_schemas

__all__ = ["Fault", "SchemaChecker"]

Path = tuple[str | int, ...]


class Fault(NamedTuple):
    """A place in a record that is not as it should be."""

    rule: str
    path: Path
    message: str
    fix: str


class SchemaChecker:
    """Checks values against one definition of a schema."""

    def __init__(self, schema: str, definition: str) -> None:
        whole = pointer_rl_schemas.load(schema)
        self._root = {
            "$schema": whole["$schema"],
            "$defs": whole["$defs"],
            "$ref": f"#/$defs/{definition}",
        }
        self._validator = jsonschema_rs.Draft202012Validator(self._root)

    def faults(self, value: Any) -> list[Fault]:
        """All there are, one for each place and missing field; none for a valid value."""
        if self._validator.is_valid(value):
            return []
        found: dict[tuple[Path, str], Fault] = {}
        for error in self._validator.iter_errors(value):
            fault, missing = self._explain(error)
            found.setdefault((fault.path, missing), fault)
        return list(found.values())

    def _explain(self, error: jsonschema_rs.ValidationError) -> tuple[Fault, str]:
        path = tuple(error.instance_path)
        keyword = error.kind.name
        missing: str = error.kind.as_dict().get("property", "")
        message = _message(error)
        rule = f"schema.{keyword}"
        if keyword == "uniqueItems" and path[-1:] == ("pointer",):
            rule = "row-repeated"
        # a condition of its own name and title, such as #/$defs/beam-fields/then/required
        definition = error.schema_path[1] if error.schema_path[:1] == ["$defs"] else ""
        if {"then", "else"} & set(error.schema_path[:3]) and isinstance(definition, str):
            rule = definition
            message = f"{self._root['$defs'][definition]['title']}: {message}"
        field = (*path, missing) if missing else path
        fix = (
            "remove it"
            if keyword == "falseSchema"
            else f"write {_name(field)}: {self._describe(field)}"
        )
        return Fault(rule, path, message, fix), missing

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


def _first(nodes: Iterable[Mapping[str, Any]], key: str, default: Any) -> Any:
    return next((each[key] for each in nodes if key in each), default)


def _message(error: jsonschema_rs.ValidationError) -> str:
    detail: dict[str, Any] = error.kind.as_dict()
    value: Any = error.instance
    field = _name(tuple(error.instance_path))
    is_value = f"{field} is {_show(value)}"
    match error.kind.name:
        case "required":
            return f"{detail['property']} is missing"
        case "falseSchema":
            return f"{is_value} and must not be there"
        case "type":
            return f"{is_value}, not of type {' or '.join(detail['types'])}"
        case "enum":
            return f"{is_value}, none of {', '.join(map(_show, detail['options']))}"
        case "minimum":
            return f"{is_value}, below {_show(detail['limit'])}"
        case "exclusiveMinimum":
            return f"{is_value}, not above {_show(detail['limit'])}"
        case "maximum":
            return f"{is_value}, above {_show(detail['limit'])}"
        case "pattern":
            return f"{is_value}, not of the form {detail['pattern']}"
        case "minItems" | "minLength":
            return f"{field} is empty"
        case "uniqueItems":
            repeated = [each for index, each in enumerate(value) if each in value[:index]]
            return f"{field} holds {', '.join(map(_show, repeated))} more than once"
    return f"{is_value}, against {error.kind.name}"


def _name(path: Path) -> str:
    if not path:
        return "the value"
    return f"an item of {_name(path[:-1])}" if isinstance(path[-1], int) else path[-1]


def _show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
