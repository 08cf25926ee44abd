"""`WireMachine` finds nothing wrong with what our server says; what it has to see, it sees.

With servers that are wrong, see ``test_planted.py``.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import seed, settings
from hypothesis.stateful import rule, run_state_machine_as_test

from tests.property.depth import depth, seeds
from tests.property.wire_lines import Client, Line
from tests.property.wire_machine import WireMachine
from tests.property.wire_stage import WireStage

ROUNDS = 5  # one will do, nearly always: what is drawn goes by all modules, not by this one alone
STATUSES = ("working", "input_required", "completed", "failed", "cancelled")

# Every change of a status on the wire, in both eras; and whatever becomes of each request.
WANTED = {
    *(
        f"{era}: {before} -> {after}"
        for era in ("2025", "2026")
        for before in ("working", "input_required")
        for after in STATUSES
        if before != after
    ),
    *(f"{era}: nothing -> {after}" for era in ("2025", "2026") for after in STATUSES[:2]),
    *(f"{status} is pushed" for status in (*STATUSES, "status")),
    *("the server decides for a task", "the client decides for a task"),
    *("the model decides for the background", "a call is answered at once"),
    *(f"foreign and unknown are alike: {what}" for what in ("get", "result", "cancel", "update")),
    *(f"tasks/{what}: -32602" for what in ("get", "result", "cancel", "update")),
    *(f"tasks/{what}: -32021" for what in ("get", "cancel", "update")),
    *("tasks/result: -32601", "tasks/update: -32601", "tasks/result: -32603"),
    *(f"answered: {what}: accept" for what in ("question", "resume")),
    *("a wrong answer is refused", "two answers", "a late answer", "the client is asked"),
    *("a cancel is accepted: 2025", "a cancel is accepted: 2026", "a cancel is too late"),
    *("a race with a cancel", "a call is not stored", "an end is not stored"),
    *("disconnect", "restart", "end", "crash", "it is discarded", "listed: 2"),
}


def check_all_is_seen(machine: type[WireStage], *, rounds: int, how: settings) -> None:
    """Run a machine, again if need be; fail if it never sees what it has to."""
    machine.seen = set()
    for number in seeds(rounds):
        run_state_machine_as_test(seed(number)(machine), settings=how)
        if machine.seen >= WANTED:
            return
    raise AssertionError(f"never seen: {'; '.join(sorted(WANTED - machine.seen))}")


@pytest.mark.machine
def test_all_that_is_said_is_true() -> None:
    """Every message of the server fits its schema and what the tools did; on the way, all is seen that has to be."""
    check_all_is_seen(WireMachine, rounds=ROUNDS, how=depth(share=0.4, steps=30))


class Idle(WireStage):
    """The machine without its rules: nobody calls anything."""

    async def look_again(self) -> None:
        """Look at nothing: there is nothing."""

    @rule()
    def nothing(self) -> None:
        """A state machine has to have a rule."""


def test_what_is_never_seen_is_named() -> None:
    """Without rules everything is missing, and so it is said."""
    missing = "; ".join(sorted(WANTED))
    how = settings(max_examples=2, stateful_step_count=2)
    with pytest.raises(AssertionError, match=f"^never seen: {re.escape(missing)}$"):
        check_all_is_seen(Idle, rounds=2, how=how)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('{"jsonrpc": "2.0", "id": 1, "result": {}}', "nothing was asked, or it is answered"),
        ('{"jsonrpc": "2.0", "method": "notifications/tasks/status", "params": {}}', "nobody is"),
        ('{"jsonrpc": "2.0", "method": "notifications/tasks", "params": {}}', "not valid"),
        ('{"jsonrpc": "2.0", "id": 1, "method": "elicitation/create", "params": {}}', "valid"),
    ],
)
def test_what_may_not_come_is_noticed(text: str, wrong: str) -> None:
    """A second answer, what the era does not have, and what does not fit its schema, is an error."""
    line = Line(Client("ann"), lambda *_: None, lambda: 0, [])
    with pytest.raises(Exception, match=wrong):
        line.came(text)
