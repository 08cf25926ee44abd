"""Every planted bug: what is wrong, which machine has to find it, and what that has to say."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.property.planted import (
    applies,
    runtime_damage,
    runtime_managers,
    runtime_questions,
    runtime_stores,
    stores,
    tools,
    wire,
)
from tests.property.wire_machine import WireMachine
from trio_bgtasks.testing import (
    BackgroundToolMachine,
    LifecycleMachine,
    RuntimeMachine,
    TaskStoreMachine,
    _trio_run,
)

_A_SEARCH = 50  # examples

T = TypeVar("T", bound=Callable[..., Any])
Machine = type[RuleBasedStateMachine]


@attrs.frozen
class PlantedBug:
    """One bug.

    Attributes:
        name: Where it is: ``module.name``.
        wrong: What is wrong, in a sentence.
        machine: Which machine finds it: of the kit, or that of the MCP server.
        report: A pattern: the first line of what the machine says.
        steps: How many rules are tried in a row.
        plant: Makes the machine that runs on it.
    """

    name: str
    wrong: str
    machine: Machine
    report: str
    steps: int
    plant: Callable[[pytest.MonkeyPatch], Machine]

    def failure(
        self, *phases: Phase, steps: int | None = None, examples: int = 1000
    ) -> BaseException | None:
        """Run the machine, with the same examples every time; return how that failed.

        The examples of one search resemble each other: what is not found soon takes very long. To
        begin anew all the time costs half of that (11 bugs that were hard to find: 76 s, not 134).
        """
        with pytest.MonkeyPatch.context() as patch:
            machine = self.plant(patch)
            how = settings(
                database=None,
                max_examples=_A_SEARCH,
                stateful_step_count=steps or self.steps,
                phases=phases,
                deadline=None,
                report_multiple_bugs=False,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            )
            for number in range(examples // _A_SEARCH):
                try:
                    run_state_machine_as_test(seed(number)(machine), settings=how)
                except Exception as failure:  # noqa: BLE001 - whatever it is, it is looked at
                    return failure
        return None


def first_line(failure: BaseException) -> str:
    """Return the first line of a message, with the kind of error if it is no assertion."""
    kind = "" if isinstance(failure, AssertionError) else f"{type(failure).__name__}: "
    return kind + (str(failure).splitlines() or [""])[0]


def _bugs(
    module: str,
    machine: Machine,
    steps: int,
    plant: Callable[[T, pytest.MonkeyPatch], Machine],
    table: Sequence[tuple[T, str]],
) -> list[PlantedBug]:
    return [
        PlantedBug(
            f"{module}.{thing.__name__}",
            (inspect.getdoc(thing) or "").splitlines()[0],
            machine,
            report,
            steps,
            lambda patch, thing=thing: plant(thing, patch),  # type: ignore[misc]
        )
        for thing, report in table
    ]


def _tool(tool: type[tools.Count], patch: pytest.MonkeyPatch) -> Machine:
    patch.setattr(_trio_run, "TURNS", 10_000)  # for those that would spin for ever
    return tools.machine_for(tool)


_STEPS = 18  # in a row

_APPLIES = "applies", LifecycleMachine, _STEPS
_STORES = "stores", TaskStoreMachine, _STEPS
_RUNTIME_STORES = "runtime_stores", RuntimeMachine, _STEPS
_RUNTIME_MANAGERS = "runtime_managers", RuntimeMachine, _STEPS
_RUNTIME_DAMAGE = "runtime_damage", RuntimeMachine, _STEPS
_RUNTIME_QUESTIONS = "runtime_questions", RuntimeMachine, _STEPS
_TOOLS = "tools", BackgroundToolMachine, 12
_WIRE = "wire", WireMachine, _STEPS

BUGS: list[PlantedBug] = [
    *_bugs(*_APPLIES, lambda bug, _: applies.judged_by_the_promises(bug), applies.PROMISES),
    *_bugs(*_APPLIES, lambda bug, _: applies.judged_by_the_table(bug), applies.TABLE),
    *_bugs(*_STORES, lambda store, _: stores.machine_for(store), stores.PLANTED),
    *_bugs(
        *_RUNTIME_STORES, lambda store, _: runtime_stores.machine_for(store), runtime_stores.PLANTED
    ),
    *_bugs(*_RUNTIME_MANAGERS, runtime_managers.machine_with, runtime_managers.PLANTED),
    *_bugs(*_RUNTIME_DAMAGE, runtime_managers.machine_with, runtime_damage.PLANTED),
    *_bugs(*_RUNTIME_QUESTIONS, runtime_managers.machine_with, runtime_questions.PLANTED),
    *_bugs(*_TOOLS, _tool, [(tool, rf"^{tool.__name__} .*({say})") for tool, say in tools.PLANTED]),
    *_bugs(*_WIRE, wire.machine_with, wire.PLANTED),
]
