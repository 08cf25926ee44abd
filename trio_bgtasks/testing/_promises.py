"""`check_history`: does a store say what tools and callers saw? One promise after the other."""

from __future__ import annotations

from collections import Counter
from typing import NoReturn

import attrs

from trio_bgtasks import (
    Cancelled,
    CorruptRecord,
    Failed,
    JournalEntry,
    Notice,
    Stopped,
    Success,
    TaskRecord,
    TaskStatus,
    TaskStore,
)

from ._history import History, Run, TaskHistory
from ._questioning import check_questions, left_open

_MANY = 1 << 20

_STATUS = {
    Success: TaskStatus.COMPLETED,
    Failed: TaskStatus.FAILED,
    Cancelled: TaskStatus.CANCELLED,
    Stopped: TaskStatus.STOPPED,
}


async def check_history(
    history: History, store: TaskStore, *, settled: bool = True, swept: bool = True
) -> None:
    """Check every promise that can be checked from what was seen and from what is stored now.

    To be called when nothing is under way, as often as one likes: what was stored is remembered in
    the history, so that a terminal record that changes between two calls is found.

    Args:
        history: What tools and callers saw.
        store: The shared store itself, not what a broken machine sees of it.
        settled: Had every end the time to reach the store? Not so while the store fails.
        swept: Was time enough for every orphan to be found? That takes a lease and a sweep, and
            somebody who sweeps.

    Raises:
        AssertionError: a promise was broken; the text names it, and the facts.
    """
    for task in history.tasks.values():
        _check_order(task)
        record = await _read(task, store)
        if task.damaged is not None:
            continue
        if record is None:
            _check_absent(task)
            continue
        check = _Check(
            task,
            record,
            await store.history(task.task_id),
            settled=settled,
            swept=swept,
        )
        check.everything()
        await _check_output(check, store)
        for machine in history.closed_machines:
            if record.executor_id in history.machines.get(machine, ()):
                check.broken(10, f"{machine} has closed, and its record is running")
    for machine in history.closed_machines:
        for run in history.runs(machine):
            if run.ended is None:
                _broken(10, f"{machine} has closed, and a body of it runs", run.task)
    await _check_notices(history, store, settled=settled)


def _broken(promise: int, what: str, task: TaskHistory) -> NoReturn:
    raise AssertionError(f"promise {promise}: {what}\n{task}")


async def _read(task: TaskHistory, store: TaskStore) -> TaskRecord | None:
    """Promise 12: asked for by its id, a record that was damaged is called corrupt; no other is."""
    try:
        record = await store.load(task.task_id)
    except CorruptRecord as error:
        if task.damaged is None:
            _broken(12, f"its record was not damaged, and is called so: {error}", task)
        return None
    if task.damaged is not None:
        _broken(12, f"its record was damaged, and is read as {record!r}", task)
    return record


# ---- from what was seen alone -------------------------------------------------------------------


def _check_order(task: TaskHistory) -> None:
    """Promises 1, 2, 7 and 11, as far as the order of what was seen tells."""
    before: list[Run] = []
    for run in task.runs:
        _check_beginning(task, run, before)
        before.append(run)
    for attempt, times in task.started.items():
        if times > 1:
            _broken(7, f"{times} callers were told that they started attempt {attempt}", task)
    for attempt, statuses in task.announced.items():
        if len(statuses) > 1:
            _broken(11, f"attempt {attempt} was announced {len(statuses)} times", task)


def _check_beginning(task: TaskHistory, run: Run, before: list[Run]) -> None:
    if any(other.attempt >= run.attempt for other in before):
        _broken(1, f"attempt {run.attempt} began when it, or a later one, had begun", task)
    if any(_overlap(other, run) for other in before):
        _broken(1, f"attempt {run.attempt} began while an earlier one ran", task)
    if run.is_resume is not (run.attempt > 1):
        _broken(2, f"attempt {run.attempt} was told that is_resume is {run.is_resume}", task)
    allowed = task.checkpoints(run.began)
    if run.checkpoint not in allowed:
        saved = " or ".join(map(repr, allowed))
        _broken(2, f"attempt {run.attempt} was given {run.checkpoint!r}; saved: {saved}", task)


