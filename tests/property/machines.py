"""The machines of the kit on the memory store: nothing is wrong there, and much can be planted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

import attrs
import trio

from trio_bgtasks import (
    CheckpointSaved,
    Finished,
    LeaseTerms,
    MemoryTaskStore,
    Refused,
    StoreClosed,
    Success,
    TaskStore,
)
from trio_bgtasks.stores import SweepReport
from trio_bgtasks.testing import CorruptibleStore, RuntimeMachine, TaskStoreMachine


class MemoryMachine(TaskStoreMachine):
    """The memory store: its place is the store itself, and its machines are simulated."""

    cancelled_is_not_applied = True

    @contextmanager
    def new_place(self) -> Iterator[MemoryTaskStore]:
        yield MemoryTaskStore()

    @asynccontextmanager
    async def open_store(self, place: MemoryTaskStore) -> AsyncIterator[TaskStore]:
        yield place

    async def kill(self, place: MemoryTaskStore, executor_ids: Sequence[str]) -> MemoryTaskStore:
        for executor_id in executor_ids:
            with suppress(KeyError):  # a store with a bug may have forgotten it
                place.crash(executor_id)
        await trio.sleep(LeaseTerms().lease_s)
        return place


class SweptInSteps(CorruptibleStore):
    """Ends the tasks of the dead a moment after the fence, as a store does that has many of them.

    In between arrives what they wrote last: nothing of it may be taken.
    """

    _only_fence = False

    async def sweep(
        self, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        self._only_fence = True
        fenced = (await super().sweep(executor_id, at_ms, suspect=suspect)).fenced
        self._only_fence = False
        for name in fenced:
            for task_id in self._running_under(name):
                attempt = self._records[task_id].attempt
                for late in (
                    CheckpointSaved(at_ms, name, attempt, "late"),
                    Finished(at_ms, name, attempt, Success("late")),
                ):
                    with suppress(Refused, StoreClosed):
                        await self.apply(task_id, late)
        report = await super().sweep(executor_id, at_ms, suspect=suspect)
        return attrs.evolve(report, fenced=fenced)

    def _end_orphans(self, suspect: str | None, at_ms: int) -> list[tuple[str, str]]:
        return [] if self._only_fence else super()._end_orphans(suspect, at_ms)


class Runtime(RuntimeMachine):
    """On a store that takes its time between the fence and the end of a dead machine's tasks."""

    def make_store(self) -> CorruptibleStore:
        return SweptInSteps()
