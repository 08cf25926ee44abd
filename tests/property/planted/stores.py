"""Stores with one bug each, that a `TaskStoreMachine` must find."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import attrs
import trio

from tests.property.machines import MemoryMachine
from trio_bgtasks import (
    CancelRequested,
    CheckpointSaved,
    Event,
    Finished,
    LeaseTerms,
    MemoryTaskStore,
    Notice,
    Orphaned,
    OutputAppended,
    OutputPage,
    QuestionAnswered,
    Refused,
    Registered,
    TaskRecord,
    TaskStatus,
)
from trio_bgtasks._lifecycle import JournalLine, journal_line
from trio_bgtasks.stores import ExecutorHandle, RecordPage, SweepReport, wall_clock_ms
from trio_bgtasks.testing import TaskStoreMachine


class LastWriteWins(MemoryTaskStore):
    """Loads, thinks, and saves: what was saved meanwhile is overwritten."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        seen = self._records.get(task_id)
        await trio.lowlevel.checkpoint()
        if seen is not None and self._records.get(task_id) is not seen:
            self._records[task_id] = seen
            self._running.pop(task_id, None)
            if seen.executor_id is not None:
                self._running[task_id] = seen.executor_id
        return self._apply(task_id, event)


class DropsANotice(MemoryTaskStore):
    """Tells nobody of a second attempt that ended."""

    def _save(self, before: TaskRecord | None, event: Event, after: TaskRecord) -> None:
        if isinstance(event, Finished) and after.attempt == 2:
            event = attrs.evolve(event, announce=False)
        super()._save(before, event, after)


class AnnouncesTwice(MemoryTaskStore):
    """Tells of an end again, under another number, when it was cancelled afterwards."""

    def _save(self, before: TaskRecord | None, event: Event, after: TaskRecord) -> None:
        super()._save(before, event, after)
        if isinstance(event, CancelRequested) and after.status is TaskStatus.CANCELLED:
            self._notices.setdefault(after.owner_thread_id, {})[self._next_notice] = after
            self._next_notice += 1


class AcknowledgesForOthers(MemoryTaskStore):
    """Deletes a notice by its number, whosever it is."""

    async def acknowledge(self, owner_thread_id: str, notice_ids: Sequence[int]) -> None:
        for owner in list(self._notices):
            await super().acknowledge(owner, notice_ids)


class ReusesNoticeNumbers(MemoryTaskStore):
    """Counts from one when there is no notice left."""

    async def acknowledge(self, owner_thread_id: str, notice_ids: Sequence[int]) -> None:
        await super().acknowledge(owner_thread_id, notice_ids)
        if not self._notices:
            self._next_notice = 1


class SkipsUnderInserts(MemoryTaskStore):
    """A page is followed by what was created after it was read."""

    async def list_owner(self, owner_thread_id: str, **options: Any) -> RecordPage:
        page = await super().list_owner(owner_thread_id, **options)
        newest = self._seq
        await trio.lowlevel.checkpoint()
        is_last = page.next_after is None or self._seq == newest
        return page if is_last else attrs.evolve(page, next_after=self._seq)


class ForgetsTombstones(MemoryTaskStore):
    """An id may be used again when its task was collected."""

    def _forget(self, gone: list[TaskRecord]) -> None:
        super()._forget(gone)
        self._used_ids.clear()


class ReusesKeys(MemoryTaskStore):
    """A key may be used again when its task was collected."""

    def _forget(self, gone: list[TaskRecord]) -> None:
        super()._forget(gone)
        for record in gone:
            self._keys.pop((record.owner_thread_id, record.idempotency_key or ""), None)


class AppliesAfterNo(MemoryTaskStore):
    """Keeps the output of an attempt that it refuses."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        try:
            return self._apply(task_id, event)
        except Refused:
            if task_id in self._records:
                self._append_output(self._records[task_id], event)
            raise


class AppliesWhenCancelled(MemoryTaskStore):
    """A caller that is cancelled while it waits for its answer has been heard."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        record = self._apply(task_id, event)
        await trio.lowlevel.checkpoint()
        return record


