"""The lifecycle under events in any order, and the bugs that its machine has to find."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.property import broken_applies as broken
from trio_bgtasks.testing import LifecycleMachine, LifecycleStep
from trio_bgtasks.testing._lifecycle_machine import Apply
from trio_bgtasks.testing._model import GUARDS, STATES, TABLE, broken_guards, event_name, state_name

ROUNDS = 20  # two or three will do: what is drawn goes by all modules, not by this one alone


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

    all_cells = {(name, state, TABLE[name][state]) for name in TABLE for state in STATES}
    plain = {name: name.partition("(")[0].partition(" ")[0] for name in GUARDS}
    all_guards = {(plain[name], guard) for name in GUARDS for guard in GUARDS[name]}
    for number in range(ROUNDS):
        machine = seed(number)(Visiting)
        run_state_machine_as_test(machine, settings=settings(stateful_step_count=40))
        if all_cells <= cells and all_guards <= guards:
            break
    assert all_cells - cells == set()
    assert all_guards - guards == set()


# ---- planted bugs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        (broken.late_end_is_taken, "promises 1 and 4"),
        (broken.fence_is_ignored, "promise 4"),
        (broken.live_task_is_reaped, "promise 6"),
        (broken.cancel_is_lost_in_a_crash, "promise 5"),
        (broken.late_success_beats_a_cancel, "promise 5"),
        (broken.ended_task_is_resumed, "promise 3"),
        (broken.resume_keeps_the_number, "promise 3"),
        (broken.collected_id_is_used_again, "promise 3"),
        (broken.key_starts_twice, "promise 3"),
        (broken.child_of_a_cancelled_parent_starts, "promise 5"),
        (broken.refused_resume_changes_the_record, "promise 2"),
        (broken.late_cancel_is_accepted, "promise 3"),
        (broken.late_cancel_tells_nothing, "promise 5"),
        (broken.stopped_task_cannot_be_cancelled, "promise 5"),
        (broken.marked_orphan_is_lost, "promise 6"),
        (broken.loser_is_told_a_wrong_status, "promise 7"),
        (broken.executor_stays_named, "executor_id is set"),
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


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        (broken.unknown_task_is_started, "the table of the lifecycle says"),
        (broken.progress_survives_a_resume, "progress is Progress.*, not None; the table"),
        (broken.failure_is_a_stop, "status is .*; the table"),
    ],
)
def test_the_table_finds_what_breaks_no_promise(bug: Apply, message: str) -> None:
    """What only the table forbids is found by the comparison with it."""

    class Planted(LifecycleMachine):
        apply = staticmethod(bug)

    find(Planted, message)
