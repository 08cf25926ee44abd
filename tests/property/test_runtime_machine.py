"""`RuntimeMachine` finds nothing wrong with our managers, and everything with those planted here."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.property.planted.runtime_managers import BUGS, Bug
from tests.property.planted.runtime_stores import BROKEN_STORES, SweptInSteps
from trio_bgtasks import Event, Facts, MemoryTaskStore, TaskRecord, TaskStatus, apply
from trio_bgtasks.stores import memory
from trio_bgtasks.testing import RuntimeMachine
from trio_bgtasks.testing._model import TABLE, event_name, state_name

ROUNDS = 5  # one will do, nearly always: what is drawn goes by all modules, not by this one alone


class Runtime(RuntimeMachine):
    """On a store that takes its time between the fence and the end of a dead machine's tasks."""

    def make_store(self) -> MemoryTaskStore:
        return SweptInSteps()


@pytest.fixture
def visited(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Which event the lifecycle was asked for in which state."""
    seen: set[tuple[str, str]] = set()

    def watched(task_id: str, record: TaskRecord | None, event: Event, facts: Facts) -> TaskRecord:
        seen.add((event_name(event), state_name(record)))
        return apply(task_id, record, event, facts)

    monkeypatch.setattr(memory, "apply", watched)
    return seen


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
    for number in range(ROUNDS):
        machine = seed(number)(Runtime)
        run_state_machine_as_test(machine, settings=settings(stateful_step_count=30))
        if wanted <= visited:
            break
    assert wanted - visited == set()


# ---- planted bugs -------------------------------------------------------------------------------

_FOUND = settings(
    derandomize=True,
    database=None,
    max_examples=1000,  # nearly all in a few; Hypothesis draws what it reads in modules, too
    stateful_step_count=30,
    phases=[Phase.generate],
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def found_in(machine: type[RuntimeMachine]) -> BaseException:
    """Run a machine that has to fail, the same examples every time; return what it found."""
    with pytest.raises((AssertionError, Exception, ExceptionGroup)) as found:
        run_state_machine_as_test(machine, settings=_FOUND)
    return found.value


@pytest.mark.parametrize("broken", BROKEN_STORES, ids=lambda store: store.__name__)
def test_a_broken_store_is_found(broken: type[MemoryTaskStore]) -> None:
    """Each store breaks one promise; what the tools and callers saw shows it."""

    class Planted(RuntimeMachine):
        def make_store(self) -> MemoryTaskStore:
            return broken()

    found_in(Planted)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bug of the lifecycle, the supervision or the manager breaks a promise."""
    bug(monkeypatch)
    found_in(Runtime)
