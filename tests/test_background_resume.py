"""`BackgroundCapable` called with the id of a task that exists, or does not."""

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
    Run,
    Scripted,
    WithExecute,
    ended,
    forever,
    records,
    without_id,
)
from trio_bgtasks import (
    BackgroundCapable,
    BackgroundExecution,
    BackgroundTaskManager,
    Cancelled,
    Denied,
    ExecutionFailed,
    Failed,
    InvalidArguments,
    Stopped,
    Success,
    TaskRecord,
    TaskResult,
    TaskStatus,
    ToolCallContext,
    ToolResult,
    open_task_manager,
)

ARGS: dict[str, Any] = {"message": "hi", "n": 1, "run_in_background": True}


def status_of(
    task_id: str, status: str, error: str | None = None, agent_id: str = "unknown"
) -> ToolResult:
    """Return a status answer."""
    data = {"task_id": task_id, "agent_id": agent_id, "status": status, "error": error}
    return ToolResult.success("Scripted", data)


def resumable(run: Run, **fields: Any) -> Scripted:
    """Return a tool that supports resume."""
    return Scripted(run, supports_resume=True, **fields)


def stops_first(then: Run | None = None, *, reason: str | None = "later") -> Run:
    """Return a body that saves a checkpoint and stops at first, later goes on with ``then``."""

    async def run(args: dict[str, Any], execution: BackgroundExecution) -> Any:
        if execution.attempt > 1 and then is not None:
            return await then(args, execution)
        await execution.save_checkpoint({"at": execution.attempt})
        return Stopped(reason)

    return run


async def show(args: dict[str, Any], execution: BackgroundExecution) -> TaskResult:
    """Return what the attempt was given."""
    return Success(
        {
            "args": args,
            "checkpoint": execution.checkpoint,
            "attempt": execution.attempt,
            "is_resume": execution.is_resume,
        }
    )


async def stopped(
    wrapped: BackgroundCapable, manager: BackgroundTaskManager, args: dict[str, Any] = ARGS
) -> str:
    """Start a task that stops; return its id."""
    result = await wrapped.execute(args, CTX)
    task_id: str = result.data["task_id"]
    await ended(manager, task_id, TaskStatus.STOPPED)
    return task_id


async def current(manager: BackgroundTaskManager, task_id: str) -> TaskRecord:
    """Return the record of a task that is there."""
    record = await manager.find(task_id)
    assert record is not None
    return record


# ---- which task is meant -------------------------------------------------------------------------


async def test_what_is_not_the_callers_task_of_this_tool_is_unknown(
    manager: BackgroundTaskManager,
) -> None:
    """C15, C42: another owner's or tool's id answers like an absent one, and nothing changes."""

    class Other(Scripted):
        task_type = "other"

    wrapped = BackgroundCapable(resumable(stops_first()), manager)
    other = BackgroundCapable(Other(stops_first(), supports_resume=True), manager)
    foreign = await stopped(wrapped, manager)
    before = [await current(manager, foreign)]
    stranger = ToolCallContext(thread_id="thread-2")
    for tool, task_id, context in (
        (wrapped, "bg_nothing", CTX),
        (wrapped, foreign, stranger),
        (wrapped, foreign, ToolCallContext()),
        (other, foreign, CTX),
    ):
        for background in (True, False):
            args = {"task_id": task_id, "run_in_background": background}
            if background and context.thread_id is None:
                continue
            result = await tool.execute(args, context)
            assert result == ToolResult.error("Scripted", f"Unknown task: {task_id}")
    assert await records(manager) == before


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(
    ("outcome", "status", "error"),
    [
        (Success(1), "completed", None),
        (Failed("no"), "failed", "no"),
        (Cancelled(), "cancelled", None),
    ],
)
async def test_an_ended_task_answers_its_status_and_never_runs_again(
    outcome: TaskResult,
    status: str,
    error: str | None,
    background: bool,  # noqa: FBT001
    manager: BackgroundTaskManager,
) -> None:
    """C12: a terminal task answers how it ended; that needs no arguments and runs nothing."""

    async def body(_: dict[str, Any], __: BackgroundExecution) -> TaskResult:
        return outcome

    tool = resumable(body, metadata={"agent_id": "a"})
    wrapped = BackgroundCapable(tool, manager)
    task_id = (await wrapped.execute(ARGS, CTX)).data["task_id"]
    before = await ended(manager, task_id, TaskStatus(status))
    seen = list(tool.seen)
    # C40: ids are trimmed.
    args = {"task_id": f" {task_id}\t", "run_in_background": background}
    assert await wrapped.execute(args, CTX) == status_of(task_id, status, error, "a")
    assert await current(manager, task_id) == before
    assert tool.seen == seen


