"""The memory store: one transaction a call, nothing shared, leases on Trio's clock."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, assert_no_checkpoints

from tests.values import containers
from trio_bgtasks._errors import (
    ExecutorAlive,
    ExecutorFenced,
    IdempotencyKeyUsed,
    InvalidValue,
    ParentCancelled,
    Refused,
    StoreClosed,
    TaskExists,
    TaskNotRunning,
    UnknownTask,
)
from trio_bgtasks._events import (
    AttemptStarted,
    CancelRequested,
    CheckpointSaved,
    Event,
    Finished,
    Orphaned,
    OutputAppended,
    ProgressReported,
    Registered,
)
from trio_bgtasks._records import (
    Cancelled,
    Failed,
    OutputPage,
    Progress,
    Stopped,
    Success,
    TaskRecord,
    TaskStatus,
)
from trio_bgtasks.stores._protocol import ExecutorHandle, LeaseTerms, RecordPage, TaskStore
from trio_bgtasks.stores.memory import MemoryTaskStore
from trio_bgtasks.testing.strategies import json_values

TERMS = LeaseTerms(lease_s=30, renew_s=10)
FOREVER = 1 << 62


class World:
    """A memory store, one executor of it, and short ways to tell it things."""

    def __init__(self, store: MemoryTaskStore, executor: ExecutorHandle) -> None:
        self.store = store
        self.executor = executor
        self.now = 0

    @property
    def me(self) -> str:
        return self.executor.executor_id

    def tick(self) -> int:
        self.now += 1
        return self.now

    async def start(self, task_id: str, owner: str = "ann", **more: Any) -> TaskRecord:
        executor_id = more.pop("executor_id", self.me)
        event = Registered(self.tick(), executor_id, owner, more.pop("task_type", "shell"), "d")
        return await self.store.apply(task_id, attrs.evolve(event, **more))

    async def finish(self, task_id: str, outcome: Any = None, **more: Any) -> TaskRecord:
        record = await self.load(task_id)
        event = Finished(
            self.tick(),
            record.executor_id or self.me,
            record.attempt,
            Success() if outcome is None else outcome,
        )
        return await self.store.apply(task_id, attrs.evolve(event, **more))

    async def say(self, task_id: str, offset: int, text: str, keep: int = 1 << 20) -> TaskRecord:
        event = OutputAppended(self.tick(), self.me, 1, offset, text, keep)
        return await self.store.apply(task_id, event)

    async def load(self, task_id: str) -> TaskRecord:
        record = await self.store.load(task_id)
        assert record is not None
        return record


@pytest.fixture
async def world() -> AsyncGenerator[World, None]:
    """A store with one living executor."""
    store = MemoryTaskStore()
    async with store.executor(TERMS) as executor:
        yield World(store, executor)


def test_the_memory_store_is_a_task_store() -> None:
    """It has every method of the protocol, as the type checkers see to."""
    store: TaskStore = MemoryTaskStore()
    assert repr(store) == "<MemoryTaskStore 0 tasks, 0 executors>"


# ---- one change ---------------------------------------------------------------------------------


async def test_a_life_is_stored_step_by_step(world: World) -> None:
    """Every applied event is in the record that `load` returns, and in the journal."""
    await world.start("bg_1", supports_resume=True, args={"a": 1})
    await world.store.apply("bg_1", CheckpointSaved(2, world.me, 1, {"step": 1}))
    await world.store.apply("bg_1", ProgressReported(3, world.me, 1, Progress(1, 2)))
    stopped = await world.finish("bg_1", Stopped("shutdown"))
    assert stopped == await world.load("bg_1")
    assert stopped.status is TaskStatus.STOPPED
    resume = AttemptStarted(5, world.me, "ann", "shell", 1, {"a": 2})
    assert (await world.store.apply("bg_1", resume)).attempt == 2
    done = await world.finish("bg_1", Success({"n": 1}))
    assert (done.result, done.args, done.checkpoint) == ({"n": 1}, {"a": 2}, {"step": 1})
    history = await world.store.history("bg_1")
    assert [(entry.kind, entry.attempt, entry.status.value) for entry in history] == [
        ("registered", 1, "running"),
        ("finished", 1, "stopped"),
        ("attempt_started", 2, "running"),
        ("finished", 2, "completed"),
    ]
    assert await world.store.history("bg_2") == []
    assert repr(world.store) == "<MemoryTaskStore 1 tasks, 1 executors>"


async def test_what_is_not_there_is_none(world: World) -> None:
    """An unknown id or key is None to read, and `UnknownTask` to change."""
    assert await world.store.load("bg_1") is None
    assert await world.store.load_by_key("ann", "k") is None
    with pytest.raises(UnknownTask):
        await world.store.apply("bg_1", CancelRequested(0))


async def test_ids_and_keys_are_never_used_twice(world: World) -> None:
    """An id or key that was used stays used, also after its task was collected."""
    first = await world.start("bg_1", idempotency_key="k")
    assert await world.store.load_by_key("ann", "k") == first
    assert await world.store.load_by_key("bob", "k") is None
    await world.start("bg_2", "bob", idempotency_key="k")  # keys are the owner's own
    for collected in (False, True):
        with pytest.raises(TaskExists):
            await world.start("bg_1", "bob")
        with pytest.raises(IdempotencyKeyUsed) as caught:
            await world.start("bg_3", idempotency_key="k")
        assert caught.value.task_id == "bg_1"
        if not collected:
            await world.finish("bg_1")
            assert await world.store.collect("ann", ended_before_ms=FOREVER) == ["bg_1"]
    assert await world.store.load_by_key("ann", "k") is None
    assert await world.store.load("bg_3") is None


@pytest.mark.parametrize("how", ["marked", "ended"])
async def test_no_child_starts_under_an_accepted_cancel(world: World, how: str) -> None:
    """A cancel is accepted when its mark, or the end that it caused, is stored."""
    await world.start("bg_0")
    await world.start("bg_1", parent_task_id="bg_0")
    if how == "marked":
        await world.store.apply("bg_0", CancelRequested(9))
    else:
        await world.finish("bg_0", Cancelled())
    with pytest.raises(ParentCancelled):
        await world.start("bg_2", "bob", parent_task_id="bg_0")
    await world.start("bg_3", parent_task_id="bg_1")
    await world.start("bg_4", parent_task_id="nobody")


async def test_a_refused_event_changes_nothing(world: World) -> None:
    """After a refusal every read answers as before."""
    await world.start("bg_1", idempotency_key="k")
    await world.say("bg_1", 0, "out")
    await world.finish("bg_1", Failed("no"))

    async def everything() -> list[object]:
        store = world.store
        return [
            await store.list_owner("ann"),
            await store.history("bg_1"),
            await store.notices("ann"),
            await store.read_output("bg_1", offset=0, limit=99),
            await store.sweep(world.me, 0),
        ]

    before = await everything()
    late: list[tuple[str, Event]] = [
        ("bg_1", Finished(9, world.me, 1, Success(), output_offset=3, output="late")),
        ("bg_1", OutputAppended(9, world.me, 1, 3, "late")),
        ("bg_1", CancelRequested(9)),
        ("bg_2", Registered(9, world.me, "ann", "shell", "", idempotency_key="k")),
        ("bg_2", Registered(9, "nobody", "ann", "shell", "")),
        ("bg_2", Orphaned(9, "nobody", 1)),
    ]
    for task_id, event in late:
        with pytest.raises(Refused):
            await world.store.apply(task_id, event)
        assert await everything() == before


NOT_JSON: Any = {1}  # a set; what types cannot keep out is kept out when it is stored


async def test_values_of_any_size_are_taken(world: World) -> None:
    """Sizes are bounded where values are given, by limits that the store need not know."""
    await world.start("bg_1")
    large = "x" * (2 << 20)
    saved = await world.store.apply("bg_1", CheckpointSaved(9, world.me, 1, large))
    assert saved.checkpoint == large


@pytest.mark.parametrize(
    "event",
    [
        Registered(9, "me", "ann", "shell", "", args=NOT_JSON),
        Registered(9, "me", "ann", "shell", "", metadata={"a": float("nan")}),
        Finished(9, "me", 1, Success(object()), output="last words"),
        Finished(9, "me", 1, Failed("no", b"x")),
        CheckpointSaved(9, "me", 1, "\ud800"),
    ],
    ids=["args", "metadata", "result", "value of a failure", "checkpoint"],
)
async def test_a_value_that_is_not_json_is_refused_and_changes_nothing(
    world: World, event: Registered | Finished | CheckpointSaved
) -> None:
    """`InvalidValue` blames the value; indexes, output and journal are as if nobody had asked."""
    await world.start("bg_1")
    event = attrs.evolve(event, executor_id=world.me)
    task_id = "bg_2" if isinstance(event, Registered) else "bg_1"
    with pytest.raises(InvalidValue, match=f"task '{task_id}' cannot be stored: "):
        await world.store.apply(task_id, event)
    assert [r.task_id for r in (await world.store.list_owner("ann")).records] == ["bg_1"]
    assert (await world.store.read_output("bg_1", offset=0, limit=9)).total_bytes == 0
    assert len(await world.store.history("bg_1")) == 1
    assert (await world.finish("bg_1")).status is TaskStatus.COMPLETED
    assert (await world.start("bg_2")).seq == 2


@given(json_values(), st.dictionaries(st.text("ab"), json_values(), max_size=3))
def test_nothing_that_is_given_or_handed_out_is_shared(value: Any, args: dict[str, Any]) -> None:
    """Not one list or object is the same in two answers, or in an answer and an argument."""

    async def main() -> None:
        store = MemoryTaskStore()
        async with store.executor(TERMS) as executor:
            me = executor.executor_id
            shared = containers(value, args)
            answers: list[object] = []  # kept, so that no identity is used again

            def check(*seen: TaskRecord) -> None:
                for record in seen:
                    parts = containers(
                        record.args, record.metadata, record.result, record.checkpoint
                    )
                    assert not parts & shared
                    shared.update(parts)
                    answers.append(record)

            start = Registered(0, me, "ann", "t", "", args=args, metadata=args, idempotency_key="k")
            check(await store.apply("bg_1", attrs.evolve(start, parent_task_id="bg_0")))
            check(await store.apply("bg_1", CheckpointSaved(1, me, 1, value)))
            check(await store.apply("bg_1", Finished(2, me, 1, Success(value))))
            for _ in range(2):
                check(*(await store.list_owner("ann")).records)
                check(*(await store.children("bg_0")).records)
                for record in (await store.load("bg_1"), await store.load_by_key("ann", "k")):
                    assert record is not None
                    check(record)
                (notice,) = await store.notices("ann")
                parts = containers(notice.summary.result, notice.summary.metadata)
                assert not parts & shared
                shared |= parts
                answers.append(notice)

    trio.run(main)


async def test_an_equal_copy_is_kept_when_the_callers_value_changes(world: World) -> None:
    """What a caller does to its arguments, or to an answer, afterwards does not reach the store."""
    args: dict[str, Any] = {}
    result: list[Any] = []
    await world.start("bg_1", args=args)
    answer = await world.finish("bg_1", Success(result))
    for view in (args, answer.args):
        view["new"] = 1
    for items in (result, answer.result):
        items.append(1)
    stored = await world.load("bg_1")
    assert (stored.args, stored.result) == ({}, [])
    assert (await world.store.notices("ann"))[0].summary.result == []


# ---- reading ------------------------------------------------------------------------------------


async def pages(ask: Callable[[int], Awaitable[RecordPage]]) -> list[list[str]]:
    """Return the ids of page after page."""
    found: list[list[str]] = []
    after: int | None = 0
    while after is not None:
        page = await ask(after)
        assert not page.corrupt
        found.append([record.task_id for record in page.records])
        after = page.next_after
    return found


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 9])
async def test_lists_are_in_order_of_creation_page_by_page(world: World, limit: int) -> None:
    """Whatever ids and clocks say, pages follow the order of creation, and none is empty."""
    ids = ["z", "a", "m", "b", "y"]
    for i, task_id in enumerate(ids):
        await world.start(task_id, at_ms=100 - i, parent_task_id="p")
        await world.start(f"{task_id}-bob", "bob")
    want = [ids[i : i + limit] for i in range(0, 5, limit)]
    store = world.store
    assert await pages(lambda after: store.list_owner("ann", after=after, limit=limit)) == want
    assert await pages(lambda after: store.children("p", after=after, limit=limit)) == want
    assert await pages(lambda after: store.list_owner("nobody", after=after)) == [[]]
    assert await pages(lambda after: store.children("nobody", after=after)) == [[]]


async def test_lists_can_be_filtered(world: World) -> None:
    """Status and type both have to match; the rest of the owner's tasks is passed over."""
    await world.start("bg_1")
    await world.start("bg_2", task_type="agent_run")
    await world.start("bg_3")
    await world.finish("bg_3")

    async def ids(**wanted: Any) -> list[str]:
        page = await world.store.list_owner("ann", **wanted)
        return [record.task_id for record in page.records]

    assert await ids(status=TaskStatus.RUNNING) == ["bg_1", "bg_2"]
    assert await ids(task_type="shell") == ["bg_1", "bg_3"]
    assert await ids(task_type="shell", status=TaskStatus.COMPLETED) == ["bg_3"]
    assert await ids(task_type="agent_run", status=TaskStatus.COMPLETED) == []


