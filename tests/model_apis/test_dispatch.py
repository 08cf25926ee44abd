"""From a call of a model to the answer that it gets: exactly one, whatever went wrong."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import trio
import trio.testing

from tests.model_apis.schemas import (
    CALLS,
    CTX,
    Asked,
    Schema,
    anthropic_call,
    as_object,
    chat_call,
    responses_call,
)
from trio_bgtasks import (
    BackgroundCapable,
    BackgroundTaskManager,
    Denied,
    Rejected,
    Tool,
    ToolCallContext,
    ToolResult,
    background_tool,
    task_tools,
)
from trio_bgtasks.model_apis import dispatch

NUMBER: Schema = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "unit": {"type": "string"}},
    "required": ["n"],
}

every_api = pytest.mark.parametrize("api", CALLS)


def said(answer: Schema) -> str:
    """Return the text of an answer of any API, an error's as if there were a flag."""
    text = answer.get("content", answer.get("output"))
    assert isinstance(text, str)
    return f"Error: {text}" if answer.get("is_error") else text


@background_tool
async def add(a: int, b: int = 1) -> int:
    """Add."""
    return a + b


@background_tool
async def fail(how: str) -> int:
    """Fail."""
    raise LookupError(how)


# ---- the shapes ----------------------------------------------------------------------------------


async def test_the_answer_at_anthropic() -> None:
    """A ``tool_result`` block, with a flag for an error."""
    answer = await dispatch([Asked()], anthropic_call("asked", {}), CTX)
    shown = {"type": "tool_result", "tool_use_id": "call-1"}
    assert answer == {**shown, "content": "yes", "is_error": False}
    wrong = await dispatch([Asked(answer=Denied("no"))], anthropic_call("asked", {}), CTX)
    assert wrong == {**shown, "content": "Denied: no", "is_error": True}


async def test_the_answer_at_openai_responses() -> None:
    """A ``function_call_output`` item, by the call's ``call_id``, not by the id of its item."""
    answer = await dispatch([Asked()], responses_call("asked", {}), CTX)
    shown = {"type": "function_call_output", "call_id": "call-1"}
    assert answer == {**shown, "output": "yes"}
    wrong = await dispatch([Asked(answer=Denied("no"))], responses_call("asked", {}), CTX)
    assert wrong == {**shown, "output": "Error: Denied: no"}


async def test_the_answer_at_openai_chat() -> None:
    """A message of the role ``tool``."""
    answer = await dispatch([Asked()], chat_call("asked", {}), CTX)
    shown = {"role": "tool", "tool_call_id": "call-1"}
    assert answer == {**shown, "content": "yes"}
    wrong = await dispatch([Asked(answer=Denied("no"))], chat_call("asked", {}), CTX)
    assert wrong == {**shown, "content": "Error: Denied: no"}


@every_api
async def test_a_call_may_be_an_object(api: str) -> None:
    """As the SDK returns it, or as a dict: the same."""
    call = CALLS[api]("asked", {"n": 3})
    tool = Asked(NUMBER)
    assert await dispatch([tool], call, CTX) == await dispatch([tool], as_object(call), CTX)
    assert [args for args, _ in tool.asked] == [{"n": 3}] * 2


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (ToolResult.success("asked", {"a": ["é"]}), '{"a": ["é"]}'),
        (ToolResult.success("asked", "plain"), "plain"),
        (ToolResult.success("asked", data=False), "false"),
        (ToolResult.success("asked", None), "success"),
        (ToolResult.success("asked", 1, "one"), "one\n1"),
        (ToolResult.warning("asked", {}, "mind"), "mind\n{}"),
        (ToolResult.pending("asked", "wait"), "wait"),
        (ToolResult.error("asked", "no"), "Error: no"),
        (ToolResult.error("asked", "no", "E1"), None),
        (ToolResult.success("asked", "", ""), "success"),
        (ToolResult.success("asked", None, "half \ud800"), "half \ufffd"),
    ],
    ids=str,
)
@every_api
async def test_the_text_of_a_result(api: str, result: ToolResult, text: str | None) -> None:
    """The message, then the data as JSON (a text as it is); never empty, never unsendable."""
    answer = said(await dispatch([Asked(answer=result)], CALLS[api]("asked", {}), CTX))
    if text is None:
        text = 'Error: [E1] no\n{"error": {"code": "E1", "message": "no"}}'
    assert answer == text


# ---- who calls -----------------------------------------------------------------------------------


