"""Every public coroutine, cancelled at its k-th checkpoint for every k: the promises hold."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from tests.support import (
    OTHER,
    OWNER,
    CheckpointingStore,
    Gate,
    assert_all_live,
    assert_idle,
    cancelled_at,
    contents,
    done,
    forever,
    opened,
    request,
    stop,
    stored,
)
from trio_bgtasks import (
    RUN_IN_BACKGROUND_PARAM,
    BackgroundCapable,
    BackgroundExecution,
    BackgroundTaskManager,
    MemoryTaskStore,
    QuestionDeclined,
    Refused,
    Subscription,
    Success,
    TaskReminder,
    TaskResult,
    TaskStatus,
    TaskStore,
    ToolCallContext,
    ToolResult,
    background_tool,
    task_tools,
)

CONTEXT = ToolCallContext(thread_id=OWNER)
STORES = {"memory": MemoryTaskStore, "checkpoints": CheckpointingStore}


@attrs.define(eq=False)
class World:
    """An owner with a task in every state; the notices of two ended ones wait."""

    manager: BackgroundTaskManager
    store: TaskStore
    gate: Gate = attrs.field(factory=Gate)

    @property
    def wrapped(self) -> BackgroundCapable:
        return BackgroundCapable(wrapped, self.manager)

    async def tool(self, name: str, **args: Any) -> ToolResult:
        """Call one of the tools for the model."""
        (tool,) = (t for t in task_tools(self.manager) if t.descriptor().id == name)
        return await tool.execute(args, CONTEXT)

    async def set_up(self) -> None:
        manager = self.manager
        await manager.start(request(task_id="stopped", supports_resume=True), stop)
        await manager.start(request(task_id="done", idempotency_key="key"), done)
        for task_id in ("stopped", "done"):
            await manager.wait(OWNER, task_id)
        await manager.start(request(task_id="running"), self.gate)
        await manager.start(request(task_id="asking"), asking)
        child = request(OTHER, task_id="child", parent_task_id="running")
        await manager.start(child, forever)
        await trio.testing.wait_all_tasks_blocked()


# What changes nothing, and what does.
READS: dict[str, Callable[[World], Awaitable[Any]]] = {
    "start with a used key": lambda w: w.manager.start(request(idempotency_key="key"), forever),
    "recall": lambda w: w.manager.recall(OWNER, "work", "key"),
    "get": lambda w: w.manager.get(OWNER, "running"),
    "record": lambda w: w.manager.record(OWNER, "stopped"),
    "list_tasks": lambda w: w.manager.list_tasks(OWNER),
    "has_running_tasks": lambda w: w.manager.has_running_tasks("nobody"),
    "output": lambda w: w.manager.output(OWNER, "done"),
    "history": lambda w: w.manager.history(OWNER, "done"),
    "wait": lambda w: w.manager.wait(OWNER, "done"),
    "find": lambda w: w.manager.find("child"),
    "owners": lambda w: w.manager.owners(),
    "task_status": lambda w: w.tool("task_status", task_id="running"),
    "task_status of all": lambda w: w.tool("task_status"),
    "task_output": lambda w: w.tool("task_output", task_id="done", wait_s=1),
}
WRITES: dict[str, Callable[[World], Awaitable[Any]]] = {
    "start": lambda w: w.manager.start(request(task_id="new"), forever),
    "start for a new owner": lambda w: w.manager.start(request("new", task_id="new"), forever),
    "resume": lambda w: w.manager.start(request(task_id="stopped", resume_attempt=1), forever),
    "spawn": lambda w: w.manager.spawn(OWNER, "work", "", for_ever),
    "run": lambda w: w.manager.run(request(task_id="new"), done),
    "cancel": lambda w: w.manager.cancel(OWNER, "running"),
    "cancel what is stopped": lambda w: w.manager.cancel(OWNER, "stopped"),
    "cancel_tree": lambda w: w.manager.cancel_tree(OWNER, "running"),
    "answer": lambda w: w.manager.answer(OWNER, "asking", "q1", value=True),
    "decline": lambda w: w.manager.decline(OWNER, "asking", "q1"),
    "close_owner": lambda w: w.manager.close_owner(OWNER),
    "notices": lambda w: look_at_notices(w.manager),
    "take_notices": lambda w: w.manager.take_notices(OWNER),
    "gc_terminal": lambda w: w.manager.gc_terminal(OWNER),
    "subscribe": lambda w: subscribe(w.manager),
    "task_cancel": lambda w: w.tool("task_cancel", task_id="running"),
    "execute": lambda w: w.wrapped.execute({RUN_IN_BACKGROUND_PARAM: True}, CONTEXT),
    "execute in the foreground": lambda w: w.wrapped.execute({}, CONTEXT),
    "render": lambda w: TaskReminder(w.manager).render(OWNER),
    "delivering": lambda w: deliver(w.manager),
}


async def asking(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
    """Ask, and go on for ever whatever the answer is."""
    with suppress(QuestionDeclined):
        await execution.ask("Sure?", {"type": "boolean"})
    await trio.sleep_forever()
    raise AssertionError


async def deliver(manager: BackgroundTaskManager) -> None:
    """Deliver the reminder, which takes a moment."""
    async with TaskReminder(manager).delivering(OWNER) as text:
        assert text is not None
        await trio.lowlevel.checkpoint()


@background_tool
async def wrapped() -> str:
    """Do it at once."""
    await trio.lowlevel.checkpoint()
    return "done"


async def for_ever(_: trio.CancelScope) -> TaskResult:
    """Be a body of ``spawn`` that never returns."""
    await trio.sleep_forever()
    raise AssertionError


async def subscribe(manager: BackgroundTaskManager) -> None:
    """Open a subscription, wait for a hint, close it."""
    async with manager.subscribe(OWNER) as hints:
        summary = await manager.start(request(), done)
        assert await hints.receive() == summary.task_id
        await hints.aclose()


async def look_at_notices(manager: BackgroundTaskManager) -> None:
    """Hold the notices for a moment."""
    async with manager.notices(OWNER) as summaries:
        assert [summary.task_id for summary in summaries] in (["stopped", "done"], [])
        await trio.lowlevel.checkpoint()


WAIT_FOR_ENDS = ("close_owner", "run", "subscribe", "execute in the foreground")


async def each_k(
    kind: str, call: Callable[[World], Awaitable[Any]]
) -> list[tuple[World, bool, dict[str, Any], dict[str, Any]]]:
    """Make the call in a new world for each k; check what holds for all; return what is special."""
    seen: list[tuple[World, bool, dict[str, Any], dict[str, Any]]] = []
    k = 0
    while True:
        k += 1
        store = STORES[kind]()
        inner = store.inner if isinstance(store, CheckpointingStore) else store
        async with opened(store) as manager:
            world = World(manager, inner)
            await world.set_up()
            before = await contents(inner)
            tried = await cancelled_at(k, lambda world=world: call(world))  # type: ignore[misc]
            if tried is None:
                assert k > 1, "a public call checkpoints"
                break
            after = await contents(inner)
            if k == 1:
                assert tried.cancelled
                assert after == before, "cancelled at the first checkpoint: not applied"
                assert len(manager.live(OWNER)) == 2
            await trio.testing.wait_all_tasks_blocked()
            await assert_all_live(inner, manager)
            statistics = manager.statistics()
            assert (statistics.starting, statistics.waiters, statistics.subscribers) == (0, 0, 0)
            if after == before:
                await call(world)  # the next call works
            else:
                with suppress(Refused):  # the cancelled one was applied after all
                    await call(world)
            await trio.testing.wait_all_tasks_blocked()
            for owner in (OWNER, OTHER, "new"):
                await manager.close_owner(owner)
            assert_idle(manager)
            seen.append((world, tried.cancelled, before, after))
        for owner in await inner.owners():
            assert not (await inner.list_owner(owner, status=TaskStatus.RUNNING)).records
    return seen


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("name", READS)
async def test_reading(name: str, kind: str, autojump_clock: trio.testing.MockClock) -> None:
    """A call that only reads, cancelled anywhere, leaves everything as it was."""
    for _, _, before, after in await each_k(kind, READS[name]):
        assert after == before


@pytest.mark.parametrize("name", WRITES)
async def test_writing_to_memory(name: str, autojump_clock: trio.testing.MockClock) -> None:
    """A call cancelled on the memory store was not applied, unless it waited for ends already."""
    for _, cancelled, before, after in await each_k("memory", WRITES[name]):
        if cancelled and name not in WAIT_FOR_ENDS:
            assert after == before


STARTS = ["start", "start for a new owner", "resume", "spawn", "execute"]


@pytest.mark.parametrize("name", STARTS)
async def test_a_cancelled_start_did_not_happen(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    """On a store that can be cancelled before and after: a start that was cancelled is not stored.

    One that was stored is answered, and runs. C4.
    """
    ways: set[bool] = set()
    for _, cancelled, before, after in await each_k("checkpoints", WRITES[name]):
        assert (after == before) is cancelled
        ways.add(cancelled)
    assert ways == {True, False}


@pytest.mark.parametrize(
    "name",
    [
        "cancel",
        "cancel what is stopped",
        "cancel_tree",
        "task_cancel",
        "answer",
        "decline",
        "close_owner",
        "gc_terminal",
    ],
)
async def test_writing_to_a_store_that_can_be_cancelled(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    """A call that was cancelled anywhere can be made again; nothing runs unwatched."""
    assert len(await each_k("checkpoints", WRITES[name])) >= 2


async def test_a_cancelled_run(autojump_clock: trio.testing.MockClock) -> None:
    """A foreground run cancelled anywhere is not stored, or ends and is announced to its owner."""
    ways: set[str] = set()
    k = 0
    while True:
        k += 1
        store = CheckpointingStore()
        async with opened(store) as manager:
            tried = await cancelled_at(k, lambda: manager.run(request(task_id="t"), done))
            if tried is None:
                break
            record = await store.inner.load("t")
            notices = await store.inner.notices(OWNER)
            if not tried.cancelled:
                assert (tried.value, notices) == (Success("done"), [])
            elif record is None:
                ways.add("not stored")
            else:
                ways.add(record.status)
                assert [notice.summary for notice in notices] == [record.summary()]
            assert_idle(manager)
    assert ways == {"not stored", "stopped"}


@pytest.mark.parametrize("name", ["notices", "take_notices", "render", "delivering"])
async def test_notices_are_taken_or_come_again(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Notices of a cancelled call come again; those that a call returned do not."""
    ways: set[bool] = set()
    for world, cancelled, before, after in await each_k("checkpoints", WRITES[name]):
        del world
        key = f"notices of {OWNER}"
        assert after[key] == (before[key] if cancelled else [])
        ways.add(cancelled)
    assert True in ways


