"""A store of which every k-th call fails, or hangs, or is slow: what was promised holds."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import product
from typing import Any, TypeVar, cast

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
    request,
    stored,
)
from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    Progress,
    StoreBusy,
    Success,
    TaskExists,
    TaskNotRunning,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskStore,
    TaskStoreError,
)
from trio_bgtasks.stores import ExecutorHandle

SWEEP_S = 15.0
T = TypeVar("T")

HOUSE = "house"  # the owner whose notices are taken, and whose tasks are collected


class EveryCallStore(FaultyStore):
    """Its executors go wrong like everything else, and can be told that they are lost."""

    def __init__(self) -> None:
        super().__init__()
        self.handles: list[ExecutorHandle] = []

    async def around(self, call: str, afn: Callable[[], Awaitable[T]]) -> T:
        answer = await super().around(call, afn)
        if call == "executor":
            self.handles.append(cast("ExecutorHandle", answer))
        return answer


@attrs.define(eq=False)
class Story:
    """A life with everything in it; what was acknowledged, and what ran, is written down."""

    manager: BackgroundTaskManager
    store: EveryCallStore
    broken: tuple[str, str]  # which call went wrong, and how
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
                except (TaskStoreError, OSError, TaskNotRunning) as error:
                    self.failed[name] = error  # a tree may have been cancelled before that
                return

    async def tell(self) -> None:
        manager, step = self.manager, self.step
        resumable = request(task_id="a", supports_resume=True, metadata={"m": 1})
        await step("start a", lambda: manager.start(resumable, self.working))
        await step("start b", lambda: manager.start(request(task_id="b"), self.nesting))
        await step("run d", lambda: manager.run(request(task_id="d"), self.counted))
        await trio.sleep(15)  # past two polls, however slow
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
        if self.broken[0] != "apply":  # nothing new to change from here on
            await self.go_on()

    async def go_on(self) -> None:
        """Make every other call, too, twice at least."""
        for task_id in ("h1", "h2"):
            await self.keep_house(task_id)
        for task_id in ("l1", "l2"):
            self.store.handles[-1].lost.set()
            await trio.sleep(5)
            await self.step(f"start {task_id}", partial(self.start_counted, OWNER, task_id))
        await trio.sleep(60)

    async def start_counted(self, owner: str, task_id: str) -> Any:
        return await self.manager.start(request(owner, task_id=task_id), self.counted)

    async def keep_house(self, task_id: str) -> None:
        """Start a task, look at it from all sides, hear of its end, forget it."""
        manager, step = self.manager, self.step
        await step(f"start {task_id}", partial(self.start_counted, HOUSE, task_id))
        await trio.sleep(1)
        await step(f"get {task_id}", lambda: manager.get(HOUSE, task_id))
        await step(f"list {task_id}", lambda: manager.list_tasks(HOUSE))
        await step(f"recall {task_id}", lambda: manager.recall(HOUSE, "work", "a key"))
        if f"start {task_id}" in self.acknowledged:
            await step(f"history {task_id}", lambda: manager.history(HOUSE, task_id))
            await step(f"output {task_id}", lambda: manager.output(HOUSE, task_id))
        await step(f"owners {task_id}", manager.owners)
        await step(f"take {task_id}", lambda: manager.take_notices(HOUSE))
        await step(f"collect {task_id}", lambda: manager.gc_terminal(HOUSE))

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
        record = await store.inner.load(task_id)
        assert record.attempt >= attempt if record is not None else task_id in ("h1", "h2")
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
            if owner != HOUSE:
                await check_history(store, record)
    await check_house(story, store)


async def check_house(story: Story, store: FaultyStore) -> None:
    """What was heard of is never told again; what was not, still is; no end is lost, or double."""
    left = [notice.summary.task_id for notice in await store.inner.notices(HOUSE)]
    heard = [s.task_id for i in ("h1", "h2") for s in story.acknowledged.get(f"take {i}", ())]
    gone: list[str] = []
    for task_id in ("h1", "h2"):
        record, ran = await store.inner.load(task_id), story.runs[task_id, 1]
        # The store said no, and did it; or of a start, and we do not know.
        unsure = story.broken == ("acknowledge", "after") or (record is None and not ran)
        assert (left + heard).count(task_id) in ({0, 1} if unsure else {1})
        if record is None and ran:
            gone.append(task_id)
            with pytest.raises(TaskExists):
                await story.start_counted(HOUSE, task_id)
    collected = sum(story.acknowledged.get(f"collect {i}", 0) for i in ("h1", "h2"))
    assert len(gone) <= collected or story.broken[0] == "collect"  # it goes by pages


async def check_acknowledged(name: str, story: Story, store: FaultyStore) -> None:
    """What a call answered is so."""
    what, _, task_id = name.partition(" ")
    if what in ("start", "run") and not task_id.startswith("h"):
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


async def live_through(store: EveryCallStore, call: str, fault: Fault, **which: Any) -> None:
    """Tell the story on a store of which some calls go wrong, and check it."""
    async with opened(store, sweep_s=SWEEP_S) as manager:
        story = Story(manager, store, (call, fault))
        store.break_down(call, fault=fault, **which)
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
        store = EveryCallStore()
        last = k + row - 1
        await live_through(store, "apply", fault, first=k, last=last, error=lambda: error)
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
        store = EveryCallStore()
        await live_through(store, "apply", fault, first=k, last=k)
        steps = max(steps, store.made.total())
    assert k > 15


FAULTS = {
    "before": TaskStoreError("no"),
    "busy": StoreBusy("busy"),
    "after": OSError("disk"),
    "hang": OSError("never raised"),
}
CALLS = {
    *("load", "load_by_key", "list_owner", "children", "history", "read_output", "owners"),
    *("sweep", "cancel_marks", "notices", "acknowledge", "collect", "executor"),
}


# Without an executor nothing starts, ever; how the manager closes then is in test_liveness.py.
PAIRS = [pair for pair in product(sorted(CALLS), FAULTS) if pair != ("executor", "hang")]


@pytest.mark.parametrize(("call", "fault"), PAIRS)
async def test_every_other_call_fails_once(
    call: str, fault: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Whichever other call goes wrong, no attempt is lost by it; the services go on."""
    kind: Any = "before" if fault == "busy" else fault
    k, steps, struck = 0, 1, 0
    while k < steps:
        k += 1
        store = EveryCallStore()
        await live_through(store, call, kind, first=k, last=k, error=lambda: FAULTS[fault])
        steps = max(steps, store.made.total())
        struck += store.struck
    assert struck > 1


def test_every_call_of_a_store_goes_wrong() -> None:
    """The calls above are those of the protocol."""
    methods = {name for name, _ in inspect.getmembers(TaskStore, inspect.isfunction)}
    public = {name for name in methods if not name.startswith("_")}
    assert public == {"apply", *CALLS}
