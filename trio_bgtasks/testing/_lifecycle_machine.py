"""The lifecycle under events in any order, against the model by hand and the promises.

Tasks, executors, owners and keys are few, so that everything collides. Facts are read from the
records, as a store would read them. The promises look at the log of what `apply` answered, never at
the model.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import attrs
import hypothesis.strategies as st
from hypothesis import event as tell_hypothesis
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from trio_bgtasks import (
    AttemptStarted,
    Cancelled,
    CancelRequested,
    CheckpointSaved,
    Event,
    Facts,
    Failed,
    Finished,
    Orphaned,
    OutputAppended,
    Progress,
    ProgressReported,
    Refused,
    Registered,
    Stopped,
    Success,
    TaskRecord,
    TaskResult,
    TaskStatus,
    apply,
)

from ._lifecycle_log import LifecycleStep, check_promises, shown
from ._model import STATES, TABLE, changed_fields, expected

Apply = Callable[[str, TaskRecord | None, Event, Facts], TaskRecord]

_tasks = st.sampled_from([0, 0, 1])  # counted from the newest
_times = st.integers(0, 50)
# What is wrong with an event, one thing at a time; mostly nothing is.
_RIGHT = [None] * 6
_wrong_write = st.sampled_from([*_RIGHT, "dead executor", "other executor", "earlier", "later"])
_wrong_start = st.sampled_from([*_RIGHT, "dead executor", "owner", "type", "earlier", "later"])
_outcomes = st.sampled_from(
    [Success(1), Success(None), Failed("no", 2), Cancelled(), Stopped(), Stopped("shutdown")]
)
# How a running task gets to another state of the table.
_WAYS = {
    "running, cancel accepted": ["CancelRequested"],
    "stopped": ["Finished(Stopped)"],
    "stopped, not resumable": ["Finished(Stopped)"],
    "completed": ["Finished(Success)"],
    "failed": ["Finished(Failed)"],
    "cancelled": ["Finished(Cancelled)"],
}


class LifecycleMachine(RuleBasedStateMachine):
    """Finds where an ``apply`` differs from the lifecycle table, or breaks a promise.

    ``apply`` is the library's own: assign yours in a subclass, as a ``staticmethod``, when your
    store decides transitions itself, and run ``YourMachine.TestCase`` or Hypothesis'
    ``run_state_machine_as_test``. Every answer is compared with a second lifecycle, written by hand
    from the table; each promise that concerns records is an invariant beside that. ``log`` has
    every step.

    It is about one record at a time: what a store does around ``apply`` it does not see.

    Raises:
        AssertionError: a promise is broken, or an answer is not the table's; says which, and what
            was seen.
    """

    apply: Apply = staticmethod(apply)

    def __init__(self) -> None:
        super().__init__()
        self.log: list[LifecycleStep] = []
        self.records: dict[str, TaskRecord] = {}
        self._told: dict[str, TaskRecord] = {}  # copies of the records, as they were answered
        self._ids: list[str] = []
        self._live = ["ex_0", "ex_1"]
        self._dead = ["ex_never"]
        self._used: set[str] = set()
        self._keys: dict[tuple[str, str], str] = {}

    # ---- rules ------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        """There is one task to begin with."""
        self.register(None, None, None, None, 0)

    @rule(
        old=st.none() | st.none() | _tasks,
        wrong=_wrong_start,
        parent=st.none() | _tasks,
        key=st.sampled_from([None, None, "k1", "k2"]),
        at=_times,
    )
    def register(
        self, old: int | None, wrong: str | None, parent: int | None, key: str | None, at: int
    ) -> None:
        """Start a task, or one whose id, key, executor or parent forbids it."""
        parent_id = None if parent is None else self._task(parent)
        if old is None:
            self._ids.append(f"bg_{len(self._ids)}")
        event = Registered(
            at,
            self._dead[-1] if wrong == "dead executor" else self._live[at % 2],
            "bob" if wrong == "owner" else "ann",
            "agent_run" if wrong == "type" else "shell",
            "d",
            supports_resume=wrong != "later",
            parent_task_id=parent_id,
            idempotency_key=key,
        )
        self.step(self._task(old or 0), event)

    @rule(task=_tasks, wrong=_wrong_write, offset=st.integers(0, 20), at=_times)
    def write(self, task: int, wrong: str | None, offset: int, at: int) -> None:
        """An attempt saves a checkpoint, reports progress or writes output."""
        run = (at, *self._writer(task, wrong))
        writes: list[Event] = [
            CheckpointSaved(*run, {"at": at}),
            ProgressReported(*run, Progress(at)),
            OutputAppended(*run, offset, "é" * (offset % 4)),
        ]
        self.step(self._task(task), writes[offset % 3])

    @rule(
        task=_tasks,
        wrong=_wrong_write,
        outcome=_outcomes,
        mark=st.sampled_from([None, None, None, 7]),
        at=_times,
    )
    def finish(
        self, task: int, wrong: str | None, outcome: TaskResult, mark: int | None, at: int
    ) -> None:
        """An attempt ends, or one that is not the record's says so."""
        run = self._writer(task, wrong)
        event = Finished(at, *run, outcome, mark, output_offset=3, output="end")
        self.step(self._task(task), event)

    @rule(task=_tasks, at=_times)
    def cancel(self, task: int, at: int) -> None:
        """Somebody asks for the end."""
        self.step(self._task(task), CancelRequested(at))

    @rule(which=st.integers(0, 1))
    def fence(self, which: int) -> None:
        """An executor dies; a fresh one takes its place."""
        self._dead.append(self._live[which])
        self._live[which] = f"ex_{len(self._dead)}"

    @rule(task=_tasks, wrong=_wrong_write, at=_times)
    def orphan(self, task: int, wrong: str | None, at: int) -> None:
        """Somebody claims that the executor is dead, rightly or not."""
        self.step(self._task(task), Orphaned(at, *self._writer(task, wrong)))

    @rule(task=_tasks, wrong=_wrong_start, at=_times)
    def resume(self, task: int, wrong: str | None, at: int) -> None:
        """Start the next attempt."""
        record = self.records.get(self._task(task))
        _, attempt = self._writer(task, wrong)
        event = AttemptStarted(
            at,
            self._dead[-1] if wrong == "dead executor" else self._live[at % 2],
            "carl" if wrong == "owner" or record is None else record.owner_thread_id,
            "other" if wrong == "type" or record is None else record.task_type,
            attempt,
            {"at": at},
        )
        self.step(self._task(task), event)

    @rule(
        task=_tasks,
        cancelled=st.booleans(),
        outcome=st.none() | st.just(Stopped()) | _outcomes,
        wrong=_wrong_start,
        at=_times,
    )
    def end_and_resume(
        self, *, task: int, cancelled: bool, outcome: TaskResult | None, wrong: str | None, at: int
    ) -> None:
        """The way through which most mistakes are found: blind draws seldom go all of it."""
        record = self.records.get(self._task(task))
        self.write(task, None, at, at)
        if cancelled:
            self.cancel(task, at)
        if outcome is not None:
            self.finish(task, None, outcome, None, at)
        elif record is not None and record.executor_id in self._live:
            self.fence(self._live.index(record.executor_id))
            self.orphan(task, None, at)
        self.resume(task, wrong, at)

    @rule(
        state=st.sampled_from(STATES),
        events=st.lists(st.sampled_from(list(TABLE)), min_size=1, unique=True),
        wrong=st.sampled_from([*_RIGHT, "life", "other executor", "later"]),
        at=_times,
    )
    def arrive(self, state: str, events: list[str], wrong: str | None, at: int) -> None:
        """Each of these events reaches a new task that is in this state of the table."""
        for name in events:
            self._ids.append(f"bg_{len(self._ids)}")
            if state != "nothing":
                again = state != "stopped, not resumable"
                start = Registered(at, self._live[0], "ann", "shell", "d", supports_resume=again)
                self.step(self._ids[-1], start)
            for way in _WAYS.get(state, ()):
                self.step(self._ids[-1], self._row(way, None, at))
            record = self.records.get(self._ids[-1])
            dead = (name == "Orphaned") is not (wrong == "life")
            if dead and record is not None and record.executor_id in self._live:
                self.fence(self._live.index(record.executor_id))
            self.step(self._ids[-1], self._row(name, wrong, at))

    @rule(task=_tasks, again=st.booleans())
    def collect(self, *, task: int, again: bool) -> None:
        """An ended task is forgotten; its id stays used."""
        record = self.records.get(self._task(task))
        if record is not None and record.has_ended:
            del self.records[record.task_id]
            self._used.add(record.task_id)
            if again:
                self.register(task, None, None, None, 0)

    # ---- what the draws stand for -----------------------------------------------------------

    def _task(self, recent: int) -> str:
        return self._ids[-1 - recent % len(self._ids)]

    def _writer(self, task: int, wrong: str | None) -> tuple[str, int]:
        """Return who writes and as which attempt: those of the record, or wrong ones."""
        record = self.records.get(self._task(task))
        attempt = 1 if record is None else record.attempt
        attempt += {"earlier": -1, "later": 1}.get(wrong or "", 0)
        if wrong == "dead executor":
            return self._dead[-1], attempt
        current = None if record is None else record.executor_id
        other = self._live[1] if current == self._live[0] else self._live[0]
        return (other if wrong == "other executor" else current or other), attempt

    def _row(self, name: str, wrong: str | None, at: int) -> Event:
        """Return an event of this row of the table, for the newest task."""
        run = (at, *self._writer(0, wrong))
        starter = self._dead[-1] if wrong == "life" else self._live[1]
        events: dict[str, Event] = {
            "Registered": Registered(at, starter, "ann", "shell", "d"),
            "Finished(Success)": Finished(*run, Success(at)),
            "Finished(Failed)": Finished(*run, Failed("no")),
            "Finished(Cancelled)": Finished(*run, Cancelled()),
            "Finished(Stopped)": Finished(*run, Stopped("shutdown")),
            "Finished with a mark": Finished(*run, Success(at), cancel_requested_at_ms=7),
            "CancelRequested": CancelRequested(at),
            "CheckpointSaved": CheckpointSaved(*run, at),
            "ProgressReported": ProgressReported(*run, Progress(at)),
            "OutputAppended": OutputAppended(*run, 3, "text"),
            "Orphaned": Orphaned(*run),
            "AttemptStarted": AttemptStarted(at, starter, "ann", "shell", run[2], {}),
        }
        return events[name]

    # ---- one step ---------------------------------------------------------------------------

    def step(self, task_id: str, event: Event) -> None:
        """Tell ``apply`` one event, with the facts that a store would have read; log the answer."""
        before, facts = self.records.get(task_id), self._facts(task_id, event)
        after, refusal = self._asked(task_id, before, event, facts)
        dead, collected = frozenset(self._dead), frozenset(self._used)
        step = LifecycleStep(task_id, event, facts, before, after, refusal, dead, collected)
        tell_hypothesis(f"{type(event).__name__}: {'refused' if after is None else 'accepted'}")
        self.log.append(step)
        if after is not None:
            self.records[task_id], self._told[task_id] = after, deepcopy(after)
            if isinstance(event, Registered) and event.idempotency_key is not None:
                self._keys.setdefault((event.owner_thread_id, event.idempotency_key), task_id)
        self.check_against_table(step)

    def _asked(
        self, task_id: str, before: TaskRecord | None, event: Event, facts: Facts
    ) -> tuple[TaskRecord | None, Refused | None]:
        try:
            return self.apply(task_id, before, event, facts), None
        except Refused as refusal:
            return None, refusal

    def _facts(self, task_id: str, event: Event) -> Facts:
        fenced = getattr(event, "executor_id", None) in self._dead
        if not isinstance(event, Registered):
            return Facts(executor_fenced=fenced)
        parent = self.records.get(event.parent_task_id or "")
        return Facts(
            executor_fenced=fenced,
            id_used=task_id in self._used,
            key_used_by=self._keys.get((event.owner_thread_id, event.idempotency_key or "")),
            parent_cancelled=parent is not None
            and (parent.cancel_requested_at_ms is not None or parent.status == "cancelled"),
        )

    def check_against_table(self, step: LifecycleStep) -> None:
        """Compare one answer with the lifecycle that was written by hand, field by field."""
        want = expected(step.before, step.event, step.facts)
        said = f"the table of the lifecycle says {want!r}; {step}"
        if step.after is None:
            assert step.answer in want, said
            return
        assert isinstance(want, str), said
        changes: dict[str, Any] = changed_fields(step.before, step.event, want)
        model = step.after if step.before is None else step.before
        for name, value in attrs.asdict(attrs.evolve(model, **changes), recurse=False).items():
            seen = getattr(step.after, name)
            assert seen == value, f"{name} is {seen!r}, not {value!r}; {said}"

    # ---- the promises -----------------------------------------------------------------------

    @invariant()
    def promises(self) -> None:
        """Every promise that concerns records holds."""
        self._the_executor_is_named_exactly_while_it_runs()
        self._promise_2_an_answer_stays_true()
        self._promise_6_orphans_are_found()
        check_promises(self.log)

    def _promise_2_an_answer_stays_true(self) -> None:
        """What was answered is what the record says, until the next event is accepted."""
        for task_id, record in self.records.items():
            told = self._told[task_id]
            assert record == told, (
                f"promise 2 (a status answer is durable truth) is broken: "
                f"the record that was answered has changed by itself: {told} -> {record}"
            )

    def _promise_6_orphans_are_found(self) -> None:
        """The task of a dead executor can be ended; that of a live one cannot."""
        for record in self.records.values():
            if record.executor_id is None:
                continue
            dead = record.executor_id in self._dead
            event = Orphaned(record.updated_at_ms, record.executor_id, record.attempt)
            facts = Facts(executor_fenced=dead)
            found, refusal = self._asked(record.task_id, record, event, facts)
            ended = found is not None and found.status is not TaskStatus.RUNNING
            assert ended is dead, (
                f"promise 6 (an orphan is found, a live execution is never called one) is broken: "
                f"{record.executor_id} is {'dead' if dead else 'alive'}; task {record.task_id}: "
                f"{shown(record)} -> Orphaned -> {shown(found) if found else repr(refusal)}"
            )

    def _the_executor_is_named_exactly_while_it_runs(self) -> None:
        """Whoever looks for orphans finds every running record, and no other."""
        for record in self.records.values():
            running = record.status is TaskStatus.RUNNING
            named = record.executor_id is not None, record.completed_at_ms is None
            assert named == (running, running), (
                f"executor_id is set, and completed_at_ms is not, exactly while running: {record}"
            )
