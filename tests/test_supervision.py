"""Owner nurseries, and what an attempt's end does to others: nothing, unless it is a Ctrl-C."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
import trio
import trio.testing

from tests.support import (
    OTHER,
    OWNER,
    FaultyStore,
    Gate,
    Stubborn,
    Wakeups,
    assert_idle,
    done,
    ended,
    forever,
    opened,
    request,
    stored,
)
from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    Cancelled,
    Failed,
    ManagerClosed,
    MemoryTaskStore,
    Stopped,
    Success,
    TaskNotStopped,
    TaskResult,
    TaskStatus,
    open_task_manager,
)
from trio_bgtasks._slots import Slot

# ---- owner nurseries -----------------------------------------------------------------------------


def tree(task: trio.lowlevel.Task) -> Iterator[tuple[str, str]]:
    """Yield (name, name of a child) for every task below ``task``."""
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield task.name, child.name
            yield from tree(child)


def children_of(name: str) -> list[str] | None:
    """Return the names of the tasks under the Trio task of that name; None: there is none."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    pairs = list(tree(root))
    if not any(child == name for _, child in pairs):
        return None
    return sorted(child for parent, child in pairs if parent == name)


async def test_an_owner_has_one_long_lived_nursery(autojump_clock: trio.testing.MockClock) -> None:
    """It opens at the owner's first task, bears its name in the task tree, holds its tasks."""
    async with open_task_manager() as manager:
        assert children_of("trio_bgtasks owner thread-1") is None
        await manager.start(request(task_id="a"), forever)
        await manager.start(request(task_id="b"), forever)
        await manager.start(request(OTHER, task_id="c"), forever)
        assert children_of("trio_bgtasks owner thread-1") == [
            "trio_bgtasks task a",
            "trio_bgtasks task b",
        ]
        assert children_of("trio_bgtasks owner thread-2") == ["trio_bgtasks task c"]
        assert manager.statistics().owners == 2
        await manager.run(request("thread-3"), done)  # that needs none
        assert manager.statistics().owners == 2
    assert children_of("trio_bgtasks owner thread-1") is None


