"""What `BackgroundToolMachine` acts on: a task, the processes that it runs in, the calls of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import attrs
import trio

from trio_bgtasks import (
    BackgroundCapable,
    BackgroundExecutable,
    BackgroundExecution,
    BackgroundTaskManager,
    Cancelled,
    Failed,
    ManagerConfig,
    Stopped,
    Success,
    TaskRecord,
    TaskResult,
    TaskStatus,
    ToolCallContext,
    open_task_manager,
)

from ._tool_watch import STRUCK, Attempt, NotingStore

How: TypeAlias = Literal["cancel", "cancel its scope", "cancel its caller", "shutdown", "crash"]
HOWS: tuple[How, ...] = get_args(How)

OWNER = "conversation"
CONTEXT = ToolCallContext("call", "tool:machine", OWNER)


@attrs.define(eq=False)
class Task:
    """A task and its attempts so far."""

    attempts: list[Attempt] = attrs.field(factory=list[Attempt])
    story: list[str] = attrs.field(factory=list[str])
    record: TaskRecord = attrs.field(init=False)

    @property
    def task_id(self) -> str:
        execution = self.attempts[0].execution
        assert execution is not None
        return execution.task_id

    @property
    def can_go_on(self) -> bool:
        """Is it stopped, and can be resumed?"""
        return self.record.status is TaskStatus.STOPPED and self.record.supports_resume

    @property
    def steps(self) -> int:
        return sum(attempt.steps for attempt in self.attempts)

    @property
    def saved(self) -> list[Any]:
        return [value for attempt in self.attempts for value in attempt.saved]

    def tell(self, what: str) -> None:
        """Tell of the current attempt."""
        number = len(self.attempts)
        if number > len(self.story):
            given = f" from {self.attempts[-1].from_checkpoint!r}" if number > 1 else ""
            self.story.append(f"attempt {number}{given}: {what}")
        else:
            self.story[-1] += f"; {what}"


@attrs.define(eq=False)
class Process:
    """A manager on the store, as if in a process of its own; it ends in order, or it crashes."""

    store: NotingStore
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    stop: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)
    threads: set[threading.Thread] = attrs.field(factory=lambda: set(threading.enumerate()))
    manager: BackgroundTaskManager = attrs.field(init=False)
    tool: BackgroundCapable = attrs.field(init=False)
    name: str = attrs.field(init=False)

    async def live(  # noqa: ASYNC114 - started in no context manager
        self, tool: BackgroundExecutable[Any], *, task_status: trio.TaskStatus[None]
    ) -> None:
        config = ManagerConfig(clock_ms=lambda: int(trio.current_time() * 1000))
        self.name = tool.descriptor().name
        try:
            with self.scope:
                async with open_task_manager(self.store, config=config) as self.manager:
                    self.tool = BackgroundCapable(tool, self.manager)
                    task_status.started()
                    await self.stop.wait()
        finally:
            self.ended.set()

    def crash(self) -> None:
        """End at this moment: nothing that is written from now on arrives."""
        self.store.crash(self.manager.statistics().executor_id)
        self.scope.cancel(reason=STRUCK)


@attrs.define(eq=False)
class Call:
    """One call of the wrapped tool, in a task of its own."""

    process: Process
    arguments: dict[str, Any]
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ended: trio.Event = attrs.field(factory=trio.Event)
    refused: str | None = None

    async def make(self, attempt: Attempt) -> None:
        refused: str | None = None
        with self.scope:
            try:
                self.process.tool.validate_args(self.arguments)
                answer = await self.process.tool.execute(self.arguments, CONTEXT)
                refused = answer.message if answer.is_error else None
            except Exception as error:  # noqa: BLE001 - if the body raised it, the attempt has it
                refused = f"{type(error).__name__}: {error}"
        if refused is not None and attempt.execution is None:
            self.refused = refused
            attempt.end()
        self.ended.set()

    def striker(self, how: How | None) -> Callable[[BackgroundExecution], None] | None:
        """Return what interrupts the call at once; None: it takes a call of the manager."""
        match how:
            case "cancel its scope":
                return lambda execution: execution.cancel_scope.cancel(reason=STRUCK)
            case "cancel its caller":
                return lambda _: self.scope.cancel(reason=STRUCK)
            case "crash":
                return lambda _: self.process.crash()
            case _:
                return None


def outcome_of(record: TaskRecord) -> TaskResult:
    match record.status:
        case TaskStatus.COMPLETED:
            return Success(record.result, record.result_ref)
        case TaskStatus.FAILED:
            return Failed(record.error or "", record.result)
        case TaskStatus.CANCELLED:
            return Cancelled()
        case _:
            return Stopped(record.error)