async def test_a_running_task_answers_its_status(manager: BackgroundTaskManager) -> None:
    """A live task is never taken for an orphan and never started twice."""
    tool = resumable(forever, metadata={"agent_id": 7})
    wrapped = BackgroundCapable(tool, manager)
    task_id = (await wrapped.execute(ARGS, CTX)).data["task_id"]
    await trio.testing.wait_all_tasks_blocked()
    assert await wrapped.execute({"task_id": task_id}, CTX) == status_of(task_id, "running")
    assert (await current(manager, task_id)).attempt == 1


async def test_a_running_foreground_task_answers_its_status(
    manager: BackgroundTaskManager,
) -> None:
    """C2: a parallel call with a foreground run's id sees it running, and starts nothing."""
    tool = resumable(forever)
    wrapped = BackgroundCapable(tool, manager)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wrapped.execute, {"message": "hi"}, CTX)
        await trio.testing.wait_all_tasks_blocked()
        (task,) = await manager.list_tasks(OWNER)
        answer = await wrapped.execute({"task_id": task.task_id}, CTX)
        assert answer == status_of(task.task_id, "running")
        assert [entry[0] for entry in tool.seen].count("background") == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("tool_can", "record_can"), [(False, True), (True, False)])
async def test_a_stopped_task_that_may_not_be_resumed_answers_its_status(
    tool_can: bool,  # noqa: FBT001
    record_can: bool,  # noqa: FBT001
    manager: BackgroundTaskManager,
) -> None:
    """A resume needs both: a tool that supports it, and a task that was started so."""

    class FindsIds(Scripted):
        def task_id_from_args(self, args: dict[str, Any], /) -> str | None:
            return args.get("task_id")

    starter = BackgroundCapable(FindsIds(stops_first(), supports_resume=record_can), manager)
    task_id = await stopped(starter, manager)
    tool = FindsIds(show, supports_resume=tool_can)
    answer = await BackgroundCapable(tool, manager).execute({"task_id": task_id, "n": "bad"}, CTX)
    assert answer == status_of(task_id, "stopped", "later")
    assert tool.seen == []
    assert (await current(manager, task_id)).attempt == 1


# ---- resuming ------------------------------------------------------------------------------------


async def test_a_resume_goes_on_with_the_arguments_and_the_checkpoint(
    manager: BackgroundTaskManager,
) -> None:
    """C13, C14: stored arguments under the caller's by top-level key; no metadata among them."""
    tool = resumable(stops_first(show), metadata={"agent_id": "a", "thread_id": "x"})
    wrapped = BackgroundCapable(tool, manager)
    task_id = await stopped(wrapped, manager)
    assert (await current(manager, task_id)).args == {"message": "hi", "n": 1}
    tool.seen.clear()
    answer = await wrapped.execute({"task_id": task_id, "n": 2, "run_in_background": True}, CTX)
    assert answer.data["status"] == "running_in_background"
    assert answer.data["task_id"] == task_id
    record = await ended(manager, task_id, TaskStatus.COMPLETED)
    merged = {"message": "hi", "n": 2}
    assert record.args == merged
    assert record.result == {
        "args": merged,
        "checkpoint": {"at": 1},
        "attempt": 2,
        "is_resume": True,
    }
    assert tool.seen == [
        ("metadata", merged),
        ("prepare", merged, "call-1", True),
        ("background", merged, "prepared", 2),
    ]


async def test_an_explicit_null_replaces_a_stored_argument(manager: BackgroundTaskManager) -> None:
    """C14: what the caller passes counts, also when it is null; nothing is filled in for it."""
    parameters = {"properties": {"n": {"type": ["integer", "null"]}}}
    wrapped = BackgroundCapable(resumable(stops_first(show), parameters=parameters), manager)
    task_id = await stopped(wrapped, manager)
    result = await wrapped.execute({"task_id": task_id, "n": None}, CTX)
    assert result.data["args"] == {"message": "hi", "n": None}


