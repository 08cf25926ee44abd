"""`Slot`: the run-time handle of a task that this process runs.

It lives from before the task's start is stored until its end is stored. Truth about status is the
store's; a slot only says "live here".
"""

from __future__ import annotations

import attrs
import trio

from ._places import Ticket
from ._records import TaskRecord, TaskSummary
from .stores import ExecutorHandle


@attrs.define(eq=False)
class Slot:
    """A task that is live in this process."""

    task_id: str
    owner_thread_id: str
    background: bool
    scope: trio.CancelScope
    executor: ExecutorHandle
    lineage: tuple[str, ...] = ()
    record: TaskRecord | None = None
    reasons: set[str] = attrs.field(factory=set[str])
    cancel_at_ms: int | None = None
    mark_error: str | None = None
    end_error: str | None = None
    ticket: Ticket | None = None
    running: bool = False
    deadline_s: float | None = None
    answered: trio.Event = attrs.field(factory=trio.Event)
    freed: trio.Event = attrs.field(factory=trio.Event)

    def stop(self, reason: str) -> None:
        """Note why, then cancel the attempt's scope. The order is the promise."""
        self.reasons.add(reason)
        self.scope.cancel(reason=f"trio_bgtasks: {reason} of task {self.task_id}")

    @property
    def queued(self) -> bool:
        """Does the attempt wait for a place?"""
        return self.ticket is not None and not self.ticket.granted.is_set()

    @property
    def persistence_error(self) -> str | None:
        """What is known here but not stored yet, and why."""
        return self.end_error or self.mark_error

    def summary(self, record: TaskRecord) -> TaskSummary:
        """Return the record's summary with what only this process knows."""
        return record.summary(queued=self.queued, persistence_error=self.persistence_error)

    def extra(self) -> dict[str, object]:
        """Return the ``extra`` fields of a log line about this attempt."""
        attempt = None if self.record is None else self.record.attempt
        return {
            "task_id": self.task_id,
            "owner_thread_id": self.owner_thread_id,
            "attempt": attempt,
        }
