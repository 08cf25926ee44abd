"""Bugs of the MCP server, for the machine that speaks to it through the wire; as in ``runtime_managers``."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
from mcp.shared.exceptions import MCPError

from tests.property.wire_machine import WireMachine
from trio_bgtasks import TaskRecord, TaskStatus
from trio_bgtasks._parameters import RUN_IN_BACKGROUND_PARAM
from trio_bgtasks.mcp import _look, _tasks_extension
from trio_bgtasks.mcp._answers import Answers
from trio_bgtasks.mcp._calls import Calls
from trio_bgtasks.mcp._legacy_tasks import LegacyTasks
from trio_bgtasks.mcp._look import Seen
from trio_bgtasks.mcp._protocol import TaskPush, task_errors
from trio_bgtasks.mcp._questions import resume_key
from trio_bgtasks.mcp._view import View
from trio_bgtasks.mcp._wire import Shown, legacy_task, modern_task, shown

from . import runtime_questions
from .runtime_managers import Bug

Patch = pytest.MonkeyPatch


def cancelled_is_working_again(patch: Patch) -> None:
    """A task that was cancelled is shown as one that is being cancelled."""

    def again(record: TaskRecord, *args: Any, **kwargs: Any) -> Shown:
        if record.status is TaskStatus.CANCELLED:
            return Shown("working", "Cancelling")
        return shown(record, *args, **kwargs)

    patch.setattr(_look, "shown", again)


def an_end_gets_newer(patch: Patch) -> None:
    """A task that has ended was updated just now, whenever it is looked at."""
    task = Seen.modern

    def newer(self: Seen, *, detailed: bool = True) -> dict[str, Any]:
        seconds = int(trio.current_time()) % 60
        found: dict[str, Any] = task(self, detailed=detailed)
        return {**found, "lastUpdatedAt": f"2027-01-15T08:00:{seconds:02}.000Z"}

    patch.setattr(Seen, "modern", newer)


def strangers_tasks_are_known(patch: Patch) -> None:
    """Somebody else's task is one that may not be seen, not one that is unknown."""
    known = View.known

    async def denied(self: View, ctx: Any, task_id: str) -> Seen:
        found = await self.manager.find(task_id)
        if found is not None and found.owner_thread_id != self.owner(ctx):
            raise MCPError(-32602, "Failed to retrieve task: Not yours")
        return await known(self, ctx, task_id)

    patch.setattr(View, "known", denied)


def a_list_of_everybodys(patch: Patch) -> None:
    """The list of tasks has those of all owners."""
    find = LegacyTasks.list

    async def everybodys(self: LegacyTasks, ctx: Any, params: Any) -> Any:
        answer: Any = await find(self, ctx, params)
        manager = self._view.manager
        for owner in set(await manager.owners()) - {self._view.owner(ctx)}:
            for task in await manager.list_tasks(owner):
                seen = await self._view.find(ctx, owner, task.task_id)
                answer["tasks"] += [] if seen is None else [seen.legacy()]
        return answer

    patch.setattr(LegacyTasks, "list", everybodys)


def a_result_and_an_error(patch: Patch) -> None:
    """A tool's own error is told as an error, too, beside the result."""

    def both(record: TaskRecord, state: Shown, **more: Any) -> dict[str, Any]:
        if state.result is not None and state.result["isError"]:
            state = attrs.evolve(state, error={"code": -32603, "message": record.error})
        return modern_task(record, state, **more)

    patch.setattr(_look, "modern_task", both)


def ids_before_they_are_stored(patch: Patch) -> None:
    """A task's id is told before its start is stored."""

    async def early(
        self: Calls, ctx: Any, tool: Any, args: Any, *, wait_s: float = 0
    ) -> Seen | dict[str, Any]:
        del wait_s
        context = self._context(ctx, self._view.owner(ctx))
        args = {**args, RUN_IN_BACKGROUND_PARAM: True}
        ctx.lifespan_context.start_soon(self._execute, tool, args, context)
        now = self._manager.config.clock_ms()
        words = context.task_id or "", context.thread_id or "", "work", ""
        record = TaskRecord(*words, TaskStatus.RUNNING, 1, now, now, executor_id="ex")
        return Seen(record, shown(record, can_answer=False), None)

    patch.setattr(Calls, "start", early)