@every_api
async def test_the_tool_knows_the_call(api: str) -> None:
    """It gets the context with the call's id, which is no idempotency key."""
    tool = Asked()
    await dispatch([Asked(id="other"), tool], CALLS[api]("asked", {}, "toolu_7"), CTX)
    ((_, ctx),) = tool.asked
    assert ctx == ToolCallContext("toolu_7", "test", "thread-1")
    assert ctx.idempotency_key is None


@every_api
async def test_a_task_is_started_and_looked_at(api: str, manager: BackgroundTaskManager) -> None:
    """A wrapped tool goes into the background, and the task tools answer for the same thread."""
    tools = [BackgroundCapable(add, manager), *task_tools(manager)]
    call = CALLS[api]
    started = await dispatch(tools, call("add", {"a": 1, "run_in_background": True}), CTX)
    assert "Task started in background" in said(started)
    (task,) = await manager.list_tasks("thread-1")
    await manager.wait("thread-1", task.task_id)
    looked = await dispatch(tools, call("task_output", {"task_id": task.task_id}), CTX)
    assert '"output": 2' in said(looked)


@every_api
async def test_nulls_of_strict_mode_are_absent(api: str, manager: BackgroundTaskManager) -> None:
    """Also that of the parameter which the wrapper added."""
    tools = [BackgroundCapable(add, manager)]
    args = {"a": 1, "b": None, "run_in_background": None}
    assert said(await dispatch(tools, CALLS[api]("add", args), CTX)) == "2"


async def test_the_call_is_not_changed() -> None:
    """The block goes into the history as the model wrote it."""
    call = anthropic_call("asked", {"n": 1, "unit": None})
    tool = Asked(NUMBER)
    await dispatch([tool], call, CTX)
    assert call["input"] == {"n": 1, "unit": None}
    assert tool.asked[0][0] == {"n": 1}
    tool.asked[0][0]["n"] = 2
    assert call["input"]["n"] == 1


async def test_a_call_without_arguments() -> None:
    """Some servers send an empty text for no arguments."""
    for call in (responses_call("asked", " "), chat_call("asked", "")):
        assert said(await dispatch([Asked()], call, CTX)) == "yes"


async def test_it_is_a_checkpoint() -> None:
    """Also where nothing is run."""
    with trio.testing.assert_checkpoints():
        await dispatch([], anthropic_call("asked", {}), CTX)


# ---- what a model does wrong ---------------------------------------------------------------------


@every_api
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("bulid", "'bulid'"),
        ("", "''"),
        (None, "None"),
        (["asked"], r"\['asked'\]"),
        ("x" * 500, "'x+…"),
    ],
    ids=str,
)
async def test_an_unknown_tool(api: str, name: Any, shown: str) -> None:
    """The answer says so, shortly, and which there are."""
    answer = said(await dispatch([Asked(), Asked(id="b")], CALLS[api](name, {}), CTX))
    assert answer.startswith("Error: Not found: there is no tool ")
    assert answer.endswith("; there are: asked, b")
    assert re.search(shown, answer)
    assert len(answer) < 200


async def test_there_are_no_tools() -> None:
    """Then the answer says that."""
    answer = said(await dispatch([], anthropic_call("asked", {}), CTX))
    assert answer == "Error: Not found: there is no tool 'asked'; there are: none"


@pytest.mark.parametrize("call", [responses_call, chat_call])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting property name"),
        ('{"n": NaN}', "arguments is not JSON: $.n: float nan is not finite"),
        ("[1]", "arguments must be a JSON object (a dict), not list"),
        ("null", "arguments must be a JSON object (a dict), not NoneType"),
        ("[" * 200_000, "recursion"),
        ('{"n":' * 80 + "1" + "}" * 80, "nested deeper than 64"),
        ('{"n": "\\ud800"}', "character U+D800 in a string"),
        ('{"n": 1' + "0" * 5000 + "}", "integer string conversion"),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_arguments_that_are_no_json(call: Any, text: str, why: str) -> None:
    """The tool is not called; the answer says what is wrong."""
    tool = Asked(NUMBER)
    answer = said(await dispatch([tool], call("asked", text), CTX))
    assert answer.startswith("Error: Invalid arguments: ")
    assert why in answer
    assert not tool.asked


@every_api
async def test_arguments_that_do_not_fit(api: str) -> None:
    """The tool is not called; a null that stands for nothing is no second violation."""
    tool = Asked(NUMBER)
    answer = said(await dispatch([tool], CALLS[api]("asked", {"n": "3", "unit": None}), CTX))
    assert answer == 'Error: Invalid arguments: $.n: "3" is not of type "integer"'
    assert not tool.asked


