"""The contract with tools: descriptors, results, errors, contexts, validation."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trio_bgtasks import (
    Denied,
    ExecutionFailed,
    InternalError,
    InvalidArguments,
    NotFound,
    Tool,
    ToolCallContext,
    ToolDescriptor,
    ToolError,
    ToolResult,
    ToolStatus,
)


class Described(Tool):
    """A tool of a given schema."""

    def __init__(self, parameters: Any) -> None:
        self.parameters = parameters

    def descriptor(self) -> ToolDescriptor:
        return ToolDescriptor("described", "Described", "", self.parameters)

    async def execute(self, args: Any, ctx: ToolCallContext) -> ToolResult:
        return ToolResult.success(ctx.source, args)


NESTED = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 1},
        "items": {"type": "array", "items": {"type": "object", "required": ["the name"]}},
        "odd key": {"type": "object", "properties": {"x": {"type": "string"}}},
    },
    "required": ["count"],
}


# ---- descriptors, results, errors ----------------------------------------------------------------


def test_a_descriptor_without_parameters_is_one_of_an_empty_object() -> None:
    """The default schema is that of an empty object, and no two descriptors share it."""
    one, two = ToolDescriptor("a", "A", ""), ToolDescriptor("a", "A", "")
    assert one.parameters == {"type": "object", "properties": {}}
    assert one.parameters is not two.parameters
    assert (one.category, one.metadata) == (None, {})


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"id": ""}, "id cannot be empty"),
        ({"id": 5}, "id must be a string, not int"),
        ({"name": "a\nb"}, "name contains a control character"),
        ({"description": None}, "description must be a string, not NoneType"),
        ({"parameters": True}, "parameters must be a dict, not bool"),
        ({"category": 1}, "category must be a string or None, not int"),
        ({"metadata": []}, "metadata must be a dict, not list"),
    ],
)
def test_a_bad_descriptor_names_its_field(fields: dict[str, Any], error: str) -> None:
    """A field of the wrong kind is refused by its name."""
    good: dict[str, Any] = {"id": "a", "name": "A", "description": ""}
    with pytest.raises((TypeError, ValueError), match=f"^{error}$"):
        ToolDescriptor(**(good | fields))


@pytest.mark.parametrize(
    ("result", "expected", "predicates"),
    [
        (
            ToolResult.success("t", {"a": 1}),
            ("success", {"a": 1}, None),
            (True, False, False),
        ),
        (
            ToolResult.success("t", 1, "done"),
            ("success", 1, "done"),
            (True, False, False),
        ),
        (
            ToolResult.warning("t", 1, "but"),
            ("warning", 1, "but"),
            (True, False, False),
        ),
        (
            ToolResult.pending("t", "later"),
            ("pending", None, "later"),
            (False, True, False),
        ),
        (
            ToolResult.error("t", "no"),
            ("error", None, "no"),
            (False, False, True),
        ),
        (
            ToolResult.error("t", "no", "gone"),
            ("error", {"error": {"code": "gone", "message": "no"}}, "[gone] no"),
            (False, False, True),
        ),
    ],
)
def test_results(
    result: ToolResult,
    expected: tuple[str, Any, str | None],
    predicates: tuple[bool, bool, bool],
) -> None:
    """Each constructor makes the status, data and message of the wire."""
    assert (result.tool_name, result.metadata) == ("t", {})
    assert (result.status.value, result.data, result.message) == expected
    assert (result.is_success, result.is_pending, result.is_error) == predicates


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"tool_name": None}, "tool_name must be a string, not NoneType"),
        ({"status": "great"}, "status must be one of success, warning, pending, error"),
        ({"message": ValueError("x")}, "message must be a string or None, not ValueError"),
        ({"metadata": None}, "metadata must be a dict, not NoneType"),
    ],
)
def test_a_bad_result_names_its_field(fields: dict[str, Any], error: str) -> None:
    """A field of the wrong kind is refused by its name."""
    good: dict[str, Any] = {"tool_name": "t", "status": ToolStatus.SUCCESS}
    with pytest.raises((TypeError, ValueError), match=f"^{error}$"):
        ToolResult(**(good | fields))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (ToolError, "it"),
        (InvalidArguments, "Invalid arguments: it"),
        (ExecutionFailed, "Execution failed: it"),
        (Denied, "Denied: it"),
        (NotFound, "Not found: it"),
        (InternalError, "Internal error: it"),
    ],
)
def test_errors_begin_with_the_prefix_of_their_kind(kind: type[ToolError], text: str) -> None:
    """The text of an error is its kind's prefix and its message."""
    error = kind("it")
    assert isinstance(error, ToolError)
    assert (str(error), error.message) == (text, "it")


# ---- contexts ------------------------------------------------------------------------------------


