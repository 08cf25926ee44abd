"""A manager on a store that is down, hangs, or says no: what it does, and what it says."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from tests.support import (
    OWNER,
    Fault,
    FaultyStore,
    Gate,
    StoreWrapper,
    Stubborn,
    Told,
    assert_idle,
    done,
    forever,
    opened,
    request,
    stored,
)
from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    CorruptRecord,
    Event,
    ExecutorFenced,
    Finished,
    InvalidValue,
    LeaseTerms,
    Progress,
    StoreBusy,
    Success,
    TaskExists,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskStoreError,
    open_task_manager,
)
from trio_bgtasks.stores import ExecutorHandle, wall_clock_ms
from trio_bgtasks.testing import CorruptibleStore

# ---- an outage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["before", "hang"])
async def test_ends_outlive_an_outage(
    fault: Fault, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Ends are retried for as long as the store is down, by nobody's call; then all are stored.

    Until then ``get`` says running, with how it ended and why that is not stored. C28.
    """
    store = FaultyStore()
    async with opened(store) as manager:
        gates = [Gate() for _ in range(3)]
        for n, gate in enumerate(gates):
            await manager.start(request(task_id=f"t{n}"), gate)
            await gate.entered.wait()
        store.break_down("apply", fault=fault)
        for gate in gates:
            gate.opened.set()
        await trio.sleep(6)  # longer than one write may take
        assert manager.statistics().unsaved == 3
        assert all(len(gate.runs) == 1 for gate in gates)
        why = manager.persistence_error(OWNER, "t0")
        assert why is not None
        said = "down" if fault == "before" else "TaskStoreError: the store did not answer in time"
        assert why.startswith("the task ended as completed, which is not stored yet: ")
        assert why.endswith(said)
        summary = await manager.get(OWNER, "t0")
        assert summary is not None
        assert (summary.status, summary.persistence_error) == (TaskStatus.RUNNING, why)
        with pytest.raises(TaskExists, match="current status: running"):
            await manager.start(request(task_id="t0"), done)
        await trio.sleep(3600)
        store.repair()
        await trio.sleep(6)  # a retry is never further away
        assert_idle(manager)
        summaries = await manager.list_tasks(OWNER)
        assert [summary.status for summary in summaries] == [TaskStatus.COMPLETED] * 3
        assert len(await manager.take_notices(OWNER)) == 3
        assert manager.statistics().write_retries > 100
    assert {getattr(record, "task_id", None) for record in caplog.records} >= {"t0", "t1", "t2"}


@pytest.mark.parametrize("fault", ["after", "hang after"])
async def test_a_retry_that_is_refused_is_settled_by_the_record(
    fault: Fault, autojump_clock: trio.testing.MockClock
) -> None:
    """An end that was applied although the store said otherwise is not applied, or told, twice."""
    store = FaultyStore()
    async with opened(store) as manager:
        store.break_down("apply", fault=fault, first=2)
        assert await manager.run(request(task_id="t"), done) == Success("done")
        with trio.fail_after(6):
            assert (await manager.wait(OWNER, "t")).status is TaskStatus.COMPLETED
        assert manager.statistics().write_retries == 1
        assert len(await manager.history(OWNER, "t")) == 2
        assert_idle(manager)


