"""The lifecycle under events in any order, and the bugs that its machine has to find."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from trio_bgtasks._errors import Refused, TaskNotRunning, TaskNotStopped
from trio_bgtasks._lifecycle import (
    AttemptStarted,
    CancelRequested,
    Event,
    Facts,
    Finished,
    Orphaned,
    Registered,
    apply,
)
from trio_bgtasks._records import Success, TaskRecord, TaskStatus
from trio_bgtasks.testing import LifecycleMachine, LifecycleStep
from trio_bgtasks.testing._lifecycle_machine import Apply
from trio_bgtasks.testing._model import GUARDS, STATES, TABLE, broken_guards, event_name, state_name


def test_every_transition_is_visited_and_is_the_tables() -> None:
    """No promise is broken, and every cell and every guard of the table was among what was tried."""
    cells: set[tuple[str, str, str]] = set()
    guards: set[tuple[str, str]] = set()

    class Visiting(LifecycleMachine):
        def teardown(self) -> None:
            for step in self.log:
                name = event_name(step.event)
                cells.add((name, state_name(step.before), step.answer))
                relevant = broken_guards(step.before, step.event, step.facts) & set(GUARDS[name])
                if len(relevant) == 1 and step.answer == GUARDS[name][min(relevant)]:
                    guards.add((type(step.event).__name__, min(relevant)))

    many = 2 * settings().max_examples
    run_state_machine_as_test(
        Visiting, settings=settings(max_examples=many, stateful_step_count=40)
    )
    assert {(n, state, TABLE[n][state]) for n in TABLE for state in STATES} - cells == set()
    plain = {name: name.partition("(")[0].partition(" ")[0] for name in GUARDS}
    assert {(plain[name], guard) for name in GUARDS for guard in GUARDS[name]} - guards == set()


# ---- planted bugs -------------------------------------------------------------------------------


def _late_end_is_taken(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    if isinstance(what, Finished) and record is not None:
        what = attrs.evolve(what, attempt=record.attempt)
    return apply(task_id, record, what, facts)


def _fence_is_ignored(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    fenced = isinstance(what, Orphaned) and facts.executor_fenced
    return apply(task_id, record, what, attrs.evolve(facts, executor_fenced=fenced))


def _live_task_is_reaped(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    fenced = isinstance(what, Orphaned) or facts.executor_fenced
    return apply(task_id, record, what, attrs.evolve(facts, executor_fenced=fenced))


def _cancel_is_lost_in_a_crash(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    if isinstance(what, Orphaned) and record is not None:
        record = attrs.evolve(record, cancel_requested_at_ms=None)
    return apply(task_id, record, what, facts)


def _late_success_beats_a_cancel(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    after = apply(task_id, record, what, facts)
    if isinstance(what, Finished) and isinstance(what.outcome, Success):
        return attrs.evolve(after, status=TaskStatus.COMPLETED)
    return after


def _ended_task_is_resumed(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    if isinstance(what, AttemptStarted) and record is not None and record.has_ended:
        record = attrs.evolve(record, status=TaskStatus.STOPPED, executor_id=None)
    return apply(task_id, record, what, facts)


def _resume_keeps_the_number(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    after = apply(task_id, record, what, facts)
    if isinstance(what, AttemptStarted):
        return attrs.evolve(after, attempt=after.attempt - 1)
    return after


def _collected_id_is_used_again(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    return apply(task_id, record, what, attrs.evolve(facts, id_used=False))


def _key_starts_twice(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    return apply(task_id, record, what, attrs.evolve(facts, key_used_by=None))


def _child_of_a_cancelled_parent_starts(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    return apply(task_id, record, what, attrs.evolve(facts, parent_cancelled=False))


def _refused_resume_changes_the_record(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    if isinstance(what, AttemptStarted) and record is not None:
        record.args.update(what.args)
    return apply(task_id, record, what, facts)


def _late_cancel_is_accepted(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    if isinstance(what, CancelRequested) and record is not None and record.status.is_terminal:
        return record
    return apply(task_id, record, what, facts)


def _late_cancel_tells_nothing(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    try:
        return apply(task_id, record, what, facts)
    except TaskNotRunning:
        if isinstance(what, CancelRequested):
            raise TaskNotRunning(task_id, "stopped") from None
        raise


def _stopping_task_cannot_be_cancelled(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    if isinstance(what, CancelRequested) and record is not None and not record.executor_id:
        raise TaskNotRunning(task_id, record.status)
    return apply(task_id, record, what, facts)


def _marked_orphan_is_lost(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    if isinstance(what, Orphaned) and record is not None and record.cancel_accepted:
        raise TaskNotRunning(task_id, record.status)
    return apply(task_id, record, what, facts)


def _loser_is_told_a_wrong_status(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    try:
        return apply(task_id, record, what, facts)
    except TaskNotStopped:
        raise TaskNotStopped(task_id, "failed") from None


def _executor_stays_named(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    after = apply(task_id, record, what, facts)
    if isinstance(what, Finished) and isinstance(what.outcome, Success):
        return attrs.evolve(after, executor_id=what.executor_id)
    return after


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        (_late_end_is_taken, "promises 1 and 4"),
        (_fence_is_ignored, "promise 4"),
        (_live_task_is_reaped, "promise 6"),
        (_cancel_is_lost_in_a_crash, "promise 5"),
        (_late_success_beats_a_cancel, "promise 5"),
        (_ended_task_is_resumed, "promise 3"),
        (_resume_keeps_the_number, "promise 3"),
        (_collected_id_is_used_again, "promise 3"),
        (_key_starts_twice, "promise 3"),
        (_child_of_a_cancelled_parent_starts, "promise 5"),
        (_refused_resume_changes_the_record, "promise 2"),
        (_late_cancel_is_accepted, "promise 3"),
        (_late_cancel_tells_nothing, "promise 5"),
        (_stopping_task_cannot_be_cancelled, "promise 5"),
        (_marked_orphan_is_lost, "promise 6"),
        (_loser_is_told_a_wrong_status, "promise 7"),
        (_executor_stays_named, "executor_id is set"),
    ],
)
def test_the_promises_alone_find_planted_bugs(bug: Apply, message: str) -> None:
    """Without the table, the invariants find every bug of a known class, and say what it breaks."""

    class Planted(LifecycleMachine):
        apply = staticmethod(bug)

        def check_against_table(self, step: LifecycleStep) -> None:
            """Leave it to the promises."""

    find(Planted, message)


def find(machine: type[LifecycleMachine], message: str) -> None:
    """Run a machine as the ci profile does; it has to fail with the message."""
    with pytest.raises(AssertionError, match=message):
        run_state_machine_as_test(
            machine,
            settings=settings(
                derandomize=True,
                max_examples=500,
                stateful_step_count=40,
                phases=[Phase.generate],
                deadline=None,
                report_multiple_bugs=False,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            ),
        )


def _unknown_task_is_started(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    try:
        return apply(task_id, record, what, facts)
    except Refused:
        if record is None and isinstance(what, Registered):
            return apply(task_id, None, what)
        raise


def _progress_survives_a_resume(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    after = apply(task_id, record, what, facts)
    if isinstance(what, AttemptStarted) and record is not None:
        return attrs.evolve(after, progress=record.progress)
    return after


def _failure_is_a_stop(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    after = apply(task_id, record, what, facts)
    return attrs.evolve(after, status=TaskStatus.STOPPED) if after.status == "failed" else after


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        (_unknown_task_is_started, "the table of the lifecycle says"),
        (_progress_survives_a_resume, "progress is Progress.*, not None; the table"),
        (_failure_is_a_stop, "status is .*; the table"),
    ],
)
def test_the_table_finds_what_breaks_no_promise(bug: Apply, message: str) -> None:
    """What only the table forbids is found by the comparison with it."""

    class Planted(LifecycleMachine):
        apply = staticmethod(bug)

    find(Planted, message)
