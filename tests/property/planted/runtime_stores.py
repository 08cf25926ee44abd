"""Stores with one bug each, planted for `RuntimeMachine`."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from trio_bgtasks import (
    CancelRequested,
    CheckpointSaved,
    Event,
    Finished,
    MemoryTaskStore,
    Notice,
    ParentCancelled,
    Registered,
    Success,
    TaskNotStopped,
    TaskRecord,
    TaskStatus,
)
from trio_bgtasks._records import evolved
from trio_bgtasks.stores import RecordPage, SweepReport
from trio_bgtasks.testing import RuntimeMachine

from .stores import CollectsAncestors, SweepsTheLiving


class ForgetsCancels(MemoryTaskStore):
    """Says that a cancel is accepted, and does not keep it."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        record = await self.load(task_id)
        if isinstance(event, CancelRequested) and record and record.status == "running":
            return evolved(record, cancel_requested_at_ms=event.at_ms)
        return await super().apply(task_id, event)


class ForgetsCheckpoints(MemoryTaskStore):
    """Keeps the checkpoint before, and says that it is the new one."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        record = await self.load(task_id)
        if isinstance(event, CheckpointSaved) and record:
            event = attrs.evolve(event, value=record.checkpoint)
        return await super().apply(task_id, event)


class ForgetsResults(MemoryTaskStore):
    """Keeps that an attempt succeeded, but not with what."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        if isinstance(event, Finished):
            event = attrs.evolve(event, outcome=attrs.evolve(event.outcome))
            if isinstance(event.outcome, Success):
                event = attrs.evolve(event, outcome=Success())
        return await super().apply(task_id, event)


class LosesLastWords(MemoryTaskStore):
    """Drops the output that comes with the end of an attempt."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        if isinstance(event, Finished):
            event = attrs.evolve(event, output="")
        return await super().apply(task_id, event)


class ResumesTwice(MemoryTaskStore):
    """Lets the loser of two resumes believe that it won."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        try:
            return await super().apply(task_id, event)
        except TaskNotStopped as error:
            refusal = error
        record = await self.load(task_id)
        if record is None or record.status != "running":
            raise refusal
        return record


class FindsNobodyDead(MemoryTaskStore):
    """Never fences an executor."""

    async def sweep(
        self, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        return await super().sweep(executor_id, at_ms, suspect=suspect or executor_id)


class AnnouncesTwice(MemoryTaskStore):
    """Does not delete what was acknowledged."""

    async def acknowledge(self, owner_thread_id: str, notice_ids: Sequence[int]) -> None:
        return


class AcknowledgesAll(MemoryTaskStore):
    """Deletes also what was not handed out, or was not taken."""

    async def notices(
        self, owner_thread_id: str, *, limit: int = 200, background_only: bool = False
    ) -> list[Notice]:
        found = await super().notices(owner_thread_id, limit=limit, background_only=background_only)
        await self.acknowledge(owner_thread_id, [notice.notice_id for notice in found])
        return found


class TellsStrangers(MemoryTaskStore):
    """Lists the tasks of all owners."""

    async def list_owner(
        self,
        owner_thread_id: str,
        *,
        after: int = 0,
        limit: int = 200,
        status: TaskStatus | None = None,
        task_type: str | None = None,
    ) -> RecordPage:
        records = [record for t in list(self._records) if (record := await self.load(t))]
        return RecordPage(records)


class LetsChildrenStart(MemoryTaskStore):
    """Does not look whether a parent is under an accepted cancel."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        try:
            return await super().apply(task_id, event)
        except ParentCancelled:
            assert isinstance(event, Registered)
            return await super().apply(task_id, attrs.evolve(event, parent_task_id=None))


PLANTED: list[tuple[type[MemoryTaskStore], str]] = [
    (ForgetsCancels, "promise (5|13):"),
    (ForgetsCheckpoints, "promise 2:"),
    (ForgetsResults, "promise 2:"),
    (LosesLastWords, "promise 2:"),
    (ResumesTwice, "promise 7:"),
    (SweepsTheLiving, "promise 6:"),
    (FindsNobodyDead, "promise 6:"),
    (AnnouncesTwice, "promise 11:"),
    (AcknowledgesAll, "promise 11:"),
    (TellsStrangers, "promise 8:"),
    (CollectsAncestors, "promise 3:"),
    (LetsChildrenStart, "promise 5:"),
]


def machine_for(store: type[MemoryTaskStore]) -> type[RuntimeMachine]:
    """Return the machine of a runtime on that store."""

    class Planted(RuntimeMachine):
        def make_store(self) -> MemoryTaskStore:
            return store()

    return Planted
