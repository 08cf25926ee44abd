"""Arguments for the JSON Schema of a tool, answers for that of a question."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache, reduce
from typing import Any, TypeAlias, cast
from urllib.parse import unquote

import attrs
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from trio_bgtasks import InvalidArguments, Tool, ToolCallContext, ToolDescriptor, ToolResult
from trio_bgtasks._json_schema import schema_validator

from ._json_values import json_values, storable, texts

_Schema: TypeAlias = dict[str, Any]

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1
_KINDS = ("null", "boolean", "integer", "number", "string", "array", "object")
# Keywords by which the kind of a value shows where ``type`` does not say it.
_SIGNS = {
    "properties": "object",
    "required": "object",
    "additionalProperties": "object",
    "items": "array",
    "prefixItems": "array",
    "pattern": "string",
    "minLength": "string",
    "maxLength": "string",
    "minimum": "number",
    "maximum": "number",
}


def arguments(parameters: Mapping[str, Any]) -> SearchStrategy[dict[str, Any]]:
    """Return arguments that a tool with these ``parameters`` accepts.

    ``parameters`` is the JSON Schema of a `ToolDescriptor`. What comes out has passed the check of
    `Tool.validate_args`. Made on purpose is what schemas of tools are made of: types, ``enum``,
    ``const``, properties and their names, items, bounds, patterns, local references, ``anyOf``,
    ``oneOf``, ``allOf``. What further keywords forbid is drawn and thrown away, so Hypothesis may
    complain of much filtering.

    Raises:
        InternalError: ``parameters`` is not a valid JSON Schema; when the first value is drawn.
    """
    schema: _Schema = {"type": "object", **parameters}
    tool = _Checked(schema)
    return _Maker(schema).values(schema).filter(tool.accepts)


def answers(schema: Mapping[str, Any]) -> SearchStrategy[Any]:
    """Return answers that fit the JSON Schema of a question; drawn as `arguments` are.

    Raises:
        ValueError: it is not a valid JSON Schema.
    """
    return _answers(json.dumps(schema))


@lru_cache(maxsize=256)
def _answers(text: str) -> SearchStrategy[Any]:
    schema: _Schema = json.loads(text)
    return _Maker(schema).values(schema).filter(schema_validator(schema).is_valid)


@attrs.frozen
class _Checked(Tool):
    """A tool for its check of arguments."""

    schema: _Schema

    def descriptor(self) -> ToolDescriptor:
        return ToolDescriptor("tool", "tool", "", self.schema)

    async def execute(self, args: Any, ctx: ToolCallContext) -> ToolResult:
        raise NotImplementedError  # pragma: no cover - nobody calls it

    def accepts(self, args: Any) -> bool:
        try:
            self.validate_args(args)
        except InvalidArguments:
            return False
        return True


class _Maker:
    """Makes values for the parts of one schema."""

    def __init__(self, root: _Schema) -> None:
        self._root = root
        self._referred: dict[str, SearchStrategy[Any]] = {}

    def values(self, schema: Any) -> SearchStrategy[Any]:
        if not isinstance(schema, dict):
            return st.nothing() if schema is False else json_values()
        part = cast("_Schema", schema)
        # allOf is the last: where two of its parts are choices, merging them makes another one.
        for keyword in ("$ref", "anyOf", "oneOf", "allOf"):
            if keyword in part:
                rest = {name: value for name, value in part.items() if name != keyword}
                return self._combined(keyword, part[keyword], rest)
        if "const" in part:
            return st.just(part["const"])
        if "enum" in part:
            return st.sampled_from(part["enum"])
        return st.one_of([self._of_kind(kind, part) for kind in _kinds(part)])

    def _combined(self, keyword: str, with_: Any, rest: _Schema) -> SearchStrategy[Any]:
        if keyword == "$ref":
            same = f"{with_} {rest}"  # made once: a schema may refer to itself
            if same not in self._referred:
                self._referred[same] = st.deferred(
                    lambda: self.values(_merged(rest, self._target(with_)))
                )
            return self._referred[same]
        if keyword == "allOf":
            return self.values(reduce(_merged, with_, rest))
        return st.one_of([self.values(_merged(rest, way)) for way in with_])

    def _target(self, reference: str) -> Any:
        found: Any = self._root
        for step in unquote(reference.partition("#")[2]).split("/")[1:]:
            found = found[step.replace("~1", "/").replace("~0", "~")]
        return found

    def _of_kind(self, kind: str, part: _Schema) -> SearchStrategy[Any]:
        makers: dict[str, Callable[[_Schema], SearchStrategy[Any]]] = {
            "null": lambda _: st.none(),
            "boolean": lambda _: st.booleans(),
            "integer": _integers,
            "number": _numbers,
            "string": _strings,
            "array": self._arrays,
            "object": self._objects,
        }
        return makers[kind](part)

    def _arrays(self, part: _Schema) -> SearchStrategy[list[Any]]:
        first = [self.values(item) for item in part.get("prefixItems", ())]
        low, high = part.get("minItems", 0), part.get("maxItems")
        high = max(low, 5) + len(first) if high is None else high
        unique = repr if part.get("uniqueItems") else None
        if part.get("items", True) is False:
            return st.tuples(*first[:high]).map(list)
        rest = st.lists(
            self.values(part.get("items", True)),
            min_size=max(0, low - len(first)),
            max_size=max(0, high - len(first)),
            unique_by=unique,
        )
        return st.tuples(st.tuples(*first[:high]), rest).map(lambda both: [*both[0], *both[1]])

    def _objects(self, part: _Schema) -> SearchStrategy[dict[str, Any]]:
        properties: _Schema = part.get("properties", {})
        required = part.get("required", ())
        other = part.get("additionalProperties", part.get("unevaluatedProperties", True))
        known = {name: self.values(schema) for name, schema in properties.items()}
        needed = {name: known.get(name, self.values(other)) for name in required}
        optional = {name: how for name, how in known.items() if name not in needed}
        named: SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(needed, optional=optional)
        for pattern, schema in part.get("patternProperties", {}).items():
            matching = st.dictionaries(_matching(pattern), self.values(schema), max_size=2)
            named = st.tuples(matching, named).map(lambda both: {**both[0], **both[1]})
        if other is False:
            return named
        low, high = part.get("minProperties", 0), part.get("maxProperties", len(known) + 2)
        names = texts()
        if "propertyNames" in part:
            names = self.values(_merged({"type": "string"}, part["propertyNames"]))
        names = names.filter(lambda name: name not in properties)
        more = st.dictionaries(
            names,
            self.values(other),
            min_size=max(0, low - len(known)),
            max_size=max(0, min(2 + low, high - len(needed))),
        )
        return st.tuples(named, more).map(lambda both: {**both[1], **both[0]})


def _merged(one: Any, other: Any) -> Any:
    """Return a schema that says what both say; where that is hard, what ``other`` says."""
    if other is True or one is False:
        return one
    if other is False or one is True:
        return other
    return _both(one, other)


def _both(one: _Schema, other: _Schema) -> _Schema:
    merged = {**one, **other}
    for name in one.keys() & other.keys():
        mine, theirs = one[name], other[name]
        if name == "properties":
            both = {key: _merged(mine[key], theirs[key]) for key in mine.keys() & theirs.keys()}
            merged[name] = {**mine, **theirs, **both}
        elif name == "required":
            merged[name] = [*mine, *theirs]
        elif name in ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"):
            merged[name] = max(mine, theirs)
        elif name in ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"):
            merged[name] = min(mine, theirs)
        elif name in ("anyOf", "oneOf", "allOf"):
            merged[name] = mine
            merged["allOf"] = [*merged.get("allOf", ()), {name: theirs}]
    return merged


def _kinds(part: _Schema) -> list[str]:
    said: Any = part.get("type")
    if isinstance(said, str):
        return [said]
    if said is not None:
        return list(said)
    signs = {_SIGNS[name] for name in part if name in _SIGNS}
    return sorted(signs) or list(_KINDS)


def _integers(part: _Schema) -> SearchStrategy[int]:
    low = max(_INT_MIN, -(-part.get("minimum", _INT_MIN) // 1))
    high = min(_INT_MAX, part.get("maximum", _INT_MAX) // 1)
    if "exclusiveMinimum" in part:
        low = max(low, part["exclusiveMinimum"] // 1 + 1)
    if "exclusiveMaximum" in part:
        high = min(high, -(-part["exclusiveMaximum"] // 1) - 1)
    if low > high:
        return st.nothing()
    step = part.get("multipleOf", 1)
    if step == int(step):
        return st.integers(-(-low // step), high // step).map(lambda n: int(n * step))
    return st.integers(int(low), int(high))


def _numbers(part: _Schema) -> SearchStrategy[float]:
    if "multipleOf" in part:
        step = part["multipleOf"]
        return st.integers(-1000, 1000).map(lambda n: n * step)
    low = part.get("minimum", part.get("exclusiveMinimum"))
    high = part.get("maximum", part.get("exclusiveMaximum"))
    above, below = part.get("exclusiveMinimum"), part.get("exclusiveMaximum")
    floats = st.floats(low, high, allow_nan=False, allow_infinity=False)
    return floats.filter(lambda n: n not in (above, below)) | _integers(part)


def _strings(part: _Schema) -> SearchStrategy[str]:
    low, high = part.get("minLength", 0), part.get("maxLength")
    if "pattern" in part:
        return _matching(part["pattern"]).filter(
            lambda text: low <= len(text) and (high is None or len(text) <= high)
        )
    return st.text(storable(), min_size=low, max_size=max(low, 20) if high is None else high)


def _matching(pattern: str) -> SearchStrategy[str]:
    """Return texts that match, as JSON Schema reads a pattern: its digits and letters are ASCII."""
    if pattern.endswith("$") and not pattern.endswith(r"\$"):
        pattern = pattern[:-1] + r"\Z"  # Python's own lets a line break follow
    try:
        return st.from_regex(re.compile(pattern, re.ASCII), alphabet=storable())
    except re.error:  # in another dialect: drawn until one matches
        return texts()
