"""Several managers on one store: who is alive, who is found dead, and what becomes of its tasks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
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
    StoreWrapper,
    Stubborn,
    Told,
    assert_idle,
    done,
    ended,
    forever,
    opened,
    records,
    request,
    stored,
)
from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    CorruptRecord,
    Event,
    ExecutorFenced,
    LeaseTerms,
    ManagerClosed,
    MemoryTaskStore,
    Registered,
    SqliteTaskStore,
    StoreBusy,
    Success,
    TaskNotRunning,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskStoreError,
)
from trio_bgtasks.stores import ExecutorHandle, SweepReport, wall_clock_ms
from trio_bgtasks.stores.sqlite import inspect_file

ORPHAN = "No live executor found; marked stopped"


async def crash(store: MemoryTaskStore, *requests: Any) -> None:
    """Start the tasks on a machine that then crashes: nothing of it is recorded any more."""
    with pytest.raises(TaskStoreError, match="not stored"):
        async with opened(store, shutdown_grace_s=0, sweep_s=1e6) as manager:
            for asked in requests:
                await manager.start(asked, forever)
            store.crash(manager.statistics().executor_id)


# ---- orphans -------------------------------------------------------------------------------------


async def test_an_orphan_is_found_when_its_lease_has_run_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Not before; then by the sweep, of whatever type; it is stopped, and announced. C6."""
    store = MemoryTaskStore()
    await crash(store, request(task_id="a"), request(task_id="b", task_type="other"))
    began = trio.current_time()
    async with opened(store) as manager:
        assert [s.status for s in await manager.list_tasks(OWNER)] == [TaskStatus.RUNNING] * 2
        await manager.wait(OWNER, "a")
        assert 25 <= trio.current_time() - began <= 46
        for record in await records(store):
            assert (record.status, record.error) == (TaskStatus.STOPPED, ORPHAN)
        assert len(await manager.take_notices(OWNER)) == 2
        assert manager.statistics().orphans == 2