async def test_every_task_of_the_manager_says_what_it_is_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Who looks at the task tree finds the helpers of an attempt by name."""
    store = FaultyStore()

    async def writes(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        await execution.write_output("text")
        await trio.sleep_forever()
        raise AssertionError

    async with open_task_manager(store) as manager:
        root = trio.lowlevel.current_root_task()
        assert root is not None
        gate = Gate()
        await manager.start(request(task_id="t", deadline_s=100), writes)
        await manager.start(request(task_id="u"), gate)
        await trio.testing.wait_all_tasks_blocked()
        assert "trio_bgtasks output of t" in {name for _, name in tree(root)}
        store.break_down("apply")
        gate.opened.set()
        await manager.cancel(OWNER, "t")
        await trio.testing.wait_all_tasks_blocked()
        names = {name for _, name in tree(root) if name.startswith("trio_bgtasks ")}
        store.repair()
    assert names == {
        "trio_bgtasks owner thread-1",
        "trio_bgtasks deadline",
        "trio_bgtasks end of t",
        "trio_bgtasks end of u",
        "trio_bgtasks cancel mark of t",
    }


async def test_a_cancellation_says_why(autojump_clock: trio.testing.MockClock) -> None:
    """The exception that a body meets names the reason and the task."""
    seen: list[str | None] = []

    async def body(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            seen.append(cancelled.reason)
            raise
        raise AssertionError

    async with open_task_manager() as manager:
        for task_id in ("t", "u"):
            await manager.start(request(task_id=task_id), body)
        await trio.testing.wait_all_tasks_blocked()
        await manager.cancel(OWNER, "t")
        await manager.wait(OWNER, "t")
    assert seen == ["trio_bgtasks: cancel of task t", "trio_bgtasks: shutdown of task u"]


async def test_an_idle_nursery_is_released(autojump_clock: trio.testing.MockClock) -> None:
    """It is released when nothing held it for a while, and opens again for the next task."""
    async with opened(owner_idle_s=60) as manager:
        gate = Gate()
        await manager.start(request(task_id="a"), gate)
        await trio.sleep(200)
        assert children_of("trio_bgtasks owner thread-1") == ["trio_bgtasks task a"]
        gate.opened.set()
        await trio.sleep(30)
        assert children_of("trio_bgtasks owner thread-1") == []
        await manager.start(request(), done)  # not idle for long enough
        await trio.sleep(59)
        assert children_of("trio_bgtasks owner thread-1") == []
        await trio.sleep(20)
        assert children_of("trio_bgtasks owner thread-1") is None
        assert manager.statistics().owners == 0
        assert (await ended(manager, await manager.start(request(), done))).result == "done"
        assert manager.statistics().owners == 1


async def test_a_start_that_races_a_release(autojump_clock: trio.testing.MockClock) -> None:
    """A start at the very moment of a release gets a nursery that is, and stays, open."""

    async def start(manager: BackgroundTaskManager) -> None:
        summary = await manager.start(request(), done)
        assert (await ended(manager, summary)).result == "done"

    async with opened(owner_idle_s=0) as manager:
        for _ in range(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(start, manager)
                nursery.start_soon(start, manager)
                await trio.sleep(1)  # the nurseries are looked at once a second
        await trio.sleep(2)
        assert manager.statistics().owners == 0


async def test_an_unsaved_end_keeps_its_nursery(autojump_clock: trio.testing.MockClock) -> None:
    """The nursery is held until the end of its last attempt is stored."""
    store = FaultyStore()
    async with opened(store, owner_idle_s=1) as manager:
        await manager.start(request(task_id="t"), done)
        store.break_down("apply")
        await trio.sleep(100)
        assert manager.statistics().owners == 1
        store.repair()
        await trio.sleep(10)
        assert manager.statistics().owners == 0


# ---- exceptions ----------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[..., Awaitable[TaskResult]]:
    """Return a body that raises."""

    async def body(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
        await trio.lowlevel.checkpoint()
        raise error

    return body


class Unprintable(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError


class Odd(BaseException):
    """Neither an Exception nor one that ends a program."""


def nested(depth: int) -> BaseException:
    """Return groups in groups, deeper than the stack."""
    error: list[Exception] = [ValueError("at the bottom")]
    for _ in range(depth):
        error = [ExceptionGroup("g", error)]
    return error[0]


ERRORS: list[tuple[BaseException, str]] = [
    (ValueError("bad"), "ValueError: bad"),
    (Unprintable(), "Unprintable: <its __str__ raised RuntimeError>"),
    (SystemExit(3), "SystemExit: 3"),
    (Odd("odd"), "Odd: odd"),
    (GeneratorExit("odd"), "GeneratorExit: odd"),
    (
        BaseExceptionGroup("x", [ValueError("a"), ExceptionGroup("y", [KeyError("b")])]),
        "ValueError: a; KeyError: 'b'",
    ),
    (ExceptionGroup("x", [ValueError(str(n)) for n in range(10)]), "and 2 more"),
    (ValueError("\x00\ud800"), "ValueError: \ufffd\ufffd"),
    (ValueError("x" * 20_000), "ValueError: xxx"),
]


@pytest.mark.parametrize(
    ("error", "text"), ERRORS, ids=[text[:20].replace("\ufffd", "?") for _, text in ERRORS]
)
async def test_an_exception_fails_its_task_only(
    error: BaseException,
    text: str,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the background it touches no other task, not the owner's nursery, not the caller.

    A group is named by its leaves; text that cannot be stored is replaced. C35.
    """
    async with open_task_manager() as manager:
        gate = Gate()
        await manager.start(request(task_id="other"), gate)
        summary = await ended(manager, await manager.start(request(task_id="t"), raising(error)))
        assert summary.status is TaskStatus.FAILED
        assert summary.error is not None
        assert text in summary.error
        assert len(summary.error) <= 10_000
        assert [s.task_id for s in manager.live(OWNER)] == ["other"]
        gate.opened.set()
        assert (await manager.wait(OWNER, "other")).status is TaskStatus.COMPLETED
    (logged,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert logged.exc_info is not None
    assert logged.exc_info[1] is error
    assert (logged.name, getattr(logged, "task_id", None)) == ("trio_bgtasks.supervision", "t")


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3), Odd("odd")], ids=repr)
async def test_a_foreground_exception_reaches_its_caller(
    error: BaseException, autojump_clock: trio.testing.MockClock
) -> None:
    """The caller gets the very exception, after it was recorded. C5."""
    store = MemoryTaskStore()
    async with open_task_manager(store) as manager:
        with pytest.raises(type(error)) as caught:
            await manager.run(request(task_id="t"), raising(error))
        assert caught.value is error
        assert (await stored(store, "t")).status is TaskStatus.FAILED
        assert_idle(manager)
        assert await manager.take_notices(OWNER) == []


