"""Every pair of state and event, under every combination of guards, against the table by hand."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

from trio_bgtasks._errors import (
    IdempotencyKeyUsed,
    ParentCancelled,
    QuestionClosed,
    Refused,
    UnknownTask,
)
from trio_bgtasks._events import (
    AttemptStarted,
    CancelRequested,
    CheckpointSaved,
    Event,
    Facts,
    Finished,
    Orphaned,
    OutputAppended,
    ProgressReported,
    QuestionAnswered,
    QuestionAsked,
    QuestionsWithdrawn,
    Registered,
)
from trio_bgtasks._lifecycle import apply
from trio_bgtasks._records import (
    Cancelled,
    ExternalRef,
    Failed,
    Progress,
    Question,
    Stopped,
    Success,
    TaskRecord,
    TaskStatus,
)
from trio_bgtasks.testing._model import (
    GUARDS,
    STATES,
    TABLE,
    changed_fields,
    event_name,
    expected,
    state_name,
)

_ANSWERED = Question("q2", "Sure?", {"const": 1}, 120, "answered", 1)
_QUESTIONS = (
    Question("q1", "Sure?", {"const": True}, 110),
    _ANSWERED,
    Question("q4", "Why?", {}, 130),
)
_RUNNING = TaskRecord(
    task_id="bg_1",
    owner_thread_id="ann",
    task_type="shell",
    description="d",
    status=TaskStatus.RUNNING,
    attempt=2,
    created_at_ms=100,
    updated_at_ms=200,
    supports_resume=True,
    parent_task_id="bg_0",
    executor_id="ex_1",
    args={"a": 1},
    metadata={"m": 1},
    idempotency_key="k",
    checkpoint={"c": 1},
    progress=Progress(1),
    output_bytes=10,
    questions=_QUESTIONS,
    questions_asked=4,
    seq=7,
)
BLANK = TaskRecord("bg_1", "ann", "shell", "d", TaskStatus.RUNNING, 1, 0, 0)
_STOPPED = attrs.evolve(
    _RUNNING,
    status=TaskStatus.STOPPED,
    executor_id=None,
    error="stopped: shutdown",
    result={"r": 1},
    completed_at_ms=200,
    questions=(_ANSWERED,),
)
_ENDED = attrs.evolve(_STOPPED, questions=())
RECORDS: dict[str, TaskRecord | None] = {
    "nothing": None,
    "running": _RUNNING,
    "running, cancel accepted": attrs.evolve(_RUNNING, cancel_requested_at_ms=150),
    "stopped": _STOPPED,
    "stopped, not resumable": attrs.evolve(_ENDED, supports_resume=False),
    "completed": attrs.evolve(_ENDED, status=TaskStatus.COMPLETED, error=None),
    "failed": attrs.evolve(_ENDED, status=TaskStatus.FAILED),
    "cancelled": attrs.evolve(_ENDED, status=TaskStatus.CANCELLED, cancel_requested_at_ms=150),
}

OUTCOMES = (Success({"s": 1}, ExternalRef("x:")), Failed("no", {"f": 1}), Cancelled(), Stopped("s"))


def events(at_ms: int, executor: str, attempt: int, owner: str, task_type: str) -> list[Event]:
    """Return one event of every row of the table, and an append that is known in part."""
    run = (at_ms, executor, attempt)
    return [
        Registered(at_ms, executor, owner, task_type, "d", idempotency_key="k"),
        *(Finished(*run, outcome, output_offset=8, output="é!") for outcome in OUTCOMES),
        Finished(*run, Success(1), cancel_requested_at_ms=140, progress=Progress(3)),
        CancelRequested(at_ms),
        CheckpointSaved(*run, {"c": 2}),
        CheckpointSaved(*run, None, ("q2", "q9")),
        ProgressReported(*run, Progress(2, 3, "m")),
        OutputAppended(*run, 8, "é!"),
        OutputAppended(*run, 3, "abc"),
        OutputAppended(*run, 50, ""),
        QuestionAsked(*run, "Sure?", {"const": 1.0}, ("q1",), ("q2",)),
        QuestionAsked(*run, "Sure?", {"const": 1}, ("q1", "q4")),
        QuestionAsked(*run, "Sure?", {"const": True}),
        QuestionAsked(*run, "Why?", {}, ("q1", "q4")),
        QuestionsWithdrawn(*run),
        QuestionsWithdrawn(*run, ("q4", "q1")),
        *(QuestionAnswered(at_ms, f"q{number}", [number]) for number in range(1, 5)),
        QuestionAnswered(at_ms, "q4", declined=True),
        Orphaned(*run),
        AttemptStarted(at_ms, executor, owner, task_type, attempt, {"a": 2}, background=False),
    ]


def every_facts() -> Iterator[Facts]:
    """Yield every combination of what a store may have read."""
    both = (False, True)
    for fenced, used, key, parent in itertools.product(both, both, (None, "bg_9"), both):
        yield Facts(fenced, used, key, parent)


def every_event() -> Iterator[Event]:
    """Yield every event with right and wrong attempts, executors, owners and types."""
    for executor, attempt, owner, task_type, at_ms in itertools.product(
        ("ex_1", "ex_2"), (1, 2, 3), ("ann", "bob"), ("shell", "agent_run"), (50, 300)
    ):
        yield from events(at_ms, executor, attempt, owner, task_type)


def test_the_table_by_hand_names_every_state_and_event() -> None:
    """The states and events that are tried are exactly those of the table."""
    assert [state_name(record) for record in RECORDS.values()] == list(RECORDS) == list(STATES)
    names = {event_name(event) for event in every_event()}
    assert names == set(TABLE) == set(GUARDS)


@pytest.mark.parametrize("state", STATES)
def test_apply_is_the_table_by_hand(state: str) -> None:
    """C33: for every event and every combination of guards, `apply` does what the table says."""
    before = RECORDS[state]
    accepted = refused = 0
    for event, facts in itertools.product(every_event(), every_facts()):
        want = expected(before, event, facts)
        try:
            after = apply("bg_1", before, event, facts)
        except Refused as error:
            check_refusal(error, before, want)
            refused += 1
        else:
            assert isinstance(want, str), (event, facts, want)
            check_record(before, event, after, want)
            accepted += 1
    assert refused
    assert (accepted > 0) is not (before is not None and before.status.is_terminal)


def check_refusal(error: Refused, before: TaskRecord | None, want: str | set[str]) -> None:
    """A refusal is one of those wanted; it names the task, and the status unless that is secret."""
    assert type(error).__name__ in want
    silent = isinstance(error, UnknownTask | IdempotencyKeyUsed | ParentCancelled | QuestionClosed)
    assert error.task_id == ("bg_9" if isinstance(error, IdempotencyKeyUsed) else "bg_1")
    assert error.task_id in str(error)
    if before is not None and not silent:
        assert before.status.value in str(error)


def check_record(before: TaskRecord | None, event: Event, after: TaskRecord, want: str) -> None:
    """An accepted event changes the fields that the model changes, and no other."""
    changes: dict[str, Any] = changed_fields(before, event, want)
    for field in attrs.fields(TaskRecord):
        name = field.name
        if name in changes:
            assert getattr(after, name) == changes[name], (name, event)
        elif before is not None:
            assert getattr(after, name) == getattr(before, name), (name, event)
        elif name != "task_id":
            assert getattr(after, name) == getattr(BLANK, name), (name, event)
    assert after.task_id == "bg_1"
    assert (after.executor_id is not None) is (after.status is TaskStatus.RUNNING)
    assert after.completed_at_ms is None or after.completed_at_ms >= after.created_at_ms


def test_an_event_that_changes_nothing_returns_the_same_record() -> None:
    """A second cancel, a question that is open already, a withdrawal of nothing: no change."""
    marked = RECORDS["running, cancel accepted"]
    assert apply("bg_1", marked, CancelRequested(999)) is marked
    again = QuestionAsked(999, "ex_1", 2, "Sure?", {"const": True}, ("q4",))
    assert apply("bg_1", _RUNNING, again) is _RUNNING
    assert apply("bg_1", _RUNNING, QuestionsWithdrawn(999, "ex_1", 2, ("q4", "q1"))) is _RUNNING


# ---- the page of the docs ------------------------------------------------------------------------


def _generator() -> ModuleType:
    path = Path(__file__).parents[2] / "docs" / "_ext" / "lifecycle_table.py"
    spec = importlib.util.spec_from_file_location("lifecycle_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_docs_shows_what_the_code_does() -> None:
    """The tables between the markers of the page are those that the code generates now."""
    generator = _generator()
    page = generator.PAGE.read_text(encoding="utf-8")
    assert generator.refreshed(page) == page, "run python docs/_ext/lifecycle_table.py"


def test_the_generated_tables_are_those_written_by_hand() -> None:
    """What the docs derive from the code is what a person wrote down from the design."""
    generator = _generator()
    assert generator.transitions() == TABLE
    assert generator.guards() == GUARDS


def test_a_page_without_markers_is_an_error() -> None:
    """The generator does not silently leave a page as it is."""
    with pytest.raises(ValueError, match=r"lifecycle\.md has no markers for transitions"):
        _generator().refreshed("# The lifecycle\n")
