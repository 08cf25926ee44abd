"""`BackgroundCapable` in the foreground: a supervised task that is answered by its tool."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
import trio.testing

from tests.scripted import (
    CTX,
    OWNER,
    BrokenStore,
    Scripted,
    WithExecute,
    ended,
    forever,
    records,
    without_id,
)
from tests.support import StallingStore
from trio_bgtasks import (
    BackgroundCapable,
    BackgroundExecution,
    BackgroundTaskManager,
    Cancelled,
    Denied,
    ExternalRef,
    Failed,
    InternalError,
    ManagerConfig,
    Rejected,
    Stopped,
    StoreBusy,
    Success,
    TaskNotRunning,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskStoreError,
    ToolCallContext,
    ToolResult,
    ToolStatus,
    open_task_manager,
)

ARGS: dict[str, Any] = {"message": "hi", "run_in_background": False}


async def the_task(manager: BackgroundTaskManager) -> TaskRecord:
    """Return the only task there is."""
    (record,) = await records(manager)
    return record


# ---- what the tool answers, and what is stored ---------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        (ToolResult.success("x", {"a": 1}, "done"), "completed", None),
        (ToolResult.warning("x", {"a": 1}, "but"), "completed", None),
        # C36: what is pending is not completed.
        (ToolResult.pending("x", "asks"), "stopped", "asks"),
        (ToolResult.error("x", "no", "gone"), "failed", "[gone] no"),
        (ToolResult("x", ToolStatus.ERROR, {"a": 1}), "failed", ""),
    ],
)
async def test_the_tools_own_result_is_the_answer_and_is_stored(
    answer: ToolResult, status: str, error: str | None, manager: BackgroundTaskManager
) -> None:
    """C29, C36: the caller gets the tool's result and the task's id; its kind is the end."""
    tool = WithExecute(answer=answer)
    wrapped = BackgroundCapable(tool, manager)
    result = await wrapped.execute(ARGS, CTX)
    record = await the_task(manager)
    assert result == attrs.evolve(answer, metadata={"task_id": record.task_id})
    assert answer.metadata == {}
    assert (record.status, record.error, record.background) == (status, error, False)
    assert record.result == (None if status == "stopped" else answer.data)
    assert record.args == {"message": "hi"}
    assert tool.seen == [("metadata", {"message": "hi"}), ("execute", {"message": "hi"}, "call-1")]
    # The caller has the answer: there is nothing to announce.
    assert await manager.take_notices(OWNER) == []


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (TaskStatus.FAILED, "bad", ("failed", "bad", {"a": 1})),
        (TaskStatus.FAILED, None, ("failed", "said", {"a": 1})),
        (TaskStatus.CANCELLED, None, ("cancelled", None, None)),
        (TaskStatus.STOPPED, None, ("stopped", None, None)),
        ("completed", "ignored", ("completed", None, {"a": 1})),
    ],
)
async def test_the_tool_may_say_how_its_result_ends_the_task(  # noqa: ASYNC128 - our TaskStatus is not Trio's
    status: TaskStatus,
    error: str | None,
    expected: tuple[str, str | None, Any],
    manager: BackgroundTaskManager,
) -> None:
    """C37: a tool that answers a failure as data says so by `foreground_task_status`."""

    class Says(WithExecute):
        def foreground_task_status(self, result: ToolResult, /) -> tuple[TaskStatus, str | None]:
            assert result is answer
            return status, error

    answer = ToolResult.success("x", {"a": 1}, "said")
    result = await BackgroundCapable(Says(answer=answer), manager).execute(ARGS, CTX)
    record = await the_task(manager)
    assert result == attrs.evolve(answer, metadata={"task_id": record.task_id})
    assert (record.status, record.error, record.result) == expected


@pytest.mark.parametrize(
    ("outcome", "answer"),
    [
        (Success({"a": 1}, ExternalRef("file:x")), ToolResult.success("Scripted", {"a": 1})),
        (Failed("no", {"a": 1}), ToolResult("Scripted", ToolStatus.ERROR, {"a": 1}, "no")),
        (Stopped("later"), ToolResult.pending("Scripted", "later")),
        (Stopped(), ToolResult.pending("Scripted", "Task '{id}' is stopped")),
        (Cancelled(), ToolResult.error("Scripted", "Task '{id}' was cancelled")),
    ],
)
async def test_one_body_serves_the_foreground_as_well(
    outcome: TaskResult, answer: ToolResult, manager: BackgroundTaskManager
) -> None:
    """A tool that has only `execute_background` runs it, prepared; its outcome is kept whole."""

    async def body(_: dict[str, Any], __: BackgroundExecution) -> TaskResult:
        return outcome

    tool = Scripted(body)
    result = await BackgroundCapable(tool, manager).execute(ARGS, CTX)
    record = await the_task(manager)
    message = None if answer.message is None else answer.message.replace("{id}", record.task_id)
    assert (result.status, result.data, result.message) == (answer.status, answer.data, message)
    assert record.status is outcome.status
    assert record.result_ref == getattr(outcome, "ref", None)
    assert [entry[0] for entry in tool.seen] == ["metadata", "prepare", "background"]


async def test_one_body_may_be_judged_by_the_tool(manager: BackgroundTaskManager) -> None:
    """`foreground_task_status` has the last word on one body's answer, too."""

    class Says(Scripted):
        def foreground_task_status(self, result: ToolResult, /) -> tuple[TaskStatus, str | None]:
            return TaskStatus.FAILED, f"not {result.data}"

    result = await BackgroundCapable(Says(), manager).execute(ARGS, CTX)
    assert result.data == {"echoed": "hi"}
    record = await the_task(manager)
    assert (record.status, record.error) == ("failed", "not {'echoed': 'hi'}")


