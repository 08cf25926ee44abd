"""Cancels whose answers, or whose marks, arrive in an order of their own."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import logging
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
import trio.testing

from tests.support import OWNER, StoreWrapper, done, request, stop, stored
from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    Cancelled,
    CancelRequested,
    Event,
    Finished,
    Success,
    TaskNotRunning,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskStoreError,
    open_task_manager,
)
from trio_bgtasks._ending import Ends
from trio_bgtasks._owners import OwnerNursery

Body = Callable[[BackgroundExecution, trio.CancelScope], Awaitable[TaskResult]]


class SlowToAnswer(StoreWrapper):
    """Stores an end at once and answers a second later; takes no cancel while it is ``down``."""

    down = False

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        if self.down and isinstance(event, CancelRequested):
            raise ConnectionError("down")
        record = await super().apply(task_id, event)
        if isinstance(event, Finished):
            await trio.sleep(1)
        return record


async def owing(manager: BackgroundTaskManager, store: SlowToAnswer, body: Body = stop) -> None:
    """Start a task, and cancel it in vain while the answer to its end is on its way."""
    await manager.start(request(task_id="t"), body)
    await trio.sleep(0.1)
    store.down = True
    assert (await manager.cancel(OWNER, "t")).persistence_error is not None


async def test_the_answer_to_an_end_does_not_outdate_a_cancel(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Stopped, then cancelled, says the store; who asks is told so, whichever answer came first."""
    store = SlowToAnswer()
    results: list[object] = []
    async with open_task_manager(store) as manager, trio.open_nursery() as nursery:

        async def run() -> None:
            results.append(await manager.run(request(task_id="t"), stop))

        async def wait() -> None:
            results.append((await manager.wait(OWNER, "t")).status)

        nursery.start_soon(run)
        await trio.sleep(0.1)
        nursery.start_soon(wait)
        await trio.sleep(0.1)
        assert (await manager.cancel(OWNER, "t")).status is TaskStatus.CANCELLED
    assert sorted(map(str, results)) == sorted(map(str, [Cancelled(), TaskStatus.CANCELLED]))


@pytest.mark.parametrize("by", ["us", "others"])
async def test_a_cancel_that_was_owed_is_what_waiters_are_told(
    by: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Whoever stores it in the end, a second cancel or another process."""
    store = SlowToAnswer()
    async with open_task_manager(store) as manager, trio.open_nursery() as nursery:
        await owing(manager, store)

        async def wait() -> None:
            assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED

        nursery.start_soon(wait)
        await trio.sleep(1)
        if by == "others":
            await store.inner.apply("t", CancelRequested(5))
        store.down = False
        if by == "us":
            assert (await manager.cancel(OWNER, "t")).status is TaskStatus.CANCELLED


async def test_a_late_cancel_is_settled_also_if_the_end_cannot_be_read_at_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Refused, and then the store is down: that is tried again, and ends nothing else."""

    class Unreadable(SlowToAnswer):
        unreadable = False

        async def load(self, task_id: str) -> TaskRecord | None:
            if self.unreadable:
                raise ConnectionError("down")
            return await super().load(task_id)

    store = Unreadable()
    async with open_task_manager(store) as manager:
        await owing(manager, store, done)
        store.down, store.unreadable = False, True
        await trio.sleep(5)
        store.unreadable = False
        await trio.sleep(5)
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.COMPLETED
        with pytest.raises(TaskNotRunning):
            await manager.cancel(OWNER, "t")


async def test_a_cancel_that_came_too_late_is_not_owed_any_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Refused because the task had completed, it is no accepted cancel: the next one is refused."""
    store = SlowToAnswer()
    async with open_task_manager(store) as manager:
        await owing(manager, store, done)
        store.down = False
        await trio.sleep(0.3)
        store.down = True
        with pytest.raises(ConnectionError):
            await manager.cancel(OWNER, "t")
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.COMPLETED


async def test_a_cancel_that_is_owed_is_accepted_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Also when the end of the attempt, stopped, is stored already."""
    store = SlowToAnswer()
    async with open_task_manager(store) as manager:
        await owing(manager, store)
        await trio.sleep(1)
        assert (await manager.cancel(OWNER, "t")).persistence_error is not None
        store.down = False
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED


class Down(StoreWrapper):
    """Takes no end while it is ``down``."""

    down = True

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        if self.down and isinstance(event, Finished):
            raise TaskStoreError("down")
        return await super().apply(task_id, event)


async def test_an_end_is_stored_before_its_executor_is_retired(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Who loses the lease in an outage that also keeps an end unsaved does not fence that end."""
    store = Down()

    async def work(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
        return Success("done")

    async with open_task_manager(store) as manager:
        await manager.start(request(task_id="t"), work)
        await trio.sleep(0.1)
        handle = manager._liveness.current
        assert handle is not None
        handle.lost.set()
        await trio.sleep(0.5)
        store.down = False
        await trio.sleep(20)
        assert (await stored(store, "t")).result == "done"


async def test_a_logging_filter_that_raises_keeps_no_cancel_from_being_stored(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The cancel raises what the filter raised; the mark is stored all the same."""
    store = SlowToAnswer()

    def broken(_: logging.LogRecord) -> bool:
        raise RuntimeError("filter")

    log = logging.getLogger("trio_bgtasks.supervision")
    async with open_task_manager(store) as manager:
        log.addFilter(broken)
        try:
            with pytest.raises(RuntimeError, match="filter"):
                await owing(manager, store)
        finally:
            log.removeFilter(broken)
        store.down = False
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED


@pytest.mark.parametrize(
    ("kind", "name"), [(OwnerNursery, "unhold"), (Ends, "owe_mark")], ids=["frees", "owes"]
)
def test_ctrl_c_does_not_break_a_cancel_in_two(
    kind: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised where the cancel waits or ends: nothing stays held, nothing is forgotten."""
    real = getattr(kind, name)

    def interrupted(*args: object) -> None:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)
        real(*args)

    async def main() -> None:
        store = SlowToAnswer()
        async with open_task_manager(store) as manager:
            await manager.start(request(task_id="t"), stop)
            await trio.sleep(0.1)
            store.down = True
            if name == "unhold":
                await manager.cancel(OWNER, "t")
                await trio.sleep(1)
                store.down = False
            monkeypatch.setattr(kind, name, interrupted)
            with suppress(KeyboardInterrupt):
                await manager.cancel(OWNER, "t")
                await trio.sleep(0.1)
            store.down = False
            with trio.fail_after(100):
                assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED

    with suppress(KeyboardInterrupt):  # it may come at the very end
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
