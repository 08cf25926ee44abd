"""Looking: at one task, at lists, at the journal and the output; counting what is held and done."""

from __future__ import annotations

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
    StoreWrapper,
    assert_idle,
    contents,
    done,
    ended,
    forever,
    grow,
    opened,
    request,
    stop,
    stored,
)
from trio_bgtasks import (
    BackgroundExecution,
    CorruptRecord,
    Event,
    MemoryTaskStore,
    OutputAppended,
    Stopped,
    Success,
    TaskRecord,
    TaskResult,
    TaskStatus,
    UnknownTask,
    open_task_manager,
)
from trio_bgtasks.stores import RecordPage

# ---- looking -------------------------------------------------------------------------------------


async def test_another_owners_task_is_unknown(autojump_clock: trio.testing.MockClock) -> None:
    """Every call answers as for a task that does not exist, byte for byte."""
    store = MemoryTaskStore()
    async with open_task_manager(store) as manager:
        await grow(manager, "t")
        before = await contents(store)
        for task_id in ("t", "absent"):
            assert await manager.get(OTHER, task_id) is None
            assert await manager.record(OTHER, task_id) is None
            assert manager.persistence_error(OTHER, task_id) is None
            for call in (
                manager.cancel,
                manager.cancel_tree,
                manager.output,
                manager.history,
                manager.wait,
            ):
                with pytest.raises(UnknownTask) as caught:
                    await call(OTHER, task_id)
                assert str(caught.value) == f"Unknown task_id: {task_id}"
        assert await manager.list_tasks(OTHER) == []
        assert not await manager.has_running_tasks(OTHER)
        assert manager.live(OTHER) == []
        assert await contents(store) == before
        found = await manager.find("t")
        assert found is not None
        assert await manager.find("absent") is None


async def test_lists_are_in_order_of_creation(autojump_clock: trio.testing.MockClock) -> None:
    """Whatever the clock says, over all pages; by status, type, and place. C32, C34."""
    clock = iter(range(10**9, 0, -1))
    async with opened(clock_ms=lambda: next(clock)) as manager:
        for n in range(450):
            task_type = "odd" if n % 2 else "even"
            await manager.start(request(task_id=f"t{n}", task_type=task_type), done)
        await manager.run(request(task_id="foreground"), done)
        await manager.start(request(task_id="last"), forever)
        listed = [summary.task_id for summary in await manager.list_tasks(OWNER)]
        assert listed == [*(f"t{n}" for n in range(450)), "foreground", "last"]
        odd = await manager.list_tasks(OWNER, task_type="odd", status=TaskStatus.COMPLETED)
        assert [summary.task_id for summary in odd] == [f"t{n}" for n in range(1, 450, 2)]
        running = await manager.list_tasks(OWNER, status=TaskStatus.RUNNING)
        assert [summary.task_id for summary in running] == ["last"]
        background = await manager.list_tasks(OWNER, background_only=True)
        assert "foreground" not in [summary.task_id for summary in background]


async def test_who_listens_is_told_of_start_and_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Both are news to the owner's subscriber, and to no other's."""
    gate = Gate()
    async with (
        open_task_manager() as manager,
        manager.subscribe(OWNER) as mine,
        manager.subscribe(OTHER) as theirs,
    ):
        await manager.start(request(task_id="t"), gate)
        with trio.fail_after(1):
            assert await mine.receive() == "t"
            gate.opened.set()
            assert await mine.receive() == "t"
        with trio.move_on_after(1) as nothing:
            await theirs.receive()
        assert nothing.cancelled_caught


async def test_what_has_ended_does_not_run(autojump_clock: trio.testing.MockClock) -> None:
    """An owner all of whose tasks have ended has none that runs, here or elsewhere."""
    store = MemoryTaskStore()
    async with opened(store) as there, opened(store) as here:
        await ended(here, await here.start(request(), done))
        assert not await here.has_running_tasks(OWNER)
        await there.start(request(), forever)
        assert await here.has_running_tasks(OWNER)


async def test_a_corrupt_record_does_not_hide_the_others(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is left out of lists, and logged; asked for by id it raises. C31."""

    class Corrupt(StoreWrapper):
        """Cannot read one record."""

        async def load(self, task_id: str) -> TaskRecord | None:
            if task_id == "bad":
                raise CorruptRecord("bad", "not JSON")
            return await super().load(task_id)

        async def list_owner(self, owner_thread_id: str, **options: Any) -> RecordPage:
            page = await super().list_owner(owner_thread_id, **options)
            return attrs.evolve(page, corrupt=[CorruptRecord("bad", "not JSON")])

    async with open_task_manager(Corrupt()) as manager:
        await manager.run(request(task_id="good"), done)
        assert [summary.task_id for summary in await manager.list_tasks(OWNER)] == ["good"]
        assert "left out of a list: the stored record of task 'bad' is corrupt" in caplog.text
        with pytest.raises(CorruptRecord, match="not JSON"):
            await manager.get(OWNER, "bad")


