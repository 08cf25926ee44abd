"""OpenAI's strict mode: a schema that says nothing it cannot express, and the way back. Pure.

In strict mode the model cannot but follow the schema. In return the schema is a subset of JSON
Schema: objects are closed and all their properties required, so what is optional becomes nullable.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, cast
from urllib.parse import quote

import jsonschema_rs

from .._json import JsonValue
from .._parameters import Schema, target_of

# What constrains nothing; left out. Strict mode refuses ``default``.
_ANNOTATIONS = {
    *("$comment", "$schema", "contentEncoding", "contentMediaType", "default", "deprecated"),
    *("discriminator", "examples", "readOnly", "title", "writeOnly"),
}
_COPIED = {
    *("const", "description", "enum", "exclusiveMaximum", "exclusiveMinimum", "format"),
    *("maxItems", "maxLength", "maximum", "minItems", "minLength", "minimum", "multipleOf"),
    "pattern",
}
_KEYWORDS = _COPIED | {
    *("$ref", "additionalProperties", "anyOf", "items", "properties", "required", "type"),
}
_FORMATS = {
    *("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uuid"),
}
_DEFINITION = re.compile(r"#/(\$defs|definitions)/([^/~%]+)")
_LOOKAROUND = re.compile(r"\(\?(?!:)")
_MOST_LEVELS = 10
_MOST_PROPERTIES = 5000
_MOST_VALUES = 1000
_BASE = "tool:parameters"


class NotStrict(ValueError):
    """Strict mode cannot express the part of a schema to which ``pointer`` leads."""

    def __init__(self, pointer: str, why: str) -> None:
        self.pointer = pointer
        super().__init__(f"{pointer}: {why}")


def strict_schema(parameters: Schema) -> Schema:
    """Return a schema for strict mode: what it accepts is, `without_nulls`, accepted by the other.

    Raises:
        NotStrict: there is none that accepts the same but for undeclared properties.
    """
    return _Strict(parameters).whole()


def without_nulls(parameters: Schema, args: Any) -> Any:
    """Return arguments without the nulls that can only mean: this optional property is absent."""
    return _Nulls(parameters).value("#", parameters, args)


class _Parts:
    """The parts of one schema, each by a JSON pointer from the root."""

    def __init__(self, root: Schema) -> None:
        self.root = root
        self._text = json.dumps(root)

    def accepts(self, pointer: str, value: JsonValue) -> bool:
        return _part_validator(self._text, pointer).is_valid(value)


@lru_cache(maxsize=1024)
def _part_validator(root: str, pointer: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(
        {"$ref": f"{_BASE}{pointer}"}, retriever=lambda _: json.loads(root)
    )


def _step(pointer: str, *steps: str | int) -> str:
    """Return the pointer to what is below, as a part of a URI."""
    escaped = (str(step).replace("~", "~0").replace("/", "~1") for step in steps)
    return "/".join([pointer, *(quote(step, safe="~$") for step in escaped)])


class _Strict:
    """One walk over one schema."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._parts = _Parts(root)
        self._definitions: dict[str, Schema] = {}
        self._left = {"properties": _MOST_PROPERTIES, "values of enums": _MOST_VALUES}

    def whole(self) -> Schema:
        root = {name: v for name, v in self._root.items() if name not in ("$defs", "definitions")}
        schema = self._node(root, "#", 1)
        for reference, definition in self._definitions.items():
            _, keyword, name = reference.split("/")
            schema.setdefault(keyword, {})[name] = definition
        return schema

    def _node(self, schema: Any, pointer: str, level: int) -> Schema:
        if not isinstance(schema, dict):
            raise NotStrict(pointer, "a schema without a type")
        said = cast("Schema", schema)
        part = {name: value for name, value in said.items() if name not in _ANNOTATIONS}
        for keyword in sorted(part.keys() - _KEYWORDS):
            raise NotStrict(pointer, f"strict mode has no {keyword!r}")
        for keyword in ("$ref", "anyOf"):
            if keyword in part and part.keys() - {keyword, "description"}:
                raise NotStrict(pointer, f"{keyword!r} beside other keywords")
        strict = {name: value for name, value in part.items() if name in _COPIED}
        if "$ref" in part:
            reference = {"$ref": self._referred(part["$ref"], pointer)}
            # Nothing may stand beside a reference.
            return {"anyOf": [reference], **strict} if strict else reference
        if "anyOf" in part:
            strict["anyOf"] = [
                self._node(member, _step(pointer, "anyOf", n), level)
                for n, member in enumerate(part["anyOf"])
            ]
            return strict
        self._check_values(part, pointer)
        kinds = _kinds(part, pointer)
        strict = {"type": kinds if len(kinds) > 1 else kinds[0], **strict}
        if "object" in kinds:
            strict |= self._object(part, pointer, level)
        if "array" in kinds:
            strict["items"] = self._node(part.get("items"), _step(pointer, "items"), level)
        return strict

    def _referred(self, reference: str, pointer: str) -> str:
        """Return a reference whose target is, or will be, among the definitions."""
        if reference != "#" and reference not in self._definitions:
            target = target_of(self._root, reference)
            if target is None or not _DEFINITION.fullmatch(reference):
                raise NotStrict(pointer, f"a reference to {reference}, which is no definition")
            self._definitions[reference] = {}  # it may refer to itself
            self._definitions[reference] |= self._node(target, reference, 1)
        return reference

    def _object(self, part: Schema, pointer: str, level: int) -> Schema:
        properties: dict[str, Any] = part.get("properties", {})
        required: list[str] = part.get("required", [])
        if level > _MOST_LEVELS:
            raise NotStrict(pointer, f"more than {_MOST_LEVELS} levels of objects")
        if part.get("additionalProperties", False) is not False or (
            not properties and "additionalProperties" not in part and pointer != "#"
        ):
            raise NotStrict(pointer, "an object of any keys")
        for name in sorted(set(required) - properties.keys()):
            raise NotStrict(pointer, f"{name!r} is required and no property")
        self._spend("properties", len(properties), pointer)
        strict: Schema = {}
        for name, schema in properties.items():
            at = _step(pointer, "properties", name)
            strict[name] = self._node(schema, at, level + 1)
            if name not in required and not self._parts.accepts(at, None):
                strict[name] = {"anyOf": [strict[name], {"type": "null"}]}
        return {"properties": strict, "required": list(strict), "additionalProperties": False}

    def _check_values(self, part: Schema, pointer: str) -> None:
        self._spend("values of enums", len(part.get("enum", ())), pointer)
        if part.get("format", "date") not in _FORMATS:
            raise NotStrict(pointer, f"strict mode has no format {part['format']!r}")
        if _LOOKAROUND.search(part.get("pattern", "")):
            raise NotStrict(pointer, "a pattern with '(?'")

    def _spend(self, what: str, count: int, pointer: str) -> None:
        self._left[what] -= count
        if self._left[what] < 0:
            raise NotStrict(pointer, f"too many {what}")


