"""How many may run at once: per owner, in all, in turn; and who never waits."""

from __future__ import annotations

import random
from collections import deque

import attrs
import pytest
import trio
import trio.testing

from tests.support import (
    OTHER,
    OWNER,
    FaultyStore,
    Gate,
    assert_idle,
    done,
    ended,
    forever,
    grow,
    opened,
    request,
    stored,
)
from trio_bgtasks import (
    BackgroundExecution,
    MemoryTaskStore,
    Success,
    TaskResult,
    TaskStatus,
)
from trio_bgtasks._places import Places, Ticket


@attrs.define(eq=False)
class Busy:
    """Bodies that run for a second each; how many did at once, and in which order."""

    order: list[str] = attrs.field(factory=list[str])
    running: dict[str, int] = attrs.field(factory=dict[str, int])
    most: int = 0
    most_of_one: int = 0

    async def __call__(self, execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        owner = execution.owner_thread_id
        self.order.append(execution.task_id)
        self.running[owner] = self.running.get(owner, 0) + 1
        self.most = max(self.most, sum(self.running.values()))
        self.most_of_one = max(self.most_of_one, self.running[owner])
        await trio.sleep(1)
        self.running[owner] -= 1
        return Success()


@pytest.mark.parametrize(("per_owner", "total"), [(2, None), (None, 3), (2, 3)])
async def test_bounds(
    per_owner: int | None, total: int | None, autojump_clock: trio.testing.MockClock
) -> None:
    """Never more than allowed run at once, per owner and in all; all run in the end."""
    busy = Busy()
    async with opened(attempts_per_owner=per_owner, attempts_total=total) as manager:
        for n in range(12):
            await manager.start(request(f"owner {n % 2}", task_id=f"t{n}"), busy)
        began = trio.current_time()
        for n in range(12):
            await manager.wait(f"owner {n % 2}", f"t{n}")
        # Both bounds together may leave an owner alone with its own one at the end.
        assert (
            0
            <= trio.current_time() - began - 12 / (total or 4)
            <= (1 if per_owner and total else 0)
        )
        assert_idle(manager)
    assert busy.most == (total or 4)
    if per_owner is not None:
        assert busy.most_of_one == per_owner


async def test_owners_take_turns(autojump_clock: trio.testing.MockClock) -> None:
    """An owner with a long queue does not keep another one waiting for all of it."""
    busy = Busy()
    async with opened(attempts_total=1) as manager:
        for n in range(10):
            await manager.start(request("greedy", task_id=f"g{n}"), busy)
        await manager.start(request("modest", task_id="m0"), busy)
        await manager.start(request("modest", task_id="m1"), busy)
        await trio.sleep(20)
    assert busy.order.index("m0") <= 2
    assert busy.order.index("m1") <= 4


async def test_a_queued_task_is_running_and_says_so(autojump_clock: trio.testing.MockClock) -> None:
    """It is ``running`` with ``queued: true`` in its summary; its deadline starts with its body."""
    async with opened(attempts_per_owner=1) as manager:
        gate, second = Gate(), Gate()
        await manager.start(request(task_id="a"), gate)
        summary = await manager.start(request(task_id="b", deadline_s=10), second)
        assert (summary.status, summary.queued) == (TaskStatus.RUNNING, True)
        assert summary.to_json()["queued"] is True
        for seen in (
            await manager.get(OWNER, "b"),
            (await manager.list_tasks(OWNER))[1],
            manager.live(OWNER)[1],
        ):
            assert seen is not None
            assert seen.queued
        assert "queued" not in manager.live(OWNER)[0].to_json()
        assert (manager.statistics().queued, manager.statistics().background) == (1, 1)
        await trio.sleep(100)
        gate.opened.set()
        await second.entered.wait()
        assert not manager.live(OWNER)[0].queued
        began = trio.current_time()
        summary = await manager.wait(OWNER, "b")
        assert trio.current_time() - began == 10
        assert summary.error == "The deadline of 10 s passed"


@pytest.mark.parametrize("how", ["cancel", "tree", "owner close", "shutdown"])
async def test_a_queued_task_ends_without_running(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Cancel, close and shutdown end it at once; its body never runs, its place is not taken."""
    store, gate = MemoryTaskStore(), Gate()
    async with opened(store, attempts_total=1) as manager:
        await manager.start(request(OTHER, task_id="holder"), forever)
        await manager.start(request(task_id="t"), gate)
        match how:
            case "cancel":
                await manager.cancel(OWNER, "t")
            case "tree":
                await manager.cancel_tree(OWNER, "t")
            case "owner close":
                await manager.close_owner(OWNER)
            case _:
                pass
        if how != "shutdown":
            await manager.wait(OWNER, "t")
            await manager.cancel(OTHER, "holder")
            await ended(manager, await manager.start(request(), done))
    record = await stored(store, "t")
    expected = TaskStatus.CANCELLED if how in ("cancel", "tree") else TaskStatus.STOPPED
    assert record.status is expected
    assert not gate.runs
    assert "t" in [notice.summary.task_id for notice in await store.notices(OWNER)]


async def test_who_holds_a_place_never_waits_for_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A child of a live task, at any depth, told or ambient, of whatever owner, runs at once."""
    async with opened(attempts_total=1) as manager:

        async def leaf(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            await trio.lowlevel.checkpoint()
            return Success("leaf")

        async def middle(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            summary = await manager.start(request(OTHER), leaf)
            assert not summary.queued
            await manager.wait(OTHER, summary.task_id)
            # Below a parent that ended, or never was, but started in here all the same.
            for parent in (summary.task_id, "never was"):
                below = await manager.start(request(parent_task_id=parent), leaf)
                assert not below.queued
                await manager.wait(OWNER, below.task_id)
            return Success("middle")

        async def top(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            summary = await manager.start(request(), middle)
            assert not summary.queued
            return Success((await manager.wait(OWNER, summary.task_id)).result)

        with trio.fail_after(10):
            summary = await ended(manager, await manager.start(request(task_id="top"), top))
        assert summary.result == "middle"
        gate = Gate()
        await manager.start(request(task_id="live"), gate)
        told = await manager.start(request(parent_task_id="live"), done)
        assert not told.queued
        assert (await manager.start(request(parent_task_id="top"), done)).queued
        gate.opened.set()


async def test_a_resumed_child_of_a_live_task_does_not_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its parent is in the record, not in the request."""
    async with opened(attempts_total=1) as manager:
        gate = Gate()
        await manager.start(request(OTHER, task_id="parent"), gate)
        child = request(task_id="child", parent_task_id="parent", supports_resume=True)
        await manager.start(child, forever)
        await manager.close_owner(OWNER)
        summary = await manager.start(request(task_id="child", resume_attempt=1), forever)
        assert not summary.queued


async def test_a_grandchild_of_a_live_task_does_not_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Also where the task between them has ended: what holds the place may wait for it."""
    async with opened(attempts_total=1) as manager:
        gates = await grow(manager, "top", "between<top", "leaf<between")
        gates["between"].opened.set()
        await manager.wait(OWNER, "between")
        told = request(task_id="told", parent_task_id="between")
        assert not (await manager.start(told, done)).queued


async def test_a_parent_that_cannot_be_read_is_no_ancestor(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The start is stored all the same; it waits for a place like any other."""
    store = FaultyStore()
    async with opened(store, attempts_total=1) as manager:
        gates = await grow(manager, "top", "between<top")
        gates["between"].opened.set()
        await manager.wait(OWNER, "between")
        for fault in ("before", "hang"):
            store.break_down("load", fault=fault)
            assert (await manager.start(request(parent_task_id="between"), done)).queued


async def test_a_caller_that_is_gone_meanwhile_takes_nothing_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """While ancestors are looked up, the start is stored already: it runs."""
    store = FaultyStore()
    async with opened(store, attempts_total=1) as manager:
        await ended(manager, await manager.start(request(task_id="top"), done))
        gate = Gate()
        store.break_down("load", fault="hang")
        with trio.move_on_after(1):
            await manager.start(request(task_id="t", parent_task_id="top"), gate)
        store.repair()
        gate.opened.set()
        assert (await manager.wait(OWNER, "t")).result == "done"


async def test_ancestors_are_looked_up_only_where_places_are_bounded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Without a bound nothing depends on them: the store is not asked."""
    store = FaultyStore()
    async with opened(store) as manager:
        await ended(manager, await manager.start(request(task_id="top"), done))
        store.break_down("load")
        await manager.start(request(parent_task_id="top"), done)
        assert not store.struck


async def test_nobody_is_its_own_ancestor(autojump_clock: trio.testing.MockClock) -> None:
    """Nor is one that waits for a place itself: a bound is a bound."""
    async with opened(attempts_total=1) as manager:
        await manager.start(request(), forever)
        for task_id in ("a", "b"):
            mine = request(task_id=task_id, parent_task_id=task_id)
            assert (await manager.start(mine, forever)).queued
        assert (await manager.start(request(parent_task_id="a"), forever)).queued


async def test_foreground_runs_are_not_counted(autojump_clock: trio.testing.MockClock) -> None:
    """They neither wait for a place nor hold one."""
    async with opened(attempts_total=1, attempts_per_owner=1) as manager:
        await manager.start(request(), forever)
        with trio.fail_after(1):
            assert await manager.run(request(), done) == Success("done")


async def test_a_refused_start_takes_no_place(autojump_clock: trio.testing.MockClock) -> None:
    """The place of one that has ended is free again, whatever is asked for its id."""
    async with opened(attempts_total=1) as manager:
        await ended(manager, await manager.start(request(task_id="t"), done))
        for _ in range(3):
            with pytest.raises(Exception, match="exists already"):
                await manager.start(request(task_id="t"), done)
        assert not (await manager.start(request(), forever)).queued


async def test_an_end_that_is_not_stored_yet_holds_no_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A place is left when the body ends: what waits for one does not wait for the store."""
    store = FaultyStore()
    async with opened(store, attempts_total=1) as manager:
        first, second = Gate(), Gate()
        await manager.start(request(task_id="a"), first)
        await manager.start(request(task_id="b"), second)
        await first.entered.wait()
        store.break_down("apply")
        first.opened.set()
        await trio.sleep(60)
        assert manager.statistics().unsaved == 1
        assert second.runs == [("b", 1)]
        store.repair()


@pytest.mark.parametrize("seed", range(20))
def test_places_at_random(seed: int) -> None:
    """Claims and releases in any order: the bounds hold, and nobody waits beside a free place."""
    rng = random.Random(seed)
    per_owner, total = rng.choice([(None, 3), (2, None), (2, 3), (1, 1), (3, 2)])
    places = Places(per_owner, total)
    tickets: deque[Ticket] = deque()
    for _ in range(500):
        if tickets and rng.random() < 0.5:
            ticket = rng.choice(tickets)
            tickets.remove(ticket)
            places.release(ticket)
        else:
            tickets.append(places.claim(f"owner {rng.randrange(4)}"))
        held = [ticket for ticket in tickets if ticket.granted.is_set()]
        assert total is None or len(held) <= total
        for owner in {ticket.owner_thread_id for ticket in tickets}:
            mine = [ticket for ticket in tickets if ticket.owner_thread_id == owner]
            granted = [ticket.granted.is_set() for ticket in mine]
            assert granted == sorted(granted, reverse=True), "first come, first served"
            assert per_owner is None or sum(granted) <= per_owner
            below_own = per_owner is None or sum(granted) < per_owner
            below_total = total is None or len(held) < total
            assert all(granted) or not (below_own and below_total), "a place stays free"
    for ticket in tickets:
        places.release(ticket)
    assert not places._held
    assert not places._waiting
    assert not places._ready
