"""task_status, task_cancel, task_output: what a model is told of its tasks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
import trio.testing

from tests.scripted import CTX, OWNER, BrokenStore, Scripted, ended, forever
from trio_bgtasks import (
    BackgroundCapable,
    BackgroundExecution,
    BackgroundTaskManager,
    ExternalRef,
    Failed,
    InvalidArguments,
    Stopped,
    Success,
    TaskResult,
    TaskStatus,
    TaskSummary,
    ThreadMessageRef,
    Tool,
    ToolCallContext,
    ToolResult,
    ToolStatus,
    open_task_manager,
    task_tools,
)

NO_THREAD = ToolCallContext(source="tool:task_status")
STRANGER = ToolCallContext(thread_id="thread-2")
GONE = "the disk is gone"


def tool(manager: BackgroundTaskManager, name: str) -> Tool:
    """Return the task tool of that name."""
    return {each.descriptor().id: each for each in task_tools(manager)}[name]


async def start(manager: BackgroundTaskManager, script: Scripted, **args: Any) -> str:
    """Start a tool in the background; return the task's id once its body waits or has ended."""
    wrapped = BackgroundCapable(script, manager)
    result = await wrapped.execute({"message": "hi", "run_in_background": True, **args}, CTX)
    await trio.testing.wait_all_tasks_blocked()
    return str(result.data["task_id"])


def giving(outcome: TaskResult, text: str = "") -> Scripted:
    """Return a tool that writes ``text`` and ends with ``outcome``."""

    async def body(_: dict[str, Any], execution: BackgroundExecution) -> TaskResult:
        await execution.write_output(text)
        return outcome

    return Scripted(body)


# ---- what the three have in common ---------------------------------------------------------------


async def test_their_descriptors(manager: BackgroundTaskManager) -> None:
    """Ids, names, descriptions and parameters are those that models know."""
    shown = {each.descriptor().id: each.descriptor() for each in task_tools(manager)}
    assert {key: value.name for key, value in shown.items()} == {
        "task_status": "Task Status",
        "task_cancel": "Task Cancel",
        "task_output": "Task Output",
    }
    assert shown["task_status"].description == (
        "Check the status and result of background tasks. Provide task_id to query a specific "
        "task, or omit to list all tasks."
    )
    assert shown["task_cancel"].description.startswith(
        "Cancel a running background task by task_id. Descendant tasks are cancelled automatically."
    )
    assert shown["task_output"].description.startswith(
        "Read the output of a background task. For agent runs, returns the last assistant message. "
        "For other tasks, returns the task result"
    )
    parameters: dict[str, Any] = {key: value.parameters for key, value in shown.items()}
    assert {key: set(value["properties"]) for key, value in parameters.items()} == {
        "task_status": {"task_id"},
        "task_cancel": {"task_id"},
        "task_output": {"task_id", "offset", "limit", "wait_s"},
    }
    assert {key: value.get("required") for key, value in parameters.items()} == {
        "task_status": None,
        "task_cancel": ["task_id"],
        "task_output": ["task_id"],
    }
    parameters["task_output"]["properties"]["offset"].clear()
    again: dict[str, Any] = tool(manager, "task_output").descriptor().parameters
    assert again["properties"]["offset"]["type"] == ["integer", "null"]
    assert repr(tool(manager, "task_cancel")) == f"<task_cancel of {manager!r}>"


def test_they_need_a_manager() -> None:
    """Anything else is refused at once."""
    with pytest.raises(TypeError, match="task_tools needs a BackgroundTaskManager, not NoneType"):
        task_tools(None)  # type: ignore[arg-type]


