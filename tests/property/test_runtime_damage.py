"""`RuntimeMachine` finds what is made wrongly of corrupt records and of used ids, and names it."""

from __future__ import annotations

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.property.planted.runtime_damage import PLANTED
from tests.property.planted.runtime_managers import Bug
from tests.property.test_runtime_machine import FOUND, Runtime


@pytest.mark.parametrize(("bug", "text"), PLANTED, ids=lambda p: getattr(p, "__name__", ""))
def test_a_planted_bug_is_found(bug: Bug, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each breaks a promise, and it is said which."""
    bug(monkeypatch)
    with pytest.raises(AssertionError, match=text):
        run_state_machine_as_test(Runtime, settings=FOUND)
