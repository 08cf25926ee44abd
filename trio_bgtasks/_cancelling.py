"""Cancelling one task or a whole tree: mark durably first, then cancel the scope."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from ._errors import Refused, TaskError, TaskNotRunning, TaskStoreError
from ._hints import Hints
from ._lifecycle import CancelRequested
from ._records import TaskRecord, TaskSummary
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
            TaskStoreError: some mark could not be stored; all others were.
        """
        own: list[TaskSummary] = []
        done: set[str] = set()
        failure: TaskStoreError | None = None
        while True:
            before = len(done)
            async for record in self._walk(root):
                if record.task_id in done or record.status.is_terminal:
                    continue
                try:
                    summary = await self.cancel(record)
                except Refused:
                    continue  # it ended just now
                except TaskStoreError as error:
                    failure = error
                    continue
                done.add(record.task_id)
                if record.owner_thread_id == root.owner_thread_id:
                    own.append(summary)
            if len(done) == before:
                break
        if failure is not None:
            raise failure
        if not done:
            raise TaskNotRunning(root.task_id, root.status)
        return CancelledTree(own, len(done) - len(own))

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
