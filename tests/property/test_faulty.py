"""`FaultyStore` goes wrong as it is told, and is otherwise the store that it is around."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trio_bgtasks import LeaseTerms, MemoryTaskStore, Registered, TaskStore
from trio_bgtasks.testing import Fault, FaultyStore


async def registered(store: TaskStore, executor_id: str, task_id: str = "t") -> None:
    """Start a task."""
    await store.apply(task_id, Registered(1, executor_id, "ann", "work", "some work"))


@pytest.mark.parametrize(
    ("fault", "applied", "answers"),
    [
        ("before", 0, "error"),
        ("after", 1, "error"),
        ("hang", 0, "never"),
        ("hang after", 1, "never"),
        ("slow", 1, "answer"),
        ("wait", 0, "never"),
    ],
)
async def test_each_fault_is_what_it_says(
    fault: Fault, applied: int, answers: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Whether the call was applied, and what its caller gets, is what the fault says."""
    store = FaultyStore()
    got = "never"
    async with store.executor(LeaseTerms()) as handle:
        store.break_down("apply", fault=fault)
        with trio.move_on_after(20):
            try:
                await registered(store, handle.executor_id)
            except ConnectionError:
                got = "error"
            else:
                got = "answer"
        assert got == answers
        assert len(await store.inner.owners()) == applied
        assert store.struck == 1


async def test_which_calls_go_wrong(autojump_clock: trio.testing.MockClock) -> None:
    """The named ones, from the first to the last that is asked for; counted together."""
    store = FaultyStore(MemoryTaskStore())
    store.break_down("load", "history", first=2, last=3, error=lambda: OSError("disk"))
    await store.load("t")
    with pytest.raises(OSError, match="disk"):
        await store.history("t")
    assert await store.owners() == []
    with pytest.raises(OSError, match="disk"):
        await store.load("t")
    assert await store.load("t") is None
    assert (store.struck, store.made.total(), store.broken) == (2, 4, True)
    store.repair()
    assert not store.broken


async def test_what_waits_is_made_when_the_store_is_repaired(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A call that waits is applied afterwards, however long that takes."""
    store = FaultyStore()
    async with store.executor(LeaseTerms()) as handle, trio.open_nursery() as nursery:
        store.break_down("apply", fault="wait")
        nursery.start_soon(registered, store, handle.executor_id)
        await trio.sleep(1000)
        assert await store.load("t") is None
        store.repair()
        await trio.testing.wait_all_tasks_blocked()
        assert await store.load("t") is not None


async def test_a_registration_goes_wrong(autojump_clock: trio.testing.MockClock) -> None:
    """An executor that could not be registered is none; the next one can."""
    store = FaultyStore()
    store.break_down("executor", last=1, fault="after")
    with pytest.raises(ConnectionError):
        async with store.executor(LeaseTerms()):
            raise AssertionError
    async with store.executor(LeaseTerms()) as handle:
        await registered(store, handle.executor_id)
