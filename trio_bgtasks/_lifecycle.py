"""The one place that decides whether a status may change. Pure: no clock, no randomness, no I/O.

`apply` takes a record (or None), an event and the `Facts` that a store read in the same
transaction, and returns the next record or raises a `Refused`. Every store calls it, so they share
one state machine by construction:

======================  =================  =====================================================
event                   from               to
======================  =================  =====================================================
Registered              nothing            running, attempt 1
Finished                running            the outcome's status; cancelled if a cancel was accepted
CancelRequested         running            running, marked (the first mark stays)
CancelRequested         stopped            cancelled
CheckpointSaved, ...    running            running
QuestionAnswered        running            running
Orphaned                running            stopped; cancelled if a cancel was accepted
AttemptStarted          stopped            running, attempt + 1
======================  =================  =====================================================
"""

from __future__ import annotations

from typing import Any, TypeAlias

from ._errors import (
    ExecutorAlive,
    ExecutorFenced,
    IdempotencyKeyUsed,
    ParentCancelled,
    StaleAttempt,
    TaskExists,
    TaskNotResumable,
    TaskNotRunning,
    TaskNotStopped,
    UnknownTask,
)
from ._events import (
    NO_FACTS,
    AttemptStarted,
    AttemptWrite,
    CancelRequested,
    CheckpointSaved,
    Event,
    Facts,
    Finished,
    Orphaned,
    ProgressReported,
    QuestionAnswered,
    QuestionAsked,
    QuestionsWithdrawn,
    Registered,
    Request,
)
from ._questions import answered, asked, kept_at_end, kept_by_checkpoint, withdrawn
from ._records import (
    Failed,
    JournalEntry,
    JournalKind,
    Stopped,
    Success,
    TaskRecord,
    TaskResult,
    TaskStatus,
    evolved,
)

ORPHAN_ERROR = "No live executor found; marked stopped"
ANONYMOUS = "anonymous:"
"""How the private owner of a foreground run without a thread begins."""
_RUNNING = TaskStatus.RUNNING  # Python 3.11 takes ten times as long to look it up (measured)


def apply(
    task_id: str, record: TaskRecord | None, event: Event, facts: Facts = NO_FACTS
) -> TaskRecord:
    """Return the record after ``event``, or raise the `Refused` that names the current status.

    ``record`` is None when the store has none of this id. The result is the same object when the
    event changes nothing.
    """
    if isinstance(event, Registered):
        return _registered(task_id, record, event, facts)
    if record is None:
        raise UnknownTask(task_id)
    match event:
        case Finished():
            return _finished(record, event, facts)
        case CancelRequested() | QuestionAnswered():
            return _requested(record, event)
        case Orphaned():
            return _orphaned(record, event, facts)
        case AttemptStarted():
            return _attempt_started(record, event, facts)
        case _:
            return _attempt_write(record, event, facts)


def _registered(
    task_id: str, record: TaskRecord | None, event: Registered, facts: Facts
) -> TaskRecord:
    # The key first: a repeated start is answered by the task that it started, whatever its new id.
    if facts.key_used_by is not None:
        raise IdempotencyKeyUsed(facts.key_used_by, event.idempotency_key or "")
    if record is not None:
        raise TaskExists(task_id, record.status)
    if facts.id_used:
        raise TaskExists(task_id)
    if facts.executor_fenced:
        raise ExecutorFenced(task_id, event.executor_id, "unregistered")
    if facts.parent_cancelled:
        raise ParentCancelled(task_id, event.parent_task_id or "")
    return TaskRecord(  # by position: names would cost as much again (measured)
        task_id,
        event.owner_thread_id,
        event.task_type,
        event.description,
        _RUNNING,
        1,  # attempt
        event.at_ms,
        event.at_ms,
        event.background,
        event.supports_resume,
        event.parent_task_id,
        event.executor_id,
        event.args,
        event.metadata,
        event.idempotency_key,
    )


