"""Tools of pydantic-ai and openai-agents as ours, under Trio; fakes of them, and the real ones."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from tests.model_apis.frameworks import Fake, Framework, Real
from tests.model_apis.schemas import CTX, anthropic_call
from trio_bgtasks import (
    BackgroundCapable,
    BackgroundExecutable,
    BackgroundTaskManager,
    InvalidArguments,
    TaskStatus,
    TaskSummary,
)
from trio_bgtasks.model_apis import dispatch, from_openai_agents, from_pydantic_ai

Import = Callable[..., BackgroundExecutable[Any]]
OWNER = "thread-1"


@pytest.fixture(params=["fake", "real"])
def framework(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Framework:
    """How tools are made."""
    return Fake(monkeypatch) if request.param == "fake" else Real()


@pytest.fixture(params=["pydantic-ai", "openai-agents"])
def imported(request: pytest.FixtureRequest, framework: Framework) -> Import:
    """How a function becomes a tool of a framework, and then of ours."""

    def make(function: Any, given: Any = None, **settings: Any) -> BackgroundExecutable[Any]:
        if request.param == "pydantic-ai":
            return from_pydantic_ai(framework.pydantic_ai(function, **settings), deps=given)
        return from_openai_agents(framework.openai_agents(function, **settings), context=given)

    return make


async def double(n: int) -> int:
    """Double a number."""
    await trio.lowlevel.checkpoint()
    return 2 * n


async def run(
    manager: BackgroundTaskManager, tool: BackgroundExecutable[Any], **args: Any
) -> TaskSummary:
    """Run a tool in the background; return how its task ended."""
    wrapped = BackgroundCapable(tool, manager)
    wrapped.validate_args(args)
    started = await wrapped.execute({**args, "run_in_background": True}, CTX)
    with trio.fail_after(10):
        return await manager.wait(OWNER, started.data["task_id"])


# ---- both ----------------------------------------------------------------------------------------


def test_what_the_model_is_told(imported: Import) -> None:
    """Name, description and schema are the tool's own; its name is the type of its tasks."""
    tool = imported(double)
    descriptor = tool.descriptor()
    assert (descriptor.id, descriptor.name, tool.task_type) == ("double",) * 3
    assert descriptor.description == "Double a number."
    schema = descriptor.parameters
    assert schema["properties"]["n"]["type"] == "integer"  # type: ignore[index, call-overload]
    assert schema["required"] == ["n"]
    assert not tool.supports_resume
    assert repr(tool) in ("<from_pydantic_ai double>", "<from_openai_agents double>")
    schema.clear()
    assert tool.descriptor().parameters


async def test_it_runs_in_the_background_and_the_foreground(
    imported: Import, manager: BackgroundTaskManager
) -> None:
    """Under Trio, as a task, and without one."""
    tool = imported(double)
    ended = await run(manager, tool, n=4)
    assert (ended.status, ended.result) == (TaskStatus.COMPLETED, 8)
    call = anthropic_call("double", {"n": 5})
    answer = await dispatch([BackgroundCapable(tool, manager)], call, CTX)
    assert answer["content"] == "10"


async def test_arguments_are_checked(imported: Import, manager: BackgroundTaskManager) -> None:
    """By the schema, before anything is stored."""
    tool = BackgroundCapable(imported(double), manager)
    with pytest.raises(InvalidArguments, match=r"\$\.n: .*integer"):
        tool.validate_args({"n": "4"})
    assert await manager.list_tasks(OWNER) == []


async def test_what_the_function_raises_is_the_error(
    imported: Import, manager: BackgroundTaskManager
) -> None:
    """And no result: a task that failed is never called completed."""

    async def fails(n: int) -> int:
        raise LookupError(f"no {n}")

    ended = await run(manager, imported(fails), n=4)
    assert (ended.status, ended.error) == (TaskStatus.FAILED, "LookupError: no 4")


