"""What a request says of its tools, and which tools an API would refuse."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from tests.model_apis.schemas import Asked, Schema
from trio_bgtasks import (
    BackgroundCapable,
    BackgroundTaskManager,
    background_tool,
    task_tools,
)
from trio_bgtasks.model_apis import to_anthropic, to_openai_chat, to_openai_responses
from trio_bgtasks.tools import ShellTool

MAKERS: dict[str, Callable[..., list[Any]]] = {
    "anthropic": to_anthropic,
    "responses": to_openai_responses,
    "chat": to_openai_chat,
}
ONE: Schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}

every_api = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@background_tool
async def greet(name: str, times: int = 1) -> str:
    """Greet somebody."""
    return f"Hello, {name}! " * times


# ---- the shapes ----------------------------------------------------------------------------------


def test_a_tool_at_anthropic() -> None:
    """Name, description and input schema; the name is the tool's id, not its title."""
    shown = {"name": "asked", "description": "Answers as asked.", "input_schema": ONE}
    assert to_anthropic([Asked(ONE)]) == [shown]


def test_a_tool_at_openai_responses() -> None:
    """A flat function; it says that it is not strict, for the API's default is that it is."""
    function = {"name": "asked", "description": "Answers as asked.", "parameters": ONE}
    expected = [{"type": "function", **function, "strict": False}]
    assert to_openai_responses([Asked(ONE)]) == expected


def test_a_tool_at_openai_chat() -> None:
    """The same function, one level down."""
    (flat,) = to_openai_responses([Asked(ONE)])
    kind = flat.pop("type")
    assert to_openai_chat([Asked(ONE)]) == [{"type": kind, "function": flat}]


@every_api
async def test_the_tools_of_an_agent(
    make: Callable[..., list[Any]], manager: BackgroundTaskManager
) -> None:
    """Wrapped tools and task tools go into one request, in their order."""
    tools = [BackgroundCapable(ShellTool(), manager), BackgroundCapable(greet, manager)]
    shown = [entry.get("function", entry) for entry in make([*tools, *task_tools(manager)])]
    names = ["shell", "greet", "task_status", "task_cancel", "task_output"]
    assert [tool["name"] for tool in shown] == names
    schema = shown[0].get("parameters") or shown[0]["input_schema"]
    assert schema["properties"]["run_in_background"]["type"] == "boolean"


@every_api
def test_what_is_shown_is_a_copy(make: Callable[..., list[Any]]) -> None:
    """Whoever changes the request changes no tool."""
    tool = Asked({"type": "object", "properties": {"n": {"type": "integer"}}})
    (shown,) = make([tool])
    shown = shown.get("function", shown)
    (shown.get("parameters") or shown["input_schema"])["properties"]["n"]["type"] = "string"
    assert tool.parameters["properties"]["n"]["type"] == "integer"


@every_api
def test_a_root_that_is_a_reference(make: Callable[..., list[Any]]) -> None:
    """No API takes a reference there: what it leads to stands in its place."""
    (shown,) = make([Asked({"$ref": "#/$defs/one", "$defs": {"one": ONE}})])
    shown = shown.get("function", shown)
    schema = shown.get("parameters") or shown["input_schema"]
    assert schema == {**ONE, "$defs": {"one": ONE}}


# ---- strict --------------------------------------------------------------------------------------


def test_a_strict_tool() -> None:
    """Every property is required, what was optional is nullable, the object is closed."""
    for shown in (
        to_openai_responses([greet], strict=True)[0],
        to_openai_chat([greet], strict=True)[0]["function"],
    ):
        assert shown["strict"] is True
        assert shown["parameters"] == {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "times": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            },
            "required": ["name", "times"],
            "additionalProperties": False,
        }


async def test_what_cannot_be_strict_stays_as_it_was(
    manager: BackgroundTaskManager, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside strict tools one is not: its schema is whole, and the log says why, once."""
    tools = [BackgroundCapable(ShellTool(), manager), BackgroundCapable(greet, manager)]
    with caplog.at_level(logging.INFO, "trio_bgtasks.model_apis"):
        shell, strict = to_openai_responses(tools, strict=True)
    assert (shell["strict"], strict["strict"]) == (False, True)
    assert shell == to_openai_responses(tools)[0]
    assert caplog.messages == ["tool shell is not strict: #/properties/env: an object of any keys"]


async def test_the_task_tools_are_strict(manager: BackgroundTaskManager) -> None:
    """What every agent has is within strict mode."""
    shown = to_openai_responses(task_tools(manager), strict=True)
    assert [tool["strict"] for tool in shown] == [True] * 3


# ---- refused -------------------------------------------------------------------------------------


@every_api
@pytest.mark.parametrize("name", ["with.dot", "größe", "a b", "a" * 129, "n\u0661"])
def test_a_name_that_no_api_takes(make: Callable[..., list[Any]], name: str) -> None:
    """The error names the tool and the rule."""
    with pytest.raises(ValueError, match=r"takes no tool with the id .*letters, digits, '_'"):
        make([Asked(id=name)])


def test_the_longest_name() -> None:
    """Anthropic takes 128 characters, OpenAI 64."""
    longer = Asked(id="a" * 65)
    assert to_anthropic([longer, Asked(id="b" * 128)])[0]["name"] == longer.id
    for make in (to_openai_responses, to_openai_chat):
        assert make([Asked(id="a" * 64)])
        with pytest.raises(ValueError, match=r"OpenAI takes no tool .* at most 64 "):
            make([longer])


@every_api
def test_two_tools_with_one_id(make: Callable[..., list[Any]]) -> None:
    """A call could not tell them apart; one tool twice is no better but harmless."""
    one = Asked()
    with pytest.raises(ValueError, match="two tools have the id 'asked'"):
        make([one, Asked()])
    assert len(make([one, one])) == 1


@every_api
def test_what_is_no_tool(make: Callable[..., list[Any]]) -> None:
    """A function is not a tool yet."""
    with pytest.raises(TypeError, match="tools must be Tools, not function"):
        make([greet.__wrapped__])  # type: ignore[attr-defined]


@every_api
@pytest.mark.parametrize("schema", [{"type": 3}, {"properties": {"n": {"$ref": "#/$defs/gone"}}}])
def test_a_schema_that_is_none(make: Callable[..., list[Any]], schema: Schema) -> None:
    """The error names the tool."""
    with pytest.raises(ValueError, match="the schema of tool 'asked' is not valid: "):
        make([Asked(schema)])


@every_api
@pytest.mark.parametrize("kind", ["array", ["object", "null"]])
def test_a_schema_of_something_else(make: Callable[..., list[Any]], kind: Any) -> None:
    """Arguments are an object, and nothing else."""
    with pytest.raises(ValueError, match="the schema of tool 'asked' must be of type 'object'"):
        make([Asked({"type": kind})])


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf", "not", "enum", "const"])
def test_a_schema_combined_at_the_root(keyword: str) -> None:
    """An API that refuses that would refuse the whole request: it is refused here, by name."""
    value: Any = {"not": {"required": ["x"]}, "enum": [{}], "const": {}}.get(keyword, [ONE])
    tool = Asked({"type": "object", keyword: value})
    for make in (to_openai_responses, to_openai_chat):
        with pytest.raises(ValueError, match=f"OpenAI takes no '{keyword}' at the root .*'asked'"):
            make([tool])
    if keyword in ("not", "enum", "const"):
        assert to_anthropic([tool])
    else:
        with pytest.raises(ValueError, match=f"Anthropic takes no '{keyword}' at the root"):
            to_anthropic([tool])