def _overlap(earlier: Run, later: Run) -> bool:
    """Did both write at a time? Not if the earlier one was on a machine that was gone."""
    over = [t for t in (earlier.ended, earlier.lost, earlier.suspended) if t is not None]
    return not over or min(over) > later.began


def _check_absent(task: TaskHistory) -> None:
    if task.known and not task.collected:
        _broken(2, "its start was answered, or it ran, and there is no record of it", task)
    if task.live:
        _broken(6, "it runs, and its record is gone", task)


# ---- from what was seen and what is stored ------------------------------------------------------


@attrs.define
class _Check:
    """One task, its record and its journal."""

    task: TaskHistory
    record: TaskRecord
    journal: list[JournalEntry]
    settled: bool
    swept: bool

    def broken(self, promise: int, what: str) -> NoReturn:
        """Say which promise was broken, and what is stored."""
        lines = [f"promise {promise}: {what}", str(self.task)]
        record = self.record
        lines.append(
            f"  record: attempt {record.attempt} {record.status} of {record.executor_id},"
            f" cancel accepted: {record.cancel_accepted}, result {record.result!r},"
            f" error {record.error!r}, checkpoint {record.checkpoint!r}"
        )
        lines += [f"  journal: {e.kind}, attempt {e.attempt}, {e.status}" for e in self.journal]
        raise AssertionError("\n".join(lines))

    def everything(self) -> None:
        """Check the promises one by one."""
        self.is_whose_it_is()
        self.attempts_grow_by_one()
        for run in self.task.runs:
            self.run_is_told_truly(run)
        self.notices_tell_the_end()
        self.orphans_are_found()
        self.checkpoint_is_the_last_one()
        self.cancel_is_final()
        self.terminal_stays()
        self.told_truth()
        check_questions(self.task.questions, self.record, self.journal, self.broken)
        self.nobody_is_asked_in_vain()

    def is_whose_it_is(self) -> None:
        if self.record.owner_thread_id != self.task.owner:
            self.broken(8, f"the record says that it is {self.record.owner_thread_id}'s")

    def attempts_grow_by_one(self) -> None:
        starts = [e.attempt for e in self.journal if e.kind in ("registered", "attempt_started")]
        if starts != list(range(1, self.record.attempt + 1)):
            self.broken(3, f"the journal has starts of the attempts {starts}")
        ends = [e.attempt for e in self.journal if e.kind in ("finished", "orphaned")]
        expected = self.record.attempt - (self.record.status is TaskStatus.RUNNING)
        if ends != list(range(1, expected + 1)):
            self.broken(4, f"the journal has ends of the attempts {ends}")
        known = max([*self.task.started, *(run.attempt for run in self.task.runs)], default=0)
        if known > self.record.attempt:
            self.broken(2, f"attempt {known} was seen, but is not stored")

    def end_of(self, attempt: int) -> JournalEntry | None:
        """Return the line of the journal that says how an attempt ended."""
        for entry in self.journal:
            if entry.attempt == attempt and entry.kind in ("finished", "orphaned"):
                return entry
        return None

    def run_is_told_truly(self, run: Run) -> None:
        """Promises 2, 5, 6 and 9: the store says how an attempt stands, or how it ended."""
        end = self.end_of(run.attempt)
        if run.live:
            if end is not None:
                self.broken(6, f"attempt {run.attempt} runs, but was {end.kind} as {end.status}")
            return
        if end is None:
            if self.settled and run.undisturbed:
                self.broken(2, f"attempt {run.attempt} ended, and no end of it is stored")
            return
        if end.kind == "orphaned" and run.undisturbed:
            self.broken(6, f"attempt {run.attempt} was taken for an orphan on a living machine")
        if end.kind == "finished" and run.lost is not None:
            self.broken(4, f"attempt {run.attempt} crashed, and an end of it was stored")
        allowed = may_end_as(run) if end.kind == "finished" else may_be_orphaned_as(run)
        if end.status not in allowed:
            wanted = " or ".join(sorted(allowed)) or "running: nobody had a reason to cancel it"
            promise = 5 if allowed == {TaskStatus.CANCELLED} else 2 if run.causes else 9
            promise = promise if run.undisturbed else 4
            self.broken(promise, f"attempt {run.attempt} is {end.status}, should be {wanted}")
        if run.attempt == self.record.attempt and end.kind == "finished":
            self.result_is_kept(run)

    def result_is_kept(self, run: Run) -> None:
        match run.outcome:
            case Success(value) if self.record.result != value:
                self.broken(2, f"the result {value!r} is stored as {self.record.result!r}")
            case _:
                pass

    def notices_tell_the_end(self) -> None:
        for attempt, (status, *_) in self.task.announced.items():
            end = self.end_of(attempt)
            if end is None or end.status is not status:
                self.broken(11, f"attempt {attempt} was announced as {status}")

    def orphans_are_found(self) -> None:
        runs = [run for run in self.task.runs if run.attempt == self.record.attempt]
        gone = all(run.lost is not None or run.ended is not None for run in runs)
        if self.swept and gone and self.record.status is TaskStatus.RUNNING:
            self.broken(6, "nothing runs it any more, and nobody has found that")

    def checkpoint_is_the_last_one(self) -> None:
        allowed = self.task.checkpoints(_MANY)
        if self.record.checkpoint not in allowed:
            saved = " or ".join(map(repr, allowed))
            self.broken(2, f"the checkpoint is {self.record.checkpoint!r}, saved: {saved}")

    def cancel_is_final(self) -> None:
        task, record = self.task, self.record
        itself = any(isinstance(run.outcome, Cancelled) for run in task.runs)
        journal = [entry.kind for entry in self.journal]
        if "cancel_requested" in journal:
            after = journal[journal.index("cancel_requested") :]
            if "attempt_started" in after:
                self.broken(5, "it was resumed after its cancel had been accepted")
        asked = task.cancel_asked is not None or task.scope_cancelled is not None
        if record.cancel_accepted and not asked and not itself:
            self.broken(5, "nobody asked for its cancel")
        if task.cancel_accepted is None:
            return
        if not record.cancel_accepted:
            self.broken(5, "an accepted cancel is not stored")
        if record.status not in (TaskStatus.RUNNING, TaskStatus.CANCELLED):
            self.broken(5, f"its cancel was accepted, and it is {record.status}")

    def nobody_is_asked_in_vain(self) -> None:
        """Promise 13: what is open is waited for, but where a run ends or has no store."""
        for run in self.task.runs:
            sure = run.live and not (run.causes or run.questions.doubtful)
            if sure and run.attempt == self.record.attempt and not self.task.cancels:
                open_one = left_open(run.questions, self.record)
                if open_one is not None:
                    self.broken(13, open_one)

    def terminal_stays(self) -> None:
        before = self.task.ended_as
        if before is not None and before != self.record:
            self.broken(3, f"a terminal record changed; it was {before!r}")
        if self.record.status.is_terminal:
            self.task.ended_as = self.record

    def told_truth(self) -> None:
        for (attempt, status), summary in self.task.told.items():
            if attempt > self.record.attempt:
                self.broken(2, f"somebody was told of attempt {attempt}")
            if status.is_terminal and summary != self.record.summary():
                self.broken(2, f"somebody was told otherwise: {summary!r}")
            if (attempt, status) == (self.record.attempt, TaskStatus.STOPPED):
                after = self.record.status
                if after not in (TaskStatus.STOPPED, TaskStatus.CANCELLED):
                    self.broken(2, f"somebody was told that attempt {attempt} is stopped")