class HalfATransaction(MemoryTaskStore):
    """Saves, and writes the journal a moment later: in between a caller may be cancelled."""

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        lines = list(self._journal.get(task_id, ()))
        record = self._apply(task_id, event)
        whole = self._journal.get(task_id, [])
        self._journal[task_id] = lines
        await trio.lowlevel.checkpoint()
        self._journal[task_id] = whole
        return record


class HandsOutItsOwn(MemoryTaskStore):
    """Gives away the checkpoint that it keeps."""

    async def load(self, task_id: str) -> TaskRecord | None:
        return self._records.get(task_id)


class KeepsWhatItWasGiven(MemoryTaskStore):
    """Stores the caller's own arguments."""

    def _checked(self, event: Event, after: TaskRecord) -> TaskRecord:
        checked = super()._checked(event, after)
        return attrs.evolve(checked, args=event.args) if isinstance(event, Registered) else checked


class SharesItsQuestions(MemoryTaskStore):
    """Keeps what it was given as an answer, which its caller may change."""

    def _checked(self, event: Event, after: TaskRecord) -> TaskRecord:
        checked = super()._checked(event, after)
        if isinstance(event, QuestionAnswered):
            checked.__dict__["questions"] = tuple(
                attrs.evolve(q, answer=event.answer) if q.question_id == event.question_id else q
                for q in checked.questions
            )
        return checked


class CountsCharacters(MemoryTaskStore):
    """Takes offsets for numbers of characters."""

    async def read_output(self, task_id: str, *, offset: int, limit: int) -> OutputPage:
        page = await super().read_output(task_id, offset=offset, limit=limit)
        return attrs.evolve(page, next_offset=page.offset + len(page.text))


class RepeatsOutput(MemoryTaskStore):
    """Appends what is appended, whatever its offset."""

    def _append_output(self, before: TaskRecord, event: Event) -> None:
        if isinstance(event, OutputAppended):
            event = attrs.evolve(event, offset=max(event.offset, before.output_bytes))
        elif isinstance(event, Finished):
            offset = max(event.output_offset, before.output_bytes)
            event = attrs.evolve(event, output_offset=offset)
        super()._append_output(before, event)


class KeepsTheOldest(MemoryTaskStore):
    """Drops the newest output when there is too much."""

    def _append_output(self, before: TaskRecord, event: Event) -> None:
        if not isinstance(event, OutputAppended | Finished):
            return
        super()._append_output(before, attrs.evolve(event, keep_bytes=1 << 20))
        log = self._output.get(before.task_id)
        while log is not None and log.kept > event.keep_bytes:
            log.kept -= len(log.chunks.pop()[1])


