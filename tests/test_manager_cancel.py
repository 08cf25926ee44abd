"""Cancelling: one task or all below it, in whatever process, whatever the store does."""

from __future__ import annotations

import math
from typing import Any

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
    Told,
    assert_idle,
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
    CancelRequested,
    CorruptRecord,
    Event,
    Failed,
    MemoryTaskStore,
    ParentCancelled,
    Registered,
    Success,
    TaskNotRunning,
    TaskRecord,
    TaskStatus,
    TaskStore,
    TaskStoreError,
    open_task_manager,
)
from trio_bgtasks.stores import RecordPage

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
    """It is refused, says what the task ended as, and changes nothing. C22."""
    async with open_task_manager() as manager:
        for result in (Success(), Failed("no")):
            gate = Gate(result)
            gate.opened.set()
            summary = await ended(manager, await manager.start(request(), gate))
            for call in (manager.cancel, manager.cancel_tree):
                with pytest.raises(TaskNotRunning) as caught:
                    await call(OWNER, summary.task_id)
                text = f"is not running (current status: {summary.status})"
                assert str(caught.value) == f"Task {summary.task_id!r} {text}"
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
    async with opened(store) as manager:
        async with manager.subscribe(OWNER) as hints:
            await manager.start(request(task_id="t"), forever)
            await trio.testing.wait_all_tasks_blocked()
            await hints.receive()
            store.break_down("apply", "load", "children", fault=fault)
            with trio.fail_after(5.1):
                tree = await manager.cancel_tree(OWNER, "t")
            (summary,) = tree.unsaved
            slow, down = "the store did not answer in time", "store is down"
            why = f"TaskStoreError: {slow}" if "hang" in fault else f"ConnectionError: {down}"
            assert summary.persistence_error == f"the cancellation is not stored yet: {why}"
            unread = f"children of t not read: {slow if 'hang' in fault else down}"
            assert unread in [line.getMessage() for line in caplog.records]
            assert await hints.receive() == "t"
        store.repair()
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED
        assert_idle(manager)
    (line, *_) = [r for r in caplog.records if "the cancellation is not" in r.getMessage()]
    fields = [getattr(line, name) for name in ("task_id", "owner_thread_id", "attempt")]
    assert fields == ["t", OWNER, 1]