def _finished(record: TaskRecord, event: Finished, facts: Facts) -> TaskRecord:
    _check_writer(record, event.executor_id, event.attempt, facts)
    mark = record.cancel_requested_at_ms
    if mark is None:
        mark = event.cancel_requested_at_ms
    error, result, ref = _shown(event.outcome)
    status = TaskStatus.CANCELLED if mark is not None else event.outcome.status
    return evolved(  # as `_ended`, but in one step: this is the end of almost every attempt
        record,
        status=status,
        executor_id=None,
        completed_at_ms=max(event.at_ms, record.created_at_ms),
        updated_at_ms=max(event.at_ms, record.updated_at_ms),
        cancel_requested_at_ms=mark,
        error=error,
        result=result,
        result_ref=ref,
        progress=record.progress if event.progress is None else event.progress,
        output_bytes=_output_end(record, event.output_offset, event.output),
        questions=kept_at_end(record, status) if record.questions else (),
    )


def _shown(outcome: TaskResult) -> tuple[str | None, Any, Any]:
    match outcome:
        case Success():
            return None, outcome.value, outcome.ref
        case Failed():
            return outcome.error, outcome.value, None
        case Stopped():
            return outcome.reason, None, None
        case _:
            return None, None, None


def _requested(record: TaskRecord, event: Request) -> TaskRecord:
    if isinstance(event, CancelRequested):
        return _cancel_requested(record, event)
    return _question_answered(record, event)


def _cancel_requested(record: TaskRecord, event: CancelRequested) -> TaskRecord:
    if record.status.is_terminal:
        raise TaskNotRunning(record.task_id, record.status)
    marked = record.cancel_requested_at_ms
    mark = event.at_ms if marked is None else marked
    if record.status is TaskStatus.STOPPED:
        return _ended(record, TaskStatus.CANCELLED, event.at_ms, cancel_requested_at_ms=mark)
    if marked is not None:
        return record
    return evolved(
        record, cancel_requested_at_ms=mark, updated_at_ms=max(mark, record.updated_at_ms)
    )


def _orphaned(record: TaskRecord, event: Orphaned, facts: Facts) -> TaskRecord:
    _check_attempt(record, event.executor_id, event.attempt)
    if not facts.executor_fenced:
        raise ExecutorAlive(record.task_id, event.executor_id)
    cancelled = record.cancel_requested_at_ms is not None
    status = TaskStatus.CANCELLED if cancelled else TaskStatus.STOPPED
    return _ended(record, status, event.at_ms, error=ORPHAN_ERROR)


def _attempt_started(record: TaskRecord, event: AttemptStarted, facts: Facts) -> TaskRecord:
    if (record.owner_thread_id, record.task_type) != (event.owner_thread_id, event.task_type):
        raise UnknownTask(record.task_id)
    if record.status is not TaskStatus.STOPPED:
        raise TaskNotStopped(record.task_id, record.status)
    if record.attempt != event.expected_attempt:
        raise StaleAttempt(record.task_id, event.expected_attempt, record.attempt, record.status)
    if not record.supports_resume:
        raise TaskNotResumable(record.task_id, "its tool does not support it")
    if record.cancel_requested_at_ms is not None:
        raise TaskNotResumable(record.task_id, "its cancellation was accepted")
    if facts.executor_fenced:
        raise ExecutorFenced(record.task_id, event.executor_id, record.status)
    return evolved(
        record,
        status=_RUNNING,
        attempt=record.attempt + 1,
        executor_id=event.executor_id,
        args=event.args,
        background=event.background,
        error=None,
        result=None,
        result_ref=None,
        completed_at_ms=None,
        progress=None,
        updated_at_ms=max(event.at_ms, record.updated_at_ms),
    )


def _attempt_write(record: TaskRecord, event: AttemptWrite, facts: Facts) -> TaskRecord:
    _check_writer(record, event.executor_id, event.attempt, facts)
    now = max(event.at_ms, record.updated_at_ms)
    match event:
        case CheckpointSaved():
            questions = kept_by_checkpoint(record, event.delivered)
            return evolved(record, checkpoint=event.value, questions=questions, updated_at_ms=now)
        case ProgressReported():
            return evolved(record, progress=event.progress, updated_at_ms=now)
        case QuestionAsked():
            return _touched(record, asked(record, event), now)
        case QuestionsWithdrawn():
            return _touched(record, withdrawn(record, event), now)
        case _:
            end = _output_end(record, event.offset, event.text)
            return evolved(record, output_bytes=end, updated_at_ms=now)


