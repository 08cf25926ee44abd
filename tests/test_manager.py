"""The manager's calls: starting, resuming, cancelling, looking, waiting, announcing, collecting."""

from __future__ import annotations

from functools import partial
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
    Stubborn,
    assert_idle,
    contents,
    done,
    ended,
    forever,
    opened,
    records,
    request,
    stored,
)
from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    CorruptRecord,
    Event,
    Failed,
    IdempotencyKeyUsed,
    ManagerClosed,
    MemoryTaskStore,
    OutputAppended,
    ParentCancelled,
    Registered,
    StaleAttempt,
    Stopped,
    Success,
    TaskExists,
    TaskNotResumable,
    TaskNotRunning,
    TaskNotStopped,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskStoreError,
    UnknownTask,
    open_task_manager,
)
from trio_bgtasks.stores import RecordPage


async def stop(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
    """Stop at once, to be resumed."""
    await trio.lowlevel.checkpoint()
    return Stopped("enough")


# ---- starting ------------------------------------------------------------------------------------


async def test_a_start_is_stored_when_it_is_answered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The summary is that of the record; id, time and defaults are filled in."""
    store = MemoryTaskStore()
    async with opened(store, clock_ms=lambda: 1234, description_chars=10) as manager:
        asked = request(
            description="d\x00" + "e" * 20, args={"a": 1}, metadata={"m": [2]}, supports_resume=True
        )
        summary = await manager.start(asked, forever)
        assert summary.task_id.startswith("bg_")
        assert len(summary.task_id) == 35
        record = await stored(store, summary.task_id)
        assert record.summary() == summary
        assert summary.to_json() == {
            "task_id": summary.task_id,
            "task_type": "work",
            "description": "d\ufffd" + "e" * 7 + "…",
            "status": "running",
            "created_at_ms": 1234,
            "supports_resume": True,
            "attempt": 1,
            "metadata": {"m": [2]},
        }
        assert (record.args, record.background) == ({"a": 1}, True)
        assert record.executor_id == manager.statistics().executor_id
        assert manager.statistics().started in (0, 1)


async def test_an_id_is_used_once(autojump_clock: trio.testing.MockClock) -> None:
    """Whether its task runs, has ended, was collected, or is another owner's. C42."""
    async with open_task_manager() as manager:
        await manager.start(request(task_id="t"), forever)
        for owner in (OWNER, OTHER):
            with pytest.raises(TaskExists, match=r"Task 't' exists already .*: running\)"):
                await manager.start(request(owner, task_id="t"), done)
            with pytest.raises(TaskExists, match="running"):
                await manager.run(request(owner, task_id="t"), done)
        await manager.cancel(OWNER, "t")
        await manager.wait(OWNER, "t")
        with pytest.raises(TaskExists, match="cancelled"):
            await manager.start(request(task_id="t"), done)
        await manager.gc_terminal(OWNER)
        with pytest.raises(TaskExists, match="collected"):
            await manager.start(request(task_id="t"), done)
        assert_idle(manager)


async def test_concurrent_starts_of_one_id(autojump_clock: trio.testing.MockClock) -> None:
    """The first one's store answer is waited for; then the others go by the record. C3."""
    store, gate, refused = FaultyStore(), Gate(), list[str]()
    async with opened(store) as manager:

        async def start(*, foreground: bool) -> None:
            call = manager.run if foreground else manager.start
            try:
                await call(request(task_id="t"), gate)
            except TaskExists as error:
                refused.append(str(error))

        store.break_down("apply", fault="slow", last=1)
        async with trio.open_nursery() as nursery:
            for n in range(6):
                nursery.start_soon(partial(start, foreground=n % 2 == 0))
            await trio.sleep(9)
            assert (manager.statistics().starting, len(gate.runs)) == (1, 0)
            await gate.entered.wait()
            gate.opened.set()
        assert len(gate.runs) == 1
        assert refused == ["Task 't' exists already (current status: running)"] * 5


async def test_a_start_that_failed_leaves_the_id_to_the_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whoever waited for its answer starts instead."""
    store, first, second = FaultyStore(), Gate(), Gate()
    async with opened(store) as manager, trio.open_nursery() as nursery:
        store.break_down("apply", fault="hang", last=1)

        async def hang() -> None:
            with trio.move_on_after(5):
                await manager.start(request(task_id="t"), first)

        nursery.start_soon(hang)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await manager.start(request(task_id="t"), second)
        assert trio.current_time() - began == 5
        await second.entered.wait()
        assert (first.runs, second.runs) == ([], [("t", 1)])


async def test_a_cancel_reaches_a_start_that_is_under_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It waits for the store's answer, and then the body does not run, or not for long. C24."""
    store = FaultyStore()
    async with opened(store) as manager, trio.open_nursery() as nursery:
        store.break_down("apply", fault="slow", last=1)
        nursery.start_soon(manager.start, request(task_id="t"), forever)
        await trio.testing.wait_all_tasks_blocked()
        await manager.cancel(OWNER, "t")
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED


# ---- idempotent starts ---------------------------------------------------------------------------


async def test_an_idempotency_key_starts_one_task(autojump_clock: trio.testing.MockClock) -> None:
    """A repeated start is answered by the task that it started, as that stands."""
    gate = Gate()
    async with open_task_manager() as manager:
        asked = request(idempotency_key="key")
        first = await manager.start(asked, gate)
        assert await manager.start(asked, gate) == first
        with pytest.raises(IdempotencyKeyUsed) as caught:
            await manager.run(asked, gate)
        assert caught.value.task_id == first.task_id
        gate.opened.set()
        await ended(manager, first)
        assert (await manager.start(asked, gate)).result == "done"
        record = await manager.recall(OWNER, "work", "key")
        assert record is not None
        assert record.task_id == first.task_id
        assert await manager.recall(OWNER, "work", "unused") is None
        assert await manager.recall(OTHER, "work", "key") is None
        theirs = await manager.start(request(OTHER, idempotency_key="key"), done)
        assert theirs.task_id != first.task_id
        assert len(gate.runs) == 1
        assert_idle(manager) if not manager.live(OTHER) else None


async def test_a_key_is_bound_to_its_type(autojump_clock: trio.testing.MockClock) -> None:
    """For another type it is refused, and so is the key of a collected task."""
    async with open_task_manager() as manager:
        first = await manager.start(request(idempotency_key="key"), done)
        await ended(manager, first)
        other = request(task_type="other", idempotency_key="key")
        with pytest.raises(IdempotencyKeyUsed, match="'key' was used already"):
            await manager.start(other, done)
        with pytest.raises(IdempotencyKeyUsed):
            await manager.recall(OWNER, "other", "key")
        await manager.gc_terminal(OWNER)
        with pytest.raises(IdempotencyKeyUsed):
            await manager.start(request(idempotency_key="key"), done)
        assert_idle(manager)


async def test_concurrent_starts_with_one_key(autojump_clock: trio.testing.MockClock) -> None:
    """Exactly one runs, on several machines, too; all are answered by it."""
    store, gate, answers = MemoryTaskStore(), Gate(), list[str]()
    async with opened(store) as one, opened(store) as two:

        async def start(manager: BackgroundTaskManager) -> None:
            summary = await manager.start(request(idempotency_key="key"), gate)
            answers.append(summary.task_id)
            assert summary.status is TaskStatus.RUNNING

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(start, one)
                nursery.start_soon(start, two)
        await gate.entered.wait()
        assert len(gate.runs) == 1
        assert answers == [gate.runs[0][0]] * 10


async def test_a_key_of_an_orphan(autojump_clock: trio.testing.MockClock) -> None:
    """A repeated start looks after a dead executor as every look does; it resumes nothing."""
    store = MemoryTaskStore()
    async with opened(store, sweep_s=1e6) as here, opened(store, sweep_s=1e6) as there:
        asked = request(task_id="t", idempotency_key="key", supports_resume=True)
        await there.start(asked, forever)
        store.crash(there.statistics().executor_id)
        await trio.sleep(31)
        again = request(idempotency_key="key")
        assert (await here.start(again, done)).status is TaskStatus.STOPPED


async def test_a_queued_task_is_recalled_as_queued(autojump_clock: trio.testing.MockClock) -> None:
    """A repeated start tells what only this process knows, too."""
    async with opened(attempts_total=1) as manager:
        await manager.start(request(), forever)
        asked = request(idempotency_key="key")
        assert (await manager.start(asked, done)).queued
        assert (await manager.start(asked, done)).queued


# ---- resuming ------------------------------------------------------------------------------------


async def test_a_resume_is_a_new_attempt(autojump_clock: trio.testing.MockClock) -> None:
    """With the merged arguments; the end of the last attempt is cleared, the rest is kept."""
    store = MemoryTaskStore()
    async with open_task_manager(store) as manager:
        first = request(
            task_id="t", supports_resume=True, description="d", args={"a": 1}, metadata={"m": 1}
        )
        await manager.run(first, stop)
        assert (await stored(store, "t")).error == "enough"
        again = request(task_id="t", resume_attempt=1, args={"a": 2}, description="other")
        summary = await manager.start(again, forever)
        assert (summary.attempt, summary.error, summary.description) == (2, None, "d")
        record = await stored(store, "t")
        assert (record.args, record.metadata, record.completed_at_ms) == ({"a": 2}, {"m": 1}, None)


async def test_a_resume_that_may_not_be(autojump_clock: trio.testing.MockClock) -> None:
    """Each refusal names the current status; nothing runs, nothing is changed. C12, C15, C21."""
    store = MemoryTaskStore()
    async with open_task_manager(store) as manager:
        await manager.run(request(task_id="yes", supports_resume=True), stop)
        await manager.run(request(task_id="no"), stop)
        await manager.run(request(task_id="done"), done)
        await manager.start(request(task_id="running"), forever)
        before = await contents(store)
        gate = Gate()
        for asked, error, text in (
            (request(task_id="no", resume_attempt=1), TaskNotResumable, "its tool does not"),
            (request(task_id="done", resume_attempt=1), TaskNotStopped, "completed"),
            (request(task_id="running", resume_attempt=1), TaskNotStopped, "running"),
            (request(task_id="yes", resume_attempt=2), StaleAttempt, "current attempt: 1"),
            (request(OTHER, task_id="yes", resume_attempt=1), UnknownTask, "task_id: yes"),
            (request(OTHER, task_id="running", resume_attempt=1), UnknownTask, "task_id: running"),
            (request(task_id="yes", task_type="x", resume_attempt=1), UnknownTask, "task_id: yes"),
            (request(task_id="running", task_type="x", resume_attempt=1), UnknownTask, "running"),
            (request(task_id="none", resume_attempt=1), UnknownTask, "task_id: none"),
        ):
            for call in (manager.start, manager.run):
                with pytest.raises(error, match=text):
                    await call(asked, gate)
        assert await contents(store) == before
        await manager.cancel(OWNER, "yes")
        with pytest.raises(TaskNotStopped, match="cancelled"):
            await manager.start(request(task_id="yes", resume_attempt=1), gate)
        assert not gate.runs


async def test_concurrent_resumes(autojump_clock: trio.testing.MockClock) -> None:
    """Exactly one wins; the others get the running status. C10."""
    store, gate, refused = FaultyStore(), Gate(), list[str]()
    async with opened(store) as manager:
        await manager.run(request(task_id="t", supports_resume=True), stop)

        async def resume(*, foreground: bool) -> None:
            call = manager.run if foreground else manager.start
            try:
                await call(request(task_id="t", resume_attempt=1), gate)
            except TaskNotStopped as error:
                refused.append(str(error))

        store.break_down("apply", fault="slow", last=1)
        async with trio.open_nursery() as nursery:
            for n in range(6):
                nursery.start_soon(partial(resume, foreground=n % 2 == 0))
            await gate.entered.wait()
            gate.opened.set()
        assert gate.runs == [("t", 2)]
        assert refused == ["Task 't' is not stopped (current status: running)"] * 5


async def test_a_resume_while_the_old_attempt_cleans_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Until the old attempt's end is stored, the task runs: it cannot be resumed. C11."""
    body, gate = Stubborn(Success("late")), Gate()
    async with open_task_manager() as manager, trio.open_nursery() as nursery:
        asked = request(task_id="t", supports_resume=True)
        await manager.start(asked, body)
        await body.entered.wait()
        nursery.start_soon(manager.close_owner, OWNER)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ManagerClosed, match="owner thread 'thread-1' is being closed"):
            await manager.start(attrs.evolve(asked, resume_attempt=1), gate)
        body.opened.set()
        assert (await manager.wait(OWNER, "t")).result == "late"
        assert not gate.runs