ANY_TOOL: list[tuple[Any, str]] = [
    (None, '$: null is not of type "object"'),
    ([], '$: [] is not of type "object"'),
    ({"task_id": "a\nb"}, "task_id contains a control character"),
    ({"task_id": "a\x00"}, "$.task_id: character U+0000 in a string"),
    ({"task_id": "\ud800"}, "$.task_id: character U+D800 in a string"),
    ({"task_id": "x" * 201}, "task_id is longer than 200 characters"),
    ({"task_id": "x", "more": math.nan}, "$.more: float nan is not finite"),
]
MAY_HAVE_ID: list[tuple[Any, str]] = [
    ({"task_id": 5}, '$.task_id: 5 is not of types "null", "string"'),
]
NEEDS_ID: list[tuple[Any, str]] = [
    ({"task_id": 5}, '$.task_id: 5 is not of type "string"'),
    ({"task_id": None}, '$.task_id: null is not of type "string"'),
    ({}, '$: "task_id" is a required property'),
    ({"task_id": ""}, "task_id cannot be empty"),
    ({"task_id": " \t"}, "task_id cannot be empty"),
]
OUTPUT: list[tuple[Any, str]] = [
    ({"offset": "5"}, '$.offset: "5" is not of types "null", "integer"'),
    ({"offset": 1.5}, '$.offset: 1.5 is not of types "null", "integer"'),
    ({"offset": True}, '$.offset: true is not of types "null", "integer"'),
    ({"offset": 1 << 63}, "$.offset: integer beyond 64 bits"),
    (
        {"offset": 1e16},
        "$.offset: 10000000000000000.0 is greater than the maximum of 9007199254740992",
    ),
    (
        {"offset": -1e16},
        "$.offset: -10000000000000000.0 is less than the minimum of -9007199254740992",
    ),
    ({"limit": 1e7}, "$.limit: 10000000.0 is greater than the maximum of 1048576"),
    ({"limit": 0}, "$.limit: 0 is less than the minimum of 1"),
    ({"wait_s": -1}, "$.wait_s: -1 is less than the minimum of 0"),
    ({"wait_s": 60.1}, "$.wait_s: 60.1 is greater than the maximum of 60"),
    ({"wait_s": math.inf}, "$.wait_s: float inf is not finite"),
    ({"wait_s": "1"}, '$.wait_s: "1" is not of types "null", "number"'),
]


@pytest.mark.parametrize(
    ("name", "args", "error"),
    [
        *(
            (name, args, error)
            for name in ("task_status", "task_cancel", "task_output")
            for args, error in ANY_TOOL
        ),
        *(("task_status", *case) for case in MAY_HAVE_ID),
        *((name, *case) for name in ("task_cancel", "task_output") for case in NEEDS_ID),
        *(("task_output", {"task_id": "x", **args}, error) for args, error in OUTPUT),
    ],
)
async def test_bad_arguments_are_refused(
    name: str, args: Any, error: str, manager: BackgroundTaskManager
) -> None:
    """C40: one clear sentence names the argument, in validation and in execution alike."""
    each = tool(manager, name)
    for context in (CTX, NO_THREAD):
        with pytest.raises(InvalidArguments) as caught:
            await each.execute(args, context)
        assert str(caught.value) == f"Invalid arguments: {error}"
    with pytest.raises(InvalidArguments):
        each.validate_args(args)


@pytest.mark.parametrize("name", ["task_status", "task_cancel", "task_output"])
async def test_whose_tasks(name: str, manager: BackgroundTaskManager) -> None:
    """C41: no thread, no tasks; another owner's id is answered byte for byte as an absent one."""
    task_id = await start(manager, Scripted(forever))
    each = tool(manager, name)
    each.validate_args({"task_id": task_id})
    assert await each.execute({"task_id": task_id}, NO_THREAD) == ToolResult.error(
        name, "Missing caller thread context"
    )
    for asked, context in ((task_id, STRANGER), ("bg_nothing", CTX)):
        assert await each.execute({"task_id": f" {asked} "}, context) == ToolResult.error(
            name, f"Unknown task_id: {asked}"
        )
    assert (await manager.list_tasks(OWNER))[0].status is TaskStatus.RUNNING