def _question_answered(record: TaskRecord, event: QuestionAnswered) -> TaskRecord:
    if record.status is not _RUNNING:
        raise TaskNotRunning(record.task_id, record.status)
    return _touched(record, answered(record, event), max(event.at_ms, record.updated_at_ms))


def _touched(before: TaskRecord, after: TaskRecord, now: int) -> TaskRecord:
    return before if after is before else evolved(after, updated_at_ms=now)


def _output_end(record: TaskRecord, offset: int, text: str) -> int:
    return max(record.output_bytes, offset + len(text.encode())) if text else record.output_bytes


def _check_attempt(record: TaskRecord, executor_id: str, attempt: int) -> None:
    if record.status is not _RUNNING:
        raise TaskNotRunning(record.task_id, record.status)
    if record.attempt != attempt or record.executor_id != executor_id:
        raise StaleAttempt(record.task_id, attempt, record.attempt, record.status)


def _check_writer(record: TaskRecord, executor_id: str, attempt: int, facts: Facts) -> None:
    _check_attempt(record, executor_id, attempt)
    if facts.executor_fenced:
        raise ExecutorFenced(record.task_id, executor_id, record.status)


def _ended(record: TaskRecord, status: TaskStatus, at_ms: int, **changes: Any) -> TaskRecord:
    return evolved(
        record,
        status=status,
        executor_id=None,
        completed_at_ms=max(at_ms, record.created_at_ms),
        updated_at_ms=max(at_ms, record.updated_at_ms),
        questions=kept_at_end(record, status),
        **changes,
    )


# ---- what every store derives from a change ------------------------------------------------------

_KINDS: dict[type[object], JournalKind] = {
    Registered: "registered",
    Finished: "finished",
    CancelRequested: "cancel_requested",
    Orphaned: "orphaned",
    AttemptStarted: "attempt_started",
}
_ENDS: tuple[JournalKind, ...] = ("finished", "orphaned")

JournalLine: TypeAlias = tuple[int, JournalKind, int, TaskStatus, str | None, str | None]


def journal_line(before: TaskRecord | None, event: Event, after: TaskRecord) -> JournalLine | None:
    """Return the fields of the `JournalEntry` of a change; None as `journal_entry` does.

    For stores that are asked for the history seldom: an entry costs more than the rest of a line.
    """
    kind = _KINDS.get(type(event))
    if kind is None:
        return _question_line(before, event, after)
    if after is before:
        return None
    executor_id = None if isinstance(event, Request) else event.executor_id
    detail = after.error if kind in _ENDS else None
    return event.at_ms, kind, after.attempt, after.status, executor_id, detail


def _question_line(
    before: TaskRecord | None, event: Event, after: TaskRecord
) -> JournalLine | None:
    match event:
        case QuestionAnswered():
            kind: JournalKind = "question_declined" if event.declined else "question_answered"
            return event.at_ms, kind, after.attempt, after.status, None, event.question_id
        case QuestionAsked() if before is None or after.questions_asked > before.questions_asked:
            asked_id = after.questions[-1].question_id
            kind = "question_asked"
            return event.at_ms, kind, after.attempt, after.status, event.executor_id, asked_id
        case _:
            return None


def journal_entry(
    before: TaskRecord | None, event: Event, after: TaskRecord
) -> JournalEntry | None:
    """Return the history line of a change, None when there is none to write."""
    line = journal_line(before, event, after)
    return None if line is None else JournalEntry(*line)


def ends_attempt(event: Event, after: TaskRecord) -> bool:
    """True when a notice is to be written with the change: an attempt ended unannounced.

    A foreground run without a thread is never announced: nobody could take its notice.
    """
    ends = event.announce if isinstance(event, Finished) else isinstance(event, Orphaned)
    return ends and (after.background or not after.owner_thread_id.startswith(ANONYMOUS))
