"""Stores with one bug each, planted for `RuntimeMachine`; and the sound one that it runs on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import attrs

from trio_bgtasks import (
    CancelRequested,
    CheckpointSaved,
    Event,
    Finished,
    MemoryTaskStore,
    Notice,
    ParentCancelled,
    Refused,
    Registered,
    StoreClosed,
    Success,
    TaskNotStopped,
    TaskRecord,
    TaskStatus,
)
from trio_bgtasks._records import evolved
from trio_bgtasks.stores import RecordPage, SweepReport

from .stores import CollectsAncestors, SweepsTheLiving


class SweptInSteps(MemoryTaskStore):
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


class ForgetsCancels(MemoryTaskStore):
    """Says that a cancel is accepted, and does not keep it."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        record = await self.load(task_id)
        if isinstance(event, CancelRequested) and record and record.status == "running":
            return evolved(record, cancel_requested_at_ms=event.at_ms)
        return await super().apply(task_id, event)


class ForgetsCheckpoints(MemoryTaskStore):
    """Returns before a checkpoint is kept, which then never happens."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        record = await self.load(task_id)
        if isinstance(event, CheckpointSaved) and record:
            return record
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


BROKEN_STORES = [
    ForgetsCancels,
    ForgetsCheckpoints,
    ForgetsResults,
    LosesLastWords,
    ResumesTwice,
    SweepsTheLiving,
    FindsNobodyDead,
    AnnouncesTwice,
    AcknowledgesAll,
    TellsStrangers,
    CollectsAncestors,
    LetsChildrenStart,
]
