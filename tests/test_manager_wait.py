"""Waiting: for the end of a task, for the end of all of an owner's; never for oneself."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.support import (
    OTHER,
    OWNER,
    FaultyStore,
    Gate,
    ReplaceableStore,
    StallingStore,
    Stubborn,
    done,
    ended,
    forever,
    grow,
    opened,
    request,
    stop,
    stored,
)
from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    ManagerClosed,
    MemoryTaskStore,
    ParentCancelled,
    Registered,
    Stopped,
    Success,
    TaskResult,
    TaskStatus,
    UnknownTask,
    open_task_manager,
)

ORPHAN = "No live executor found; marked stopped"

# ---- waiting -------------------------------------------------------------------------------------


async def test_wait_is_level_triggered(autojump_clock: trio.testing.MockClock) -> None:
    """What has ended, or is stopped, is answered at once, without waiting for a wake-up."""
    async with open_task_manager() as manager:
        for body, status in ((done, "completed"), (stop, "stopped")):
            summary = await ended(manager, await manager.start(request(), body))
            began = trio.current_time()
            assert (await manager.wait(OWNER, summary.task_id)).status == status
            assert trio.current_time() == began


async def test_wait_returns_the_end_of_the_attempt_it_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A resume that follows at once does not make it miss the end before."""
    async with open_task_manager() as manager, trio.open_nursery() as nursery:
        seen: list[Any] = []

        async def wait() -> None:
            seen.append((await manager.wait(OWNER, "t")).status)

        gate = Gate(Stopped())
        await manager.start(request(task_id="t", supports_resume=True), gate)
        nursery.start_soon(wait)
        await gate.entered.wait()
        gate.opened.set()
        while manager.live(OWNER):  # noqa: ASYNC110 - not to be woken is the point
            await trio.lowlevel.checkpoint()
        await manager.start(request(task_id="t", resume_attempt=1), forever)
        await trio.testing.wait_all_tasks_blocked()
        assert seen == [TaskStatus.STOPPED]


