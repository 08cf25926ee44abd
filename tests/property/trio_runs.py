"""What the tests of `TrioRun` and `TrioStateMachine` share."""

from __future__ import annotations

import gc
import threading
from collections.abc import Generator
from contextlib import contextmanager

import greenlet  # type: ignore[import-untyped]
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

QUICK = settings(
    derandomize=True,
    max_examples=20,
    stateful_step_count=10,
    phases=[Phase.generate],
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)


def run_machine(machine: type[RuleBasedStateMachine], how: settings = QUICK) -> None:
    """Run a machine as Hypothesis does."""
    run_state_machine_as_test(machine, settings=how)


@contextmanager
def nothing_left() -> Generator[None]:
    """Check that no greenlet, thread or Trio run of the block is alive after it."""
    threads = threading.active_count()
    yield
    gc.collect()
    # Without a parent it is a thread itself, which coverage makes one for all that it measures.
    greenlets = [g for g in gc.get_objects() if isinstance(g, greenlet.greenlet)]
    assert not [g for g in greenlets if g.parent and g and not g.dead]
    assert threading.active_count() <= threads

    async def nothing() -> None:
        """A run can be started again: none is going on."""

    trio.run(nothing)