async def test_children_are_found_whoever_owns_them(world: World) -> None:
    """Lineage does not stop at an owner."""
    await world.start("bg_1", parent_task_id="bg_0")
    await world.start("bg_2", "bob", parent_task_id="bg_0")
    assert await pages(lambda after: world.store.children("bg_0", after=after)) == [
        ["bg_1", "bg_2"]
    ]


async def test_owners_are_paged_by_name(world: World) -> None:
    """Every owner that has records, in order, without those whose records were collected."""
    for i, owner in enumerate(["carl", "ann", "bob"]):
        await world.start(f"bg_{i}", owner)
    assert await world.store.owners() == ["ann", "bob", "carl"]
    assert await world.store.owners(limit=2) == ["ann", "bob"]
    assert await world.store.owners(after="bob", limit=2) == ["carl"]
    await world.finish("bg_1")
    await world.store.collect("ann", ended_before_ms=FOREVER)
    assert await world.store.owners() == ["bob", "carl"]


async def test_output_is_one_log_over_all_attempts(world: World) -> None:
    """Appends, the tail that comes with the end, and those of the next attempt are one text."""
    assert (await world.store.read_output("bg_1", offset=0, limit=9)).text == ""
    await world.start("bg_1", supports_resume=True)
    await world.say("bg_1", 0, "one ")
    assert (await world.say("bg_1", 0, "one ")).output_bytes == 4  # arrived twice
    assert (await world.say("bg_1", 2, "e two ")).output_bytes == 8  # overlaps
    stopped = await world.finish("bg_1", Stopped(), output_offset=8, output="tail ")
    assert stopped.output_bytes == 13
    await world.store.apply("bg_1", AttemptStarted(9, world.me, "ann", "shell", 1, {}))
    again = OutputAppended(9, world.me, 2, 13, "again")
    await world.store.apply("bg_1", again)
    await world.finish("bg_1")
    page = await world.store.read_output("bg_1", offset=0, limit=99)
    assert page == OutputPage("one two tail again", 0, 18, 18, 0)
    page = await world.store.read_output("bg_1", offset=-5, limit=3)
    assert page == OutputPage("agai", 13, 17, 18, 0)  # four bytes at least


