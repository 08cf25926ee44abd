"""What records are on the wire, in every state that one can reach; by the schema of the extension."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types import ElicitRequest, Task

from tests.mcp.schemas import check
from trio_bgtasks import (
    CancelRequested,
    ExternalRef,
    Facts,
    OutputPage,
    Progress,
    Question,
    Refused,
    TaskRecord,
    TaskStatus,
    ToolResult,
    apply,
    journal_entry,
)
from trio_bgtasks.mcp._questions import answer_of, elicitation, resume_key
from trio_bgtasks.mcp._wire import (
    TERMINAL,
    call_result,
    iso,
    legacy_task,
    may_be_unsettled,
    modern_task,
    progress_text,
    settled,
    shown,
    tool_call_result,
    ttl_ms,
)
from trio_bgtasks.testing import strategies

PAYLOADS = {"completed": "result", "failed": "error", "input_required": "inputRequests"}

pages = st.none() | st.builds(
    OutputPage,
    text=strategies.texts(),
    offset=st.integers(0, 9),
    next_offset=st.just(9),
    total_bytes=st.just(9),
    dropped_bytes=st.just(0),
)
retentions = st.none() | st.floats(0, 1e9)


@given(record=strategies.records(), page=pages, retention_s=retentions, can_answer=st.booleans())
def test_every_record_fits_the_schema(
    record: TaskRecord, page: OutputPage | None, retention_s: float | None, *, can_answer: bool
) -> None:
    """In whatever state a record is, its task fits the extension's schema, and has exactly the payload of its status."""
    state = shown(record, page, can_answer=can_answer)
    task = modern_task(record, state, retention_s=retention_s)
    check("DetailedTask", task)
    check("GetTaskResult", {"resultType": "complete", **task})
    pushed = {"jsonrpc": "2.0", "method": "notifications/tasks", "params": task}
    check("TaskStatusNotification", pushed)
    created = modern_task(record, state, retention_s=retention_s, detailed=False)
    check("CreateTaskResult", {"resultType": "task", **created})
    assert set(PAYLOADS.values()) & task.keys() == ({PAYLOADS.get(state.status)} - {None})
    assert not set(PAYLOADS.values()) & created.keys()
    assert state.is_terminal == (state.status in TERMINAL)
    if state.status == "input_required":
        assert can_answer
        assert task["inputRequests"]


@given(record=strategies.records(), page=pages, retention_s=retentions, can_answer=st.booleans())
def test_every_record_fits_the_older_schema(
    record: TaskRecord, page: OutputPage | None, retention_s: float | None, *, can_answer: bool
) -> None:
    """The task of 2025-11-25 fits the SDK's model of it; only a tool's own error has another status there."""
    state = shown(record, page, can_answer=can_answer)
    task = legacy_task(record, state, retention_s=retention_s)
    Task.model_validate(task, by_name=False)
    own_error = state.status == "completed" and state.result is not None and state.result["isError"]
    assert task["status"] == ("failed" if own_error else state.status)


@given(record=strategies.records(), data=st.data(), can_answer=st.booleans())
def test_terminal_never_changes(
    record: TaskRecord, data: st.DataObject, *, can_answer: bool
) -> None:
    """Whatever happens to a task that the wire shows as ended, it is shown the same, byte for byte."""
    before = modern_task(record, shown(record, can_answer=can_answer), retention_s=60)
    event = data.draw(strategies.events(record))
    try:
        after = apply(record.task_id, record, event, Facts(executor_fenced=True))
    except Refused:
        return
    assert before["status"] not in TERMINAL or isinstance(event, CancelRequested)
    line = journal_entry(record, event, after)
    if before["status"] not in TERMINAL or line is None:
        return
    assert record.completed_at_ms is not None
    stop = attrs.evolve(line, at_ms=record.completed_at_ms, kind="finished", status=record.status)
    later = settled(after, [stop, line])
    assert modern_task(later, shown(later, can_answer=can_answer), retention_s=60) == before


@given(strategies.records("cancelled"))
def test_other_cancelled_tasks_are_cancelled(record: TaskRecord) -> None:
    """A task that was cancelled while it ran, or could be resumed, is shown as cancelled."""
    assert settled(record, []) is record
    assert shown(record, can_answer=True).status == "cancelled"
    assert may_be_unsettled(record) == (not record.supports_resume)


PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "mcp.md"
CLIENTS = {"any": (True, False), "can answer": (True,), "cannot": (False,)}


