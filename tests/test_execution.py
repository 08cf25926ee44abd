"""What a body holds: its record, checkpoints, output, progress; and the attempts around a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
import trio
import trio.testing

from tests.support import (
    OWNER,
    FaultyStore,
    ReplaceableStore,
    StoreWrapper,
    done,
    ended,
    forever,
    opened,
    request,
    stored,
)
from trio_bgtasks import (
    BackgroundExecution,
    Event,
    MemoryTaskStore,
    OutputAppended,
    Progress,
    ProgressReported,
    Refused,
    StaleAttempt,
    Stopped,
    Success,
    TaskRecord,
    TaskResult,
    TaskStoreError,
    open_task_manager,
)

Use = Callable[[BackgroundExecution], Awaitable[Any]]


async def use(
    store: Any, use: Use, *, task_id: str = "t", result: TaskResult | None = None, **config: Any
) -> TaskRecord:
    """Run ``use(execution)`` as a task; return its record afterwards."""

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        await use(execution)
        return Success() if result is None else result

    async with opened(store, **config) as manager:
        await manager.run(request(task_id=task_id, supports_resume=True), body)
    return await stored(store, task_id)


# ---- the record ----------------------------------------------------------------------------------


async def test_a_body_knows_its_task(autojump_clock: trio.testing.MockClock) -> None:
    """Ids, attempt, parent and scope are those of the record; it is no resume at first."""
    seen: list[BackgroundExecution] = []

    async def body(execution: BackgroundExecution, scope: trio.CancelScope) -> TaskResult:
        seen.append(execution)
        assert execution.cancel_scope is scope
        assert execution.stopping is None
        assert repr(execution) == "<BackgroundExecution t attempt 1 >"
        return Stopped()

    asked = request(task_id="t", parent_task_id="p", supports_resume=True)
    async with open_task_manager() as manager:
        await manager.run(asked, body)
        resumed = request(task_id="t", resume_attempt=1, parent_task_id="ignored")
        await ended(manager, await manager.start(resumed, body))
    first, second = seen
    assert (first.task_id, first.owner_thread_id, first.parent_task_id) == ("t", OWNER, "p")
    assert (first.attempt, first.is_resume) == (1, False)
    assert (second.attempt, second.is_resume, second.parent_task_id) == (2, True, "p")
    assert first.lock_fds == ()


# ---- checkpoints ---------------------------------------------------------------------------------


async def test_a_checkpoint_is_durable_and_handed_to_the_next_attempt(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is stored when the call returns, kept over a resume, and a private copy everywhere. C13."""
    store, found = MemoryTaskStore(), list[Any]()

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        found.append(execution.checkpoint)
        value: dict[str, list[Any]] = {"seen": [execution.attempt]}
        await execution.save_checkpoint(value)
        value["seen"].append("changed later")
        record = await store.load("t")
        assert record is not None
        assert record.checkpoint == execution.checkpoint == {"seen": [execution.attempt]}
        execution.checkpoint["seen"].append("changed, too")
        return Stopped()

    async with open_task_manager(store) as manager:
        await manager.run(request(task_id="t", supports_resume=True), body)
        await manager.run(request(task_id="t", resume_attempt=1), body)
    assert found == [None, {"seen": [1]}]
    assert (await stored(store, "t")).checkpoint == {"seen": [2]}