def a_form_holds_up_the_result(patch: Patch) -> None:
    """What a client was asked within a request is never withdrawn."""

    async def never(*_: Any) -> None:
        await trio.sleep_forever()

    patch.setattr(Answers, "_closed", never)


def only_its_status_is_news(patch: Patch) -> None:
    """Whoever listens is told again only when the status is another one."""

    class Status:
        """In the place of ``json``, of which only this is used there."""

        @staticmethod
        def dumps(task: Any) -> str:
            status: str = task["status"]
            return status

    patch.setattr(_tasks_extension, "json", Status)


def nulls_are_dropped(patch: Patch) -> None:
    """What is pushed leaves out what is null, which the schema demands."""

    class Sparse(TaskPush):
        def model_post_init(self, _: object, /) -> None:
            self.params = {k: v for k, v in self.params.items() if v is not None}

    patch.setattr(_tasks_extension, "TaskPush", Sparse)


def late_answers_resume(patch: Patch) -> None:
    """The answer whether to resume an earlier attempt is taken for that of the last one."""
    give = Answers.give

    async def whenever(self: Answers, record: TaskRecord, key: str, response: object) -> None:
        if record.status is TaskStatus.STOPPED and key.startswith("resume-"):
            key = resume_key(record)
        await give(self, record, key, response)

    patch.setattr(Answers, "give", whenever)


def own_errors_are_completed(patch: Patch) -> None:
    """In 2025-11-25, too, a tool's own error is a completed task."""

    def completed(record: TaskRecord, state: Shown, **more: Any) -> dict[str, Any]:
        return {**legacy_task(record, state, **more), "status": state.status}

    patch.setattr(_look, "legacy_task", completed)


def listeners_of_all(patch: Patch) -> None:
    """A subscription honours whatever exists."""
    find = View.find

    async def anybodys(self: View, ctx: Any, owner: str, task_id: str) -> Seen | None:
        if ctx.method == "subscriptions/listen":
            with task_errors():
                found = await self.manager.find(task_id)
            owner = owner if found is None else found.owner_thread_id
        return await find(self, ctx, owner, task_id)

    patch.setattr(View, "find", anybodys)


def keys_are_used_again(patch: Patch) -> None:
    """A question is asked under a key that another one had."""
    runtime_questions.ids_are_used_again(patch)


PLANTED: list[tuple[Bug, str]] = [
    (
        cancelled_is_working_again,
        "^shown is .*'working'|^it had ended on the wire: |^it has not ended: |^nobody tells how it ended: ",
    ),
    (an_end_gets_newer, "^it has changed after its end: "),
    (strangers_tasks_are_known, "^foreign is told from unknown: "),
    (a_list_of_everybodys, "^ann is shown job |^bob is shown job "),
    (a_result_and_an_error, "^with status completed goes "),
    (ids_before_they_are_stored, "^nobody started it: |^the answer to tasks/get is "),
    (a_form_holds_up_the_result, "^nobody tells how it ended: | is asked in vain: "),
    (only_its_status_is_news, "^told last was "),
    (nulls_are_dropped, "ValidationError: "),
    (late_answers_resume, "^shown is | was taken: "),
    (own_errors_are_completed, "^shown is "),
    (listeners_of_all, "is honored of"),
    (keys_are_used_again, "^the key q1 was that of "),
]


def machine_with(bug: Bug, patch: Patch) -> type[WireMachine]:
    """Plant a bug; return the machine that runs on it."""
    bug(patch)
    return WireMachine
