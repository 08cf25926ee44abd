"""A store that fails at every k-th change, or hangs, or is slow: what was promised holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from tests.support import (
    OTHER,
    OWNER,
    Fault,
    FaultyStore,
    Gate,
    assert_all_live,
    assert_idle,
    forever,
    opened,
    records,
    request,
    stored,
)
from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    Progress,
    StoreBusy,
    Success,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskStoreError,
)

SWEEP_S = 15.0


@attrs.define(eq=False)
class Story:
    """A life with everything in it; what was acknowledged, and what ran, is written down."""

    manager: BackgroundTaskManager
    acknowledged: dict[str, Any] = attrs.field(factory=dict[str, Any])
    failed: dict[str, BaseException] = attrs.field(factory=dict[str, BaseException])
    runs: Counter[tuple[str, int]] = attrs.field(factory=Counter[tuple[str, int]])
    checkpoints: list[int] = attrs.field(factory=list[int])
    resumed_from: list[Any] = attrs.field(factory=list[Any])
    written: dict[str, str] = attrs.field(factory=dict[str, str])

    async def step(self, name: str, afn: Callable[[], Awaitable[Any]]) -> None:
        """Make one call, for two minutes at most; what is not applied for sure is made again."""
        with trio.move_on_after(120):
            while True:
                try:
                    self.acknowledged[name] = await afn()
                except StoreBusy:
                    continue
                except (TaskStoreError, OSError) as error:
                    self.failed[name] = error
                return

    async def tell(self) -> None:
        manager, step = self.manager, self.step
        resumable = request(task_id="a", supports_resume=True, metadata={"m": 1})
        await step("start a", lambda: manager.start(resumable, self.working))
        await step("start b", lambda: manager.start(request(task_id="b"), self.nesting))
        await step("run d", lambda: manager.run(request(task_id="d"), self.counted))
        await trio.sleep(3)  # past a poll
        await step("start x", lambda: manager.start(request(task_id="x"), self.counted_forever))
        if "start x" in self.acknowledged:
            await step("cancel x", lambda: manager.cancel(OWNER, "x"))
        if "start b" in self.acknowledged:
            await step("cancel b", lambda: manager.cancel_tree(OWNER, "b"))
        await step("close", lambda: manager.close_owner(OWNER))
        await trio.sleep(60)
        await step("look", lambda: manager.record(OWNER, "a"))
        record = self.acknowledged.get("look")
        if record is not None and record.status is TaskStatus.STOPPED:
            again = attrs.evolve(resumable, resume_attempt=record.attempt)
            await step("resume a", lambda: manager.start(again, self.working_on))
            await trio.sleep(60)

    async def counted(self, execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        self.runs[execution.task_id, execution.attempt] += 1
        await trio.lowlevel.checkpoint()
        return Success("done")

    async def counted_forever(
        self, execution: BackgroundExecution, scope: trio.CancelScope
    ) -> TaskResult:
        self.runs[execution.task_id, execution.attempt] += 1
        return await forever(execution, scope)

    async def nesting(self, execution: BackgroundExecution, scope: trio.CancelScope) -> TaskResult:
        child = request(OTHER, task_id="c")
        await self.step("start c", lambda: self.manager.start(child, self.counted_forever))
        return await self.counted_forever(execution, scope)

    async def working(self, execution: BackgroundExecution, scope: trio.CancelScope) -> TaskResult:
        await self.say(execution, "one\n")
        for n in (1, 2):
            with trio.move_on_after(20):
                try:
                    await execution.save_checkpoint(n)
                except (TaskStoreError, OSError):
                    continue
                self.checkpoints.append(n)
        await execution.report_progress(1, 2)
        return await self.counted_forever(execution, scope)

    async def working_on(self, execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        self.runs[execution.task_id, execution.attempt] += 1
        self.resumed_from.append(execution.checkpoint)
        await self.say(execution, "two\n")
        await execution.report_progress(2, 2)
        return Success("resumed")

    async def say(self, execution: BackgroundExecution, text: str) -> None:
        self.written[execution.task_id] = self.written.get(execution.task_id, "") + text
        await execution.write_output(text)


async def check(story: Story, store: FaultyStore) -> None:
    """Nothing acknowledged is lost, nothing runs twice, nothing runs unwatched."""
    assert max(story.runs.values(), default=1) == 1
    for task_id, attempt in story.runs:
        assert (await stored(store.inner, task_id)).attempt >= attempt
    for name in story.acknowledged:
        await check_acknowledged(name, story, store)
    for name in story.failed:
        what, _, task_id = name.partition(" ")
        record = await store.inner.load(task_id)
        assert what not in ("start", "run") or record is None or record.executor_id is None
    if story.checkpoints:
        checkpoint = (await stored(store.inner, "a")).checkpoint
        assert checkpoint >= story.checkpoints[-1]
        assert story.resumed_from in ([], [checkpoint])
    for owner in await store.owners():
        for record in (await store.inner.list_owner(owner)).records:
            await check_history(store, record)


async def check_acknowledged(name: str, story: Story, store: FaultyStore) -> None:
    """What a call answered is so."""
    what, _, task_id = name.partition(" ")
    if what in ("start", "run"):
        assert await store.inner.load(task_id) is not None
    if what == "cancel":
        assert (await stored(store.inner, task_id)).status is TaskStatus.CANCELLED
    if name == "cancel b" and "start c" in story.acknowledged:
        assert (await stored(store.inner, "c")).status is TaskStatus.CANCELLED
    if what == "resume":
        record = await stored(store.inner, task_id)
        assert record.result == "resumed"
        assert record.progress == Progress(2, 2)
        assert (await story.manager.output(OWNER, task_id)).text == story.written[task_id]


async def check_history(store: FaultyStore, record: TaskRecord) -> None:
    """Every attempt began once and ended once, and its end was announced once."""
    kinds = Counter(entry.kind for entry in await store.history(record.task_id))
    assert kinds["registered"] == 1
    assert kinds["attempt_started"] == record.attempt - 1
    assert kinds["finished"] + kinds["orphaned"] == record.attempt
    assert kinds["cancel_requested"] <= 1
    notices = await store.notices(record.owner_thread_id, limit=1000)
    mine = [notice for notice in notices if notice.summary.task_id == record.task_id]
    told = not record.background and record.status is TaskStatus.COMPLETED  # to its caller
    assert len(mine) == (0 if told else record.attempt)


async def live_through(store: FaultyStore) -> Story:
    """Tell the story on the store and check it; return it."""
    async with opened(store, sweep_s=SWEEP_S) as manager:
        story = Story(manager)
        await story.tell()
        await trio.sleep(SWEEP_S)
        await assert_all_live(store.inner, manager)
        store.repair()
        await trio.sleep(60)
        assert_idle(manager)
        await check(story, store)
        gate = Gate()
        await manager.start(request(task_id="last"), gate)
        await gate.entered.wait()
    assert (await stored(store.inner, "last")).status is TaskStatus.STOPPED
    for owner in await store.owners():
        page = await store.inner.list_owner(owner, status=TaskStatus.RUNNING)
        assert not page.records
    return story


def errors() -> list[Any]:
    """Return the kinds of failure: a fault, what is raised, and for how many calls in a row."""
    kinds: list[Any] = []
    for row in (1, 3):
        for fault, error in (
            ("before", TaskStoreError("no")),
            ("before", StoreBusy("busy")),
            ("before", OSError("disk")),
            ("after", TaskStoreError("no")),
            ("after", OSError("disk")),
        ):
            name = f"{fault}-{type(error).__name__}-{row}"
            kinds.append(pytest.param(fault, error, row, id=name))
    return kinds


@pytest.mark.parametrize(("fault", "error", "row"), errors())
async def test_every_change_fails_once(
    fault: Fault, error: Exception, row: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Whichever change fails, before or after it was applied: the promises hold.

    C4, C11, C22, C26, C28, C29.
    """
    k, steps = 0, 1
    while k < steps:
        k += 1
        store = FaultyStore()
        store.break_down("apply", fault=fault, first=k, last=k + row - 1, error=lambda: error)
        await live_through(store)
        steps = max(steps, store.made.total())
    assert k > 15