def may_end_as(run: Run) -> set[TaskStatus]:
    """Return what an attempt may have ended as, from what its tool and the callers know."""
    task = run.task
    accepted = task.cancel_accepted
    if accepted is not None and run.undisturbed and accepted < (run.ended or 0):
        return {TaskStatus.CANCELLED}
    own = TaskStatus.FAILED
    if run.outcome is not None:
        own = _STATUS[type(run.outcome)]
    scope = task.scope_cancelled is not None and own is not TaskStatus.COMPLETED
    if scope and run.undisturbed:
        return {TaskStatus.CANCELLED}
    allowed: set[TaskStatus] = {TaskStatus.CANCELLED} if task.cancel_asked or scope else set()
    if run.causes and run.cancelled and own is not TaskStatus.COMPLETED:
        allowed |= {TaskStatus.FAILED if run.causes == {"deadline"} else TaskStatus.STOPPED}
    elif not _passed_on(run):
        allowed |= {own}
    if not run.undisturbed:
        allowed |= {TaskStatus.STOPPED}
    return allowed


def may_be_orphaned_as(run: Run) -> set[TaskStatus]:
    """Return what others may have ended an attempt as, at a time that its body did not see."""
    asked = run.task.cancel_asked is not None
    return {TaskStatus.STOPPED, TaskStatus.CANCELLED} if asked else {TaskStatus.STOPPED}