# ---- close_owner ---------------------------------------------------------------------------------


async def test_close_owner_ends_the_owners_tasks_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """When it returns their ends are stored as stopped; the owner may start again. C19."""
    store = MemoryTaskStore()
    async with open_task_manager(store) as manager:
        await manager.start(request(task_id="a"), forever)
        await manager.start(request(OTHER, task_id="b"), forever)
        await manager.close_owner(OWNER)
        assert (await stored(store, "a")).error == "The owner thread was closed"
        assert (await stored(store, "b")).status is TaskStatus.RUNNING
        await manager.close_owner("nobody")
        await manager.start(request(), forever)


async def test_close_owner_meets_a_start_that_is_under_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The start is stored, ends as stopped, and never runs."""
    store, gate = FaultyStore(), Gate()
    async with opened(store) as manager, trio.open_nursery() as nursery:
        store.break_down("apply", fault="slow", last=1)
        nursery.start_soon(manager.start, request(task_id="t"), gate)
        await trio.testing.wait_all_tasks_blocked()
        await manager.close_owner(OWNER)
        assert (await stored(store, "t")).status is TaskStatus.STOPPED
        assert not gate.runs


async def test_two_close_owners_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """One that gives up does not open the owner under the other."""
    body = Stubborn()
    async with open_task_manager() as manager, trio.open_nursery() as nursery:
        await manager.start(request(), body)
        await body.entered.wait()
        nursery.start_soon(manager.close_owner, OWNER)
        with trio.move_on_after(1):
            await manager.close_owner(OWNER)
        with pytest.raises(ManagerClosed):
            await manager.start(request(), done)
        assert await manager.has_running_tasks(OWNER)
        body.opened.set()
        await trio.testing.wait_all_tasks_blocked()
        await manager.start(request(), done)


async def test_what_would_wait_for_itself_is_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """``wait``, ``close_owner`` and the end of the manager, within a task they would wait for."""
    refused: list[str] = []
    stack = open_task_manager()
    async with open_task_manager() as other:
        manager = await stack.__aenter__()

        async def try_all(task_id: str) -> None:
            for call in (
                lambda: manager.wait(OWNER, task_id),
                lambda: manager.close_owner(OWNER),
                lambda: stack.__aexit__(None, None, None),
            ):
                with pytest.raises(RuntimeError) as caught:
                    await call()
                refused.append(str(caught.value))

        async def inner(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            await try_all("outer")
            return Success()

        async def elsewhere(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            await try_all("outer")
            return Success()

        async def outer(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            await try_all("outer")
            # In the foreground, told another parent; and through another manager's task.
            await manager.run(request(OTHER, parent_task_id="x"), inner)
            await other.run(request(), elsewhere)
            return Success()

        assert await manager.run(request(task_id="outer"), outer) == Success()
        texts = [
            "wait() would wait for the task that calls it",
            "close_owner() would wait for the task that calls it",
            "the task manager cannot end within one of its own tasks",
        ]
        assert refused == texts * 3
        assert await stack.__aexit__(None, None, None) is None


async def test_a_child_does_not_wait_for_its_parent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """``wait`` for a parent is refused in a background child, too; a close of its owner is not."""
    async with open_task_manager() as manager:
        over = trio.Event()

        async def child(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            with pytest.raises(RuntimeError, match="would wait"):
                await manager.wait(OWNER, "parent")
            await manager.close_owner(OWNER)  # the parent does not need this child to end
            over.set()
            return Success("closed")

        async def grandchild(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            with pytest.raises(RuntimeError, match="would wait"):
                await manager.wait(OWNER, "parent")
            await manager.start(request(OTHER, task_id="child"), child)
            await trio.sleep_forever()
            raise AssertionError

        async def parent(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            await manager.start(request(OTHER), grandchild)
            await trio.sleep_forever()
            raise AssertionError

        await manager.start(request(task_id="parent"), parent)
        with trio.fail_after(10):
            await over.wait()
            assert (await manager.wait(OTHER, "child")).result == "closed"
            assert (await manager.wait(OWNER, "parent")).status is TaskStatus.STOPPED


# ---- cancelling ----------------------------------------------------------------------------------


async def test_a_cancel_is_accepted_when_it_returns(autojump_clock: trio.testing.MockClock) -> None:
    """Its mark is stored, the first one stays; it goes on saying running until the end. C20."""
    now, store, body = [1000], MemoryTaskStore(), Stubborn(Success("kept"))
    async with opened(store, clock_ms=lambda: now[0]) as manager:
        await manager.start(request(task_id="t"), body)
        await body.entered.wait()
        assert (await manager.cancel(OWNER, "t")).status is TaskStatus.RUNNING
        now[0] = 2000
        await manager.cancel(OWNER, "t")
        assert (await stored(store, "t")).cancel_requested_at_ms == 1000
        body.opened.set()
        summary = await manager.wait(OWNER, "t")
        assert (summary.status, summary.result) == (TaskStatus.CANCELLED, "kept")
        with pytest.raises(TaskNotRunning, match=r"is not running \(current status: cancelled\)"):
            await manager.cancel(OWNER, "t")


async def test_a_cancel_that_lost_the_race(autojump_clock: trio.testing.MockClock) -> None:
    """It is refused, says what the task ended as, and changes nothing."""
    async with open_task_manager() as manager:
        for result in (Success(), Failed("no")):
            gate = Gate(result)
            gate.opened.set()
            summary = await ended(manager, await manager.start(request(), gate))
            with pytest.raises(TaskNotRunning, match=str(summary.status)):
                await manager.cancel(OWNER, summary.task_id)
            with pytest.raises(TaskNotRunning, match=str(summary.status)):
                await manager.cancel_tree(OWNER, summary.task_id)
            assert await manager.get(OWNER, summary.task_id) == summary


async def test_a_stopped_task_is_abandoned(autojump_clock: trio.testing.MockClock) -> None:
    """Resumable or not, it becomes cancelled. C21."""
    async with open_task_manager() as manager:
        for resumable in (True, False):
            asked = request(task_id=f"t{resumable}", supports_resume=resumable)
            await manager.run(asked, stop)
            assert (await manager.cancel(OWNER, f"t{resumable}")).status is TaskStatus.CANCELLED
            summary = await manager.wait(OWNER, f"t{resumable}")
            assert (summary.status, summary.error) == (TaskStatus.CANCELLED, "enough")


@pytest.mark.parametrize("fault", ["before", "after", "hang", "hang after"])
async def test_a_cancel_works_while_the_store_does_not(
    fault: Any, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A local attempt ends all the same, the answer says what is not stored, and it is retried."""
    store = FaultyStore()
    async with opened(store) as manager, manager.subscribe(OWNER) as hints:
        await manager.start(request(task_id="t"), forever)
        await trio.testing.wait_all_tasks_blocked()
        await hints.receive()
        store.break_down("apply", "load", "children", fault=fault)
        with trio.fail_after(5.1):
            tree = await manager.cancel_tree(OWNER, "t")
        (summary,) = tree.unsaved
        assert summary.persistence_error is not None
        assert "the cancellation is not stored yet: " in summary.persistence_error
        assert await hints.receive() == "t"
        store.repair()
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED
        assert_idle(manager)
    (line, *_) = [r for r in caplog.records if "the cancellation is not" in r.getMessage()]
    fields = [getattr(line, name) for name in ("task_id", "owner_thread_id", "attempt")]
    assert fields == ["t", OWNER, 1]