def test_ids_of_a_context_are_trimmed_and_blank_ones_are_none() -> None:
    """C40: ids are trimmed; blank ones are as if they were not given."""
    context = ToolCallContext("c", "tool:echo", " t ", "", "\t", "  k")
    assert context == ToolCallContext("c", "tool:echo", "t", None, None, "k")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"call_id": None}, "call_id must be a string, not NoneType"),
        ({"source": 1}, "source must be a string, not int"),
        ({"thread_id": 7}, "thread_id must be a string, not int"),
        ({"thread_id": "a\x00b"}, "thread_id contains a control character"),
        ({"run_id": "a\nb"}, "run_id contains a control character"),
        ({"agent_id": "x" * 201}, "agent_id is longer than 200 characters"),
        ({"idempotency_key": "\ud800"}, "idempotency_key contains a control character"),
    ],
)
def test_a_bad_context_names_its_field(fields: dict[str, Any], error: str) -> None:
    """An id that could not be stored is refused where it is given."""
    with pytest.raises((TypeError, ValueError), match=f"^{error}$"):
        ToolCallContext(**fields)


# ---- validation ----------------------------------------------------------------------------------


def test_all_violations_are_told_with_their_paths() -> None:
    """Every violation is in the one error, each with the path of what is wrong."""
    with pytest.raises(InvalidArguments) as caught:
        Described(NESTED).validate_args(
            {"count": 0, "items": [{"the name": 1}, {}], "odd key": {"x": 2}}
        )
    assert str(caught.value).removeprefix("Invalid arguments: ").split("; ") == [
        "$.count: 0 is less than the minimum of 1",
        '$.items[1]: "the name" is a required property',
        "$['odd key'].x: 2 is not of type \"string\"",
    ]


def test_valid_arguments_pass() -> None:
    """Arguments that fit are let through; unknown ones are the schema's business."""
    Described(NESTED).validate_args({"count": 1, "more": None})


def test_a_flood_of_violations_is_cut_and_counted() -> None:
    """No arguments make an error text without bound."""
    schema = {"type": "array", "items": {"type": "integer"}}
    with pytest.raises(InvalidArguments) as caught:
        Described(schema).validate_args(["x" * 10_000] * 30)
    parts = str(caught.value).split("; ")
    assert len(parts) == 21
    assert parts[-1] == "and 10 more"
    assert max(map(len, parts)) <= 500 + len("Invalid arguments: ")


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ({"count": math.nan}, "$.count: float nan is not finite"),
        ({"count": math.inf}, "$.count: float inf is not finite"),
        ({"count": 1 << 63}, "$.count: integer beyond 64 bits"),
        ({"count": {1}}, "$.count: set"),
        ({1: 1}, "$: key of type int"),
        ({"a": "\ud800"}, "$.a: character U+D800 in a string"),
        ({"a": "\x00"}, "$.a: character U+0000 in a string"),
        ({"a": "x" * (1 << 21)}, "$.a: larger than 1048576 bytes"),
        (_deep(100_000), "$" + "[0]" * 64 + ": nested deeper than 64"),
        ([], '$: [] is not of type "object"'),
        (None, '$: null is not of type "object"'),
    ],
)
def test_what_is_not_json_is_refused_before_the_schema_sees_it(args: Any, error: str) -> None:
    """What is no JSON, too large or too deep is refused with its path and kind."""
    with pytest.raises(InvalidArguments) as caught:
        Described({"type": "object"}).validate_args(args)
    assert str(caught.value) == f"Invalid arguments: {error}"


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"type": "strin"}, '"strin" is not valid under any of the schemas listed'),
        ({"properties": 5}, '5 is not of type "object"'),
        ({"pattern": "("}, '"(" is not a "regex"'),
        ({"$ref": "#/nowhere"}, "Pointer '/nowhere' does not exist"),
        ({"enum": [math.nan]}, "Out of range float values are not JSON compliant"),
        ({"enum": [{1}]}, "Object of type set is not JSON serializable"),
        ({"enum": _deep(100_000)}, "maximum recursion depth exceeded"),
    ],
)
def test_a_bad_schema_is_the_tools_fault(parameters: Any, error: str) -> None:
    """A schema that is none is an internal error, whatever the arguments."""
    with pytest.raises(InternalError) as caught:
        Described(parameters).validate_args({})
    assert str(caught.value).startswith(f"Internal error: invalid tool schema: {error}")


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1/schema.json", "file:///etc/hostname"])
def test_a_schema_never_makes_us_fetch_anything(uri: str) -> None:
    """A reference to somewhere else is refused, not followed."""
    with pytest.raises(InternalError, match=r"is outside the schema$"):
        Described({"$ref": uri}).validate_args({})
