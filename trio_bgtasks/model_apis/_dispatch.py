"""`dispatch`: from the call that a model made to the answer that it gets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, cast

import attrs
import trio

from .._executable import Rejected
from .._json import JsonObject, clean_text, json_object, json_value, shorten
from .._outcome import describe, leaves
from .._tool import (
    InternalError,
    InvalidArguments,
    NotFound,
    Tool,
    ToolCallContext,
    ToolError,
    ToolResult,
    check_context,
)
from ._schemas import named, shown_parameters
from ._strict import has_null, without_nulls

_log = logging.getLogger("trio_bgtasks.model_apis")

_MOST_NAME = 80


async def dispatch(tools: Iterable[Tool], block: Any, ctx: ToolCallContext) -> Any:
    """Run the tool that a model called, and return the answer to that call.

    Every call gets exactly one answer, whatever the model did wrong and however the tool failed: an
    unknown tool, arguments that are no JSON or do not fit, and what a tool raises are error
    results. An exception that is no `ToolError` or `Rejected` is logged, too. Only a cancellation
    passes, and `KeyboardInterrupt`.

    A null for an optional parameter that may not be null is taken as its absence: that is how
    strict mode leaves one out. Arguments are then checked by the tool's own rules.

    Args:
        tools: Those that the request was made of.
        block: One call, as the SDK returned it or as the same dict: a ``tool_use`` block of
            Anthropic, a ``function_call`` item of OpenAI's Responses, or a member of ``tool_calls``
            of its Chat Completions.
        ctx: Who calls. The tool gets it with the call's id as ``call_id``. That is no idempotency
            key: set ``idempotency_key`` to one of your own if a turn may be played again.

    Returns:
        A dict for the next request: a ``tool_result`` block for the content of a user message, a
        ``function_call_output`` item, or a message of the role ``tool``. OpenAI's have no flag for
        an error; there the text begins with ``Error:``.

    Raises:
        TypeError: ``ctx`` is no `ToolCallContext`, a tool no `Tool`, or ``block`` is no such call.
        ValueError: two tools have one id.
    """
    await trio.lowlevel.checkpoint()
    check_context(ctx)
    call = _read(block)
    text, is_error = await _answer(named(tools), call, attrs.evolve(ctx, call_id=call.id))
    return _reply(call, clean_text(text), is_error=is_error)


# ---- reading a call, answering it ----------------------------------------------------------------


@attrs.frozen
class _Call:
    """A call of any API, by the type of its block; ``arguments`` are an object, or its text."""

    kind: str
    id: str
    name: object
    arguments: object


def _read(block: object) -> _Call:
    kind, function = _field(block, "type"), block
    match kind:
        case "tool_use":
            fields = ("id", "name", "input")
        case "function_call":
            fields = ("call_id", "name", "arguments")
        case "function":
            fields = ("id", "name", "arguments")
            function = _field(block, "function")
        case _:
            what = type(block).__name__ if kind is None else f"one of type {kind!r}"
            raise TypeError(
                "block must be a call of type 'tool_use', 'function_call' or 'function', not "
                f"{what}: only those are answered by a tool"
            )
    call_id = _field(block, fields[0])
    if not isinstance(call_id, str):
        raise TypeError(f"{fields[0]} of a call must be a string, not {type(call_id).__name__}")
    return _Call(kind, call_id, _field(function, fields[1]), _field(function, fields[2]))


def _field(holder: object, name: str) -> Any:
    if isinstance(holder, dict):
        return cast("dict[str, Any]", holder).get(name)
    return getattr(holder, name, None)


def _reply(call: _Call, text: str, *, is_error: bool) -> JsonObject:
    if call.kind == "tool_use":
        reply: JsonObject = {"type": "tool_result", "tool_use_id": call.id, "content": text}
        return {**reply, "is_error": is_error}
    if is_error:
        text = f"Error: {text}"
    if call.kind == "function_call":
        return {"type": "function_call_output", "call_id": call.id, "output": text}
    return {"role": "tool", "tool_call_id": call.id, "content": text}


# ---- running a tool ------------------------------------------------------------------------------


async def _answer(tools: dict[str, Tool], call: _Call, ctx: ToolCallContext) -> tuple[str, bool]:
    """Return the text of the answer, and whether it is that of an error."""
    try:
        tool = _called(tools, call.name)
        args = _arguments(tool, call.arguments)
        tool.validate_args(args)
        return _text(await tool.execute(args, ctx))
    except Rejected as rejected:
        return _text(rejected.result)
    except ToolError as error:
        return str(error), True
    except Exception as error:  # noqa: BLE001 - logged and answered
        _log.exception("tool %s raised", call.name, extra={"call_id": call.id})
        return describe(leaves(error)), True


def _called(tools: dict[str, Tool], name: object) -> Tool:
    tool = tools.get(name) if isinstance(name, str) else None
    if tool is None:
        shown = shorten(repr(name), _MOST_NAME)
        raise NotFound(f"there is no tool {shown}; there are: {', '.join(tools) or 'none'}")
    return tool


def _arguments(tool: Tool, given: object) -> JsonObject:
    """Return a private copy of the arguments, without the nulls of strict mode."""
    try:
        if isinstance(given, str):
            given = json.loads(given) if given.strip() else {}
        args = json_object(given, "arguments")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArguments(str(error)) from None
    if not has_null(args):
        return args
    with suppress(ValueError):  # the tool's own check says what is wrong with its schema
        args = without_nulls(shown_parameters(tool.descriptor().parameters), args)
    return args


def _text(result: object) -> tuple[str, bool]:
    """Return what a model reads of a result: the message, then the data."""
    if not isinstance(result, ToolResult):
        raise InternalError(f"the tool returned {type(result).__name__} instead of a ToolResult")
    data = json_value(result.data, "result")
    if data is not None and not isinstance(data, str):
        data = json.dumps(data, ensure_ascii=False)
    text = "\n".join(part for part in (result.message, data) if part)
    return text or str(result.status), result.is_error