def _passed_on(run: Run) -> bool:
    """Did the body pass a cancellation on?"""
    return run.raised is not None and not isinstance(run.raised, Exception)


async def _check_output(check: _Check, store: TaskStore) -> None:
    """Promise 2: what was said is in the log, in order; what was said last may be on its way."""
    page = await store.read_output(check.task.task_id, offset=0, limit=_MANY)
    if page.dropped_bytes or page.next_offset < page.total_bytes:
        return
    rest = page.text
    for run in check.task.runs:
        for word in run.said:
            if not rest.startswith(word):
                if check.settled and run.undisturbed and run.ended is not None:
                    check.broken(
                        2, f"attempt {run.attempt} said {word!r}, the log goes on {rest!r}"
                    )
                break
            rest = rest.removeprefix(word)
    if rest:
        check.broken(2, f"the log has what nobody said: {rest!r}")


async def _check_notices(history: History, store: TaskStore, *, settled: bool) -> None:
    """Promise 11: every end is announced once: its notice was taken, or still waits."""
    waiting: Counter[tuple[str, int]] = Counter()
    for owner in {task.owner for task in history.tasks.values()}:
        for notice in await store.notices(owner, limit=_MANY):
            _check_owner(history, owner, notice)
            waiting[notice.summary.task_id, notice.summary.attempt] += 1
    for task in history.tasks.values():
        for run in task.runs:
            key = task.task_id, run.attempt
            times = waiting[key] + len(task.announced.get(run.attempt, ()))
            _check_times(task, run, times, settled=settled)


def _check_times(task: TaskHistory, run: Run, times: int, *, settled: bool) -> None:
    attempt, answered = run.attempt, run.attempt in task.answered and run.undisturbed
    if run.live and times:
        _broken(11, f"attempt {attempt} was announced, and runs", task)
    if answered and times:
        _broken(11, f"attempt {attempt} is announced, although its caller was answered", task)
    if attempt in task.unsure:
        return
    if times > 1:
        _broken(11, f"attempt {attempt} was announced, and is to be once more", task)
    settled = settled and task.damaged is None
    if not times and settled and not answered and run.undisturbed and run.ended is not None:
        _broken(11, f"attempt {attempt} ended, and is never announced", task)


def _check_owner(history: History, owner: str, notice: Notice) -> None:
    task = history.tasks.get(notice.summary.task_id)
    if task is not None and task.owner != owner:
        _broken(8, f"{owner} is told of its end", task)