async def test_output_is_capped_and_says_how_much_was_dropped(world: World) -> None:
    """Over the cap the oldest goes; offsets keep counting all bytes."""
    await world.start("bg_1")
    for i in range(100):
        await world.say("bg_1", i * 10, f"line {i:04}\n", keep=100)
    page = await world.store.read_output("bg_1", offset=0, limit=1000)
    assert page.total_bytes == 1000
    assert page.dropped_bytes == page.offset == 1000 - len(page.text)
    assert 75 <= len(page.text) <= 100
    assert page.text.endswith("line 0098\nline 0099\n")


# ---- notices ------------------------------------------------------------------------------------


async def test_every_ended_attempt_is_announced_until_it_is_acknowledged(world: World) -> None:
    """A notice shows the task as its attempt ended; acknowledging deletes exactly those given."""
    await world.start("bg_1", supports_resume=True)
    await world.finish("bg_1", Stopped("shutdown"))
    resume = AttemptStarted(9, world.me, "ann", "shell", 1, {}, background=False)
    await world.store.apply("bg_1", resume)
    await world.finish("bg_1", Success(1))
    await world.start("bg_2", "bob")
    await world.finish("bg_2")
    await world.start("bg_3")
    await world.finish("bg_3", announce=False)

    first, second = await world.store.notices("ann")
    assert (first.summary.status, first.summary.error, first.background) == (
        TaskStatus.STOPPED,
        "shutdown",
        True,
    )
    assert (second.summary.status, second.summary.result, second.background) == (
        TaskStatus.COMPLETED,
        1,
        False,
    )
    assert await world.store.notices("ann", limit=1) == [first]
    await world.store.acknowledge("bob", [first.notice_id])  # not his
    await world.store.acknowledge("ann", [second.notice_id, 999])
    assert await world.store.notices("ann") == [first]
    for _ in range(2):
        await world.store.acknowledge("ann", [first.notice_id])
        assert await world.store.notices("ann") == []
    assert len(await world.store.notices("bob")) == 1


