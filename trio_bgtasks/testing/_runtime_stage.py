"""The stage of `RuntimeMachine`: what there is to choose from, what can be done, what must hold."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, Literal, TypeVar

import hypothesis.strategies as st
import trio
import trio.testing
from hypothesis.stateful import invariant

from trio_bgtasks import (
    CheckpointSaved,
    Finished,
    ManagerClosed,
    Orphaned,
    ParentCancelled,
    Refused,
    StoreClosed,
    Success,
    TaskNotRunning,
    TaskRecord,
    TaskStatus,
    TaskStoreError,
    UnknownTask,
)

from ._corruptible import CorruptibleStore
from ._history import History, Run, TaskHistory
from ._promises import check_history
from ._runtime_world import CLOSED_S, Call, Host, Listener, Manners, Order, Work, World
from ._simulated import SimulationStore, virtual_clock_ms
from ._trio_machine import TrioStateMachine, in_trio

T = TypeVar("T")

OWNERS = ("ann", "bob")
SETTLED_S = 60.0  # a lease, a sweep, and some

few = st.integers(0, 2)
owners = st.sampled_from(OWNERS)
orders: st.SearchStrategy[Order] = st.sampled_from(
    ["succeed", "fail", "raise", "raise a group", "cancel itself", "cancel itself", "stop", "stop"]
)


def newest(things: list[T], number: int) -> T:
    """Return one of ``things``, counted from the newest."""
    return things[-1 - number % len(things)]


def some(list_of: Callable[[RuntimeStage], list[T]]) -> Callable[[RuntimeStage], bool]:
    """Return a precondition: there is one to choose from."""
    return lambda self: bool(list_of(self))


class RuntimeStage(TrioStateMachine):
    """Machines on one store, tools and callers; the promises are checked after every step.

    It has no rules of its own.
    """

    machines: ClassVar[int] = 2

    def make_store(self) -> SimulationStore:
        """Return the new store that the machines share.

        Its method ``corrupt(task_id)``, if it has one as `CorruptibleStore` has, is used for
        promise 12.
        """
        return CorruptibleStore()

    async def set_up(self) -> None:
        """Open the machines and give them something to do."""
        self.world: World = World(self.run.nursery, self.make_store())
        self.history: History = self.world.history
        self.asked: int = 0  # starts, those that were refused too
        self.doubtful: set[str] = set()  # they were stored, and nobody was told
        self.tried: dict[str, set[str]] = {owner: set() for owner in OWNERS}  # ids of others
        for _ in range(self.machines):
            await self.world.boot()
        here, there = self.host(0), self.host(1)
        await self.begin_task(here, "bob", None, "succeeds", resumable=True)
        await self.begin_task(here, "ann", None, "fails", resumable=False)
        await self.begin_task(here, "ann", None, "tidies up", resumable=True)
        await self.begin_task(there, "bob", 1, "tidies up", resumable=True)
        await self.call_task(there, "bob", 1, "passes on", resumable=True)
        for number, work in enumerate(self.talking):
            await self.world.speak(work)
            await self.save_in(work, number)

    # ---- what there is to choose from ------------------------------------------------------------

    @property
    def tasks(self) -> list[TaskHistory]:
        """The tasks that somebody knows of, but those whose record is damaged."""
        return [task for task in self.with_damaged if task.damaged is None]

    @property
    def with_damaged(self) -> list[TaskHistory]:
        """The tasks that somebody knows of."""
        there = self.history.tasks.values()
        return [task for task in there if task.known or task.task_id in self.doubtful]

    @property
    def damaged(self) -> list[TaskHistory]:
        """The tasks whose record is damaged."""
        return [task for task in self.with_damaged if task.damaged is not None]

    @property
    def talking(self) -> list[Work]:
        """The bodies that run on an open machine."""
        return self.world.running("open")

    @property
    def obeying(self) -> list[Work]:
        """The bodies that wait for orders."""
        return [work for work in self.talking if work.waits and not work.run.causes]

    @property
    def cancelled(self) -> list[TaskHistory]:
        """The tasks of which somebody was told that they are, or will be, cancelled."""
        return [task for task in self.tasks if task.cancel_accepted is not None]

    async def one_of(self, what: Literal["talking", "obeying"], number: int) -> Work:
        """Return one of those bodies; of a new task if there is none."""
        if not self.obeying:
            resumable = number > 0
            await self.begin_task(self.host(0), "ann", None, "tidies up", resumable=resumable)
        return newest(self.talking if what == "talking" else self.obeying, number)

    @property
    def listening(self) -> list[Listener]:
        """The subscribers on open machines."""
        hosts = self.world.open_hosts()
        there = [listener for host in hosts for listener in host.listeners]
        return [listener for listener in there if not listener.scope.cancel_called]

    @property
    def stalled(self) -> list[Host]:
        """The machines that are suspended."""
        return [host for host in self.world.hosts if host.state == "stalled"]

    @property
    def calls(self) -> list[tuple[Host, Call]]:
        """The foreground calls under way on open machines."""
        hosts = self.world.open_hosts()
        return [(host, call) for host in hosts for call in host.calls if not call.over]

    def host(self, number: int) -> Host:
        """Return an open machine."""
        return newest(self.world.open_hosts(), number)

    async def two_hosts(self) -> None:
        """Open one more machine if there is one only."""
        if len(self.world.open_hosts()) < 2:
            await self.world.boot()

    def other_than(self, host: Host, number: int) -> Host:
        """Return another open machine."""
        return newest([other for other in self.world.open_hosts() if other is not host], number)

    # ---- what callers do, and what they must be answered -----------------------------------------

    def new_task(self, parent: int | None, manners: Manners) -> tuple[str, str | None]:
        """Return the id of a new task, and its parent: one before it, or the next one: a cycle."""
        number = self.asked
        self.asked += 1
        above = None if parent is None else f"t{number + (1, -1, -2)[parent]}"
        if above in [task.task_id for task in self.damaged]:
            above = None
        self.world.manners[f"t{number}"] = manners
        return f"t{number}", above

    async def begin_task(
        self, host: Host, owner: str, parent: int | None, manners: Manners, *, resumable: bool
    ) -> None:
        """Start a task in the background; refused only under an accepted cancel."""
        task_id, above = self.new_task(parent, manners)
        cancelled = await self.is_cancelled(above)
        request = self.world.request(
            task_id, owner, parent_task_id=above, supports_resume=resumable
        )
        try:
            summary = await host.manager.start(request, self.world.body(host))
        except ParentCancelled:
            assert cancelled, f"promise 5: {task_id} was refused under {above}, not cancelled"
            return
        assert not cancelled, f"promise 5: {task_id} was started under {above}, cancelled"
        answer = summary.task_id, summary.status
        assert answer == (task_id, TaskStatus.RUNNING), f"promise 2: {task_id}: {summary!r}"
        await self.begun(self.history.tasks[task_id], 1)

    async def call_task(
        self, host: Host, owner: str, parent: int | None, manners: Manners, *, resumable: bool
    ) -> None:
        """Call a task in the foreground; refused only under an accepted cancel."""
        task_id, above = self.new_task(parent, manners)
        cancelled = await self.is_cancelled(above)
        request = self.world.request(
            task_id, owner, parent_task_id=above, supports_resume=resumable
        )
        call = await self.world.call(host, request)
        refused = isinstance(call.answer, ParentCancelled)
        assert refused is cancelled, f"promise 5: {task_id} under {above}: {call.answer!r}"
        if not refused:
            assert call.answer is None, f"promise 2: {task_id} did not run: {call.answer!r}"
            await self.begun(self.history.tasks[task_id], 1)

    async def is_cancelled(self, task_id: str | None) -> bool:
        """Is a task there, under an accepted cancel?"""
        record = None if task_id is None else await self.world.store.load(task_id)
        return record is not None and record.cancel_accepted

    async def begun(self, task: TaskHistory, attempt: int) -> None:
        """A start that was answered has a running body a moment later."""
        await trio.testing.wait_all_tasks_blocked()
        runs = [run for run in task.runs if run.attempt == attempt]
        assert runs, f"promise 2: attempt {attempt} was started, and its body does not run\n{task}"
        assert runs[-1].live, f"promise 9: attempt {attempt} ended by itself\n{task}"
        for listener in self.listening:
            if listener.owner == task.owner and runs[-1].machine == listener.machine:
                heard = task.task_id in listener.heard
                assert heard, f"a subscriber of {task.owner} did not hear of it\n{task}"

    def call_of(self, work: Work) -> Call | None:
        """Return the foreground call that waits for a body."""
        for call in work.host.calls:
            if call.task_id == work.run.task.task_id and not (work.run.background or call.over):
                return call
        return None

    async def cancel_task(self, host: Host, task: TaskHistory) -> None:
        """Cancel it, and compare the answer with how it stood."""
        possible = await self.can_be_cancelled(host, task)
        try:
            await host.manager.cancel(task.owner, task.task_id)
        except TaskNotRunning:
            assert possible is False, f"promise 5: its cancel was refused\n{task}"
        except UnknownTask:
            assert possible is None, f"promise 2: it is called unknown\n{task}"
        else:
            assert possible, f"promise 5: its cancel was accepted too late\n{task}"
        await trio.testing.wait_all_tasks_blocked()

    async def can_be_cancelled(self, host: Host, task: TaskHistory) -> bool | None:
        """Ask how it stands, which settles an orphan, as the cancel will; None: it is gone."""
        await host.manager.get(task.owner, task.task_id)
        record = await self.world.record(task)
        return None if record is None else not record.status.is_terminal

    async def tree(self, root: TaskHistory) -> list[TaskHistory]:
        """Return a task and what is below it, as far as the records, damaged or not, lead."""
        there = [
            t
            for t in self.with_damaged
            if t.damaged is not None or await self.world.record(t) is not None
        ]
        found = [root] if root in there else []
        for above in found:  # it grows meanwhile
            found += [t for t in there if t.parent == above.task_id and t not in found]
        return found

    async def cancel_tree_of(self, where: Host, root: TaskHistory) -> None:
        """Cancel a task and all below it, and compare the answer with how each of them stood."""
        whole = await self.tree(root)
        tree = [t for t in whole if t.damaged is None]
        below = [t for t in tree if await self.can_be_cancelled(where, t)]
        try:
            answer = await where.manager.cancel_tree(root.owner, root.task_id)
        except TaskNotRunning:
            assert tree, f"promise 2: it is gone, and called terminal\n{root}"
            assert not below, f"promise 5: nothing was cancelled below\n{root}"
        except UnknownTask:
            assert not tree, f"promise 2: it is called unknown\n{root}"
        else:
            damaged = {t.task_id for t in whole} - {t.task_id for t in tree}
            own = sorted(t.task_id for t in below if t.owner == root.owner)
            got = sorted({summary.task_id for summary in answer.own} - damaged)
            assert got == own, f"promise 5: {answer}, should be {own}\n{root}"
            more = answer.others - (len(below) - len(own))
            assert 0 <= more <= len(damaged), f"promise 5: {answer}, but {own} is own\n{root}"
            for one in below:
                self.history.accepted(one)
        await trio.testing.wait_all_tasks_blocked()
        for work in self.world.work:
            if work.host is where and work.run.live and work.run.task in whole:
                asked = work.execution.stopping
                assert asked, f"promise 5: it is below, and was not cancelled\n{work.run.task}"

    async def end_owner(self, host: Host, owner: str) -> None:
        """Close an owner; afterwards every end is stored."""
        runs = [work.run for work in self.talking if work.host is host]
        with trio.move_on_after(CLOSED_S) as patience:
            try:
                await host.manager.close_owner(owner)
            except TaskStoreError as error:
                self.world.damaged_only(error)
        assert not patience.cancelled_caught, f"promise 10: {owner} is not closed on {host.name}"
        for run in runs:
            record = await self.world.record(run.task)
            if run.task.owner == owner and record is not None and record.attempt == run.attempt:
                running = record.status is TaskStatus.RUNNING
                assert not running, f"promise 10: {owner} was closed, it is running\n{run.task}"

    async def look_at_all(self, host: Host, owner: str) -> None:
        """Promises 2 and 12: an owner is shown every task that can be read, as it is stored."""
        summaries = await host.manager.list_tasks(owner)
        mine = [task for task in self.tasks if task.owner == owner]
        records = [r for task in mine if (r := await self.world.record(task)) is not None]
        stored = [record.summary() for record in sorted(records, key=lambda record: record.seq)]
        promise = 12 if self.damaged else 2
        assert summaries == stored, f"promise {promise}: shown {summaries}, stored {stored}"

    async def looked_at(self, host: Host, task: TaskHistory) -> TaskRecord | None:
        """Ask how a task stands, which settles an orphan; return what is stored then."""
        await host.manager.get(task.owner, task.task_id)
        return await self.world.record(task)

    async def resume_at_once(self, task: TaskHistory, where: list[Host]) -> None:
        """Let several callers resume; exactly one wins if the task may be resumed, else none."""
        before = await self.looked_at(where[0], task)
        attempt = 1 if before is None else before.attempt
        won: list[Host] = []

        async def try_it(host: Host) -> None:
            request = self.world.request(
                task.task_id, task.owner, resume_attempt=attempt, supports_resume=task.resumable
            )
            try:
                await host.manager.start(request, self.world.body(host))
                won.append(host)
            except Refused:
                pass
            except ManagerClosed as error:
                raise AssertionError(f"promise 10: it is long closed: {error}\n{task}") from error

        async with trio.open_nursery() as nursery:
            for host in where:
                nursery.start_soon(try_it, host)
        possible = before is not None and may_be_resumed(before)
        cancelled = before is not None and before.status is TaskStatus.CANCELLED
        wins = f"{len(won)} of {len(where)} resumes won"
        assert len(won) == possible, f"promise {5 if cancelled else 7}: {wins}\n{task}"
        if won:
            await self.begun(task, attempt + 1)

    async def save_in(self, work: Work, value: object) -> None:
        """Save a checkpoint in a body that runs: it may write."""
        try:
            await work.execution.save_checkpoint(value)
        except Refused as error:
            raise AssertionError(
                f"promise 6: it runs, and may not write: {error}\n{work.run.task}"
            ) from error

    async def pass_time_by(self, seconds: float) -> None:
        """An accepted cancel ends what runs within a poll and a clean-up; who waits is told."""
        marked = [work.run for work in self.talking if work.run.task.cancel_accepted is not None]
        await trio.sleep(seconds)
        await trio.testing.wait_all_tasks_blocked()
        for run in marked if seconds >= 20 else ():
            assert not run.live, f"promise 5: its cancel was accepted, it still runs\n{run.task}"
        for host in self.world.open_hosts() if seconds >= SETTLED_S else ():
            for task in [waiter.task for waiter in host.waits if not waiter.over]:
                record = None if task.damaged else await self.world.record(task)
                running = record is not None and record.status is TaskStatus.RUNNING
                running = running or (task.damaged is not None and task.live)
                assert running, f"promise 2: somebody waits for its end\n{task}"

    # ---- the promises ----------------------------------------------------------------------------

    @invariant()
    @in_trio
    async def every_promise_is_kept(self) -> None:
        """See `check_history`; and no machine ends by itself."""
        self.world.open_hosts()
        swept = self.world.quiet_s >= SETTLED_S
        await check_history(self.history, self.world.store, swept=swept)
        for host in self.world.hosts:
            for listener in host.listeners:
                others = {t.task_id for t in self.tasks if t.owner != listener.owner}
                foreign = listener.heard & others - self.tried[listener.owner]
                assert not foreign, f"promise 8: {listener.owner} heard of {foreign}"

    @invariant()
    @in_trio
    async def what_was_superseded_writes_nothing(self) -> None:
        """Promise 4: what an attempt had on its way when it was over is refused."""
        for task in self.tasks:
            record = await self.world.record(task)
            running = record is not None and record.status is TaskStatus.RUNNING
            for run in task.runs[:-1] if running else task.runs:
                await self.write_late(run)

    async def write_late(self, run: Run) -> None:
        """Write as an attempt that is over would, under every id of its machine."""
        now, task_id = virtual_clock_ms(), run.task.task_id
        for executor_id in self.history.machines[run.machine]:
            for event in (
                CheckpointSaved(now, executor_id, run.attempt, "late"),
                Finished(now, executor_id, run.attempt, Success("late")),
                Orphaned(now, executor_id, run.attempt),
            ):
                with suppress(Refused, StoreClosed):  # it is closed to machines that crashed
                    await self.world.store.apply(task_id, event)
                    late = f"a late {type(event).__name__} of attempt {run.attempt} was taken"
                    raise AssertionError(f"promise 4: {late}\n{run.task}")

    async def clean_up(self) -> None:
        """End every machine; then nothing runs, and everything has been found and announced."""
        for host in self.world.hosts:
            host.simulated.store.repair()  # a rule may have failed in the middle
        for host in self.stalled:
            await self.world.wake(host)
        await self.pass_time_by(20)
        for host in self.world.open_hosts():
            await self.world.shut_down(host)
        auditor = await self.world.boot()
        await trio.sleep(SETTLED_S)
        for owner in OWNERS:
            await self.look_at_all(auditor, owner)
            await auditor.manager.take_notices(owner)
            again = await auditor.manager.take_notices(owner)
            assert not again, f"promise 11: announced once more: {again}"
        await self.world.shut_down(auditor)
        await trio.testing.wait_all_tasks_blocked()
        await check_history(self.history, self.world.store)
        left = self.world.nursery.child_tasks - {trio.lowlevel.current_task()}
        assert not left, f"promise 10: still there: {', '.join(task.name for task in left)}"


def may_be_resumed(record: TaskRecord) -> bool:
    """Tell whether a resume of this attempt has to win."""
    stopped = record.status is TaskStatus.STOPPED
    return stopped and record.supports_resume and not record.cancel_accepted
