"""Cancelling one task or a whole tree: mark durably first, then cancel the scope."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import attrs

from ._errors import Refused, TaskError, TaskNotRunning
from ._hints import Hints
from ._lifecycle import CancelRequested
from ._records import TaskRecord, TaskStatus, TaskSummary
from ._requests import CancelledTree, ManagerConfig
from ._slots import Slot
from .stores import TaskStore

log = logging.getLogger("trio_bgtasks.manager")


class Canceller:
    """Accepts cancels for tasks of any process; ends those that run in this one."""

    def __init__(
        self, store: TaskStore, config: ManagerConfig, slots: dict[str, Slot], hints: Hints
    ) -> None:
        self._store = store
        self._config = config
        self._slots = slots
        self._hints = hints

    async def cancel(self, record: TaskRecord) -> TaskSummary:
        """Cancel one task; return how it stands.

        Raises:
            TaskNotRunning: it has ended.
            TaskStoreError: the mark could not be stored and no attempt is live here.
        """
        now = self._config.clock_ms()
        try:
            after = await self._store.apply(record.task_id, CancelRequested(now))
        except Refused:
            raise
        except Exception as error:
            slot = self._slots.get(record.task_id)
            if slot is None:
                raise
            return self._cancel_unsaved(slot, record, now, error)
        slot = self._slots.get(record.task_id)
        if slot is None:
            self._hints.changed(after.owner_thread_id, after.task_id)
            return after.summary()
        slot.cancel_at_ms = after.cancel_requested_at_ms
        slot.mark_error = None
        slot.stop("cancel")
        self._hints.changed(slot.owner_thread_id, slot.task_id, wake=False)
        return slot.summary(after)

    def _cancel_unsaved(
        self, slot: Slot, record: TaskRecord, now: int, error: Exception
    ) -> TaskSummary:
        slot.cancel_at_ms = slot.cancel_at_ms or now
        slot.mark_error = f"the cancellation is not stored yet: {type(error).__name__}: {error}"
        slot.stop("cancel")
        log.warning("task %s: %s", slot.task_id, slot.mark_error, extra=slot.extra())
        return slot.summary(slot.record or record)

    async def cancel_tree(self, root: TaskRecord) -> CancelledTree:
        """Cancel a task and everything below it, top down, until a pass finds nothing new.

        Raises:
            TaskNotRunning: nothing in the tree runs or is stopped.
        """
        done: dict[str, TaskSummary] = {}
        others = 0
        while True:
            found = False
            async for record in self._walk(root):
                if record.task_id in done or record.status.is_terminal:
                    continue
                if record.status is TaskStatus.STOPPED or self._needs_cancel(record):
                    try:
                        summary = await self.cancel(record)
                    except TaskNotRunning:
                        continue  # it ended just now
                    found = True
                else:
                    summary = self._summary(record)
                done[record.task_id] = summary
                others += record.owner_thread_id != root.owner_thread_id
                if record.owner_thread_id != root.owner_thread_id:
                    done[record.task_id] = attrs.evolve(summary, task_id="")
            if not found:
                break
        if not done:
            raise TaskNotRunning(root.task_id, root.status)
        return CancelledTree([summary for summary in done.values() if summary.task_id], others)

    def _needs_cancel(self, record: TaskRecord) -> bool:
        return record.status is TaskStatus.RUNNING

    def _summary(self, record: TaskRecord) -> TaskSummary:
        slot = self._slots.get(record.task_id)
        return record.summary() if slot is None else slot.summary(record)

    async def _walk(self, root: TaskRecord) -> AsyncIterator[TaskRecord]:
        """Yield the tree top down, whoever owns it; through ended tasks; cycles allowed for."""
        seen = {root.task_id}
        level = [root]
        while level:
            below: list[TaskRecord] = []
            for record in level:
                yield record
                below += [c for c in await self._children(record.task_id) if c.task_id not in seen]
                seen.update(child.task_id for child in below)
            level = below

    async def _children(self, task_id: str) -> list[TaskRecord]:
        found: dict[str, TaskRecord] = {}
        after: int | None = 0
        try:
            while after is not None:
                page = await self._store.children(task_id, after=after)
                found.update((record.task_id, record) for record in page.records)
                after = page.next_after
        except TaskError as error:
            # What is live here is known without the store.
            log.warning("children of %s not read: %s", task_id, error, extra={"task_id": task_id})
        for slot in self._slots.values():
            if slot.record is not None and slot.lineage[:1] == (task_id,):
                found.setdefault(slot.task_id, slot.record)
        return list(found.values())
