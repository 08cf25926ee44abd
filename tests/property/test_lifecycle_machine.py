"""The lifecycle under events in any order; the planted bugs of it are in ``test_planted.py``."""

from __future__ import annotations

import pytest
from hypothesis import seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.property.depth import seeds
from trio_bgtasks.testing import LifecycleMachine
from trio_bgtasks.testing._model import GUARDS, STATES, TABLE, broken_guards, event_name, state_name

ROUNDS = 20  # two or three will do: what is drawn goes by all modules, not by this one alone


@pytest.mark.machine
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
    for number in seeds(ROUNDS):
        machine = seed(number)(Visiting)
        run_state_machine_as_test(machine, settings=settings(stateful_step_count=40))
        if all_cells <= cells and all_guards <= guards:
            break
    assert all_cells - cells == set()
    assert all_guards - guards == set()