@pytest.mark.parametrize("fault", ["before", "hang"])
@pytest.mark.parametrize("calls", [("apply",), ("apply", "load", "sweep")])
async def test_ends_that_are_never_stored_are_named_at_the_exit(
    calls: tuple[str, ...],
    fault: Fault,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A store that fails to the end of the grace: the exit names the tasks and how they ended.

    It comes with the grace. The next manager on the same store finds them as orphans at once.
    """
    store = FaultyStore()
    began = 0.0
    with pytest.raises(TaskStoreError) as caught:
        async with opened(store, shutdown_grace_s=3) as manager:
            gate = Gate()
            await manager.start(request(task_id="finished"), gate)
            await manager.start(request(task_id="cut off"), forever)
            await gate.entered.wait()
            store.break_down(*calls, fault=fault)
            gate.opened.set()
            await trio.sleep(20)
            began = trio.current_time()
    assert 3 <= trio.current_time() - began <= 4.01
    text = str(caught.value)
    closed, _, named = text.partition(" ends not stored: ")
    assert closed == "closed with 2"
    assert sorted(
        each.partition(", which is not stored yet: ")[0] for each in named.split("; ")
    ) == [
        "cut off: the task ended as stopped",
        "finished: the task ended as completed",
    ]
    assert text in caplog.text
    store.repair()
    async with open_task_manager(store) as manager:
        for task_id in ("finished", "cut off"):
            record = await stored(store, task_id)
            assert record.status is TaskStatus.STOPPED
            assert record.error == "No live executor found; marked stopped"
        assert manager.statistics().orphans == 2


async def test_the_exception_of_the_block_wins(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """When ends are lost and the block raised, its exception leaves; the loss is logged."""
    store = FaultyStore()
    mine = ZeroDivisionError("mine")
    with pytest.raises(ZeroDivisionError) as caught:
        async with opened(store) as manager:
            await manager.start(request(task_id="t"), forever)
            store.break_down("apply")
            raise mine
    assert caught.value is mine
    assert "closed with 1 ends not stored: t: the task ended as stopped" in caplog.text


async def test_closing_hurries_a_retry(autojump_clock: trio.testing.MockClock) -> None:
    """A retry that waits for its next turn is made when closing begins; it need not wait it out."""
    store = FaultyStore()
    async with opened(store, shutdown_grace_s=1) as manager:
        await manager.start(request(task_id="t"), done)
        store.break_down("apply")
        await trio.sleep(60)  # retries are five seconds apart now
        store.repair()
        began = trio.current_time()
    assert trio.current_time() == began
    assert (await stored(store, "t")).status is TaskStatus.COMPLETED


async def test_no_grace_is_one_last_write(autojump_clock: trio.testing.MockClock) -> None:
    """Without any grace every end still gets one try."""
    store = FaultyStore()
    async with opened(store, shutdown_grace_s=0) as manager:
        await manager.start(request(task_id="t"), forever)
    assert (await stored(store, "t")).status is TaskStatus.STOPPED


@pytest.mark.parametrize("foreground", [False, True])
async def test_a_start_that_hangs_does_not_keep_the_manager_from_closing(
    autojump_clock: trio.testing.MockClock, *, foreground: bool
) -> None:
    """Another task's start that the store never answers fails with the grace; it did not run."""
    store, ran, began = FaultyStore(), Gate(), 0.0
    failed: list[str] = []

    async def call(manager: BackgroundTaskManager) -> None:
        try:
            await (manager.run if foreground else manager.start)(request(task_id="t"), ran)
        except TaskStoreError as error:
            failed.append(str(error))

    async with trio.open_nursery() as callers:  # they may outlive the manager
        with pytest.raises(TaskStoreError, match="closed with 1 ends not stored: t: "):
            async with opened(store, shutdown_grace_s=3) as manager:
                store.break_down("apply", "load", fault="hang after")
                callers.start_soon(call, manager)  # noqa: ASYNC111
                await trio.sleep(100)
                assert manager.statistics().starting == 1
                began = trio.current_time()
        assert trio.current_time() - began < 6
    assert failed == ["the store did not answer before the task manager closed"]
    assert not ran.runs
    store.repair()
    async with open_task_manager(store):
        assert (await stored(store, "t")).status is TaskStatus.STOPPED


@pytest.mark.parametrize("resume", [False, True])
async def test_a_start_of_unknown_answer_keeps_its_id_until_it_is_known(
    autojump_clock: trio.testing.MockClock, *, resume: bool
) -> None:
    """A start whose answer, and read-back, failed does not run; if it was stored, it is ended."""
    store, ran = FaultyStore(), Gate()
    async with opened(store) as manager:
        asked = request(task_id="t", supports_resume=True)
        if resume:
            await manager.start(asked, forever)
            await manager.close_owner(OWNER)
            asked = attrs.evolve(asked, resume_attempt=1)
        store.break_down("apply", "load", fault="after", error=lambda: OSError("torn"))
        with pytest.raises(TaskStoreError, match="OSError: torn") as caught:
            await manager.start(asked, ran)
        assert isinstance(caught.value.__cause__, OSError)
        assert manager.statistics().unsaved == 1
        with pytest.raises((TaskExists, OSError)):
            await manager.start(request(task_id="t"), ran)
        with pytest.raises(OSError, match="torn"):
            await manager.get(OWNER, "t")
        store.repair()
        await trio.sleep(6)
        assert_idle(manager)
        record = await stored(store, "t")
        assert record.status is TaskStatus.STOPPED
        assert record.attempt == 1 + resume
        assert record.error == "Its start could not be confirmed in time; its body did not run"
        assert record.output_bytes == 0
    assert not ran.runs


# ---- what is said at once ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [InvalidValue("args: strange"), CorruptRecord("t", "not JSON"), StoreBusy("busy")]
)
async def test_an_error_that_says_not_applied_is_not_read_back(
    error: Exception, autojump_clock: trio.testing.MockClock
) -> None:
    """What the store refuses for good, or did not get to, frees the slot at once."""
    store = FaultyStore()
    async with opened(store) as manager:
        store.break_down("apply", "load", last=1, error=lambda: error)
        with pytest.raises(type(error)) as caught:
            await manager.start(request(task_id="t"), done)
        assert caught.value is error
        assert (store.made["apply"], store.made["load"]) == (1, 0)
        assert_idle(manager)
        await manager.start(request(task_id="t"), done)


