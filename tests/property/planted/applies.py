"""Lifecycles with one bug each: what `LifecycleMachine` and the search have to find."""

from __future__ import annotations

import attrs

from trio_bgtasks import (
    AttemptStarted,
    CancelRequested,
    CheckpointSaved,
    Event,
    Facts,
    Finished,
    Orphaned,
    QuestionAnswered,
    QuestionAsked,
    QuestionsWithdrawn,
    Refused,
    Registered,
    Success,
    TaskNotRunning,
    TaskNotStopped,
    TaskRecord,
    TaskStatus,
    apply,
)
from trio_bgtasks.testing import LifecycleMachine, LifecycleStep
from trio_bgtasks.testing._lifecycle_stage import Apply


def late_end_is_taken(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """An end is taken for that of the attempt that runs, whichever it names."""
    if isinstance(what, Finished) and record is not None:
        what = attrs.evolve(what, attempt=record.attempt)
    return apply(task_id, record, what, facts)


def fence_is_ignored(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Who is fenced may still write."""
    fenced = isinstance(what, Orphaned) and facts.executor_fenced
    return apply(task_id, record, what, attrs.evolve(facts, executor_fenced=fenced))


def live_task_is_reaped(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """An orphan is ended without a look whether its executor is fenced."""
    fenced = isinstance(what, Orphaned) or facts.executor_fenced
    return apply(task_id, record, what, attrs.evolve(facts, executor_fenced=fenced))


def cancel_is_lost_in_a_crash(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """An orphan is stopped although its cancel was accepted."""
    if isinstance(what, Orphaned) and record is not None:
        record = attrs.evolve(record, cancel_requested_at_ms=None)
    return apply(task_id, record, what, facts)


def late_success_beats_a_cancel(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """A success completes the task although its cancel was accepted."""
    after = apply(task_id, record, what, facts)
    if isinstance(what, Finished) and isinstance(what.outcome, Success):
        return attrs.evolve(after, status=TaskStatus.COMPLETED)
    return after


def ended_task_is_resumed(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """What has ended is resumed as if it were stopped."""
    if isinstance(what, AttemptStarted) and record is not None and record.has_ended:
        record = attrs.evolve(record, status=TaskStatus.STOPPED, executor_id=None)
    return apply(task_id, record, what, facts)


def resume_keeps_the_number(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """A resume does not count: the attempt keeps its number."""
    after = apply(task_id, record, what, facts)
    if isinstance(what, AttemptStarted):
        return attrs.evolve(after, attempt=after.attempt - 1)
    return after


def collected_id_is_used_again(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """The id of a task that was collected starts another one."""
    return apply(task_id, record, what, attrs.evolve(facts, id_used=False))


def key_starts_twice(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """The same idempotency key starts a second task."""
    return apply(task_id, record, what, attrs.evolve(facts, key_used_by=None))


def child_of_a_cancelled_parent_starts(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Below an accepted cancel a task is started."""
    return apply(task_id, record, what, attrs.evolve(facts, parent_cancelled=False))


def refused_resume_changes_the_record(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """A resume merges its arguments before it is refused."""
    if isinstance(what, AttemptStarted) and record is not None:
        record.args.update(what.args)
    return apply(task_id, record, what, facts)


def late_cancel_is_accepted(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """A cancel of what has ended is accepted."""
    if isinstance(what, CancelRequested) and record is not None and record.status.is_terminal:
        return record
    return apply(task_id, record, what, facts)


def late_cancel_tells_nothing(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """A cancel that came too late is told that the task is stopped."""
    try:
        return apply(task_id, record, what, facts)
    except TaskNotRunning:
        if isinstance(what, CancelRequested):
            raise TaskNotRunning(task_id, "stopped") from None
        raise


def stopped_task_cannot_be_cancelled(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """A cancel of what is stopped is refused."""
    if isinstance(what, CancelRequested) and record is not None and not record.executor_id:
        raise TaskNotRunning(task_id, record.status)
    return apply(task_id, record, what, facts)


def marked_orphan_is_lost(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """An orphan whose cancel was accepted cannot be ended."""
    if isinstance(what, Orphaned) and record is not None and record.cancel_accepted:
        raise TaskNotRunning(task_id, record.status)
    return apply(task_id, record, what, facts)


def loser_is_told_a_wrong_status(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Who loses a resume is told that the task has failed."""
    try:
        return apply(task_id, record, what, facts)
    except TaskNotStopped:
        raise TaskNotStopped(task_id, "failed") from None


def executor_stays_named(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """A success leaves its executor in the record."""
    after = apply(task_id, record, what, facts)
    if isinstance(what, Finished) and isinstance(what.outcome, Success):
        return attrs.evolve(after, executor_id=what.executor_id)
    return after


def unknown_task_is_started(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """What refuses a start is forgotten when it is tried."""
    try:
        return apply(task_id, record, what, facts)
    except Refused:
        if record is None and isinstance(what, Registered):
            return apply(task_id, None, what)
        raise


def progress_survives_a_resume(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """A resume keeps the progress of the attempt before."""
    after = apply(task_id, record, what, facts)
    if isinstance(what, AttemptStarted) and record is not None:
        return attrs.evolve(after, progress=record.progress)
    return after


def failure_is_a_stop(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """A failed attempt stops its task."""
    after = apply(task_id, record, what, facts)
    return attrs.evolve(after, status=TaskStatus.STOPPED) if after.status == "failed" else after


def resume_is_not_compared(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """A resume follows whatever attempt is the last, not the one it names."""
    if isinstance(what, AttemptStarted) and record is not None:
        what = attrs.evolve(what, expected_attempt=record.attempt)
    return apply(task_id, record, what, facts)


def running_task_is_resumed(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """What runs is resumed."""
    if isinstance(what, AttemptStarted) and record is not None and record.executor_id:
        record = attrs.evolve(record, status=TaskStatus.STOPPED, executor_id=None)
    return apply(task_id, record, what, facts)


def checkpoint_is_lost_in_a_resume(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """A resume begins without the checkpoint."""
    after = apply(task_id, record, what, facts)
    return attrs.evolve(after, checkpoint=None) if isinstance(what, AttemptStarted) else after


def answer_is_taken_twice(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Whether a question is open is not looked at: the last answer wins."""
    if isinstance(what, QuestionAnswered) and record is not None:
        opened = tuple(attrs.evolve(q, state="open", answer=None) for q in record.questions)
        after = apply(task_id, attrs.evolve(record, questions=opened), what, facts)
        new = after.question(what.question_id)
        questions = tuple(
            new if new is not None and q.question_id == what.question_id else q
            for q in record.questions
        )
        return attrs.evolve(after, questions=questions)
    return apply(task_id, record, what, facts)


def cancelled_task_is_answered(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """A question is answered although the cancel of its task was accepted."""
    if isinstance(what, QuestionAnswered) and record is not None:
        mark = record.cancel_requested_at_ms
        after = apply(task_id, attrs.evolve(record, cancel_requested_at_ms=None), what, facts)
        return attrs.evolve(after, cancel_requested_at_ms=mark)
    return apply(task_id, record, what, facts)


def crash_takes_the_answers(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """An orphan loses what was answered."""
    after = apply(task_id, record, what, facts)
    return attrs.evolve(after, questions=()) if isinstance(what, Orphaned) else after


def question_id_is_used_again(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """A question that was withdrawn is not counted."""
    after = apply(task_id, record, what, facts)
    if isinstance(what, QuestionsWithdrawn):
        last = max((int(q.question_id[1:]) for q in after.questions), default=0)
        return attrs.evolve(after, questions_asked=last)
    return after


def used_answers_are_given_again(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """A checkpoint leaves the answers that the body had before it."""
    if isinstance(what, CheckpointSaved):
        what = attrs.evolve(what, delivered=())
    return apply(task_id, record, what, facts)


def question_is_compared_as_python_does(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Whoever asks for 1 is given what was answered to true."""
    if isinstance(what, QuestionAsked) and record is not None:
        for question in record.questions:
            if question.message == what.message and question.schema == what.schema:
                what = attrs.evolve(what, schema=question.schema)
                break
    return apply(task_id, record, what, facts)


def answered_is_asked_again(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Nobody looks whether what is asked was answered before."""
    if isinstance(what, QuestionAsked) and record is not None:
        had = [q.question_id for q in record.questions if q.state != "open"]
        what = attrs.evolve(what, delivered=(*what.delivered, *had))
    return apply(task_id, record, what, facts)


def withdrawal_is_not_stored(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """What nobody waits for stays open."""
    after = apply(task_id, record, what, facts)
    if isinstance(what, QuestionsWithdrawn) and record is not None:
        return record
    return after


PROMISES: list[tuple[Apply, str]] = [
    (late_end_is_taken, "promises 1 and 4"),
    (fence_is_ignored, "promise 4"),
    (live_task_is_reaped, "promise 6"),
    (cancel_is_lost_in_a_crash, "promise 5"),
    (late_success_beats_a_cancel, "promise 5"),
    (ended_task_is_resumed, "promise 3"),
    (resume_keeps_the_number, "promise 3|promises 1 and 4"),
    (collected_id_is_used_again, "promise 3"),
    (key_starts_twice, "promise 3"),
    (child_of_a_cancelled_parent_starts, "promise 5"),
    (refused_resume_changes_the_record, "promise 2"),
    (late_cancel_is_accepted, "promise 3"),
    (late_cancel_tells_nothing, "promise 5"),
    (stopped_task_cannot_be_cancelled, "promise 5"),
    (marked_orphan_is_lost, "promise 6"),
    (loser_is_told_a_wrong_status, "promise 7"),
    (executor_stays_named, "executor_id is set"),
    (running_task_is_resumed, "promise 1"),
    (answer_is_taken_twice, "promise 13"),
    (cancelled_task_is_answered, "promise 13"),
    (crash_takes_the_answers, "promise 13"),
    (question_id_is_used_again, "promise 13"),
    (used_answers_are_given_again, "promise 13"),
    (answered_is_asked_again, "promise 13"),
]
TABLE: list[tuple[Apply, str]] = [
    (unknown_task_is_started, "the table of the lifecycle says"),
    (progress_survives_a_resume, "progress is Progress.*, not None; the table"),
    (failure_is_a_stop, "status is .*; the table"),
    (checkpoint_is_lost_in_a_resume, "checkpoint is None, not .*; the table"),
    (resume_is_not_compared, "the table of the lifecycle says .*StaleAttempt"),
    (question_is_compared_as_python_does, "^questions is |^the table of the lifecycle"),
    (withdrawal_is_not_stored, "(questions|updated_at_ms) is .*; the table"),
]


def judged_by_the_table(bug: Apply) -> type[LifecycleMachine]:
    """Return the machine of an `apply`, as whoever wrote that would write it."""

    class Planted(LifecycleMachine):
        apply = staticmethod(bug)

    return Planted


def judged_by_the_promises(bug: Apply) -> type[LifecycleMachine]:
    """Return a machine that leaves what the table says to the promises."""

    class Planted(judged_by_the_table(bug)):  # type: ignore[misc]
        def check_against_table(self, step: LifecycleStep) -> None:
            """Leave it to the promises."""

    return Planted
