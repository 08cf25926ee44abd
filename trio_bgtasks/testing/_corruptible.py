"""`CorruptibleStore`: a memory store whose rows can be damaged, as those on a disk can."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from trio_bgtasks import CorruptRecord, Event, MemoryTaskStore, TaskRecord, TaskStatus
from trio_bgtasks.stores import RecordPage, SweepReport

from ._faulty import PAGE


class CorruptibleStore(MemoryTaskStore):
    """A `MemoryTaskStore` of which a record cannot be read any more after `corrupt`.

    What is stored beside the record (journal, output, notices) is as it was, and so is what a
    database keeps in columns: lists and sweeps know of it, and say that it is corrupt.
    """

    def __init__(self) -> None:
        super().__init__()
        self._damaged: set[str] = set()

    def corrupt(self, task_id: str) -> None:
        """Damage the record of a task for ever: whoever reads it gets a `CorruptRecord`."""
        self._damaged.add(task_id)

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        """See `TaskStore.apply`."""
        if task_id in self._damaged:
            raise _corrupt(task_id)
        return await super().apply(task_id, event)

    async def load(self, task_id: str) -> TaskRecord | None:
        """See `TaskStore.load`."""
        if task_id in self._damaged:
            raise _corrupt(task_id)
        return await super().load(task_id)

    async def list_owner(
        self,
        owner_thread_id: str,
        *,
        after: int = 0,
        limit: int = PAGE,
        status: TaskStatus | None = None,
        task_type: str | None = None,
    ) -> RecordPage:
        """See `TaskStore.list_owner`."""
        page = await super().list_owner(
            owner_thread_id, after=after, limit=limit, status=status, task_type=task_type
        )
        index = self._by_owner.get(owner_thread_id, [])
        there = [
            record
            for record in super()._rows(index, after)
            if status in (None, record.status) and task_type in (None, record.task_type)
        ]
        return self._with_corrupt(page, there)

    async def children(self, task_id: str, *, after: int = 0, limit: int = PAGE) -> RecordPage:
        """See `TaskStore.children`."""
        page = await super().children(task_id, after=after, limit=limit)
        return self._with_corrupt(page, super()._rows(self._by_parent.get(task_id, []), after))

    def _with_corrupt(self, page: RecordPage, there: Iterable[TaskRecord]) -> RecordPage:
        last = page.next_after
        return attrs.evolve(
            page,
            corrupt=[
                _corrupt(record.task_id)
                for record in there
                if record.task_id in self._damaged and (last is None or record.seq <= last)
            ],
        )

    async def sweep(
        self, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        """See `TaskStore.sweep`."""
        report = await super().sweep(executor_id, at_ms, suspect=suspect)
        orphans = [
            _corrupt(task_id)
            for task_id, name in self._running.items()
            if task_id in self._damaged and suspect in (None, name) and self._is_fenced(name)
        ]
        return attrs.evolve(report, corrupt=orphans)

    def _rows(self, index: list[str], after: int) -> Iterator[TaskRecord]:
        return (r for r in super()._rows(index, after) if r.task_id not in self._damaged)

    def _running_under(self, executor_id: str) -> list[str]:
        return [t for t in super()._running_under(executor_id) if t not in self._damaged]


def _corrupt(task_id: str) -> CorruptRecord:
    return CorruptRecord(task_id, "damaged")
