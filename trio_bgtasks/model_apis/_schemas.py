"""What a request says of its tools, for each API. Pure."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

import attrs

from .._json import JsonObject
from .._json_schema import schema_validator
from .._parameters import Schema, extended
from .._tool import Tool, ToolDescriptor
from ._strict import NotStrict, strict_schema

_log = logging.getLogger("trio_bgtasks.model_apis")

_NAME = re.compile(r"[a-zA-Z0-9_-]+")


@attrs.frozen
class _Api:
    """What an API refuses, by an error that fails the whole request."""

    title: str
    longest_name: int
    not_at_the_root: frozenset[str]


_ANTHROPIC = _Api("Anthropic", 128, frozenset({"allOf", "anyOf", "oneOf"}))
_OPENAI = _Api("OpenAI", 64, _ANTHROPIC.not_at_the_root | {"const", "enum", "not"})


# Elements are Any, as each SDK has a TypedDict of its own for them, of which no dict is one.


def to_anthropic(tools: Iterable[Tool]) -> list[Any]:
    """Return the ``tools`` of a request to Anthropic's Messages API: a dict for each.

    A tool's id is its name there.

    Raises:
        TypeError: something is no `Tool`.
        ValueError: two tools have one id, or the API would refuse a tool: its id is longer than 128
            characters or has others than letters, digits, ``_`` and ``-``; its parameters are no
            JSON Schema of an object, or combine schemas at the root.
    """
    return [
        {"name": tool.id, "description": tool.description, "input_schema": schema}
        for tool, schema in _described(tools, _ANTHROPIC)
    ]


def to_openai_responses(tools: Iterable[Tool], *, strict: bool = False) -> list[Any]:
    """Return the ``tools`` of a request to OpenAI's Responses API: a dict for each.

    A tool's id is its name there.

    Args:
        tools: The tools.
        strict: Hold the model to the schema of each tool that strict mode can express: what is
            optional is then required and nullable, which `dispatch` undoes. Other tools, such as
            one that takes an object of any keys, keep ``"strict": False``; a log line at level INFO
            says which part of the schema is why.

    Raises:
        TypeError: something is no `Tool`.
        ValueError: two tools have one id, or the API would refuse a tool: its id is longer than 64
            characters or has others than letters, digits, ``_`` and ``-``; its parameters are no
            JSON Schema of an object, or combine schemas at the root.
    """
    return [{"type": "function", **function} for function in _functions(tools, strict=strict)]


def to_openai_chat(tools: Iterable[Tool], *, strict: bool = False) -> list[Any]:
    """Return the ``tools`` of a request to OpenAI's Chat Completions API: a dict for each.

    Arguments and errors are those of `to_openai_responses`.
    """
    return [
        {"type": "function", "function": function} for function in _functions(tools, strict=strict)
    ]


def named(tools: Iterable[Tool]) -> dict[str, Tool]:
    """Return the tools by their ids.

    Raises:
        TypeError: something is no `Tool`.
        ValueError: two have one id.
    """
    found: dict[str, Tool] = {}
    for tool in tools:
        if not isinstance(tool, Tool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"tools must be Tools, not {type(tool).__name__}")
        name = tool.descriptor().id
        if found.setdefault(name, tool) is not tool:
            raise ValueError(f"two tools have the id {name!r}; give one of them another")
    return found


def shown_parameters(parameters: JsonObject) -> Schema:
    """Return the parameters as an API wants them: an object with properties, no reference first.

    Raises:
        ValueError: they are no JSON Schema.
    """
    schema_validator(parameters)
    return extended(parameters, {})


def _functions(tools: Iterable[Tool], *, strict: bool) -> Iterable[JsonObject]:
    for tool, schema in _described(tools, _OPENAI):
        parameters, is_strict = schema, False
        if strict:
            try:
                parameters, is_strict = strict_schema(schema), True
            except NotStrict as error:
                _log.info("tool %s is not strict: %s", tool.id, error)
        yield {
            "name": tool.id,
            "description": tool.description,
            "parameters": parameters,
            "strict": is_strict,
        }


def _described(tools: Iterable[Tool], api: _Api) -> Iterable[tuple[ToolDescriptor, Schema]]:
    for name, tool in named(tools).items():
        if not _NAME.fullmatch(name) or len(name) > api.longest_name:
            raise ValueError(
                f"{api.title} takes no tool with the id {name!r}: it must be at most "
                f"{api.longest_name} letters, digits, '_' and '-', all of them ASCII"
            )
        descriptor = tool.descriptor()
        try:
            schema = shown_parameters(descriptor.parameters)
        except ValueError as error:
            raise ValueError(f"the schema of tool {name!r} is not valid: {error}") from None
        if schema["type"] != "object":
            raise ValueError(f"the schema of tool {name!r} must be of type 'object'")
        for keyword in sorted(api.not_at_the_root & schema.keys()):
            raise ValueError(
                f"{api.title} takes no {keyword!r} at the root of a schema; let tool {name!r} have "
                "it in a property, or check it in validate_args"
            )
        yield descriptor, schema