async def test_wait_needs_no_read_for_what_ends_here(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What was stored last is told to who waits, also while the store cannot be read."""
    store, gate, seen = FaultyStore(), Gate(), list[Any]()
    async with open_task_manager(store) as manager, trio.open_nursery() as nursery:

        async def wait() -> None:
            seen.append((await manager.wait(OWNER, "t")).result)

        await manager.start(request(task_id="t"), gate)
        nursery.start_soon(wait)
        await gate.entered.wait()
        store.break_down("load")
        gate.opened.set()
        await trio.testing.wait_all_tasks_blocked()
        assert seen == ["done"]
        assert store.made["load"] == 0


async def test_wait_for_what_is_collected(autojump_clock: trio.testing.MockClock) -> None:
    """A task that is gone when it is looked for is unknown."""
    store = MemoryTaskStore()
    async with opened(store) as here, opened(store) as there:
        gate, raised = Gate(), list[str]()
        await there.start(request(task_id="t"), gate)

        async def wait() -> None:
            with pytest.raises(UnknownTask, match="Unknown task_id: t"):
                await here.wait(OWNER, "t")
            raised.append("t")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await gate.entered.wait()
            gate.opened.set()
            await there.wait(OWNER, "t")
            assert await there.gc_terminal(OWNER) == 1
        assert raised == ["t"]


async def test_wait_for_a_start_that_was_refused(autojump_clock: trio.testing.MockClock) -> None:
    """Who waited for a start that came to nothing is told that there is no such task."""
    store = FaultyStore()
    async with open_task_manager(store) as manager, trio.open_nursery() as nursery:
        store.break_down("apply", fault="slow", last=1)
        asked = request(task_id="t", parent_task_id="p")
        await store.inner.apply(
            "p", Registered(1, manager.statistics().executor_id, OWNER, "x", "")
        )

        async def start() -> None:
            with pytest.raises(ParentCancelled):
                await manager.start(asked, done)

        nursery.start_soon(start)
        await trio.testing.wait_all_tasks_blocked()
        await manager.cancel(OWNER, "p")
        with pytest.raises(UnknownTask):
            await manager.wait(OWNER, "t")


async def test_wait_ends_with_the_manager(autojump_clock: trio.testing.MockClock) -> None:
    """For an own task it is answered as that was stopped; for a foreign one `ManagerClosed`."""
    store, seen = MemoryTaskStore(), list[Any]()

    async def wait(manager: BackgroundTaskManager, task_id: str) -> None:
        try:
            seen.append((await manager.wait(OWNER, task_id)).status)
        except ManagerClosed as error:
            seen.append(str(error))

    async with opened(store) as there, trio.open_nursery() as nursery:
        await there.start(request(task_id="far"), forever)
        async with opened(store) as here:
            await here.start(request(task_id="own"), forever)
            nursery.start_soon(wait, here, "own")  # noqa: ASYNC111
            nursery.start_soon(wait, here, "far")  # noqa: ASYNC111
            await trio.testing.wait_all_tasks_blocked()
            assert here.statistics().waiters == 2
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(map(str, seen)) == ["stopped", "the task manager is closed"]
        with pytest.raises(ManagerClosed):
            await here.wait(OWNER, "far")
        assert (await here.wait(OWNER, "own")).status is TaskStatus.STOPPED


async def test_wait_waits_for_the_store(autojump_clock: trio.testing.MockClock) -> None:
    """A body's end that is not stored yet is no end."""
    store = FaultyStore()
    async with open_task_manager(store) as manager:
        await manager.start(request(task_id="t"), done)
        store.break_down("apply")
        with trio.move_on_after(100) as scope:
            await manager.wait(OWNER, "t")
        assert scope.cancelled_caught
        store.repair()
        assert (await manager.wait(OWNER, "t")).result == "done"


async def test_wait_does_not_wait_for_a_body_that_lost_its_lease(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """In the store another machine has ended the task: so ``get`` says, and so does ``wait``."""
    store, body, seen = StallingStore(), Stubborn(), list[Any]()
    async with opened(store.inner) as other, opened(store, poll_s=2) as manager:

        async def wait() -> None:
            seen.append(await manager.wait(OWNER, "t"))

        await manager.start(request(task_id="t"), body)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await other.wait(OWNER, "t")
            nursery.start_soon(wait)
            await trio.sleep(2)
            running = manager.statistics().background
            body.opened.set()
            assert running == 1
            assert [(summary.status, summary.error) for summary in seen] == [
                ("stopped", ORPHAN)
            ] * 2


async def test_wait_asks_the_store_for_what_is_live_only_when_the_lease_is_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Before, it is woken; afterwards a store that cannot be read is asked again."""
    inner, body = ReplaceableStore(), Stubborn(Success("done"))
    store, seen = FaultyStore(inner), list[Any]()
    async with opened(store, poll_s=2) as manager, trio.open_nursery() as nursery:

        async def wait() -> None:
            seen.append((await manager.wait(OWNER, "t")).result)

        await manager.start(request(task_id="t"), body)
        store.break_down("load")
        nursery.start_soon(wait)
        await trio.sleep(100)
        assert store.made["load"] == 0
        inner.handles[0].lost.set()
        await trio.sleep(19)
        asked = store.made["load"]
        store.repair()
        body.opened.set()
        assert asked == 10
        await trio.testing.wait_all_tasks_blocked()
        assert seen == ["done"]


# ---- close_owner ---------------------------------------------------------------------------------


async def test_close_owner_ends_the_owners_tasks_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """When it returns their ends are stored as stopped; the owner may start again. C19."""
    store = MemoryTaskStore()
    async with open_task_manager(store) as manager:
        await manager.start(request(task_id="a"), forever)
        await manager.start(request(OTHER, task_id="b"), forever)
        await manager.close_owner(OWNER)
        assert (await stored(store, "a")).error == "The owner thread was closed"
        assert (await stored(store, "b")).status is TaskStatus.RUNNING
        await manager.close_owner("nobody")
        await manager.start(request(), forever)


async def test_close_owner_meets_a_start_that_is_under_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The start is stored, ends as stopped, and never runs."""
    store, gate = FaultyStore(), Gate()
    async with opened(store) as manager, trio.open_nursery() as nursery:
        store.break_down("apply", fault="slow", last=1)
        nursery.start_soon(manager.start, request(task_id="t"), gate)
        await trio.testing.wait_all_tasks_blocked()
        await manager.close_owner(OWNER)
        assert (await stored(store, "t")).status is TaskStatus.STOPPED
        assert not gate.runs


async def test_two_close_owners_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """One that gives up does not open the owner under the other."""
    body = Stubborn()
    async with open_task_manager() as manager, trio.open_nursery() as nursery:
        await manager.start(request(), body)
        await body.entered.wait()
        nursery.start_soon(manager.close_owner, OWNER)
        nursery.start_soon(manager.close_owner, OWNER)
        with trio.move_on_after(1):
            await manager.close_owner(OWNER)
        with pytest.raises(ManagerClosed):
            await manager.start(request(), done)
        assert await manager.has_running_tasks(OWNER)
        body.opened.set()
        await trio.testing.wait_all_tasks_blocked()
        await manager.start(request(), done)


async def test_no_task_waits_for_what_it_is_below(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its parent, and the parent's parent, may be waiting for it."""
    refused: list[str] = []

    async def body(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
        for task_id in ("middle", "top"):
            with trio.move_on_after(60):
                try:
                    await manager.wait(OWNER, task_id)
                except RuntimeError:
                    refused.append(task_id)
        return Success()

    async with open_task_manager() as manager:
        await grow(manager, "top", "middle<top")
        below = await manager.start(request(parent_task_id="middle"), body)
        await ended(manager, below)
    assert refused == ["middle", "top"]


async def test_what_would_wait_for_itself_is_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """``wait``, ``close_owner`` and the end of the manager, within a task they would wait for."""
    refused: list[str] = []
    stack = open_task_manager()
    async with open_task_manager() as other:
        manager = await stack.__aenter__()

        async def try_all(task_id: str) -> None:
            for call in (
                lambda: manager.wait(OWNER, task_id),
                lambda: manager.close_owner(OWNER),
                lambda: stack.__aexit__(None, None, None),
            ):
                with pytest.raises(RuntimeError) as caught:
                    await call()
                refused.append(str(caught.value))

        async def inner(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            await try_all("outer")
            return Success()

        async def elsewhere(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            await try_all("outer")
            return Success()

        async def outer(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            await try_all("outer")
            # In the foreground, told another parent; and through another manager's task.
            await manager.run(request(OTHER, parent_task_id="x"), inner)
            await other.run(request(), elsewhere)
            return Success()

        assert await manager.run(request(task_id="outer"), outer) == Success()
        texts = [
            "wait() would wait for the task that calls it",
            "close_owner() would wait for the task that calls it",
            "the task manager cannot end within one of its own tasks",
        ]
        assert refused == texts * 3
        assert not await stack.__aexit__(None, None, None)  # from outside it ends


async def test_a_child_does_not_wait_for_its_parent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """``wait`` for a parent is refused in a background child, too; a close of its owner is not."""
    async with open_task_manager() as manager:
        over = trio.Event()

        async def child(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            with pytest.raises(RuntimeError, match="would wait"):
                await manager.wait(OWNER, "parent")
            await manager.close_owner(OWNER)  # the parent does not need this child to end
            over.set()
            return Success("closed")

        async def grandchild(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            with pytest.raises(RuntimeError, match="would wait"):
                await manager.wait(OWNER, "parent")
            await manager.start(request(OTHER, task_id="child"), child)
            await trio.sleep_forever()
            raise AssertionError

        async def parent(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            await manager.start(request(OTHER), grandchild)
            await trio.sleep_forever()
            raise AssertionError

        await manager.start(request(task_id="parent"), parent)
        with trio.fail_after(10):
            await over.wait()
            assert (await manager.wait(OTHER, "child")).result == "closed"
            assert (await manager.wait(OWNER, "parent")).status is TaskStatus.STOPPED
