"""How deep the machines look, which is the profile's to say; and which seeds they start from."""

from __future__ import annotations

import random
import unittest
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine


def depth(*, share: float, steps: int) -> settings:
    """Return the settings of a machine that tries its share of the profile's examples."""
    examples = max(1, int(settings().max_examples * share))
    phases = set(settings().phases) - {Phase.explain}  # as `TrioStateMachine` has it
    return settings(max_examples=examples, stateful_step_count=steps, phases=phases)


def deep(
    machine: type[RuleBasedStateMachine], *, share: float, steps: int
) -> type[unittest.TestCase]:
    """Return the test case of a machine; it tries its share of the profile's examples.

    ``nox -s property-deep`` runs it, and counts its steps.
    """
    case: Any = machine.TestCase
    case.settings = depth(share=share, steps=steps)
    return cast("type[unittest.TestCase]", pytest.mark.machine(case))


def seeds(most: int) -> Iterator[int]:
    """Yield seeds: always the same where nothing is left to chance, else new ones every time."""
    first = 0 if settings().derandomize else random.randrange(1 << 32)
    yield from range(first, first + most)