async def test_notices_outlive_their_tasks(world: World) -> None:
    """Collecting a task does not take its announcement away."""
    await world.start("bg_1")
    await world.finish("bg_1")
    await world.store.collect("ann", ended_before_ms=FOREVER)
    (notice,) = await world.store.notices("ann")
    assert notice.summary.task_id == "bg_1"


async def test_a_cancel_of_a_stopped_task_is_no_second_notice(world: World) -> None:
    """The attempt's end was announced; abandoning the task ends no attempt."""
    await world.start("bg_1", supports_resume=True)
    await world.finish("bg_1", Stopped())
    await world.store.apply("bg_1", CancelRequested(9))
    (notice,) = await world.store.notices("ann")
    assert notice.summary.status is TaskStatus.STOPPED


# ---- collection ---------------------------------------------------------------------------------


async def test_collection_takes_what_has_ended_and_leaves_nothing_of_it(world: World) -> None:
    """Ended tasks go with journal and output; running and resumable ones stay."""
    await world.start("done", parent_task_id="gone")
    await world.say("done", 0, "out")
    await world.finish("done")
    await world.start("stopped")
    await world.finish("stopped", Stopped())
    await world.start("resumable", supports_resume=True, parent_task_id="gone")
    await world.finish("resumable", Stopped())
    await world.start("running")
    await world.start("bob's", "bob")
    await world.finish("bob's")
    assert await world.store.collect("ann", ended_before_ms=FOREVER) == ["done", "stopped"]
    assert await world.store.collect("ann", ended_before_ms=FOREVER) == []
    page = await world.store.list_owner("ann")
    assert [record.task_id for record in page.records] == ["resumable", "running"]
    assert await pages(lambda after: world.store.children("gone", after=after)) == [["resumable"]]
    assert await world.store.load("done") is None
    assert await world.store.history("done") == []
    assert (await world.store.read_output("done", offset=0, limit=9)).total_bytes == 0
    assert await world.store.collect(None, ended_before_ms=FOREVER) == ["bob's"]


