"""Starting: what is stored when it is answered; one id, one key, one task."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing

from tests.support import (
    OTHER,
    OWNER,
    FaultyStore,
    Gate,
    StoreWrapper,
    assert_idle,
    done,
    ended,
    forever,
    opened,
    request,
    stored,
)
from trio_bgtasks import (
    BackgroundTaskManager,
    Event,
    IdempotencyKeyUsed,
    MemoryTaskStore,
    TaskExists,
    TaskRecord,
    TaskStatus,
    TaskStoreError,
    open_task_manager,
)

# ---- starting ------------------------------------------------------------------------------------


async def test_a_start_is_stored_when_it_is_answered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The summary is that of the record; id, time and defaults are filled in."""
    store = MemoryTaskStore()
    async with opened(store, clock_ms=lambda: 1234, description_chars=10) as manager:
        asked = request(
            description="d\x00" + "e" * 20, args={"a": 1}, metadata={"m": [2]}, supports_resume=True
        )
        summary = await manager.start(asked, forever)
        assert summary.task_id.startswith("bg_")
        assert len(summary.task_id) == 35
        record = await stored(store, summary.task_id)
        assert record.summary() == summary
        assert summary.to_json() == {
            "task_id": summary.task_id,
            "task_type": "work",
            "description": "d\ufffd" + "e" * 7 + "…",
            "status": "running",
            "created_at_ms": 1234,
            "supports_resume": True,
            "attempt": 1,
            "metadata": {"m": [2]},
        }
        assert (record.args, record.background) == ({"a": 1}, True)
        assert record.executor_id == manager.statistics().executor_id
        assert manager.statistics().started in (0, 1)


async def test_an_id_is_used_once(autojump_clock: trio.testing.MockClock) -> None:
    """Whether its task runs, has ended, was collected, or is another owner's. C42."""
    async with open_task_manager() as manager:
        await manager.start(request(task_id="t"), forever)
        for owner in (OWNER, OTHER):
            with pytest.raises(TaskExists, match=r"Task 't' exists already .*: running\)"):
                await manager.start(request(owner, task_id="t"), done)
            with pytest.raises(TaskExists, match="running"):
                await manager.run(request(owner, task_id="t"), done)
        await manager.cancel(OWNER, "t")
        await manager.wait(OWNER, "t")
        with pytest.raises(TaskExists, match="cancelled"):
            await manager.start(request(task_id="t"), done)
        await manager.gc_terminal(OWNER)
        with pytest.raises(TaskExists, match="collected"):
            await manager.start(request(task_id="t"), done)
        assert_idle(manager)


async def test_concurrent_starts_of_one_id(autojump_clock: trio.testing.MockClock) -> None:
    """The first one's store answer is waited for; then the others go by the record. C3."""
    store, gate, refused = FaultyStore(), Gate(), list[str]()
    async with opened(store) as manager:

        async def start(*, foreground: bool) -> None:
            call = manager.run if foreground else manager.start
            try:
                await call(request(task_id="t"), gate)
            except TaskExists as error:
                refused.append(str(error))

        store.break_down("apply", fault="slow", last=1)
        async with trio.open_nursery() as nursery:
            for n in range(6):
                nursery.start_soon(partial(start, foreground=n % 2 == 0))
            await trio.sleep(9)
            assert (manager.statistics().starting, len(gate.runs)) == (1, 0)
            await gate.entered.wait()
            gate.opened.set()
        assert len(gate.runs) == 1
        assert refused == ["Task 't' exists already (current status: running)"] * 5


async def test_a_start_that_failed_leaves_the_id_to_the_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whoever waited for its answer starts instead."""
    store, first, second = FaultyStore(), Gate(), Gate()
    async with opened(store) as manager, trio.open_nursery() as nursery:
        store.break_down("apply", fault="hang", last=1)

        async def hang() -> None:
            with trio.move_on_after(5):
                await manager.start(request(task_id="t"), first)

        nursery.start_soon(hang)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await manager.start(request(task_id="t"), second)
        assert trio.current_time() - began == 5
        await second.entered.wait()
        assert (first.runs, second.runs) == ([], [("t", 1)])


async def test_an_id_that_another_machine_took_meanwhile_is_not_ours(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A start without an answer does not believe a record that another executor stored."""
    shared = MemoryTaskStore()

    class Raced(StoreWrapper):
        """Loses the first change on its way; meanwhile the other machine makes the same one."""

        lost = False

        async def apply(self, task_id: str, event: Event) -> TaskRecord:
            if not self.lost:
                self.lost = True
                await there.start(request(task_id="t"), theirs)
                raise ConnectionError("lost on its way")
            return await super().apply(task_id, event)

    ours, theirs = Gate(), Gate()
    async with opened(Raced(shared)) as here, opened(shared) as there:
        with pytest.raises(TaskStoreError, match="ConnectionError: lost on its way"):
            await here.start(request(task_id="t"), ours)
        assert_idle(here)
        await theirs.entered.wait()
        theirs.opened.set()
        assert (await here.wait(OWNER, "t")).status is TaskStatus.COMPLETED
        assert (ours.runs, theirs.runs) == ([], [("t", 1)])


