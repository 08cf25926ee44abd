"""Looking: what the store says of a task, and what only this process knows beside it."""

from __future__ import annotations

import logging

import trio

from ._errors import ManagerClosed, UnknownTask
from ._execution import ambient
from ._hints import Hints
from ._liveness import Liveness
from ._records import TaskRecord, TaskStatus, TaskSummary
from ._requests import ManagerConfig
from ._slots import ANSWERED, FREED, Slot
from ._supervision import Supervisor
from .stores import TaskStore

log = logging.getLogger("trio_bgtasks.manager")


class Looker:
    """Reads for one manager; whoever runs a task in another process is looked after on the way."""

    def __init__(
        self,
        store: TaskStore,
        config: ManagerConfig,
        supervisor: Supervisor,
        liveness: Liveness,
        hints: Hints,
    ) -> None:
        self._store = store
        self._config = config
        self._supervisor = supervisor
        self._slots = supervisor.slots
        self._liveness = liveness
        self._hints = hints

    # ---- one task -----------------------------------------------------------------------------

    def own_slot(self, owner_thread_id: str, task_id: str) -> Slot | None:
        """Return the slot of this owner's task, if it is live here."""
        slot = self._slots.get(task_id)
        return slot if slot is not None and slot.owner_thread_id == owner_thread_id else None

    async def settled(self, owner_thread_id: str | None, task_id: str) -> TaskRecord | None:
        """Load a task of this owner (None: of any); look after its executor if that is foreign."""
        slot = self._slots.get(task_id)
        if slot is not None:
            await slot.reach(ANSWERED)
        record = await self._store.load(task_id)
        if record is None or owner_thread_id not in (None, record.owner_thread_id):
            return None
        if record.status is TaskStatus.RUNNING and await self._liveness.settle(record):
            record = await self._store.load(task_id)
        return record

    async def known(self, owner_thread_id: str, task_id: str) -> TaskRecord:
        """Do the same; raise `UnknownTask` when this owner has no such task."""
        record = await self.settled(owner_thread_id, task_id)
        if record is None:
            raise UnknownTask(task_id)
        return record

    def summary(self, record: TaskRecord) -> TaskSummary:
        """Return the summary of a record that was read just now."""
        slot = self._slots.get(record.task_id)
        return record.summary() if slot is None else slot.summary(record)

    async def get(self, owner_thread_id: str, task_id: str) -> TaskSummary | None:
        """Return how a task stands; of a live one also while the store cannot be read."""
        try:
            record = await self.settled(owner_thread_id, task_id)
        except Exception as error:
            slot = self.own_slot(owner_thread_id, task_id)
            if slot is None or slot.record is None:
                raise
            unsaved = slot.persistence_error or f"not read back: {type(error).__name__}: {error}"
            return slot.record.summary(queued=slot.queued, persistence_error=unsaved)
        return None if record is None else self.summary(record)

    # ---- the tasks of an owner ----------------------------------------------------------------

    async def records(
        self, owner_thread_id: str, status: TaskStatus | None, task_type: str | None
    ) -> list[TaskRecord]:
        """Return the owner's records in order of creation; a corrupt one is left out and logged."""
        running = await self._list(owner_thread_id, TaskStatus.RUNNING, None)
        foreign = {record.executor_id: record for record in running}
        for record in foreign.values():
            await self._liveness.settle(record)
        return await self._list(owner_thread_id, status, task_type)

    async def _list(
        self, owner_thread_id: str, status: TaskStatus | None, task_type: str | None
    ) -> list[TaskRecord]:
        records: list[TaskRecord] = []
        after: int | None = 0
        while after is not None:
            page = await self._store.list_owner(
                owner_thread_id, after=after, status=status, task_type=task_type
            )
            records += page.records
            for error in page.corrupt:
                log.error("left out of a list: %s", error, extra={"task_id": error.task_id})
            after = page.next_after
            if after is not None:
                await trio.lowlevel.checkpoint()
        return records

    # ---- waiting ------------------------------------------------------------------------------

    async def wait(self, owner_thread_id: str, task_id: str) -> TaskSummary:
        """Wait until the task is not running; level-triggered.

        A live task wakes us when its slot goes, or when it is no longer for this process to say how
        it ends. Then, and if it is not live here, the store is polled.
        """
        if self._is_within(task_id):
            raise RuntimeError("wait() would wait for the task that calls it")
        self._hints.waiters += 1
        try:
            while (slot := self.own_slot(owner_thread_id, task_id)) is not None:
                if slot.executor.lost.is_set():
                    break
                await slot.changed()
                record = slot.record if slot.stage == FREED else None
                if record is not None and record.status is not TaskStatus.RUNNING:
                    return record.summary()  # what was stored last: the truth, unread
            return await self._watched(owner_thread_id, task_id)
        finally:
            self._hints.waiters -= 1

    async def _watched(self, owner_thread_id: str, task_id: str) -> TaskSummary:
        """Wait for the end of a task that is not live here, or not ours any more."""
        with self._hints.watch(task_id) as watch:
            while True:
                changed = watch.event
                summary = await self.get(owner_thread_id, task_id)
                if summary is None:
                    raise UnknownTask(task_id)
                # What is owed to a stopped one, a cancel, is still to end it.
                if summary.status is not TaskStatus.RUNNING and summary.persistence_error is None:
                    return summary
                if self._hints.closed:
                    raise ManagerClosed("the task manager is closed")
                with trio.move_on_after(self._config.poll_s):
                    await changed.wait()

    def _is_within(self, task_id: str) -> bool:
        """Is this call made from within a task, or from within one below it?"""
        for execution in ambient(self._supervisor):
            slot = self._slots[execution.task_id]  # there for as long as its body runs
            if task_id in (slot.task_id, *slot.lineage):
                return True
        return False
