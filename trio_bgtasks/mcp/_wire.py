"""What a record is on the wire, in both shapes of MCP tasks. Pure: everything is decided here.

One look at a record (`shown`) says which of the five statuses it has, and what goes with it: a
result, an error or questions. `modern_task` (the extension of 2026-07-28) and `legacy_task` (the
core of 2025-11-25) only spell that differently. What is terminal on the wire never changes: see
`settled`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias, cast

import attrs

from .._json import JsonObject, JsonValue, clone_json, shorten
from .._records import JournalEntry, OutputPage, Progress, TaskRecord, TaskStatus, shown_result
from .._tool import ToolResult
from ._questions import elicitation, resume_key, resume_question

WireStatus: TypeAlias = Literal["working", "input_required", "completed", "failed", "cancelled"]
TERMINAL = frozenset({"completed", "failed", "cancelled"})

INTERNAL_ERROR = -32603
POLL_MS = 1000
"""How often a client should ask for a task."""
OUTPUT_BYTES = 30_000
"""How much of a task's output log, its end, is shown with its result."""

# What the runtime stores of a tool that broke its contract: nothing that its caller could mend.
_TOOL_AT_FAULT = ("InternalError: ", "result is not JSON: ")
_MOST_TEXT = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_MS = (1 << 53) - 1  # more is no exact number in JSON
_LAST_MS = 253_402_300_799_999  # of the year 9999; no ISO time says more


@attrs.frozen
class Shown:
    """What a task is on the wire. Exactly one of the last three is set in the status it belongs to.

    ``result`` is a ``CallToolResult`` (completed), ``error`` a JSON-RPC error (failed),
    ``questions`` are requests by key (input required).
    """

    status: WireStatus
    message: str | None = None
    result: JsonObject | None = None
    error: JsonObject | None = None
    questions: JsonObject | None = None

    @property
    def is_terminal(self) -> bool:
        """Will it stay like that for ever?"""
        return self.status in TERMINAL


def settled(record: TaskRecord, journal: Sequence[JournalEntry]) -> TaskRecord:
    """Return the record as the wire goes on showing it.

    A stopped task that cannot be resumed is failed on the wire, for ever; in the record it may
    still be cancelled, by whoever cancels all below some parent. It is shown as it was before.
    """
    before = journal[-2] if len(journal) > 1 else None
    if before is None or not may_be_unsettled(record) or before.status is not TaskStatus.STOPPED:
        return record
    return attrs.evolve(
        record,
        status=TaskStatus.STOPPED,
        cancel_requested_at_ms=None,
        completed_at_ms=max(before.at_ms, record.created_at_ms),
    )


def may_be_unsettled(record: TaskRecord) -> bool:
    """Does it take the journal to know what the wire shows of the record?"""
    return record.status is TaskStatus.CANCELLED and not record.supports_resume


def shown(record: TaskRecord, output: OutputPage | None = None, *, can_answer: bool) -> Shown:
    """Return what a record is on the wire, for a client that can answer questions, or cannot."""
    match record.status:
        case TaskStatus.RUNNING:
            return _running(record, can_answer=can_answer)
        case TaskStatus.COMPLETED:
            value = shown_result(record.result, record.result_ref)
            return Shown("completed", result=call_result(value, output=output))
        case TaskStatus.FAILED:
            return _failed(record, output)
        case TaskStatus.CANCELLED:
            return Shown("cancelled", _text(record.error))
        case _:
            return _stopped(record, can_answer=can_answer)


def _running(record: TaskRecord, *, can_answer: bool) -> Shown:
    if record.cancel_requested_at_ms is not None:
        return Shown("working", "Cancelling")
    questions = record.open_questions
    if not questions:
        return Shown("working", progress_text(record.progress))
    message = _text("; ".join(question.message for question in questions))
    if not can_answer:
        return Shown("working", f"Waiting for an answer: {message}")
    return Shown(
        "input_required",
        message,
        questions={question.question_id: elicitation(question) for question in questions},
    )


def _stopped(record: TaskRecord, *, can_answer: bool) -> Shown:
    reason = record.error or "no reason was given"
    if not record.supports_resume:
        error: JsonObject = {
            "code": INTERNAL_ERROR,
            "message": f"The task was stopped and cannot be resumed: {reason}",
            "data": {"status": "stopped", "reason": record.error},
        }
        return Shown("failed", _text(reason), error=error)
    message = _text(f"Stopped: {reason}")
    if not can_answer:
        return Shown("working", f"{message}; it can be resumed")
    question = elicitation(resume_question(record))
    return Shown("input_required", message, questions={resume_key(record): question})