class Adds(Scripted):
    """Puts the default's answer in a list."""

    async def execute_foreground(
        self,
        args: dict[str, Any],
        ctx: ToolCallContext,
        execution: BackgroundExecution,
        /,
        *,
        is_resume: bool,
    ) -> ToolResult:
        result = await super().execute_foreground(args, ctx, execution, is_resume=is_resume)
        return ToolResult.success("Adds", [result.data])


class AddsToExecute(Adds, WithExecute):
    """The same over an execute of its own."""


@pytest.mark.parametrize(
    ("tool", "data"),
    [
        (Adds(), [{"echoed": "hi"}]),
        (AddsToExecute(answer=ToolResult.success("x", 1)), [1]),
    ],
)
async def test_an_override_may_fall_back_on_the_default(
    tool: Scripted, data: Any, manager: BackgroundTaskManager
) -> None:
    """``super().execute_foreground`` runs the tool's execute, or prepares and runs its body."""
    result = await BackgroundCapable(tool, manager).execute(ARGS, CTX)
    assert without_id(result) == ToolResult.success("Adds", data)


async def test_a_refusal_of_the_preparation_stores_nothing_in_the_foreground_either(
    manager: BackgroundTaskManager,
) -> None:
    """An override that falls back on the default is prepared once, before anything is stored."""

    class Refuses(Adds):
        def prepare_background(
            self, args: dict[str, Any], ctx: ToolCallContext, /, *, is_resume: bool
        ) -> Any:
            super().prepare_background(args, ctx, is_resume=is_resume)
            if args["message"] == "no":
                raise Rejected(answer)
            return [args["message"]]

    answer = ToolResult.error("Adds", "not that")
    tool = Refuses()
    wrapped = BackgroundCapable(tool, manager)
    assert await wrapped.execute({"message": "no"}, CTX) is answer
    assert await records(manager) == []
    tool.seen.clear()
    await wrapped.execute(ARGS, CTX)
    assert tool.seen[1:] == [
        ("prepare", {"message": "hi"}, "call-1", False),
        ("background", {"message": "hi"}, ["hi"], 1),
    ]


async def test_what_was_prepared_is_for_the_arguments_of_the_call_only(
    manager: BackgroundTaskManager,
) -> None:
    """An override that passes other arguments on, or to another tool, gets them prepared."""

    class Other(Scripted):
        async def execute_foreground(
            self,
            args: dict[str, Any],
            ctx: ToolCallContext,
            execution: BackgroundExecution,
            /,
            *,
            is_resume: bool,
        ) -> ToolResult:
            await super().execute_foreground(
                {"message": "other"}, ctx, execution, is_resume=is_resume
            )
            return await inner.execute_foreground(args, ctx, execution, is_resume=is_resume)

    inner, tool = Scripted(), Other()
    result = await BackgroundCapable(tool, manager).execute(ARGS, CTX)
    assert result.data == {"echoed": "hi"}
    prepared = [entry[1]["message"] for entry in tool.seen if entry[0] == "prepare"]
    assert prepared == ["hi", "other"]
    assert [entry[0] for entry in inner.seen] == ["prepare", "background"]