async def test_an_end_that_finds_itself_fenced_tells_the_executor(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The refusal is the first that we hear of the loss: the other attempts end, a fresh one comes.

    Nothing is retried: the end is another's to tell.
    """

    class Late(StoreWrapper):
        """Tells of the fence by refusing an end, once."""

        told = False

        async def apply(self, task_id: str, event: Event) -> TaskRecord:
            if isinstance(event, Finished) and not self.told:
                self.told = True
                raise ExecutorFenced(task_id, event.executor_id, "fenced")
            return await super().apply(task_id, event)

    async with opened(Late()) as manager:
        first = manager.statistics().executor_id
        body = Told()
        await manager.start(request(), body)
        await manager.start(request(), done)
        await trio.testing.wait_all_tasks_blocked()
        assert body.reasons == ["fenced"]
        assert_idle(manager)
        assert manager.statistics().write_retries == 0
        assert manager.statistics().executor_id != first


async def test_a_corrupt_record_in_the_way_of_a_read_back_is_not_ours(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A start that failed, and whose id holds a corrupt record, was not stored."""
    store = FaultyStore()
    async with opened(store) as manager:
        began = trio.current_time()
        raised = iter([OSError("torn"), CorruptRecord("t", "not JSON")])
        store.break_down("apply", "load", last=2, error=lambda: next(raised))
        with pytest.raises(TaskStoreError, match="OSError: torn"):
            await manager.start(request(task_id="t"), done)
        assert trio.current_time() == began
        assert_idle(manager)


async def test_a_read_back_that_fails_is_repeated(autojump_clock: trio.testing.MockClock) -> None:
    """As long as there is time: the start was stored, so it runs."""
    store = FaultyStore()
    async with opened(store) as manager:
        store.break_down("apply", "load", fault="after", last=3)
        summary = await manager.start(request(), done)
        assert store.struck == 3
        assert (await manager.wait(OWNER, summary.task_id)).status is TaskStatus.COMPLETED


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("foreground", [False, True])
async def test_a_value_that_the_store_blames_fails_the_task(
    autojump_clock: trio.testing.MockClock, *, foreground: bool, times: int
) -> None:
    """A result that the store refuses for itself is not retried: the task is failed with that.

    The last output and progress are kept, unless they are refused, too.
    """
    store, blamed = FaultyStore(), count(1)

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        for n in (1, 2):  # the second one, so soon, is left for the end
            await execution.report_progress(n)
            await trio.testing.wait_all_tasks_blocked()
        store.break_down(
            "apply", last=times, error=lambda: InvalidValue(f"strange: {next(blamed)}")
        )
        await execution.write_output("last words")
        return Success("strange")

    async with opened(store) as manager:
        if foreground:
            outcome = await manager.run(request(task_id="t"), body)
            assert getattr(outcome, "error", "") == f"strange: {times}"
        else:
            await manager.start(request(task_id="t"), body)
            await manager.wait(OWNER, "t")
        record = await stored(store, "t")
        assert (record.status, record.error) == (TaskStatus.FAILED, f"strange: {times}")
        assert record.progress == Progress(2 if times == 1 else 1)
        page = await store.read_output("t", offset=0, limit=99)
        assert (page.text, page.next_offset) == (("last words", 10) if times == 1 else ("", 0))


# ---- opening and closing -------------------------------------------------------------------------


@pytest.mark.parametrize("error", [TaskStoreError("no"), OSError("disk")])
async def test_an_error_of_opening_is_bare(
    error: Exception, autojump_clock: trio.testing.MockClock
) -> None:
    """What the store raises while a manager opens leaves as it was raised."""
    store = FaultyStore()
    store.break_down("sweep", error=lambda: error)
    with pytest.raises(type(error)) as caught:
        async with open_task_manager(store):
            raise AssertionError
    assert caught.value is error


async def test_opening_can_be_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    """A store that never answers does not keep the one who opens a manager."""
    store = FaultyStore()
    store.break_down("sweep", fault="hang")
    with trio.move_on_after(5) as scope:
        async with open_task_manager(store):
            raise AssertionError
    assert scope.cancelled_caught


class RetiringBadly(FaultyStore):
    """A store that fails, or hangs, when an executor retires."""

    hangs = False

    @asynccontextmanager
    async def _executor(self, *terms: Any) -> AsyncGenerator[ExecutorHandle, None]:
        async with self.inner.executor(*terms) as handle:
            yield handle
            if self.hangs:
                await trio.sleep_forever()
            raise OSError("not retired")

    def executor(
        self, terms: LeaseTerms, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> AbstractAsyncContextManager[ExecutorHandle]:
        return self._executor(terms, clock_ms)


@pytest.mark.parametrize("hangs", [False, True])
async def test_an_executor_that_cannot_retire_is_only_logged(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, *, hangs: bool
) -> None:
    """All ends are stored: that the store does not take the farewell is no error of the block."""
    store = RetiringBadly()
    store.hangs = hangs
    async with opened(store) as manager:
        await manager.start(request(task_id="t"), forever)
        began = trio.current_time()
    assert trio.current_time() - began <= 10
    assert (await stored(store, "t")).status is TaskStatus.STOPPED
    assert hangs or "OSError: not retired" in caplog.text


async def test_closing_names_the_bodies_that_do_not_end(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A body that will not end is waited for, still leased, and named each grace period."""
    body, store = Stubborn(), FaultyStore()

    async def let_go() -> None:
        await trio.sleep(100)
        assert (await stored(store, "t")).status is TaskStatus.RUNNING
        body.opened.set()

    async with trio.open_nursery() as nursery, opened(store, shutdown_grace_s=30) as manager:
        await manager.start(request(task_id="t"), body)
        await body.entered.wait()
        nursery.start_soon(let_go)
    assert caplog.text.count("closing still waits for the bodies of: t") == 3
    assert (await stored(store, "t")).status is TaskStatus.STOPPED


async def test_an_end_that_a_corrupt_record_cannot_take_is_given_up(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits for it is answered, its owner can be closed and start again; the exit names it."""
    store = CorruptibleStore()
    with pytest.raises(TaskStoreError, match=r"1 ends not stored: bad: .* corrupt"):
        async with open_task_manager(store) as manager:
            await manager.start(request(task_id="bad"), forever)
            await manager.start(request(task_id="good"), forever)
            store.corrupt("bad")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_wait_in_vain, manager)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(TaskStoreError, match="1 ends of owner thread"):
                    await manager.close_owner(OWNER)
            assert [task.status for task in await manager.list_tasks(OWNER)] == ["stopped"]
            await manager.start(request(task_id="next"), forever)
    assert "task bad: its end is lost: the stored record of task 'bad' is corrupt" in caplog.text


async def _wait_in_vain(manager: BackgroundTaskManager) -> None:
    with pytest.raises(CorruptRecord):
        await manager.wait(OWNER, "bad")


class Repairable(CorruptibleStore):
    """Somebody restores the damaged rows."""

    def repair(self) -> None:
        """Make every record as it was before it was damaged."""
        self._damaged.clear()


async def test_an_end_that_was_given_up_is_not_that_of_the_next_attempt(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Who closes the owner is told of the attempts that end by that, not of those before."""
    store = Repairable()
    with pytest.raises(TaskStoreError, match="1 ends not stored: t: "):
        async with open_task_manager(store) as manager:
            await manager.start(request(task_id="t", supports_resume=True), forever)
            store.corrupt("t")
            with pytest.raises(TaskStoreError, match="1 ends of owner thread"):
                await manager.close_owner(OWNER)
            store.repair()
            await trio.sleep(20)  # a sweep ends the attempt that nobody runs any more
            again = request(task_id="t", supports_resume=True, resume_attempt=1)
            assert (await manager.start(again, forever)).attempt == 2
            await manager.close_owner(OWNER)
    assert (await stored(store, "t")).status is TaskStatus.STOPPED
