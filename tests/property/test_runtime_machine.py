"""`RuntimeMachine` finds nothing wrong with our managers; with others, see ``test_planted.py``."""

from __future__ import annotations

import re

import pytest
from hypothesis import seed, settings
from hypothesis.stateful import rule, run_state_machine_as_test

from tests.property.depth import seeds
from tests.property.machines import Runtime
from trio_bgtasks import Event, Facts, TaskRecord, TaskStatus, apply
from trio_bgtasks.stores import memory
from trio_bgtasks.testing._model import TABLE, event_name, state_name
from trio_bgtasks.testing._runtime_stage import RuntimeStage

ROUNDS = 5  # one will do, nearly always: what is drawn goes by all modules, not by this one alone

# Every transition that is accepted, and whatever becomes of a resume and an orphan in every state.
WANTED = {
    (event, state)
    for event, row in TABLE.items()
    for state, answer in row.items()
    if answer in set(TaskStatus) or event in ("Orphaned", "AttemptStarted")
}


@pytest.fixture
def visited(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Which event the lifecycle was asked for in which state."""
    seen: set[tuple[str, str]] = set()

    def watched(task_id: str, record: TaskRecord | None, event: Event, facts: Facts) -> TaskRecord:
        seen.add((event_name(event), state_name(record)))
        return apply(task_id, record, event, facts)

    monkeypatch.setattr(memory, "apply", watched)
    return seen


def check_every_transition(
    machine: type[RuntimeStage], visited: set[tuple[str, str]], *, rounds: int, how: settings
) -> None:
    """Run a machine, again if need be; fail if it never visits a transition of the table."""
    for number in seeds(rounds):
        run_state_machine_as_test(seed(number)(machine), settings=how)
        if visited >= WANTED:
            return
    missing = ", ".join(f"{event} when {state}" for event, state in sorted(WANTED - visited))
    raise AssertionError(f"never visited: {missing}")


@pytest.mark.machine
def test_every_promise_is_kept_on_every_way(visited: set[tuple[str, str]]) -> None:
    """Our managers keep the promises; on the way, every transition of the table is visited."""
    how = settings(stateful_step_count=30)
    check_every_transition(Runtime, visited, rounds=ROUNDS, how=how)


class Idle(RuntimeStage):
    """The machine without its rules: what it begins with goes on until the machines shut down."""

    @rule()
    def nothing(self) -> None:
        """A state machine has to have a rule."""


def test_what_is_never_visited_is_named(visited: set[tuple[str, str]]) -> None:
    """Without rules everything is missing but what the beginning and the end do; so it is said."""
    done = {
        ("Registered", "nothing"),
        ("CheckpointSaved", "running"),
        ("ProgressReported", "running"),
        ("OutputAppended", "running"),
        ("Finished(Success)", "running"),
        ("Finished(Stopped)", "running"),
    }
    missing = ", ".join(f"{event} when {state}" for event, state in sorted(WANTED - done))
    how = settings(max_examples=2, stateful_step_count=2)
    with pytest.raises(AssertionError, match=f"^never visited: {re.escape(missing)}$"):
        check_every_transition(Idle, visited, rounds=2, how=how)