async def test_collection_respects_age_and_limit(world: World) -> None:
    """The bound of age is inclusive, and every call takes at most as many as asked."""
    for i in range(4):
        await world.start(f"bg_{i}", at_ms=0)
        await world.finish(f"bg_{i}", at_ms=10 * i)
    assert await world.store.collect(None, ended_before_ms=-1) == []
    assert await world.store.collect(None, ended_before_ms=20, limit=2) == ["bg_0", "bg_1"]
    assert await world.store.collect(None, ended_before_ms=20, limit=2) == ["bg_2"]
    assert await world.store.collect(None, ended_before_ms=20, limit=2) == []


async def test_ancestors_of_running_tasks_stay(world: World) -> None:
    """A task is not collected above a running descendant, whoever owns that, cycles or not."""
    await world.start("root", parent_task_id="leaf")  # a cycle
    await world.start("middle", "bob", parent_task_id="root")
    await world.start("leaf", parent_task_id="middle")
    await world.start("other", parent_task_id="never was")
    await world.finish("root")
    await world.finish("middle")
    assert await world.store.collect(None, ended_before_ms=FOREVER) == []
    await world.finish("leaf")
    collected = await world.store.collect(None, ended_before_ms=FOREVER)
    assert sorted(collected) == ["leaf", "middle", "root"]
    assert await world.store.collect(None, ended_before_ms=FOREVER) == []