async def test_a_body_is_told_of_a_cancel_that_is_not_stored(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Why it is to stop does not depend on the store."""
    body = Told()
    store = FaultyStore()
    async with opened(store) as manager:
        await manager.start(request(task_id="t"), body)
        await trio.testing.wait_all_tasks_blocked()
        store.break_down("apply")
        await manager.cancel(OWNER, "t")
        await trio.testing.wait_all_tasks_blocked()
        store.repair()
    assert body.reasons == ["cancel"]


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
        store.break_down("load", error=lambda: ConnectionError("gone"))
        with pytest.raises(ConnectionError, match="gone"):
            await here.cancel(OWNER, "t")


# ---- trees ---------------------------------------------------------------------------------------


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

    class Watched(StoreWrapper):
        """Fails the test when somebody walks for ever."""

        steps = 0

        async def children(self, task_id: str, **options: Any) -> RecordPage:
            self.steps += 1
            if self.steps > 100:
                pytest.fail("round and round")
            return await super().children(task_id, **options)

    async with open_task_manager(Watched()) as manager:
        await grow(manager, *rows)
        tree = await manager.cancel_tree(OWNER, "a")
        assert len(tree.own) == len(rows)
        await trio.testing.wait_all_tasks_blocked()
        assert_idle(manager)
        assert await manager.gc_terminal(OWNER) == len(rows)


async def test_a_tree_wider_than_a_page(autojump_clock: trio.testing.MockClock) -> None:
    """Every child is cancelled, however many a parent has, here and on another machine."""
    store, wide = MemoryTaskStore(), 450
    async with open_task_manager(store) as manager, open_task_manager(store) as elsewhere:
        await manager.start(request(task_id="root"), forever)
        for n in range(wide):
            where = (manager, elsewhere)[n % 2]
            await where.start(request(parent_task_id="root"), forever)
        assert (await store.children("root")).next_after is not None
        tree = await manager.cancel_tree(OWNER, "root")
        assert len(tree.own) == 1 + wide
        await trio.sleep(3)  # a poll
        assert_idle(manager)
        assert_idle(elsewhere)


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
        await grow(manager, "root", "sub:a<root", "sub:b<a")
        # A child of an ended one, which nothing refuses; that one's level was walked before b's.
        await manager.run(request(task_id="x", parent_task_id="root"), done)
        tree = await manager.cancel_tree(OWNER, "root")
        assert ({s.task_id for s in tree.own}, tree.others) == ({"root", "late"}, 2)


class Unmarkable(StoreWrapper):
    """Fails to store the cancel mark of a task, so many times."""

    def __init__(self, inner: TaskStore, **failures: float) -> None:
        super().__init__(inner)
        self.failures = failures

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        if isinstance(event, CancelRequested) and self.failures.get(task_id, 0) > 0:
            self.failures[task_id] -= 1
            raise OSError("disk")
        return await super().apply(task_id, event)


@pytest.mark.parametrize(
    ("failing", "unsaved"), [("root", ["root"]), ("a", ["a"]), ("b", ["b"]), ("far", [])]
)
async def test_a_tree_on_a_store_that_fails_here_and_there(
    failing: str, unsaved: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    """A mark that failed once is told if its task runs here, else tried again; all are cancelled."""
    inner = MemoryTaskStore()
    async with (
        opened(Unmarkable(inner, **{failing: 1})) as here,
        opened(inner, poll_s=0.5) as there,
    ):
        await grow(here, "root", "a<root")
        await grow(there, "far<root")
        await grow(here, "b<far")
        tree = await here.cancel_tree(OWNER, "root")
        assert [summary.task_id for summary in tree.unsaved] == unsaved
        assert {summary.task_id for summary in tree.own} == {"root", "a", "far", "b"}
        await trio.sleep(5)
        assert await statuses(inner, "root", "a", "far", "b") == ["cancelled"] * 4


async def test_a_tree_that_reaches_a_machine_beyond_the_store(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """All that can be cancelled is; then what could not be is raised, so nothing is claimed."""
    inner = MemoryTaskStore()
    store = Unmarkable(inner, far=math.inf, b=1)
    async with opened(store) as here, opened(inner, poll_s=0.5) as there:
        await grow(here, "root", "a<root")
        await grow(there, "far<root")
        await grow(here, "b<far")
        with pytest.raises(OSError, match="disk"):
            await here.cancel_tree(OWNER, "root")
        await trio.sleep(5)
        assert await statuses(inner, "root", "a", "b") == ["cancelled"] * 3
        assert await statuses(inner, "far") == ["running"]
        store.failures.clear()
        tree = await here.cancel_tree(OWNER, "root")
        assert ([summary.task_id for summary in tree.own], tree.unsaved) == (["far"], [])


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


async def test_a_tree_on_a_store_that_does_not_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What runs here is cancelled within one grace for all of it, not one for each task."""
    store = FaultyStore()
    async with opened(store, write_grace_s=10) as manager:
        await grow(manager, "root", "a<root", "b<root", "c<b")
        store.break_down("apply", "children", fault="hang")
        began = trio.current_time()
        tree = await manager.cancel_tree(OWNER, "root")
        assert trio.current_time() - began == 10
        assert [summary.task_id for summary in tree.unsaved] == ["root", "a", "b", "c"]
        store.repair()
        await trio.sleep(30)
    assert await statuses(store, "root", "a", "b", "c") == ["cancelled"] * 4


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


async def test_a_tree_whose_leaf_ends_just_then(autojump_clock: trio.testing.MockClock) -> None:
    """The others are cancelled; what ended is not among them."""

    class Late(StoreWrapper):
        async def apply(self, task_id: str, event: Event) -> TaskRecord:
            if isinstance(event, CancelRequested) and task_id == "leaf":
                gates["leaf"].opened.set()
                await trio.testing.wait_all_tasks_blocked()
            return await super().apply(task_id, event)

    async with open_task_manager(Late()) as manager:
        gates = await grow(manager, "root", "leaf<root")
        tree = await manager.cancel_tree(OWNER, "root")
        assert [task.task_id for task in tree.own] == ["root"]
        assert (await manager.wait(OWNER, "leaf")).status is TaskStatus.COMPLETED


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


async def test_a_cancel_of_what_was_damaged_since_is_told_as_unread(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It was stored, and is lost with its record: the second answer does not say all is well."""
    store, body = FaultyStore(), Stubborn()
    async with opened(store) as manager:
        await manager.start(request(task_id="t"), body)
        await body.entered.wait()
        assert (await manager.cancel(OWNER, "t")).persistence_error is None
        store.break_down("apply", error=lambda: CorruptRecord("t", "damaged"), last=1)
        again = await manager.cancel(OWNER, "t")
        body.opened.set()
        assert again.status is TaskStatus.RUNNING
        assert again.persistence_error == (
            "not read back: the stored record of task 't' is corrupt: damaged"
        )
        assert (await manager.wait(OWNER, "t")).status is TaskStatus.CANCELLED
