"""Requests, bodies that follow orders, and a cancel at every checkpoint."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Generic, TypeVar, cast

import attrs
import trio
import trio.testing

from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    Cancelled,
    LeaseTerms,
    ManagerConfig,
    StartRequest,
    Stopped,
    Success,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskStore,
    TaskSummary,
    open_task_manager,
)
from trio_bgtasks.stores import ExecutorHandle, wall_clock_ms
from trio_bgtasks.testing import Fault, FaultyStore, StoreWrapper

__all__ = ["Fault", "FaultyStore", "StoreWrapper"]  # beside what is made here

T = TypeVar("T")

OWNER = "thread-1"
OTHER = "thread-2"


def request(owner: str = OWNER, /, task_type: str = "work", **fields: Any) -> StartRequest:
    """Return a request of task type ``work``."""
    return StartRequest(owner_thread_id=owner, task_type=task_type, **fields)


async def done(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
    """Succeed after one checkpoint."""
    await trio.lowlevel.checkpoint()
    return Success("done")


async def forever(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
    """Never return."""
    await trio.sleep_forever()
    raise AssertionError


async def stop(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
    """Stop at once, to be resumed."""
    await trio.lowlevel.checkpoint()
    return Stopped("enough")


@attrs.define(eq=False)
class Gate:
    """A body that runs until it is let go; it knows how often, and for which attempts, it ran."""

    result: TaskResult = attrs.field(factory=lambda: Success("done"))
    runs: list[tuple[str, int]] = attrs.field(factory=list[tuple[str, int]])
    entered: trio.Event = attrs.field(factory=trio.Event)
    opened: trio.Event = attrs.field(factory=trio.Event)

    async def __call__(self, execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        self.runs.append((execution.task_id, execution.attempt))
        self.entered.set()
        await self.opened.wait()
        return self.result


@attrs.define(eq=False)
class Told:
    """A body that runs until it is cancelled; ``reasons`` is what it was told of why, each time."""

    reasons: list[str | None] = attrs.field(factory=list[str | None])

    async def __call__(self, execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        try:
            await trio.sleep_forever()
        finally:
            self.reasons.append(execution.stopping)
        raise AssertionError


@attrs.define(eq=False)
class Stubborn:
    """A body that ends when it is let go, and not before, whoever cancels it."""

    result: TaskResult = attrs.field(factory=Cancelled)
    entered: trio.Event = attrs.field(factory=trio.Event)
    opened: trio.Event = attrs.field(factory=trio.Event)

    async def __call__(self, _: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
        self.entered.set()
        with trio.CancelScope(shield=True):
            await self.opened.wait()
        return self.result


@asynccontextmanager
async def opened(
    store: TaskStore | None = None, **config: Any
) -> AsyncGenerator[BackgroundTaskManager, None]:
    """Open a manager with some fields of its configuration."""
    async with open_task_manager(store, config=ManagerConfig(**config)) as manager:
        yield manager


async def grow(manager: BackgroundTaskManager, *rows: str) -> dict[str, Gate]:
    """Start ``name``, ``name<parent`` or ``owner:name<parent``; return their bodies."""
    gates: dict[str, Gate] = {}
    for row in rows:
        rest, _, parent = row.partition("<")
        owner, _, name = rest.rpartition(":")
        gates[name] = Gate()
        asked = request(owner or OWNER, task_id=name, parent_task_id=parent or None)
        await manager.start(asked, gates[name])
    await trio.testing.wait_all_tasks_blocked()
    return gates


# ---- stores --------------------------------------------------------------------------------------


class CheckpointingStore(StoreWrapper):
    """A store of which every call can be cancelled: before it was applied, and after."""

    async def around(self, call: str, afn: Callable[[], Awaitable[T]]) -> T:
        del call
        await trio.lowlevel.checkpoint()
        answer = await afn()
        await trio.lowlevel.checkpoint()
        return answer


class StallingStore(StoreWrapper):
    """The memory store of a machine that never renews its lease: who sweeps finds it dead."""

    @asynccontextmanager
    async def _executor(self, *terms: Any) -> AsyncGenerator[ExecutorHandle, None]:
        async with self.inner.executor(*terms) as handle:
            cast("Any", handle).renewal.cancel()
            yield handle

    def executor(
        self, terms: LeaseTerms, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> AbstractAsyncContextManager[ExecutorHandle]:
        return self._executor(terms, clock_ms)


class ReplaceableStore(StoreWrapper):
    """A store that can tell its executors that they are lost, fenced or not."""

    def __init__(self, inner: TaskStore | None = None) -> None:
        super().__init__(inner)
        self.handles: list[ExecutorHandle] = []

    @asynccontextmanager
    async def _executor(self, *terms: Any) -> AsyncGenerator[ExecutorHandle, None]:
        async with self.inner.executor(*terms) as handle:
            self.handles.append(handle)
            yield handle

    def executor(
        self, terms: LeaseTerms, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> AbstractAsyncContextManager[ExecutorHandle]:
        return self._executor(terms, clock_ms)


async def contents(store: TaskStore) -> dict[str, Any]:
    """Return everything that can be seen of a store: records, journals, output, notices."""
    seen: dict[str, Any] = {}
    for owner in await store.owners():
        page = await store.list_owner(owner)
        assert page.next_after is None
        seen[f"notices of {owner}"] = await store.notices(owner)
        for record in page.records:
            log = await store.read_output(record.task_id, offset=0, limit=1 << 20)
            seen[record.task_id] = record, await store.history(record.task_id), log
    return seen


async def records(store: TaskStore, owner: str = OWNER) -> list[TaskRecord]:
    """Return the owner's records in order of creation."""
    return list((await store.list_owner(owner)).records)


