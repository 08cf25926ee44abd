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
    Stubborn,
    contents,
    done,
    forever,
    opened,
    request,
    stop,
    stored,
)
from trio_bgtasks import (
    ManagerClosed,
    MemoryTaskStore,
    StaleAttempt,
    Success,
    TaskNotResumable,
    TaskNotStopped,
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
