"""`MemoryTaskStore`: the default; for tests, throw-away runs, simulations of several machines."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice

import attrs
import trio

from .._errors import InvalidValue, StoreClosed
from .._events import (
    NO_FACTS,
    AttemptStarted,
    CheckpointSaved,
    Event,
    Facts,
    Finished,
    Orphaned,
    OutputAppended,
    QuestionAnswered,
    QuestionAsked,
    Registered,
    Request,
)
from .._json import NotJson, clone_json, copy_json, new_id
from .._lifecycle import JournalLine, apply, ends_attempt, journal_line
from .._records import (
    JournalEntry,
    Notice,
    OutputPage,
    TaskRecord,
    TaskStatus,
    copied_questions,
    evolved,
)
from ._output import new_chunks, output_page
from ._protocol import PAGE, ExecutorHandle, LeaseTerms, RecordPage, SweepReport, wall_clock_ms

# The JSON that a change brings into the record.
_BRINGS: dict[type[object], tuple[str, ...]] = {
    Registered: ("args", "metadata"),
    AttemptStarted: ("args",),
    CheckpointSaved: ("checkpoint",),
    Finished: ("result",),
}
_ANY_SIZE = 1 << 62  # sizes are bounded where values are given


@attrs.define(eq=False)
class _Executor:
    """A simulated machine: alive until its lease has run out on Trio's clock unrenewed."""

    executor_id: str
    terms: LeaseTerms
    due_at: float  # when the lease is to be renewed
    expires_at: float
    fenced: bool = False
    crashed: bool = False
    woken: trio.Event | None = None  # set when it goes on; None: it does not stall
    lost: trio.Event = attrs.field(factory=trio.Event)
    lock_fds: tuple[int, ...] = ()
    renewal: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def renew(self) -> None:
        """Renew the lease until ``renewal`` is cancelled, or the loop was away for too long."""
        self.renewal.shield = True  # a shutdown that is under way still needs the lease
        with self.renewal:
            while not self._is_late(now := trio.current_time()):
                if self.woken is not None:
                    await self.woken.wait()
                    continue
                self.due_at = now + self.terms.renew_s
                self.expires_at = now + self.terms.lease_s
                await trio.sleep_until(self.due_at)
            self.lost.set()

    def is_dead(self, now: float) -> bool:
        """Has its lease run out? One that is only late is about to be renewed.

        The loop that keeps it from being renewed is the same for all: nobody was up earlier.
        """
        renews = not self.renewal.cancel_called and self.woken is None and not self._is_late(now)
        return self.expires_at <= now and not renews

    def _is_late(self, now: float) -> bool:
        stall_s = self.terms.stall_s
        return stall_s is not None and now > self.due_at + stall_s

    def fence(self) -> None:
        """Nothing of this executor is taken from now on."""
        self.fenced = True
        self.renewal.cancel()

    @property
    def is_done(self) -> bool:
        """Is there nothing more to come of it?"""
        return self.fenced and self.woken is None

    def find_out(self) -> None:
        """Learn that it is fenced, unless it does not learn anything at the moment."""
        if self.is_done:
            self.lost.set()


@attrs.define
class _Log:
    chunks: deque[tuple[int, bytes]] = attrs.field(factory=deque[tuple[int, bytes]])
    kept: int = 0