async def test_a_result_that_is_elsewhere_is_answered_by_its_address(
    manager: BackgroundTaskManager,
) -> None:
    """The caller gets the URI, as by task_output; also who repeats the call."""

    async def body(_: dict[str, Any], __: BackgroundExecution) -> TaskResult:
        return Success(None, ExternalRef("s3://x"))

    wrapped = BackgroundCapable(Scripted(body), manager)
    context = ToolCallContext(thread_id=OWNER, idempotency_key="k")
    assert (await wrapped.execute(ARGS, context)).data == "s3://x"
    assert (await wrapped.execute(ARGS, context)).data == "s3://x"
    record = await the_task(manager)
    assert (record.result, record.result_ref) == (None, ExternalRef("s3://x"))


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (Failed(5), "5"),  # type: ignore[arg-type]
        (Failed("a\x00"), "a\ufffd"),
        (Failed("no", {1}), "no (result is not JSON: $: set)"),
        (Stopped(KeyError("x")), "'x'"),  # type: ignore[arg-type]
    ],
)
async def test_an_odd_text_is_answered_as_it_is_stored(
    outcome: TaskResult, text: str, manager: BackgroundTaskManager
) -> None:
    """What would end a background task well enough does so in the foreground."""

    async def body(_: dict[str, Any], __: BackgroundExecution) -> TaskResult:
        return outcome

    result = await BackgroundCapable(Scripted(body), manager).execute(ARGS, CTX)
    record = await the_task(manager)
    assert (record.status, record.error, result.message) == (outcome.status, text, text)
    assert result.data is None


async def test_a_rejection_within_a_run_is_its_answer(manager: BackgroundTaskManager) -> None:
    """`Rejected` raised by the execution itself is the answer, too; the task failed."""
    answer = ToolResult.error("x", "not now")

    async def reject() -> ToolResult:
        raise Rejected(answer)

    assert await BackgroundCapable(WithExecute(answer=reject), manager).execute(ARGS, CTX) is answer
    assert (await the_task(manager)).error == "Rejected: not now"


async def test_the_log_of_a_run_can_be_found(manager: BackgroundTaskManager) -> None:
    """A foreground answer carries the task's id in its metadata, so that its output can be read."""

    async def body(_: dict[str, Any], execution: BackgroundExecution) -> TaskResult:
        await execution.write_output("working")
        return Success(1)

    result = await BackgroundCapable(Scripted(body), manager).execute(ARGS, CTX)
    page = await manager.output(OWNER, str(result.metadata["task_id"]))
    assert page.text == "working"


# ---- what a tool does wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [ValueError("boom"), Denied("no"), TaskStoreError("mine"), TaskNotRunning("bg_1", "failed")],
)
async def test_the_tools_own_exception_reaches_the_caller_and_the_record(
    error: Exception, manager: BackgroundTaskManager
) -> None:
    """C5: what the tool raises is recorded as failed, then raised as it is, whatever it is."""

    async def body(_: dict[str, Any], __: BackgroundExecution) -> TaskResult:
        raise error

    with pytest.raises(type(error)) as caught:
        await BackgroundCapable(Scripted(body), manager).execute(ARGS, CTX)
    assert caught.value is error
    record = await the_task(manager)
    assert (record.status, record.error) == ("failed", f"{type(error).__name__}: {error}")
    assert manager.live(OWNER) == []


async def nothing(_: dict[str, Any], __: BackgroundExecution) -> None:
    """Return no outcome."""


@pytest.mark.parametrize(
    ("tool", "error"),
    [
        (WithExecute(answer={"a": 1}), "the tool returned dict instead of a ToolResult"),
        (Scripted(nothing), "the tool returned NoneType instead of a TaskResult"),
    ],
)
async def test_a_tool_that_returns_something_else_is_told(
    tool: Scripted, error: str, manager: BackgroundTaskManager
) -> None:
    """An answer of the wrong kind is the tool's fault; the task failed."""
    with pytest.raises(InternalError, match=f"^Internal error: {error}$"):
        await BackgroundCapable(tool, manager).execute(ARGS, CTX)
    record = await the_task(manager)
    assert (record.status, record.error) == ("failed", f"InternalError: Internal error: {error}")