def _kinds(part: Schema, pointer: str) -> list[str]:
    """Return the types; those of the values, where only these are said."""
    said: Any = part.get("type", [])
    if said:
        return [said] if isinstance(said, str) else said
    values: list[Any] = [part["const"]] if "const" in part else part.get("enum", [])
    kinds = {_kind(value) for value in values}
    if not kinds or "" in kinds:
        raise NotStrict(pointer, "a schema without a type")
    return sorted(kinds)


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int() | float():
            return "number"
        case _:
            return ""


class _Nulls:
    """One walk over arguments, along their schema: the ways that strict mode knows, no others."""

    def __init__(self, root: Schema) -> None:
        self._parts = _Parts(root)

    def value(self, pointer: str, schema: Any, value: JsonValue) -> JsonValue:
        schema, pointer = self._followed(schema, pointer)
        if isinstance(value, dict):
            value = self._object(pointer, schema, value)
        elif isinstance(value, list) and "items" in schema:
            at = _step(pointer, "items")
            value = [self.value(at, schema["items"], item) for item in value]
        for n, member in enumerate(schema.get("anyOf", ())):
            at = _step(pointer, "anyOf", n)
            candidate = self.value(at, member, value)
            if self._parts.accepts(at, candidate):
                return candidate
        return value

    def _object(self, pointer: str, schema: Schema, value: dict[str, JsonValue]) -> JsonValue:
        properties: dict[str, Any] = schema.get("properties", {})
        optional = properties.keys() - schema.get("required", ())
        kept: dict[str, JsonValue] = {}
        for name, item in value.items():
            at = _step(pointer, "properties", name)
            if item is None and name in optional and not self._parts.accepts(at, None):
                continue
            kept[name] = self.value(at, properties[name], item) if name in properties else item
        return kept

    def _followed(self, schema: Any, pointer: str) -> tuple[Schema, str]:
        """Return what a part refers to, in the end."""
        seen: set[str] = set()
        while isinstance(schema, dict) and pointer not in seen:
            seen.add(pointer)
            part = cast("Schema", schema)
            target = target_of(self._parts.root, part.get("$ref"))
            if target is None:
                return part, pointer
            schema, pointer = target, part["$ref"]
        return {}, pointer


def has_null(value: JsonValue) -> bool:
    """Is there a null anywhere?"""
    if isinstance(value, dict):
        return any(map(has_null, value.values()))
    if isinstance(value, list):
        return any(map(has_null, value))
    return value is None