async def test_a_checkpoint_that_is_not_stored_says_so(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A store that fails raises to the body; the last checkpoint stays, here and there."""
    store = FaultyStore()

    async def body(execution: BackgroundExecution) -> None:
        await execution.save_checkpoint(1)
        store.break_down("apply", last=1, error=lambda: TaskStoreError("no"))
        with pytest.raises(TaskStoreError, match="no"):
            await execution.save_checkpoint(2)
        assert execution.checkpoint == 1

    assert (await use(store, body)).checkpoint == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), r"checkpoint is not JSON: \$: float nan is not finite"),
        ({"a": [object()]}, r"checkpoint is not JSON: \$\.a\[0\]: object"),
        ("\ud800", r"checkpoint is not JSON: \$: character U\+D800 in a string"),
    ],
)
async def test_a_checkpoint_that_is_not_json_is_refused(
    value: Any, text: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The error names what is wrong; the last checkpoint stays."""

    async def body(execution: BackgroundExecution) -> None:
        await execution.save_checkpoint(1)
        with pytest.raises(ValueError, match=text):
            await execution.save_checkpoint(value)

    assert (await use(MemoryTaskStore(), body)).checkpoint == 1


async def test_an_ended_attempt_writes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """What a body left behind is refused, also before its end is stored. C11, C33."""
    kept: list[BackgroundExecution] = []

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        kept.append(execution)
        return Stopped()

    store = MemoryTaskStore()
    async with open_task_manager(store) as manager:
        await manager.run(request(task_id="t", supports_resume=True), body)
        with pytest.raises(StaleAttempt) as caught:
            await kept[0].save_checkpoint(1)
        assert str(caught.value) == (
            "attempt 1 of task 't' may not write any more "
            "(current attempt: 1, current status: ended)"
        )
        await manager.start(request(task_id="t", resume_attempt=1), forever)
        before = await stored(store, "t")
        with pytest.raises(StaleAttempt, match="may not write any more"):
            await kept[0].save_checkpoint(1)
        with pytest.raises(StaleAttempt, match="may not write any more"):
            await kept[0].write_output("late")
        with pytest.raises(Refused, match="may not write any more"):
            await kept[0].report_progress(1)
        await trio.sleep(1)
        assert await stored(store, "t") == before


# ---- output --------------------------------------------------------------------------------------


class Spy(StoreWrapper):
    """Remembers the changes that attempts made."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[float, Event]] = []

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        self.events.append((trio.current_time(), event))
        return await super().apply(task_id, event)

    def of(self, kind: type[Any]) -> list[Any]:
        """Return the events of a class."""
        return [event for _, event in self.events if isinstance(event, kind)]


async def test_output_is_readable_soon(autojump_clock: trio.testing.MockClock) -> None:
    """What a body says can be read within a tenth of a second, while it runs."""
    async with open_task_manager() as manager:

        async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
            for n in range(5):
                await execution.write_output(f"line {n}\n")
                await trio.sleep(0.1)
                page = await manager.output(OWNER, "t")
                assert page.text.endswith(f"line {n}\n")
            return Success()

        await manager.run(request(task_id="t"), body)
        assert (await manager.output(OWNER, "t")).text.count("\n") == 5


async def test_a_chatty_body_makes_few_writes(autojump_clock: trio.testing.MockClock) -> None:
    """Text gathers: a line every millisecond is not a thousand writes a second."""
    store = Spy()

    async def body(execution: BackgroundExecution) -> None:
        for _ in range(2000):
            await execution.write_output("x")
            await trio.sleep(0.001)

    assert (await use(store, body)).output_bytes == 2000
    assert 20 < len(store.of(OutputAppended)) <= 60


async def test_output_of_a_cancelled_body_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    """What is written in a cancelled scope, and at the very end, is stored with the end."""
    store = MemoryTaskStore()

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        await execution.write_output("one,")
        try:
            await trio.sleep_forever()
        finally:
            with pytest.raises(trio.Cancelled):
                await execution.write_output("two,")
            with trio.CancelScope(shield=True):
                await execution.write_output("three")

    async with open_task_manager(store) as manager:
        await manager.start(request(task_id="t"), body)
        await trio.sleep(1)
        await manager.cancel(OWNER, "t")
        await manager.wait(OWNER, "t")
        assert (await manager.output(OWNER, "t")).text == "one,two,three"


async def test_output_goes_on_over_attempts(autojump_clock: trio.testing.MockClock) -> None:
    """One log over all attempts, by bytes of UTF-8; pages end between characters."""
    async with open_task_manager() as manager:

        async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
            await execution.write_output(f"é{execution.attempt}")
            await execution.write_output("")
            return Stopped()

        await manager.run(request(task_id="t", supports_resume=True), body)
        await manager.run(request(task_id="t", resume_attempt=1), body)
        page = await manager.output(OWNER, "t")
        assert (page.text, page.next_offset, page.total_bytes) == ("é1é2", 6, 6)
        assert (await manager.output(OWNER, "t", offset=-3)).text == "é2"
        assert (await manager.output(OWNER, "t", offset=1)).offset == 2
        page = await manager.output(OWNER, "t", limit=4)
        assert (page.text, page.next_offset) == ("é1", 3)


async def test_output_that_cannot_be_stored_is_replaced(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Lone surrogates and U+0000 never fail a body."""

    async def body(execution: BackgroundExecution) -> None:
        await execution.write_output("a\x00b\ud800c")

    store = MemoryTaskStore()
    await use(store, body)
    assert (await store.read_output("t", offset=0, limit=99)).text == "a\ufffdb\ufffdc"


@pytest.mark.parametrize("fault", ["before", "after", "hang after"])
@pytest.mark.parametrize("foreign", [False, True])
async def test_output_is_stored_once_whatever_the_store_does(
    fault: Any, autojump_clock: trio.testing.MockClock, *, foreign: bool
) -> None:
    """A write that failed, or was applied unknown to us, is made again; the log has no double."""
    store = FaultyStore()
    error = (lambda: OSError("disk")) if foreign else (lambda: TaskStoreError("no"))
    said = ""

    async def body(execution: BackgroundExecution) -> None:
        nonlocal said
        for n in range(40):
            if n == 5:
                store.break_down("apply", fault=fault, first=2, last=3, error=error)
            said += f"{n};"
            await execution.write_output(f"{n};")
            await trio.sleep(0.1)

    await use(store, body)
    assert store.struck > 0
    page = await store.read_output("t", offset=0, limit=1 << 20)
    assert (page.text, page.dropped_bytes) == (said, 0)


async def test_output_of_a_long_outage_keeps_the_newest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """While the store is down, memory is bounded: the newest is kept, the rest counted as dropped."""
    store = FaultyStore()

    async def body(execution: BackgroundExecution) -> None:
        await execution.write_output("first|")
        await trio.sleep(1)
        store.break_down("apply")
        for n in range(1000):
            await execution.write_output(f"é{n:04}|")
            await trio.sleep(0.01)
        store.repair()
        await trio.sleep(2)

    await use(store, body, output_bytes=1024)
    page = await store.read_output("t", offset=0, limit=1 << 20)
    everything = "first|" + "".join(f"é{n:04}|" for n in range(1000))
    assert everything.endswith(page.text)
    assert 1024 - 256 <= len(page.text.encode()) <= 1024
    assert page.total_bytes == len(everything.encode())
    assert page.dropped_bytes == page.total_bytes - len(page.text.encode())


@pytest.mark.parametrize("character", ["€", "é", "🙂"])
@pytest.mark.parametrize("tail", ["", "a", "ab", "abc"])
async def test_one_huge_text_is_cut_between_characters(
    character: str, tail: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Text beyond the bound in one call: its end is kept, and counted right."""
    text = character * 10_000 + tail

    async def body(execution: BackgroundExecution) -> None:
        await execution.write_output(text)

    store = MemoryTaskStore()
    await use(store, body, output_bytes=1024)
    page = await store.read_output("t", offset=0, limit=1 << 20)
    assert text.endswith(page.text)
    assert page.total_bytes == len(text.encode())
    assert 700 < len(page.text.encode()) <= 1024


async def test_a_writer_waits_for_a_slow_store(autojump_clock: trio.testing.MockClock) -> None:
    """Unsent output is bounded by the writer's patience, too; nothing is lost by that."""
    store = FaultyStore()
    store.break_down("apply", fault="slow", first=2, last=4)
    waited = 0.0

    async def body(execution: BackgroundExecution) -> None:
        nonlocal waited
        for _ in range(30):
            began = trio.current_time()
            await execution.write_output("x" * 100_000)
            waited = max(waited, trio.current_time() - began)

    assert (await use(store, body)).output_bytes == 3_000_000
    assert waited >= 10


async def test_a_writer_does_not_wait_for_a_store_that_refuses(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A body whose lease is lost cleans up, however much it writes."""
    store = ReplaceableStore()
    cleaned_up = trio.Event()

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await execution.write_output("x" * 3_000_000)  # noqa: ASYNC102
                cleaned_up.set()
        raise AssertionError

    async with open_task_manager(store) as manager:
        await manager.start(request(task_id="t"), body)
        await trio.testing.wait_all_tasks_blocked()
        inner = cast("MemoryTaskStore", store.inner)
        for executor in inner._executors.values():
            executor.fence()
            executor.lost.set()
        with trio.fail_after(60):
            await cleaned_up.wait()
            await manager.start(request(), done)  # under a fresh executor


async def test_output_that_is_given_up_while_it_is_stored(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """More than is kept is written during one slow write: the newest is there in the end."""
    store = FaultyStore()

    async def body(execution: BackgroundExecution) -> None:
        store.break_down("apply", fault="slow", last=1)
        await execution.write_output("a" * 1000)
        await trio.sleep(1)
        for _ in range(4):
            await execution.write_output("b" * 1000)
        await trio.sleep(60)

    assert (await use(store, body, output_bytes=2048)).output_bytes == 5000
    assert (await store.read_output("t", offset=-2000, limit=9999)).text == "b" * 2000


async def test_a_writer_goes_on_when_enough_is_stored(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One write of a part is not enough for a writer that is far ahead."""
    store = FaultyStore()
    written: list[float] = []

    async def body(execution: BackgroundExecution) -> None:
        store.break_down("apply", fault="slow", last=2)
        with trio.move_on_after(0.001):
            await execution.write_output("a" * 100)
            await trio.sleep_forever()
        await execution.write_output("b" * 3_000_000)
        written.append(trio.current_time())

    assert (await use(store, body)).output_bytes == 3_000_100
    assert written[0] >= 20


async def test_an_ended_attempt_keeps_no_output(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever holds on to an execution does not hold its output in memory."""
    kept: list[BackgroundExecution] = []

    async def body(execution: BackgroundExecution) -> None:
        kept.append(execution)
        await execution.write_output("x" * 1000)

    await use(MemoryTaskStore(), body)
    assert not kept[0]._log._parts


async def test_an_end_does_not_wait_for_a_write_that_hangs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A write of output that is never answered holds up neither the end nor the close."""
    store = FaultyStore()

    async def body(execution: BackgroundExecution) -> None:
        store.break_down("apply", fault="hang", last=1)
        await execution.write_output("said")
        await trio.sleep(1)

    await use(store, body)
    assert trio.current_time() < 2
    assert (await store.read_output("t", offset=0, limit=99)).text == "said"


# ---- progress ------------------------------------------------------------------------------------


async def test_progress_is_the_latest_and_seldom(autojump_clock: trio.testing.MockClock) -> None:
    """A few writes a second, whatever the body reports; the last value is stored with the end."""
    store, shown = Spy(), list[Any]()

    async def body(execution: BackgroundExecution) -> None:
        for n in range(1000):
            await execution.report_progress(n, 1000, "counting")
            await trio.sleep(0.001)
        record = await store.load("t")
        assert record is not None
        shown.append(record.summary().to_json()["progress"])
        await execution.report_progress(1000, 1000)

    record = await use(store, body)
    assert record.progress == Progress(1000, 1000)
    assert 3 <= len(store.of(ProgressReported)) <= 6
    assert shown[0]["done"] > 500
    assert (shown[0]["total"], shown[0]["message"]) == (1000, "counting")


async def test_progress_survives_a_store_that_fails(autojump_clock: trio.testing.MockClock) -> None:
    """A report that could not be stored is stored later."""
    store = FaultyStore()

    async def body(execution: BackgroundExecution) -> None:
        store.break_down("apply", last=1)
        await execution.report_progress(0.5)
        await trio.sleep(3)
        assert (await stored(store, "t")).progress == Progress(0.5)

    await use(store, body)


async def test_progress_reported_during_a_write_is_not_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What is reported while an older report is being stored is stored after it."""

    class Slow(StoreWrapper):
        """Takes a second for a report."""

        async def apply(self, task_id: str, event: Event) -> TaskRecord:
            if isinstance(event, ProgressReported):
                await trio.sleep(1)
            return await super().apply(task_id, event)

    store = Slow()

    async def body(execution: BackgroundExecution) -> None:
        await execution.report_progress(1)
        await trio.sleep(0.5)
        await execution.report_progress(2)
        await trio.sleep(3)
        assert (await stored(store, "t")).progress == Progress(2)

    assert (await use(store, body)).progress == Progress(2)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (("1",), "done must be a number, not str"),
        ((True,), "done must be a number, not bool"),
        ((1, []), "total must be a number, not list"),
        ((float("inf"),), r"done is not JSON: \$: float inf is not finite"),
        ((1, 1 << 70), r"total is not JSON: \$: integer beyond 64 bits"),
        ((1, 2, 3), "message must be a string, not int"),
    ],
)
async def test_progress_of_the_wrong_kind_is_refused(
    given: Any, error: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The error names the argument; nothing is stored."""

    async def body(execution: BackgroundExecution) -> None:
        with pytest.raises((TypeError, ValueError), match=error):
            await execution.report_progress(*given)

    assert (await use(MemoryTaskStore(), body)).progress is None


async def test_a_message_is_cleaned_and_shortened(autojump_clock: trio.testing.MockClock) -> None:
    """Free text is never refused."""

    async def body(execution: BackgroundExecution) -> None:
        await execution.report_progress(1, message="\x00" + "m" * 1000)

    record = await use(MemoryTaskStore(), body)
    assert record.progress is not None
    assert record.progress.message == "\ufffd" + "m" * 498 + "…"


async def test_output_must_be_text(autojump_clock: trio.testing.MockClock) -> None:
    """Bytes are not text."""

    async def body(execution: BackgroundExecution) -> None:
        with pytest.raises(TypeError, match="text must be a string, not bytes"):
            await execution.write_output(b"bytes")  # type: ignore[arg-type]

    await use(MemoryTaskStore(), body)
