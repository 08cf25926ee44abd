"""Counts what the machines do whose tests are marked as ``machine``; pytest says it at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis.stateful import RuleBasedStateMachine

_WORK = "work of machines"


@pytest.fixture(autouse=True)
def _work_is_counted(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Hypothesis makes a machine for each example, and checks its invariants after each step.

    And once before the first one; the first one sets our machines up, and is not counted.
    """
    examples: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    init, check = RuleBasedStateMachine.__init__, RuleBasedStateMachine.check_invariants

    def begun(self: RuleBasedStateMachine) -> None:
        init(self)
        examples[_name(type(self))] += 1
        steps[_name(type(self))] -= 2  # before and after it is set up

    def checked(self: RuleBasedStateMachine, *args: Any) -> None:
        steps[_name(type(self))] += 1
        check(self, *args)

    if request.node.get_closest_marker("machine") is not None:
        monkeypatch.setattr(RuleBasedStateMachine, "__init__", begun)
        monkeypatch.setattr(RuleBasedStateMachine, "check_invariants", checked)
    yield
    for name, number in examples.items():
        request.node.user_properties.append((_WORK, (name, number, steps[name])))


def _name(machine: type) -> str:
    """Return the name of a machine, and of the one of the kit that it is one of."""
    kit = next(base for base in machine.__mro__ if base.__module__.startswith("trio_bgtasks."))
    return f"{kit.__name__}: {machine.__name__}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a line for each machine, and the sum."""
    examples: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "teardown":
                for what, work in report.user_properties:
                    if what == _WORK:
                        name, number, of_it = work
                        examples[name] += number
                        steps[name] += of_it
    if examples:
        terminalreporter.section("what the machines did")
        for name in sorted(examples):
            terminalreporter.line(f"{name:40} {examples[name]:8,} examples {steps[name]:9,} steps")
        total = f"{examples.total():8,} examples {steps.total():9,} steps"
        terminalreporter.line(f"{'all':40} {total}")