class Liar:
    """A value that cannot even be asked what it is."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError

    @__class__.setter
    def __class__(self, _: Any) -> None: ...


async def test_an_end_that_cannot_be_read_fails_its_task_only(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a body returns or raises may be anything; no logging of it touches the others."""

    class Filter(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("broken filter")

    monkeypatch.setattr(logging.getLogger("trio_bgtasks.supervision"), "filters", [Filter()])

    async def liar(_: BackgroundExecution, __: trio.CancelScope) -> Any:
        await trio.lowlevel.checkpoint()
        return Liar()

    async with open_task_manager() as manager:
        await manager.start(request(task_id="other"), forever)
        for body in (liar, raising(nested(2000)), raising(ValueError("bad"))):
            summary = await ended(manager, await manager.start(request(), body))
            assert summary.status is TaskStatus.FAILED
            assert summary.error is not None
            assert summary.error.startswith(("the end of the attempt could not be", "ValueError: "))
        assert await manager.run(request(), liar) == Failed(
            "the end of the attempt could not be read: RuntimeError"
        )
        assert [task.task_id for task in manager.live(OWNER)] == ["other"]


async def test_a_body_that_is_no_coroutine_function_fails_its_task(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A body that cannot be awaited is a failed task, not a crash."""

    def body(*_: Any) -> Any:
        return Success()

    async with open_task_manager() as manager:
        summary = await ended(manager, await manager.start(request(), body))
        assert summary.status is TaskStatus.FAILED
        assert summary.error is not None
        assert summary.error.startswith("TypeError: ")


async def test_the_exception_of_the_block_leaves_as_it_was_raised(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Never inside a group, whatever runs beside it; what runs is ended first."""
    store, error = MemoryTaskStore(), StopAsyncIteration("mine")
    with pytest.raises(StopAsyncIteration) as caught:
        async with open_task_manager(store) as manager:
            await manager.start(request(task_id="t"), forever)
            raise error
    assert caught.value is error
    assert (await stored(store, "t")).status is TaskStatus.STOPPED


async def test_a_cancelled_block_closes_in_order(autojump_clock: trio.testing.MockClock) -> None:
    """The caller's cancellation ends the block, gives bodies the grace, and passes through."""
    store, body = MemoryTaskStore(), Stubborn(Success("saved"))

    async def let_go() -> None:
        await trio.sleep(7)
        body.opened.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(let_go)
        with trio.move_on_after(5) as scope:
            async with open_task_manager(store) as manager:
                await manager.start(request(task_id="t"), body)
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert trio.current_time() >= 7
    assert (await stored(store, "t")).result == "saved"


async def test_nothing_is_left_after_the_end(autojump_clock: trio.testing.MockClock) -> None:
    """No Trio task and no thread; every call that would start something is refused."""
    tasks = trio.lowlevel.current_statistics().tasks_living
    threads = threading.active_count()
    async with open_task_manager() as manager:
        for n in range(5):
            await manager.start(request(f"owner {n}"), forever)
        await manager.start(request(OWNER), done)
        assert "open, 6 live tasks" in repr(manager)
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert threading.active_count() == threads
    for call in (manager.start, manager.run):
        with pytest.raises(ManagerClosed, match="the task manager is closed"):
            await call(request(), done)
    assert_idle(manager)
    assert repr(manager) == "<BackgroundTaskManager closed, 0 live tasks>"


async def test_an_idle_manager_lets_the_loop_sleep(autojump_clock: trio.testing.MockClock) -> None:
    """When idle nothing of ours wakes the loop more often than once a second; nor with a task."""
    wakeups = Wakeups()
    async with opened(owner_idle_s=1, attempts_per_owner=1) as manager:
        for tasks in range(3):
            async with manager.subscribe(OWNER), trio.open_nursery() as nursery:
                if tasks:
                    summary = await manager.start(request(), forever)
                    nursery.start_soon(manager.wait, OWNER, summary.task_id)
                await trio.sleep(5)
                trio.lowlevel.add_instrument(wakeups)
                await trio.sleep(100)
                trio.lowlevel.remove_instrument(wakeups)
                assert len(wakeups.times) <= 101
                wakeups.times.clear()
                nursery.cancel_scope.cancel()


# ---- Ctrl-C --------------------------------------------------------------------------------------


async def test_an_interrupt_in_a_background_body_ends_the_program(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is recorded as stopped, ends the block, and leaves bare; the others are stopped, too."""
    store, left = MemoryTaskStore(), False
    interrupt = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        async with open_task_manager(store) as manager:
            await manager.start(request(task_id="other"), forever)
            await manager.start(request(task_id="t"), raising(interrupt))
            try:
                await trio.sleep_forever()
            finally:
                left = True
    assert caught.value is interrupt
    assert left
    record = await stored(store, "t")
    assert (record.status, record.error) == (TaskStatus.STOPPED, "KeyboardInterrupt")
    assert (await stored(store, "other")).status is TaskStatus.STOPPED
    assert len(await store.notices(OWNER)) == 2


async def test_an_interrupt_in_a_foreground_body_reaches_its_caller(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is recorded as stopped, announced, for nobody got an answer, and raised bare."""
    store = MemoryTaskStore()
    group = BaseExceptionGroup("x", [KeyboardInterrupt(), ValueError("beside it")])
    async with open_task_manager(store) as manager:
        with pytest.raises(KeyboardInterrupt):
            await manager.run(request(task_id="t"), raising(group))
        record = await stored(store, "t")
        assert (record.status, record.error) == (TaskStatus.STOPPED, "KeyboardInterrupt")
        assert [s.task_id for s in await manager.take_notices(OWNER)] == ["t"]


def test_ctrl_c_interrupts_a_body_at_once() -> None:
    """The manager's own code is protected from the signal, bodies are not."""
    store = MemoryTaskStore()
    seen: list[str] = []

    async def body(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
        try:
            signal.raise_signal(signal.SIGINT)
            seen.append("went on")
        except KeyboardInterrupt:
            seen.append("interrupted")
            raise
        raise AssertionError

    async def main() -> None:
        async with open_task_manager(store) as manager:
            await manager.start(request(task_id="t"), body)
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert seen == ["interrupted"]


@pytest.mark.parametrize("where", ["start", "read-back", "end"])
def test_ctrl_c_while_the_manager_waits_for_its_store(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Ctrl-C reaches the main task in a shield, too: the slot is settled all the same, and told."""
    store = FaultyStore()
    ran = False

    def torn() -> Exception:
        store.break_down("load", fault="hang")
        return OSError("torn")

    async def body(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
        nonlocal ran
        ran = True
        return Success("done")

    @trio.lowlevel.enable_ki_protection  # so that it meets the main task
    async def press() -> None:
        await trio.testing.wait_all_tasks_blocked()
        assert store.struck
        signal.raise_signal(signal.SIGINT)
        store.repair()

    async def main() -> None:
        async with open_task_manager(store) as manager, trio.open_nursery() as nursery:
            await trio.testing.wait_all_tasks_blocked()
            match where:
                case "start":
                    store.break_down("apply", fault="hang after")
                case "read-back":
                    store.break_down("apply", fault="after", error=torn)
                case _:
                    store.break_down("apply", fault="hang", first=2)
            nursery.start_soon(press)
            try:
                await manager.run(request(task_id="t"), body)
            finally:
                with trio.CancelScope(shield=True), trio.fail_after(60):
                    while manager.live(OWNER) or manager.statistics().unsaved:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                assert_idle(manager)

    with pytest.RaisesGroup(KeyboardInterrupt):  # the nursery is the test's
        trio.run(main)
    record = trio.run(stored, store, "t")
    assert record.executor_id is None
    assert record.status is (TaskStatus.COMPLETED if ran else TaskStatus.STOPPED)
    text = (
        f"task t: the task ended as {record.status}, which is not stored yet: KeyboardInterrupt: "
    )
    assert text in [line.getMessage() for line in caplog.records]


def test_ctrl_c_while_a_start_looks_up_its_lineage() -> None:
    """It is stored already: it ends as stopped, its body does not run, and no slot is left."""
    store, gate = FaultyStore(), Gate()

    @trio.lowlevel.enable_ki_protection  # so that it meets the main task
    async def press() -> None:
        await trio.testing.wait_all_tasks_blocked()
        assert store.struck
        signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        async with opened(store, attempts_total=2) as manager:
            await ended(manager, await manager.start(request(task_id="parent"), done))
            store.break_down("load", fault="hang")
            trio.lowlevel.spawn_system_task(press)
            with pytest.raises(KeyboardInterrupt):
                await manager.start(request(task_id="t", parent_task_id="parent"), gate)
            store.repair()
            with trio.fail_after(5):
                assert (await manager.wait(OWNER, "t")).status is TaskStatus.STOPPED
            assert_idle(manager)

    trio.run(main)
    assert gate.runs == []
    record = trio.run(stored, store, "t")
    assert record.error == "Its start could not be confirmed in time; its body did not run"


def test_ctrl_c_while_the_manager_closes() -> None:
    """A second Ctrl-C during a long clean-up leaves bare, after the clean-up."""
    store, body = MemoryTaskStore(), Stubborn()

    @trio.lowlevel.enable_ki_protection  # so that it meets the main task
    async def press() -> None:
        await trio.testing.wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGINT)
        await trio.testing.wait_all_tasks_blocked()
        assert (await stored(store, "t")).status is TaskStatus.RUNNING
        body.opened.set()

    async def main() -> None:
        async with open_task_manager(store) as manager:
            await manager.start(request(task_id="t"), body)
            await body.entered.wait()
            trio.lowlevel.spawn_system_task(press)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert trio.run(stored, store, "t").status is TaskStatus.STOPPED


def test_ctrl_c_while_closing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not come between the first attempt that is stopped and the last."""
    store = MemoryTaskStore()
    stop = Slot.stop
    stopped: list[str] = []

    def press(self: Slot, reason: str) -> None:
        if not stopped:
            signal.raise_signal(signal.SIGINT)
        stopped.append(self.task_id)
        stop(self, reason)

    async def main() -> None:
        async with open_task_manager(store) as manager:
            await manager.start(request(task_id="a"), forever)
            await manager.start(request(task_id="b"), forever)
            await trio.testing.wait_all_tasks_blocked()
            monkeypatch.setattr(Slot, "stop", press)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert stopped == ["a", "b"]
    assert trio.run(stored, store, "b").status is TaskStatus.STOPPED


# ---- foreground ----------------------------------------------------------------------------------

WHO: ContextVar[str] = ContextVar("who", default="nobody")


async def test_a_foreground_run_is_live_like_any_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It runs in its caller's task, and meanwhile is listed, known, cancellable, no orphan. C2."""
    async with open_task_manager() as manager, trio.open_nursery() as nursery:
        gate, where = Gate(), dict[str, Any]()

        async def body(execution: BackgroundExecution, scope: trio.CancelScope) -> TaskResult:
            where.update(task=trio.lowlevel.current_task(), who=WHO.get())
            return await gate(execution, scope)

        async def call() -> None:
            WHO.set("the caller")
            where["caller"] = trio.lowlevel.current_task()
            where["answer"] = await manager.run(request(task_id="t", supports_resume=True), body)

        nursery.start_soon(call)
        await gate.entered.wait()
        assert where["task"] is where["caller"]
        assert where["who"] == "the caller"
        assert [s.status for s in await manager.list_tasks(OWNER)] == [TaskStatus.RUNNING]
        assert [s.task_id for s in manager.live(OWNER)] == ["t"]
        assert await manager.has_running_tasks(OWNER)
        assert manager.statistics().foreground == 1
        with pytest.raises(TaskNotStopped):
            await manager.start(request(task_id="t", resume_attempt=1), done)
        await manager.cancel(OWNER, "t")
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED
        await trio.testing.wait_all_tasks_blocked()
        assert where["answer"] == Cancelled()
        assert await manager.take_notices(OWNER) == []


async def test_a_foreground_run_returns_what_was_stored(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The answer is the body's; what it returned can be changed without changing the store."""

    def returning(value: Any) -> Callable[..., Awaitable[Any]]:
        async def body(_: BackgroundExecution, __: trio.CancelScope) -> Any:
            return value

        return body

    store = MemoryTaskStore()
    async with open_task_manager(store) as manager:
        value = {"list": [1]}
        outcome = await manager.run(request(task_id="t"), returning(Success(value)))
        assert outcome == Success({"list": [1]})
        value["list"].append(2)
        assert isinstance(outcome, Success)
        outcome.value["list"].append(3)
        assert (await stored(store, "t")).result == {"list": [1]}
        for given, counts in (
            (Failed("no", 1), Failed("no", 1)),
            (Stopped("later"), Stopped("later")),
            (Cancelled(), Cancelled()),
            (Success(float("nan")), Failed("result is not JSON: $: float nan is not finite")),
        ):
            assert await manager.run(request(), returning(given)) == counts


async def test_an_unsaved_cancel_counts_for_the_caller(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A run cancelled while the store is down answers cancelled, not what the body made of it."""
    store = FaultyStore()
    answers: list[TaskResult] = []

    async def body(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("in clean-up")

    async def call(manager: BackgroundTaskManager) -> None:
        answers.append(await manager.run(request(task_id="t"), body))

    async with open_task_manager(store) as manager, trio.open_nursery() as nursery:
        nursery.start_soon(call, manager)
        await trio.testing.wait_all_tasks_blocked()
        store.break_down("apply")
        await manager.cancel(OWNER, "t")
        await trio.sleep(1)
        assert answers == [Cancelled()]
        store.repair()
        await trio.sleep(10)
        record = await stored(store, "t")
        assert (record.status, record.error) == (TaskStatus.CANCELLED, "ValueError: in clean-up")


async def test_a_run_whose_caller_is_gone_before_the_body_does_not_run_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A start that was stored for a caller that is gone ends as stopped; the body never begins."""
    store, gate = FaultyStore(), Gate()
    async with open_task_manager(store) as manager:
        store.break_down("apply", fault="hang after", last=1)
        with trio.move_on_after(1) as scope:
            await manager.run(request(task_id="t"), gate)
        assert scope.cancelled_caught
        record = await stored(store, "t")
        assert record.error == "The caller of the foreground run is gone"
        assert [s.task_id for s in await manager.take_notices(OWNER)] == ["t"]
        assert not gate.runs


async def test_cancelled_and_abandoned_by_its_caller_is_announced(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A run that was cancelled, and whose caller then went away, is cancelled, and announced."""
    body = Stubborn(Cancelled())
    async with open_task_manager() as manager, trio.open_nursery() as nursery:

        async def call(scope: trio.CancelScope) -> None:
            with scope:
                await manager.run(request(task_id="t"), body)

        caller = trio.CancelScope()
        nursery.start_soon(call, caller)
        await body.entered.wait()
        await manager.cancel(OWNER, "t")
        caller.cancel()
        body.opened.set()
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED
        assert [s.task_id for s in await manager.take_notices(OWNER)] == ["t"]


# ---- deadlines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("from_config", [False, True])
async def test_a_deadline_fails_the_attempt(
    autojump_clock: trio.testing.MockClock, *, from_config: bool
) -> None:
    """The body has so many seconds; the request's own count before the manager's."""
    async with opened(attempt_deadline_s=7 if from_config else 700) as manager:
        asked = request() if from_config else request(deadline_s=7)
        began = trio.current_time()
        summary = await ended(manager, await manager.start(asked, forever))
        assert trio.current_time() - began == 7
        assert (summary.status, summary.error) == (TaskStatus.FAILED, "The deadline of 7 s passed")


async def test_a_deadline_of_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """A body with no time at all gets to its first checkpoint."""
    async with open_task_manager() as manager:
        summary = await ended(manager, await manager.start(request(deadline_s=0), forever))
        assert summary.error == "The deadline of 0 s passed"


async def test_a_deadline_does_not_outlive_its_body(autojump_clock: trio.testing.MockClock) -> None:
    """An attempt that ended in time is not failed later, though its end is not stored yet."""
    store = FaultyStore()
    async with open_task_manager(store) as manager:
        summary = await manager.start(request(deadline_s=1), done)
        store.break_down("apply")
        await trio.sleep(5)
        store.repair()
        assert (await ended(manager, summary)).status is TaskStatus.COMPLETED
        assert_idle(manager)


# ---- a scope of the caller's ---------------------------------------------------------------------


async def sleeping(_: trio.CancelScope) -> TaskResult:
    """Be a body of ``spawn`` that never returns."""
    await trio.sleep_forever()
    raise AssertionError


async def test_a_supplied_scope_is_the_bodys(autojump_clock: trio.testing.MockClock) -> None:
    """``spawn`` runs the body in the caller's scope and hands it on; to cancel it is a cancel."""
    scope, seen = trio.CancelScope(), list[trio.CancelScope]()

    async def body(given: trio.CancelScope) -> TaskResult:
        seen.append(given)
        return await sleeping(given)

    async with open_task_manager() as manager:
        task_id = await manager.spawn(
            OWNER, "work", "d", body, cancel_scope=scope, metadata={"m": 1}
        )
        await trio.testing.wait_all_tasks_blocked()
        assert seen == [scope]
        scope.cancel()
        summary = await manager.wait(OWNER, task_id)
        assert (summary.status, summary.error) == (TaskStatus.CANCELLED, None)
        assert (summary.description, summary.metadata) == ("d", {"m": 1})
        record = await manager.record(OWNER, task_id)
        assert record is not None
        assert record.cancel_requested_at_ms is not None
        assert not record.supports_resume


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
async def test_a_supplied_scope_that_is_cancelled_already(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The body does not begin; the task is cancelled."""
    scope = trio.CancelScope()
    if how == "cancelled":
        scope.cancel()
    else:
        scope.deadline = trio.current_time() - 1

    async def body(_: trio.CancelScope) -> TaskResult:
        raise AssertionError

    async with open_task_manager() as manager:
        task_id = await manager.spawn(OWNER, "work", "", body, cancel_scope=scope)
        assert (await manager.wait(OWNER, task_id)).status is TaskStatus.CANCELLED


async def test_a_supplied_scope_that_is_in_use_fails_the_task(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A scope can be entered once: the task says so and is failed."""
    async with open_task_manager() as manager, trio.open_nursery() as nursery:
        scope = nursery.cancel_scope
        task_id = await manager.spawn(OWNER, "work", "", sleeping, cancel_scope=scope)
        summary = await manager.wait(OWNER, task_id)
        assert summary.status is TaskStatus.FAILED
        assert summary.error is not None
        assert summary.error.startswith("RuntimeError: ")


@pytest.mark.parametrize("close", ["shutdown", "owner close"])
@pytest.mark.parametrize("late", [False, True])
async def test_a_supplied_scope_that_is_cancelled_about_when_the_runtime_ends_its_body(
    close: str, autojump_clock: trio.testing.MockClock, *, late: bool
) -> None:
    """Which came first counts, also if the body takes until the other one to tidy up."""
    scope, store = trio.CancelScope(), MemoryTaskStore()

    async def body(given: trio.CancelScope) -> TaskResult:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)

    async with open_task_manager(store) as manager, trio.open_nursery() as nursery:
        task_id = await manager.spawn(OWNER, "work", "", body, cancel_scope=scope)
        await trio.testing.wait_all_tasks_blocked()
        if late:
            scope.deadline = trio.current_time() + 0.5  # in the middle of the tidying up
        else:
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
        if close == "owner close":
            nursery.start_soon(manager.close_owner, OWNER)
    ended = TaskStatus.STOPPED if late else TaskStatus.CANCELLED
    assert (await stored(store, task_id)).status is ended


async def test_a_supplied_scope_that_is_cancelled_before_a_start_that_nobody_confirms(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """If it was stored after all, it ends cancelled."""
    store, scope = FaultyStore(), trio.CancelScope()
    scope.cancel()

    async def body(_: trio.CancelScope) -> TaskResult:
        raise AssertionError

    async with open_task_manager(store) as manager:
        store.break_down("apply", "load", fault="hang after")
        with trio.move_on_after(1):
            await manager.spawn(OWNER, "work", "", body, task_id="t", cancel_scope=scope)
        store.repair()
        await trio.sleep(30)
        assert (await stored(store, "t")).status is TaskStatus.CANCELLED


async def test_a_supplied_scope_whose_body_succeeds(autojump_clock: trio.testing.MockClock) -> None:
    """Work that was finished although its scope was cancelled counts."""
    scope = trio.CancelScope()

    async def body(given: trio.CancelScope) -> TaskResult:
        given.cancel()
        return Success("finished")

    async with open_task_manager() as manager:
        task_id = await manager.spawn(OWNER, "work", "", body, cancel_scope=scope)
        assert (await manager.wait(OWNER, task_id)).result == "finished"


# ---- logging -------------------------------------------------------------------------------------


async def test_log_lines_carry_task_owner_and_attempt(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of an attempt is logged under a stable name, with the ``extra`` fields."""
    caplog.set_level(logging.INFO, "trio_bgtasks")
    async with open_task_manager() as manager:
        await manager.run(request(task_id="t"), done)
    (line,) = [r for r in caplog.records if r.getMessage() == "task t ended: completed"]
    assert line.name == "trio_bgtasks.supervision"
    fields = [getattr(line, name) for name in ("task_id", "owner_thread_id", "attempt")]
    assert fields == ["t", OWNER, 1]