async def stored(store: TaskStore, task_id: str) -> TaskRecord:
    """Return the record of a task that is there."""
    record = await store.load(task_id)
    assert record is not None
    return record


async def ended(
    manager: BackgroundTaskManager, summary: TaskSummary, owner: str = OWNER
) -> TaskSummary:
    """Return how a task stands once it is not running; fail after an hour of virtual time."""
    with trio.fail_after(3600):
        return await manager.wait(owner, summary.task_id)


def assert_idle(manager: BackgroundTaskManager) -> None:
    """Nothing is left behind: no slot in whatever state, no waiter, no subscriber."""
    statistics = manager.statistics()
    left = {
        name: getattr(statistics, name)
        for name in (
            *("starting", "queued", "background", "foreground", "unsaved"),
            *("waiters", "subscribers"),
        )
    }
    assert not any(left.values()), left
    assert "0 live tasks" in repr(manager)


async def assert_all_live(store: TaskStore, manager: BackgroundTaskManager) -> None:
    """Every running record of the manager's executor has a slot."""
    live = {summary.task_id for owner in await store.owners() for summary in manager.live(owner)}
    executor_id = manager.statistics().executor_id
    for owner in await store.owners():
        for record in (await store.list_owner(owner, status=TaskStatus.RUNNING)).records:
            assert record.executor_id != executor_id or record.task_id in live, record


# ---- a cancel at every checkpoint ----------------------------------------------------------------


class _AtStep(trio.abc.Instrument):
    """Cancels a scope while ``task`` waits at its ``k``-th checkpoint from now on."""

    def __init__(self, task: trio.lowlevel.Task, k: int, scope: trio.CancelScope) -> None:
        self._task = task
        self._left = k
        self._scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


@contextmanager
def cancel_at(k: int) -> Generator[trio.CancelScope, None, None]:
    """Cancel the block at its ``k``-th checkpoint; ``cancel_called`` tells if there was one."""
    with trio.CancelScope() as scope:
        instrument = _AtStep(trio.lowlevel.current_task(), k, scope)
        trio.lowlevel.add_instrument(instrument)
        try:
            yield scope
        finally:
            trio.lowlevel.remove_instrument(instrument)


@attrs.define
class Tried(Generic[T]):
    """What became of one call that was cancelled somewhere."""

    k: int
    cancelled: bool
    value: T | None = None


async def cancelled_at(k: int, afn: Callable[[], Awaitable[T]]) -> Tried[T] | None:
    """Make a call and cancel it at its ``k``-th checkpoint; None: it has fewer."""
    with cancel_at(k) as scope:
        value = await afn()
        return Tried(k, cancelled=False, value=value) if scope.cancel_called else None
    return Tried(k, cancelled=True)


class Wakeups(trio.abc.Instrument):
    """Counts how often the loop woke up to run something."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        now = trio.current_time()
        if not self.times or self.times[-1] != now:
            self.times.append(now)