async def test_a_cancel_for_another_machine_needs_the_store(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What does not run here cannot be cancelled without it: an error, nothing is promised."""
    inner = MemoryTaskStore()
    store = FaultyStore(inner)
    async with opened(store) as here, opened(inner) as there:
        await there.start(request(task_id="t"), forever)
        store.break_down("apply", error=lambda: TaskStoreError("down"))
        with pytest.raises(TaskStoreError, match="down"):
            await here.cancel(OWNER, "t")
        with pytest.raises(TaskStoreError, match="down"):
            await here.cancel_tree(OWNER, "t")
        store.break_down("load")
        with pytest.raises(ConnectionError):
            await here.cancel(OWNER, "t")


# ---- trees ---------------------------------------------------------------------------------------


async def grow(manager: BackgroundTaskManager, *rows: str) -> dict[str, Gate]:
    """Start ``name``, ``name<parent`` or ``owner:name<parent``; return their bodies."""
    gates: dict[str, Gate] = {}
    for row in rows:
        rest, _, parent = row.partition("<")
        owner, _, name = rest.rpartition(":")
        gates[name] = Gate()
        asked = request(owner or OWNER, task_id=name, parent_task_id=parent or None)
        await manager.start(asked, gates[name])
    await trio.testing.wait_all_tasks_blocked()
    return gates


async def statuses(store: Any, *names: str) -> list[str]:
    """Return the statuses of tasks."""
    return [(await stored(store, name)).status.value for name in names]


async def test_a_tree_is_cancelled_whoever_owns_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """All below the root, in whatever process; own ones are named, others counted. C18, C19."""
    store = MemoryTaskStore()
    async with opened(store) as manager, opened(store) as elsewhere:
        await grow(manager, "root", "a<root", "sub:b<root", "sub:c<b", "d<c", "beside", "sub:e")
        await grow(elsewhere, "far<d", "sub:deep<far")
        tree = await manager.cancel_tree(OWNER, "root")
        assert {summary.task_id for summary in tree.own} == {"root", "a", "d", "far"}
        assert tree.own[0].task_id == "root"
        assert tree.others == 3
        await trio.sleep(3)
        names = ("root", "a", "b", "c", "d", "far", "deep")
        assert set(await statuses(store, *names)) == {"cancelled"}
        assert await statuses(store, "beside", "e") == ["running", "running"]


async def test_a_tree_below_what_has_ended(autojump_clock: trio.testing.MockClock) -> None:
    """A root, or a task between, that has ended does not hide what runs below it."""
    store = MemoryTaskStore()
    async with open_task_manager(store) as manager:
        gates = await grow(manager, "root", "mid<root", "leaf<mid")
        gates["root"].opened.set()
        gates["mid"].opened.set()
        await trio.testing.wait_all_tasks_blocked()
        tree = await manager.cancel_tree(OWNER, "root")
        assert [summary.task_id for summary in tree.own] == ["leaf"]
        await trio.testing.wait_all_tasks_blocked()
        assert await statuses(store, "root", "mid", "leaf") == [
            "completed",
            "completed",
            "cancelled",
        ]


async def test_a_tree_abandons_what_is_stopped(autojump_clock: trio.testing.MockClock) -> None:
    """Stopped tasks of the tree can never be resumed any more."""
    store = MemoryTaskStore()
    async with open_task_manager(store) as manager:
        await manager.run(request(task_id="root", supports_resume=True), stop)
        child = request(OTHER, task_id="child", parent_task_id="root", supports_resume=True)
        await manager.run(child, stop)
        tree = await manager.cancel_tree(OWNER, "root")
        assert ([summary.task_id for summary in tree.own], tree.others) == (["root"], 1)
        assert await statuses(store, "root", "child") == ["cancelled", "cancelled"]


@pytest.mark.parametrize("rows", [("a<a",), ("a<b", "b<a"), ("a<c", "b<a", "c<b", "d<c")])
async def test_circles(rows: tuple[str, ...], autojump_clock: trio.testing.MockClock) -> None:
    """Lineage that runs in a circle ends nobody's loop. C25."""
    store = MemoryTaskStore()
    async with open_task_manager(store) as manager:
        await grow(manager, *rows)
        tree = await manager.cancel_tree(OWNER, "a")
        assert len(tree.own) == len(rows)
        await trio.testing.wait_all_tasks_blocked()
        assert_idle(manager)
        assert await manager.gc_terminal(OWNER) == len(rows)


async def test_a_child_of_a_cancelled_task_is_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """While the parent cleans up, and afterwards: nothing starts below an accepted cancel."""
    body = Stubborn()
    async with open_task_manager() as manager:
        await manager.start(request(task_id="p"), body)
        await body.entered.wait()
        await manager.cancel(OWNER, "p")
        for _ in range(2):
            for call in (manager.start, manager.run):
                text = "Task 'c' is not started: its parent 'p' is cancelled"
                with pytest.raises(ParentCancelled, match=text):
                    await call(request(OTHER, task_id="c", parent_task_id="p"), done)
            body.opened.set()
            await manager.wait(OWNER, "p")
        assert_idle(manager)


async def test_a_tree_that_grows_while_it_is_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Passes are repeated until one finds nothing new."""

    class Growing(StoreWrapper):
        """Lets a child appear, once, behind the walk."""

        grown = False

        async def children(self, task_id: str, **options: Any) -> RecordPage:
            page = await super().children(task_id, **options)
            if task_id == "b" and not self.grown:
                self.grown = True
                await grow(manager, "late<x")
            return page

    store = Growing()
    async with open_task_manager(store) as manager:
        await grow(manager, "root", "a<root", "b<root")
        # A child of a stopped one: that one can be cancelled, but it was looked at before.
        await manager.run(request(task_id="x", parent_task_id="a", supports_resume=True), done)
        tree = await manager.cancel_tree(OWNER, "root")
        assert {s.task_id for s in tree.own} == {"root", "a", "b", "late"}


async def test_a_tree_on_a_store_that_fails_here_and_there(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """All that can be cancelled is; then what could not be is raised, so nothing is claimed."""
    inner = MemoryTaskStore()
    store = FaultyStore(inner)
    async with opened(store) as here, opened(inner, poll_s=0.5) as there:
        await grow(here, "root", "a<root")
        await grow(there, "far<root")
        await grow(here, "b<far")
        store.break_down("apply", first=2, last=2, error=lambda: OSError("disk"))
        try:
            tree = await here.cancel_tree(OWNER, "root")
        except OSError:
            pass  # the mark of the one of the other machine
        else:
            assert len(tree.unsaved) == 1
            assert {s.task_id for s in tree.own} == {"root", "a", "far", "b"}
        store.repair()
        await here.cancel_tree(OWNER, "root") if here.live(OWNER) else None
        await trio.sleep(5)
        assert await statuses(inner, "root", "a", "b") == ["cancelled"] * 3


async def test_children_that_cannot_be_read(autojump_clock: trio.testing.MockClock) -> None:
    """What is live here is cancelled all the same; the answer is an error, not a claim."""
    store = FaultyStore()
    async with open_task_manager(store) as manager:
        await grow(manager, "root", "a<root", "sub:b<a")
        store.break_down("children", error=lambda: OSError("disk"))
        with pytest.raises(OSError, match="disk"):
            await manager.cancel_tree(OWNER, "root")
        await trio.testing.wait_all_tasks_blocked()
        assert await statuses(store, "root", "a", "b") == ["cancelled"] * 3


async def test_a_corrupt_record_in_a_tree(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and what is below it is cancelled all the same."""

    class Corrupt(StoreWrapper):
        """Cannot read one record."""

        async def children(self, task_id: str, **options: Any) -> RecordPage:
            page = await super().children(task_id, **options)
            bad = [CorruptRecord("bad", "not JSON") for r in page.records if r.task_id == "bad"]
            return RecordPage([r for r in page.records if r.task_id != "bad"], bad)

    store = Corrupt()
    async with opened(store.inner) as elsewhere, open_task_manager(store) as manager:
        await grow(manager, "root")
        await grow(elsewhere, "bad<root")
        await grow(manager, "below<bad")
        tree = await manager.cancel_tree(OWNER, "root")
        assert [s.task_id for s in tree.own] == ["root", "below"]
    assert "not cancelled: the stored record of task 'bad' is corrupt" in caplog.text


async def test_a_tree_whose_root_ends_just_then(autojump_clock: trio.testing.MockClock) -> None:
    """The refusal names what it ended as."""

    class Racing(StoreWrapper):
        """Lets the body end just before the cancel."""

        async def apply(self, task_id: str, event: Event) -> TaskRecord:
            if not isinstance(event, Registered) and not gate.opened.is_set():
                gate.opened.set()
                await trio.testing.wait_all_tasks_blocked()
            return await super().apply(task_id, event)

    gate = Gate()
    async with open_task_manager(Racing()) as manager:
        await manager.start(request(task_id="t"), gate)
        await gate.entered.wait()
        with pytest.raises(TaskNotRunning, match="current status: completed"):
            await manager.cancel_tree(OWNER, "t")


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
    async with open_task_manager(store) as manager:
        await grow(manager, "t")
        await manager.run(request(task_id="ended"), done)
        store.break_down("load")
        summary = await manager.get(OWNER, "t")
        assert summary is not None
        assert summary.status is TaskStatus.RUNNING
        assert summary.persistence_error == "not read back: ConnectionError: store is down"
        assert [live.task_id for live in manager.live(OWNER)] == ["t"]
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


# ---- waiting -------------------------------------------------------------------------------------


async def test_wait_is_level_triggered(autojump_clock: trio.testing.MockClock) -> None:
    """What has ended, or is stopped, is answered at once, without waiting for a wake-up."""
    async with open_task_manager() as manager:
        for body, status in ((done, "completed"), (stop, "stopped")):
            summary = await ended(manager, await manager.start(request(), body))
            began = trio.current_time()
            assert (await manager.wait(OWNER, summary.task_id)).status == status
            assert trio.current_time() == began


async def test_wait_returns_the_end_of_the_attempt_it_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A resume that follows at once does not make it miss the end before."""
    async with open_task_manager() as manager, trio.open_nursery() as nursery:
        seen: list[Any] = []

        async def wait() -> None:
            seen.append((await manager.wait(OWNER, "t")).status)

        gate = Gate(Stopped())
        await manager.start(request(task_id="t", supports_resume=True), gate)
        nursery.start_soon(wait)
        await gate.entered.wait()
        gate.opened.set()
        while manager.live(OWNER):  # noqa: ASYNC110 - not to be woken is the point
            await trio.lowlevel.checkpoint()
        await manager.start(request(task_id="t", resume_attempt=1), forever)
        await trio.testing.wait_all_tasks_blocked()
        assert seen == [TaskStatus.STOPPED]


async def test_wait_for_what_is_collected(autojump_clock: trio.testing.MockClock) -> None:
    """A task that is gone when it is looked for is unknown."""
    store = MemoryTaskStore()
    async with opened(store) as here, opened(store) as there:
        gate, raised = Gate(), list[str]()
        await there.start(request(task_id="t"), gate)

        async def wait() -> None:
            with pytest.raises(UnknownTask, match="Unknown task_id: t"):
                await here.wait(OWNER, "t")
            raised.append("t")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await gate.entered.wait()
            gate.opened.set()
            await there.wait(OWNER, "t")
            assert await there.gc_terminal(OWNER) == 1
        assert raised == ["t"]


async def test_wait_for_a_start_that_was_refused(autojump_clock: trio.testing.MockClock) -> None:
    """Who waited for a start that came to nothing is told that there is no such task."""
    store = FaultyStore()
    async with open_task_manager(store) as manager, trio.open_nursery() as nursery:
        store.break_down("apply", fault="slow", last=1)
        asked = request(task_id="t", parent_task_id="p")
        await store.inner.apply(
            "p", Registered(1, manager.statistics().executor_id, OWNER, "x", "")
        )

        async def start() -> None:
            with pytest.raises(ParentCancelled):
                await manager.start(asked, done)

        nursery.start_soon(start)
        await trio.testing.wait_all_tasks_blocked()
        await manager.cancel(OWNER, "p")
        with pytest.raises(UnknownTask):
            await manager.wait(OWNER, "t")


async def test_wait_ends_with_the_manager(autojump_clock: trio.testing.MockClock) -> None:
    """For an own task it is answered as that was stopped; for a foreign one `ManagerClosed`."""
    store, seen = MemoryTaskStore(), list[Any]()

    async def wait(manager: BackgroundTaskManager, task_id: str) -> None:
        try:
            seen.append((await manager.wait(OWNER, task_id)).status)
        except ManagerClosed as error:
            seen.append(str(error))

    async with opened(store) as there, trio.open_nursery() as nursery:
        await there.start(request(task_id="far"), forever)
        async with opened(store) as here:
            await here.start(request(task_id="own"), forever)
            nursery.start_soon(wait, here, "own")  # noqa: ASYNC111
            nursery.start_soon(wait, here, "far")  # noqa: ASYNC111
            await trio.testing.wait_all_tasks_blocked()
            assert here.statistics().waiters == 2
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(map(str, seen)) == ["stopped", "the task manager is closed"]
        with pytest.raises(ManagerClosed):
            await here.wait(OWNER, "far")
        assert (await here.wait(OWNER, "own")).status is TaskStatus.STOPPED


async def test_wait_waits_for_the_store(autojump_clock: trio.testing.MockClock) -> None:
    """A body's end that is not stored yet is no end."""
    store = FaultyStore()
    async with open_task_manager(store) as manager:
        await manager.start(request(task_id="t"), done)
        store.break_down("apply")
        with trio.move_on_after(100) as scope:
            await manager.wait(OWNER, "t")
        assert scope.cancelled_caught
        store.repair()
        assert (await manager.wait(OWNER, "t")).result == "done"


# ---- announcing ----------------------------------------------------------------------------------


async def ids(manager: BackgroundTaskManager) -> list[str]:
    """Take the notices; return their task ids."""
    return [summary.task_id for summary in await manager.take_notices(OWNER)]


async def test_a_notice_comes_until_it_is_acknowledged(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is acknowledged when the block succeeds; if it raises, or is cancelled, it comes again. C44."""
    async with open_task_manager() as manager:
        await ended(manager, await manager.start(request(task_id="t"), done))
        with pytest.raises(ZeroDivisionError):
            async with manager.notices(OWNER) as summaries:
                assert [summary.result for summary in summaries] == ["done"]
                raise ZeroDivisionError
        with trio.move_on_after(1):
            async with manager.notices(OWNER) as summaries:
                assert len(summaries) == 1
                await trio.sleep_forever()
        assert await ids(manager) == ["t"]
        assert await ids(manager) == []


async def test_two_takers_never_share_a_notice(autojump_clock: trio.testing.MockClock) -> None:
    """What one block holds no other is given; if it fails, the next one gets it."""
    async with open_task_manager() as manager:
        for n in range(3):
            await ended(manager, await manager.start(request(task_id=f"t{n}"), done))
        with pytest.raises(ZeroDivisionError):
            async with manager.notices(OWNER) as first:
                assert len(first) == 3
                await ended(manager, await manager.start(request(task_id="late"), done))
                assert await ids(manager) == ["late"]
                async with manager.notices(OWNER) as none:
                    assert none == []
                raise ZeroDivisionError
        assert await ids(manager) == ["t0", "t1", "t2"]


async def test_takers_at_once_on_a_slow_store(autojump_clock: trio.testing.MockClock) -> None:
    """Many takers, a store that takes its time: every notice goes to exactly one of them."""

    class Slow(StoreWrapper):
        """Takes a moment for every call."""

        async def around(self, call: str, afn: Any) -> Any:
            await trio.sleep(0.01)
            answer = await afn()
            await trio.sleep(0.01)
            return answer

    taken: list[str] = []
    async with open_task_manager(Slow()) as manager:

        async def take() -> None:
            taken.extend(await ids(manager))

        async with trio.open_nursery() as nursery:
            for n in range(20):
                await manager.run(request(), done)
                await ended(manager, await manager.start(request(task_id=f"t{n}"), done))
                for _ in range(3):
                    nursery.start_soon(take)
        await take()
    assert sorted(taken) == sorted(f"t{n}" for n in range(20))


async def test_an_acknowledgement_that_failed(autojump_clock: trio.testing.MockClock) -> None:
    """A block whose notices could not be acknowledged is told; they come again."""
    store = FaultyStore()
    async with open_task_manager(store) as manager:
        await ended(manager, await manager.start(request(task_id="t"), done))
        store.break_down("acknowledge", error=lambda: TaskStoreError("no"))
        with pytest.raises(TaskStoreError, match="no"):
            await ids(manager)
        store.break_down("acknowledge", fault="hang")
        with pytest.raises(TaskStoreError, match="could not be acknowledged in time"):
            await ids(manager)
        store.repair()
        assert await ids(manager) == ["t"]


async def test_notices_in_portions(autojump_clock: trio.testing.MockClock) -> None:
    """At most a hundred at a time, the oldest first, each as its attempt ended."""
    async with open_task_manager() as manager:
        for n in range(250):
            await ended(manager, await manager.start(request(task_id=f"t{n}"), done))
        found: list[str] = []
        for size in (100, 100, 50, 0):
            portion = await ids(manager)
            assert len(portion) == size
            found += portion
        assert found == [f"t{n}" for n in range(250)]


async def test_each_attempt_has_its_notice(autojump_clock: trio.testing.MockClock) -> None:
    """A stopped attempt, and the one that resumed it, are announced each as it ended."""
    async with open_task_manager() as manager:
        asked = request(task_id="t", supports_resume=True)
        await ended(manager, await manager.start(asked, stop))
        again = attrs.evolve(asked, resume_attempt=1)
        await ended(manager, await manager.start(again, done))
        told = [(s.attempt, s.status.value, s.error) for s in await manager.take_notices(OWNER)]
        assert told == [(1, "stopped", "enough"), (2, "completed", None)]


async def test_a_notice_survives_the_record(autojump_clock: trio.testing.MockClock) -> None:
    """A collected task is announced all the same. C26."""
    async with open_task_manager() as manager:
        await ended(manager, await manager.start(request(task_id="t"), done))
        assert await manager.gc_terminal(OWNER) == 1
        assert await manager.get(OWNER, "t") is None
        assert await ids(manager) == ["t"]


async def test_foreground_notices_can_be_passed_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """``background_only`` leaves the others where they are, however many there are."""
    async with open_task_manager() as manager:
        for n in range(120):
            with trio.move_on_after(1):
                await manager.run(request(task_id=f"f{n}"), forever)
        await ended(manager, await manager.start(request(task_id="b"), done))
        async with manager.notices(OWNER, background_only=True) as summaries:
            assert [summary.task_id for summary in summaries] == ["b"]
        assert await ids(manager) == [f"f{n}" for n in range(100)]


# ---- collecting ----------------------------------------------------------------------------------


async def test_what_has_ended_is_collected(autojump_clock: trio.testing.MockClock) -> None:
    """Ended records of this owner, of that age, without a running descendant. C21, C26, C32."""
    now, store = [1_000_000], MemoryTaskStore()
    async with opened(store, clock_ms=lambda: now[0]) as manager:
        gates = await grow(manager, "parent", "sub:child<parent", "old")
        for name in ("parent", "old"):
            gates[name].opened.set()
            await manager.wait(OWNER, name)
        now[0] += 60_000
        await manager.run(request(task_id="young"), done)
        await manager.run(request(task_id="stopped"), stop)
        await manager.run(request(task_id="resumable", supports_resume=True), stop)
        await manager.run(request(OTHER, task_id="theirs"), done)
        assert await manager.gc_terminal(OWNER, older_than_s=61) == 0
        assert await manager.gc_terminal(OWNER, older_than_s=60) == 1  # the old one
        assert await manager.gc_terminal(OWNER, older_than_s=1e308) == 0
        assert await manager.gc_terminal(OWNER) == 2
        assert [r.task_id for r in await records(store)] == ["parent", "resumable"]
        gates["child"].opened.set()
        await manager.wait("sub", "child")
        assert await manager.gc_terminal(OWNER) == 1
        assert await stored(store, "theirs")


async def test_an_unsaved_end_is_not_collected(autojump_clock: trio.testing.MockClock) -> None:
    """Only what the store says has ended can go. C26."""
    store = FaultyStore()
    async with open_task_manager(store) as manager:
        await manager.start(request(task_id="t"), done)
        store.break_down("apply")
        await trio.sleep(10)
        assert await manager.gc_terminal(OWNER) == 0
        store.repair()
        assert (await manager.wait(OWNER, "t")).result == "done"
        assert await manager.gc_terminal(OWNER) == 1


async def test_owners_in_pages(autojump_clock: trio.testing.MockClock) -> None:
    """Every owner that has tasks, once, in order."""
    async with open_task_manager() as manager:
        for n in range(450):
            await manager.run(request(f"owner {n:03}"), done)
        assert await manager.owners() == [f"owner {n:03}" for n in range(450)]


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
