"""Managers on one memory store, under everything that may happen, against what the tools saw.

Every rule is something that an application, an operator or bad luck does. After each one the
promises of the design are checked against the tools' own notes and what callers were answered,
never against a manager's account of itself; the store is asked as the durable truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import attrs
import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test

from tests.property.runtime_world import (
    TIDY_S,
    Boom,
    Call,
    Machine,
    Manners,
    Order,
    Reason,
    Run,
    SweptInSteps,
    Task,
    World,
)
from trio_bgtasks import (
    CancelRequested,
    CheckpointSaved,
    Event,
    Facts,
    Finished,
    MemoryTaskStore,
    Notice,
    ParentCancelled,
    Refused,
    Registered,
    StoreClosed,
    Success,
    TaskError,
    TaskNotRunning,
    TaskNotStopped,
    TaskRecord,
    TaskStatus,
    TaskSummary,
    UnknownTask,
    _lifecycle,
)
from trio_bgtasks._records import evolved
from trio_bgtasks._slots import Slot
from trio_bgtasks.stores import RecordPage, SweepReport
from trio_bgtasks.testing import TrioStateMachine, in_trio

T = TypeVar("T")

OWNERS = ("ann", "bob")
SETTLED_S = 60.0  # a lease, a sweep, and some
few = st.integers(0, 2)
owners = st.sampled_from(OWNERS)
manners: st.SearchStrategy[Manners] = st.sampled_from(
    ["passes on", "passes on", "tidies up", "tidies up", "succeeds", "fails", "raises"]
)
orders: st.SearchStrategy[Order] = st.sampled_from(
    ["succeed", "fail", "raise", "cancel itself", "stop itself", "stop itself"]
)


def newest(things: list[T], number: int) -> T:
    """Return one of ``things``, counted from the newest."""
    return things[-1 - number % len(things)]


def some(list_of: Callable[[RuntimeMachine], list[T]]) -> Callable[[RuntimeMachine], bool]:
    """Return a precondition: there is one to choose from."""
    return lambda self: bool(list_of(self))


class RuntimeMachine(TrioStateMachine):
    """Two machines and some work to begin with; others come and go."""

    store: type[MemoryTaskStore] = SweptInSteps

    async def set_up(self) -> None:
        self.world = World(self.run.nursery, self.store())
        self.asked = 0  # starts, those that were refused too
        self.ended_as: dict[str, TaskRecord] = {}
        for _ in range(2):
            await self.world.boot()
        await self.begin_task(self.new_task("ann", None, "tidies up", resumable=True), 0)
        await self.begin_task(self.new_task("bob", 1, "passes on", resumable=True), 1)
        await self.begin_task(self.new_task("ann", 1, "raises", resumable=False), 0)
        await self.call_task(self.new_task("bob", None, "passes on", resumable=True), 1)
        for run in self.world.runs:
            await self.speak(run)

    # ---- what there is to choose from -------------------------------------------------------

    @property
    def tasks(self) -> list[Task]:
        return list(self.world.tasks.values())

    @property
    def ended(self) -> list[Task]:
        return [task for task in self.tasks if task.runs[-1].ended is not None]

    @property
    def obeying(self) -> list[Run]:
        return [run for run in self.world.live_runs() if not run.reasons]

    @property
    def calls(self) -> list[Call]:
        return [
            call
            for machine in self.world.living
            for call in machine.calls
            if call.answer is None and not call.gone
        ]

    def machine(self, number: int) -> Machine:
        return newest(self.world.living, number)

    def new_task(
        self, owner: str, parent: int | None, manners: Manners, *, resumable: bool
    ) -> Task:
        """Return a task to be started; its parent is one before it, or the next one: a cycle."""
        number = self.asked
        self.asked += 1
        above = None if parent is None else f"t{number + (1, -1, -2)[parent]}"
        return Task(f"t{number}", owner, resumable, above, manners)

    def under_cancel(self, task: Task) -> bool:
        parent = self.world.tasks.get(task.parent or "")
        return parent is not None and parent.cancelled and not parent.collected

    # ---- starting ---------------------------------------------------------------------------

    @rule(
        machine=few,
        owner=owners,
        parent=st.none() | few,
        manners=manners,
        resumable=st.sampled_from([True, True, False]),
        background=st.sampled_from([True, True, False]),
    )
    @in_trio
    async def start(
        self,
        machine: int,
        owner: str,
        parent: int | None,
        manners: Manners,
        resumable: bool,  # noqa: FBT001
        background: bool,  # noqa: FBT001
    ) -> None:
        task = self.new_task(owner, parent, manners, resumable=resumable)
        await (self.begin_task if background else self.call_task)(task, machine)

    async def begin_task(self, task: Task, machine: int) -> None:
        where = self.machine(machine)
        body = self.world.body(task, where, background=True)
        try:
            summary = await where.manager.start(self.world.request(task), body)
        except ParentCancelled:
            assert self.under_cancel(task)
            return
        assert not self.under_cancel(task)
        assert (summary.task_id, summary.status) == (task.task_id, TaskStatus.RUNNING)
        await self.started(task)

    async def call_task(self, task: Task, machine: int) -> None:
        call = await self.world.call(self.machine(machine), task, self.world.request(task))
        assert isinstance(call.answer, ParentCancelled) is self.under_cancel(task)
        if call.answer is None:
            await self.started(task)

    async def started(self, task: Task) -> None:
        parent = self.world.tasks.get(task.parent or "")
        task.attached = parent is None or not parent.collected
        self.world.tasks[task.task_id] = task
        await self.begun(task)

    async def begun(self, task: Task) -> None:
        """A start that was answered has a running body a moment later."""
        await trio.testing.wait_all_tasks_blocked()
        assert task.runs
        assert task.runs[-1].ended is None

    # ---- what bodies do ---------------------------------------------------------------------

    @precondition(some(lambda self: self.obeying))
    @rule(run=few, order=orders)
    @in_trio
    async def order(self, run: int, order: Order) -> None:
        chosen = newest(self.obeying, run)
        call = self.call_of(chosen)
        chosen.orders.send_nowait(order)
        await trio.testing.wait_all_tasks_blocked()
        assert chosen.ended == order
        if order == "cancel itself":
            chosen.task.cancelled = True
        if call is not None:
            assert isinstance(call.answer, Boom) is (order == "raise")
            assert call.answer is not None

    def call_of(self, run: Run) -> Call | None:
        for call in run.machine.calls:
            if call.task_id == run.task.task_id and not run.background and call.answer is None:
                return call
        return None

    @precondition(some(lambda self: self.world.live_runs()))
    @rule(run=few, value=st.integers(0, 99))
    @in_trio
    async def save(self, run: int, value: int) -> None:
        chosen = newest(self.world.live_runs(), run)
        await chosen.execution.save_checkpoint(value)
        chosen.task.checkpoint = value

    @precondition(some(lambda self: self.world.live_runs()))
    @rule(run=few, often=st.integers(1, 3))
    @in_trio
    async def say(self, run: int, often: int) -> None:
        chosen = newest(self.world.live_runs(), run)
        for _ in range(often):
            await self.speak(chosen)

    async def speak(self, run: Run) -> None:
        word = f"<{run.attempt}.{len(run.said)}é>"
        run.said.append(word)
        await run.execution.write_output(word)

    # ---- ending them from outside -----------------------------------------------------------

    @precondition(some(lambda self: self.tasks))
    @rule(machine=few, task=few)
    @in_trio
    async def cancel(self, machine: int, task: int) -> None:
        await self.cancel_task(self.machine(machine), newest(self.tasks, task))

    async def cancel_task(self, machine: Machine, task: Task) -> None:
        cancellable = await self.can_be_cancelled(task, machine)
        try:
            await machine.manager.cancel(task.owner, task.task_id)
        except TaskNotRunning:
            assert not cancellable
            assert not task.collected
        except UnknownTask:
            assert task.collected
        else:
            assert cancellable
            self.accepted(task)
        await trio.testing.wait_all_tasks_blocked()

    @precondition(some(lambda self: self.tasks))
    @rule(machine=few, task=few)
    @in_trio
    async def cancel_tree(self, machine: int, task: int) -> None:
        root = newest(self.tasks, task)
        where = self.machine(machine)
        below = [t for t in self.tree(root) if await self.can_be_cancelled(t, where)]
        try:
            tree = await where.manager.cancel_tree(root.owner, root.task_id)
        except TaskNotRunning:
            assert not below
            assert not root.collected
        except UnknownTask:
            assert root.collected
        else:
            own = sorted(t.task_id for t in below if t.owner == root.owner)
            assert sorted(summary.task_id for summary in tree.own) == own
            assert tree.others == len(below) - len(own)
            for one in below:
                self.accepted(one)
        await trio.testing.wait_all_tasks_blocked()

    def tree(self, root: Task) -> list[Task]:
        """Return a task and what is below it, as far as the records still lead."""
        found = [] if root.collected else [root]
        for above in found:
            found += [
                task
                for task in self.tasks
                if task.parent == above.task_id and not task.collected and task not in found
            ]
        return found

    async def can_be_cancelled(self, task: Task, machine: Machine) -> bool:
        """It runs or is stopped. Asking how it stands settles an orphan, as the cancel will."""
        await machine.manager.get(task.owner, task.task_id)
        if task.collected:
            return False
        last = task.runs[-1]
        if last.ended is None:
            return True
        if task.cancelled:
            # Marked before the crash: accepted once more while its machine may still be alive.
            return last.ended == "crash" and not await self.settled(task)
        return last.expected_status() == {TaskStatus.STOPPED}

    async def settled(self, task: Task) -> bool:
        record = await self.world.store.load(task.task_id)
        return record is None or record.status is not TaskStatus.RUNNING

    def accepted(self, task: Task) -> None:
        task.cancelled = True
        for run in task.runs:
            if run.ended is None:
                run.reasons.add("cancel")

    @rule(machine=few, owner=owners)
    @in_trio
    async def close_owner(self, machine: int, owner: str) -> None:
        await self.end_owner(self.machine(machine), owner)

    async def end_owner(self, machine: Machine, owner: str) -> None:
        theirs = [run for run in self.world.live_runs(machine) if run.task.owner == owner]
        self.note("owner close", theirs)
        await machine.manager.close_owner(owner)
        assert all(run.ended for run in theirs)

    def note(self, reason: Reason, runs: list[Run]) -> None:
        for run in runs:
            run.reasons.add(reason)

    @precondition(some(lambda self: self.calls))
    @rule(call=few)
    @in_trio
    async def hang_up(self, call: int) -> None:
        """The caller of a foreground run goes away."""
        chosen = newest(self.calls, call)
        self.note("caller", self.world.tasks[chosen.task_id].runs[-1:])
        chosen.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()

    # ---- machines ---------------------------------------------------------------------------

    @rule(machine=few, crash=st.booleans(), replaced=st.booleans())
    @in_trio
    async def lose(
        self,
        machine: int,
        crash: bool,  # noqa: FBT001
        replaced: bool,  # noqa: FBT001
    ) -> None:
        """A machine crashes or is shut down; another may take its place."""
        where = self.machine(machine)
        if crash:
            where.crash()
            await trio.testing.wait_all_tasks_blocked()
        else:
            await where.shut_down()
            await self.nothing_is_left_of(where)
        if replaced or not self.world.living:
            await self.world.boot()

    async def nothing_is_left_of(self, machine: Machine) -> None:
        """Promise 10: no body, and no running record of its executors."""
        assert not self.world.live_runs(machine)
        for task in self.tasks:
            record = await self.world.store.load(task.task_id)
            assert record is None or record.executor_id not in machine.executors

    # ---- resuming ---------------------------------------------------------------------------

    @precondition(some(lambda self: self.ended))
    @rule(task=few, machine=few, rivals=few)
    @in_trio
    async def resume(self, task: int, machine: int, rivals: int) -> None:
        """One caller or several resume a task at the same time, on one machine or several."""
        where = [self.machine(machine + i) for i in range(rivals + 1)]
        await self.resume_at_once(newest(self.ended, task), where)

    async def resume_at_once(self, task: Task, where: list[Machine]) -> None:
        possible = await self.can_be_resumed(task, where[0])
        won: list[Machine] = []

        async def try_it(machine: Machine) -> None:
            manager = machine.manager
            body = self.world.body(task, machine, background=True)
            request = self.world.request(task, resume_attempt=task.runs[-1].attempt)
            try:
                summary = await manager.start(request, body)
            except Refused:
                return
            assert summary.attempt == task.attempts + 1
            won.append(machine)

        async with trio.open_nursery() as nursery:
            for machine in where:
                nursery.start_soon(try_it, machine)
        assert len(won) == possible
        if won:
            task.attempts += 1
            await self.begun(task)

    async def can_be_resumed(self, task: Task, machine: Machine) -> bool:
        """Ask how it stands, as a wrapped tool does, which settles orphans; then judge it."""
        summary = await machine.manager.get(task.owner, task.task_id)
        assert (summary is None) is task.collected
        if summary is None or not task.runs[-1].over:
            return False
        stopped = task.runs[-1].expected_status() == {TaskStatus.STOPPED}
        if task.runs[-1].ended == "crash" and not await self.settled(task):
            assert summary.status is TaskStatus.RUNNING
            return False
        return stopped and task.resumable and not task.cancelled

    @precondition(some(lambda self: self.world.live_runs()))
    @rule(run=few, machine=few, crash=st.booleans(), after_s=st.sampled_from([0, 1, 10, 29, 45]))
    @in_trio
    async def take_over(
        self,
        run: int,
        machine: int,
        crash: bool,  # noqa: FBT001
        after_s: float,
    ) -> None:
        """A task loses its machine or its owner, and others take it over, perhaps too early."""
        chosen = newest(self.world.live_runs(), run)
        if len(self.world.living) < 2:
            await self.world.boot()
        async with trio.open_nursery() as nursery:
            if crash:
                chosen.machine.crash()
            else:
                nursery.start_soon(self.end_owner, chosen.machine, chosen.task.owner)
                await trio.lowlevel.checkpoint()
            await trio.sleep(after_s)
            await trio.testing.wait_all_tasks_blocked()
            closed = after_s > TIDY_S  # until then nothing starts there for the owner
            able = [m for m in self.world.living if closed or m is not chosen.machine]
            await self.resume_at_once(chosen.task, [newest(able, machine)])

    @precondition(some(lambda self: self.obeying))
    @rule(run=few, machine=few, value=st.integers(0, 99))
    @in_trio
    async def stall(self, run: int, machine: int, value: int) -> None:
        """A machine does not renew its lease any more, and its bodies go on; others take one over.

        Promises 1 and 4: what it writes before its lease has run out counts, and nothing later.
        """
        chosen = newest(self.obeying, run)
        stalled = chosen.machine
        if len(self.world.living) < 2:
            await self.world.boot()
        other = newest([m for m in self.world.living if m is not stalled], machine)
        stalled.stall()
        await trio.sleep(10)
        theirs = self.world.live_runs(stalled)
        for one in theirs:
            await one.execution.save_checkpoint(value)
            one.task.checkpoint = value
            one.fenced = True
        await other.manager.wait(chosen.task.owner, chosen.task.task_id)
        await self.resume_at_once(chosen.task, [other])
        for one in theirs:
            assert await self.is_refused(partial(one.execution.save_checkpoint, "late"))
        await trio.sleep(TIDY_S)
        await trio.testing.wait_all_tasks_blocked()
        assert all(one.ended for one in theirs)

    # ---- looking, announcing, collecting ----------------------------------------------------

    @precondition(some(lambda self: self.tasks))
    @rule(machine=few, task=few)
    @in_trio
    async def look(self, machine: int, task: int) -> None:
        """Everyone is told the truth; another owner is told what a stranger is told."""
        chosen = newest(self.tasks, task)
        manager = self.machine(machine).manager
        summary = await manager.get(chosen.owner, chosen.task_id)
        record = await self.world.store.load(chosen.task_id)
        assert summary == (None if record is None else record.summary())
        stranger = "bob" if chosen.owner == "ann" else "ann"
        assert await manager.get(stranger, chosen.task_id) is None
        listed = {one.task_id for one in await manager.list_tasks(stranger)}
        assert chosen.task_id not in listed
        for task_id in (chosen.task_id, "nobody's"):
            try:
                await manager.cancel(stranger, task_id)
            except UnknownTask as error:
                assert str(error) == f"Unknown task_id: {task_id}"  # noqa: PT017
            else:
                raise AssertionError("a stranger's cancel was accepted")

    @rule(machine=few, owner=owners, fails=st.booleans())
    @in_trio
    async def take_notices(
        self,
        machine: int,
        owner: str,
        fails: bool,  # noqa: FBT001
    ) -> None:
        """What a block was given that failed, comes again."""
        with suppress(Boom):
            async with self.machine(machine).manager.notices(owner) as summaries:
                if fails:
                    raise Boom
                self.announced(owner, summaries)

    def announced(self, owner: str, summaries: list[TaskSummary]) -> None:
        for summary in summaries:
            assert summary.task_id in self.world.tasks  # or what was refused was stored
            assert self.world.tasks[summary.task_id].owner == owner
            self.world.announced.append((summary.task_id, summary.attempt, summary.status))

    @rule(machine=few, owner=owners)
    @in_trio
    async def collect(self, machine: int, owner: str) -> None:
        await self.machine(machine).manager.gc_terminal(owner)
        for task in self.tasks:
            if task.collected or task.owner != owner:
                continue
            if await self.world.store.load(task.task_id) is None:
                task.collected = True
                assert task.runs[-1].ended is not None
                assert not any(t.runs[-1].ended is None for t in self.tree_before(task))

    def tree_before(self, root: Task) -> list[Task]:
        """Return what is below a task, also where the records do not lead any more."""
        found = [root]
        attached = [task for task in self.tasks if task.attached]
        for above in found:
            found += [t for t in attached if t.parent == above.task_id and t not in found]
        return found

    @rule(seconds=st.sampled_from([0.5, TIDY_S, 20.0, SETTLED_S]))
    @in_trio
    async def pass_time(self, seconds: float) -> None:
        await self.pass_time_by(seconds)

    async def pass_time_by(self, seconds: float) -> None:
        await trio.sleep(seconds)
        await trio.testing.wait_all_tasks_blocked()
        if seconds >= 20:
            assert not any("cancel" in run.reasons for run in self.world.live_runs())
        if seconds >= SETTLED_S:
            await self.no_orphan_is_left()

    async def no_orphan_is_left(self) -> None:
        """Promise 6: what ran on a machine that is gone has been found."""
        for task in self.tasks:
            record = await self.world.store.load(task.task_id)
            if record is not None and task.runs[-1].ended is not None:
                assert record.status is not TaskStatus.RUNNING

    # ---- the promises -----------------------------------------------------------------------

    @invariant()
    @in_trio
    async def every_record_tells_what_happened(self) -> None:
        """Promises 1 to 6: the durable truth is what the tool itself saw."""
        for task in self.tasks:
            record = await self.world.store.load(task.task_id)
            if record is None:
                assert task.collected
                continue
            last = task.runs[-1]
            assert record.attempt == task.attempts == last.attempt
            assert record.checkpoint == task.checkpoint
            assert record.cancel_accepted is task.cancelled
            if last.ended is None:
                assert record.status is TaskStatus.RUNNING
                assert record.executor_id in last.machine.executors
            elif last.ended != "crash" or record.status is not TaskStatus.RUNNING:
                cancelled = {TaskStatus.CANCELLED}
                assert record.status in (cancelled if task.cancelled else last.expected_status())
            if last.ended in ("succeed", "succeeds") and not last.fenced:
                assert record.result == last.attempt

    @invariant()
    @in_trio
    async def what_has_ended_never_changes(self) -> None:
        """Promise 3: a terminal record is the same for ever."""
        for task in self.tasks:
            record = await self.world.store.load(task.task_id)
            if record is not None and record.status.is_terminal:
                assert self.ended_as.setdefault(task.task_id, record) == record

    @invariant()
    @in_trio
    async def what_was_superseded_writes_nothing(self) -> None:
        """Promise 4: what an attempt had on its way while its task was resumed is refused."""
        for task in self.tasks:
            if len(task.runs) > 1 and not task.collected:
                late = task.runs[-2]
                event = CheckpointSaved(0, late.executor_id, late.attempt, "late")
                assert await self.is_refused(partial(self.world.store.apply, task.task_id, event))

    async def is_refused(self, write: Callable[[], Awaitable[object]]) -> bool:
        try:
            await write()
        except (Refused, StoreClosed):  # it is closed to machines that crashed
            return True
        return False

    @invariant()
    def nothing_is_announced_twice(self) -> None:
        """Promise 11: once acknowledged, never again; and as the attempt ended."""
        told = Counter((task_id, attempt) for task_id, attempt, _ in self.world.announced)
        assert not told or max(told.values()) == 1

    async def clean_up(self) -> None:
        """End every machine; then nothing runs, and everything has been announced."""
        if any("cancel" in run.reasons for run in self.world.live_runs()):
            await self.pass_time_by(20)
        for machine in self.world.living:
            await machine.shut_down()
            await self.nothing_is_left_of(machine)
        auditor = await self.world.boot()
        await trio.sleep(SETTLED_S)
        assert all(machine.ended.is_set() for machine in self.world.machines[:-1])
        assert not self.world.live_runs()
        await self.no_orphan_is_left()
        for owner in OWNERS:
            self.announced(owner, await auditor.manager.take_notices(owner))
            assert await auditor.manager.take_notices(owner) == []
        self.nothing_is_announced_twice()
        self.check_announced()
        for task in self.tasks:
            if not task.collected:
                await self.check_output(task)
        await auditor.shut_down()
        await trio.testing.wait_all_tasks_blocked()
        assert self.world.nursery.child_tasks == {trio.lowlevel.current_task()}

    def check_announced(self) -> None:
        """Promise 11: every ended attempt, unless its caller has the answer."""
        told = {(task_id, attempt): status for task_id, attempt, status in self.world.announced}
        for run in self.world.runs:
            status = told.pop((run.task.task_id, run.attempt), None)
            answered = not run.background and not run.fenced and self.answered(run)
            assert (status is None) is answered
            if status is not None:
                wanted = run.expected_status()
                if (run.fenced or run.ended == "crash") and run.task.cancelled:
                    wanted = wanted | {TaskStatus.CANCELLED}
                assert status in ({TaskStatus.CANCELLED} if "cancel" in run.reasons else wanted)
        assert not told

    def answered(self, run: Run) -> bool:
        return any(
            call.task_id == run.task.task_id and call.answer is not None
            for call in run.machine.calls
        )

    async def check_output(self, task: Task) -> None:
        """All that was said is in the log, in order; of a crashed attempt perhaps not the end."""
        page = await self.world.store.read_output(task.task_id, offset=0, limit=1 << 20)
        rest = page.text
        for run in task.runs:
            for word in run.said:
                if not rest.startswith(word):
                    assert run.fenced or run.ended == "crash"
                    break
                rest = rest.removeprefix(word)
        assert rest == ""


TestRuntime = RuntimeMachine.TestCase
TestRuntime.settings = settings(stateful_step_count=30, max_examples=100, deadline=None)


# ---- planted bugs -------------------------------------------------------------------------------


class ForgetsCancels(MemoryTaskStore):
    """Says that a cancel is accepted, and does not keep it."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        record = await self.load(task_id)
        if isinstance(event, CancelRequested) and record and record.status == "running":
            return evolved(record, cancel_requested_at_ms=event.at_ms)
        return await super().apply(task_id, event)