class SweepsTheLiving(MemoryTaskStore):
    """Takes everybody for dead but who sweeps."""

    async def sweep(
        self, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        for name, executor in self._executors.items():
            if name != executor_id:
                executor.expires_at = 0.0
                executor.renewal.cancel()
        return await super().sweep(executor_id, at_ms, suspect=suspect)


class SweepsOnce(MemoryTaskStore):
    """Fences the dead and forgets their tasks."""

    def _end_orphans(self, suspect: str | None, at_ms: int) -> list[tuple[str, str]]:
        return super()._end_orphans(suspect, at_ms) if suspect is not None else []


class ForgetsTheJournal(MemoryTaskStore):
    """Writes nothing down of a cancel."""

    def _save(self, before: TaskRecord | None, event: Event, after: TaskRecord) -> None:
        super()._save(before, event, after)
        if isinstance(event, CancelRequested):
            self._journal[after.task_id].pop()


class RetiresNobody(MemoryTaskStore):
    """Takes what an executor writes that has said goodbye."""

    def _facts(self, task_id: str, event: Event) -> Any:
        facts = super()._facts(task_id, event)
        if isinstance(event, Registered | Orphaned):
            return facts
        return attrs.evolve(facts, executor_fenced=False)


class CollectsAncestors(MemoryTaskStore):
    """Collects what has ended, also above a task that runs."""

    def _ancestors_of_running(self) -> set[str]:
        return set()


class NumbersFromTheCount(MemoryTaskStore):
    """A new task gets the number after those that are there."""

    def _forget(self, gone: list[TaskRecord]) -> None:
        super()._forget(gone)
        self._seq = max((record.seq for record in self._records.values()), default=0)


class MixesUpZeros(MemoryTaskStore):
    """An encoding that makes integers of what looks like them."""

    def _checked(self, event: Event, after: TaskRecord) -> TaskRecord:
        checked = super()._checked(event, after)
        value = checked.checkpoint
        if isinstance(event, CheckpointSaved) and isinstance(value, dict) and "numbers" in value:
            numbers = [int(n) if n == 1.0 else n for n in value["numbers"]]
            return attrs.evolve(checked, checkpoint={**value, "numbers": numbers})
        return checked


class CountsPassedOver(MemoryTaskStore):
    """The limit of background notices counts those of the foreground, too."""

    async def notices(
        self, owner_thread_id: str, *, limit: int = 200, background_only: bool = False
    ) -> list[Notice]:
        found = await super().notices(owner_thread_id, limit=limit)
        return [notice for notice in found if notice.background or not background_only]


class ShowsTooEarly(MemoryTaskStore):
    """Shows a change before it is kept: who is cancelled in between takes back what others saw."""

    def __init__(self) -> None:
        super().__init__()
        self._writer = trio.Lock()

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        async with self._writer:
            kept = {k: copy.deepcopy(v) for k, v in vars(self).items() if k in self._tables}
            record = self._apply(task_id, event)
            try:
                await _a_slow_disk()
            except trio.Cancelled:
                vars(self).update(kept)
                raise
            return record

    _tables = frozenset(vars(MemoryTaskStore())) - {"_executors"}


class DiesInTheMiddle(MemoryTaskStore):
    """Writes the record, and the journal a moment later: who is killed in between has half of it.

    Whoever is only cancelled waits for both.
    """

    def __init__(self) -> None:
        super().__init__()
        self._half_done: list[tuple[list[JournalLine], JournalLine]] = []

    def _save(self, before: TaskRecord | None, event: Event, after: TaskRecord) -> None:
        super()._save(before, event, after)
        line = journal_line(before, event, after)
        if line is not None:
            self._half_done.append((self._journal[after.task_id], line))

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        record = self._apply(task_id, event)
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
        self._half_done.clear()
        return record

    async def sweep(self, *args: Any, **options: Any) -> SweepReport:
        report = await super().sweep(*args, **options)
        self._half_done.clear()
        return report

    def crash(self, executor_id: str) -> None:
        super().crash(executor_id)
        for journal, line in self._half_done:
            journal.remove(line)
        self._half_done.clear()


class CommitsTooLate(MemoryTaskStore):
    """Answers, and commits with the next call: who is killed before has forgotten it."""

    def __init__(self) -> None:
        super().__init__()
        self._undo: list[tuple[str, TaskRecord]] = []

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        before = self._records.get(task_id)
        self._undo.clear()
        record = self._apply(task_id, event)
        if before is not None and isinstance(event, CheckpointSaved):
            self._undo.append((task_id, before))
        return record

    def crash(self, executor_id: str) -> None:
        super().crash(executor_id)
        self._records.update(self._undo)


class ForgetsWhenItIsClosed(CommitsTooLate):
    """Answers, and commits with the next call: when all have closed it, the last is forgotten."""

    @asynccontextmanager
    async def executor(
        self, terms: LeaseTerms, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> AsyncGenerator[ExecutorHandle, None]:
        async with super().executor(terms, clock_ms) as handle:
            yield handle
        if all(executor.fenced for executor in self._executors.values()):
            self._records.update(self._undo)

    def crash(self, executor_id: str) -> None:
        MemoryTaskStore.crash(self, executor_id)


class CountsFromTheEndOfWhatIsKept(MemoryTaskStore):
    """Takes an offset from the end for one from the beginning of what is still there."""

    async def read_output(self, task_id: str, *, offset: int, limit: int) -> OutputPage:
        log = self._output.get(task_id)
        if offset < 0 and log is not None:
            offset = max(0, log.kept + offset)
        return await super().read_output(task_id, offset=offset, limit=limit)


class SweepsByHalf(MemoryTaskStore):
    """Leaves the tasks of the dead to the sweep that found them, also if that was cut off."""

    def __init__(self) -> None:
        super().__init__()
        self._found: set[str] = set()

    async def sweep(
        self, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        now = trio.current_time()
        mine = {n for n, e in self._executors.items() if e.is_dead(now) and suspect in (None, n)}
        self._found |= mine
        report = await super().sweep(executor_id, at_ms, suspect=suspect)
        await trio.lowlevel.checkpoint()
        self._found -= mine
        ended = [pair for name in mine for pair in self._end_orphans(name, at_ms)]
        return attrs.evolve(report, ended=[*report.ended, *ended])

    def _end_orphans(self, suspect: str | None, at_ms: int) -> list[tuple[str, str]]:
        names = set(self._running.values()) if suspect is None else {suspect}
        ended = [super(SweepsByHalf, self)._end_orphans(n, at_ms) for n in names - self._found]
        return [pair for pairs in ended for pair in pairs]


class TakesAwayWhatItShows(MemoryTaskStore):
    """Whoever goes away before he is shown his notices has read them."""

    async def notices(
        self, owner_thread_id: str, *, limit: int = 200, background_only: bool = False
    ) -> list[Notice]:
        found = await super().notices(owner_thread_id, limit=limit, background_only=background_only)
        try:
            await _a_slow_disk()
        except trio.Cancelled:
            await super().acknowledge(owner_thread_id, [notice.notice_id for notice in found])
            raise
        return found


class RegistersForEver(MemoryTaskStore):
    """An executor that goes away while it is registered has not said goodbye."""

    @asynccontextmanager
    async def executor(
        self, terms: LeaseTerms, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> AsyncGenerator[ExecutorHandle, None]:
        async with super().executor(terms, clock_ms) as executor:
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled:
                self.crash(executor.executor_id)
                raise
            yield executor


PLANTED: list[tuple[type[MemoryTaskStore], str]] = [
    (LastWriteWins, "one transaction|nothing else is|the journal has"),
    (DropsANotice, "every ended attempt is announced"),
    (AnnouncesTwice, "every ended attempt is announced"),
    (AcknowledgesForOthers, "every ended attempt is announced"),
    (ReusesNoticeNumbers, "every ended attempt is announced"),
    (SkipsUnderInserts, "pages show every record once"),
    (ForgetsTombstones, "answered as the lifecycle says"),
    (ReusesKeys, "answered as the lifecycle says"),
    (AppliesAfterNo, "the output log"),
    (AppliesWhenCancelled, "a call that was cancelled was not applied|one transaction"),
    (HalfATransaction, "one transaction|the journal has"),
    (HandsOutItsOwn, "what a store hands out"),
    (KeepsWhatItWasGiven, "one transaction|nothing else is|what a store hands out"),
    (SharesItsQuestions, "one transaction|nothing else is|what a store hands out"),
    (CountsCharacters, "the output log"),
    (RepeatsOutput, "the output log"),
    (KeepsTheOldest, "the output log"),
    (SweepsTheLiving, "a sweep ends"),
    (SweepsOnce, "a sweep ends"),
    (ForgetsTheJournal, "the journal has"),
    (RetiresNobody, "answered as the lifecycle says"),
    (CollectsAncestors, "answered as the lifecycle says|one transaction"),
    (NumbersFromTheCount, "sequence numbers grow"),
    (MixesUpZeros, "one transaction|answered as the lifecycle says"),
    (CountsPassedOver, "every ended attempt is announced"),
    (ShowsTooEarly, "one transaction"),
    (DiesInTheMiddle, "the journal has|nothing else is"),
    (CommitsTooLate, "nothing else is|one transaction"),
    (ForgetsWhenItIsClosed, "nothing else is"),
    (CountsFromTheEndOfWhatIsKept, "the output log"),
    (SweepsByHalf, "a sweep ends|one transaction|answered as"),
    (TakesAwayWhatItShows, "every ended attempt is announced"),
    (RegistersForEver, "a sweep ends"),
]


def machine_for(store: type[MemoryTaskStore]) -> type[TaskStoreMachine]:
    """Return the machine of a store, as its author would write it."""

    class Planted(MemoryMachine):
        @contextmanager
        def new_place(self) -> Iterator[MemoryTaskStore]:
            yield store()

    return Planted


async def _a_slow_disk() -> None:
    for _ in range(4):
        await trio.lowlevel.checkpoint()
