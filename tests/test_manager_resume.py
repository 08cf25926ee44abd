"""Resuming: a new attempt of the same task, by exactly one of those who ask for it."""

from __future__ import annotations

from functools import partial

import attrs
import pytest
import trio
import trio.testing

from tests.support import (
    OTHER,
    OWNER,
    FaultyStore,
    Gate,
    StallingStore,
    StoreWrapper,
    Stubborn,
    assert_idle,
    contents,
    done,
    forever,
    opened,
    request,
    stop,
    stored,
)
from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    Event,
    Finished,
    ManagerClosed,
    MemoryTaskStore,
    StaleAttempt,
    Success,
    TaskNotResumable,
    TaskNotStopped,
    TaskRecord,
    TaskResult,
    TaskStore,
    TaskStoreError,
    UnknownTask,
    open_task_manager,
)


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


# ---- the old attempt, the old handle -------------------------------------------------------------


class Remembering(StoreWrapper):
    """Remembers the ends that were written, so that one can arrive a second time."""

    def __init__(self, inner: TaskStore | None = None) -> None:
        super().__init__(inner)
        self.ends: list[Event] = []

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        if isinstance(event, Finished):
            self.ends.append(event)
        return await super().apply(task_id, event)


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_the_late_end_of_an_old_attempt_changes_nothing(
    autojump_clock: trio.testing.MockClock, *, elsewhere: bool
) -> None:
    """It is refused once the task was resumed, here or on another machine. C11."""
    store, gate = Remembering(), Gate()
    async with open_task_manager(store) as here, open_task_manager(store) as there:
        await here.run(request(task_id="t", supports_resume=True), stop)
        where = there if elsewhere else here
        await where.start(request(task_id="t", resume_attempt=1), gate)
        await gate.entered.wait()
        before = await contents(store)
        with pytest.raises(StaleAttempt, match="current attempt: 2"):
            await store.inner.apply("t", store.ends[0])
        assert await contents(store) == before
        gate.opened.set()
        summary = await here.wait(OWNER, "t")
        assert (summary.attempt, summary.result) == (2, "done")


async def test_a_stale_handle_is_not_believed(autojump_clock: trio.testing.MockClock) -> None:
    """What was taken over and completed elsewhere is completed, also where an old body still runs.

    It is not run again there, whatever is asked, and the old body's end changes nothing. C12.
    """
    store, old, again = MemoryTaskStore(), Stubborn(Success("old")), Gate()
    asked, refused = request(task_id="t", supports_resume=True), list[str]()

    async def resume(manager: BackgroundTaskManager, attempt: int) -> None:
        with pytest.raises(TaskNotStopped) as caught:
            await manager.start(attrs.evolve(asked, resume_attempt=attempt), again)
        refused.append(str(caught.value))

    async with (
        opened(store, sweep_s=1) as there,
        opened(StallingStore(store)) as here,
        trio.open_nursery() as nursery,
    ):
        await here.start(asked, old)
        await there.wait(OWNER, "t")  # its lease has run out
        await there.start(attrs.evolve(asked, resume_attempt=1), done)
        completed = await there.wait(OWNER, "t")
        assert (completed.status, completed.result, completed.attempt) == ("completed", "done", 2)
        try:
            assert [summary.task_id for summary in here.live(OWNER)] == ["t"]
            assert await here.get(OWNER, "t") == completed
            assert await here.list_tasks(OWNER) == [completed]
            for attempt in (1, 2):
                nursery.start_soon(resume, here, attempt)  # waits for a fresh executor
            await trio.testing.wait_all_tasks_blocked()
        finally:
            old.opened.set()
        await trio.testing.wait_all_tasks_blocked()
        await resume(here, 2)
        assert len(refused) == 3
        assert refused[-1] == "Task 't' is not stopped (current status: completed)"
        assert_idle(here)
        assert await here.get(OWNER, "t") == completed
        assert not again.runs


async def test_a_resumed_task_stays_where_it_was(autojump_clock: trio.testing.MockClock) -> None:
    """Its place in lists, its age and its parent are those of its start, live as stored.

    So they are when an attempt of another task resumes it, on another machine. C16.
    """
    store = MemoryTaskStore()
    async with open_task_manager(store) as here, open_task_manager(store) as there:

        async def resume(execution: BackgroundExecution, scope: trio.CancelScope) -> TaskResult:
            await there.start(request(task_id="b", resume_attempt=1), forever)
            return await forever(execution, scope)

        await here.start(request(task_id="a"), forever)
        await here.run(request(task_id="b", supports_resume=True, parent_task_id="a"), stop)
        await here.start(request(task_id="c"), forever)
        before = await stored(store, "b")
        await trio.sleep(10)
        await there.start(request(task_id="d"), resume)
        await trio.testing.wait_all_tasks_blocked()
        after = await stored(store, "b")
        assert (after.attempt, after.seq) == (2, before.seq)
        assert (after.parent_task_id, after.created_at_ms) == ("a", before.created_at_ms)
        listed = await here.list_tasks(OWNER)
        assert [summary.task_id for summary in listed] == ["a", "b", "c", "d"]
        assert listed[1] in there.live(OWNER)


async def test_a_live_summary_is_that_of_the_record(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What is told of a live task, its attempt and ``supports_resume`` too, is as stored. C39."""
    store = MemoryTaskStore()
    async with open_task_manager(store) as manager:
        asked = request(task_id="again", supports_resume=True, metadata={"m": 1})
        await manager.run(asked, stop)
        await manager.start(attrs.evolve(asked, resume_attempt=1), forever)
        await manager.start(request(task_id="once"), forever)
        live = {summary.task_id: summary for summary in manager.live(OWNER)}
        assert (live["again"].attempt, live["again"].supports_resume) == (2, True)
        assert (live["once"].attempt, live["once"].supports_resume) == (1, False)
        for task_id, summary in live.items():
            assert summary == (await stored(store, task_id)).summary()
            assert summary == await manager.get(OWNER, task_id)


async def test_a_resume_meets_one_of_which_nothing_is_known_yet(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its start could not be confirmed: it may be running, and is not unknown to its owner."""
    store = FaultyStore()
    async with open_task_manager(store) as manager:
        await manager.run(request(task_id="t", supports_resume=True), stop)
        again = request(task_id="t", resume_attempt=1)
        store.break_down("apply", "load")
        with pytest.raises(TaskStoreError, match="store is down"):
            await manager.start(again, forever)
        with pytest.raises(TaskNotStopped, match="running"):
            await manager.start(again, forever)
        with pytest.raises(UnknownTask):
            await manager.start(request(OTHER, task_id="t", resume_attempt=1), forever)
        store.repair()