@pytest.mark.parametrize("fault", ["hang", "hang after", "slow"])
async def test_every_change_hangs_once(
    fault: Fault, autojump_clock: trio.testing.MockClock
) -> None:
    """Whichever change is never answered, or late: the promises hold."""
    k, steps = 0, 1
    while k < steps:
        k += 1
        store = FaultyStore()
        store.break_down("apply", fault=fault, first=k, last=k)
        await live_through(store)
        steps = max(steps, store.made.total())
    assert k > 15


@pytest.mark.parametrize("fault", ["before", "hang", "slow"])
@pytest.mark.parametrize("call", ["load", "sweep", "cancel_marks", "children"])
async def test_every_reading_fails_once(
    call: str, fault: Fault, autojump_clock: trio.testing.MockClock
) -> None:
    """Whichever reading goes wrong, no attempt is lost by it; the services go on."""
    k, steps = 0, 1
    while k < min(steps, 12):
        k += 1
        store = FaultyStore()
        async with opened(store, sweep_s=SWEEP_S) as manager:
            story = Story(manager)
            store.break_down(call, fault=fault, first=k, last=k)
            await story.tell()
            steps = max(steps, store.made.total())
            store.repair()
            await trio.sleep(60)
            await assert_all_live(store.inner, manager)
            assert max(story.runs.values(), default=1) == 1
        assert k > steps or store.struck == 1
        assert not [r for r in await records(store.inner) if r.executor_id is not None]
