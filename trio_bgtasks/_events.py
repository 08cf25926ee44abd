"""What may happen to a task: the events, and the `Facts` that a store reads beside. Data only."""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs

from ._json import JsonObject, JsonValue
from ._records import Progress, TaskResult

DEFAULT_KEEP_BYTES = 8 << 20


@attrs.frozen(slots=False)  # see `TaskSummary`
class Registered:
    """A new task and its first attempt, which ``executor_id`` is about to run."""

    at_ms: int
    executor_id: str
    owner_thread_id: str
    task_type: str
    description: str
    background: bool = True
    supports_resume: bool = False
    parent_task_id: str | None = None
    args: JsonObject = attrs.field(factory=dict[str, JsonValue])
    metadata: JsonObject = attrs.field(factory=dict[str, JsonValue])
    idempotency_key: str | None = None


@attrs.frozen(slots=False)  # see `TaskSummary`
class Finished:
    """An attempt ended with ``outcome``.

    ``cancel_requested_at_ms`` is a cancel mark that could not be stored before. ``output`` is the
    end of the output log from byte ``output_offset`` on, ``progress`` the latest one; None: as
    stored. ``announce`` is False for a foreground attempt whose caller has the answer.
    """

    at_ms: int
    executor_id: str
    attempt: int
    outcome: TaskResult
    cancel_requested_at_ms: int | None = None
    output_offset: int = 0
    output: str = ""
    keep_bytes: int = DEFAULT_KEEP_BYTES
    announce: bool = True
    progress: Progress | None = None


@attrs.frozen
class CancelRequested:
    """Somebody who may do so asks for the end of the task."""

    at_ms: int


@attrs.frozen
class CheckpointSaved:
    """The attempt's own state, from which a later attempt may go on.

    ``delivered``: the questions whose answers the body had before it; they are not needed again.
    """

    at_ms: int
    executor_id: str
    attempt: int
    value: Any
    delivered: tuple[str, ...] = ()


@attrs.frozen
class ProgressReported:
    """How far the attempt is."""

    at_ms: int
    executor_id: str
    attempt: int
    progress: Progress


@attrs.frozen
class OutputAppended:
    """A piece of the output log that begins at byte ``offset`` of all output of the task.

    Applied twice it changes nothing: what is stored already is passed over. A gap before it counts
    as dropped. The store keeps the newest ``keep_bytes``.
    """

    at_ms: int
    executor_id: str
    attempt: int
    offset: int
    text: str
    keep_bytes: int = DEFAULT_KEEP_BYTES


@attrs.frozen
class QuestionAsked:
    """The attempt asks for an answer that fits the JSON Schema ``schema``.

    ``waiting`` and ``delivered`` are the questions that it asked before and still waits for, or has
    the answer of. One of the same words and schema that is neither is not asked again; other open
    ones that are neither are withdrawn.
    """

    at_ms: int
    executor_id: str
    attempt: int
    message: str
    schema: JsonObject
    waiting: tuple[str, ...] = ()
    delivered: tuple[str, ...] = ()


@attrs.frozen
class QuestionsWithdrawn:
    """The attempt waits for these questions only; the others that are open are withdrawn."""

    at_ms: int
    executor_id: str
    attempt: int
    waiting: tuple[str, ...] = ()


@attrs.frozen
class QuestionAnswered:
    """Somebody who may do so answers an open question, or declines to."""

    at_ms: int
    question_id: str
    answer: Any = None
    declined: bool = False


@attrs.frozen
class Orphaned:
    """The executor of the attempt is dead: it was fenced before."""

    at_ms: int
    executor_id: str
    attempt: int


@attrs.frozen
class AttemptStarted:
    """A stopped task is resumed by ``executor_id``, with the merged ``args``."""

    at_ms: int
    executor_id: str
    owner_thread_id: str
    task_type: str
    expected_attempt: int
    args: JsonObject
    background: bool = True


AttemptWrite: TypeAlias = (
    CheckpointSaved | ProgressReported | OutputAppended | QuestionAsked | QuestionsWithdrawn
)
Request: TypeAlias = CancelRequested | QuestionAnswered
"""What comes from outside: of no attempt and of no executor."""
Event: TypeAlias = Registered | Finished | Request | AttemptWrite | Orphaned | AttemptStarted
"""What may happen to a task: all that ever changes a record."""


@attrs.frozen
class Facts:
    """What the store read, in the transaction of the change, beside the record.

    ``executor_fenced``: the event's executor is fenced, retired or was never registered.
    ``id_used``: a task of this id was collected. ``key_used_by``: the task that this owner's
    idempotency key started. ``parent_cancelled``: the parent's record says ``cancel_accepted``.
    """

    executor_fenced: bool = False
    id_used: bool = False
    key_used_by: str | None = None
    parent_cancelled: bool = False


NO_FACTS = Facts()