class ForgetsCheckpoints(MemoryTaskStore):
    """Returns before a checkpoint is kept, which then never happens."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        record = await self.load(task_id)
        if isinstance(event, CheckpointSaved) and record:
            return record
        return await super().apply(task_id, event)


class ForgetsResults(MemoryTaskStore):
    """Keeps that an attempt succeeded, but not with what."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        if isinstance(event, Finished):
            event = attrs.evolve(event, outcome=attrs.evolve(event.outcome))
            if isinstance(event.outcome, Success):
                event = attrs.evolve(event, outcome=Success())
        return await super().apply(task_id, event)


class LosesLastWords(MemoryTaskStore):
    """Drops the output that comes with the end of an attempt."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        if isinstance(event, Finished):
            event = attrs.evolve(event, output="")
        return await super().apply(task_id, event)


class ResumesTwice(MemoryTaskStore):
    """Lets the loser of two resumes believe that it won."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        try:
            return await super().apply(task_id, event)
        except TaskNotStopped as error:
            refusal = error
        record = await self.load(task_id)
        if record is None or record.status != "running":
            raise refusal
        return record


class BuriesTheLiving(MemoryTaskStore):
    """Takes every executor but the sweeping one for dead."""

    async def sweep(
        self, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        for name, executor in self._executors.items():
            if name != executor_id:
                executor.renewal.cancel()
                executor.expires_at = 0
        return await super().sweep(executor_id, at_ms, suspect=suspect)


class FindsNobodyDead(MemoryTaskStore):
    """Never fences an executor."""

    async def sweep(
        self, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        return await super().sweep(executor_id, at_ms, suspect=suspect or executor_id)


class AnnouncesTwice(MemoryTaskStore):
    """Does not delete what was acknowledged."""

    async def acknowledge(self, owner_thread_id: str, notice_ids: Sequence[int]) -> None:
        return


class AcknowledgesAll(MemoryTaskStore):
    """Deletes also what was not handed out, or was not taken."""

    async def notices(
        self, owner_thread_id: str, *, limit: int = 200, background_only: bool = False
    ) -> list[Notice]:
        found = await super().notices(owner_thread_id, limit=limit, background_only=background_only)
        await self.acknowledge(owner_thread_id, [notice.notice_id for notice in found])
        return found


class TellsStrangers(MemoryTaskStore):
    """Lists the tasks of all owners."""

    async def list_owner(
        self,
        owner_thread_id: str,
        *,
        after: int = 0,
        limit: int = 200,
        status: TaskStatus | None = None,
        task_type: str | None = None,
    ) -> RecordPage:
        records = [record for t in list(self._records) if (record := await self.load(t))]
        return RecordPage(records)


class CollectsParents(MemoryTaskStore):
    """Collects a task although a descendant of it runs."""

    def _ancestors_of_running(self) -> set[str]:
        return set()


class LetsChildrenStart(MemoryTaskStore):
    """Does not look whether a parent is under an accepted cancel."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        try:
            return await super().apply(task_id, event)
        except ParentCancelled:
            assert isinstance(event, Registered)
            return await super().apply(task_id, attrs.evolve(event, parent_task_id=None))


BROKEN_STORES = [
    ForgetsCancels,
    ForgetsCheckpoints,
    ForgetsResults,
    LosesLastWords,
    ResumesTwice,
    BuriesTheLiving,
    FindsNobodyDead,
    AnnouncesTwice,
    AcknowledgesAll,
    TellsStrangers,
    CollectsParents,
    LetsChildrenStart,
]


def run_until_found(machine: type[RuntimeMachine]) -> None:
    """Run a machine that has to fail; the same examples every time."""
    with pytest.raises((AssertionError, TaskError, ExceptionGroup)):
        run_state_machine_as_test(
            machine,
            settings=settings(
                derandomize=True,
                max_examples=300,
                stateful_step_count=30,
                phases=[Phase.generate],
                deadline=None,
                report_multiple_bugs=False,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            ),
        )


@pytest.mark.parametrize("broken", BROKEN_STORES)
def test_a_broken_store_is_found(broken: type[MemoryTaskStore]) -> None:
    """Each store breaks one promise; the tools' own notes show it."""

    class Planted(RuntimeMachine):
        store = broken

    run_until_found(Planted)


@pytest.mark.parametrize("reason", ["cancel", "owner_close", "shutdown"])
def test_a_manager_that_ends_nothing_is_found(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that is not cancelled when it should be is a wrong answer, or a deadlock."""
    stop = Slot.stop

    def deaf(self: Slot, why: str) -> None:
        if why != reason:
            stop(self, why)

    monkeypatch.setattr(Slot, "stop", deaf)
    run_until_found(RuntimeMachine)


def test_a_store_that_takes_what_the_dead_write_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lifecycle that does not look whether the writer is fenced breaks promise 4."""

    def check(record: TaskRecord, executor_id: str, attempt: int, _: Facts) -> None:
        _lifecycle._check_attempt(record, executor_id, attempt)

    monkeypatch.setattr(_lifecycle, "_check_writer", check)
    run_until_found(RuntimeMachine)


def test_a_store_that_takes_what_an_old_attempt_writes_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lifecycle that looks at the executor only, not at the attempt, breaks promise 4."""

    def check(record: TaskRecord, executor_id: str, _: int) -> None:
        check_attempt(record, executor_id, record.attempt)

    check_attempt = _lifecycle._check_attempt
    monkeypatch.setattr(_lifecycle, "_check_attempt", check)
    run_until_found(RuntimeMachine)
