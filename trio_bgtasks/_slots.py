"""`Slot`: the run-time handle of a task that this process runs.

It lives from before the task's start is stored until its end is stored. Truth about status is the
store's; a slot only says "live here".
"""

from __future__ import annotations

import attrs
import trio

from ._owners import OwnerNursery
from ._places import Ticket
from ._records import TaskRecord, TaskSummary
from .stores import ExecutorHandle

# The stages of a slot, in their order:
STARTING = 0
ANSWERED = 1  # the store has answered the start
RETURNED = 2  # nothing of the attempt runs any more, and it was tried to store its end
FREED = 3  # the slot is gone


@attrs.define(eq=False)
class Slot:
    """A task that is live in this process.

    Attributes:
        task_id: The task.
        owner_thread_id: Who owns it.
        owner: The nursery of a background attempt, held; None: it runs in its caller's task.
        scope: The cancel scope of the body.
        executor: Under which executor it was started.
        deadline_s: How long the body may run.
        record: What the store said last; None while it has not answered the start.
        lineage: Its parent, then those above that were live when it was started.
        reasons: Why its scope was cancelled.
        caller_gone: A foreground attempt has nobody left to answer to.
        cancel_at_ms: The time of the accepted, or not yet stored, cancel.
        mark_error: Why the accepted cancel is not stored yet.
        end_error: How the attempt ended, and why that is not stored yet.
        lost: How the attempt ended, and why that was given up.
        ticket: Its claim to a place.
        running: Is the body running?
        stage: How far it is.
    """

    task_id: str
    owner_thread_id: str
    owner: OwnerNursery | None
    scope: trio.CancelScope
    executor: ExecutorHandle
    deadline_s: float | None
    record: TaskRecord | None = None
    lineage: tuple[str, ...] = ()
    reasons: set[str] = attrs.field(factory=set[str])
    caller_gone: bool = False
    cancel_at_ms: int | None = None
    mark_error: str | None = None
    end_error: str | None = None
    lost: str | None = None
    ticket: Ticket | None = None
    running: bool = False
    stage: int = STARTING
    _news: trio.Event | None = None  # made for who waits: for most, nobody does

    def stop(self, reason: str) -> None:
        """Note why, then cancel the attempt's scope. The order is the promise."""
        self.note_unasked_cancel()
        self.reasons.add(reason)
        self.scope.cancel(reason=f"trio_bgtasks: {reason} of task {self.task_id}")
        self._wake()

    def note_unasked_cancel(self) -> None:
        """Note a cancel by whoever owns the scope, unless it was cancelled for a reason before."""
        if not self.reasons and self.scope.cancel_called:
            self.reasons.add("cancel")

    def advance(self, stage: int) -> None:
        """Note how far the slot is, and wake who waits for that."""
        self.stage = stage
        self._wake()

    def note(self, record: TaskRecord | None) -> None:
        """Note what the store said. A final record is its last word, in whatever order it came."""
        if self.record is None or record is None or not self.record.status.is_terminal:
            self.record = record

    async def reach(self, stage: int) -> None:
        """Wait until the slot is that far."""
        while self.stage < stage:
            await self.changed()

    async def changed(self) -> None:
        """Wait until the slot is at another stage, or is to stop for one more reason."""
        if self._news is None:
            self._news = trio.Event()
        await self._news.wait()

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()
            self._news = None

    @property
    def background(self) -> bool:
        """Does the attempt run in its owner's nursery?"""
        return self.owner is not None

    @property
    def queued(self) -> bool:
        """Does the attempt wait for a place?"""
        return self.ticket is not None and not self.ticket.granted.is_set()

    @property
    def persistence_error(self) -> str | None:
        """What is known here but not stored yet, and why."""
        return self.end_error or self.mark_error

    def summary(self, record: TaskRecord) -> TaskSummary:
        """Return the record's summary; until it is final, with what only this process knows."""
        if record.status.is_terminal:
            return record.summary()
        return record.summary(queued=self.queued, persistence_error=self.persistence_error)

    def extra(self) -> dict[str, object]:
        """Return the ``extra`` fields of a log line about this attempt."""
        attempt = None if self.record is None else self.record.attempt
        return {
            "task_id": self.task_id,
            "owner_thread_id": self.owner_thread_id,
            "attempt": attempt,
        }