async def test_a_run_that_ended_is_not_running(manager: BackgroundTaskManager) -> None:
    """``running`` is no way to end a foreground run."""

    class Says(Scripted):
        def foreground_task_status(self, result: ToolResult, /) -> tuple[TaskStatus, str | None]:
            return TaskStatus.RUNNING, result.message

    with pytest.raises(InternalError, match="answered 'running' for a run that ended"):
        await BackgroundCapable(Says(), manager).execute(ARGS, CTX)
    assert (await the_task(manager)).status is TaskStatus.FAILED


@pytest.mark.parametrize("one_body", [True, False])
async def test_a_result_that_is_not_json_fails_the_task_and_the_call(
    one_body: bool,  # noqa: FBT001
    manager: BackgroundTaskManager,
) -> None:
    """What cannot be stored is not answered either: the error says where it is not JSON."""

    async def body(_: dict[str, Any], __: BackgroundExecution) -> TaskResult:
        return Success({"a": {1}})

    tool = (
        Scripted(body)
        if one_body
        else WithExecute(answer=ToolResult.success("Scripted", {"a": {1}}))
    )
    result = await BackgroundCapable(tool, manager).execute(ARGS, CTX)
    record = await the_task(manager)
    why = "result is not JSON: $.a: set"
    assert (record.status, record.error) == ("failed", why)
    assert result.is_error
    assert result.message == f"Task '{record.task_id}' ended as failed: {why}"


# ---- ended by the runtime ------------------------------------------------------------------------


async def returns_failed(_: dict[str, Any], execution: BackgroundExecution) -> TaskResult:
    """Answer the end of its scope by a failure."""
    try:
        await trio.sleep_forever()
    finally:
        assert execution.cancel_scope.cancel_called
        return Failed("torn down")  # noqa: B012


async def test_a_cancelled_run_answers_with_its_status(manager: BackgroundTaskManager) -> None:
    """C20: a foreground run is cancelled like any task; the caller is told id and status."""
    answers: list[ToolResult] = []
    wrapped = BackgroundCapable(Scripted(forever, metadata={"agent_id": "a"}), manager)

    async def call() -> None:
        answers.append(await wrapped.execute(ARGS, CTX))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        (task,) = await manager.list_tasks(OWNER)
        await manager.cancel(OWNER, task.task_id)
    data = {"task_id": task.task_id, "agent_id": "a", "status": "cancelled", "error": None}
    text = f"Task '{task.task_id}' ended as cancelled"
    expected = ToolResult("Scripted", ToolStatus.ERROR, data, text)
    assert [without_id(answer) for answer in answers] == [expected]


async def test_a_run_that_finished_in_spite_of_a_cancel_is_cancelled(
    manager: BackgroundTaskManager,
) -> None:
    """C23: an accepted cancel wins; what the run had done stays visible in its record."""

    async def body(_: dict[str, Any], execution: BackgroundExecution) -> TaskResult:
        await manager.cancel(OWNER, execution.task_id)
        return Success("done")

    result = await BackgroundCapable(Scripted(body), manager).execute(ARGS, CTX)
    record = await the_task(manager)
    assert (record.status, record.result) == ("cancelled", "done")
    assert result.message == f"Task '{record.task_id}' ended as cancelled"