# ---- executors ----------------------------------------------------------------------------------


async def test_a_lease_is_renewed_as_long_as_its_context_is_open(
    world: World, autojump_clock: MockClock
) -> None:
    """A day later the executor is alive, and a sweep finds nobody dead."""
    await world.start("bg_1")
    await trio.sleep(86_400)
    report = await world.store.sweep(world.me, 0)
    assert not any((report.fenced, report.ended, report.corrupt))
    assert list(report.own_running) == [("bg_1", 1)]
    assert not world.executor.lost.is_set()


async def test_a_retired_executor_is_fenced_and_its_tasks_are_ended(world: World) -> None:
    """Leaving the context fences at once; what still ran is stopped by the next sweep."""
    async with world.store.executor(TERMS) as other:
        await world.start("bg_1", executor_id=other.executor_id)
        assert other.executor_id != world.me
        assert other.lock_fds == ()
    with pytest.raises(ExecutorFenced):
        await world.finish("bg_1")
    report = await world.store.sweep(world.me, 50)
    assert list(report.ended) == [("bg_1", "ann")]
    assert list(report.fenced) == []  # it was already
    record = await world.load("bg_1")
    assert (record.status, record.error) == (
        TaskStatus.STOPPED,
        "No live executor found; marked stopped",
    )
    assert len(await world.store.notices("ann")) == 1
    with pytest.raises(ExecutorFenced):
        await world.start("bg_2", executor_id=other.executor_id)


async def test_an_executor_that_was_never_registered_is_fenced(world: World) -> None:
    """Nothing is taken from an executor that the store does not know."""
    with pytest.raises(ExecutorFenced):
        await world.start("bg_1", executor_id="ex_nobody")


async def test_a_crashed_machine_is_found_when_its_lease_has_run_out(
    world: World, autojump_clock: MockClock
) -> None:
    """Until then its task is running, and nothing that it writes arrives; then it is an orphan."""
    async with world.store.executor(TERMS) as other:
        await world.start("bg_1", executor_id=other.executor_id)
        await trio.sleep(15)
        world.store.crash(other.executor_id)
        with pytest.raises(StoreClosed, match=other.executor_id):
            await world.finish("bg_1")
    await trio.sleep(24)  # renewed at 10 s, so the lease runs out at 40 s
    assert not (await world.store.sweep(world.me, 0)).fenced
    with pytest.raises(ExecutorAlive):
        await world.store.apply("bg_1", Orphaned(0, other.executor_id, 1))
    await trio.sleep(1)
    report = await world.store.sweep(world.me, 0)
    assert list(report.fenced) == [other.executor_id]
    assert list(report.ended) == [("bg_1", "ann")]
    assert other.lost.is_set()