def documented() -> list[list[str]]:
    """Return the rows of the page's table."""
    table = PAGE.read_text("utf-8").partition("| in the record |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[2:]]
    assert {row[0] for row in rows} >= set(strategies.STATES)
    return rows


@pytest.mark.parametrize(("state", "client", "modern", "legacy"), documented())
@given(data=st.data())
def test_the_table(state: str, client: str, modern: str, legacy: str, data: st.DataObject) -> None:
    """Each state has the statuses that the documentation names, in all of its records."""
    name, _, special = state.partition("; ")
    record = attrs.evolve(data.draw(strategies.records(name)), questions=())
    if special == "asks":
        record = attrs.evolve(record, questions=(_question(_FLAT),))
    if name == "failed":
        error = "InternalError: x" if special else "ValueError: x"
        record = attrs.evolve(record, error=error)
    for can_answer in CLIENTS[client]:
        seen = shown(record, can_answer=can_answer)
        assert seen.status == modern
        assert legacy_task(record, seen, retention_s=None)["status"] == legacy


@pytest.mark.parametrize(
    "error", ["InternalError: Internal error: x", "result is not JSON: $: set"]
)
@given(strategies.records("failed"))
def test_a_tool_at_fault(error: str, record: TaskRecord) -> None:
    """A tool that broke its contract is an error of the protocol."""
    seen = shown(attrs.evolve(record, error=error), can_answer=True)
    assert seen.status == "failed"
    assert seen.error == {"code": -32603, "message": error}


# ---- questions -----------------------------------------------------------------------------------

_FLAT: Any = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
_NESTED: Any = {"type": "object", "properties": {"a": {"type": "array"}}}


def _question(schema: Any) -> Question:
    return Question("q", "Well?", schema, 0)


@pytest.mark.parametrize(
    ("schema", "content", "answer"),
    [
        (_FLAT, {"a": "b"}, {"a": "b"}),
        ({**_FLAT, "additionalProperties": False, "title": "T"}, {"a": "b"}, {"a": "b"}),
        ({"type": "boolean"}, {"answer": True}, True),
        ({"type": "integer", "minimum": 1}, {"answer": 2}, 2),
        (_NESTED, {"answer": '{"a": [1]}'}, {"a": [1]}),
        ({"type": "array"}, {"answer": "[]"}, []),
        ({}, {"answer": '"x"'}, "x"),
        ({}, {"answer": "x"}, "x"),
        ({}, {"answer": 1}, 1),
        ({"type": "array"}, {"answer": "[" * 100_000}, "[" * 100_000),
        ({"enum": ["1", "b"]}, {"answer": "1"}, "1"),
    ],
)
def test_any_question_fits_a_form(schema: Any, content: Any, answer: Any) -> None:
    """A question with whatever schema is a form that a client can show; what is filled in is its answer."""
    question = _question(schema)
    asked = elicitation(question)
    check("ElicitRequest", asked)
    assert answer_of(question, content) == answer


_TITLED = st.lists(
    st.fixed_dictionaries({}, optional={"const": st.sampled_from(["a", 1]), "title": st.just("A")}),
    max_size=2,
)
_TEXTS = st.lists(st.sampled_from(["a", 1]), max_size=2)
_fields = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["string", "number", "integer", "boolean", "array", "object"]),
        "title": st.sampled_from(["T", 1]),
        "default": st.sampled_from(["a", 1, 1.5, True, ["a"], None]),
        "minimum": st.sampled_from([1, 1.5, "1"]),
        "minLength": st.sampled_from([1, 1.5]),
        "maxItems": st.sampled_from([1, "1"]),
        "format": st.sampled_from(["date", "uuid"]),
        "enum": _TEXTS,
        "enumNames": _TEXTS,
        "oneOf": _TITLED,
        "items": st.fixed_dictionaries(
            {}, optional={"type": st.sampled_from(["string", 1]), "enum": _TEXTS, "anyOf": _TITLED}
        ),
        "pattern": st.just("x"),
    },
)


def test_strings_without_a_type_are_a_choice() -> None:
    """Not a field for JSON text, into which nobody would think to write quotes; in an object, too."""
    choice = {"enum": ["stable", "beta"]}
    fields = {"where": choice}
    for schema, name in (
        (choice, "answer"),
        ({"type": "object", "properties": fields, "required": ["where"]}, "where"),
    ):
        form: Any = elicitation(_question(schema))
        asked = form["params"]["requestedSchema"]["properties"][name]
        assert asked == {"type": "string", "enum": ["stable", "beta"]}


@given(
    _fields
    | st.fixed_dictionaries(
        {"type": st.just("object"), "properties": st.dictionaries(st.sampled_from("ab"), _fields)}
    )
)
def test_every_question_is_a_form(schema: Any) -> None:
    """Whatever the schema of a question is, what the client is asked is a form that the extension allows, and the SDK."""
    asked: Any = elicitation(_question(schema))
    check("ElicitRequest", asked)
    ElicitRequest.model_validate(asked, by_name=False)


