"""The data of a task: status, outcome, record, summary. Frozen; no behaviour beyond views."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, ClassVar, Literal, TypeAlias

import attrs

from ._json import JsonObject, JsonValue, clone_json


class TaskStatus(StrEnum):
    """Where a task is in its life; the values are the words that models and stores see."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STOPPED = "stopped"

    @property
    def is_terminal(self) -> bool:
        """True for completed, failed and cancelled: nothing ever changes such a record."""
        return self not in _NOT_TERMINAL


_NOT_TERMINAL = (TaskStatus.RUNNING, TaskStatus.STOPPED)


@attrs.frozen
class ThreadMessageRef:
    """The result of a task is a message of another conversation."""

    thread_id: str
    message_id: str | None = None


@attrs.frozen
class ExternalRef:
    """The result of a task is somewhere else."""

    uri: str


ResultRef: TypeAlias = ThreadMessageRef | ExternalRef


@attrs.frozen
class Success:
    """The attempt did its work: the task is completed. ``value`` is its result, JSON."""

    status: ClassVar[TaskStatus] = TaskStatus.COMPLETED
    value: Any = None
    ref: ResultRef | None = None


@attrs.frozen
class Failed:
    """The attempt failed with ``error``; ``value`` is what it has to show all the same, JSON."""

    status: ClassVar[TaskStatus] = TaskStatus.FAILED
    error: str
    value: Any = None


@attrs.frozen
class Cancelled:
    """The attempt was cancelled on request. The task is never resumed."""

    status: ClassVar[TaskStatus] = TaskStatus.CANCELLED


@attrs.frozen
class Stopped:
    """The attempt ended before its work did, for ``reason``; it may be resumed."""

    status: ClassVar[TaskStatus] = TaskStatus.STOPPED
    reason: str | None = None


TaskResult: TypeAlias = Success | Failed | Cancelled | Stopped
"""How an attempt ended: what a body returns, and what is recorded."""


@attrs.frozen
class Progress:
    """How far an attempt is: ``done`` of ``total`` (unknown: None), in the tool's own units."""

    done: float
    total: float | None = None
    message: str | None = None

    def to_json(self) -> JsonObject:
        """Return the JSON shape; absent parts are omitted."""
        shape: JsonObject = {"done": self.done}
        if self.total is not None:
            shape["total"] = self.total
        if self.message is not None:
            shape["message"] = self.message
        return shape


QuestionState: TypeAlias = Literal["open", "answered", "declined"]


@attrs.frozen
class Question:
    """What a running task asks; ``schema`` is the JSON Schema of the ``answer``.

    ``question_id`` is unique for the life of the task. ``answer`` means something in the state
    ``answered`` only.
    """

    question_id: str
    message: str
    schema: JsonObject
    asked_at_ms: int
    state: QuestionState = "open"
    answer: Any = None

    def to_json(self) -> JsonObject:
        """Return the JSON shape of an open question."""
        return {
            "question_id": self.question_id,
            "message": self.message,
            "schema": clone_json(self.schema),
            "asked_at_ms": self.asked_at_ms,
        }


def copied_questions(
    questions: tuple[Question, ...], copy: Callable[[Any], Any]
) -> tuple[Question, ...]:
    """Return the questions with the JSON inside copied by ``copy``."""
    return tuple(
        attrs.evolve(question, schema=copy(question.schema), answer=copy(question.answer))
        for question in questions
    )


@attrs.frozen(slots=False)  # with that many fields, half the cost to make one (measured)
class TaskSummary:
    """What tools and people see of a task. ``questions`` are the open ones, oldest first."""

    task_id: str
    task_type: str
    description: str
    status: TaskStatus
    created_at_ms: int
    supports_resume: bool = False
    attempt: int = 1
    error: str | None = None
    result: Any = None
    result_ref: ResultRef | None = None
    completed_at_ms: int | None = None
    parent_task_id: str | None = None
    metadata: JsonObject = attrs.field(factory=dict[str, JsonValue])
    progress: Progress | None = None
    queued: bool = False
    persistence_error: str | None = None
    questions: tuple[Question, ...] = ()

    def to_json(self) -> JsonObject:
        """Return the JSON shape for models: what is not set is not there."""
        shape: JsonObject = {
            "task_id": self.task_id,
            "task_type": self.task_type,
            "description": self.description,
            "status": self.status.value,
            "created_at_ms": self.created_at_ms,
            "supports_resume": self.supports_resume,
            "attempt": self.attempt,
        }
        if self.result is not None:
            shape["result"] = clone_json(self.result)
        if self.result_ref is not None:
            shape["result_ref"] = ref_to_json(self.result_ref)
        for name in ("error", "completed_at_ms", "parent_task_id", "persistence_error"):
            value = getattr(self, name)
            if value is not None:
                shape[name] = value
        if self.metadata:
            shape["metadata"] = clone_json(self.metadata)
        if self.progress is not None:
            shape["progress"] = self.progress.to_json()
        if self.queued:
            shape["queued"] = True
        if self.questions:
            shape["questions"] = [question.to_json() for question in self.questions]
        return shape


