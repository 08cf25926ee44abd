"""What the runtime logs: who reads it finds the task, and why, without reading the code."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from tests.support import (
    OWNER,
    FaultyStore,
    ReplaceableStore,
    StallingStore,
    StoreWrapper,
    Stubborn,
    done,
    ended,
    forever,
    grow,
    opened,
    request,
)
from trio_bgtasks import (
    BackgroundExecution,
    CorruptRecord,
    Event,
    Failed,
    LeaseTerms,
    MemoryTaskStore,
    TaskRecord,
    TaskResult,
    TaskStoreError,
)
from trio_bgtasks._events import CancelRequested, Registered
from trio_bgtasks.stores import ExecutorHandle, RecordPage, SweepReport, wall_clock_ms
from trio_bgtasks.testing import CorruptibleStore

FIELDS = ("task_id", "owner_thread_id", "attempt")
T = {"task_id": "t", "owner_thread_id": OWNER, "attempt": 1}
DOWN = "ConnectionError: store is down"
NOT_JSON = "the stored record of task 'bad' is corrupt: not JSON"

Line = tuple[str, str, str, dict[str, object]]


def lines(caplog: pytest.LogCaptureFixture) -> list[Line]:
    """Return logger, level, text and ``extra`` fields of each line."""
    return [
        (
            record.name.removeprefix("trio_bgtasks."),
            record.levelname,
            record.getMessage(),
            {name: getattr(record, name) for name in FIELDS if hasattr(record, name)},
        )
        for record in caplog.records
    ]


async def test_the_end_of_an_attempt(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Each end has its line; what a body raised is an error, with the traceback."""
    caplog.set_level(logging.INFO, "trio_bgtasks")

    async def raises(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError("by zero")

    store = ReplaceableStore()
    async with opened(store) as manager:
        await manager.run(request(task_id="t"), done)
        await ended(manager, await manager.start(request(task_id="u"), raises))
        await manager.start(request(task_id="v"), forever)
        await trio.testing.wait_all_tasks_blocked()
        executor_id = manager.statistics().executor_id
        store.handles[0].lost.set()
        await trio.sleep(1)
    u, v = {**T, "task_id": "u"}, {**T, "task_id": "v"}
    assert lines(caplog) == [
        ("supervision", "INFO", "task t ended: completed", T),
        ("supervision", "ERROR", "task u raised", u),
        ("supervision", "INFO", "task u ended: failed", u),
        ("liveness", "WARNING", f"executor {executor_id} lost its lease", {}),
        ("supervision", "INFO", "task v ended: nothing recorded: lease lost", v),
    ]
    assert "ZeroDivisionError: by zero" in caplog.text


async def test_an_end_that_is_not_stored_yet(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The first refusal and each further one is told; so is what is lost at the exit."""
    store = FaultyStore()
    with pytest.raises(TaskStoreError):
        async with opened(store, shutdown_grace_s=0) as manager:
            gates = await grow(manager, "t")
            store.break_down("apply")
            gates["t"].opened.set()
            await trio.sleep(0.3)
    why = f"the task ended as completed, which is not stored yet: {DOWN}"
    unsaved: Line = ("supervision", "WARNING", f"task t: {why}", T)
    assert lines(caplog)[:2] == [unsaved, unsaved]
    lost: Line = ("manager", "ERROR", f"closed with 1 ends not stored: t: {why}", {})
    assert lines(caplog)[-1] == lost


async def test_an_end_that_is_lost(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """That a corrupt record cannot take an end is told once more, as an error."""
    store = CorruptibleStore()
    with pytest.raises(TaskStoreError):
        async with opened(store) as manager:
            gates = await grow(manager, "t")
            store.corrupt("t")
            gates["t"].opened.set()
            await trio.sleep(1)
    told = next(line for line in lines(caplog) if line[1] == "ERROR")
    why = "the stored record of task 't' is corrupt: damaged"
    assert told == ("supervision", "ERROR", f"task t: its end is lost: {why}", T)


async def test_a_cancel_that_is_not_stored_yet(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The same of a cancel; one that a corrupt record cannot take is lost when its body ends."""

    class Corrupt(StoreWrapper):
        async def apply(self, task_id: str, event: Event) -> TaskRecord:
            if isinstance(event, CancelRequested):
                raise CorruptRecord("bad", "not JSON")
            return await super().apply(task_id, event)

    store, body = ReplaceableStore(), Stubborn()
    async with opened(Corrupt(store)) as manager:
        await manager.start(request(task_id="t"), body)
        await body.entered.wait()
        await manager.cancel(OWNER, "t")
        store.handles[0].lost.set()  # its end will not be written, nor take the cancel along
        await trio.sleep(0.3)
        body.opened.set()
        await trio.sleep(6)
    told = [line for line in lines(caplog) if line[0] == "supervision"]
    first = f"task t: the cancellation is not stored yet: CorruptRecord: {NOT_JSON}"
    again = f"task t: its cancel is not stored: {NOT_JSON}"
    assert told[:2] == [("supervision", "WARNING", first, T), ("supervision", "WARNING", again, T)]
    assert told[-1] == ("supervision", "ERROR", f"task t: its cancel is lost: {NOT_JSON}", T)


async def test_a_sweep(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What it found, what it could not end, what it could not read, and why it failed."""

    class Bad(FaultyStore):
        async def apply(self, task_id: str, event: Event) -> TaskRecord:
            if task_id == "bad" and not isinstance(event, Registered):
                raise CorruptRecord("bad", "not JSON")
            return await super().apply(task_id, event)

        async def sweep(
            self, executor_id: str, at_ms: int, *, suspect: str | None = None
        ) -> SweepReport:
            report = await super().sweep(executor_id, at_ms, suspect=suspect)
            return attrs.evolve(report, corrupt=[CorruptRecord("bad", "not JSON")])

    shared = MemoryTaskStore()
    store = Bad(shared)
    async with opened(shared, sweep_s=1e6) as there, opened(store, sweep_s=40) as here:
        await there.start(request(task_id="dead"), forever)
        executor_id = here.statistics().executor_id
        for task_id in ("bad", "left"):
            event = Registered(1, executor_id, OWNER, "work", "")
            await shared.apply(task_id, event)
        shared.crash(there.statistics().executor_id)
        caplog.clear()
        await trio.sleep(41)
        store.break_down("sweep", last=1)
        await trio.sleep(40)
        store.break_down("sweep", fault="hang", last=1)
        await trio.sleep(80)
        store.repair()
        found = [line for line in lines(caplog) if line[0] == "liveness"]
    bad = {"task_id": "bad"}
    assert found[:4] == [
        ("liveness", "ERROR", f"passed over in a sweep: {NOT_JSON}", bad),
        (
            *("liveness", "WARNING", "task dead was an orphan"),
            {"task_id": "dead", "owner_thread_id": OWNER},
        ),
        ("liveness", "WARNING", f"task bad is left behind: {NOT_JSON}", {**bad, "attempt": 1}),
        ("liveness", "WARNING", "task left was left behind", {"task_id": "left", "attempt": 1}),
    ]
    assert ("liveness", "WARNING", f"sweep failed: {DOWN}", {}) in found
    assert ("liveness", "WARNING", "sweep failed: the store did not answer in time", {}) in found


async def test_a_poll_for_cancels(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A poll that failed says so."""
    store = FaultyStore()
    async with opened(store, poll_s=2) as manager:
        await manager.start(request(), forever)
        store.break_down("cancel_marks", last=1)
        await trio.sleep(3)
    assert lines(caplog) == [("liveness", "WARNING", f"poll for cancels failed: {DOWN}", {})]


async def test_an_executor_that_cannot_retire(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named, and the store's exception is told with its traceback."""

    class RetiringBadly(StoreWrapper):
        @asynccontextmanager
        async def _executor(self, *terms: Any) -> AsyncGenerator[ExecutorHandle, None]:
            async with self.inner.executor(*terms) as handle:
                yield handle
                raise OSError("not retired")

        def executor(
            self, terms: LeaseTerms, clock_ms: Callable[[], int] = wall_clock_ms
        ) -> AbstractAsyncContextManager[ExecutorHandle]:
            return self._executor(terms, clock_ms)

    async with opened(RetiringBadly()) as manager:
        executor_id = manager.statistics().executor_id
    text = f"executor {executor_id}: not retired, or no fresh one"
    assert lines(caplog) == [("liveness", "ERROR", text, {})]
    assert "OSError: not retired" in caplog.text


async def test_bodies_that_do_not_end(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing names them all, in order."""
    bodies = {"b": Stubborn(), "a": Stubborn()}

    async def let_go() -> None:
        await trio.sleep(45)
        for body in bodies.values():
            body.opened.set()

    async with trio.open_nursery() as nursery, opened(shutdown_grace_s=30) as manager:
        for task_id, body in bodies.items():
            await manager.start(request(task_id=task_id), body)
            await body.entered.wait()
        nursery.start_soon(let_go)
    text = "closing still waits for the bodies of: a, b"
    assert lines(caplog) == [("manager", "WARNING", text, {})]


async def test_what_a_list_or_a_tree_leaves_out(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A record that cannot be read is named; so is a task whose children cannot be read."""

    class Corrupt(FaultyStore):
        async def children(self, task_id: str, **options: Any) -> RecordPage:
            page = await super().children(task_id, **options)
            corrupt = [CorruptRecord("bad", "not JSON")] if task_id == "t" else []
            return attrs.evolve(page, corrupt=corrupt)

        async def list_owner(self, owner_thread_id: str, **options: Any) -> RecordPage:
            page = await super().list_owner(owner_thread_id, **options)
            return attrs.evolve(page, corrupt=[CorruptRecord("bad", "not JSON")])

    store = Corrupt()
    async with opened(store) as manager:
        await grow(manager, "t", "u")
        await manager.list_tasks(OWNER)
        await manager.cancel_tree(OWNER, "t")
        store.break_down("children")
        with pytest.raises(ConnectionError):
            await manager.cancel_tree(OWNER, "u")
    bad = {"task_id": "bad"}
    told = lines(caplog)
    assert told[0] == ("manager", "ERROR", f"left out of a list: {NOT_JSON}", bad)
    assert ("manager", "ERROR", f"not cancelled: {NOT_JSON}", bad) in told
    text = "children of u not read: store is down"
    assert told[-1] == ("manager", "WARNING", text, {"task_id": "u"})


async def test_a_start_whose_records_cannot_be_read(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A start of unknown answer, and one whose parent has ended, say what they could not read."""
    store = FaultyStore()
    async with opened(store, attempts_total=1) as manager:
        await ended(manager, await manager.start(request(task_id="top"), done))
        store.break_down("load", last=1)
        await manager.start(request(parent_task_id="top"), done)
        store.break_down("apply", "load", last=2)
        with pytest.raises(TaskStoreError):
            await manager.start(request(task_id="t"), done)
        told = lines(caplog)
        store.break_down("apply", "load")
        with pytest.raises(TaskStoreError):
            await manager.start(request(task_id="t"), done)
        store.repair()
    unstarted = {**T, "attempt": None}
    assert told == [
        ("manager", "WARNING", "parent not read: store is down", {"task_id": "top"}),
        ("manager", "WARNING", "start not read back: store is down", unstarted),
    ]
    text = f"task t: the task ended as stopped, which is not stored yet: {DOWN}"
    assert ("supervision", "WARNING", text, unstarted) in lines(caplog)


async def test_output_that_is_not_stored_yet(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The attempt whose output it is can be found."""
    store = FaultyStore()

    async def writes(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        store.break_down("apply", last=1)
        await execution.write_output("text")
        await trio.sleep(1)
        return Failed("enough")

    async with opened(store) as manager:
        await ended(manager, await manager.start(request(task_id="t"), writes))
    text = f"output not stored yet: {DOWN}"
    assert lines(caplog) == [("execution", "WARNING", text, T)]


async def test_an_executor_that_did_not_renew(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Both sides tell of it: who lost the lease, and who found the orphan."""
    store = MemoryTaskStore()
    terms = LeaseTerms(lease_s=20, renew_s=10)
    async with opened(store, sweep_s=1) as other, opened(StallingStore(store), lease=terms) as us:
        executor_id = us.statistics().executor_id
        await us.start(request(task_id="t"), forever)
        await other.wait(OWNER, "t")
        await trio.testing.wait_all_tasks_blocked()
    orphan = {"task_id": "t", "owner_thread_id": OWNER}
    assert ("liveness", "WARNING", "task t was an orphan", orphan) in lines(caplog)
    assert ("liveness", "WARNING", f"executor {executor_id} lost its lease", {}) in lines(caplog)
