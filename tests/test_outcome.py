"""From the way a body ended to its outcome: pure, so by table."""

from __future__ import annotations

from typing import Any

import pytest

from trio_bgtasks import (
    Cancelled,
    ExternalRef,
    Failed,
    Registered,
    Stopped,
    Success,
    TaskRecord,
    TaskResult,
    TaskStatus,
    ThreadMessageRef,
    apply,
)
from trio_bgtasks._events import CancelRequested, Finished
from trio_bgtasks._outcome import LEASE_LOST, BodyEnd, counted, outcome_of, own_outcome


class BrokenDict(dict[str, Any]):
    """A dict that cannot be read."""

    def items(self) -> Any:
        raise RuntimeError


class BrokenText:
    """Something whose text cannot be had."""

    def __str__(self) -> str:
        raise ZeroDivisionError


REF = ThreadMessageRef("thread", "message")

RETURNED: list[tuple[Any, TaskResult]] = [
    (Success(), Success()),
    (Success({"a": (1, 2)}, REF), Success({"a": [1, 2]}, REF)),
    (Success(1, ThreadMessageRef("thread")), Success(1, ThreadMessageRef("thread"))),
    (Success(1, ExternalRef("x:")), Success(1, ExternalRef("x:"))),
    (Success({"a": {1}}), Failed("result is not JSON: $.a: set")),
    (Success(BrokenDict(a=1)), Failed("result is not JSON: reading it raised RuntimeError")),
    (Success(1, "x:"), Failed("result_ref is not a reference: str")),  # type: ignore[arg-type]
    (Success(1, ExternalRef(3)), Failed("result_ref.uri is not a string: int")),  # type: ignore[arg-type]
    (
        Success(1, ExternalRef("\ud800")),
        Failed("result_ref.uri is not JSON: $: character U+D800 in a string"),
    ),
    (Failed("no", {"exit": 1}), Failed("no", {"exit": 1})),
    (Failed("a\x00b"), Failed("a\ufffdb")),
    (Failed("no", {1}), Failed("no (result is not JSON: $: set)")),
    (Failed(3), Failed("3")),  # type: ignore[arg-type]
    (Failed(BrokenText()), Failed("<its __str__ raised ZeroDivisionError>")),  # type: ignore[arg-type]
    (Failed("x" * 10_001), Failed("x" * 9_999 + "…")),
    (Stopped(), Stopped()),
    (Stopped("later\ud800"), Stopped("later\ufffd")),
    (Stopped(3), Stopped("3")),  # type: ignore[arg-type]
    (Cancelled(), Cancelled()),
    (None, Failed("TypeError: the tool returned NoneType instead of a TaskResult")),
    (Success, Failed("TypeError: the tool returned type instead of a TaskResult")),
    ("done", Failed("TypeError: the tool returned str instead of a TaskResult")),
]


@pytest.mark.parametrize(("value", "outcome"), RETURNED, ids=[repr(o)[:60] for _, o in RETURNED])
def test_what_a_body_returned(value: Any, outcome: TaskResult) -> None:
    """A TaskResult counts, its JSON copied and its text cleaned; anything else is a failure."""
    assert own_outcome(BodyEnd(value)) == outcome
    assert outcome_of(BodyEnd(value), set()) == outcome


def test_many_leaves() -> None:
    """Eight errors of a group are named, the others counted."""
    group = BaseExceptionGroup("x", [ValueError(str(n)) for n in range(11)])
    named = "; ".join(f"ValueError: {n}" for n in range(8))
    assert own_outcome(BodyEnd(raised=group)) == Failed(f"{named}; and 3 more")


def test_an_interrupt_counts_before_the_errors_beside_it() -> None:
    """Ctrl-C stops an attempt, whatever else its clean-up raised."""
    group = BaseExceptionGroup("x", [ValueError("a"), KeyboardInterrupt()])
    assert own_outcome(BodyEnd(raised=group)) == Stopped("KeyboardInterrupt")


@pytest.mark.parametrize(
    ("reasons", "outcome"),
    [
        ({"fenced", "cancel", "owner_close", "shutdown", "caller", "deadline"}, None),
        ({"cancel", "owner_close", "shutdown", "caller", "deadline"}, Failed("no", 1)),
        (
            {"owner_close", "shutdown", "caller", "deadline"},
            Stopped("The owner thread was closed: no"),
        ),
        ({"shutdown", "caller", "deadline"}, Stopped("The runtime was shut down: no")),
        ({"caller", "deadline"}, Stopped("The caller of the foreground run is gone: no")),
        ({"deadline"}, Failed("The deadline of 2.5 s passed: no", 1)),
        (set[str](), Failed("no", 1)),
    ],
)
def test_the_first_reason_counts(reasons: set[str], outcome: TaskResult | None) -> None:
    """Of several reasons the first of the list decides; success counts whatever the reason."""
    assert outcome_of(BodyEnd(Failed("no", 1)), reasons, deadline_s=2.5) == outcome
    assert outcome_of(BodyEnd(Success(1)), reasons) == Success(1)


def test_a_body_that_was_not_run() -> None:
    """It has no outcome of its own; a cancel makes it cancelled, anything else stopped."""
    assert own_outcome(BodyEnd(ran=False)) is None
    assert outcome_of(BodyEnd(ran=False), {"cancel"}) == Cancelled()
    assert outcome_of(BodyEnd(ran=False), set()) == Stopped("The runtime was shut down")


def test_a_long_error_stays_bounded() -> None:
    """Our text and the body's own together are bounded, too."""
    outcome = outcome_of(BodyEnd(Failed("x" * 10_000)), {"shutdown"})
    assert isinstance(outcome, Stopped)
    assert outcome.reason is not None
    assert len(outcome.reason) == 10_000


def record(outcome: TaskResult | None, *, cancelled: bool = False) -> TaskRecord:
    """Return the record of an attempt that ended, or (None) of one that runs."""
    found = apply("t", None, Registered(1, "ex", "o", "work", ""))
    if cancelled:
        found = apply("t", found, CancelRequested(2))
    return found if outcome is None else apply("t", found, Finished(3, "ex", 1, outcome))


@pytest.mark.parametrize(
    ("meant", "found", "counts"),
    [
        (Success(1), record(Success(1)), Success(1)),
        (Failed("no", 1), record(Failed("no", 1)), Failed("no", 1)),
        (Success(1), None, Success(1)),  # collected since
        (Success(1), record(Success(1), cancelled=True), Cancelled()),
        (Success(1), record(Stopped("orphan")), Stopped("orphan")),
        (Success(1), record(Failed("too strange", 2)), Failed("too strange", 2)),
        (Stopped("close"), record(Stopped("close")), Stopped("close")),
        (Success(1), record(None), Stopped(LEASE_LOST)),
    ],
)
def test_the_record_counts(meant: TaskResult, found: TaskRecord | None, counts: TaskResult) -> None:
    """A caller is told what is stored, not what was meant to be."""
    assert counted(meant, found, 1) == counts


def test_another_attempts_record_does_not_count() -> None:
    """Once a later attempt has the record, this one lost its lease."""
    assert counted(Success(1), record(Success(1)), 2) == Stopped(LEASE_LOST)
    assert record(Success(1)).status is TaskStatus.COMPLETED
