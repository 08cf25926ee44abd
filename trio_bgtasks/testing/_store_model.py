"""What a `TaskStore` must hold: plain dictionaries, written by hand from the protocol.

Whether an event may happen is the lifecycle's answer (`trio_bgtasks.apply`), which all stores share
by contract. Everything that a store adds to it is here a second time: sequence numbers, journal,
notices, the output log, keys, tombstones, fences, sweeps and collection.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

import attrs

from trio_bgtasks import (
    AttemptStarted,
    CancelRequested,
    CorruptRecord,
    Event,
    Facts,
    Finished,
    JournalEntry,
    Orphaned,
    OutputAppended,
    QuestionAnswered,
    QuestionAsked,
    Registered,
    TaskRecord,
    TaskStatus,
    TaskSummary,
    apply,
)
from trio_bgtasks.stores import SweepReport

Life: TypeAlias = Literal["alive", "dead", "fenced"]
"""Of an executor: "dead" went without a goodbye, and no sweep has found it yet."""


@attrs.frozen
class ExpectedOutput:
    """The output log of a task: all that ever arrived, whether the store still keeps it or not."""

    total: int = 0
    keep_bytes: int = 0
    pieces: tuple[tuple[int, bytes], ...] = ()  # (offset, bytes), never adjacent

    def appended(self, offset: int, text: str, keep_bytes: int) -> ExpectedOutput:
        """Return the log with ``text`` at ``offset``; what lies before its end adds nothing."""
        data = text.encode()[max(0, self.total - offset) :]
        if not data:
            return self
        start = max(offset, self.total)
        last, end = self.pieces[-1] if self.pieces else (0, b"")
        if self.pieces and start == last + len(end):
            pieces = (*self.pieces[:-1], (last, end + data))
        else:
            pieces = (*self.pieces, (start, data))
        return ExpectedOutput(start + len(data), keep_bytes, pieces)

    def since(self, offset: int) -> list[tuple[int, bytes]]:
        """Return what arrived from ``offset`` on."""
        return [
            (max(at, offset), data[max(0, offset - at) :])
            for at, data in self.pieces
            if at + len(data) > offset
        ]


@attrs.frozen
class ExpectedNotice:
    """An attempt that ended and is not acknowledged; ``notice_id`` is 0 until it was seen."""

    owner: str
    summary: TaskSummary
    background: bool
    step: int
    notice_id: int = 0


@attrs.define
class StoreModel:
    """All that a store has to remember. Records are in order of creation; ``seq`` 0: not seen yet.

    Values are immutable, so that `copy` is cheap: the order of concurrent calls is tried out.
    """

    records: dict[str, TaskRecord] = attrs.field(factory=dict[str, TaskRecord])
    collected: frozenset[str] = frozenset()
    keys: dict[tuple[str, str], str] = attrs.field(factory=dict[tuple[str, str], str])
    journal: dict[str, tuple[JournalEntry, ...]] = attrs.field(
        factory=dict[str, tuple[JournalEntry, ...]]
    )
    output: dict[str, ExpectedOutput] = attrs.field(factory=dict[str, ExpectedOutput])
    notices: tuple[ExpectedNotice, ...] = ()
    executors: dict[str, Life] = attrs.field(factory=dict[str, Life])
    corrupt: frozenset[str] = frozenset()
    step: int = 0
    highest_seq: int = 0
    notice_ids: frozenset[int] = frozenset()  # all that were ever given

    def copy(self) -> StoreModel:
        """Return a model that changes by itself."""
        return attrs.evolve(
            self,
            records=dict(self.records),
            keys=dict(self.keys),
            journal=dict(self.journal),
            output=dict(self.output),
            executors=dict(self.executors),
        )

    # ---- one change ---------------------------------------------------------------------------

    def apply(self, task_id: str, event: Event) -> TaskRecord:
        """Change what ``event`` changes; raise what refuses it."""
        if task_id in self.corrupt:
            raise CorruptRecord(task_id, "it was damaged")
        before = self.records.get(task_id)
        after = apply(task_id, before, event, self._facts(task_id, event))
        if after is before:
            return after
        self.records[task_id] = after
        if isinstance(event, Registered) and event.idempotency_key is not None:
            self.keys[event.owner_thread_id, event.idempotency_key] = task_id
        self._write_journal(before, event, after)
        self._append_output(task_id, event)
        self._announce(event, after)
        return after

    def _facts(self, task_id: str, event: Event) -> Facts:
        if isinstance(event, CancelRequested | QuestionAnswered):
            return Facts()
        fenced = self.executors.get(event.executor_id, "fenced") == "fenced"
        if not isinstance(event, Registered):
            return Facts(executor_fenced=fenced)
        parent = self.records.get(event.parent_task_id or "")
        return Facts(
            executor_fenced=fenced,
            id_used=task_id in self.collected,
            key_used_by=self.keys.get((event.owner_thread_id, event.idempotency_key or "")),
            parent_cancelled=parent is not None and parent.cancel_accepted,
        )

    def _write_journal(self, before: TaskRecord | None, event: Event, after: TaskRecord) -> None:
        match event:
            case Registered(at_ms, executor_id):
                entry = JournalEntry(at_ms, "registered", 1, after.status, executor_id)
            case AttemptStarted(at_ms, executor_id):
                entry = JournalEntry(
                    at_ms, "attempt_started", after.attempt, after.status, executor_id
                )
            case CancelRequested(at_ms):
                entry = JournalEntry(at_ms, "cancel_requested", after.attempt, after.status)
            case Finished(at_ms, executor_id) | Orphaned(at_ms, executor_id):
                kind: Literal["finished", "orphaned"] = (
                    "finished" if isinstance(event, Finished) else "orphaned"
                )
                entry = JournalEntry(
                    at_ms, kind, after.attempt, after.status, executor_id, after.error
                )
            case QuestionAsked(at_ms, executor_id):
                if before is None or after.questions_asked == before.questions_asked:
                    return  # it repeats one
                new = f"q{after.questions_asked}"
                entry = JournalEntry(
                    at_ms, "question_asked", after.attempt, after.status, executor_id, new
                )
            case QuestionAnswered(at_ms, question_id):
                reply: Literal["question_declined", "question_answered"] = (
                    "question_declined" if event.declined else "question_answered"
                )
                entry = JournalEntry(at_ms, reply, after.attempt, after.status, None, question_id)
            case _:
                return
        self.journal[after.task_id] = (*self.journal.get(after.task_id, ()), entry)

    def _append_output(self, task_id: str, event: Event) -> None:
        match event:
            case OutputAppended():
                offset, text = event.offset, event.text
            case Finished():
                offset, text = event.output_offset, event.output
            case _:
                return
        log = self.output.get(task_id, ExpectedOutput())
        self.output[task_id] = log.appended(offset, text, event.keep_bytes)

    def _announce(self, event: Event, after: TaskRecord) -> None:
        if isinstance(event, Orphaned) or (isinstance(event, Finished) and event.announce):
            notice = ExpectedNotice(
                after.owner_thread_id, after.summary(), after.background, self.step
            )
            self.notices = (*self.notices, notice)

    # ---- the other writes ---------------------------------------------------------------------

    def acknowledge(self, owner: str, notice_ids: tuple[int, ...]) -> None:
        """Forget these notices of the owner, and no other's."""
        self.notices = tuple(
            n for n in self.notices if n.owner != owner or n.notice_id not in notice_ids
        )

    def collectable(self, owner: str | None, before_ms: int) -> set[str]:
        """Return what has ended by then and has no running descendant."""
        busy: set[str | None] = set()
        for record in self.records.values():
            above: TaskRecord | None = record if record.status is TaskStatus.RUNNING else None
            while above is not None and above.parent_task_id not in busy:
                busy.add(above.parent_task_id)
                above = self.records.get(above.parent_task_id or "")
        return {
            record.task_id
            for record in self.records.values()
            if owner in (None, record.owner_thread_id)
            and record.has_ended
            and record.task_id not in busy
            and (record.completed_at_ms or 0) <= before_ms
        }

    def collect(self, task_ids: set[str]) -> None:
        """Forget these tasks; their ids and keys stay used, their notices stay."""
        for task_id in task_ids:
            del self.records[task_id]
            self.journal.pop(task_id, None)
            self.output.pop(task_id, None)
        self.collected |= task_ids
        self.corrupt -= task_ids

    def orphans(self, suspect: str | None) -> list[TaskRecord]:
        """Return the running records whose executor is fenced, retired or unknown."""
        return [
            record
            for record in self.records.values()
            if record.executor_id is not None
            and suspect in (None, record.executor_id)
            and self.executors.get(record.executor_id, "fenced") == "fenced"
        ]

    def fence(self, suspect: str | None) -> set[str]:
        """Fence the dead executors, or ``suspect`` if it is one; return their ids."""
        dead = {name for name, life in self.executors.items() if life == "dead"}
        fenced = dead if suspect is None else dead & {suspect}
        self.executors.update(dict.fromkeys(fenced, "fenced"))
        return fenced

    def sweep(self, executor_id: str, at_ms: int, suspect: str | None) -> SweepReport:
        """Fence the dead and end their tasks; return the report, its lists in any order."""
        fenced = sorted(self.fence(suspect))
        ended: list[tuple[str, str]] = []
        damaged: list[CorruptRecord] = []
        for record in self.orphans(suspect):
            if record.task_id in self.corrupt:
                damaged.append(CorruptRecord(record.task_id, "it was damaged"))
                continue
            self.apply(record.task_id, Orphaned(at_ms, record.executor_id or "", record.attempt))
            ended.append((record.task_id, record.owner_thread_id))
        own = [
            (record.task_id, record.attempt)
            for record in self.records.values()
            if record.executor_id == executor_id and suspect is None
        ]
        return SweepReport(fenced, ended, damaged, own)

    # ---- reading ------------------------------------------------------------------------------

    def of_owner(self, owner: str) -> Iterator[TaskRecord]:
        """Yield the owner's records in order of creation."""
        for record in self.records.values():
            if record.owner_thread_id == owner:
                yield record

    def of_parent(self, parent: str) -> Iterator[TaskRecord]:
        """Yield the records below ``parent`` in order of creation."""
        for record in self.records.values():
            if record.parent_task_id == parent:
                yield record

    def owners(self) -> list[str]:
        """Return who has records, in order."""
        return sorted({record.owner_thread_id for record in self.records.values()})

    def marks(self, executor_id: str) -> set[str]:
        """Return the executor's running tasks with an accepted cancel."""
        return {
            record.task_id
            for record in self.records.values()
            if record.executor_id == executor_id and record.cancel_requested_at_ms is not None
        }
