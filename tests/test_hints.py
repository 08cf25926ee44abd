"""Wake-ups: level-triggered for waiters, coalesced and bounded for subscribers."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.support import OTHER, OWNER, Gate, done, forever, opened, request
from trio_bgtasks import MemoryTaskStore, open_task_manager
from trio_bgtasks._hints import Hints, Subscription


async def received(subscription: Subscription) -> list[str]:
    """Return every hint that is there without waiting."""
    found: list[str] = []
    with trio.move_on_after(0.001):
        while True:
            found.append(await subscription.receive())
    return found


async def test_a_subscriber_hears_of_its_owners_tasks(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Of starts, cancels and ends, of this owner only; nothing waits for a slow subscriber."""
    async with open_task_manager() as manager, manager.subscribe(OWNER) as hints:
        assert manager.statistics().subscribers == 1
        await manager.start(request(task_id="a"), forever)
        assert await received(hints) == ["a"]
        await manager.start(request(OTHER, task_id="theirs"), done)
        await manager.cancel(OWNER, "a")
        assert set(await received(hints)) == {"a"}  # the mark, and then the end
        await manager.run(request(task_id="b"), done)
        await manager.gc_terminal(OWNER)
        assert set(await received(hints)) == {"a", "b"}
        assert await received(hints) == []


async def test_an_orphan_of_another_machine_is_a_hint(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The sweep that ended a task tells its owner's subscribers here."""
    store = MemoryTaskStore()
    async with (
        opened(store) as manager,
        manager.subscribe(OWNER) as hints,
        opened(store, sweep_s=1e6) as other,
    ):
        await other.start(request(task_id="t"), forever)
        store.crash(other.statistics().executor_id)
        await trio.sleep(60)
        assert await received(hints) == ["t"]
        assert manager.statistics().orphans == 1


async def test_a_hint_is_coalesced_and_bounded(autojump_clock: trio.testing.MockClock) -> None:
    """A task is there once, however often it changed; of too many the oldest hint goes."""
    hints = Hints()
    subscription = hints.subscribe(OWNER)
    for n in range(2000):
        hints.changed(OWNER, f"t{n}")
        hints.changed(OWNER, f"t{n}")
    assert await received(subscription) == [f"t{n}" for n in range(2000 - 1024, 2000)]


async def test_several_may_receive_from_one_subscription(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each hint goes to one of them, and none of them is forgotten."""
    hints, got = Hints(), list[str]()
    subscription = hints.subscribe(OWNER)

    async def receive() -> None:
        got.append(await subscription.receive())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        for n in range(3):
            hints.changed(OWNER, f"t{n}")
            await trio.testing.wait_all_tasks_blocked()
    assert sorted(got) == ["t0", "t1", "t2"]


async def test_a_subscription_ends_when_the_manager_closes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """First the hints that are left, then the end of the channel; the same for a late subscriber."""
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            async with manager.subscribe(OWNER) as hints:
                assert {hint async for hint in hints} == {"t"}

        async with open_task_manager() as manager:
            nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            await manager.start(request(task_id="t"), forever)
        async with manager.subscribe(OWNER) as hints:
            with pytest.raises(trio.EndOfChannel):
                await hints.receive()


async def test_a_closed_subscription(autojump_clock: trio.testing.MockClock) -> None:
    """Who waits on it when it is closed is told; closing it again does nothing."""
    hints = Hints()
    subscription = hints.subscribe(OWNER)
    other = hints.subscribe(OWNER)

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await subscription.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await subscription.aclose()
    subscription.close()
    assert hints.subscribers == 1
    other.close()
    assert hints.subscribers == 0
    hints.changed(OWNER, "t")


async def test_every_waiter_is_woken(autojump_clock: trio.testing.MockClock) -> None:
    """Any number may wait for one task, and come and go."""
    async with open_task_manager() as manager:
        gate = Gate()
        await manager.start(request(task_id="t"), gate)
        got: list[str] = []

        async def wait() -> None:
            got.append((await manager.wait(OWNER, "t")).status)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
            with trio.move_on_after(1):
                await manager.wait(OWNER, "t")
            assert manager.statistics().waiters == 3
            gate.opened.set()
        assert got == ["completed"] * 3
        assert manager.statistics().waiters == 0