async def test_waiting_for_what_runs(autojump_clock: trio.testing.MockClock) -> None:
    """A wait that is cancelled leaves no waiter behind, and disturbs no other."""
    for k in range(1, 20):
        store = CheckpointingStore()
        tried: Any = None
        async with opened(store) as manager, trio.open_nursery() as nursery:
            gate = Gate()
            await manager.start(request(task_id="t"), gate)
            await gate.entered.wait()
            nursery.start_soon(manager.wait, OWNER, "t")
            await trio.testing.wait_all_tasks_blocked()
            assert manager.statistics().waiters == 1
            gate.opened.set()
            tried = await cancelled_at(k, lambda: manager.wait(OWNER, "t"))
            with trio.fail_after(1):
                assert (await manager.wait(OWNER, "t")).status is TaskStatus.COMPLETED
            await trio.testing.wait_all_tasks_blocked()
            assert manager.statistics().waiters == 0
        if tried is None:
            return
    raise AssertionError


async def test_opening_and_closing(autojump_clock: trio.testing.MockClock) -> None:
    """A manager whose user is cancelled anywhere, while it opens or closes, too, ends in order."""
    k = 0
    ran = False
    while True:
        k += 1
        store = CheckpointingStore()

        async def use() -> None:
            async with opened(store) as manager:  # noqa: B023
                await manager.start(request(task_id="t"), forever)
                nonlocal ran
                ran = True
                await trio.lowlevel.checkpoint()

        tasks = trio.lowlevel.current_statistics().tasks_living
        if await cancelled_at(k, use) is None:
            break
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        record = await store.inner.load("t")
        assert record is None or record.status is TaskStatus.STOPPED
        async with opened(store) as manager:
            assert manager.statistics().orphans == 0
    assert ran
    assert k > 5