async def test_the_sweep_at_the_start_is_over_before_the_block_begins(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whoever opens a manager sees no orphan of the past."""
    store = MemoryTaskStore()
    await crash(store, request(task_id="t"))
    await trio.sleep(31)
    async with opened(store) as manager:
        assert (await stored(store, "t")).status is TaskStatus.STOPPED
        assert manager.statistics().orphans == 1


@pytest.mark.parametrize("how", ["get", "record", "list", "has_running", "wait", "find", "cancel"])
async def test_a_look_at_a_foreign_task_finds_its_executor_dead(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    """No sweep is waited for: every call settles what it looks at."""
    store = MemoryTaskStore()
    await crash(store, request(task_id="t"))
    async with opened(store, sweep_s=1e6) as manager:
        await trio.sleep(31)
        assert (await stored(store, "t")).status is TaskStatus.RUNNING
        calls: dict[str, Any] = {
            "get": lambda: manager.get(OWNER, "t"),
            "record": lambda: manager.record(OWNER, "t"),
            "list": lambda: manager.list_tasks(OWNER),
            "has_running": lambda: manager.has_running_tasks(OWNER),
            "wait": lambda: manager.wait(OWNER, "t"),
            "find": lambda: manager.find("t"),
            "cancel": lambda: manager.cancel(OWNER, "t"),
        }
        await calls[how]()
        expected = TaskStatus.CANCELLED if how == "cancel" else TaskStatus.STOPPED
        assert (await stored(store, "t")).status is expected


async def test_an_orphan_whose_cancel_was_accepted_is_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An accepted cancel holds across a crash: the task is never resumed. C7."""
    store = MemoryTaskStore()
    async with opened(store, sweep_s=1e6) as manager:
        await crash(store, request(task_id="t", supports_resume=True))
        assert (await manager.cancel(OWNER, "t")).status is TaskStatus.RUNNING
        await trio.sleep(31)
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED
        with pytest.raises(Exception, match="current status: cancelled"):
            await manager.start(request(task_id="t", resume_attempt=1), done)


async def test_a_live_task_of_another_machine_is_no_orphan(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """However long it runs, and whoever looks: it runs there, and its result counts. C1."""
    store, gate = MemoryTaskStore(), Gate()
    async with opened(store) as here, opened(store) as there:
        await there.start(request(task_id="t", supports_resume=True), gate)
        for _ in range(50):
            await trio.sleep(20)
            summary = await here.get(OWNER, "t")
            assert summary is not None
            assert summary.status is TaskStatus.RUNNING
            with pytest.raises(Exception, match="current status: running"):
                await here.start(request(task_id="t", resume_attempt=1), done)
        gate.opened.set()
        with trio.fail_after(2.1):
            assert (await here.wait(OWNER, "t")).status is TaskStatus.COMPLETED
    assert gate.runs == [("t", 1)]


async def test_a_machine_that_ends_in_order_leaves_no_orphan(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its tasks are stopped by itself; nobody finds anything."""
    store = MemoryTaskStore()
    async with opened(store) as here:
        async with opened(store) as there:
            await there.start(request(task_id="t"), forever)
        assert (await stored(store, "t")).error == "The runtime was shut down"
        await trio.sleep(100)
        assert here.statistics().orphans == 0


async def test_concurrent_resumes_on_several_machines(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Exactly one of them runs; the others get the running status. C10, C12."""
    store = MemoryTaskStore()
    await crash(store, request(task_id="t", supports_resume=True))
    gate, refused = Gate(), list[str]()
    async with opened(store) as one, opened(store) as two:
        await one.wait(OWNER, "t")

        async def resume(manager: BackgroundTaskManager) -> None:
            try:
                await manager.start(request(task_id="t", resume_attempt=1), gate)
            except Exception as error:  # noqa: BLE001 - to be looked at
                refused.append(str(error))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(resume, one)
                nursery.start_soon(resume, two)
        await gate.entered.wait()
        assert gate.runs == [("t", 2)]
        assert refused == ["Task 't' is not stopped (current status: running)"] * 9


# ---- a lost lease --------------------------------------------------------------------------------


async def test_a_lost_lease_ends_its_attempts_and_a_fresh_executor_goes_on(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Bodies are cancelled as ``fenced``, nothing is recorded by us, and the manager goes on."""
    store, seen = MemoryTaskStore(), list[Any]()

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        try:
            await trio.sleep_forever()
        finally:
            seen.append(execution.stopping)
            with trio.CancelScope(shield=True), pytest.raises(TaskNotRunning) as refused:
                await execution.save_checkpoint("late")
            seen.append(str(refused.value))

    # The second executor does not renew either, but its lease is longer than the rest of the test.
    terms = LeaseTerms(lease_s=20, renew_s=10)
    async with opened(store, sweep_s=1) as other, opened(StallingStore(store), lease=terms) as us:
        first = us.statistics().executor_id
        await us.start(request(task_id="t"), body)
        await other.wait(OWNER, "t")
        await trio.testing.wait_all_tasks_blocked()
        assert seen == ["fenced", "Task 't' is not running (current status: stopped)"]
        assert_idle(us)
        record = await stored(store, "t")
        assert (record.status, record.error, record.checkpoint) == ("stopped", ORPHAN, None)
        assert us.statistics().executor_id != first
        assert f"executor {first} lost its lease" in caplog.text
        summary = await us.start(request(), done)
        assert (await ended(us, summary)).result == "done"


async def test_a_blocked_loop_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """However long the loop was away, and whoever looks first afterwards: nobody on it is dead."""
    store, gate = MemoryTaskStore(), Gate()
    async with opened(store, sweep_s=1) as here, opened(store, sweep_s=1) as there:
        first = here.statistics().executor_id
        await here.start(request(task_id="t"), gate)
        for _ in range(20):  # the loop decides at random whose turn is first
            await trio.sleep(10.5)
            autojump_clock.jump(1000)
        gate.opened.set()
        assert (await here.wait(OWNER, "t")).status is TaskStatus.COMPLETED
        assert here.statistics().executor_id == first
        assert there.statistics().orphans == here.statistics().orphans == 0


async def test_a_loss_without_a_fence_saves_finished_work(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A ``Finished`` that arrives before the fence is welcome; everything else is not recorded."""
    store = ReplaceableStore()

    async def body(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:  # noqa: ASYNC103
            return Success("finished")  # noqa: ASYNC104
        raise AssertionError

    async with opened(store) as manager:
        await manager.start(request(task_id="finished"), body)
        await manager.start(request(task_id="not finished"), forever)
        await trio.testing.wait_all_tasks_blocked()
        store.handles[0].lost.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (await stored(store, "finished")).result == "finished"
        summary = await manager.wait(OWNER, "not finished")
        assert (summary.status, summary.error) == (TaskStatus.STOPPED, ORPHAN)


async def test_a_fresh_executor_waits_for_the_last_fenced_body(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Until then starts wait; a start that was waiting then goes on."""
    store, body = ReplaceableStore(), Stubborn()
    async with opened(store) as manager, trio.open_nursery() as nursery:
        await manager.start(request(task_id="t"), body)
        await body.entered.wait()
        store.handles[0].lost.set()
        started: list[str] = []

        async def start() -> None:
            started.append((await manager.start(request(OTHER), forever)).task_id)

        nursery.start_soon(start)
        await trio.sleep(60)
        assert (len(store.handles), started) == (1, [])
        body.opened.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (len(store.handles), len(started)) == (2, 1)
        assert manager.statistics().executor_id == store.handles[1].executor_id


async def test_a_fenced_body_that_starts_something_is_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It would wait for an executor that waits for it; nothing is applied, and the rest goes on."""
    store, refused = ReplaceableStore(), list[str]()

    async def body(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True), pytest.raises(StoreBusy) as busy:
                await manager.start(request(task_id="report"), done)
            refused.append(str(busy.value))

    async with opened(store) as manager:
        await manager.start(request(task_id="t"), body)
        await trio.testing.wait_all_tasks_blocked()
        store.handles[0].lost.set()
        with trio.fail_after(1):
            assert (await ended(manager, await manager.start(request(), done))).result == "done"
        assert refused == ["the executor of the calling task was lost; the start was not applied"]
        assert await manager.get(OWNER, "report") is None


async def test_a_start_that_waits_beside_a_fenced_body_is_made(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Only who holds up the fresh executor is refused: other callers wait for it."""
    store, body = ReplaceableStore(), Stubborn()
    async with opened(store) as manager, trio.open_nursery() as nursery:
        await manager.start(request(task_id="t"), body)
        await body.entered.wait()
        store.handles[0].lost.set()
        nursery.start_soon(manager.start, request(task_id="other"), done)
        await trio.sleep(10)
        assert await manager.get(OWNER, "other") is None
        body.opened.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (await manager.wait(OWNER, "other")).result == "done"


async def test_closing_does_not_wait_for_an_executor_that_never_comes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A start that waits for a fresh executor is refused when the manager closes."""
    store, body = ReplaceableStore(), Stubborn()
    refused: list[str] = []

    async def start(manager: BackgroundTaskManager) -> None:
        try:
            await manager.start(request(OTHER), forever)
        except ManagerClosed as error:
            refused.append(str(error))

    async def let_go() -> None:
        await trio.sleep(5)
        body.opened.set()

    async with trio.open_nursery() as nursery:
        async with opened(store) as manager:
            await manager.start(request(task_id="t"), body)
            await body.entered.wait()
            store.handles[0].lost.set()
            nursery.start_soon(start, manager)  # noqa: ASYNC111
            await trio.sleep(1)
            nursery.start_soon(let_go)
            began = trio.current_time()
        assert trio.current_time() - began == 5
    assert refused == ["the task manager is closed"]


class HardToOpen(ReplaceableStore):
    """A store that fails twice when a second executor registers."""

    tries = 0

    @asynccontextmanager
    async def _hard(self, *terms: Any) -> AsyncGenerator[ExecutorHandle, None]:
        self.tries += 1
        if self.tries in (2, 3):
            raise OSError("not now")
        async with super().executor(*terms) as handle:
            yield handle

    def executor(
        self, terms: LeaseTerms, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> AbstractAsyncContextManager[ExecutorHandle]:
        return self._hard(terms, clock_ms)


@pytest.mark.parametrize("close", [False, True])
async def test_a_fresh_executor_is_tried_for_until_it_comes(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, *, close: bool
) -> None:
    """A store that fails then is tried again; closing meanwhile is no error."""
    store = HardToOpen()
    async with opened(store) as manager:
        store.handles[0].lost.set()
        await trio.testing.wait_all_tasks_blocked()
        assert store.tries == 2
        if not close:
            with trio.fail_after(3):
                await manager.start(request(), forever)
            assert store.tries == 4
    assert "OSError: not now" in caplog.text


async def test_a_start_that_finds_itself_fenced_may_be_repeated(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The store fenced us and we did not know: nothing ran, and the next call gets a fresh one."""
    store = ReplaceableStore()

    class Late(StoreWrapper):
        """Tells of the fence by refusing, once."""

        told = False

        async def apply(self, task_id: str, event: Event) -> TaskRecord:
            if not self.told:
                self.told = True
                raise ExecutorFenced(task_id, "ex", "unregistered")
            return await super().apply(task_id, event)

    async with opened(Late(store)) as manager:
        text = "^the executor was fenced; the start was not applied$"
        with pytest.raises(StoreBusy, match=text):
            await manager.start(request(task_id="t"), done)
        assert_idle(manager)
        assert (await ended(manager, await manager.start(request(task_id="t"), done))).result
        assert len(store.handles) == 2


async def test_there_is_one_wall_clock(tmp_path: Path) -> None:
    """What the store writes down of an executor has the time of the manager's clock."""
    async with (
        SqliteTaskStore.open(tmp_path / "tasks.db") as store,
        opened(store, clock_ms=lambda: 1000) as manager,
    ):
        (executor,) = (await inspect_file(store._engine.path)).executors
        assert executor.executor_id == manager.statistics().executor_id
        assert executor.registered_at_ms == 1000


# ---- left behind ---------------------------------------------------------------------------------


async def leave_behind(manager: BackgroundTaskManager, store: Any, *task_ids: str) -> None:
    """Let starts of the manager's executor arrive that nobody waits for any more."""
    executor_id = manager.statistics().executor_id
    for task_id in task_ids:
        event = Registered(1, executor_id, OWNER, "work", "")
        await store.apply(task_id, event)


async def test_a_record_without_a_slot_is_ended_by_the_sweep(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is stopped and announced; what is live, or just starting, is not touched. C4."""
    store = FaultyStore()
    async with opened(store, sweep_s=15) as manager, trio.open_nursery() as nursery:
        await manager.start(request(task_id="live"), forever)
        await leave_behind(manager, store, "left")
        store.break_down("apply", fault="slow", last=1)
        nursery.start_soon(manager.start, request(task_id="starting"), forever)
        await trio.sleep(15.1)
        record = await stored(store, "left")
        assert record.status is TaskStatus.STOPPED
        assert record.error == "No attempt of the live executor runs this task; marked stopped"
        assert {s.task_id for s in manager.live(OWNER)} == {"live", "starting"}
        assert [s.task_id for s in await manager.take_notices(OWNER)] == ["left"]
        (line,) = [r for r in caplog.records if r.getMessage() == "task left was left behind"]
        assert (line.name, getattr(line, "task_id", "")) == ("trio_bgtasks.liveness", "left")


async def test_who_listens_is_told_of_what_was_left_behind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The end that a sweep stores is news like any other."""
    store = MemoryTaskStore()
    async with opened(store, sweep_s=15) as manager, manager.subscribe(OWNER) as hints:
        await leave_behind(manager, store, "left")
        with trio.fail_after(16):
            assert await hints.receive() == "left"


async def test_a_look_asks_for_one_executor_only(autojump_clock: trio.testing.MockClock) -> None:
    """A look at a task of another machine settles that machine; the sweep sees to the others."""
    asked: list[tuple[str, str | None]] = []

    class Watched(StoreWrapper):
        async def sweep(
            self, executor_id: str, at_ms: int, *, suspect: str | None = None
        ) -> SweepReport:
            asked.append((executor_id, suspect))
            return await super().sweep(executor_id, at_ms, suspect=suspect)

    shared = MemoryTaskStore()
    async with opened(shared) as there, opened(Watched(shared)) as here:
        await there.start(request(task_id="t"), forever)
        asked.clear()
        assert await here.get(OWNER, "t") is not None
        mine, theirs = (m.statistics().executor_id for m in (here, there))
    assert asked == [(mine, theirs)]


async def test_a_cancel_from_elsewhere_is_told_as_one(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The body sees why it is to stop; a mark of what does not run here is passed over."""
    body = Told()
    store = MemoryTaskStore()
    async with opened(store, sweep_s=1e6) as there, opened(store) as here:
        await leave_behind(there, store, "left")
        await there.start(request(task_id="t"), body)
        await trio.testing.wait_all_tasks_blocked()
        for task_id in ("left", "t"):
            await here.cancel(OWNER, task_id)
        assert (await here.wait(OWNER, "t")).status is TaskStatus.CANCELLED
    assert body.reasons == ["cancel"]
    assert "poll for cancels failed" not in caplog.text


async def test_one_bad_record_does_not_stop_a_sweep(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be ended, or read, is logged and passed over; the others are ended. C31."""

    class Bad(StoreWrapper):
        """One record cannot be changed, one not be read, one was ended by somebody else."""

        async def apply(self, task_id: str, event: Event) -> TaskRecord:
            if task_id == "bad" and not isinstance(event, Registered):
                raise CorruptRecord("bad", "not JSON")
            return await super().apply(task_id, event)

        async def sweep(
            self, executor_id: str, at_ms: int, *, suspect: str | None = None
        ) -> SweepReport:
            report = await super().sweep(executor_id, at_ms, suspect=suspect)
            own = [("gone", 1), *report.own_running] if suspect is None else []
            corrupt = [CorruptRecord("unreadable", "not JSON")]
            return attrs.evolve(report, corrupt=corrupt, own_running=own)

    store = Bad()
    async with opened(store) as manager:
        await leave_behind(manager, store, "bad", "good")
        await trio.sleep(16)
        assert (await stored(store, "good")).status is TaskStatus.STOPPED
        assert (await stored(store, "bad")).status is TaskStatus.RUNNING
    for text in (
        "task bad is left behind: the stored record of task 'bad' is corrupt: not JSON",
        "passed over in a sweep: the stored record of task 'unreadable' is corrupt: not JSON",
    ):
        assert text in caplog.text


async def test_sweeps_go_on_after_a_failure(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A sweep that failed is logged; the next one finds what it did not."""
    store = FaultyStore()
    async with opened(store, sweep_s=15) as manager:
        await leave_behind(manager, store, "left")
        store.break_down("sweep", last=2)
        await trio.sleep(31)
        assert (await stored(store, "left")).status is TaskStatus.RUNNING
        assert caplog.text.count("sweep failed: ConnectionError: store is down") == 2
        await trio.sleep(15)
        assert (await stored(store, "left")).status is TaskStatus.STOPPED


@pytest.mark.parametrize("call", ["sweep", "apply", "collect"])
async def test_sweeps_go_on_after_one_that_is_never_answered(
    call: str, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a sweep waits for, it has the time of a lease; the next one finds what it did not."""
    store, terms = FaultyStore(), LeaseTerms(lease_s=20, renew_s=10)
    async with opened(store, sweep_s=15, lease=terms, retention_s=1e6) as manager:
        await leave_behind(manager, store, "left")
        store.break_down(call, fault="hang", last=1)
        await trio.sleep(34.9)
        assert "sweep failed" not in caplog.text
        await leave_behind(manager, store, "late")
        await trio.sleep(0.2)
        assert caplog.text.count("sweep failed: the store did not answer in time") == 1
        assert (await stored(store, "late")).status is TaskStatus.RUNNING
        await trio.sleep(15)
        for task_id in ("left", "late"):
            assert (await stored(store, task_id)).status is TaskStatus.STOPPED


# ---- cancels from elsewhere ----------------------------------------------------------------------


async def test_a_cancel_from_another_machine_arrives(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is durable at once, and seen within the poll; the body's end is a cancelled one. C24."""
    store = MemoryTaskStore()
    async with opened(store, poll_s=2) as here, opened(store) as there:
        await here.start(request(task_id="t"), forever)
        assert (await there.cancel(OWNER, "t")).status is TaskStatus.RUNNING
        record = await stored(store, "t")
        assert record.cancel_requested_at_ms is not None
        with trio.fail_after(2.1):
            assert (await here.wait(OWNER, "t")).status is TaskStatus.CANCELLED
        assert (await here.history(OWNER, "t"))[1].executor_id is None


async def test_owed_marks_are_stored_each_for_itself(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A mark that cannot be stored, ever, holds up neither the others' nor the poll."""

    class Bad(FaultyStore):
        """Never stores a mark of one task; answers another one's never."""

        async def apply(self, task_id: str, event: Event) -> TaskRecord:
            if task_id == "bad" and not isinstance(event, Registered):
                raise CorruptRecord("bad", "not JSON")
            if task_id == "mute" and not isinstance(event, Registered):
                await trio.sleep_forever()
            return await super().apply(task_id, event)

    store, bodies = Bad(), [Stubborn() for _ in range(4)]
    async with opened(store) as other:
        with pytest.raises(TaskStoreError, match="closed with 2 ends not stored"):
            async with opened(store) as manager:
                for body, task_id in zip(bodies, ("bad", "mute", "good", "far"), strict=True):
                    await manager.start(request(task_id=task_id), body)
                    await body.entered.wait()
                store.break_down("apply")
                for task_id in ("bad", "mute", "good"):
                    summary = await manager.cancel(OWNER, task_id)
                    assert summary.persistence_error is not None
                    text = "the cancellation is not stored yet: "
                    assert summary.persistence_error.startswith(text)
                store.repair()
                await other.cancel(OWNER, "far")
                await trio.sleep(20)
                assert (await stored(store, "good")).cancel_requested_at_ms is not None
                assert manager.persistence_error(OWNER, "good") is None
                assert manager.persistence_error(OWNER, "bad") is not None
                for body in bodies:
                    body.opened.set()
                assert (await manager.wait(OWNER, "far")).status is TaskStatus.CANCELLED
    assert (
        "task bad: its cancel is not stored: the stored record of task 'bad' is corrupt"
        in caplog.text
    )
    assert "task mute: its cancel is not stored: the store did not answer in time" in caplog.text


async def test_a_mark_that_the_end_took_along_is_not_owed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A cancel that could not be stored is stored with the end; the task is cancelled."""
    store, gate = FaultyStore(), Gate()
    async with opened(store, poll_s=100) as manager:
        await manager.start(request(task_id="t"), gate)
        await gate.entered.wait()
        store.break_down("apply", last=1)
        summary = await manager.cancel(OWNER, "t")
        assert summary.persistence_error is not None
        record = await manager.wait(OWNER, "t")
        assert record.status is TaskStatus.CANCELLED
        kinds = [entry.kind for entry in await manager.history(OWNER, "t")]
        assert kinds == ["registered", "finished"]


async def test_a_late_mark_of_an_ended_task_is_forgotten(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The mark may be refused because the end was applied meanwhile: then nothing is owed."""
    store, body = FaultyStore(), Stubborn(Success())
    async with opened(store, poll_s=2) as manager:
        await manager.start(request(task_id="t"), body)
        await body.entered.wait()
        store.break_down("apply", last=1)
        await manager.cancel(OWNER, "t")
        store.break_down("apply", fault="after")
        body.opened.set()  # the end is applied, but we are not told
        await trio.sleep(0.01)
        store.break_down("apply", fault="slow")
        await trio.sleep(3)
        store.repair()
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED


# ---- retention -----------------------------------------------------------------------------------


async def test_ended_records_are_collected_after_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With a retention, of all owners, at a sweep; what may be resumed, or runs, stays. C32."""
    now_ms = 1_000_000
    store = MemoryTaskStore()
    async with opened(store, retention_s=100, clock_ms=lambda: now_ms) as manager:
        for owner in (OWNER, OTHER):
            await ended(manager, await manager.start(request(owner), done), owner)
        await manager.start(request(task_id="stopped", supports_resume=True), forever)
        await manager.close_owner(OWNER)
        await manager.start(request(task_id="running"), forever)
        await trio.sleep(100)
        assert len(await records(store)) == 3
        now_ms += 100_000
        await trio.sleep(15)
        assert [record.task_id for record in await records(store)] == ["stopped", "running"]
        assert await manager.owners() == [OWNER]


async def test_a_retention_of_an_age(autojump_clock: trio.testing.MockClock) -> None:
    """A retention longer than time itself keeps everything."""
    store = MemoryTaskStore()
    async with opened(store, retention_s=1e300) as manager:
        await ended(manager, await manager.start(request(), done))
        await trio.sleep(100)
        assert len(await records(store)) == 1
