"""`RuntimeMachine` finds nothing wrong with our managers; with others, see ``test_planted.py``."""

from __future__ import annotations

import pytest
from hypothesis import seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.property.depth import seeds
from tests.property.machines import Runtime
from trio_bgtasks import Event, Facts, TaskRecord, TaskStatus, apply
from trio_bgtasks.stores import memory
from trio_bgtasks.testing._model import TABLE, event_name, state_name

ROUNDS = 5  # one will do, nearly always: what is drawn goes by all modules, not by this one alone


@pytest.fixture
def visited(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Which event the lifecycle was asked for in which state."""
    seen: set[tuple[str, str]] = set()

    def watched(task_id: str, record: TaskRecord | None, event: Event, facts: Facts) -> TaskRecord:
        seen.add((event_name(event), state_name(record)))
        return apply(task_id, record, event, facts)

    monkeypatch.setattr(memory, "apply", watched)
    return seen


@pytest.mark.machine
def test_every_promise_is_kept_on_every_way(visited: set[tuple[str, str]]) -> None:
    """Our managers keep the promises; on the way, every transition of the table is visited.

    Every one that is accepted, and whatever becomes of a resume and an orphan in every state.
    """
    wanted = {
        (event, state)
        for event, row in TABLE.items()
        for state, answer in row.items()
        if answer in set(TaskStatus) or event in ("Orphaned", "AttemptStarted")
    }
    for number in seeds(ROUNDS):
        machine = seed(number)(Runtime)
        run_state_machine_as_test(machine, settings=settings(stateful_step_count=30))
        if wanted <= visited:
            break
    assert wanted - visited == set()
