"""The lifecycle written a second time, by hand, from the promises; it never asks the library's own.

`TABLE` says what each event does in each state when all its guards hold, `GUARDS` what a broken
guard is refused with, `changed_fields` what an accepted event writes. Together they are the model
that the library's `apply` is compared with: state by state, and step by step.
"""

from __future__ import annotations

from typing import Any

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
    ProgressReported,
    QuestionAnswered,
    QuestionAsked,
    QuestionsWithdrawn,
    Registered,
    Stopped,
    Success,
    TaskRecord,
    TaskStatus,
)

from ._model_questions import questions_after, wrong_question

STATES = (
    "nothing",
    "running",
    "running, cancel accepted",
    "stopped",
    "stopped, not resumable",
    "completed",
    "failed",
    "cancelled",
)


def row(*cells: str) -> dict[str, str]:
    """Spread six cells over the eight states: the three terminal ones are alike."""
    return dict(zip(STATES, (*cells, cells[5], cells[5]), strict=True))


# Statuses and errors, by short names.
running, completed, failed, cancelled, stopped = (status.value for status in TaskStatus)
exists, late, early = "TaskExists", "TaskNotRunning", "TaskNotStopped"
unknown, never, closed = "UnknownTask", "TaskNotResumable", "QuestionClosed"

# fmt: off
TABLE: dict[str, dict[str, str]] = {
    #                           nothing    running    + cancel   stopped    for good   ended
    "Registered":           row(running,   exists,    exists,    exists,    exists,    exists),
    "Finished(Success)":    row(unknown,   completed, cancelled, late,      late,      late),
    "Finished(Failed)":     row(unknown,   failed,    cancelled, late,      late,      late),
    "Finished(Cancelled)":  row(unknown,   cancelled, cancelled, late,      late,      late),
    "Finished(Stopped)":    row(unknown,   stopped,   cancelled, late,      late,      late),
    "Finished with a mark": row(unknown,   cancelled, cancelled, late,      late,      late),
    "CancelRequested":      row(unknown,   running,   running,   cancelled, cancelled, late),
    "CheckpointSaved":      row(unknown,   running,   running,   late,      late,      late),
    "ProgressReported":     row(unknown,   running,   running,   late,      late,      late),
    "OutputAppended":       row(unknown,   running,   running,   late,      late,      late),
    "QuestionAsked":        row(unknown,   running,   running,   late,      late,      late),
    "QuestionsWithdrawn":   row(unknown,   running,   running,   late,      late,      late),
    "QuestionAnswered":     row(unknown,   running,   closed,    late,      late,      late),
    "Orphaned":             row(unknown,   stopped,   cancelled, late,      late,      late),
    "AttemptStarted":       row(unknown,   early,     early,     running,   never,     early),
}
# fmt: on

_WRITE = {
    "another attempt": "StaleAttempt",
    "another executor": "StaleAttempt",
    "executor fenced": "ExecutorFenced",
}
GUARDS: dict[str, dict[str, str]] = {
    "Registered": {
        "id used before": "TaskExists",
        "key used before": "IdempotencyKeyUsed",
        "executor fenced": "ExecutorFenced",
        "parent's cancel accepted": "ParentCancelled",
    },
    "Finished(Success)": _WRITE,
    "Finished(Failed)": _WRITE,
    "Finished(Cancelled)": _WRITE,
    "Finished(Stopped)": _WRITE,
    "Finished with a mark": _WRITE,
    "CancelRequested": {},
    "CheckpointSaved": _WRITE,
    "ProgressReported": _WRITE,
    "OutputAppended": _WRITE,
    "QuestionAsked": _WRITE,
    "QuestionsWithdrawn": _WRITE,
    "QuestionAnswered": {
        "no such question": "QuestionClosed",
        "question answered before": "QuestionClosed",
    },
    "Orphaned": {
        "another attempt": "StaleAttempt",
        "another executor": "StaleAttempt",
        "executor not fenced": "ExecutorAlive",
    },
    "AttemptStarted": {
        "another owner": "UnknownTask",
        "another task type": "UnknownTask",
        "another attempt": "StaleAttempt",
        "executor fenced": "ExecutorFenced",
    },
}

# Where several things are wrong at once, these are said before all others: whose task it is must
# not show through another refusal, and a repeated start must lead to the task that it started.
FIRST = ("another owner", "another task type", "key used before")


def state_name(record: TaskRecord | None) -> str:
    """Return which of `STATES` a record is in."""
    if record is None:
        return "nothing"
    if record.status is TaskStatus.RUNNING and record.cancel_requested_at_ms is not None:
        return "running, cancel accepted"
    if record.status is TaskStatus.STOPPED and not record.supports_resume:
        return "stopped, not resumable"
    return record.status.value


def event_name(event: Event) -> str:
    """Return which row of `TABLE` an event is in."""
    if not isinstance(event, Finished):
        return type(event).__name__
    if event.cancel_requested_at_ms is not None:
        return "Finished with a mark"
    return f"Finished({type(event.outcome).__name__})"


def broken_guards(record: TaskRecord | None, event: Event, facts: Facts) -> set[str]:
    """Return which conditions do not hold; whether they matter to the event is not asked here."""
    broken = set[str]() if record is None else _strangers(record, event)
    broken.add("executor fenced" if facts.executor_fenced else "executor not fenced")
    if facts.id_used:
        broken.add("id used before")
    if facts.key_used_by is not None:
        broken.add("key used before")
    if facts.parent_cancelled:
        broken.add("parent's cancel accepted")
    return broken