async def test_the_caller_decides_where_a_resume_runs(manager: BackgroundTaskManager) -> None:
    """A background task may be resumed in the foreground, and the other way round."""
    wrapped = BackgroundCapable(resumable(stops_first(stops_first(show))), manager)
    started = await wrapped.execute({"message": "hi"}, CTX)
    assert without_id(started) == ToolResult.pending("Scripted", "later")
    (task,) = await manager.list_tasks(OWNER)
    record = await current(manager, task.task_id)
    assert (record.status, record.error, record.background) == ("stopped", "later", False)
    answer = await wrapped.execute({"task_id": task.task_id, "run_in_background": True}, CTX)
    assert answer.data["status"] == "running_in_background"
    record = await ended(manager, task.task_id, TaskStatus.COMPLETED)
    assert (record.attempt, record.background) == (2, True)


async def test_a_foreground_resume_answers_with_the_tools_result(
    manager: BackgroundTaskManager,
) -> None:
    """A foreground resume is told to the tool, and gives its own answer."""
    asked: list[bool] = []

    class Foreground(WithExecute):
        async def execute_foreground(
            self,
            args: dict[str, Any],
            ctx: ToolCallContext,
            execution: BackgroundExecution,
            /,
            *,
            is_resume: bool,
        ) -> ToolResult:
            asked.append(is_resume)
            if is_resume:
                return ToolResult.success("Scripted", {"checkpoint": execution.checkpoint, **args})
            await execution.save_checkpoint(5)
            return ToolResult.pending("Scripted", "wait")

    wrapped = BackgroundCapable(Foreground(supports_resume=True), manager)
    await wrapped.execute({"message": "hi"}, CTX)
    (task,) = await manager.list_tasks(OWNER)
    result = await wrapped.execute({"task_id": task.task_id}, CTX)
    assert without_id(result) == ToolResult.success("Scripted", {"checkpoint": 5, "message": "hi"})
    assert asked == [False, True]


@pytest.mark.parametrize(
    ("extra", "error"),
    [
        ({"n": "two"}, r"\$\.n: \"two\" is not of type \"integer\""),
        ({"other": 1}, "'other' was unexpected"),
    ],
)
async def test_merged_arguments_are_validated_before_anything_changes(
    extra: dict[str, Any], error: str, manager: BackgroundTaskManager
) -> None:
    """A resume with arguments that do not fit is refused; the task stays stopped as it was."""
    tool = resumable(stops_first(show))
    wrapped = BackgroundCapable(tool, manager)
    task_id = await stopped(wrapped, manager)
    before, seen = await current(manager, task_id), list(tool.seen)
    with pytest.raises(InvalidArguments, match=error):
        await wrapped.execute({"task_id": task_id, **extra}, CTX)
    assert (await current(manager, task_id), tool.seen) == (before, seen)


@pytest.mark.parametrize("background", [True, False])
async def test_a_hook_that_refuses_a_resume_leaves_the_task_stopped(
    background: bool,  # noqa: FBT001
    manager: BackgroundTaskManager,
) -> None:
    """The hooks of a resume run before its attempt is stored."""

    class Refuses(Scripted):
        def prepare_background(
            self, args: dict[str, Any], ctx: ToolCallContext, /, *, is_resume: bool
        ) -> Any:
            if is_resume:
                raise Denied(f"{ctx.call_id} {args}")

    wrapped = BackgroundCapable(Refuses(stops_first(), supports_resume=True), manager)
    task_id = await stopped(wrapped, manager)
    before = await current(manager, task_id)
    with pytest.raises(Denied, match=r"call-1 \{'message': 'hi', 'n': 1\}"):
        await wrapped.execute({"task_id": task_id, "run_in_background": background}, CTX)
    assert await current(manager, task_id) == before