@pytest.mark.parametrize("given", [None, "{}x", 3, [{}]], ids=str)
async def test_an_input_that_is_no_object(given: Any) -> None:
    """Anthropic's input is one, or the call is answered with an error."""
    answer = said(await dispatch([Asked()], anthropic_call("asked", given), CTX))
    assert answer.startswith("Error: Invalid arguments: ")


# ---- how a tool fails ----------------------------------------------------------------------------


@every_api
async def test_a_refused_call(api: str) -> None:
    """What refuses a call brings its answer along."""
    tool = Asked(answer=Rejected(ToolResult.warning("asked", None, "later")))
    assert said(await dispatch([tool], CALLS[api]("asked", {}), CTX)) == "later"


@every_api
async def test_what_a_tool_raises(
    api: str, manager: BackgroundTaskManager, caplog: pytest.LogCaptureFixture
) -> None:
    """A tool at fault is logged with its traceback, and the call is answered all the same."""
    tools = [BackgroundCapable(fail, manager)]
    with caplog.at_level(logging.ERROR, "trio_bgtasks.model_apis"):
        answer = await dispatch(tools, CALLS[api]("fail", {"how": "badly"}), CTX)
    assert said(answer) == "Error: LookupError: badly"
    (record,) = (record for record in caplog.records if record.name == "trio_bgtasks.model_apis")
    assert record.getMessage() == "tool fail raised"
    assert record.exc_info is not None


async def test_several_errors_of_a_tool() -> None:
    """They are told as the error of a task is: without the groups around them."""
    inner = ExceptionGroup("inner", [LookupError("b")])
    tool = Asked(answer=ExceptionGroup("outer", [ValueError("a"), inner]))
    answer = said(await dispatch([tool], anthropic_call("asked", {}), CTX))
    assert answer == "Error: ValueError: a; LookupError: b"


@every_api
@pytest.mark.parametrize(
    ("result", "why"),
    [
        ("text", "Internal error: the tool returned str instead of a ToolResult"),
        (ToolResult.success("asked", {1, 2}), "ValueError: result is not JSON: $: set"),
    ],
    ids=["no result", "no JSON"],
)
async def test_an_answer_that_is_none(api: str, result: Any, why: str) -> None:
    """A tool that answers with something else is at fault."""
    assert (
        said(await dispatch([Asked(answer=result)], CALLS[api]("asked", {}), CTX))
        == f"Error: {why}"
    )


@pytest.mark.parametrize("args", [{}, {"n": None}], ids=str)
async def test_a_tool_with_an_invalid_schema(args: Schema) -> None:
    """The answer says that the tool is at fault, with a null among the arguments, too."""
    answer = said(await dispatch([Asked({"type": 3})], anthropic_call("asked", args), CTX))
    assert answer.startswith("Error: Internal error: invalid tool schema: ")


async def test_a_cancellation_passes() -> None:
    """It is nobody's answer."""

    class Sleeper(Asked):
        async def execute(self, args: Any, ctx: ToolCallContext) -> ToolResult:
            await trio.sleep_forever()
            raise AssertionError

    with trio.CancelScope() as scope:
        scope.cancel()
        await dispatch([Sleeper()], anthropic_call("asked", {}), CTX)
    assert scope.cancelled_caught
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dispatch, [Sleeper()], anthropic_call("asked", {}), CTX)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    with pytest.raises(KeyboardInterrupt):
        await dispatch([Asked(answer=KeyboardInterrupt())], anthropic_call("asked", {}), CTX)


# ---- what the host does wrong --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ({"type": "text", "text": "hi"}, "not one of type 'text'"),
        ({"type": "server_tool_use", "id": "1"}, "not one of type 'server_tool_use'"),
        ({}, "not dict"),
        ("tool_use", "not str"),
        (anthropic_call("asked", {}, None), "^id of a call must be a string, not NoneType"),
        (responses_call("asked", {}, 3), "^call_id of a call must be a string, not int"),
    ],
    ids=str,
)
async def test_a_block_that_is_no_call(block: Any, why: str) -> None:
    """Only calls of tools have an answer."""
    with pytest.raises(TypeError, match=why):
        await dispatch([Asked()], block, CTX)


async def test_tools_and_context_are_checked() -> None:
    """Before anything is run."""
    call = anthropic_call("asked", {})
    with pytest.raises(ValueError, match="two tools have the id 'asked'"):
        await dispatch([Asked(), Asked()], call, CTX)
    with pytest.raises(TypeError, match="tools must be Tools, not str"):
        await dispatch(["asked"], call, CTX)  # type: ignore[list-item]
    tools: list[Tool] = [Asked()]
    with pytest.raises(TypeError, match="ctx must be a ToolCallContext, not dict"):
        await dispatch(tools, call, {})  # type: ignore[arg-type]
