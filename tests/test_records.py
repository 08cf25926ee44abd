"""The views of a task: statuses, summaries and their JSON shapes."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from tests.values import containers
from trio_bgtasks._json import JsonObject
from trio_bgtasks._records import (
    Cancelled,
    ExternalRef,
    Failed,
    OutputPage,
    Progress,
    ResultRef,
    Stopped,
    Success,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskSummary,
    ThreadMessageRef,
    ref_to_json,
)

BARE: JsonObject = {
    "task_id": "bg_1",
    "task_type": "shell",
    "description": "sleep",
    "status": "running",
    "created_at_ms": 5,
    "supports_resume": False,
    "attempt": 1,
}


def record(**changes: object) -> TaskRecord:
    """Return a bare running record, changed as asked."""
    bare = TaskRecord(
        task_id="bg_1",
        owner_thread_id="t",
        task_type="shell",
        description="sleep",
        status=TaskStatus.RUNNING,
        attempt=1,
        created_at_ms=5,
        updated_at_ms=5,
    )
    return attrs.evolve(bare, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "terminal", "ended", "ended_resumable"),
    [
        (TaskStatus.RUNNING, False, False, False),
        (TaskStatus.COMPLETED, True, True, True),
        (TaskStatus.FAILED, True, True, True),
        (TaskStatus.CANCELLED, True, True, True),
        (TaskStatus.STOPPED, False, True, False),
    ],
)
def test_which_statuses_are_final(
    status: TaskStatus, *, terminal: bool, ended: bool, ended_resumable: bool
) -> None:
    """Three statuses are terminal; a stopped task has ended too, unless it can be resumed."""
    assert status.is_terminal is terminal
    assert record(status=status).has_ended is ended
    assert record(status=status, supports_resume=True).has_ended is ended_resumable


@pytest.mark.parametrize("status", TaskStatus)
def test_a_cancel_is_accepted_by_its_mark_or_by_its_end(status: TaskStatus) -> None:
    """A record is under an accepted cancel when it is marked, or when it ended as cancelled."""
    assert record(status=status).cancel_accepted is (status is TaskStatus.CANCELLED)
    assert record(status=status, cancel_requested_at_ms=0).cancel_accepted


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Success(), TaskStatus.COMPLETED),
        (Failed("no"), TaskStatus.FAILED),
        (Cancelled(), TaskStatus.CANCELLED),
        (Stopped(), TaskStatus.STOPPED),
    ],
)
def test_every_outcome_knows_its_status(outcome: TaskResult, status: TaskStatus) -> None:
    """The status of an outcome is that which the record gets."""
    assert outcome.status is status


def test_a_bare_summary_shows_the_seven_keys_that_are_always_there() -> None:
    """What is not set, null or empty is not in the JSON of a summary."""
    assert record(args={"secret": 1}, checkpoint=3).summary().to_json() == BARE


def test_a_full_summary_shows_everything() -> None:
    """Every part of a summary that is set appears under its own name."""
    full = record(
        status=TaskStatus.FAILED,
        supports_resume=True,
        attempt=2,
        error="no",
        result={"n": [1]},
        result_ref=ExternalRef("file:///x"),
        completed_at_ms=9,
        parent_task_id="bg_0",
        metadata={"agent_id": "a"},
        progress=Progress(1, 2, "half"),
    )
    shape = full.summary(queued=True, persistence_error="disk full").to_json()
    expected: JsonObject = {
        **BARE,
        "status": "failed",
        "supports_resume": True,
        "attempt": 2,
        "error": "no",
        "result": {"n": [1]},
        "result_ref": {"kind": "external", "uri": "file:///x"},
        "completed_at_ms": 9,
        "parent_task_id": "bg_0",
        "metadata": {"agent_id": "a"},
        "progress": {"done": 1, "total": 2, "message": "half"},
        "queued": True,
        "persistence_error": "disk full",
    }
    assert shape == expected
    json.dumps(shape)


@pytest.mark.parametrize("falsy", [0, False, "", [], {}])
def test_a_falsy_result_is_a_result(falsy: object) -> None:
    """Only None means "no result"; zero, false and empty ones are shown."""
    assert record(result=falsy).summary().to_json()["result"] == falsy


def test_summaries_share_nothing_that_can_be_changed() -> None:
    """Neither a summary nor its JSON is a way into the record, also when its parts are empty."""
    filled: dict[str, Any] = {"metadata": {"k": {}}, "result": {"r": [[]]}}
    empty: dict[str, Any] = {"metadata": {}, "result": []}
    for parts in (filled, empty):
        original = record(**parts)
        summary = original.summary()
        shape = summary.to_json()
        ours = containers(original.metadata, original.result)
        theirs = containers(summary.metadata, summary.result)
        assert ours
        assert not ours & theirs
        assert not theirs & containers(shape)


def test_a_result_larger_than_the_input_bound_can_still_be_shown() -> None:
    """What is stored was bounded when it was given; showing it never fails."""
    huge = "x" * (3 << 20)
    summary = record(result=huge, metadata={"k": huge}).summary()
    shape = summary.to_json()
    assert shape["result"] == huge
    assert shape["metadata"] == {"k": huge}


@pytest.mark.parametrize(
    ("progress", "shape"),
    [
        (Progress(1.5), {"done": 1.5}),
        (Progress(0, 0, ""), {"done": 0, "total": 0, "message": ""}),
    ],
)
def test_progress_omits_what_is_unknown(progress: Progress, shape: JsonObject) -> None:
    """Only None is unknown."""
    assert progress.to_json() == shape


@pytest.mark.parametrize(
    ("ref", "shape"),
    [
        (ExternalRef("s3://x"), {"kind": "external", "uri": "s3://x"}),
        (ThreadMessageRef("t"), {"kind": "thread_message", "thread_id": "t"}),
        (
            ThreadMessageRef("t", "m"),
            {"kind": "thread_message", "thread_id": "t", "message_id": "m"},
        ),
    ],
)
def test_result_references_are_tagged_by_kind(ref: ResultRef, shape: JsonObject) -> None:
    """A reference says what kind it is; an unknown message is left out."""
    assert ref_to_json(ref) == shape


def test_an_output_page_has_exactly_five_keys() -> None:
    """The JSON of a page is its five fields, whatever their values."""
    assert OutputPage("", 0, 0, 0, 0).to_json() == {
        "text": "",
        "offset": 0,
        "next_offset": 0,
        "total_bytes": 0,
        "dropped_bytes": 0,
    }


def test_records_and_summaries_are_frozen() -> None:
    """No field of a record or a summary can be set."""
    for view in (record(), record().summary()):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            view.status = TaskStatus.COMPLETED  # type: ignore[misc]
    assert isinstance(record().summary(), TaskSummary)