async def test_a_tool_that_declares_the_id_keeps_it_in_validation_only(
    manager: BackgroundTaskManager,
) -> None:
    """An id that is part of the tool's own schema is validated, and still not stored."""
    parameters = {
        "properties": {"run": {"type": "string", "minLength": 8}, "n": {"type": "integer"}},
        "additionalProperties": False,
    }

    class OwnId(Scripted):
        def task_id_from_args(self, args: dict[str, Any], /) -> str | None:
            return args.get("run")

        def with_task_id(self, args: dict[str, Any], task_id: str, /) -> dict[str, Any]:
            return {**args, "run": task_id}

    validated: list[dict[str, Any]] = []

    class Watched(OwnId):
        def validate_args(self, args: Any) -> None:
            validated.append(args)
            super().validate_args(args)

    tool = Watched(stops_first(show), supports_resume=True, parameters=parameters)
    wrapped = BackgroundCapable(tool, manager)
    task_id = await stopped(wrapped, manager, {"n": 1, "run_in_background": True})
    result = await wrapped.execute({"run": task_id}, CTX)
    assert result.data["args"] == {"n": 1, "run": task_id}
    assert validated == [{"n": 1, "run": task_id}]
    assert (await current(manager, task_id)).args == {"n": 1}


async def test_an_argument_that_equals_the_id_is_not_taken_for_it(
    manager: BackgroundTaskManager,
) -> None:
    """Only the argument that carries the id is taken out, not another of the same value."""
    wrapped = BackgroundCapable(resumable(stops_first(show)), manager)
    task_id = await stopped(wrapped, manager)
    result = await wrapped.execute({"task_id": task_id, "message": task_id}, CTX)
    assert result.data["args"] == {"message": task_id, "n": 1}


async def test_an_id_that_is_found_by_several_arguments_is_found(
    manager: BackgroundTaskManager,
) -> None:
    """A hook may read more than one argument: what it needs for the id is not stored."""

    class TwoKeys(Scripted):
        def task_id_from_args(self, args: dict[str, Any], /) -> str | None:
            return args["id"] if args["action"] == "resume" else None

    parameters = {
        "properties": {"action": {"enum": ["start", "resume"]}, "id": {"type": "string"}},
        "required": ["action"],
    }
    tool = TwoKeys(stops_first(show), supports_resume=True, parameters=parameters)
    wrapped = BackgroundCapable(tool, manager)
    started = {"action": "start", "n": 1, "run_in_background": True}
    task_id = await stopped(wrapped, manager, started)
    result = await wrapped.execute({"action": "resume", "id": task_id, "n": 2}, CTX)
    assert result.data["args"] == {"action": "start", "n": 2}
    assert (await current(manager, task_id)).args == {"action": "start", "n": 2}


async def test_a_resume_keeps_its_place_in_the_lineage(manager: BackgroundTaskManager) -> None:
    """C16: who resumes a task does not become its parent."""
    wrapped = BackgroundCapable(resumable(stops_first(show)), manager)
    task_id = (await wrapped.execute(ARGS, ToolCallContext(thread_id=OWNER, run_id="run-1"))).data[
        "task_id"
    ]
    await ended(manager, task_id, TaskStatus.STOPPED)
    await wrapped.execute({"task_id": task_id}, ToolCallContext(thread_id=OWNER, run_id="run-2"))
    assert (await current(manager, task_id)).parent_task_id == "run-1"


async def test_a_cancelled_task_is_not_resumed(manager: BackgroundTaskManager) -> None:
    """C7: a cancel of a stopped task is final."""
    wrapped = BackgroundCapable(resumable(stops_first(show)), manager)
    task_id = await stopped(wrapped, manager)
    await manager.cancel(OWNER, task_id)
    answer = await wrapped.execute({"task_id": task_id}, CTX)
    assert answer == status_of(task_id, "cancelled", "later")


# ---- several at once -----------------------------------------------------------------------------


@pytest.mark.parametrize("background", [True, False])
async def test_exactly_one_of_several_resumes_wins(
    background: bool,  # noqa: FBT001
    manager: BackgroundTaskManager,
) -> None:
    """C10: of ten calls at once one resumes; the others are told that it runs."""
    tool = resumable(stops_first(forever))
    wrapped = BackgroundCapable(tool, manager)
    task_id = await stopped(wrapped, manager)
    tool.seen.clear()
    answers: list[ToolResult] = []

    async def call() -> None:
        args = {"task_id": task_id, "run_in_background": background}
        answers.append(await wrapped.execute(args, CTX))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        assert answers.count(status_of(task_id, "running")) == 9
        assert len(answers) == (10 if background else 9)
        assert [e[-1] for e in tool.seen if e[0] == "background"] == [2]
        nursery.cancel_scope.cancel()


