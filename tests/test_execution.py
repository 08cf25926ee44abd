"""What a body holds: its record, checkpoints, output, progress; and the attempts around a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from tests.support import (
    OTHER,
    OWNER,
    FaultyStore,
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
    Failed,
    MemoryTaskStore,
    OutputAppended,
    Progress,
    ProgressReported,
    Refused,
    StaleAttempt,
    Stopped,
    Success,
    TaskNotRunning,
    TaskRecord,
    TaskResult,
    TaskStoreError,
    current_execution,
    open_task_manager,
)
from trio_bgtasks._execution import around

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
    """What a body left behind is refused, by name of what it is. C11, C33."""
    kept: list[BackgroundExecution] = []

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        kept.append(execution)
        return Stopped()

    store = MemoryTaskStore()
    async with open_task_manager(store) as manager:
        await manager.run(request(task_id="t", supports_resume=True), body)
        with pytest.raises(TaskNotRunning, match="current status: stopped"):
            await kept[0].save_checkpoint(1)
        await manager.start(request(task_id="t", resume_attempt=1), forever)
        before = await stored(store, "t")
        with pytest.raises(StaleAttempt, match="current attempt: 2, current status: running"):
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
    store.error = lambda: OSError("disk") if foreign else TaskStoreError("no")
    said = ""

    async def body(execution: BackgroundExecution) -> None:
        nonlocal said
        for n in range(40):
            if n == 5:
                store.break_down("apply", fault=fault, first=2, last=3)
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


async def test_one_huge_text_is_cut_between_characters(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Text beyond the bound in one call: its end is kept, and counted right."""

    async def body(execution: BackgroundExecution) -> None:
        await execution.write_output("€" * 10_000)

    store = MemoryTaskStore()
    await use(store, body, output_bytes=1024)
    page = await store.read_output("t", offset=0, limit=1 << 20)
    assert page.text == "€" * len(page.text)
    assert page.total_bytes == 30_000
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


# ---- the attempts around a call ------------------------------------------------------------------


def current() -> str | None:
    """Return the task of the current execution."""
    try:
        return current_execution().task_id
    except RuntimeError:
        return None


async def test_a_call_in_a_body_knows_its_task(autojump_clock: trio.testing.MockClock) -> None:
    """In the body and every task started there; not outside, not after the body's end."""
    with pytest.raises(RuntimeError, match="works inside a running attempt only"):
        current_execution()
    seen: dict[str, str | None] = {}
    late = trio.Event()

    async def note(where: str) -> None:
        seen[where] = current()

    async def note_late() -> None:
        await late.wait()
        await note("after its end")

    async with open_task_manager() as manager, trio.open_nursery() as outer:

        async def body(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            await note("body")
            assert manager.current_task_id() == "t"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(note, "child")
                nursery.start_soon(note, "sibling")
            await trio.to_thread.run_sync(lambda: seen.update(thread=current()))
            outer.start_soon(note_late)
            return Success()

        await note("before")
        await manager.run(request(task_id="t"), body)
        await note("after")
        assert manager.current_task_id() is None
        late.set()
    assert seen == {
        "before": None,
        "body": "t",
        "child": "t",
        "sibling": "t",
        "thread": "t",
        "after": None,
        "after its end": None,
    }


async def test_a_task_started_in_a_body_is_its_child(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whoever owns it, foreground or background, in a task of the body, too; unless it is told."""
    store, late = MemoryTaskStore(), trio.Event()

    async with open_task_manager(store) as manager, trio.open_nursery() as outer:

        async def start(task_id: str, **fields: Any) -> None:
            await manager.start(request(OTHER, task_id=task_id, **fields), done)

        async def start_late() -> None:
            await late.wait()
            await start("late")

        async def body(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            await start("background")
            await manager.run(request(task_id="foreground"), done)
            await start("told", parent_task_id="elsewhere")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(start, "in a task")
                nursery.start_soon(start, "in another")
            outer.start_soon(start_late)
            return Success()

        await manager.run(request(task_id="root"), body)
        await start("after")
        late.set()
        await trio.testing.wait_all_tasks_blocked()
    parents = {
        task_id: (await stored(store, task_id)).parent_task_id
        for task_id in (
            *("background", "foreground", "told", "in a task"),
            *("in another", "after", "late"),
        )
    }
    assert parents == {
        "background": "root",
        "foreground": "root",
        "told": "elsewhere",
        "in a task": "root",
        "in another": "root",
        "after": None,
        "late": None,
    }


async def test_two_managers_nested(autojump_clock: trio.testing.MockClock) -> None:
    """The ambient parent is a task of the same manager; the current execution is the innermost."""
    outside, inside = MemoryTaskStore(), MemoryTaskStore()
    async with open_task_manager(outside) as outer, open_task_manager(inside) as inner:

        async def innermost(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            assert current() == "in inner"
            assert (outer.current_task_id(), inner.current_task_id()) == ("in outer", "in inner")
            await outer.run(request(task_id="of outer"), done)
            await inner.run(request(task_id="of inner"), done)
            return Success()

        async def body(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            assert inner.current_task_id() is None
            await inner.run(request(task_id="in inner"), innermost)
            assert current() == "in outer"
            return Success()

        await outer.run(request(task_id="in outer"), body)
    assert (await stored(outside, "of outer")).parent_task_id == "in outer"
    assert (await stored(inside, "of inner")).parent_task_id == "in inner"
    assert (await stored(inside, "in inner")).parent_task_id is None


async def test_a_chain_of_successors_does_not_grow(autojump_clock: trio.testing.MockClock) -> None:
    """A task that starts the next one, for ever, remembers its parent, not all before it."""
    depths: list[int] = []
    over = trio.Event()

    async with open_task_manager() as manager:

        async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
            (here, *above) = around()
            remembered = 0
            outer = here.outer
            while outer is not None:
                remembered, outer = remembered + 1, outer.outer
            lineage = manager._slots[execution.task_id].lineage
            depths.append(max(remembered, len(lineage), len(above)))
            if len(depths) < 100:
                await manager.start(request(), body)
            else:
                over.set()
            return Success()

        await manager.start(request(), body)
        await over.wait()
    assert max(depths) <= 2


async def test_a_failing_body_resets_what_is_current(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whatever ends a body, its caller's context is as it was."""

    async def body(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    async with open_task_manager() as manager:
        with pytest.raises(ZeroDivisionError):
            await manager.run(request(), body)
        assert current() is None
        assert isinstance(await manager.run(request(), returns_failed), Failed)


async def returns_failed(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
    """Fail without an exception."""
    return Failed("no")