class MemoryTaskStore:
    """A `TaskStore` in this process: every call is applied at once, or not at all.

    Several managers may share one store; each is an executor with a lease of its own, renewed by a
    task on Trio's clock, so several machines can be simulated, on virtual time too. Nothing
    survives the process.
    """

    def __init__(self) -> None:
        self._records: dict[str, TaskRecord] = {}
        self._seq = 0
        self._by_owner: dict[str, list[str]] = {}  # in order of creation, that is of ``seq``
        self._by_parent: dict[str, list[str]] = {}
        self._running: dict[str, str] = {}  # under which executor
        self._used_ids: set[str] = set()
        self._keys: dict[tuple[str, str], str] = {}
        self._journal: dict[str, list[JournalLine]] = {}  # entries are made when they are read
        self._output: dict[str, _Log] = {}
        self._notices: dict[str, dict[int, TaskRecord]] = {}  # each as its attempt ended
        self._next_notice = 1
        self._executors: dict[str, _Executor] = {}

    def __repr__(self) -> str:
        return f"<MemoryTaskStore {len(self._records)} tasks, {len(self._executors)} executors>"

    # ---- one change ---------------------------------------------------------------------------

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        """See `TaskStore.apply`."""
        return self._apply(task_id, event)

    def _apply(self, task_id: str, event: Event) -> TaskRecord:
        before = self._records.get(task_id)
        after = apply(task_id, before, event, self._facts(task_id, event))
        if after is not before:
            after = self._checked(event, after)
            self._save(before, event, after)
        return _private(after)

    def _facts(self, task_id: str, event: Event) -> Facts:
        if isinstance(event, Request):
            return NO_FACTS
        executor = self._executors.get(event.executor_id)
        if executor is not None and executor.crashed and not isinstance(event, Orphaned):
            raise StoreClosed(f"the machine of executor {event.executor_id} crashed")
        facts = Facts(executor_fenced=True) if executor is None or executor.fenced else NO_FACTS
        if isinstance(event, Registered):
            return self._facts_of_start(task_id, event, facts)
        return facts

    def _facts_of_start(self, task_id: str, event: Registered, facts: Facts) -> Facts:
        key, parent_id = event.idempotency_key, event.parent_task_id
        if key is None and parent_id is None and task_id not in self._used_ids:
            return facts  # as it is with most
        parent = self._records.get(parent_id or "")
        return attrs.evolve(
            facts,
            id_used=task_id in self._used_ids,
            key_used_by=None if key is None else self._keys.get((event.owner_thread_id, key)),
            parent_cancelled=parent is not None and parent.cancel_accepted,
        )

    def _checked(self, event: Event, after: TaskRecord) -> TaskRecord:
        """Return the new record, to be stored; what came with the event is copied, it is ours."""
        fields = after.__dict__  # changed in place: `apply` made it just now, nobody else has it
        try:
            for name in _BRINGS.get(type(event), ()):
                if fields[name] is not None:
                    fields[name] = copy_json(fields[name], max_bytes=_ANY_SIZE)
            if after.questions and isinstance(event, QuestionAsked | QuestionAnswered):
                copy = partial(copy_json, max_bytes=_ANY_SIZE)
                fields["questions"] = copied_questions(fields["questions"], copy)
        except NotJson as error:
            raise InvalidValue(f"task '{after.task_id}' cannot be stored: {error}") from None
        if not after.seq:
            fields["seq"] = self._seq + 1
        return after

    def _save(self, before: TaskRecord | None, event: Event, after: TaskRecord) -> None:
        task_id = after.task_id
        self._records[task_id] = after
        if after.executor_id is None:
            self._running.pop(task_id, None)
        else:
            self._running[task_id] = after.executor_id
        if before is None:
            self._seq = after.seq
            self._index(after)
        else:
            self._append_output(before, event)
        line = journal_line(before, event, after)
        if line is not None:
            self._journal.setdefault(task_id, []).append(line)
        if ends_attempt(event, after):
            self._notices.setdefault(after.owner_thread_id, {})[self._next_notice] = after
            self._next_notice += 1

    def _index(self, record: TaskRecord) -> None:
        self._by_owner.setdefault(record.owner_thread_id, []).append(record.task_id)
        if record.parent_task_id is not None:
            self._by_parent.setdefault(record.parent_task_id, []).append(record.task_id)
        if record.idempotency_key is not None:
            self._keys[record.owner_thread_id, record.idempotency_key] = record.task_id

    def _append_output(self, before: TaskRecord, event: Event) -> None:
        if isinstance(event, Finished) and event.output:
            offset, text = event.output_offset, event.output
        elif isinstance(event, OutputAppended):
            offset, text = event.offset, event.text
        else:
            return
        log = self._output.setdefault(before.task_id, _Log())
        for chunk in new_chunks(before.output_bytes, offset, text, event.keep_bytes):
            log.chunks.append(chunk)
            log.kept += len(chunk[1])
        while log.kept > event.keep_bytes:
            log.kept -= len(log.chunks.popleft()[1])

    def _running_under(self, executor_id: str) -> list[str]:
        return [task_id for task_id, name in self._running.items() if name == executor_id]

    # ---- reading ------------------------------------------------------------------------------

    async def load(self, task_id: str) -> TaskRecord | None:
        """See `TaskStore.load`."""
        record = self._records.get(task_id)
        return None if record is None else _private(record)

    async def load_by_key(self, owner_thread_id: str, key: str) -> TaskRecord | None:
        """See `TaskStore.load_by_key`."""
        return await self.load(self._keys.get((owner_thread_id, key), ""))

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
        rows = (
            record
            for record in self._rows(self._by_owner.get(owner_thread_id, []), after)
            if (status is None or record.status is status)
            and (task_type is None or record.task_type == task_type)
        )
        return _page(rows, limit)

    async def children(self, task_id: str, *, after: int = 0, limit: int = PAGE) -> RecordPage:
        """See `TaskStore.children`."""
        return _page(self._rows(self._by_parent.get(task_id, []), after), limit)

    def _rows(self, index: list[str], after: int) -> Iterator[TaskRecord]:
        first = bisect_right(index, after, key=lambda task_id: self._records[task_id].seq)
        for i in range(first, len(index)):
            yield self._records[index[i]]

    async def history(self, task_id: str) -> list[JournalEntry]:
        """See `TaskStore.history`."""
        return [JournalEntry(*line) for line in self._journal.get(task_id, ())]

    async def read_output(self, task_id: str, *, offset: int, limit: int) -> OutputPage:
        """See `TaskStore.read_output`."""
        record = self._records.get(task_id)
        log = self._output.get(task_id) or _Log()
        total = 0 if record is None else record.output_bytes
        return output_page(log.chunks, offset, limit, total=total, kept=log.kept)

    async def owners(self, *, after: str = "", limit: int = PAGE) -> list[str]:
        """See `TaskStore.owners`."""
        return sorted(owner for owner in self._by_owner if owner > after)[:limit]

    # ---- notices ------------------------------------------------------------------------------

    async def notices(
        self, owner_thread_id: str, *, limit: int = PAGE, background_only: bool = False
    ) -> list[Notice]:
        """See `TaskStore.notices`."""
        waiting = self._notices.get(owner_thread_id, {})
        found = (
            Notice(notice_id, record.summary(), record.background)
            for notice_id, record in waiting.items()
            if record.background or not background_only
        )
        return list(islice(found, limit))

    async def acknowledge(self, owner_thread_id: str, notice_ids: Sequence[int]) -> None:
        """See `TaskStore.acknowledge`."""
        waiting = self._notices.get(owner_thread_id, {})
        for notice_id in notice_ids:
            waiting.pop(notice_id, None)
        if not waiting:
            self._notices.pop(owner_thread_id, None)

    # ---- collection ---------------------------------------------------------------------------

    async def collect(
        self, owner_thread_id: str | None, *, ended_before_ms: int, limit: int = PAGE
    ) -> list[str]:
        """See `TaskStore.collect`."""
        busy = self._ancestors_of_running()
        owners = list(self._by_owner) if owner_thread_id is None else [owner_thread_id]
        gone: list[TaskRecord] = []
        for owner in owners:
            for record in self._rows(self._by_owner.get(owner, []), 0):
                if len(gone) == limit:
                    break
                ended_at = record.completed_at_ms
                if (
                    record.has_ended
                    and record.task_id not in busy
                    and ended_at is not None
                    and ended_at <= ended_before_ms
                ):
                    gone.append(record)
        self._forget(gone)
        return [record.task_id for record in gone]

    def _ancestors_of_running(self) -> set[str]:
        seen: set[str] = set()
        for task_id in self._running:
            parent = self._records[task_id].parent_task_id
            while parent is not None and parent not in seen:
                seen.add(parent)
                above = self._records.get(parent)
                parent = None if above is None else above.parent_task_id
        return seen

    def _forget(self, gone: list[TaskRecord]) -> None:
        ids = {record.task_id for record in gone}
        self._used_ids |= ids
        for table in (self._records, self._journal, self._output):
            for task_id in ids:
                table.pop(task_id, None)
        for index, keys in (
            (self._by_owner, {record.owner_thread_id for record in gone}),
            (self._by_parent, {r.parent_task_id for r in gone if r.parent_task_id is not None}),
        ):
            for key in keys:
                index[key] = [task_id for task_id in index[key] if task_id not in ids]
                if not index[key]:
                    del index[key]

    # ---- executors ----------------------------------------------------------------------------

    def _is_fenced(self, executor_id: str) -> bool:
        executor = self._executors.get(executor_id)
        return executor is None or executor.fenced

    @asynccontextmanager
    async def executor(
        self, terms: LeaseTerms, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> AsyncGenerator[ExecutorHandle, None]:
        """See `TaskStore.executor`; leases run on Trio's clock."""
        del clock_ms
        now = trio.current_time()
        executor = _Executor(new_id("ex_"), terms, now + terms.renew_s, now + terms.lease_s)
        self._executors[executor.executor_id] = executor
        raised: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(executor.renew, name=f"lease of {executor.executor_id}")
            try:
                yield executor
            except BaseException as error:  # noqa: ASYNC103, BLE001 (raised below)
                raised = error  # the nursery would wrap it, and copy a group
            executor.renewal.cancel()
            executor.woken = None
            if not executor.crashed:
                executor.fence()
            nursery.cancel_scope.shield = True  # or it would add a Cancelled of its own
        if raised is not None:
            raise raised

    def crash(self, executor_id: str) -> None:
        """Simulate the sudden end of a machine: nothing that it writes arrives any more.

        It does not say goodbye: its lease just runs out, on Trio's clock. To be cancelled by the
        caller: what still runs in its manager.

        Raises:
            KeyError: no such executor, or it has retired.
        """
        executor = self._executors[executor_id]
        executor.crashed = True
        executor.renewal.cancel()

    def stall(self, executor_id: str) -> None:
        """Simulate a machine that is suspended: its lease is not renewed before `wake`.

        Nor is it told that it was fenced. To be held back by the caller: what its manager writes.

        Raises:
            KeyError: no such executor, or it has retired.
        """
        executor = self._executors[executor_id]
        if executor.woken is None:
            executor.woken = trio.Event()

    def wake(self, executor_id: str) -> None:
        """Let a stalled machine go on: it renews its lease, or finds out that it was fenced.

        Raises:
            KeyError: no such executor, or it has retired.
        """
        executor = self._executors[executor_id]
        if executor.woken is not None:
            executor.woken.set()
            executor.woken = None
            executor.find_out()

    async def sweep(
        self, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        """See `TaskStore.sweep`."""
        now = trio.current_time()
        suspects = [suspect] if suspect is not None else list(self._executors)
        fenced: list[str] = []
        for name in suspects:
            executor = self._executors.get(name)
            if executor is None or executor.fenced or name == executor_id:
                continue
            if executor.is_dead(now):
                executor.fence()
                executor.find_out()
                fenced.append(name)
        ended = self._end_orphans(suspect, at_ms)
        for name in suspects:
            executor = self._executors.get(name)
            if executor is not None and executor.is_done and name not in self._running.values():
                del self._executors[name]
        own = [] if suspect is not None else self._running_under(executor_id)
        running = [(task_id, self._records[task_id].attempt) for task_id in own]
        return SweepReport(fenced, ended, own_running=running)

    def _end_orphans(self, suspect: str | None, at_ms: int) -> list[tuple[str, str]]:
        names = [suspect] if suspect is not None else list(dict.fromkeys(self._running.values()))
        ended: list[tuple[str, str]] = []
        for name in names:
            if not self._is_fenced(name):
                continue
            for task_id in self._running_under(name):
                record = self._records[task_id]
                self._apply(task_id, Orphaned(at_ms, name, record.attempt))
                ended.append((task_id, record.owner_thread_id))
        return ended

    async def cancel_marks(self, executor_id: str) -> list[str]:
        """See `TaskStore.cancel_marks`."""
        return [
            task_id
            for task_id in self._running_under(executor_id)
            if self._records[task_id].cancel_requested_at_ms is not None
        ]


def _page(rows: Iterator[TaskRecord], limit: int) -> RecordPage:
    records: list[TaskRecord] = []
    for record in rows:
        if len(records) == limit:
            return RecordPage(records, (), records[-1].seq)
        records.append(_private(record))
    return RecordPage(records)


def _private(record: TaskRecord) -> TaskRecord:
    """Return the record with JSON of its own, so that its owner may change what it was handed."""
    own = evolved(record)
    # One by one, and what is empty is not walked: half the cost, twice a task (measured).
    fields = own.__dict__
    fields["args"] = clone_json(args) if (args := fields["args"]) else {}
    fields["metadata"] = clone_json(metadata) if (metadata := fields["metadata"]) else {}
    if (result := fields["result"]) is not None:
        fields["result"] = clone_json(result)
    if (checkpoint := fields["checkpoint"]) is not None:
        fields["checkpoint"] = clone_json(checkpoint)
    if questions := fields["questions"]:
        fields["questions"] = copied_questions(questions, clone_json)
    return own
