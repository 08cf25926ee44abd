"""The tools by which a model looks after its tasks: task_status, task_cancel, task_output."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any, ClassVar, final

import trio

from .._errors import TaskError, UnknownTask
from .._json import JsonObject, JsonValue, check_id, clone_json
from .._manager import BackgroundTaskManager
from .._records import OutputPage, TaskSummary, shown_result
from .._tool import (
    InvalidArguments,
    Tool,
    ToolCallContext,
    ToolDescriptor,
    ToolResult,
    check_context,
)

_log = logging.getLogger("trio_bgtasks.tools")

MAX_WAIT_S = 60
_MOST_OFFSET = 1 << 53  # more is no exact number in JSON
_MOST_BYTES = 1 << 20


def task_tools(manager: BackgroundTaskManager) -> list[Tool]:
    """Return task_status, task_cancel and task_output for the tasks of ``manager``.

    Each answers for the tasks of the calling thread (``ctx.thread_id``) only: another owner's id is
    an unknown one. Whatever fails is an error result that says so; `InvalidArguments` is raised.
    """
    return [_TaskStatus(manager), _TaskCancel(manager), _TaskOutput(manager)]


class _TaskTool(Tool):
    """What the three have in common: a task of the calling thread, and how failures are told."""

    id: ClassVar[str]
    name: ClassVar[str]
    description: ClassVar[str]
    properties: ClassVar[JsonObject]
    needs_task_id: ClassVar[bool] = True

    def __init__(self, manager: BackgroundTaskManager) -> None:
        if not isinstance(manager, BackgroundTaskManager):  # pyright: ignore[reportUnnecessaryIsInstance]
            kind = type(manager).__name__
            raise TypeError(f"task_tools needs a BackgroundTaskManager, not {kind}")
        self._manager = manager

    def __repr__(self) -> str:
        return f"<{self.id} of {self._manager!r}>"

    def descriptor(self) -> ToolDescriptor:
        """Return id, name, description and parameters."""
        parameters: JsonObject = {"type": "object", "properties": clone_json(self.properties)}
        if self.needs_task_id:
            parameters["required"] = ["task_id"]
        return ToolDescriptor(self.id, self.name, self.description, parameters)

    def validate_args(self, args: Any) -> None:
        """Check by the schema, and that a task id is one."""
        super().validate_args(args)
        self._task_id(args)

    def _task_id(self, args: dict[str, Any]) -> str | None:
        task_id = (args.get("task_id") or "").strip()
        if not task_id and not self.needs_task_id:
            return None
        try:
            return check_id(task_id, "task_id")
        except ValueError as error:
            raise InvalidArguments(str(error)) from None

    async def execute(self, args: Any, ctx: ToolCallContext) -> ToolResult:
        """Answer for the calling thread.

        Raises:
            InvalidArguments: the arguments do not fit.
            TypeError: ``ctx`` is no `ToolCallContext`.
        """
        check_context(ctx)
        self.validate_args(args)
        if ctx.thread_id is None:
            return ToolResult.error(self.id, "Missing caller thread context")
        task_id = self._task_id(args)
        try:
            return await self._answer(ctx.thread_id, task_id or "", args)
        except TaskError as error:
            return ToolResult.error(self.id, str(error))
        except Exception as error:  # noqa: BLE001 - logged and answered
            extra = {"task_id": task_id, "owner_thread_id": ctx.thread_id}
            _log.exception("%s failed", self.id, extra=extra)
            return ToolResult.error(self.id, f"{type(error).__name__}: {error}")

    @abstractmethod
    async def _answer(self, owner: str, task_id: str, args: dict[str, Any]) -> ToolResult: ...

    async def _summary(self, owner: str, task_id: str) -> TaskSummary:
        summary = await self._manager.get(owner, task_id)
        if summary is None:
            raise UnknownTask(task_id)
        return summary


@final
class _TaskStatus(_TaskTool):
    id = "task_status"
    name = "Task Status"
    description = (
        "Check the status and result of background tasks. Provide task_id to query a specific "
        "task, or omit to list all tasks."
    )
    properties: ClassVar[JsonObject] = {
        "task_id": {
            "type": ["string", "null"],
            "description": "The task to look at; omit it to list all.",
        }
    }
    needs_task_id = False

    async def _answer(self, owner: str, task_id: str, args: dict[str, Any]) -> ToolResult:  # noqa: ARG002
        if task_id:
            return ToolResult.success(self.id, (await self._summary(owner, task_id)).to_json())
        try:
            return ToolResult.success(self.id, _listed(await self._manager.list_tasks(owner)))
        except Exception as error:
            live = self._manager.live(owner)
            if not live:
                raise
            text = f"Only live tasks are listed, because the task store failed: {error}"
            return ToolResult.warning(self.id, _listed(live), text)


def _listed(tasks: list[TaskSummary]) -> JsonObject:
    return {"tasks": [task.to_json() for task in tasks], "total": len(tasks)}


@final
class _TaskCancel(_TaskTool):
    id = "task_cancel"
    name = "Task Cancel"
    description = (
        "Cancel a running background task by task_id. Descendant tasks are cancelled "
        "automatically. A stopped task is cancelled, too: it can then not be resumed."
    )
    properties: ClassVar[JsonObject] = {
        "task_id": {"type": "string", "description": "The task to cancel."}
    }

    async def _answer(self, owner: str, task_id: str, args: dict[str, Any]) -> ToolResult:  # noqa: ARG002
        tree = await self._manager.cancel_tree(owner, task_id)
        data: JsonObject = {
            "task_id": task_id,
            "cancelled": True,
            "cancelled_ids": [task.task_id for task in tree.own],
            "cancelled_count": len(tree.own) + tree.others,
        }
        failures: list[JsonValue] = [
            {"task_id": task.task_id, "error": task.persistence_error} for task in tree.unsaved
        ]
        if not failures:
            return ToolResult.success(self.id, data)
        count = len(failures)
        data["persistence_warning"] = {"failed_count": count, "failures": failures}
        return ToolResult.warning(
            self.id,
            data,
            "Cancellation requested, but failed to persist cancellation markers for "
            f"{count} task(s).",
        )


@final
class _TaskOutput(_TaskTool):
    id = "task_output"
    name = "Task Output"
    description = (
        "Read the output of a background task. For agent runs, returns the last assistant message. "
        "For other tasks, returns the task result and a page of its output log."
    )
    properties: ClassVar[JsonObject] = {
        "task_id": {"type": "string", "description": "The task to read."},
        "offset": {
            "type": ["integer", "null"],
            "minimum": -_MOST_OFFSET,
            "maximum": _MOST_OFFSET,
            "description": (
                "First byte of the log to read; pass the next_offset of the last answer to go on. "
                "Negative: that many bytes before its end. Default 0."
            ),
        },
        "limit": {
            "type": ["integer", "null"],
            "minimum": 1,
            "maximum": _MOST_BYTES,
            "description": "About how many bytes of the log to read.",
        },
        "wait_s": {
            "type": ["number", "null"],
            "minimum": 0,
            "maximum": MAX_WAIT_S,
            "description": "Wait so many seconds for the end of the task. Default 0.",
        },
    }

    async def _answer(self, owner: str, task_id: str, args: dict[str, Any]) -> ToolResult:
        wait_s = args.get("wait_s")
        if wait_s:
            with trio.move_on_after(wait_s):
                await self._manager.wait(owner, task_id)
        summary = await self._summary(owner, task_id)
        try:
            page = await self._page(owner, task_id, args)
        except UnknownTask:
            raise
        except Exception as error:  # noqa: BLE001 - what is known already is told all the same
            text = f"The output log could not be read: {error}"
            return ToolResult.warning(self.id, _output(summary, None), text)
        return ToolResult.success(self.id, _output(summary, page))

    async def _page(self, owner: str, task_id: str, args: dict[str, Any]) -> OutputPage:
        offset, limit = args.get("offset") or 0, args.get("limit")
        # JSON Schema takes 5.0 for an integer.
        limit = None if limit is None else int(limit)
        return await self._manager.output(owner, task_id, offset=int(offset), limit=limit)


def _output(summary: TaskSummary, page: OutputPage | None) -> JsonObject:
    return {
        "task_id": summary.task_id,
        "task_type": summary.task_type,
        "agent_id": summary.metadata.get("agent_id"),
        "status": summary.status.value,
        "output": shown_result(summary.result, summary.result_ref),
        "log": None if page is None else page.to_json(),
    }