async def test_a_store_fault_does_not_hide_what_is_live(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """``get`` and ``live`` go on saying running, and why that is all they know. C38."""
    store = FaultyStore()
    async with opened(store, attempts_total=1) as manager:
        await grow(manager, "t", "waits")
        await manager.run(request(task_id="ended"), done)
        store.break_down("load")
        waits = await manager.get(OWNER, "waits")
        assert waits is not None
        assert waits.queued
        summary = await manager.get(OWNER, "t")
        assert summary is not None
        assert summary.status is TaskStatus.RUNNING
        assert summary.persistence_error == "not read back: ConnectionError: store is down"
        assert not summary.queued
        assert [live.task_id for live in manager.live(OWNER)] == ["t", "waits"]
        with pytest.raises(ConnectionError):
            await manager.get(OWNER, "ended")
        with pytest.raises(ConnectionError):
            await manager.get(OTHER, "t")


async def test_a_start_under_way_is_not_a_running_task(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nothing is reported that is not stored; a look at it waits for the store's answer."""
    store = FaultyStore()
    async with open_task_manager(store) as manager, trio.open_nursery() as nursery:
        store.break_down("apply", fault="slow", last=1)
        nursery.start_soon(manager.start, request(task_id="t"), forever)
        await trio.testing.wait_all_tasks_blocked()
        assert manager.live(OWNER) == []
        assert not await manager.has_running_tasks(OWNER)
        assert await manager.list_tasks(OWNER) == []
        began = trio.current_time()
        assert await manager.get(OWNER, "t") is not None
        assert trio.current_time() - began == 10


async def test_a_running_summary_only_is_decorated(autojump_clock: trio.testing.MockClock) -> None:
    """Once the record says that a task ended, that is the answer, whatever we still try to store."""
    store = FaultyStore()
    async with open_task_manager(store) as manager:
        store.break_down("apply", fault="hang after", first=2)
        await manager.start(request(task_id="t"), done)
        await trio.sleep(1)
        assert manager.live(OWNER)
        assert await manager.get(OWNER, "t") == (await stored(store, "t")).summary()
        assert (await stored(store, "t")).result == "done"


async def test_what_is_handed_out_can_be_changed(autojump_clock: trio.testing.MockClock) -> None:
    """Summaries, records, notices and requests share nothing with the store."""
    store = MemoryTaskStore()
    args: dict[str, Any] = {"list": [1]}
    async with open_task_manager(store) as manager:
        asked = request(task_id="t", args=args, metadata=args)
        args["list"].append(2)
        summary = await manager.start(asked, done)
        await manager.wait(OWNER, "t")
        for record in (await manager.record(OWNER, "t"), await manager.find("t")):
            assert record is not None
            record.args["list"].append(3)  # type: ignore[union-attr]
            record.metadata.clear()
        summary.metadata.clear()
        (notice,) = await manager.take_notices(OWNER)
        notice.metadata.clear()
        record = await stored(store, "t")
        assert record.args == record.metadata == {"list": [1]}


async def test_the_journal_tells_who_did_what(autojump_clock: trio.testing.MockClock) -> None:
    """Status changes and cancels, in order, with attempt and executor."""
    async with open_task_manager() as manager:
        await manager.run(request(task_id="t", supports_resume=True), stop)
        await manager.start(request(task_id="t", resume_attempt=1), forever)
        await manager.cancel(OWNER, "t")
        await manager.wait(OWNER, "t")
        executor_id = manager.statistics().executor_id
        lines = [
            (entry.kind, entry.attempt, entry.status.value, entry.executor_id)
            for entry in await manager.history(OWNER, "t")
        ]
        assert lines == [
            ("registered", 1, "running", executor_id),
            ("finished", 1, "stopped", executor_id),
            ("attempt_started", 2, "running", executor_id),
            ("cancel_requested", 2, "running", None),
            ("finished", 2, "cancelled", executor_id),
        ]


async def test_output_in_pages(autojump_clock: trio.testing.MockClock) -> None:
    """By default 64 KiB a page; reading on at ``next_offset`` shows everything once."""
    async with open_task_manager() as manager:

        async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
            await execution.write_output("0123456789" * 20_000)
            return Success()

        await manager.run(request(task_id="t"), body)
        pages, offset = list[str](), 0
        while offset < 200_000:
            page = await manager.output(OWNER, "t", offset=offset)
            assert len(page.text) <= 64 << 10
            pages.append(page.text)
            offset = page.next_offset
        assert "".join(pages) == "0123456789" * 20_000
        assert (await manager.output(OWNER, "t", offset=-5, limit=1 << 60)).text == "56789"


# ---- counting ------------------------------------------------------------------------------------


async def test_statistics(autojump_clock: trio.testing.MockClock) -> None:
    """What is held at this moment, and what was done so far."""
    store = FaultyStore()
    async with opened(store, attempts_total=1) as manager, trio.open_nursery() as nursery:
        assert_idle(manager)
        gate = Gate()
        nursery.start_soon(manager.run, request(OTHER), gate)
        await manager.start(request(), gate)
        await manager.start(request(task_id="queued"), gate)
        await gate.entered.wait()
        nursery.start_soon(manager.wait, OWNER, "queued")
        store.break_down("apply", fault="slow", last=1)
        nursery.start_soon(manager.start, request(), done)
        async with manager.subscribe(OWNER):
            await trio.testing.wait_all_tasks_blocked()
            seen = manager.statistics()
        assert (seen.owners, seen.starting, seen.queued) == (1, 1, 1)
        assert (seen.background, seen.foreground, seen.unsaved) == (1, 1, 0)
        assert (seen.waiters, seen.subscribers) == (1, 1)
        assert (seen.started, seen.finished, seen.write_retries) == (3, 0, 0)
        assert seen.executor_id.startswith("ex_")
        gate.opened.set()
        await trio.sleep(20)
        seen = manager.statistics()
        assert (seen.started, seen.finished, seen.waiters, seen.subscribers) == (4, 4, 0, 0)
        assert_idle(manager)


async def test_the_events_are_those_of_the_contract(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A wrapper that overrides ``apply`` sees every change of a task, one event a call."""
    seen: list[str] = []

    class Log(StoreWrapper):
        """Writes down what is applied."""

        async def apply(self, task_id: str, event: Event) -> TaskRecord:
            seen.append(type(event).__name__)
            return await super().apply(task_id, event)

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        await execution.save_checkpoint(1)
        await execution.write_output("x")
        await trio.sleep(1)
        await execution.report_progress(1)
        await trio.sleep(1)
        return Stopped()

    async with open_task_manager(Log()) as manager:
        await manager.run(request(task_id="t", supports_resume=True), body)
        await manager.start(request(task_id="t", resume_attempt=1), forever)
        await manager.cancel(OWNER, "t")
        await manager.wait(OWNER, "t")
    assert seen == [
        "Registered",
        "CheckpointSaved",
        OutputAppended.__name__,
        "ProgressReported",
        "Finished",
        "AttemptStarted",
        "CancelRequested",
        "Finished",
    ]
