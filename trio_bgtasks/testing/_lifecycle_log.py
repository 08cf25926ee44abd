"""What the events of some tasks were answered, and the promises that can be read off that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import attrs

from trio_bgtasks import (
    AttemptStarted,
    CancelRequested,
    CheckpointSaved,
    Event,
    Facts,
    Orphaned,
    Question,
    QuestionAnswered,
    QuestionAsked,
    QuestionsWithdrawn,
    Refused,
    Registered,
    TaskNotRunning,
    TaskNotStopped,
    TaskRecord,
    TaskStatus,
)

from ._model import event_name, state_name
from ._model_questions import same_words


@attrs.frozen
class LifecycleStep:
    """One event and its answer: ``after`` when it was accepted, ``refusal`` when not.

    ``dead`` and ``collected`` are the executors and task ids that were so at that moment.
    """

    task_id: str
    event: Event
    facts: Facts
    before: TaskRecord | None
    after: TaskRecord | None
    refusal: Refused | None
    dead: frozenset[str]
    collected: frozenset[str]

    @property
    def executor_id(self) -> str | None:
        """The executor that the event is from or about; a cancel has none."""
        return getattr(self.event, "executor_id", None)

    @property
    def answer(self) -> str:
        """The status that it led to, or the name of the refusal."""
        if self.after is not None:
            return self.after.status.value
        return type(self.refusal).__name__

    def __str__(self) -> str:
        attempt = getattr(self.event, "attempt", getattr(self.event, "expected_attempt", None))
        named = "" if attempt is None else f" for attempt {attempt}"
        if self.executor_id is not None:
            named += f" under {self.executor_id}"
            named += " (dead)" if self.executor_id in self.dead else ""
        answer = f"refused: {self.refusal!r}" if self.after is None else shown(self.after)
        event = event_name(self.event)
        return f"task {self.task_id}: {shown(self.before)} -> {event}{named} -> {answer}"


Log: TypeAlias = Sequence[LifecycleStep]


def check_promises(log: Log) -> None:
    """Raise AssertionError if a step broke a promise; the text says which, and what was seen."""
    promise_1_one_attempt_writes(log)
    promise_3_terminal_records_never_change(log)
    promise_3_attempts_grow_by_one(log)
    promise_3_ids_and_keys_are_used_once(log)
    promise_4_a_fenced_executor_changes_nothing(log)
    promise_5_an_accepted_cancel_is_final(log)
    promise_5_a_cancel_that_lost_says_so(log)
    promise_7_one_resume_wins(log)
    promise_13_nobody_is_asked_twice(log)
    promise_13_one_answer_is_accepted(log)
    promise_13_an_answer_is_kept(log)


def promise_1_one_attempt_writes(log: Log) -> None:
    """Writes are taken from the attempt that was started last, until its end."""
    latest: dict[str, int] = {}
    writers: dict[str, tuple[str, int]] = {}
    for step, after in _accepted(log):
        running = writers.get(step.task_id)
        match step.event:
            case Registered() | AttemptStarted():
                attempt = latest.get(step.task_id, 0)
                assert running is None, (
                    f"promise 1 (exactly one attempt may write) is broken: "
                    f"attempt {attempt} has not ended; {step}"
                )
                latest[step.task_id] = attempt + 1
                writers[step.task_id] = (step.event.executor_id, attempt + 1)
            case CancelRequested() | QuestionAnswered():
                pass
            case _:
                assert running == (step.event.executor_id, step.event.attempt), (
                    f"promises 1 and 4 (a late write is refused) are broken: "
                    f"{running or 'nothing'} was running; {step}"
                )
        if after.status is not TaskStatus.RUNNING:
            writers.pop(step.task_id, None)


def promise_3_terminal_records_never_change(log: Log) -> None:
    """No event is accepted by a terminal record."""
    for step, _ in _accepted(log):
        ended = step.before is not None and step.before.status.is_terminal
        assert not ended, f"promise 3 (terminal records never change) is broken: {step}"


def promise_3_attempts_grow_by_one(log: Log) -> None:
    """The number of the attempt is the number of starts."""
    current: dict[str, int] = {}
    for step, after in _accepted(log):
        starts = isinstance(step.event, Registered | AttemptStarted)
        count = current[step.task_id] = current.get(step.task_id, 0) + starts
        assert after.attempt == count, (
            f"promise 3 (attempts only grow, by exactly 1) is broken: "
            f"attempt {count} was expected; {step}"
        )


def promise_3_ids_and_keys_are_used_once(log: Log) -> None:
    """No two starts that were accepted share an id, or an owner's key."""
    seen: set[tuple[str, ...]] = set()
    for step, _ in _accepted(log):
        if not isinstance(step.event, Registered):
            continue
        used: list[tuple[str, ...]] = [(step.task_id,)]
        if step.event.idempotency_key is not None:
            used.append((step.event.owner_thread_id, step.event.idempotency_key))
        for name in used:
            assert name not in seen, (
                f"promise 3 (ids and idempotency keys are never used twice) is broken: "
                f"{'/'.join(name)} was used before; {step}"
            )
            seen.add(name)


def promise_4_a_fenced_executor_changes_nothing(log: Log) -> None:
    """Nothing that a dead executor tells is accepted."""
    for step, _ in _accepted(log):
        dead = step.executor_id in step.dead and not isinstance(step.event, Orphaned)
        assert not dead, f"promise 4 (a fenced executor changes nothing) is broken: {step}"