@pytest.mark.parametrize(
    ("schema", "content"),
    [
        ({"type": "boolean"}, None),
        ({"type": "boolean"}, {"a": True}),
        ({"type": "array"}, {}),
    ],
)
def test_a_form_without_its_field(schema: Any, content: Any) -> None:
    """A form without the field that was asked for is no answer."""
    with pytest.raises(ValueError, match="'answer'"):
        answer_of(_question(schema), content)


@given(strategies.records("running"), strategies.texts())
def test_open_questions_are_input_required(record: TaskRecord, text: str) -> None:
    """Open questions are asked by their ids; who cannot answer is told of them; a cancel withdraws them."""
    question = attrs.evolve(_question(_FLAT), message=text or "?")
    record = attrs.evolve(record, questions=(question,))
    seen = shown(record, can_answer=True)
    assert seen.questions == {"q": elicitation(question)}
    check("DetailedTask", modern_task(record, seen, retention_s=None))
    silent = shown(record, can_answer=False)
    assert silent.status == "working"
    assert (silent.message or "").startswith("Waiting for an answer: ")
    cancelled = attrs.evolve(record, cancel_requested_at_ms=1)
    assert shown(cancelled, can_answer=True).message == "Cancelling"


@given(strategies.records("stopped"))
def test_the_question_whether_to_resume(record: TaskRecord) -> None:
    """A stopped task asks with the number of its attempt as key, so that none is used twice."""
    seen = shown(record, can_answer=True)
    assert seen.questions is not None
    assert [*seen.questions] == [resume_key(record)] == [f"resume-{record.attempt}"]


# ---- parts ---------------------------------------------------------------------------------------


def test_times() -> None:
    """Times are ISO 8601 in UTC, to the millisecond; none is too late for that."""
    assert iso(0) == "1970-01-01T00:00:00.000Z"
    assert iso(1_795_733_187_889) == "2026-11-26T22:46:27.889Z"
    assert iso(1 << 53) == "9999-12-31T23:59:59.999Z"


@given(strategies.records())
def test_time_to_live(record: TaskRecord) -> None:
    """A task that has not ended has no limit; one that has, the retention after its end."""
    assert ttl_ms(record, None) is None
    ttl = ttl_ms(record, 60)
    if not record.has_ended:
        assert ttl is None
        return
    assert record.completed_at_ms is not None
    kept_ms = record.completed_at_ms - record.created_at_ms + 60_000
    assert ttl == min(kept_ms, (1 << 53) - 1)
    assert ttl_ms(attrs.evolve(record, completed_at_ms=record.created_at_ms), 0) == 1


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (None, None),
        (Progress(1), "1"),
        (Progress(1, 4), "1 of 4"),
        (Progress(0.5, 4, "half"), "0.5 of 4: half"),
    ],
)
def test_progress(progress: Progress | None, text: str | None) -> None:
    """Progress is a line of text."""
    assert progress_text(progress) == text


@pytest.mark.parametrize(
    ("data", "message", "texts"),
    [
        (None, None, ["null"]),
        (None, "done", ["done"]),
        ("text", None, ["text"]),
        ([1, "ü"], None, ['[1, "ü"]']),
        ({"a": None}, "see", ["see", '{"a": null}']),
    ],
)
def test_results(data: Any, message: str | None, texts: list[str]) -> None:
    """A result is its message and its data, as text; an object is there as such, too."""
    result = call_result(data, message=message)
    assert [block["text"] for block in result["content"]] == texts  # type: ignore[index,union-attr,call-overload]
    assert result.get("structuredContent") == (data if isinstance(data, dict) else None)
    assert tool_call_result(ToolResult("t", "error", data, message))["isError"] is True


def test_a_result_that_is_elsewhere() -> None:
    """Where the result is only a reference, the client is shown that."""
    record = TaskRecord("t", "o", "w", "", TaskStatus.COMPLETED, 1, 0, 0, completed_at_ms=0)
    record = attrs.evolve(record, result_ref=ExternalRef("file:///x"))
    seen = shown(record, can_answer=True)
    assert seen.result == {"content": [{"type": "text", "text": "file:///x"}], "isError": False}


@pytest.mark.parametrize(
    ("offset", "text"),
    [(0, "out"), (7, "[the first 7 bytes of the output are not shown]\nout")],
)
def test_output_comes_first(offset: int, text: str) -> None:
    """The end of the output comes before the result, and says what is left out."""
    result = call_result(1, output=OutputPage("out", offset, offset + 3, offset + 3, 0))
    assert result["content"] == [{"type": "text", "text": text}, {"type": "text", "text": "1"}]