EXECUTION: dict[str, Callable[[BackgroundExecution], Awaitable[Any]]] = {
    "save_checkpoint": lambda e: e.save_checkpoint({"n": 1}),
    "write_output": lambda e: e.write_output("said"),
    "report_progress": lambda e: e.report_progress(1),
}


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("name", EXECUTION)
async def test_execution(name: str, kind: str, autojump_clock: trio.testing.MockClock) -> None:
    """A body's own calls, cancelled anywhere: a checkpoint is not stored, output always is."""
    k, finished = 0, False
    while not finished:
        k += 1
        store = STORES[kind]()
        cancelled = False

        async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
            nonlocal finished, cancelled
            tried = await cancelled_at(k, lambda: EXECUTION[name](execution))  # noqa: B023
            finished, cancelled = tried is None, tried is not None and tried.cancelled
            return Success()

        async with opened(store) as manager:
            await manager.run(request(task_id="t"), body)
            record = await stored(store, "t")
            log = await manager.output(OWNER, "t")
        assert k > 1 or cancelled
        if name == "save_checkpoint" and k == 1:
            assert record.checkpoint is None
        if name == "write_output":
            assert log.text == "said"
        if name == "report_progress":
            assert record.progress is not None
            assert record.progress.done == 1


def test_every_public_coroutine_is_here() -> None:
    """What a host can await, or enter, is in a table above."""
    kinds = (BackgroundTaskManager, BackgroundCapable, BackgroundExecution, TaskReminder)
    asked = {"task_status", "task_output", "task_cancel"}  # what `task_tools` returns
    for kind in (*kinds, Subscription):
        for name, function in inspect.getmembers(kind, inspect.isfunction):
            inner = inspect.unwrap(function)
            if not name.startswith("_") and (
                inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)
            ):
                asked.add(name)
    there = {name.split()[0] for name in (*READS, *WRITES, *EXECUTION)}
    there.add("ask")  # in ``tests/test_asking.py``
    within_subscribe = {"receive", "aclose"}
    assert asked == (there | within_subscribe) - {"resume"}