def promise_5_an_accepted_cancel_is_final(log: Log) -> None:
    """After it, the task is running or cancelled, is not resumed, and gets no children."""
    broken = "promise 5 (an accepted cancel is final) is broken"
    cancelled: set[str] = set()
    for step, after in _accepted(log):
        if isinstance(step.event, Registered):
            parent = step.event.parent_task_id
            assert parent not in cancelled - step.collected, f"{broken} for {parent}; {step}"
        if isinstance(step.event, CancelRequested) or after.status is TaskStatus.CANCELLED:
            cancelled.add(step.task_id)
        if step.task_id in cancelled:
            resumed = isinstance(step.event, AttemptStarted)
            final = after.status in (TaskStatus.RUNNING, TaskStatus.CANCELLED)
            assert final, f"{broken}: {step}"
            assert not resumed, f"{broken}: {step}"


def promise_5_a_cancel_that_lost_says_so(log: Log) -> None:
    """A cancel is refused only by a task that has ended, and names how."""
    for step in log:
        if isinstance(step.event, CancelRequested) and step.before and step.refusal:
            says = step.refusal.status if isinstance(step.refusal, TaskNotRunning) else None
            ended = step.before.status if step.before.status.is_terminal else "not ended"
            assert says == ended, (
                f"promise 5 (a cancel that lost the race says what the task ended as) "
                f"is broken: {step}"
            )


def promise_7_one_resume_wins(log: Log) -> None:
    """Of the resumes that follow one attempt, one is accepted; others are told of it."""
    won: set[tuple[str, int]] = set()
    for step in log:
        if not isinstance(step.event, AttemptStarted):
            continue
        follows = (step.task_id, step.event.expected_attempt)
        if step.after is not None:
            assert follows not in won, (
                f"promise 7 (exactly one of several resumes wins) is broken: {step}"
            )
            won.add(follows)
        elif isinstance(step.refusal, TaskNotStopped):
            current = "nothing" if step.before is None else step.before.status
            assert step.refusal.status == current, (
                f"promise 7 (the other resumes get the running status) is broken: {step}"
            )


_ONCE = "promise 13 (an accepted answer is final and is given once)"


def promise_13_nobody_is_asked_twice(log: Log) -> None:
    """Ids are never used again; whoever asks has one question, a new one only if there is none."""
    used: dict[str, set[str]] = {}
    for step, after in _accepted(log):
        ids = used.setdefault(step.task_id, set())
        before = () if step.before is None else step.before.questions
        new = [q for q in after.questions if q.question_id not in {b.question_id for b in before}]
        again = ids & {question.question_id for question in new}
        assert not again, f"{_ONCE} is broken: {', '.join(again)} was used before; {step}"
        ids |= {question.question_id for question in new}
        if isinstance(step.event, QuestionAsked):
            held = {*step.event.waiting, *step.event.delivered}
            had = [q for q in before if same_words(q, step.event) and q.question_id not in held]
            has = [q for q in (*had[:1], *new) if q in after.questions]
            assert len(has) == 1, f"{_ONCE} is broken: {len(has)} questions for one call; {step}"
        else:
            assert not new, f"{_ONCE} is broken: nobody asked {new}; {step}"


def promise_13_one_answer_is_accepted(log: Log) -> None:
    """Of an open question, of a running task without an accepted cancel; no other one is."""
    for step in log:
        if isinstance(step.event, QuestionAnswered) and step.before is not None:
            there = step.before.question(step.event.question_id)
            marked = step.before.cancel_requested_at_ms is not None
            runs = step.before.status is TaskStatus.RUNNING and not marked
            may = runs and there is not None and there.state == "open"
            assert (step.after is not None) is may, f"{_ONCE} is broken: {there} before; {step}"


def promise_13_an_answer_is_kept(log: Log) -> None:
    """A question changes by its answer only, and goes when nobody needs it any more."""
    for step, after in _accepted(log):
        for question in () if step.before is None else step.before.questions:
            now = after.question(question.question_id)
            broken = f"{_ONCE} is broken: {question} became {now}; {step}"
            if now is None:
                assert _may_go(question, step.event, after), broken
            elif _answers(step.event, question):
                assert now == _answered(question, step.event), broken
            else:
                assert now == question, broken
                assert not _has_to_go(question, step.event, after), broken


def _answers(event: Event, question: Question) -> bool:
    return isinstance(event, QuestionAnswered) and event.question_id == question.question_id


def _answered(question: Question, event: Event) -> Question:
    assert isinstance(event, QuestionAnswered)
    if event.declined:
        return attrs.evolve(question, state="declined", answer=event.answer)
    return attrs.evolve(question, state="answered", answer=event.answer)


def _has_to_go(question: Question, event: Event, after: TaskRecord) -> bool:
    """Is it the checkpoint's, or the end's?"""
    if after.status is not TaskStatus.RUNNING:
        stays = after.status is TaskStatus.STOPPED and after.supports_resume
        return question.state == "open" or not stays
    return isinstance(event, CheckpointSaved) and question.question_id in event.delivered


def _may_go(question: Question, event: Event, after: TaskRecord) -> bool:
    """May it be gone, because nobody waits for it, or will ask for it?"""
    name = question.question_id
    match event:
        case QuestionsWithdrawn():
            return question.state == "open" and name not in event.waiting
        case QuestionAsked() if question.state == "open":
            return name not in event.waiting
        case QuestionAsked():
            return name in event.delivered and not after.supports_resume
        case _:
            return _has_to_go(question, event, after)


def _accepted(log: Log) -> Iterator[tuple[LifecycleStep, TaskRecord]]:
    """Yield the accepted steps, and what each led to."""
    for step in log:
        if step.after is not None:
            yield step, step.after


def shown(record: TaskRecord | None) -> str:
    if record is None:
        return "nothing"
    executor = "" if record.executor_id is None else f" under {record.executor_id}"
    return f"{state_name(record)}, attempt {record.attempt}{executor}"