def ref_to_json(ref: ResultRef) -> JsonObject:
    """Return the JSON shape of a result reference, tagged by ``kind``."""
    if isinstance(ref, ExternalRef):
        return {"kind": "external", "uri": ref.uri}
    shape: JsonObject = {"kind": "thread_message", "thread_id": ref.thread_id}
    if ref.message_id is not None:
        shape["message_id"] = ref.message_id
    return shape


def shown_result(value: Any, ref: ResultRef | None) -> Any:
    """Return what a model is shown as the result: its URI, if that is all there is."""
    return ref.uri if value is None and isinstance(ref, ExternalRef) else value


@attrs.frozen(slots=False)  # see `evolved`
class TaskRecord:
    """The durable record of a task; only `apply` makes a new one from an old one.

    ``seq`` is the store's: it grows with every record, and lists are in its order. ``executor_id``
    is set exactly while the status is running. ``questions`` are those that are open, and those
    answered since the last checkpoint. Times are milliseconds of the epoch.
    """

    task_id: str
    owner_thread_id: str
    task_type: str
    description: str
    status: TaskStatus
    attempt: int
    created_at_ms: int
    updated_at_ms: int
    background: bool = True
    supports_resume: bool = False
    parent_task_id: str | None = None
    executor_id: str | None = None
    args: JsonObject = attrs.field(factory=dict[str, JsonValue])
    metadata: JsonObject = attrs.field(factory=dict[str, JsonValue])
    idempotency_key: str | None = None
    cancel_requested_at_ms: int | None = None
    completed_at_ms: int | None = None
    error: str | None = None
    result: Any = None
    result_ref: ResultRef | None = None
    checkpoint: Any = None
    progress: Progress | None = None
    output_bytes: int = 0
    questions: tuple[Question, ...] = ()
    questions_asked: int = 0
    seq: int = 0

    @property
    def has_ended(self) -> bool:
        """True when no attempt runs and none can follow: terminal, or stopped for good."""
        return self.status.is_terminal or (
            self.status is TaskStatus.STOPPED and not self.supports_resume
        )

    @property
    def cancel_accepted(self) -> bool:
        """True once a cancel is final: its mark, or the end that it caused, is stored."""
        return self.cancel_requested_at_ms is not None or self.status is TaskStatus.CANCELLED

    def question(self, question_id: str) -> Question | None:
        """Return the question of this id, None when the record does not have it (any more)."""
        return next((q for q in self.questions if q.question_id == question_id), None)

    @property
    def open_questions(self) -> tuple[Question, ...]:
        """The questions that can be answered now; shares no mutable data with the record."""
        if not self.questions or self.cancel_requested_at_ms is not None:
            return ()
        still_open = tuple(question for question in self.questions if question.state == "open")
        return copied_questions(still_open, clone_json)

    def summary(self, *, queued: bool = False, persistence_error: str | None = None) -> TaskSummary:
        """Return what tools and people may see; shares no mutable data with the record."""
        return TaskSummary(
            self.task_id,
            self.task_type,
            self.description,
            self.status,
            self.created_at_ms,
            self.supports_resume,
            self.attempt,
            self.error,
            clone_json(self.result),
            self.result_ref,
            self.completed_at_ms,
            self.parent_task_id,
            clone_json(self.metadata),
            self.progress,
            queued,
            persistence_error,
            self.open_questions if self.questions else (),  # most have none: a call less
        )


@attrs.frozen
class OutputPage:
    """A piece of a task's output log. Offsets and sizes are bytes of its UTF-8 text.

    ``text`` begins at ``offset`` (later than asked for when the oldest output was dropped) and ends
    between two characters at ``next_offset``, where the next page begins.
    """

    text: str
    offset: int
    next_offset: int
    total_bytes: int
    dropped_bytes: int

    def to_json(self) -> JsonObject:
        """Return the JSON shape, exactly these five keys."""
        return {
            "text": self.text,
            "offset": self.offset,
            "next_offset": self.next_offset,
            "total_bytes": self.total_bytes,
            "dropped_bytes": self.dropped_bytes,
        }


JournalKind: TypeAlias = Literal[
    "registered",
    "finished",
    "cancel_requested",
    "orphaned",
    "attempt_started",
    "question_asked",
    "question_answered",
    "question_declined",
]


@attrs.frozen
class JournalEntry:
    """One line of a task's history: a status change, an accepted cancel, a question, its answer.

    ``executor_id`` is who did it (None: a request from outside); ``status`` is what it led to;
    ``detail`` the error, or the id of the question.
    """

    at_ms: int
    kind: JournalKind
    attempt: int
    status: TaskStatus
    executor_id: str | None = None
    detail: str | None = None


@attrs.frozen
class Notice:
    """The announcement of one ended attempt, as the store keeps it until it is acknowledged."""

    notice_id: int
    summary: TaskSummary
    background: bool = True


def evolved(record: TaskRecord, **changes: Any) -> TaskRecord:
    """Return ``record`` with ``changes``: `attrs.evolve` at a tenth of its cost (measured).

    A record is made anew four times in the life of a task. That is the largest single cost of a
    task, and the reason why records keep their fields in a dict.
    """
    new = object.__new__(TaskRecord)
    object.__setattr__(new, "__dict__", record.__dict__ | changes)
    return new