async def test_a_cancel_reaches_the_function(
    imported: Import, manager: BackgroundTaskManager
) -> None:
    """Where it waits; its clean-up runs."""
    cleaned = trio.Event()

    async def sleeps(n: int) -> int:
        try:
            await trio.sleep_forever()
        finally:
            cleaned.set()
        return n

    wrapped = BackgroundCapable(imported(sleeps), manager)
    started = await wrapped.execute({"n": 1, "run_in_background": True}, CTX)
    await trio.testing.wait_all_tasks_blocked()
    await manager.cancel(OWNER, started.data["task_id"])
    ended = await manager.wait(OWNER, started.data["task_id"])
    assert ended.status is TaskStatus.CANCELLED
    assert cleaned.is_set()


async def test_its_own_time_limit_holds(
    imported: Import, manager: BackgroundTaskManager, autojump_clock: trio.testing.MockClock
) -> None:
    """It fails the task."""

    async def sleeps(n: int) -> int:
        await trio.sleep_forever()
        return n

    ended = await run(manager, imported(sleeps, timeout=2.5), n=1)
    assert (ended.status, ended.error) == (TaskStatus.FAILED, "the tool did not end within 2.5 s")


@attrs.frozen
class Place:
    """A value that is JSON once it was converted."""

    name: str
    day: dt.date


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (Place("here", dt.date(2026, 8, 1)), {"name": "here", "day": "2026-08-01"}),
        (SimpleNamespace(model_dump=lambda mode: {"mode": mode}), {"mode": "json"}),
        ([SimpleNamespace(model_dump=lambda mode: 1), None], [1, None]),
    ],
    ids=["attrs", "model", "models"],
)
async def test_results_become_json(
    imported: Import, manager: BackgroundTaskManager, value: Any, result: Any
) -> None:
    """Models by their own means."""

    async def gives(n: int) -> Any:
        return value

    assert (await run(manager, imported(gives), n=1)).result == result


async def test_a_result_that_is_no_json(imported: Import, manager: BackgroundTaskManager) -> None:
    """Fails the task, as that of any tool."""

    async def gives(n: int) -> Any:
        return object()

    ended = await run(manager, imported(gives), n=1)
    assert (ended.status, ended.error) == (TaskStatus.FAILED, "result is not JSON: $: object")


# ---- pydantic-ai ---------------------------------------------------------------------------------


async def test_the_context_of_pydantic_ai(
    framework: Framework, manager: BackgroundTaskManager
) -> None:
    """A function that takes it finds the dependencies and the call; there is no model."""

    async def asks(ctx: Any, n: int) -> Any:
        return [ctx.deps["base"] + n, ctx.tool_call_id, ctx.tool_name, ctx.model]

    tool = from_pydantic_ai(framework.pydantic_ai(asks, takes_ctx=True), deps={"base": 40})
    assert "ctx" not in tool.descriptor().parameters["properties"]  # type: ignore[operator]
    call = anthropic_call("asks", {"n": 2}, "toolu_1")
    answer = await dispatch([BackgroundCapable(tool, manager)], call, CTX)
    assert answer["content"] == '[42, "toolu_1", "asks", null]'


async def test_a_function_of_pydantic_ai_that_is_not_async(manager: BackgroundTaskManager) -> None:
    """Runs in a thread."""

    def where(n: int) -> bool:
        return threading.current_thread() is threading.main_thread()

    tool = from_pydantic_ai(Real().pydantic_ai(where))
    assert (await run(manager, tool, n=1)).result is False


async def test_validation_of_pydantic_ai(framework: Framework) -> None:
    """What its schema cannot say is checked by its own validation."""
    if isinstance(framework, Fake):
        tool = from_pydantic_ai(framework.pydantic_ai(double))
    else:
        pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")

        def check(n: int) -> int:
            if n > 100:
                raise ValueError("n is too much")
            return n

        async def limited(n: int) -> int:
            return n

        limited.__annotations__["n"] = annotated(int, pydantic.AfterValidator(check))
        tool = from_pydantic_ai(framework.pydantic_ai(limited))
    tool.validate_args({"n": 100})
    with pytest.raises(InvalidArguments, match="n is too much"):
        tool.validate_args({"n": 101})


def annotated(kind: Any, note: Any) -> Any:
    """Return ``Annotated[kind, note]``, of values that are known while the test runs."""
    from typing import Annotated  # noqa: PLC0415 - no annotation of this module

    return Annotated[kind, note]


