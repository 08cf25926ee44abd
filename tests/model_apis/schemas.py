"""Schemas of tools, a tool with any schema, and calls of each API."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from trio_bgtasks import Tool, ToolCallContext, ToolDescriptor, ToolResult

Schema = dict[str, Any]
CTX = ToolCallContext(source="test", thread_id="thread-1")


@attrs.define(eq=False)
class Asked(Tool):
    """A tool that answers what it is told to; remembers what it was asked."""

    parameters: Any = attrs.field(factory=lambda: {"type": "object", "properties": {}})
    id: str = "asked"
    answer: Any = None
    asked: list[tuple[Any, ToolCallContext]] = attrs.field(
        factory=list[tuple[Any, ToolCallContext]]
    )

    def descriptor(self) -> ToolDescriptor:
        return ToolDescriptor(
            self.id, f"Called {self.id}", f"Answers as {self.id}.", self.parameters
        )

    async def execute(self, args: Any, ctx: ToolCallContext) -> ToolResult:
        self.asked.append((args, ctx))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return ToolResult.success(self.id, "yes") if self.answer is None else self.answer


# ---- calls of each API ---------------------------------------------------------------------------


def anthropic_call(name: Any, args: Any, call_id: Any = "call-1") -> Schema:
    """Return a block of Anthropic's; its arguments are an object."""
    return {"type": "tool_use", "id": call_id, "name": name, "input": args}


def responses_call(name: Any, args: Any, call_id: Any = "call-1") -> Schema:
    """Return an item of OpenAI's Responses; its arguments are text."""
    text = args if isinstance(args, str) else json.dumps(args)
    shown = {"name": name, "arguments": text, "id": "fc_1", "status": "completed"}
    return {"type": "function_call", "call_id": call_id, **shown}


def chat_call(name: Any, args: Any, call_id: Any = "call-1") -> Schema:
    """Return a member of ``tool_calls``."""
    text = args if isinstance(args, str) else json.dumps(args)
    return {"type": "function", "id": call_id, "function": {"name": name, "arguments": text}}


CALLS: dict[str, Callable[..., Schema]] = {
    "anthropic": anthropic_call,
    "responses": responses_call,
    "chat": chat_call,
}


def as_object(value: Any) -> Any:
    """Return the same as an object with attributes; the arguments of Anthropic's stay a dict."""
    if not isinstance(value, dict):
        return value
    fields = {name: v if name == "input" else as_object(v) for name, v in value.items()}
    return SimpleNamespace(**fields)


# ---- schemas -------------------------------------------------------------------------------------

_names = st.sampled_from(["a", "b", "a/b", "~1", "%41", "ü n", "$ref", "0"])
_words = st.text("abc", max_size=3)


@st.composite
def _bounded(draw: st.DrawFn, kind: str, low: str, high: str) -> Schema:
    schema: Schema = {"type": kind}
    if draw(st.booleans()):
        schema[low] = draw(st.integers(0, 3))
    if draw(st.booleans()):
        schema[high] = draw(st.integers(3, 6))
    return schema


_leaves: SearchStrategy[Schema] = st.one_of(
    _bounded("string", "minLength", "maxLength"),
    _bounded("integer", "minimum", "maximum"),
    _bounded("number", "exclusiveMinimum", "maximum"),
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": ["string", "null"], "title": "A title"},
            {"type": "string", "format": "date", "enum": ["2026-08-01"]},
            {"type": "string", "pattern": "^[ab]+$", "description": "some"},
            {"const": "x"},
        ]
    ),
    st.lists(st.one_of(st.none(), st.booleans(), _words, st.integers(0, 9)), min_size=1, max_size=3)
    .map(lambda values: {"enum": values})
    .filter(lambda schema: len({json.dumps(v) for v in schema["enum"]}) == len(schema["enum"])),
)


@st.composite
def _objects(draw: st.DrawFn, nodes: SearchStrategy[Schema], *, closed: bool) -> Schema:
    properties = draw(st.dictionaries(_names, nodes, max_size=3))
    required = (
        draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
    )
    schema: Schema = {"type": "object", "properties": properties, "required": required}
    if closed or not properties or draw(st.booleans()):
        schema["additionalProperties"] = False
    return schema


def _composed(nodes: SearchStrategy[Schema], *, closed: bool) -> SearchStrategy[Schema]:
    lists = st.builds(lambda items: {"type": "array", "items": items, "maxItems": 2}, nodes)
    kinds = [_objects(nodes, closed=closed), lists]
    if not closed:
        kinds.append(
            st.builds(lambda ways: {"anyOf": ways}, st.lists(nodes, min_size=1, max_size=3))
        )
    return st.one_of(kinds)


@st.composite
def tool_schemas(draw: st.DrawFn, *, closed: bool = False) -> Schema:
    """Return schemas of tools that strict mode can express; some refer to themselves.

    Args:
        draw: is Hypothesis' own.
        closed: only closed objects and no unions, so that arguments have one form in each mode.
    """
    reference = st.sampled_from(
        [{"$ref": "#/$defs/node"}, {"$ref": "#/$defs/node", "description": "a node"}]
    )
    nodes = st.recursive(
        _leaves | reference, lambda inner: _composed(inner, closed=closed), max_leaves=6
    )
    root = draw(_objects(nodes, closed=closed))
    root["properties"]["base"] = draw(nodes)
    node = draw(_objects(nodes, closed=closed))
    node["required"] = []  # or nothing could ever be one
    node["properties"]["leaf"] = {"type": "integer"}
    return {**root, "$defs": {"node": node}}