async def test_a_machine_that_sleeps_past_its_lease(
    world: World, autojump_clock: MockClock
) -> None:
    """It is dead for others, and finds that out when it wakes up; one that wakes early is not."""
    store = world.store
    async with store.executor(TERMS) as early, store.executor(TERMS) as late:
        for sleeper in (early, late):
            store.stall(sleeper.executor_id)
            store.stall(sleeper.executor_id)  # it sleeps already
        await trio.sleep(29)
        store.wake(early.executor_id)
        store.wake(early.executor_id)
        await trio.sleep(2)
        assert list((await store.sweep(world.me, 0)).fenced) == [late.executor_id]
        assert not late.lost.is_set()
        store.wake(late.executor_id)
        assert late.lost.is_set()
        assert not early.lost.is_set()
    await store.sweep(world.me, 0)
    with pytest.raises(KeyError):
        store.wake(late.executor_id)


async def test_a_cancel_survives_a_crash(world: World, autojump_clock: MockClock) -> None:
    """The orphan of a marked task is cancelled, not stopped."""
    async with world.store.executor(TERMS) as other:
        await world.start("bg_1", executor_id=other.executor_id)
        await world.store.apply("bg_1", CancelRequested(3))
        world.store.crash(other.executor_id)
    await trio.sleep(30)
    await world.store.sweep(world.me, 0)
    assert (await world.load("bg_1")).status is TaskStatus.CANCELLED


async def test_a_finish_before_the_fence_is_welcome(
    world: World, autojump_clock: MockClock
) -> None:
    """A lease that has run out fences nobody: work that ends before the sweep is kept."""
    await world.start("bg_1")
    autojump_clock.jump(31)
    assert (await world.finish("bg_1")).status is TaskStatus.COMPLETED


async def test_who_is_only_late_is_not_dead(world: World, autojump_clock: MockClock) -> None:
    """After a blocked loop the lease is renewed, although a sweep may well come first."""
    await world.start("bg_1")
    async with world.store.executor(TERMS) as other:
        autojump_clock.jump(1000)  # the loop was blocked
        for sweeper in (other.executor_id, world.me):
            report = await world.store.sweep(sweeper, 0)
            assert not report.fenced
            assert not report.ended
        await trio.testing.wait_all_tasks_blocked()
        assert not world.executor.lost.is_set()
        await world.start("bg_2")


async def test_an_executor_beyond_its_stall_limit_is_lost(
    world: World, autojump_clock: MockClock
) -> None:
    """It says so itself; others find it dead when its lease is over; it never renews again."""
    terms = attrs.evolve(TERMS, stall_s=15)
    async with world.store.executor(terms) as late:
        await world.start("bg_1", executor_id=late.executor_id)
        autojump_clock.jump(25)
        await trio.testing.wait_all_tasks_blocked()
        assert not late.lost.is_set()
        await trio.sleep(1)
        autojump_clock.jump(25)  # 16 s after the next renewal
        await trio.testing.wait_all_tasks_blocked()
        assert late.lost.is_set()
        assert not (await world.store.sweep(world.me, 0)).fenced
        await trio.sleep(5)
        assert not (await world.store.sweep(late.executor_id, 0)).fenced  # not by itself
        assert list((await world.store.sweep(world.me, 0)).fenced) == [late.executor_id]
    with pytest.raises(ExecutorFenced):
        await world.start("bg_2", executor_id=late.executor_id)


async def test_the_living_do_not_hide_the_dead(world: World, autojump_clock: MockClock) -> None:
    """A sweep ends what is orphaned, also behind tasks of executors that live."""
    await world.start("mine")
    async with world.store.executor(TERMS) as other:
        await world.start("theirs", executor_id=other.executor_id)
        world.store.crash(other.executor_id)
        await trio.sleep(30)
        report = await world.store.sweep(world.me, 0)
        assert list(report.ended) == [("theirs", "ann")]
        assert list(report.own_running) == [("mine", 1)]


