"""Lifecycles with one bug each: what the machine and the search have to find."""

from __future__ import annotations

import attrs

from trio_bgtasks import (
    AttemptStarted,
    CancelRequested,
    Event,
    Facts,
    Finished,
    Orphaned,
    Refused,
    Registered,
    Success,
    TaskNotRunning,
    TaskNotStopped,
    TaskRecord,
    TaskStatus,
    apply,
)


def late_end_is_taken(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Late end is taken."""
    if isinstance(what, Finished) and record is not None:
        what = attrs.evolve(what, attempt=record.attempt)
    return apply(task_id, record, what, facts)


def fence_is_ignored(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Fence is ignored."""
    fenced = isinstance(what, Orphaned) and facts.executor_fenced
    return apply(task_id, record, what, attrs.evolve(facts, executor_fenced=fenced))


def live_task_is_reaped(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Live task is reaped."""
    fenced = isinstance(what, Orphaned) or facts.executor_fenced
    return apply(task_id, record, what, attrs.evolve(facts, executor_fenced=fenced))


def cancel_is_lost_in_a_crash(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Cancel is lost in a crash."""
    if isinstance(what, Orphaned) and record is not None:
        record = attrs.evolve(record, cancel_requested_at_ms=None)
    return apply(task_id, record, what, facts)


def late_success_beats_a_cancel(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Late success beats a cancel."""
    after = apply(task_id, record, what, facts)
    if isinstance(what, Finished) and isinstance(what.outcome, Success):
        return attrs.evolve(after, status=TaskStatus.COMPLETED)
    return after


def ended_task_is_resumed(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Ended task is resumed."""
    if isinstance(what, AttemptStarted) and record is not None and record.has_ended:
        record = attrs.evolve(record, status=TaskStatus.STOPPED, executor_id=None)
    return apply(task_id, record, what, facts)


def resume_keeps_the_number(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Resume keeps the number."""
    after = apply(task_id, record, what, facts)
    if isinstance(what, AttemptStarted):
        return attrs.evolve(after, attempt=after.attempt - 1)
    return after


def collected_id_is_used_again(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Collected id is used again."""
    return apply(task_id, record, what, attrs.evolve(facts, id_used=False))


def key_starts_twice(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Key starts twice."""
    return apply(task_id, record, what, attrs.evolve(facts, key_used_by=None))


def child_of_a_cancelled_parent_starts(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Child of a cancelled parent starts."""
    return apply(task_id, record, what, attrs.evolve(facts, parent_cancelled=False))


def refused_resume_changes_the_record(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Refused resume changes the record."""
    if isinstance(what, AttemptStarted) and record is not None:
        record.args.update(what.args)
    return apply(task_id, record, what, facts)


def late_cancel_is_accepted(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Late cancel is accepted."""
    if isinstance(what, CancelRequested) and record is not None and record.status.is_terminal:
        return record
    return apply(task_id, record, what, facts)


def late_cancel_tells_nothing(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Late cancel tells nothing."""
    try:
        return apply(task_id, record, what, facts)
    except TaskNotRunning:
        if isinstance(what, CancelRequested):
            raise TaskNotRunning(task_id, "stopped") from None
        raise


def stopped_task_cannot_be_cancelled(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Stopped task cannot be cancelled."""
    if isinstance(what, CancelRequested) and record is not None and not record.executor_id:
        raise TaskNotRunning(task_id, record.status)
    return apply(task_id, record, what, facts)


def marked_orphan_is_lost(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Marked orphan is lost."""
    if isinstance(what, Orphaned) and record is not None and record.cancel_accepted:
        raise TaskNotRunning(task_id, record.status)
    return apply(task_id, record, what, facts)


def loser_is_told_a_wrong_status(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Loser is told a wrong status."""
    try:
        return apply(task_id, record, what, facts)
    except TaskNotStopped:
        raise TaskNotStopped(task_id, "failed") from None


def executor_stays_named(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Executor stays named."""
    after = apply(task_id, record, what, facts)
    if isinstance(what, Finished) and isinstance(what.outcome, Success):
        return attrs.evolve(after, executor_id=what.executor_id)
    return after


def unknown_task_is_started(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Unknown task is started."""
    try:
        return apply(task_id, record, what, facts)
    except Refused:
        if record is None and isinstance(what, Registered):
            return apply(task_id, None, what)
        raise


def progress_survives_a_resume(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Progress survives a resume."""
    after = apply(task_id, record, what, facts)
    if isinstance(what, AttemptStarted) and record is not None:
        return attrs.evolve(after, progress=record.progress)
    return after


def failure_is_a_stop(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Failure is a stop."""
    after = apply(task_id, record, what, facts)
    return attrs.evolve(after, status=TaskStatus.STOPPED) if after.status == "failed" else after


def resume_is_not_compared(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Resume is not compared."""
    if isinstance(what, AttemptStarted) and record is not None:
        what = attrs.evolve(what, expected_attempt=record.attempt)
    return apply(task_id, record, what, facts)


def running_task_is_resumed(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Running task is resumed."""
    if isinstance(what, AttemptStarted) and record is not None and record.executor_id:
        record = attrs.evolve(record, status=TaskStatus.STOPPED, executor_id=None)
    return apply(task_id, record, what, facts)


def checkpoint_is_lost_in_a_resume(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    """Checkpoint is lost in a resume."""
    after = apply(task_id, record, what, facts)
    return attrs.evolve(after, checkpoint=None) if isinstance(what, AttemptStarted) else after
