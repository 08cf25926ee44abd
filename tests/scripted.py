"""Tools and stores that tests write the script of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import attrs
import pytest
import trio

from tests.support import StoreWrapper
from trio_bgtasks import (
    BackgroundExecutable,
    BackgroundExecution,
    BackgroundTaskManager,
    Event,
    MemoryTaskStore,
    Success,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskStoreError,
    ToolCallContext,
    ToolDescriptor,
    ToolResult,
    open_task_manager,
)

T = TypeVar("T")

OWNER = "thread-1"
CTX = ToolCallContext("call-1", "tool:scripted", OWNER)

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"message": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["message"],
    "additionalProperties": False,
}

Run = Callable[[dict[str, Any], BackgroundExecution], Awaitable[Any]]


async def echo(args: dict[str, Any], _: BackgroundExecution) -> TaskResult:
    """Return the message."""
    return Success({"echoed": args.get("message")})


async def forever(_: dict[str, Any], __: BackgroundExecution) -> TaskResult:
    """Never return."""
    await trio.sleep_forever()
    raise AssertionError


@attrs.define(eq=False)
class Scripted(BackgroundExecutable[Any]):
    """A tool of one body; remembers what its hooks and executions were given."""

    run: Run = echo
    supports_resume: bool = False
    parameters: dict[str, Any] = attrs.field(factory=lambda: dict(SCHEMA))
    metadata: dict[str, Any] = attrs.field(factory=dict[str, Any])
    name: str = "Scripted"
    task_type = "scripted"
    seen: list[tuple[Any, ...]] = attrs.field(factory=list[tuple[Any, ...]])

    def descriptor(self) -> ToolDescriptor:
        return ToolDescriptor("scripted", self.name, "Follows a script.", self.parameters)

    def task_metadata(self, args: dict[str, Any], /) -> dict[str, Any]:
        self.seen.append(("metadata", dict(args)))
        return self.metadata

    def prepare_background(
        self, args: dict[str, Any], ctx: ToolCallContext, /, *, is_resume: bool
    ) -> Any:
        self.seen.append(("prepare", dict(args), ctx.call_id, is_resume))
        return "prepared"

    async def execute_background(
        self,
        task_id: str,
        args: dict[str, Any],
        prepared: Any,
        execution: BackgroundExecution,
        cancel_scope: trio.CancelScope,
        /,
    ) -> Any:
        assert (task_id, cancel_scope) == (execution.task_id, execution.cancel_scope)
        self.seen.append(("background", dict(args), prepared, execution.attempt))
        return await self.run(args, execution)


@attrs.define(eq=False)
class WithExecute(Scripted):
    """The same with an ``execute`` of its own, which answers ``answer``."""

    answer: Any = None

    async def execute(self, args: dict[str, Any], ctx: ToolCallContext) -> ToolResult:
        self.seen.append(("execute", dict(args), ctx.call_id))
        if callable(self.answer):
            return await self.answer()  # type: ignore[no-any-return]
        return self.answer  # type: ignore[no-any-return]


class BrokenStore(StoreWrapper):
    """A store whose calls of the named kinds, or events of the named types, fail."""

    def __init__(self) -> None:
        self.memory = MemoryTaskStore()
        super().__init__(self.memory)
        self.failing: set[str] = set()
        self.error: Exception = TaskStoreError("the disk is gone")

    async def around(self, call: str, afn: Callable[[], Awaitable[T]]) -> T:
        if call in self.failing:
            raise self.error
        return await afn()

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        if type(event).__name__ in self.failing:
            raise self.error
        return await super().apply(task_id, event)


@pytest.fixture
def store() -> BrokenStore:
    """The store below `manager`."""
    return BrokenStore()


@pytest.fixture
async def manager(store: BrokenStore) -> AsyncIterator[BackgroundTaskManager]:
    """An open manager; on virtual time if the test itself asks for `autojump_clock`."""
    async with open_task_manager(store) as manager:
        yield manager
        store.failing.clear()


async def ended(  # noqa: ASYNC128 - our TaskStatus is not Trio's
    manager: BackgroundTaskManager, task_id: str, status: TaskStatus, owner: str = OWNER
) -> TaskRecord:
    """Wait for the end of a task, check it, and return its record."""
    with trio.fail_after(1_000):
        summary = await manager.wait(owner, task_id)
    assert summary.status is status, summary
    record = await manager.find(task_id)
    assert record is not None
    return record


def without_id(result: ToolResult) -> ToolResult:
    """Return a foreground answer without the task id that the wrapper put into its metadata."""
    rest = dict(result.metadata)
    assert str(rest.pop("task_id")).startswith("bg_")
    return attrs.evolve(result, metadata=rest)


async def records(manager: BackgroundTaskManager) -> list[TaskRecord]:
    """Return every record of every owner."""
    tasks = [
        await manager.find(task.task_id)
        for owner in await manager.owners()
        for task in await manager.list_tasks(owner)
    ]
    return [task for task in tasks if task is not None]
