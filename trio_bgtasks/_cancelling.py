"""Cancelling one task or a whole tree: mark durably first, then cancel the scope."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import attrs
import trio

from ._errors import CorruptRecord, Refused, TaskNotRunning, TaskStoreError
from ._events import CancelRequested
from ._hints import Hints
from ._records import TaskRecord, TaskStatus, TaskSummary
from ._requests import CancelledTree, ManagerConfig
from ._slots import Slot
from ._supervision import Supervisor
from ._waits import StoreWaits
from .stores import RecordPage, TaskStore

log = logging.getLogger("trio_bgtasks.manager")


class Canceller:
    """Accepts cancels for tasks of any process; ends those that run in this one."""

    def __init__(
        self,
        store: TaskStore,
        config: ManagerConfig,
        waits: StoreWaits,
        supervisor: Supervisor,
        hints: Hints,
    ) -> None:
        self._store = store
        self._config = config
        self._waits = waits
        self._slots = supervisor.slots
        self._ends = supervisor.ends
        self._hints = hints

    @trio.lowlevel.enable_ki_protection
    async def cancel(self, record: TaskRecord, within_s: float | None = None) -> TaskSummary:
        """Cancel one task; return how it stands.

        ``within_s``: how long the store may take; None: ``write_grace_s`` for what runs here, else
        as long as the caller waits.

        Raises:
            TaskNotRunning: it has ended.
            TaskStoreError: the mark could not be stored and no attempt is live here.
        """
        now = self._config.clock_ms()
        try:
            after = await self._mark(record.task_id, CancelRequested(now), within_s)
        except Refused:
            raise
        except Exception as error:
            slot = self._slots.get(record.task_id)
            if slot is None:
                raise
            if slot.mark_error is None and record.status is not TaskStatus.RUNNING:
                raise  # what is live there is a later attempt, if it is ever stored
            return self._cancel_unsaved(slot, record, now, error)
        slot = self._slots.get(record.task_id)
        if slot is None:
            self._hints.changed(after.owner_thread_id, after.task_id)
            return after.summary()
        slot.cancel_at_ms = after.cancel_requested_at_ms
        if after.status.is_terminal:
            slot.note(after)
        self._ends.marked(slot)
        slot.stop("cancel")
        self._hints.changed(slot.owner_thread_id, slot.task_id, wake=False)
        return slot.summary(after)

    async def _mark(
        self, task_id: str, event: CancelRequested, within_s: float | None
    ) -> TaskRecord:
        if within_s is None:
            if task_id not in self._slots:
                return await self._store.apply(task_id, event)
            # What runs here ends even if the store never answers.
            within_s = self._config.write_grace_s
        with self._waits.bound(within_s):
            return await self._store.apply(task_id, event)
        raise TaskStoreError("the store did not answer in time")

    def _cancel_unsaved(
        self, slot: Slot, record: TaskRecord, now: int, error: Exception
    ) -> TaskSummary:
        if slot.cancel_at_ms is None:  # else it is stored, or owed, already
            slot.cancel_at_ms = now
            self._ends.owe_mark(slot, error)
        slot.stop("cancel")
        self._hints.changed(slot.owner_thread_id, slot.task_id, wake=False)
        summary = slot.summary(slot.record or record)
        if isinstance(error, CorruptRecord) and summary.persistence_error is None:
            # It was stored, and with the record it is lost: that is to be told, as `get` does.
            return attrs.evolve(summary, persistence_error=f"not read back: {error}")
        return summary

    async def cancel_tree(self, root: TaskRecord) -> CancelledTree:
        """Cancel a task and everything below it, top down, until a pass finds nothing new.

        Raises:
            TaskNotRunning: nothing in the tree runs or is stopped.
            TaskStoreError: a mark could not be stored, or children not be read; all that could be
                cancelled was.
        """
        tree = _Tree(self._store, self._config, self._waits, self._slots, self.cancel, root)
        # The caller may be of the tree itself: it is not to end half-way. Each step is bounded.
        with trio.CancelScope(shield=True):
            while await tree.cancel_pass():
                pass
        return tree.result()


class _Tree:
    """One `Canceller.cancel_tree` under way."""

    def __init__(
        self,
        store: TaskStore,
        config: ManagerConfig,
        waits: StoreWaits,
        slots: dict[str, Slot],
        cancel: Callable[[TaskRecord, float], Awaitable[TaskSummary]],
        root: TaskRecord,
    ) -> None:
        self._store = store
        self._grace_s = config.write_grace_s
        self._waits = waits
        self._slots = slots
        self._cancel_one = cancel
        self._root = root
        self._own: dict[str, TaskSummary] = {}
        self._others: set[str] = set()
        self._refusal: Refused = TaskNotRunning(root.task_id, root.status)
        self._unmarked: Exception | None = None
        self._unread: Exception | None = None
        self._answered()

    def _answered(self) -> None:
        # Since its last answer the store has one grace: what runs here ends even if none comes.
        self._until = trio.current_time() + self._grace_s

    @property
    def _left_s(self) -> float:
        return max(0.0, self._until - trio.current_time())

    async def cancel_pass(self) -> bool:
        """Walk the tree top down and cancel what is not cancelled yet; tell if there was any."""
        before = len(self._own) + len(self._others)
        self._unmarked = self._unread = None
        seen = {self._root.task_id}  # lineage may run in circles
        level: dict[str, TaskRecord | None] = {self._root.task_id: self._root}
        while level:
            below: dict[str, TaskRecord | None] = {}
            for task_id, record in level.items():
                if record is not None:
                    await self._cancel(record)
                children = await self._children(task_id)
                below |= {i: child for i, child in children.items() if i not in seen}
            seen |= below.keys()
            level = below
        return len(self._own) + len(self._others) > before

    def result(self) -> CancelledTree:
        """Return what was cancelled, or raise what is in the way of a true answer."""
        own = list(self._own.values())
        # A store that failed for the caller's own tasks, too, shows there: they will be retried.
        unsaved = any(summary.persistence_error is not None for summary in own)
        failure = self._unmarked or (None if unsaved else self._unread)
        if failure is not None:
            raise failure
        if not own and not self._others:
            raise self._refusal
        return CancelledTree(own, len(self._others))

    async def _cancel(self, record: TaskRecord) -> None:
        task_id = record.task_id
        if record.status.is_terminal or task_id in self._own or task_id in self._others:
            return
        try:
            summary = await self._cancel_one(record, self._left_s)
        except Refused as refusal:  # it ended just now
            self._answered()
            if record is self._root:
                self._refusal = refusal
        except Exception as error:  # noqa: BLE001 - the others are to be cancelled all the same
            self._unmarked = error
        else:
            if summary.persistence_error is None:
                self._answered()
            if record.owner_thread_id == self._root.owner_thread_id:
                self._own[task_id] = summary
            else:
                self._others.add(task_id)

    async def _children(self, task_id: str) -> dict[str, TaskRecord | None]:
        """Return the tasks below by id, whoever owns them; None for what cannot be read."""
        found: dict[str, TaskRecord | None] = {
            slot.task_id: slot.record
            for slot in self._slots.values()
            if slot.record is not None and slot.record.parent_task_id == task_id
        }
        after: int | None = 0
        try:
            while after is not None:
                page = await self._page(task_id, after)
                for error in page.corrupt:
                    if error.task_id not in found:  # what is live here can be cancelled
                        log.error("not cancelled: %s", error, extra={"task_id": error.task_id})
                        found[error.task_id] = None
                found.update((record.task_id, record) for record in page.records)
                after = page.next_after
        except Exception as error:  # noqa: BLE001 - what is live here is known without the store
            log.warning("children of %s not read: %s", task_id, error, extra={"task_id": task_id})
            self._unread = error
        return found

    async def _page(self, task_id: str, after: int) -> RecordPage:
        with self._waits.bound(self._left_s):
            page = await self._store.children(task_id, after=after)
            self._answered()
            return page
        raise TaskStoreError("the store did not answer in time")