def _strangers(record: TaskRecord, event: Event) -> set[str]:
    """Return what of an event is not the record's."""
    broken: set[str] = set()
    if isinstance(event, AttemptStarted):
        attempt: int | None = event.expected_attempt
    else:
        attempt = getattr(event, "attempt", None)
    if attempt != record.attempt:
        broken.add("another attempt")
    if getattr(event, "executor_id", None) != record.executor_id:
        broken.add("another executor")
    if getattr(event, "owner_thread_id", None) != record.owner_thread_id:
        broken.add("another owner")
    if getattr(event, "task_type", None) != record.task_type:
        broken.add("another task type")
    if isinstance(event, QuestionAnswered):
        broken |= wrong_question(record, event)
    return broken


def expected(record: TaskRecord | None, event: Event, facts: Facts) -> str | set[str]:
    """Return the status that an event leads to, or the names of the errors that may refuse it."""
    name = event_name(event)
    answer = TABLE[name][state_name(record)]
    guards = GUARDS[name]
    wrong = {guard: guards[guard] for guard in broken_guards(record, event, facts) & set(guards)}
    for guard in FIRST:
        if guard in wrong:
            return {wrong[guard]}
    if isinstance(event, QuestionAnswered) and answer == late:
        return {late}
    refusals = set(wrong.values())
    if answer not in set(TaskStatus):
        refusals.add(answer)
    return refusals or answer


def changed_fields(record: TaskRecord | None, event: Event, status: str) -> dict[str, Any]:
    """Return what an accepted event writes into the record; every other field stays as it is."""
    before_ms = -(1 << 63) if record is None else record.updated_at_ms
    changes: dict[str, Any] = {"status": status, "updated_at_ms": max(before_ms, event.at_ms)}
    match event:
        case Registered():
            for field in (
                "executor_id",
                "owner_thread_id",
                "task_type",
                "description",
                "background",
                "supports_resume",
                "parent_task_id",
                "args",
                "metadata",
                "idempotency_key",
            ):
                changes[field] = getattr(event, field)
            changes |= {"attempt": 1, "created_at_ms": event.at_ms}
            return changes
        case AttemptStarted():
            cleared = ("error", "result", "result_ref", "completed_at_ms", "progress")
            changes |= dict.fromkeys(cleared)
            changes["executor_id"] = event.executor_id
            changes["args"] = event.args
            changes["background"] = event.background
            changes["attempt"] = event.expected_attempt + 1
            return changes
        case CheckpointSaved():
            changes["checkpoint"] = event.value
            changes |= questions_after(record, event)
        case ProgressReported():
            changes["progress"] = event.progress
        case _:
            changes |= _changed_otherwise(record, event)
    if status != "running":
        assert record is not None
        changes["executor_id"] = None
        changes["completed_at_ms"] = max(event.at_ms, record.created_at_ms)
    return changes


def _changed_otherwise(record: TaskRecord | None, event: Event) -> dict[str, Any]:
    assert record is not None
    match event:
        case CancelRequested():
            if record.cancel_requested_at_ms is None:
                kept = () if record.status is TaskStatus.STOPPED else record.questions
                return {"cancel_requested_at_ms": event.at_ms, "questions": kept}
            return {"updated_at_ms": record.updated_at_ms}  # the first mark wins: nothing changes
        case Orphaned():
            changes = {"error": "No live executor found; marked stopped"}
            return changes | questions_after(record, event)
        case QuestionAsked() | QuestionsWithdrawn() | QuestionAnswered():
            return _changed_by_questions(record, event)
        case OutputAppended():
            return {"output_bytes": _end(record, event.offset, event.text)}
        case Finished():
            return _changed_by_an_end(record, event)
        case _:  # pragma: no cover - `changed_fields` deals with all others
            raise AssertionError(event)


def _changed_by_questions(record: TaskRecord, event: Event) -> dict[str, Any]:
    changes = questions_after(record, event)
    if changes["questions"] == record.questions:
        return {"updated_at_ms": record.updated_at_ms}
    return changes


def _changed_by_an_end(record: TaskRecord, event: Finished) -> dict[str, Any]:
    changes: dict[str, Any] = {"error": None, "result": None, "result_ref": None}
    changes |= questions_after(record, event)
    changes["output_bytes"] = _end(record, event.output_offset, event.output)
    if event.progress is not None:
        changes["progress"] = event.progress
    if record.cancel_requested_at_ms is None:
        changes["cancel_requested_at_ms"] = event.cancel_requested_at_ms
    match event.outcome:
        case Success(value, ref):
            changes |= {"result": value, "result_ref": ref}
        case Failed(error, value):
            changes |= {"error": error, "result": value}
        case Stopped(reason):
            changes |= {"error": reason}
        case Cancelled():  # pragma: no branch (it is one of these)
            pass
    return changes


def _end(record: TaskRecord, offset: int, text: str) -> int:
    """Return how long the log is when ``text`` stands at ``offset``; no text says nothing."""
    if not text:
        return record.output_bytes
    return max(record.output_bytes, offset + len(text.encode("utf-8")))
