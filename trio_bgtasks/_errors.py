"""Every error of the library, in one tree under `TaskError`.

A *refusal* (`Refused`) is the lifecycle's answer to an event that may not happen now; nothing was
changed. A `TaskStoreError` is the store's: unless it is a `StoreBusy`, whether the change was
applied is unknown until the record has been read back.
"""

from __future__ import annotations

import copyreg
from typing import Any


class TaskError(Exception):
    """Root of all errors of this library; they can be pickled and copied."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Make it again without ``__init__``, which takes other arguments than the text."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class ManagerClosed(TaskError):
    """The manager is closing or closed, or the owner thread is being closed: nothing started."""


class Refused(TaskError):
    """The lifecycle refused an event; the record is as it was.

    ``task_id`` is the task; the text names its current status.
    """

    def __init__(self, task_id: str, text: str) -> None:
        self.task_id = task_id
        super().__init__(text)


class UnknownTask(Refused):
    """There is no such task for this owner (or tool). The same answer for absent and foreign."""

    def __init__(self, task_id: str) -> None:
        super().__init__(task_id, f"Unknown task_id: {task_id}")


class TaskNotRunning(Refused):
    """The task has ended or is stopped, so this event came too late."""

    def __init__(self, task_id: str, status: str) -> None:
        self.status = status
        super().__init__(task_id, f"Task '{task_id}' is not running (current status: {status})")


class TaskNotStopped(Refused):
    """Only a stopped task can be resumed; somebody else was faster, or it has ended."""

    def __init__(self, task_id: str, status: str) -> None:
        self.status = status
        super().__init__(task_id, f"Task '{task_id}' is not stopped (current status: {status})")


class TaskNotResumable(Refused):
    """The task is stopped, but may not be resumed: ``reason`` says why."""

    def __init__(self, task_id: str, reason: str) -> None:
        self.reason = reason
        text = f"Task '{task_id}' cannot be resumed: {reason} (current status: stopped)"
        super().__init__(task_id, text)


class TaskExists(Refused):
    """The task id is taken, now or by a task that was collected. Ids are never used twice."""

    def __init__(self, task_id: str, status: str | None = None) -> None:
        self.status: str | None = status
        state = "collected" if status is None else status
        super().__init__(task_id, f"Task '{task_id}' exists already (current status: {state})")


class IdempotencyKeyUsed(TaskExists):
    """This owner's idempotency key started ``task_id`` already; nothing was started now."""

    def __init__(self, task_id: str, key: str) -> None:
        self.task_id = task_id
        self.key = key
        self.status: str | None = None
        text = f"idempotency_key {key!r} was used already, by task '{task_id}'"
        Refused.__init__(self, task_id, text)


class StaleAttempt(Refused):
    """The write came from an attempt, or an executor, that no longer runs the task."""

    def __init__(self, task_id: str, attempt: int, current: int, status: str) -> None:
        self.attempt = attempt
        self.current = current
        text = (
            f"attempt {attempt} of task '{task_id}' may not write any more "
            f"(current attempt: {current}, current status: {status})"
        )
        super().__init__(task_id, text)


class ExecutorFenced(Refused):
    """The executor that wrote is dead for the store, for ever; nothing of it is taken."""

    def __init__(self, task_id: str, executor_id: str, status: str) -> None:
        self.executor_id = executor_id
        text = f"executor {executor_id} is fenced: task '{task_id}' stays {status}"
        super().__init__(task_id, text)


class ExecutorAlive(Refused):
    """An orphan was claimed, but the executor of the task has not been fenced."""

    def __init__(self, task_id: str, executor_id: str) -> None:
        self.executor_id = executor_id
        text = f"Task '{task_id}' is running under a live executor {executor_id}"
        super().__init__(task_id, text)


class QuestionClosed(Refused):
    """The question cannot be answered: it never was, or is not open any more; ``reason`` says."""

    def __init__(self, task_id: str, question_id: str, reason: str) -> None:
        self.question_id = question_id
        self.reason = reason
        super().__init__(task_id, f"Question '{question_id}' of task '{task_id}': {reason}")


class ParentCancelled(Refused):
    """A child was to be started below a task whose cancellation was accepted."""

    def __init__(self, task_id: str, parent_task_id: str) -> None:
        self.parent_task_id = parent_task_id
        text = f"Task '{task_id}' is not started: its parent '{parent_task_id}' is cancelled"
        super().__init__(task_id, text)


class InvalidAnswer(TaskError, ValueError):
    """The answer does not fit the schema of the question; it stays open."""


class QuestionDeclined(TaskError):
    """Whoever was asked declined to answer."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(f"the answer was declined: {message}")


class TaskStoreError(TaskError):
    """The store could not answer. Whether a change was applied is unknown: read it back."""


class StoreBusy(TaskStoreError):
    """The store did not get to it in time; nothing was applied, so the call may be repeated."""


class StoreClosed(StoreBusy):
    """The store was closed before the call was taken; nothing was applied."""


class InvalidValue(TaskStoreError):
    """The store refuses this very value and always will; repeating the call is useless."""


class CorruptRecord(TaskStoreError):
    """The stored record of ``task_id`` cannot be read; the other records are not affected."""

    def __init__(self, task_id: str, why: str) -> None:
        self.task_id = task_id
        self.why = why
        super().__init__(f"the stored record of task '{task_id}' is corrupt: {why}")


class SchemaTooNew(TaskStoreError):
    """The store was written by a newer version of this library; it was left as it is."""