async def test_a_suspect_is_looked_at_alone(world: World, autojump_clock: MockClock) -> None:
    """A sweep of one suspect ends its tasks only, and says nothing about one's own."""
    async with AsyncExitStack() as stack:
        names: list[str] = []
        for i in range(2):
            other = await stack.enter_async_context(world.store.executor(TERMS))
            await world.start(f"bg_{i}", executor_id=other.executor_id)
            names.append(other.executor_id)
            world.store.crash(other.executor_id)
        await world.start("mine")
        await trio.sleep(30)
        for suspect in (names[1], world.me, "ex_nobody"):
            report = await world.store.sweep(world.me, 0, suspect=suspect)
            assert list(report.ended) == ([("bg_1", "ann")] if suspect == names[1] else [])
            assert list(report.own_running) == []
        assert (await world.load("bg_0")).status is TaskStatus.RUNNING
        assert list((await world.store.sweep(world.me, 0)).ended) == [("bg_0", "ann")]


async def test_fenced_executors_without_tasks_are_forgotten_and_stay_fenced(world: World) -> None:
    """A store that sees many executors come and go does not grow."""
    for _ in range(20):
        async with world.store.executor(TERMS):
            pass
    async with world.store.executor(TERMS) as other:
        pass
    await world.store.sweep(world.me, 0)
    assert repr(world.store) == "<MemoryTaskStore 0 tasks, 1 executors>"
    with pytest.raises(ExecutorFenced):
        await world.start("bg_1", executor_id=other.executor_id)
    with pytest.raises(KeyError):
        world.store.crash(other.executor_id)


async def test_cancel_marks_are_those_of_running_tasks_of_one_executor(world: World) -> None:
    """Marks are level-triggered: there until the attempt has ended, and for its executor only."""
    async with world.store.executor(TERMS) as other:
        for task_id, executor in (
            ("bg_1", world.me),
            ("bg_2", world.me),
            ("bg_3", other.executor_id),
        ):
            await world.start(task_id, executor_id=executor)
        for task_id in ("bg_1", "bg_3"):
            await world.store.apply(task_id, CancelRequested(9))
        for _ in range(2):
            assert await world.store.cancel_marks(world.me) == ["bg_1"]
        assert await world.store.cancel_marks(other.executor_id) == ["bg_3"]
        await world.finish("bg_1")
        assert await world.store.cancel_marks(world.me) == []
        with pytest.raises(TaskNotRunning):
            await world.store.apply("bg_1", CancelRequested(9))


async def test_the_lease_outlives_a_cancelled_scope(
    autojump_clock: MockClock,
) -> None:
    """While a shutdown cleans up in a shield, the lease is renewed all the same."""
    store = MemoryTaskStore()
    terms = attrs.evolve(TERMS, stall_s=15)
    async with store.executor(TERMS) as other:
        with trio.CancelScope() as scope:
            async with store.executor(terms) as executor:
                scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.sleep(1000)
                assert not (await store.sweep(other.executor_id, 0)).fenced
                assert not executor.lost.is_set()


async def test_an_exception_leaves_the_executors_context_as_it_was_raised(world: World) -> None:
    """The block's exception is not wrapped in a group, and its cause is kept."""
    cause = KeyError("why")
    with pytest.raises(ValueError, match=r"^boom$") as caught:
        async with world.store.executor(TERMS):
            raise ValueError("boom") from cause
    assert caught.value.__cause__ is cause


async def test_no_call_but_the_executors_end_checkpoints(world: World) -> None:
    """The store's callers checkpoint; a change and its effects cannot be torn apart here."""
    with assert_no_checkpoints():
        await world.start("bg_1")
        await world.say("bg_1", 0, "x")
        await world.store.list_owner("ann")
        await world.store.sweep(world.me, 0)
        await world.finish("bg_1")
        await world.store.notices("ann")
        await world.store.collect(None, ended_before_ms=FOREVER)


async def test_a_second_cancel_changes_nothing(world: World) -> None:
    """The first mark wins; asking again is accepted, and is no line in the journal."""
    await world.start("bg_1")
    first = await world.store.apply("bg_1", CancelRequested(5))
    assert await world.store.apply("bg_1", CancelRequested(9)) == first
    assert len(await world.store.history("bg_1")) == 2