@pytest.mark.parametrize("run", [forever, returns_failed])
async def test_a_deadline_answers_with_its_status(
    run: Any,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A run that took too long failed by its deadline, whatever its body made of that."""
    async with open_task_manager(config=ManagerConfig(attempt_deadline_s=5)) as manager:
        result = await BackgroundCapable(Scripted(run), manager).execute(ARGS, CTX)
        record = await the_task(manager)
    assert record.status is TaskStatus.FAILED
    assert str(record.error).startswith("The deadline of 5 s passed")
    assert result.data["error"] == record.error
    assert result.message == f"Task '{record.task_id}' ended as failed: {record.error}"


async def test_work_that_was_done_in_spite_of_the_runtime_is_answered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A success counts as itself also when the scope was cancelled before, but not by a cancel."""

    async def body(_: dict[str, Any], execution: BackgroundExecution) -> TaskResult:
        with trio.CancelScope(shield=True):
            await trio.sleep(10)
        assert execution.stopping == "deadline"
        return Success("done")

    async with open_task_manager(config=ManagerConfig(attempt_deadline_s=5)) as manager:
        result = await BackgroundCapable(Scripted(body), manager).execute(ARGS, CTX)
        assert (await the_task(manager)).status is TaskStatus.COMPLETED
    assert without_id(result) == ToolResult.success("Scripted", "done")


async def test_a_lost_lease_answers_an_error(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A run whose executor was fenced answers an error, and writes nothing any more."""
    store = StallingStore()

    async def body(_: dict[str, Any], execution: BackgroundExecution) -> TaskResult:
        await trio.sleep(40)
        async with open_task_manager(store.inner):  # finds it dead
            await trio.sleep_forever()
        return Stopped(str(execution.stopping))

    async with open_task_manager(store) as manager:
        result = await BackgroundCapable(Scripted(body), manager).execute(ARGS, CTX)
        record = await the_task(manager)
    assert result.is_error
    assert f"Task '{record.task_id}' ended as stopped: The lease was lost" in str(result.message)
    assert (record.status, record.error) == ("stopped", "No live executor found; marked stopped")


async def test_the_callers_own_cancellation_passes_through(
    manager: BackgroundTaskManager,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """C4, C5: when the caller is gone its run is stopped, and that is announced."""
    wrapped = BackgroundCapable(Scripted(forever), manager)
    with trio.move_on_after(1) as scope:
        await wrapped.execute(ARGS, CTX)
    assert scope.cancelled_caught
    record = await the_task(manager)
    assert (record.status, record.error) == (
        "stopped",
        "The caller of the foreground run is gone",
    )
    (notice,) = await manager.take_notices(OWNER)
    assert (notice.task_id, notice.status) == (record.task_id, TaskStatus.STOPPED)


# ---- owners --------------------------------------------------------------------------------------


async def test_a_run_without_a_thread_has_a_private_owner(manager: BackgroundTaskManager) -> None:
    """C41: without a thread id a run is supervised, but nobody shares its owner."""
    owners: list[str] = []

    async def body(_: dict[str, Any], execution: BackgroundExecution) -> TaskResult:
        owners.append(execution.owner_thread_id)
        assert len(manager.live(execution.owner_thread_id)) == 1
        return Success(1)

    wrapped = BackgroundCapable(Scripted(body), manager)
    for thread_id in (None, " ", None):
        context = ToolCallContext(source="tool:echo", thread_id=thread_id)
        result = await wrapped.execute(ARGS, context)
        assert (result.data, result.metadata) == (1, {})  # no id: nobody could ask for it
    assert all(owner.startswith("anonymous:") for owner in owners)
    assert len(set(owners)) == 3


@pytest.mark.parametrize("gone", [True, False])
async def test_a_run_without_a_thread_leaves_nothing_for_ever(
    gone: bool,  # noqa: FBT001
    store: BrokenStore,
    manager: BackgroundTaskManager,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nobody could resume it, or take its notice: stopped it has ended, and can be collected."""
    run = forever if gone else stops
    wrapped = BackgroundCapable(Scripted(run, supports_resume=True), manager)
    with trio.move_on_after(1):
        await wrapped.execute(ARGS, ToolCallContext())
    record = await the_task(manager)
    assert (record.status, record.supports_resume) == ("stopped", False)
    assert await store.notices(record.owner_thread_id) == []
    assert await manager.gc_terminal(record.owner_thread_id) == 1


async def stops(_: dict[str, Any], __: BackgroundExecution) -> TaskResult:
    """Stop at once."""
    return Stopped("later")


# ---- when the store fails ------------------------------------------------------------------------


@pytest.mark.parametrize("error", [TaskStoreError("the disk is gone"), StoreBusy("busy")])
async def test_a_result_that_is_not_stored_yet_is_answered_with_a_warning(
    error: Exception,
    store: BrokenStore,
    manager: BackgroundTaskManager,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """C29: a failing store does not cost the caller the result; the end is stored later."""
    store.error = error
    answer = ToolResult("Scripted", ToolStatus.SUCCESS, {"a": 1}, None, {"mine": True})

    async def fail() -> ToolResult:
        store.failing = {"Finished"}
        return answer

    result = await BackgroundCapable(WithExecute(answer=fail), manager).execute(ARGS, CTX)
    assert (result.status, result.data) == (answer.status, answer.data)
    warning = str(result.metadata.pop("persistence_warning"))
    assert without_id(result).metadata == {"mine": True}
    assert "ended as completed, which is not stored yet" in warning
    assert str(error) in warning
    assert answer.metadata == {"mine": True}
    (live,) = manager.live(OWNER)
    assert (live.status, live.persistence_error) == (TaskStatus.RUNNING, warning)
    store.failing.clear()
    record = await ended(manager, live.task_id, TaskStatus.COMPLETED)
    assert record.result == {"a": 1}
