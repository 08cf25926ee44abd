"""Cancels that meet an end, a resume, a lost lease, or the caller's own cancellation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.support import (
    OWNER,
    CheckpointingStore,
    FaultyStore,
    Gate,
    ReplaceableStore,
    StoreWrapper,
    Stubborn,
    assert_idle,
    cancel_at,
    forever,
    grow,
    request,
    stop,
    stored,
)
from trio_bgtasks import (
    BackgroundExecution,
    Event,
    ParentCancelled,
    Stopped,
    Success,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskStore,
    open_task_manager,
)

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
    """Its mark is owed also when the end of the attempt is another's to tell."""
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
        assert (await stored(store, "t")).cancel_requested_at_ms is None
        assert len(store.handles) == 1  # the old one is still needed
        del stepped.steps["CancelRequested"]
        await trio.sleep(20)
        assert (await stored(store, "t")).cancel_requested_at_ms is not None
        assert_idle(manager)
        assert len(store.handles) == 2


async def test_a_cancel_of_a_lost_lease_is_given_up_at_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A store that takes nothing does not keep the manager from closing."""
    store = ReplaceableStore()
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
                        await manager.start(request(), forever)  # noqa: ASYNC102
                    except ParentCancelled as refusal:
                        answers.append(refusal.parent_task_id)
            return Success()

        await manager.start(request(task_id="t"), body)
        await trio.testing.wait_all_tasks_blocked()
        await manager.cancel_tree(OWNER, "t")
        store.steps.clear()
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED
    assert answers == ["t"]