async def test_a_cancel_reaches_a_start_that_is_under_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It waits for the store's answer, and then the body does not run, or not for long. C24."""
    store = FaultyStore()
    async with opened(store) as manager, trio.open_nursery() as nursery:
        store.break_down("apply", fault="slow", last=1)
        nursery.start_soon(manager.start, request(task_id="t"), forever)
        await trio.testing.wait_all_tasks_blocked()
        await manager.cancel(OWNER, "t")
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED


# ---- idempotent starts ---------------------------------------------------------------------------


async def test_an_idempotency_key_starts_one_task(autojump_clock: trio.testing.MockClock) -> None:
    """A repeated start is answered by the task that it started, as that stands."""
    gate = Gate()
    async with open_task_manager() as manager:
        asked = request(idempotency_key="key")
        first = await manager.start(asked, gate)
        assert await manager.start(asked, gate) == first
        with pytest.raises(IdempotencyKeyUsed) as caught:
            await manager.run(asked, gate)
        assert caught.value.task_id == first.task_id
        gate.opened.set()
        await ended(manager, first)
        assert (await manager.start(asked, gate)).result == "done"
        record = await manager.recall(OWNER, "work", "key")
        assert record is not None
        assert record.task_id == first.task_id
        assert await manager.recall(OWNER, "work", "unused") is None
        assert await manager.recall(OTHER, "work", "key") is None
        theirs = await manager.start(request(OTHER, idempotency_key="key"), done)
        assert theirs.task_id != first.task_id
        assert len(gate.runs) == 1
        await ended(manager, theirs, OTHER)
        assert_idle(manager)


async def test_a_key_is_bound_to_its_type(autojump_clock: trio.testing.MockClock) -> None:
    """For another type it is refused, and so is the key of a collected task."""
    async with open_task_manager() as manager:
        first = await manager.start(request(idempotency_key="key"), done)
        await ended(manager, first)
        other = request(task_type="other", idempotency_key="key")
        with pytest.raises(IdempotencyKeyUsed, match="'key' was used already"):
            await manager.start(other, done)
        with pytest.raises(IdempotencyKeyUsed):
            await manager.recall(OWNER, "other", "key")
        await manager.gc_terminal(OWNER)
        with pytest.raises(IdempotencyKeyUsed):
            await manager.start(request(idempotency_key="key"), done)
        assert_idle(manager)


async def test_a_repeated_start_with_its_own_id_is_recalled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The key comes first: it is answered by the task that it started, live here or not."""
    async with open_task_manager() as manager:
        gate = Gate()
        again = request(task_id="t", idempotency_key="key")
        for _ in range(3):
            assert (await manager.start(again, gate)).status is TaskStatus.RUNNING
        with pytest.raises(IdempotencyKeyUsed, match="'key' was used already, by task 't'"):
            await manager.run(again, gate)
        with pytest.raises(TaskExists):
            await manager.start(request(task_id="t", idempotency_key="other"), gate)
        with pytest.raises(TaskExists):
            await manager.start(request(OTHER, task_id="t", idempotency_key="key"), gate)
        gate.opened.set()
        await manager.wait(OWNER, "t")
        assert (await manager.start(again, gate)).status is TaskStatus.COMPLETED
    assert gate.runs == [("t", 1)]


async def test_concurrent_starts_with_one_key(autojump_clock: trio.testing.MockClock) -> None:
    """Exactly one runs, on several machines, too; all are answered by it."""
    store, gate, answers = MemoryTaskStore(), Gate(), list[str]()
    async with opened(store) as one, opened(store) as two:

        async def start(manager: BackgroundTaskManager) -> None:
            summary = await manager.start(request(idempotency_key="key"), gate)
            answers.append(summary.task_id)
            assert summary.status is TaskStatus.RUNNING

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(start, one)
                nursery.start_soon(start, two)
        await gate.entered.wait()
        assert len(gate.runs) == 1
        assert answers == [gate.runs[0][0]] * 10


async def test_a_key_of_an_orphan(autojump_clock: trio.testing.MockClock) -> None:
    """A repeated start looks after a dead executor as every look does; it resumes nothing."""
    store = MemoryTaskStore()
    async with opened(store, sweep_s=1e6) as here, opened(store, sweep_s=1e6) as there:
        asked = request(task_id="t", idempotency_key="key", supports_resume=True)
        await there.start(asked, forever)
        store.crash(there.statistics().executor_id)
        await trio.sleep(31)
        again = request(idempotency_key="key")
        assert (await here.start(again, done)).status is TaskStatus.STOPPED


async def test_a_queued_task_is_recalled_as_queued(autojump_clock: trio.testing.MockClock) -> None:
    """A repeated start tells what only this process knows, too."""
    async with opened(attempts_total=1) as manager:
        await manager.start(request(), forever)
        asked = request(idempotency_key="key")
        assert (await manager.start(asked, done)).queued
        assert (await manager.start(asked, done)).queued
