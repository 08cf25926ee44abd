"""What goes into the manager and what it reports: requests, configuration, statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from ._checks import check_bool, check_int, check_period, check_seconds
from ._json import JsonObject, JsonValue, check_id, clean_text, json_object
from ._records import TaskSummary
from .stores import LeaseTerms, wall_clock_ms

# Validators take the attribute and value as Any: attrs' own types would narrow them to the declared
# type, and to find that a value is not of it is what they are for.


def _check_optional_id(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None:
        check_id(value, attribute.name)


def _check_required_id(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    check_id(value, attribute.name)


def _check_bool(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    check_bool(value, attribute.name)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"description must be a string, not {type(value).__name__}")
    return clean_text(value)


def _private_args(value: Any) -> JsonObject:
    return json_object(value, "args")


def _private_metadata(value: Any) -> JsonObject:
    return json_object(value, "metadata")


def _check_seconds(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None or attribute.default is not None:
        check_seconds(value, attribute.name)


def _check_period(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    check_period(value, attribute.name)


def _check_count(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None or attribute.default is not None:
        check_int(value, attribute.name, least=1)


def _check_output_bound(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    check_int(value, attribute.name, least=1024)


def _check_lease(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, LeaseTerms):
        raise TypeError(f"{attribute.name} must be LeaseTerms, not {type(value).__name__}")


def _check_callable(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{attribute.name} must be a function, not {type(value).__name__}")


def cutoff_ms(now_ms: int, age_s: float) -> int:
    """Return the time ``age_s`` before ``now_ms``, not before the epoch."""
    return int(max(0.0, now_ms - age_s * 1000))


@attrs.frozen(kw_only=True)
class StartRequest:
    """What is to be started, or resumed when ``resume_attempt`` names the attempt that stopped.

    Checked, and its JSON copied, when it is made.

    Args:
        owner_thread_id: The conversation that owns the task.
        task_type: Which tool it is; only the same type may resume it.
        description: For people and prompts; shortened to the manager's limit.
        task_id: The id of the task; None for a fresh one.
        parent_task_id: Its parent in the lineage; None: the attempt that makes the call, if any.
        args: What a resume will be given again; JSON.
        metadata: Shown in the summary; JSON.
        supports_resume: May the task be resumed after it was stopped?
        idempotency_key: Used before by this owner: nothing is started. Only starts have keys: that
            of a resume is not recorded.
        deadline_s: Seconds that an attempt's body may take; None: the manager's default.
        resume_attempt: The attempt that stopped, for a resume.

    Raises:
        TypeError: a field is of the wrong kind.
        ValueError: a field's value is not allowed.
    """

    owner_thread_id: str = attrs.field(validator=_check_required_id)
    task_type: str = attrs.field(validator=_check_required_id)
    description: str = attrs.field(default="", converter=_text)
    task_id: str | None = attrs.field(default=None, validator=_check_optional_id)
    parent_task_id: str | None = attrs.field(default=None, validator=_check_optional_id)
    args: JsonObject = attrs.field(factory=dict[str, JsonValue], converter=_private_args)
    metadata: JsonObject = attrs.field(factory=dict[str, JsonValue], converter=_private_metadata)
    supports_resume: bool = attrs.field(default=False, validator=_check_bool)
    idempotency_key: str | None = attrs.field(default=None, validator=_check_optional_id)
    deadline_s: float | None = attrs.field(default=None, validator=_check_seconds)
    resume_attempt: int | None = attrs.field(default=None, validator=_check_count)

    def __attrs_post_init__(self) -> None:
        """Check what no single field can tell."""
        if self.resume_attempt is not None and self.task_id is None:
            raise ValueError("task_id is required with resume_attempt")


@attrs.frozen(kw_only=True)
class ManagerConfig:
    """The bounds of one manager. Seconds, bytes, characters, counts; None means no bound.

    Args:
        attempts_per_owner: Concurrent background attempts of an owner; further ones are queued.
        attempts_total: Concurrent background attempts in all.
        output_bytes: Output kept of a task; the newest is kept. At least 1024.
        description_chars: Length of a description.
        shutdown_grace_s: How long closing waits for the store, and between its warnings (those: 1 s
            at least).
        attempt_deadline_s: How long a body may run.
        owner_idle_s: When an owner's nursery without attempts is released.
        retention_s: How long ended records are kept.
        write_grace_s: How long one write that must happen may hold up a cancelled caller; more than
            0, as is every period.
        sweep_s: The time between two sweeps.
        poll_s: How soon a cancel that another process accepted is seen.
        lease: How the executor proves that it is alive.
        clock_ms: The wall clock.
    """

    attempts_per_owner: int | None = attrs.field(default=None, validator=_check_count)
    attempts_total: int | None = attrs.field(default=None, validator=_check_count)
    output_bytes: int = attrs.field(default=8 << 20, validator=_check_output_bound)
    description_chars: int = attrs.field(default=500, validator=_check_count)
    shutdown_grace_s: float = attrs.field(default=10.0, validator=_check_seconds)
    attempt_deadline_s: float | None = attrs.field(default=None, validator=_check_seconds)
    owner_idle_s: float = attrs.field(default=60.0, validator=_check_seconds)
    retention_s: float | None = attrs.field(default=None, validator=_check_seconds)
    write_grace_s: float = attrs.field(default=5.0, validator=_check_period)
    sweep_s: float = attrs.field(default=15.0, validator=_check_period)
    poll_s: float = attrs.field(default=2.0, validator=_check_period)
    lease: LeaseTerms = attrs.field(default=LeaseTerms(), validator=_check_lease)
    clock_ms: Callable[[], int] = attrs.field(default=wall_clock_ms, validator=_check_callable)


@attrs.frozen
class CancelledTree:
    """What `cancel_tree` cancelled: the caller's own tasks, and the number of other owners'."""

    own: list[TaskSummary]
    others: int

    @property
    def unsaved(self) -> list[TaskSummary]:
        """The own ones whose mark is not stored yet; it is retried."""
        return [summary for summary in self.own if summary.persistence_error is not None]


@attrs.frozen
class ManagerStatistics:
    """What a manager holds at this moment, and what it has done so far.

    Args:
        executor_id: The current executor.
        owners: Open owner nurseries.
        starting: Slots that wait for the store's answer to their start.
        queued: Background attempts that wait for a place.
        background: Background attempts whose body runs.
        foreground: Foreground attempts whose body runs.
        unsaved: Ended attempts whose end is not stored yet.
        waiters: Calls of ``wait`` under way.
        subscribers: Open subscriptions.
        started: Attempts started so far.
        finished: Attempts whose end was stored so far.
        orphans: Tasks of dead executors that this manager ended.
        write_retries: Repeated writes of ends so far.
    """

    executor_id: str
    owners: int
    starting: int
    queued: int
    background: int
    foreground: int
    unsaved: int
    waiters: int
    subscribers: int
    started: int
    finished: int
    orphans: int
    write_retries: int
