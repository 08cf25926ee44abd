"""The lifecycle under events in any order, against the model by hand and the promises.

Tasks, executors, owners and keys are few, so that everything collides. Facts are read from the
records, as a store would read them. The promises look at the log of what `apply` answered, never at
the model.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import initialize, rule

from trio_bgtasks import (
    AttemptStarted,
    Cancelled,
    CancelRequested,
    CheckpointSaved,
    Event,
    Failed,
    Finished,
    Orphaned,
    OutputAppended,
    Progress,
    ProgressReported,
    QuestionAnswered,
    QuestionAsked,
    QuestionsWithdrawn,
    Registered,
    Stopped,
    Success,
    TaskResult,
)

from ._lifecycle_stage import LifecycleStage
from ._model import STATES, TABLE

_tasks = st.sampled_from([0, 0, 1])  # counted from the newest
_times = st.integers(0, 50)
# What is wrong with an event, one thing at a time; mostly nothing is.
_RIGHT = [None] * 6
_wrong_write = st.sampled_from([*_RIGHT, "dead executor", "other executor", "earlier", "later"])
_wrong_start = st.sampled_from([*_RIGHT, "dead executor", "owner", "type", "earlier", "later"])
_outcomes = st.sampled_from(
    [Success(1), Success(None), Failed("no", 2), Cancelled(), Stopped(), Stopped("shutdown")]
)
# Words and schema: 1 is not true, so these are three questions.
_words: st.SearchStrategy[tuple[str, dict[str, Any]]] = st.sampled_from(
    [("Sure?", {"const": 1}), ("Sure?", {"const": 1}), ("Sure?", {"const": True}), ("Why?", {})]
)
# Which questions other calls of the attempt hold: they wait for the open ones, have the others.
_held = st.sampled_from(["all", "all", "the open ones", "the answered ones", "none"])
# How a running task gets to another state of the table.
_WAYS = {
    "running, cancel accepted": ["CancelRequested"],
    "stopped": ["Finished(Stopped)"],
    "stopped, not resumable": ["Finished(Stopped)"],
    "completed": ["Finished(Success)"],
    "failed": ["Finished(Failed)"],
    "cancelled": ["Finished(Cancelled)"],
}


class LifecycleMachine(LifecycleStage):
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

    @rule(task=_tasks, wrong=_wrong_write, offset=st.integers(0, 20), held=_held, at=_times)
    def write(self, task: int, wrong: str | None, offset: int, held: str, at: int) -> None:
        """An attempt saves a checkpoint, reports progress or writes output."""
        run = (at, *self._writer(task, wrong))
        writes: list[Event] = [
            CheckpointSaved(*run, {"at": at}, self._held(task, held)[1]),
            ProgressReported(*run, Progress(at)),
            OutputAppended(*run, offset, "é" * (offset % 4)),
        ]
        self.step(self._task(task), writes[offset % 3])

    @rule(task=_tasks, wrong=_wrong_write, words=_words, held=_held, at=_times)
    def ask(
        self, task: int, wrong: str | None, words: tuple[str, dict[str, Any]], held: str, at: int
    ) -> None:
        """An attempt asks, perhaps what was asked before."""
        run = self._writer(task, wrong)
        self.step(self._task(task), QuestionAsked(at, *run, *words, *self._held(task, held)))

    @rule(task=_tasks, wrong=_wrong_write, held=_held, at=_times)
    def withdraw(self, task: int, wrong: str | None, held: str, at: int) -> None:
        """A call of an attempt does not wait any more."""
        waiting, _ = self._held(task, held)
        event = QuestionsWithdrawn(at, *self._writer(task, wrong), waiting)
        self.step(self._task(task), event)

    @rule(task=_tasks, recent=st.sampled_from([0, 0, 1, 2, -1]), declined=st.booleans(), at=_times)
    def reply(self, task: int, recent: int, *, declined: bool, at: int) -> None:
        """Somebody answers a question, or declines to; there may be no such question."""
        record = self.records.get(self._task(task))
        number = (0 if record is None else record.questions_asked) - recent
        answer = None if declined else at
        self.step(self._task(task), QuestionAnswered(at, f"q{number}", answer, declined))

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
        self.write(task, None, at, "none", at)
        if cancelled:
            self.cancel(task, at)
        self._end(task, outcome, at)
        self.resume(task, wrong, at)

    @rule(
        task=_tasks,
        words=_words,
        often=st.integers(1, 2),
        then=st.sampled_from(["answered", "declined", "answered twice", "withdrawn", "open"]),
        saved=st.booleans(),
        ends=st.sampled_from(["crash", "stop", "no"]),
        at=_times,
    )
    def ask_again(
        self,
        *,
        task: int,
        words: tuple[str, dict[str, Any]],
        often: int,
        then: str,
        saved: bool,
        ends: str,
        at: int,
    ) -> None:
        """The same is asked once more: after an answer, perhaps a checkpoint, and a resume."""
        for _ in range(often):
            self.ask(task, None, words, "all", at)
        if then == "withdrawn":
            self.withdraw(task, None, "none", at)
        elif then != "open":
            self.reply(task, often - 1, declined=then == "declined", at=at)
        if then == "answered twice":
            self.reply(task, often - 1, declined=False, at=at + 1)
        if saved:
            self.write(task, None, 0, "all", at)
        if ends != "no":
            self._end(task, Stopped() if ends == "stop" else None, at)
            self.resume(task, None, at)
        self.ask(task, None, words, "the open ones", at)

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
                if name == "QuestionAnswered":
                    self.step(self._ids[-1], self._row("QuestionAsked", None, at))
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

    def _held(self, task: int, held: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the questions for which calls wait, and those of which they have the answer."""
        record = self.records.get(self._task(task))
        there = () if record is None else record.questions
        waiting = tuple(q.question_id for q in there if q.state == "open")
        delivered = tuple(q.question_id for q in there if q.state != "open")
        return (
            waiting if held in ("all", "the open ones") else (),
            delivered if held in ("all", "the answered ones") else (),
        )

    def _end(self, task: int, outcome: TaskResult | None, at: int) -> None:
        """End the attempt: by an outcome, or by the death of its executor."""
        record = self.records.get(self._task(task))
        if outcome is not None:
            self.finish(task, None, outcome, None, at)
        elif record is not None and record.executor_id in self._live:
            self.fence(self._live.index(record.executor_id))
            self.orphan(task, None, at)

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
            "QuestionAsked": QuestionAsked(*run, "Sure?", {}),
            "QuestionsWithdrawn": QuestionsWithdrawn(*run),
            "QuestionAnswered": QuestionAnswered(at, "q2" if wrong == "later" else "q1", at),
            "Orphaned": Orphaned(*run),
            "AttemptStarted": AttemptStarted(at, starter, "ann", "shell", run[2], {}),
        }
        return events[name]