def _failed(record: TaskRecord, output: OutputPage | None) -> Shown:
    text = record.error or ""
    if text.startswith(_TOOL_AT_FAULT):
        error: JsonObject = {"code": INTERNAL_ERROR, "message": text}
        return Shown("failed", _text(text), error=error)
    result = call_result(record.result, message=text, is_error=True, output=output)
    return Shown("completed", _text(text), result=result)


def _text(text: str | None) -> str | None:
    return shorten(text, _MOST_TEXT) if text else None


def progress_text(progress: Progress | None) -> str | None:
    """Return a line that says how far a task is."""
    if progress is None:
        return None
    done = (
        f"{progress.done:g}"
        if progress.total is None
        else (f"{progress.done:g} of {progress.total:g}")
    )
    return done if progress.message is None else f"{done}: {progress.message}"


# ---- the two spellings of a task -----------------------------------------------------------------


def modern_task(
    record: TaskRecord, state: Shown, *, retention_s: float | None, detailed: bool = True
) -> JsonObject:
    """Return the ``DetailedTask`` of the extension; without details its ``Task``."""
    task: JsonObject = {
        "taskId": record.task_id,
        "status": state.status,
        "createdAt": iso(record.created_at_ms),
        "lastUpdatedAt": iso(_updated_at_ms(record)),
        "ttlMs": ttl_ms(record, retention_s),
        "pollIntervalMs": POLL_MS,
    }
    if state.message is not None:
        task["statusMessage"] = state.message
    if detailed:
        for name, value in (
            ("result", state.result),
            ("error", state.error),
            ("inputRequests", state.questions),
        ):
            if value is not None:
                task[name] = value
    return task


def legacy_task(record: TaskRecord, state: Shown, *, retention_s: float | None) -> JsonObject:
    """Return the ``Task`` of 2025-11-25, which has a tool's own error as failed, too."""
    own_error = state.result is not None and state.result["isError"]
    task: JsonObject = {
        "taskId": record.task_id,
        "status": "failed" if own_error else state.status,
        "createdAt": iso(record.created_at_ms),
        "lastUpdatedAt": iso(_updated_at_ms(record)),
        "ttl": ttl_ms(record, retention_s),
        "pollInterval": POLL_MS,
    }
    if state.message is not None:
        task["statusMessage"] = state.message
    return task


def _updated_at_ms(record: TaskRecord) -> int:
    """Return when the task last changed on the wire: one that has ended does not change again."""
    return record.updated_at_ms if record.completed_at_ms is None else record.completed_at_ms


def iso(at_ms: int) -> str:
    """Return a time of the epoch as ISO 8601 in UTC, to the millisecond."""
    at = _EPOCH + timedelta(milliseconds=min(at_ms, _LAST_MS))
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ttl_ms(record: TaskRecord, retention_s: float | None) -> int | None:
    """Return how long after its creation a task may be discarded; None: it is not yet known.

    A task is kept for the manager's retention after its end, and for as long as it has none.
    """
    if retention_s is None or not record.has_ended or record.completed_at_ms is None:
        return None
    kept = record.completed_at_ms - record.created_at_ms + int(retention_s * 1000)
    return min(max(1, kept), _MOST_MS)


# ---- results of calls ----------------------------------------------------------------------------


def call_result(
    data: Any,
    *,
    message: str | None = None,
    is_error: bool = False,
    output: OutputPage | None = None,
) -> JsonObject:
    """Return a ``CallToolResult``: the end of the output, the message, the data as JSON."""
    texts = [] if output is None else [_output_text(output)]
    if message is not None:
        texts.append(message)
    if data is not None or not texts:
        texts.append(data if isinstance(data, str) else json.dumps(data, ensure_ascii=False))
    content: list[JsonValue] = [{"type": "text", "text": text} for text in texts]
    result: JsonObject = {"content": content, "isError": is_error}
    if isinstance(data, dict):
        result["structuredContent"] = clone_json(data)
    return result


def tool_call_result(result: ToolResult, output: OutputPage | None = None) -> JsonObject:
    """Return a ``CallToolResult`` of what a tool answered."""
    return call_result(result.data, message=result.message, is_error=result.is_error, output=output)


def text_of(result: JsonObject) -> str:
    """Return the text of a ``CallToolResult``."""
    return "\n".join(block["text"] for block in cast("Any", result["content"]))


def _output_text(page: OutputPage) -> str:
    if page.offset == 0:
        return page.text
    return f"[the first {page.offset} bytes of the output are not shown]\n{page.text}"
