"""The JSON shapes: what was written is read, and what does not fit is named."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_bgtasks._codec import (
    RECORD_FIELDS,
    dump_json,
    parse_json,
    record_from_json,
    record_to_json,
    summary_from_json,
)
from trio_bgtasks._errors import CorruptRecord
from trio_bgtasks._json import MAX_DEPTH, copy_json
from trio_bgtasks._records import (
    ExternalRef,
    Progress,
    Question,
    ResultRef,
    TaskRecord,
    TaskStatus,
    TaskSummary,
    ThreadMessageRef,
)
from trio_bgtasks.testing.strategies import json_values, texts

times = st.integers(0, 1 << 53)
objects = st.dictionaries(texts(), json_values(), max_size=3)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(1 << 53), 1 << 53)
refs: st.SearchStrategy[ResultRef] = st.builds(ExternalRef, texts()) | st.builds(
    ThreadMessageRef, texts(), st.none() | texts()
)
progresses = st.builds(Progress, numbers, st.none() | numbers, st.none() | texts())
open_questions = st.builds(Question, texts(), texts(), objects, times)
questions = st.builds(
    Question,
    texts(),
    texts(),
    objects,
    times,
    st.sampled_from(["open", "answered", "declined"]),
    json_values(),
)
parts: dict[str, st.SearchStrategy[Any]] = {
    "task_id": texts(),
    "task_type": texts(),
    "description": texts(),
    "created_at_ms": times,
    "supports_resume": st.booleans(),
    "attempt": st.integers(1, 1 << 53),
    "error": st.none() | texts(),
    "result": json_values(),
    "result_ref": st.none() | refs,
    "completed_at_ms": st.none() | times,
    "parent_task_id": st.none() | texts(),
    "metadata": objects,
    "progress": st.none() | progresses,
}


@st.composite
def records(draw: st.DrawFn) -> TaskRecord:
    """Any record that the lifecycle could make, and more."""
    status = draw(st.sampled_from(TaskStatus))
    return draw(
        st.builds(
            TaskRecord,
            **parts,
            status=st.just(status),
            owner_thread_id=texts(),
            updated_at_ms=times,
            background=st.booleans(),
            executor_id=texts() if status is TaskStatus.RUNNING else st.none(),
            args=objects,
            idempotency_key=st.none() | texts(),
            cancel_requested_at_ms=st.none() | times,
            checkpoint=json_values(),
            output_bytes=times,
            questions=st.lists(questions, max_size=3).map(tuple),
            questions_asked=times,
            seq=times,
        )
    )


summaries = st.builds(
    TaskSummary,
    **parts,
    status=st.sampled_from(TaskStatus),
    queued=st.booleans(),
    persistence_error=st.none() | texts(),
    questions=st.lists(open_questions, max_size=3).map(tuple),
)


@given(json_values())
def test_json_text_is_read_as_it_was_written(value: Any) -> None:
    """Numbers keep their kind, sign and every digit; text every character."""
    assert repr(parse_json(dump_json(copy_json(value)))) == repr(value)


@given(records())
def test_a_record_is_read_as_it_was_written(record: TaskRecord) -> None:
    """Through its shape, and through text; the status is one of ours again, not a string."""
    shape = record_to_json(record)
    assert list(shape) == list(RECORD_FIELDS)
    read = record_from_json("t", parse_json(dump_json(shape)))  # type: ignore[arg-type]
    assert read == record
    assert type(read.status) is TaskStatus


@given(summaries)
def test_a_summary_is_read_as_it_was_written(summary: TaskSummary) -> None:
    """What was not set, and so is not in the shape, is not set again."""
    read = summary_from_json("t", parse_json(dump_json(summary.to_json())))
    assert read == summary
    assert type(read.status) is TaskStatus


@pytest.mark.parametrize("done", [3, (1 << 53) + 1, 3.0, 0.5])
def test_progress_keeps_its_kind_of_number(done: float) -> None:
    """An integer stays one, with every digit: what a model sees does not depend on the store."""
    progress = Progress(done, done)
    summary = TaskSummary("t", "work", "", TaskStatus.RUNNING, 1, progress=progress)
    read = summary_from_json("t", parse_json(dump_json(summary.to_json())))
    assert repr(read.progress) == repr(progress)
    record = TaskRecord("t", "a", "w", "", TaskStatus.STOPPED, 1, 1, 1, progress=progress)
    shape: Any = parse_json(dump_json(record_to_json(record)))
    assert repr(record_from_json("t", shape).progress) == repr(progress)


GOOD = TaskRecord("t", "ann", "shell", "d", TaskStatus.RUNNING, 1, 2, 3, executor_id="e", seq=1)


QUESTION: dict[str, Any] = {
    "question_id": "q1",
    "message": "Sure?",
    "schema": {},
    "asked_at_ms": 1,
    "state": "open",
    "answer": None,
}


def test_a_question_has_exactly_its_fields() -> None:
    """In a record all of them; in a summary those of an open one, which is what it was."""
    question = Question("q1", "Sure?", {"const": 1.0}, 1, "answered", [1.0])
    record = record_from_json("t", {**record_to_json(GOOD), "questions": [QUESTION]})
    assert record.questions == (Question("q1", "Sure?", {}, 1),)
    answered = attrs.evolve(GOOD, questions=(question,))
    shape: Any = parse_json(dump_json(record_to_json(answered)))
    assert shape["questions"][0].keys() == QUESTION.keys()
    assert repr(record_from_json("t", shape).questions) == repr((question,))
    summary = GOOD.summary().to_json()
    wrongs: list[Any] = [QUESTION, {"question_id": "q1"}, None]
    for wrong in wrongs:
        with pytest.raises(CorruptRecord, match="'t' is corrupt: questions"):
            summary_from_json("t", {**summary, "questions": [wrong]})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task_id", None),
        ("owner_thread_id", 7),
        ("status", "odd"),
        ("status", "Running"),
        ("attempt", 0),
        ("attempt", "1"),
        ("attempt", True),
        ("attempt", 1.5),
        ("created_at_ms", None),
        ("background", 1),
        ("supports_resume", "false"),
        ("parent_task_id", 1),
        ("executor_id", None),
        ("args", None),
        ("args", []),
        ("metadata", "x"),
        ("completed_at_ms", "now"),
        ("error", {}),
        ("result_ref", {}),
        ("result_ref", {"kind": "external"}),
        ("result_ref", {"kind": "external", "uri": "u", "thread_id": "t"}),
        ("result_ref", {"kind": "thread_message", "thread_id": None}),
        ("progress", {"total": 1}),
        ("progress", {"done": "1"}),
        ("progress", {"done": 1, "more": 2}),
        ("output_bytes", -1),
        ("questions", None),
        ("questions", {}),
        ("questions", [QUESTION | {"state": "Open"}]),
        ("questions", [QUESTION | {"schema": True}]),
        ("questions", [QUESTION | {"asked_at_ms": "now"}]),
        ("questions", [QUESTION | {"question_id": 1}]),
        ("questions", [QUESTION | {"more": 1}]),
        ("questions", [{name: QUESTION[name] for name in QUESTION if name != "answer"}]),
        ("questions_asked", -1),
        ("questions_asked", None),
        ("seq", None),
    ],
    ids=repr,
)
def test_a_record_that_does_not_fit_is_named(field: str, value: Any) -> None:
    """Nothing is coerced: the error has the task and the field."""
    with pytest.raises(CorruptRecord, match=rf"record of task 't' is corrupt: {field}") as caught:
        record_from_json("t", {**record_to_json(GOOD), field: value})
    assert caught.value.task_id == "t"


def test_a_record_has_exactly_its_fields() -> None:
    """None is missing, none unknown."""
    shape = record_to_json(GOOD)
    with pytest.raises(CorruptRecord, match="more"):
        record_from_json("t", {**shape, "more": 1})
    del shape["error"]
    with pytest.raises(CorruptRecord, match="error"):
        record_from_json("t", shape)


def test_only_a_running_record_has_an_executor() -> None:
    """And it must have one: who would find it an orphan?"""
    with pytest.raises(CorruptRecord, match="does not go with status 'stopped'"):
        record_from_json("t", {**record_to_json(GOOD), "status": "stopped"})


@pytest.mark.parametrize(
    "shape",
    [None, [], 1, {}, {**GOOD.summary().to_json(), "queued": 1}, {"task_id": "t"}],
    ids=["null", "list", "number", "empty", "kind", "little"],
)
def test_a_summary_that_does_not_fit_is_corrupt(shape: Any) -> None:
    """Whatever was stored in its place."""
    with pytest.raises(CorruptRecord, match="'t' is corrupt"):
        summary_from_json("t", shape)


@pytest.mark.parametrize(
    "text", ["", "{", "NaN", "[Infinity]", "'a'", '{"a":1,}', "1 2", "[" * 100_000, '"\\ud800"']
)
def test_text_that_is_not_json_is_a_value_error(text: str) -> None:
    """Also what other parsers let pass."""
    with pytest.raises(ValueError):  # noqa: PT011
        parse_json(text)


def test_text_that_is_nested_more_deeply_than_we_write_is_a_value_error() -> None:
    """Whoever walked through it would run out of stack; brackets in a string are no nesting."""

    def nested(depth: int) -> str:
        return "[" * depth + '"[[["' + "]" * depth

    deepest = copy_json(parse_json(nested(MAX_DEPTH)))
    assert parse_json(dump_json({"result": deepest})) == {"result": deepest}
    for depth in (MAX_DEPTH + 2, 500):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(nested(depth))
    flat = [{"a": [], "b": "{" * 100}] * 100
    assert parse_json(dump_json(copy_json(flat))) == flat


def test_a_float_stays_a_float() -> None:
    """An integer that was a float would change its kind in a tool's hands."""
    value = parse_json(dump_json([1.0, 1, -0.0, 1e300]))
    assert repr(value) == "[1.0, 1, -0.0, 1e+300]"
    assert math.copysign(1, value[2]) == -1  # type: ignore[index, arg-type]
