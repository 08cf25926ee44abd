"""Cancels that meet an end, a resume, a lost lease, or the caller's own cancellation."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.support import (
    OTHER,
    OWNER,
    CheckpointingStore,
    FaultyStore,
    Gate,
    ReplaceableStore,
    StoreWrapper,
    Stubborn,
    assert_idle,
    cancel_at,
    done,
    forever,
    grow,
    request,
    stop,
    stored,
)
from trio_bgtasks import (
    BackgroundExecution,
    Cancelled,
    CorruptRecord,
    Event,
    Failed,
    MemoryTaskStore,
    ParentCancelled,
    Stopped,
    StoreBusy,
    Success,
    TaskNotStopped,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskStore,
    TaskStoreError,
    open_task_manager,
)
from trio_bgtasks.testing import CorruptibleStore

Step = Callable[[], Awaitable[None]]


class SteppedStore(StoreWrapper):
    """A store that does something first when it is to apply an event of a certain type."""

    def __init__(self, inner: TaskStore | None = None, **steps: Step) -> None:
        super().__init__(inner)
        self.steps: dict[str, Step] = dict(steps)

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        step = self.steps.get(type(event).__name__)
        if step is not None:
            await step()
        return await super().apply(task_id, event)


async def refuse() -> None:
    """Fail, as a store does whose disk is gone."""
    raise ConnectionError("down")


async def test_a_tree_that_is_cancelled_from_within_is_cancelled_whole(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The caller is of the tree: its own cancellation does not end the work half-way."""
    store = CheckpointingStore()
    async with open_task_manager(store) as manager:

        async def root(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            await manager.start(request(task_id="child 1"), forever)
            await manager.start(request(task_id="child 2"), forever)
            tree = await manager.cancel_tree(OWNER, "root")
            assert [task.task_id for task in tree.own] == ["root", "child 1", "child 2"]
            await trio.lowlevel.checkpoint()
            raise AssertionError

        await manager.start(request(task_id="root"), root)
        with trio.fail_after(100):
            for task_id in ("root", "child 1", "child 2"):
                assert (await manager.wait(OWNER, task_id)).status is TaskStatus.CANCELLED
        assert_idle(manager)


@pytest.mark.parametrize("k", range(1, 30))
async def test_a_tree_is_cancelled_whole_or_not_at_all(
    k: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Wherever its caller is cancelled, no task of the tree is left out."""
    store = CheckpointingStore()
    async with open_task_manager(store) as manager:
        await grow(manager, "root", "child<root", "leaf<child")
        with cancel_at(k):
            await manager.cancel_tree(OWNER, "root")
        await trio.testing.wait_all_tasks_blocked()
        marks = {(await stored(store, task_id)).status for task_id in ("root", "child", "leaf")}
        assert len(marks) == 1


async def test_a_cancel_that_failed_does_not_hide_behind_a_resume(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A mark for a stopped task that is not stored is an error, whoever is about to resume it."""
    failed, resumed = trio.Event(), trio.Event()

    async def fail() -> None:
        await resumed.wait()
        await refuse()

    store = SteppedStore(CancelRequested=fail, AttemptStarted=failed.wait)
    async with open_task_manager(store) as manager, trio.open_nursery() as nursery:
        await manager.run(request(task_id="t", supports_resume=True), stop)

        async def cancel() -> None:
            with pytest.raises(ConnectionError):
                await manager.cancel(OWNER, "t")
            failed.set()

        nursery.start_soon(cancel)
        await trio.testing.wait_all_tasks_blocked()
        again = request(task_id="t", supports_resume=True, resume_attempt=1)
        nursery.start_soon(manager.start, again, forever)
        await trio.testing.wait_all_tasks_blocked()
        resumed.set()
        await failed.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert (await stored(store, "t")).status is TaskStatus.RUNNING


async def test_a_cancel_that_meets_an_end_is_not_forgotten(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Accepted while an end without it was on its way, its mark is stored after that end."""
    store = SteppedStore(CancelRequested=refuse, Finished=partial(trio.sleep, 1))
    async with open_task_manager(store) as manager:
        gate = Gate(Stopped("enough"))
        await manager.start(request(task_id="t", supports_resume=True), gate)
        gate.opened.set()
        await trio.testing.wait_all_tasks_blocked()
        summary = await manager.cancel(OWNER, "t")
        assert summary.persistence_error is not None
        await trio.sleep(1)
        del store.steps["CancelRequested"]
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED
        assert_idle(manager)


@pytest.mark.parametrize("outcome", [Success("done"), Stopped("enough")])
async def test_a_cancel_is_taken_along_by_an_end_that_is_retried(
    outcome: Success | Stopped, autojump_clock: trio.testing.MockClock
) -> None:
    """Accepted after the body has ended, while that end cannot be stored: the end is cancelled.

    So it is for good: a value stays visible, nobody can resume it. C22.
    """
    store = FaultyStore()
    async with open_task_manager(store) as manager:
        gate = Gate(outcome)
        await manager.start(request(task_id="t", supports_resume=True), gate)
        await gate.entered.wait()
        store.break_down("apply")
        gate.opened.set()
        await trio.sleep(1)
        summary = await manager.cancel(OWNER, "t")
        assert (summary.status, summary.attempt) == (TaskStatus.RUNNING, 1)
        assert summary.persistence_error is not None
        store.repair()
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED
        record = await stored(store, "t")
        assert record.cancel_requested_at_ms is not None
        assert record.result == (outcome.value if isinstance(outcome, Success) else None)
        history = await manager.history(OWNER, "t")
        assert "finished" in [entry.kind for entry in history]
        assert_idle(manager)


async def test_a_cancel_outlives_a_lost_lease(autojump_clock: trio.testing.MockClock) -> None:
    """Its mark is owed also when the end of the attempt is another's to tell.

    The slot stays for it, but nobody waits for that: others start under a fresh executor.
    """
    store = ReplaceableStore()
    stepped = SteppedStore(store, CancelRequested=refuse)
    async with open_task_manager(stepped) as manager:
        body = Stubborn()
        await manager.start(request(task_id="t", supports_resume=True), body)
        await body.entered.wait()
        await manager.cancel(OWNER, "t")
        store.handles[0].lost.set()
        await trio.testing.wait_all_tasks_blocked()
        body.opened.set()
        await trio.sleep(20)
        assert (await stored(store, "t")).status is TaskStatus.STOPPED
        assert len(store.handles) == 2
        assert (await manager.run(request(OTHER), done)) == Success("done")
        summary = await manager.get(OWNER, "t")
        assert summary is not None
        assert summary.persistence_error is not None
        assert "the cancellation is not stored yet" in summary.persistence_error
        with pytest.raises(TaskNotStopped):
            await manager.start(request(task_id="t", resume_attempt=1), forever)
        del stepped.steps["CancelRequested"]
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED
        await trio.testing.wait_all_tasks_blocked()
        assert_idle(manager)


async def test_a_cancel_of_a_lost_lease_is_given_up_at_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A store that takes nothing does not keep the manager from closing; that names the task."""
    store, began = ReplaceableStore(), math.inf
    named = "closed with 1 ends not stored: t: the cancellation is not stored yet: .*: down"
    with pytest.raises(TaskStoreError, match=named):
        async with open_task_manager(SteppedStore(store, CancelRequested=refuse)) as manager:
            body = Stubborn()
            await manager.start(request(task_id="t"), body)
            await body.entered.wait()
            await manager.cancel(OWNER, "t")
            store.handles[0].lost.set()
            await trio.testing.wait_all_tasks_blocked()
            body.opened.set()
            await trio.sleep(1)
            began = trio.current_time()
    assert trio.current_time() - began < 20


async def test_a_cancel_is_owed_for_as_long_as_the_body_runs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Also past the shutdown grace: a last try is made when a body that would not end has ended."""
    store, body, over = ReplaceableStore(), Stubborn(), trio.Event()
    stepped = SteppedStore(store, CancelRequested=refuse)

    async def let_go() -> None:
        await trio.sleep(100)
        assert not over.is_set()
        del stepped.steps["CancelRequested"]
        body.opened.set()

    async with trio.open_nursery() as nursery:
        async with open_task_manager(stepped) as manager:
            await manager.start(request(task_id="t"), body)
            await body.entered.wait()
            await manager.cancel(OWNER, "t")
            store.handles[0].lost.set()
            nursery.start_soon(let_go)
        over.set()
    assert (await stored(store, "t")).cancel_accepted


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("outcome", [Success("done"), Stopped("enough"), Cancelled()])
async def test_a_cancel_outlives_a_fence_that_is_not_known_here(
    outcome: TaskResult, autojump_clock: trio.testing.MockClock, *, resumed: bool
) -> None:
    """The end is refused; what was accepted is not: the task is cancelled, whoever runs it now."""
    memory, body = MemoryTaskStore(), Stubborn(outcome)
    store = SteppedStore(memory, CancelRequested=refuse)
    async with open_task_manager(store) as manager, open_task_manager(memory) as other:

        async def fence() -> None:
            memory._executors[manager.statistics().executor_id].fence()
            if resumed:
                await other.get(OWNER, "t")
                await other.start(request(task_id="t", resume_attempt=1), forever)

        await manager.start(request(task_id="t", supports_resume=True), body)
        await body.entered.wait()
        await manager.cancel(OWNER, "t")
        store.steps["Finished"] = fence
        body.opened.set()
        await trio.sleep(1)
        assert (await stored(memory, "t")).status is TaskStatus.RUNNING
        assert manager.persistence_error(OWNER, "t") is not None
        store.steps.clear()
        for looking in (manager, other):
            with trio.fail_after(60):
                assert (await looking.wait(OWNER, "t")).status is TaskStatus.CANCELLED
        assert_idle(manager)


async def test_a_run_whose_cancel_is_owed_is_cancelled_for_its_caller(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is not told that somebody else stopped it: that is not how it will end."""
    memory, answers = MemoryTaskStore(), list[TaskResult]()
    store = SteppedStore(memory, CancelRequested=refuse)
    async with open_task_manager(store) as manager, trio.open_nursery() as nursery:

        async def fence() -> None:
            memory._executors[manager.statistics().executor_id].fence()

        async def call() -> None:
            answers.append(await manager.run(request(task_id="t"), forever))

        store.steps["Finished"] = fence
        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        await manager.cancel(OWNER, "t")
        await trio.testing.wait_all_tasks_blocked()
        assert answers == [Cancelled()]
        store.steps.clear()


async def test_closing_does_not_wait_for_the_next_try_of_a_cancel(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The end took the mark along: then there is nothing left to wait for."""
    store, body, began = SteppedStore(CancelRequested=refuse), Stubborn(), math.inf

    async def let_go() -> None:
        await trio.sleep(3.5)
        body.opened.set()

    async with trio.open_nursery() as nursery:
        async with open_task_manager(store) as manager:
            await manager.start(request(task_id="t"), body)
            await body.entered.wait()
            await manager.cancel(OWNER, "t")
            await trio.sleep(20)
            nursery.start_soon(let_go)
            began = trio.current_time()
        assert trio.current_time() - began == 3.5
    assert (await stored(store, "t")).status is TaskStatus.CANCELLED


async def test_a_cancel_that_a_corrupt_record_cannot_take_is_let_go(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """While the attempt runs it is tried again; afterwards it is lost, and the log says so."""

    async def corrupt() -> None:
        raise CorruptRecord("t", "not JSON")

    store, body = ReplaceableStore(), Stubborn()
    async with open_task_manager(SteppedStore(store, CancelRequested=corrupt)) as manager:
        await manager.start(request(task_id="t"), body)
        await body.entered.wait()
        await manager.cancel(OWNER, "t")
        store.handles[0].lost.set()
        await trio.sleep(20)
        assert manager.persistence_error(OWNER, "t") is not None
        assert "is lost" not in caplog.text
        body.opened.set()
        await trio.sleep(6)
        assert_idle(manager)
        assert manager.persistence_error(OWNER, "t") is None
    text = "task t: its cancel is lost: the stored record of task 't' is corrupt: not JSON"
    assert caplog.text.count(text) == 1


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("outcome", [Success("done"), Failed("no"), Stopped("later")])
async def test_a_foreground_run_is_answered_as_its_end_will_be_stored(
    outcome: TaskResult, autojump_clock: trio.testing.MockClock, *, cancelled: bool
) -> None:
    """An accepted cancel decides also while the end is not stored; what succeeded, succeeded."""
    store, body = FaultyStore(), Stubborn(outcome)
    answers: list[TaskResult] = []
    async with open_task_manager(store) as manager, trio.open_nursery() as nursery:

        async def run() -> None:
            answers.append(await manager.run(request(task_id="t"), body))

        nursery.start_soon(run)
        await body.entered.wait()
        if cancelled:
            await manager.cancel(OWNER, "t")
        store.break_down("apply")
        body.opened.set()
        await trio.sleep(1)
        store.repair()
    lost = cancelled and not isinstance(outcome, Success)
    assert answers == [Cancelled() if lost else outcome]


async def test_a_cancel_that_lost_its_answer_and_cannot_be_read_back_ends_nothing_else(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is refused, because the end took it along; that the store cannot say so harms nobody."""
    store, calls = FaultyStore(), ("apply", "load")
    async with open_task_manager(store) as manager:
        await manager.start(request(task_id="other"), forever)
        await manager.start(request(task_id="t"), forever)
        store.break_down(*calls, fault="after")
        await manager.cancel(OWNER, "t")
        await trio.sleep(0.5)
        store.repair()
        await trio.sleep(6)
        assert [t.status for t in await manager.list_tasks(OWNER)] == ["running", "cancelled"]


async def test_what_is_live_is_cancelled_with_its_tree_although_its_record_is_corrupt(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A store fault never hides what is known to be live; who waits for its end is answered."""
    store = CorruptibleStore()
    with pytest.raises(TaskStoreError, match=r"1 ends not stored: child: .* corrupt"):
        async with open_task_manager(store) as manager:
            await manager.start(request(task_id="root"), forever)
            await manager.start(request(task_id="child", parent_task_id="root"), forever)
            store.corrupt("child")
            tree = await manager.cancel_tree(OWNER, "root")
            assert [summary.task_id for summary in tree.own] == ["root", "child"]
            await trio.sleep(6)
            assert_idle(manager)


async def test_an_end_that_is_tried_again_takes_a_cancel_along(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The cancel came between two tries, and the store takes no cancel: the end says it."""
    faulty, gate = FaultyStore(), Gate(Stopped("later"))
    async with open_task_manager(SteppedStore(faulty, CancelRequested=refuse)) as manager:
        await manager.start(request(task_id="t", supports_resume=True), gate)
        await gate.entered.wait()
        faulty.break_down("apply")
        gate.opened.set()
        await trio.sleep(1)
        await manager.cancel(OWNER, "t")
        faulty.repair()
        with trio.fail_after(60):
            assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED
        assert_idle(manager)


async def test_a_cancel_owed_to_a_start_that_is_refused_is_not_forgotten(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Accepted for an attempt that ended meanwhile, it meets the next start, which is refused."""
    failed = trio.Event()

    async def fail() -> None:
        await trio.sleep(2)
        await refuse()

    async def busy() -> None:
        await failed.wait()
        raise StoreBusy("busy")

    store, gate = SteppedStore(CancelRequested=fail, AttemptStarted=busy), Gate(Stopped("enough"))
    async with open_task_manager(store) as manager, trio.open_nursery() as nursery:
        await manager.start(request(task_id="t", supports_resume=True), gate)
        await gate.entered.wait()

        async def resume() -> None:
            with pytest.raises(StoreBusy):
                await manager.start(request(task_id="t", resume_attempt=1), forever)

        async def cancel() -> None:
            assert (await manager.cancel(OWNER, "t")).persistence_error is not None
            failed.set()
            await trio.sleep(10)
            store.steps.clear()

        nursery.start_soon(cancel)
        await trio.sleep(1)
        gate.opened.set()
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(resume)
        await trio.sleep(5)
        summary = await manager.get(OWNER, "t")
        assert summary is not None
        assert summary.status is TaskStatus.STOPPED
        assert summary.persistence_error is not None
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED
        assert_idle(manager)


async def test_a_start_that_is_never_answered_does_not_hold_up_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """After a lost lease only bodies are waited for: that start will have none."""
    store = ReplaceableStore()
    stepped = SteppedStore(store, Registered=trio.sleep_forever)
    async with open_task_manager(stepped) as manager, trio.open_nursery() as nursery:
        nursery.start_soon(manager.start, request(task_id="t"), forever)
        await trio.testing.wait_all_tasks_blocked()
        store.handles[0].lost.set()
        stepped.steps.clear()
        with trio.fail_after(10):
            assert (await manager.run(request(), done)) == Success("done")
        nursery.cancel_scope.cancel()


async def test_a_child_that_starts_while_its_parents_cancel_is_not_stored_is_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its start was under way when the cancel was accepted, so the store could not refuse it."""
    store, gate, body = SteppedStore(), Gate(), Stubborn()
    async with open_task_manager(store) as manager, trio.open_nursery() as nursery:
        await manager.start(request(task_id="parent"), body)
        await body.entered.wait()
        store.steps.update(CancelRequested=refuse, Registered=partial(trio.sleep, 1))
        nursery.start_soon(manager.start, request(task_id="t", parent_task_id="parent"), gate)
        await trio.testing.wait_all_tasks_blocked()
        tree = await manager.cancel_tree(OWNER, "parent")
        assert [task.task_id for task in tree.own] == ["parent"]
        with trio.move_on_after(10):
            await manager.wait(OWNER, "t")
        body.opened.set()
        assert gate.runs == []
        assert (await stored(store, "t")).status is TaskStatus.CANCELLED


async def test_no_child_starts_under_a_cancel_that_is_not_stored_yet(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A body's clean-up starts nothing that the cancel of the tree would have to know of."""
    answers: list[Any] = []
    store = SteppedStore(CancelRequested=refuse)
    async with open_task_manager(store) as manager:

        async def body(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    try:
                        await manager.start(request(task_id="child"), forever)  # noqa: ASYNC102
                    except ParentCancelled as refusal:
                        answers.append(str(refusal))
            return Success()

        await manager.start(request(task_id="t"), body)
        await trio.testing.wait_all_tasks_blocked()
        await manager.cancel_tree(OWNER, "t")
        store.steps.clear()
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED
    assert answers == ["Task 'child' is not started: its parent 't' is cancelled"]