async def test_a_resume_that_lost_to_a_whole_attempt_answers_how_that_ended(
    manager: BackgroundTaskManager,
) -> None:
    """C11: a call that read the record too early is fenced by the attempt, not believed."""
    tool = resumable(stops_first(show))
    wrapped = BackgroundCapable(tool, manager)
    task_id = await stopped(wrapped, manager)
    early = await current(manager, task_id)
    assert (await wrapped.execute({"task_id": task_id}, CTX)).is_success

    class Early(BackgroundCapable):
        async def _look_up(self, owner: str, task_id: str) -> TaskRecord:
            return earlier.pop() if earlier else await super()._look_up(owner, task_id)

    earlier = [early]
    answer = await Early(tool, manager).execute({"task_id": task_id}, CTX)
    assert answer == status_of(task_id, "completed")
    assert (await current(manager, task_id)).attempt == 2


async def test_an_orphan_is_resumed_by_the_next_call(
    store: BrokenStore,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """C1, C6: only when its machine's lease has run out is a task an orphan; then it resumes."""

    async def body(args: dict[str, Any], execution: BackgroundExecution) -> TaskResult:
        await execution.save_checkpoint("half")
        return await (show if execution.is_resume else forever)(args, execution)

    tool = resumable(body)
    async with open_task_manager(store) as dying, open_task_manager(store) as manager:
        task_id = (await BackgroundCapable(tool, dying).execute(ARGS, CTX)).data["task_id"]
        await trio.testing.wait_all_tasks_blocked()
        wrapped = BackgroundCapable(tool, manager)
        assert await wrapped.execute({"task_id": task_id}, CTX) == status_of(task_id, "running")
        store.memory.crash(dying.statistics().executor_id)
        assert await wrapped.execute({"task_id": task_id}, CTX) == status_of(task_id, "running")
        await trio.sleep(40)
        result = await wrapped.execute({"task_id": task_id}, CTX)
        assert result.data["checkpoint"] == "half"
        assert result.data["attempt"] == 2


# ---- when the store fails ------------------------------------------------------------------------


async def test_a_store_fault_does_not_hide_a_live_task(
    store: BrokenStore, manager: BackgroundTaskManager
) -> None:
    """C38: what is live here is known without the store; what is not is an error."""
    wrapped = BackgroundCapable(resumable(forever), manager)

    class Other(Scripted):
        task_type = "other"

    live = (await wrapped.execute(ARGS, CTX)).data["task_id"]
    store.failing = {"load"}
    assert await wrapped.execute({"task_id": live}, CTX) == status_of(live, "running")
    for tool, task_id in (
        (wrapped, "bg_other"),
        (BackgroundCapable(Other(supports_resume=True), manager), live),
    ):
        with pytest.raises(ExecutionFailed) as caught:
            await tool.execute({"task_id": task_id}, CTX)
        assert str(caught.value) == "Execution failed: task lookup failed: the disk is gone"


@pytest.mark.parametrize("background", [True, False])
async def test_a_resume_that_is_not_stored_does_not_run(
    background: bool,  # noqa: FBT001
    store: BrokenStore,
    manager: BackgroundTaskManager,
) -> None:
    """A resume whose attempt could not be stored ran nothing, and may be repeated."""
    wrapped = BackgroundCapable(resumable(stops_first(show)), manager)
    task_id = await stopped(wrapped, manager)
    before = await current(manager, task_id)
    store.failing = {"AttemptStarted"}
    args = {"task_id": task_id, "run_in_background": background}
    with pytest.raises(ExecutionFailed, match="task persist failed: the disk is gone"):
        await wrapped.execute(args, CTX)
    store.failing.clear()
    assert await current(manager, task_id) == before
    assert (await wrapped.execute(args, CTX)).is_success
    record = await ended(manager, task_id, TaskStatus.COMPLETED)
    assert record == attrs.evolve(record, attempt=2)
