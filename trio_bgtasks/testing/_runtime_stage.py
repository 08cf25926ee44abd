"""The stage of `RuntimeMachine`: what can be done, what must be answered, what must hold."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Literal

import trio
import trio.testing
from hypothesis.stateful import invariant

from trio_bgtasks import (
    CheckpointSaved,
    Event,
    Finished,
    ManagerClosed,
    Orphaned,
    ParentCancelled,
    QuestionAsked,
    Refused,
    StoreClosed,
    Success,
    TaskNotRunning,
    TaskRecord,
    TaskStatus,
    TaskStoreError,
    UnknownTask,
)

from ._history import Run, TaskHistory
from ._promises import check_history
from ._questioning import Answer
from ._runtime_cast import OWNERS, RuntimeCast, newest
from ._runtime_parts import CLOSED_S, Call, Host, Manners, Work
from ._simulated import virtual_clock_ms
from ._trio_machine import in_trio

SETTLED_S = 60.0  # a lease, a sweep, and some
POLLED_S = 3.0  # more than a poll


class RuntimeStage(RuntimeCast):
    """What can be done on the stage; the promises are checked after every step."""

    async def set_up(self) -> None:
        """Open the machines and give them something to do."""
        await super().set_up()
        here, there = self.host(0), self.host(1)
        await self.begin_task(here, "bob", None, "succeeds", resumable=True)
        await self.begin_task(here, "ann", None, "fails", resumable=False)
        await self.begin_task(here, "ann", None, "tidies up", resumable=True)
        await self.begin_task(there, "bob", 1, "tidies up", resumable=True)
        await self.call_task(there, "bob", 1, "passes on", resumable=True)
        for number, work in enumerate(self.talking):
            await self.world.speak(work)
            await self.save_in(work, number)

    # ---- what callers do, and what they must be answered -----------------------------------------

    async def one_of(self, what: Literal["running", "talking", "obeying"], number: int) -> Work:
        """Return one of those bodies; of a new task if there is none."""
        if not (self.talking if what == "talking" else self.obeying):
            resumable = number > 0
            await self.begin_task(self.host(0), "ann", None, "tidies up", resumable=resumable)
        those = {"running": self.running, "talking": self.talking, "obeying": self.obeying}[what]
        assert those, "promise 9: what was started just now has been cancelled by nobody"
        return newest(those, number)

    def new_task(self, parent: int | None, manners: Manners) -> tuple[str, str | None]:
        """Return the id of a new task, and its parent: one before it, or the next one: a cycle."""
        number = self.next_number()
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
        request = self.world.request(
            task_id, owner, parent_task_id=above, supports_resume=resumable
        )
        async with self.refused_below_a_cancel(task_id, above):
            summary = await host.manager.start(request, self.world.body(host))
            answer = summary.task_id, summary.status
            assert answer == (task_id, TaskStatus.RUNNING), f"promise 2: {task_id}: {summary!r}"
            await self.begun(self.history.tasks[task_id], 1)

    async def spawn_task(
        self,
        host: Host,
        owner: str,
        parent: int | None,
        manners: Manners,
        scope: trio.CancelScope | None,
    ) -> None:
        """Spawn a task in a scope of the caller's, or in none; it never begins in a cancelled one.

        Refused only under an accepted cancel.
        """
        task_id, above = self.new_task(parent, manners)
        async with self.refused_below_a_cancel(task_id, above):
            answer = await self.world.spawn(host, task_id, owner, parent=above, scope=scope)
            assert answer == task_id, f"promise 2: {task_id} was spawned, answered as {answer!r}"
            task = self.history.tasks[task_id]
            stored = await self.world.record(task)
            assert stored is not None, f"promise 2: it was spawned, and is not stored\n{task}"
            assert not stored.supports_resume, f"promise 2: it was spawned, is resumable\n{task}"
            if task.scope_cancelled is None:
                await self.begun(task, 1)
            else:
                await self.is_over(task)

    async def is_over(self, task: TaskHistory) -> None:
        """What was spawned in a cancelled scope does not run, and is cancelled."""
        await trio.testing.wait_all_tasks_blocked()
        assert not task.runs, f"promise 5: its scope was cancelled, and it began\n{task}"
        record = await self.world.record(task)
        status = None if record is None else record.status
        cancelled = status is TaskStatus.CANCELLED
        assert cancelled, f"promise 5: its scope was cancelled, and it is {status}\n{task}"

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

    @asynccontextmanager
    async def refused_below_a_cancel(
        self, task_id: str, above: str | None
    ) -> AsyncGenerator[None, None]:
        """Expect of a start that it is refused if its parent is under an accepted cancel."""
        cancelled = await self.is_cancelled(above)
        try:
            yield
        except ParentCancelled:
            assert cancelled, f"promise 5: {task_id} was refused under {above}, not cancelled"
        else:
            assert not cancelled, f"promise 5: {task_id} was started under {above}, cancelled"

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
                asked = work.scope.cancel_called
                assert asked, f"promise 5: it is below, and was not cancelled\n{work.run.task}"

    async def end_owner(self, host: Host, owner: str) -> None:
        """Close an owner; afterwards every end is stored."""
        runs = [work.run for work in self.running if work.host is host]
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
        assert work.execution is not None
        try:
            await work.execution.save_checkpoint(value)
        except Refused as error:
            raise AssertionError(
                f"promise 6: it runs, and may not write: {error}\n{work.run.task}"
            ) from error

    async def pass_time_by(self, seconds: float) -> None:
        """An accepted cancel ends what runs within a poll and a clean-up; who waits is told."""
        marked = [work.run for work in self.running if work.run.task.cancel_accepted is not None]
        owed = {} if seconds < POLLED_S else {work: answers_owed(work) for work in self.asking}
        await trio.sleep(seconds)
        await trio.testing.wait_all_tasks_blocked()
        for work, before in owed.items():
            left = before & answers_owed(work) if work.run.live else set[Answer]()
            late = ", ".join(sorted(answer.question_id for answer in left))
            assert not late, (
                f"promise 13: {late} was answered, and who asked waits\n{work.run.task}"
            )
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
        """Promise 4: what an attempt had on its way when it was over is refused.

        The last one of what is running is not over, unless its machine crashed: then it is to be
        found by others, once its lease has run out, and writes nothing from now on.
        """
        for task in self.tasks:
            record = await self.world.record(task)
            running = record is not None and record.status is TaskStatus.RUNNING
            for run in task.runs:
                is_last = running and run is task.runs[-1]
                if not is_last or run.lost is not None:
                    await self.write_late(run, orphaned=not is_last)

    async def write_late(self, run: Run, *, orphaned: bool) -> None:
        """Write as an attempt that is over would, under every id of its machine."""
        now, task_id = virtual_clock_ms(), run.task.task_id
        for executor_id in self.history.machines[run.machine]:
            late_events: list[Event] = [
                QuestionAsked(now, executor_id, run.attempt, "late", {}),
                CheckpointSaved(now, executor_id, run.attempt, "late"),
                Finished(now, executor_id, run.attempt, Success("late")),
            ]
            if orphaned:
                late_events.append(Orphaned(now, executor_id, run.attempt))
            for event in late_events:
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


def answers_owed(work: Work) -> set[Answer]:
    """Return the accepted answers that the calls of a body have to be given, which wait."""
    questions, run = work.run.task.questions, work.run.questions
    return {answer for ask in run.waiting for answer in questions.owed(run, ask.words)}