@pytest.mark.parametrize("name", ["task_status", "task_cancel", "task_output"])
@pytest.mark.parametrize(
    ("error", "text"), [(None, GONE), (OSError("no disk"), "OSError: no disk")]
)
async def test_a_store_fault_is_an_error_result(
    name: str,
    error: Exception | None,
    text: str,
    store: BrokenStore,
    manager: BackgroundTaskManager,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """C38: what the store cannot answer, and nobody else knows, is one error result.

    What nobody foresaw is logged, with whose task it was.
    """
    task_id = await start(manager, giving(Success(1)))
    await ended(manager, task_id, TaskStatus.COMPLETED)
    store.failing, store.error = {"load"}, error or store.error
    result = await tool(manager, name).execute({"task_id": task_id}, CTX)
    assert result == ToolResult.error(name, text)
    lines = [vars(r) for r in caplog.records if r.getMessage() == f"{name} failed"]
    told = [(line["task_id"], line["owner_thread_id"]) for line in lines]
    assert told == [(task_id, OWNER)] * (error is not None)


# ---- task_status ---------------------------------------------------------------------------------


async def test_the_status_of_one_task_is_its_summary(manager: BackgroundTaskManager) -> None:
    """The answer is the JSON of the task's summary, with what is set only."""
    task_id = await start(manager, giving(Failed("no", {"a": 1})), description="d")
    summary = await manager.get(OWNER, task_id)
    assert summary is not None
    result = await tool(manager, "task_status").execute({"task_id": task_id}, CTX)
    assert result == ToolResult.success("task_status", summary.to_json())
    assert result.data == {
        "task_id": task_id,
        "task_type": "scripted",
        "description": "d (background)",
        "status": "failed",
        "created_at_ms": summary.created_at_ms,
        "completed_at_ms": summary.completed_at_ms,
        "supports_resume": False,
        "attempt": 1,
        "error": "no",
        "result": {"a": 1},
    }


@pytest.mark.parametrize("args", [{}, {"task_id": ""}, {"task_id": " \t"}, {"task_id": None}])
async def test_without_an_id_all_tasks_are_listed(
    args: dict[str, Any], manager: BackgroundTaskManager
) -> None:
    """C34: all tasks of the caller, of whatever status, in order of creation."""
    status = tool(manager, "task_status")
    assert await status.execute(args, CTX) == ToolResult.success(
        "task_status", {"tasks": [], "total": 0}
    )
    scripts = (giving(Success(1)), Scripted(forever), giving(Stopped("later")))
    ids = [await start(manager, script) for script in scripts]
    result = await status.execute(args, CTX)
    assert [task["task_id"] for task in result.data["tasks"]] == ids
    assert [task["status"] for task in result.data["tasks"]] == ["completed", "running", "stopped"]
    assert result.data["total"] == 3
    assert (await status.execute(args, STRANGER)).data["total"] == 0


async def test_a_store_fault_does_not_hide_what_is_live(
    store: BrokenStore, manager: BackgroundTaskManager
) -> None:
    """C38: live tasks are told while the store fails; the answer says that it is not all."""
    await start(manager, giving(Success(1)))
    live = await start(manager, Scripted(forever))
    status = tool(manager, "task_status")
    store.failing = {"load", "list_owner"}
    one = await status.execute({"task_id": live}, CTX)
    assert (one.status, one.data["status"]) == (ToolStatus.SUCCESS, "running")
    assert GONE in one.data["persistence_error"]
    listed = await status.execute({}, CTX)
    assert listed.status is ToolStatus.WARNING
    assert listed.message == f"Only live tasks are listed, because the task store failed: {GONE}"
    assert [task["task_id"] for task in listed.data["tasks"]] == [live]
    assert listed.data["total"] == 1
    assert await status.execute({}, STRANGER) == ToolResult.error("task_status", GONE)


async def test_an_end_that_is_not_stored_yet_is_not_told_as_the_end(
    store: BrokenStore, manager: BackgroundTaskManager
) -> None:
    """C26, C28: until its end is stored a task is running; the answer says what is missing."""
    store.failing = {"Finished"}
    task_id = await start(manager, giving(Success(1)))
    result = await tool(manager, "task_status").execute({"task_id": task_id}, CTX)
    assert result.data["status"] == "running"
    assert "ended as completed, which is not stored yet" in result.data["persistence_error"]
    store.failing.clear()
    await ended(manager, task_id, TaskStatus.COMPLETED)


# ---- task_cancel ---------------------------------------------------------------------------------


async def test_a_cancel_answers_what_it_cancelled(manager: BackgroundTaskManager) -> None:
    """The answer has exactly these keys; the task ends cancelled."""
    task_id = await start(manager, Scripted(forever))
    cancel = tool(manager, "task_cancel")
    assert await cancel.execute({"task_id": f" {task_id}"}, CTX) == ToolResult.success(
        "task_cancel",
        {
            "task_id": task_id,
            "cancelled": True,
            "cancelled_ids": [task_id],
            "cancelled_count": 1,
        },
    )
    await ended(manager, task_id, TaskStatus.CANCELLED)
    assert await cancel.execute({"task_id": task_id}, CTX) == ToolResult.error(
        "task_cancel", f"Task '{task_id}' is not running (current status: cancelled)"
    )


async def test_a_cancel_reaches_every_descendant(manager: BackgroundTaskManager) -> None:
    """C18: descendants are cancelled whoever owns them; others' ids are counted, not shown."""
    own: list[str] = []

    def starting(owner: str, then: Scripted | None) -> Scripted:
        async def body(_: dict[str, Any], execution: BackgroundExecution) -> TaskResult:
            own.append(execution.task_id)
            if then is not None:
                args = {"message": "", "run_in_background": True}
                await BackgroundCapable(then, manager).execute(
                    args, ToolCallContext(thread_id=owner)
                )
            await trio.sleep_forever()
            raise AssertionError

        return Scripted(body)

    root = await start(manager, starting("sub", starting(OWNER, starting(OWNER, None))))
    await trio.testing.wait_all_tasks_blocked()
    assert len(own) == 3
    result = await tool(manager, "task_cancel").execute({"task_id": root}, CTX)
    assert result.data["cancelled_ids"] == [own[0], own[2]]
    assert result.data["cancelled_count"] == 3
    for task_id, owner in zip(own, (OWNER, "sub", OWNER), strict=True):
        await ended(manager, task_id, TaskStatus.CANCELLED, owner)


async def test_a_stopped_task_can_be_cancelled(manager: BackgroundTaskManager) -> None:
    """C21: a stopped task is abandoned by a cancel."""
    task_id = await start(manager, giving(Stopped("later")))
    result = await tool(manager, "task_cancel").execute({"task_id": task_id}, CTX)
    assert result.data["cancelled_ids"] == [task_id]
    await ended(manager, task_id, TaskStatus.CANCELLED)


async def test_a_task_of_another_process_can_be_cancelled(
    store: BrokenStore,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """C6, C24: a cancel works on records, whichever runtime runs the task."""
    async with open_task_manager(store) as there, open_task_manager(store) as here:
        task_id = await start(there, Scripted(forever))
        result = await tool(here, "task_cancel").execute({"task_id": task_id}, CTX)
        assert result.data["cancelled_ids"] == [task_id]
        await ended(here, task_id, TaskStatus.CANCELLED)


async def test_a_mark_that_is_not_stored_yet_is_a_warning(
    store: BrokenStore, manager: BackgroundTaskManager
) -> None:
    """C22: a live task is cancelled although its mark is not stored; the warning names it."""
    task_id = await start(manager, Scripted(forever))
    store.failing = {"CancelRequested"}
    result = await tool(manager, "task_cancel").execute({"task_id": task_id}, CTX)
    (live,) = manager.live(OWNER)
    assert GONE in str(live.persistence_error)
    assert result == ToolResult.warning(
        "task_cancel",
        {
            "task_id": task_id,
            "cancelled": True,
            "cancelled_ids": [task_id],
            "cancelled_count": 1,
            "persistence_warning": {
                "failed_count": 1,
                "failures": [{"task_id": task_id, "error": live.persistence_error}],
            },
        },
        "Cancellation requested, but failed to persist cancellation markers for 1 task(s).",
    )
    await ended(manager, task_id, TaskStatus.CANCELLED)


async def test_a_mark_of_another_process_that_is_not_stored_is_an_error(
    store: BrokenStore,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What this process cannot cancel by itself is not cancelled, and that is said."""
    async with open_task_manager(store) as there, open_task_manager(store) as here:
        task_id = await start(there, Scripted(forever))
        store.failing = {"CancelRequested"}
        result = await tool(here, "task_cancel").execute({"task_id": task_id}, CTX)
        assert result == ToolResult.error("task_cancel", GONE)
        store.failing.clear()
        summary = await here.get(OWNER, task_id)
        assert summary is not None
        assert summary.status is TaskStatus.RUNNING


async def test_a_task_may_cancel_itself(manager: BackgroundTaskManager) -> None:
    """Called from within the task, the answer comes before the end."""
    answers: list[ToolResult] = []

    async def body(_: dict[str, Any], execution: BackgroundExecution) -> TaskResult:
        cancel = tool(manager, "task_cancel")
        answers.append(await cancel.execute({"task_id": execution.task_id}, CTX))
        await trio.sleep_forever()
        raise AssertionError

    task_id = await start(manager, Scripted(body))
    await ended(manager, task_id, TaskStatus.CANCELLED)
    assert answers[0].is_success


# ---- task_output ---------------------------------------------------------------------------------


async def test_the_output_is_the_result_and_a_page_of_the_log(
    manager: BackgroundTaskManager,
) -> None:
    """C38, C39: the answer has exactly these keys, and its status is that of the record."""
    script = giving(Success({"a": 1}), "héllo")
    script.metadata = {"agent_id": "a"}
    task_id = await start(manager, script)
    result = await tool(manager, "task_output").execute({"task_id": f" {task_id} "}, CTX)
    log = {"text": "héllo", "offset": 0, "next_offset": 6, "total_bytes": 6, "dropped_bytes": 0}
    assert result == ToolResult.success(
        "task_output",
        {
            "task_id": task_id,
            "task_type": "scripted",
            "agent_id": "a",
            "status": "completed",
            "output": {"a": 1},
            "log": log,
        },
    )


@pytest.mark.parametrize(
    ("args", "text", "next_offset"),
    [
        ({}, "0123456789", 10),
        ({"offset": 4}, "456789", 10),
        ({"offset": 4, "limit": 5}, "45678", 9),
        ({"offset": 4.0, "limit": 5.0}, "45678", 9),
        ({"offset": -3}, "789", 10),
        ({"offset": -(1 << 53)}, "0123456789", 10),
        ({"offset": 1 << 53}, "", 10),
        ({"limit": 1 << 20}, "0123456789", 10),
    ],
)
async def test_pages_of_the_log(
    args: dict[str, Any], text: str, next_offset: int, manager: BackgroundTaskManager
) -> None:
    """The log is read from any byte, also from its end, a page at a time."""
    task_id = await start(manager, giving(Success(), "0123456789"))
    result = await tool(manager, "task_output").execute({"task_id": task_id, **args}, CTX)
    assert (result.data["log"]["text"], result.data["log"]["next_offset"]) == (text, next_offset)
    assert (result.data["output"], result.data["agent_id"]) == (None, None)


@pytest.mark.parametrize(
    ("outcome", "output"),
    [
        (Success(None, ExternalRef("file:x")), "file:x"),
        (Success(1, ExternalRef("file:x")), 1),
        (Success(None, ThreadMessageRef("t")), None),
    ],
)
async def test_a_result_elsewhere(
    outcome: TaskResult, output: Any, manager: BackgroundTaskManager
) -> None:
    """The output of a task whose result is somewhere else says where."""
    task_id = await start(manager, giving(outcome))
    result = await tool(manager, "task_output").execute({"task_id": task_id}, CTX)
    assert result.data["output"] == output


async def test_a_foreground_result_can_be_read_later(manager: BackgroundTaskManager) -> None:
    """C29: the result of a foreground run is stored, and read like any other."""
    await BackgroundCapable(giving(Success([1])), manager).execute({"message": ""}, CTX)
    (task,) = await manager.list_tasks(OWNER)
    result = await tool(manager, "task_output").execute({"task_id": task.task_id}, CTX)
    assert result.data["output"] == [1]


async def sleepy(_: dict[str, Any], execution: BackgroundExecution) -> TaskResult:
    """Say something, sleep ten seconds, succeed."""
    await execution.write_output("soon")
    await trio.sleep(10)
    return Success("now")


@pytest.mark.parametrize(
    ("wait_s", "status", "waited"), [(0, "running", 0), (4, "running", 4), (60, "completed", 9)]
)
async def test_it_waits_for_the_end(
    wait_s: float,
    status: str,
    waited: float,
    manager: BackgroundTaskManager,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """``wait_s`` waits for the end, not longer than that, and answers how the task stands then."""
    task_id = await start(manager, Scripted(sleepy))
    await trio.sleep(1)
    before = trio.current_time()
    result = await tool(manager, "task_output").execute({"task_id": task_id, "wait_s": wait_s}, CTX)
    assert trio.current_time() - before == pytest.approx(waited)
    assert result.data["status"] == status
    assert result.data["log"]["text"] == "soon"


async def test_null_is_absent(manager: BackgroundTaskManager) -> None:
    """A model whose schema makes every parameter required has no other way to leave one out."""
    task_id = await start(manager, giving(Success(1), "log"))
    output = tool(manager, "task_output")
    nulls = dict.fromkeys(("offset", "limit", "wait_s"))
    answer = await output.execute({"task_id": task_id, **nulls}, CTX)
    assert answer == await output.execute({"task_id": task_id}, CTX)
    assert answer.data["log"]["text"] == "log"


async def test_waiting_for_an_unknown_task_does_not_wait(manager: BackgroundTaskManager) -> None:
    """There is nothing to wait for."""
    result = await tool(manager, "task_output").execute({"task_id": "bg_x", "wait_s": 60}, CTX)
    assert result == ToolResult.error("task_output", "Unknown task_id: bg_x")


async def test_a_task_does_not_wait_for_itself(manager: BackgroundTaskManager) -> None:
    """A wait that could never end is refused by an error result."""
    answers: list[ToolResult] = []

    async def body(_: dict[str, Any], execution: BackgroundExecution) -> TaskResult:
        args = {"task_id": execution.task_id, "wait_s": 60}
        answers.append(await tool(manager, "task_output").execute(args, CTX))
        return Success()

    await start(manager, Scripted(body))
    assert answers[0].is_error
    assert "would wait for the task that calls it" in str(answers[0].message)


async def test_a_log_that_cannot_be_read_does_not_hide_the_rest(
    store: BrokenStore, manager: BackgroundTaskManager
) -> None:
    """C38: what is known of a task is told although its log cannot be read."""
    live = await start(manager, Scripted(sleepy))
    store.failing = {"load", "read_output"}
    result = await tool(manager, "task_output").execute({"task_id": live}, CTX)
    assert result == ToolResult.warning(
        "task_output",
        {
            "task_id": live,
            "task_type": "scripted",
            "agent_id": None,
            "status": "running",
            "output": None,
            "log": None,
        },
        f"The output log could not be read: {GONE}",
    )


async def test_a_task_that_is_collected_meanwhile_is_unknown(
    manager: BackgroundTaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two of our own questions a task may go; the answer is the one for absent ones."""
    task_id = await start(manager, giving(Success(1)))
    get = manager.get

    async def get_then_collect(owner: str, asked: str) -> TaskSummary | None:
        summary = await get(owner, asked)
        assert await manager.gc_terminal(owner) == 1
        return summary

    monkeypatch.setattr(manager, "get", get_then_collect)
    result = await tool(manager, "task_output").execute({"task_id": task_id}, CTX)
    assert result == ToolResult.error("task_output", f"Unknown task_id: {task_id}")