async def test_a_tool_return_of_pydantic_ai(manager: BackgroundTaskManager) -> None:
    """Its return value is the result."""
    package = pytest.importorskip("pydantic_ai", reason="pydantic-ai is not installed")

    async def gives(n: int) -> Any:
        return package.ToolReturn(return_value={"n": n}, metadata="for the application")

    tool = from_pydantic_ai(Real().pydantic_ai(gives))
    assert (await run(manager, tool, n=1)).result == {"n": 1}


# ---- openai-agents -------------------------------------------------------------------------------


async def test_the_context_of_openai_agents(
    framework: Framework, manager: BackgroundTaskManager
) -> None:
    """A function that takes it finds the host's object and the call."""

    async def asks(ctx: Any, n: int) -> Any:
        return [ctx.context["base"] + n, ctx.tool_call_id, ctx.tool_name, ctx.tool_arguments]

    tool = from_openai_agents(framework.openai_agents(asks), context={"base": 40})
    call = anthropic_call("asks", {"n": 2}, "toolu_1")
    answer = await dispatch([BackgroundCapable(tool, manager)], call, CTX)
    assert answer["content"] == '[42, "toolu_1", "asks", "{\\"n\\": 2}"]'


async def test_a_failure_text_of_the_authors_own(
    framework: Framework, manager: BackgroundTaskManager
) -> None:
    """Is the result, as it is there."""

    async def fails(n: int) -> int:
        raise LookupError(f"no {n}")

    tool = framework.openai_agents(fails, failure_error_function=lambda _, error: f"sorry: {error}")
    ended = await run(manager, from_openai_agents(tool), n=1)
    assert (ended.status, ended.result) == (TaskStatus.COMPLETED, "sorry: no 1")


def test_a_function_of_openai_agents_that_is_not_async(framework: Framework) -> None:
    """Is refused: its thread would need asyncio, and the model would be told a lie."""

    def adds(n: int) -> int:
        return n + 1

    with pytest.raises(TypeError, match="tool 'adds' is of a function that is not async"):
        from_openai_agents(framework.openai_agents(adds))


def test_a_tool_of_openai_agents_without_a_function(framework: Framework) -> None:
    """One that was made by hand has only its call."""
    tool = framework.openai_agents(double)
    made = SimpleNamespace(
        **{
            name: getattr(tool, name)
            for name in ("name", "description", "params_json_schema", "on_invoke_tool")
        }
    )
    assert from_openai_agents(made).descriptor().id == "double"


# ---- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [("requires_approval", True), ("prepare", print), ("args_validator", print)],
)
def test_what_only_pydantic_ai_heeds(framework: Framework, setting: str, value: Any) -> None:
    """An approval that nobody asks for is worse than no tool."""
    tool = framework.pydantic_ai(double, **{setting: value})
    with pytest.raises(ValueError, match=f"tool 'double' has '{setting}', which only its own"):
        from_pydantic_ai(tool)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("needs_approval", True),
        ("is_enabled", False),
        ("tool_input_guardrails", [print]),
        ("tool_output_guardrails", [print]),
    ],
)
def test_what_only_openai_agents_heeds(framework: Framework, setting: str, value: Any) -> None:
    """The same for checks around it; no guardrails are none."""
    tool = framework.openai_agents(double, **{setting: value})
    with pytest.raises(ValueError, match=f"tool 'double' has '{setting}', which only its own"):
        from_openai_agents(tool)
    if isinstance(value, list):
        assert from_openai_agents(framework.openai_agents(double, **{setting: []}))


def test_what_is_no_such_tool(framework: Framework) -> None:
    """A function, or a tool of the other framework."""
    for wrong in (double, framework.openai_agents(double)):
        with pytest.raises(TypeError, match="tool must be a Tool of pydantic-ai, not "):
            from_pydantic_ai(wrong)
    for wrong in (double, framework.pydantic_ai(double)):
        with pytest.raises(TypeError, match="tool must be a FunctionTool of openai-agents, not "):
            from_openai_agents(wrong)
