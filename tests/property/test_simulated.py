"""`SimulatedExecutor` is a machine: it crashes without a goodbye, sleeps past its lease, wakes up."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.support import OWNER, Gate, forever, request, stored
from trio_bgtasks import (
    MemoryTaskStore,
    Success,
    TaskResult,
    TaskStatus,
    TaskStoreError,
)
from trio_bgtasks.testing import SimulatedExecutor


async def test_a_crash_says_no_goodbye(autojump_clock: trio.testing.MockClock) -> None:
    """Its task is running until its lease has run out and somebody looks; then it is resumed."""
    store = MemoryTaskStore()
    async with trio.open_nursery() as nursery:
        one = await SimulatedExecutor.open(nursery, store, name="one")
        two = await SimulatedExecutor.open(nursery, store, name="two")
        await one.manager.start(request(task_id="t", supports_resume=True), forever)
        one.crash()
        await trio.sleep(15)
        assert (one.state, one.is_gone) == ("crashed", True)
        assert (await stored(store, "t")).status is TaskStatus.RUNNING
        await trio.sleep(30)
        assert (await stored(store, "t")).status is TaskStatus.STOPPED
        again = await one.restart()
        assert again.executor_ids.isdisjoint(one.executor_ids)
        resumed = request(task_id="t", supports_resume=True, resume_attempt=1)
        await again.manager.start(resumed, forever)
        for machine in (again, two):
            await machine.shut_down()
        assert again.state == "closed"
    assert (await stored(store, "t")).status is TaskStatus.STOPPED


async def test_a_machine_closes_until_its_bodies_have_ended(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its state says so."""

    async def tidies_up(*_: object) -> TaskResult:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        machine = await SimulatedExecutor.open(nursery, MemoryTaskStore())
        await machine.manager.start(request(), tidies_up)
        nursery.start_soon(machine.shut_down)
        await trio.testing.wait_all_tasks_blocked()
        assert machine.state == "closing"
        await trio.sleep(2)
        assert machine.state == "closed"


async def test_a_short_sleep_changes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """Who wakes up within the lease, or before anybody looked, goes on; its end then counts."""
    store, gate = MemoryTaskStore(), Gate(Success("done"))
    async with trio.open_nursery() as nursery:
        machine = await SimulatedExecutor.open(nursery, store)
        await machine.manager.start(request(task_id="t"), gate)
        machine.stall()
        gate.opened.set()
        await trio.sleep(20)
        assert (await stored(store, "t")).status is TaskStatus.RUNNING
        machine.wake()
        await trio.sleep(10)
        assert (await stored(store, "t")).status is TaskStatus.COMPLETED
        await machine.shut_down()


async def test_who_sleeps_past_the_lease_is_too_late(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Others take its task over; what it wanted to write is refused; it goes on as another one."""
    store, gate = MemoryTaskStore(), Gate(Success("late"))
    async with trio.open_nursery() as nursery:
        sleeper = await SimulatedExecutor.open(nursery, store, name="sleeper")
        other = await SimulatedExecutor.open(nursery, store, name="other")
        await sleeper.manager.start(request(task_id="t", supports_resume=True), gate)
        sleeper.stall()
        gate.opened.set()
        await other.manager.wait(OWNER, "t")
        resumed = request(task_id="t", supports_resume=True, resume_attempt=1)
        await other.manager.start(resumed, forever)
        sleeper.wake()
        await trio.sleep(10)
        record = await stored(store, "t")
        assert (record.attempt, record.status) == (2, TaskStatus.RUNNING)
        assert len(sleeper.executor_ids) == 2
        await sleeper.manager.run(request(task_id="u"), Gate(opened=gate.opened))
        await sleeper.shut_down()
        await other.shut_down()


async def test_a_broken_link_is_this_machines_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What its store lost is named when it closes; the others never had a fault."""
    store = MemoryTaskStore()
    async with trio.open_nursery() as nursery:
        one = await SimulatedExecutor.open(nursery, store)
        two = await SimulatedExecutor.open(nursery, store)
        await one.manager.start(request(task_id="t"), forever)
        one.store.break_down("apply")
        await two.manager.run(request(task_id="u"), Gate(opened=_open()))
        with pytest.raises(TaskStoreError, match="closed with 1 ends not stored: t"):
            await one.shut_down()
        await two.shut_down()


async def test_what_cannot_be(autojump_clock: trio.testing.MockClock) -> None:
    """An open machine is not restarted, one that sleeps already is not sent to sleep again."""
    async with trio.open_nursery() as nursery:
        machine = await SimulatedExecutor.open(nursery, MemoryTaskStore())
        with pytest.raises(RuntimeError, match="machine is open: shut it down"):
            await machine.restart()
        machine.stall()
        with pytest.raises(RuntimeError, match="machine is stalled"):
            machine.stall()
        assert repr(machine) == "<SimulatedExecutor machine stalled>"
        await machine.shut_down()


def _open() -> trio.Event:
    event = trio.Event()
    event.set()
    return event
