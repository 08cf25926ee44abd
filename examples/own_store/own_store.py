"""A task store in one file, written from scratch around `trio_bgtasks.apply`.

Every call reads the file, does its work and replaces the file, under a lock: so every call is one
transaction, and what was answered is there after the process was killed. That is slow, and simple.
"""

from __future__ import annotations

import copy
import fcntl
import math
import pickle
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio

from trio_bgtasks import (
    CancelRequested,
    Event,
    Facts,
    Finished,
    InvalidValue,
    JournalEntry,
    LeaseTerms,
    Notice,
    Orphaned,
    OutputAppended,
    OutputPage,
    QuestionAnswered,
    Registered,
    TaskRecord,
    TaskStatus,
    apply,
    ends_attempt,
    journal_entry,
)
from trio_bgtasks.stores import RecordPage, SweepReport, wall_clock_ms

T = TypeVar("T")


@attrs.define
class Executor:
    """One manager, by its lease."""

    expires_at_ms: int
    fenced: bool = False


@attrs.define
class Handle:
    """What a manager holds of its registration."""

    executor_id: str
    lost: trio.Event = attrs.field(factory=trio.Event)
    lock_fds: tuple[int, ...] = ()


@attrs.define
class State:
    """What is in the file."""

    records: dict[str, TaskRecord] = attrs.field(factory=dict)  # in order of creation
    keys: dict[tuple[str, str], str] = attrs.field(factory=dict)
    collected: set[str] = attrs.field(factory=set)
    journal: dict[str, list[JournalEntry]] = attrs.field(factory=dict)
    output: dict[str, list[tuple[int, bytes]]] = attrs.field(factory=dict)
    notices: dict[str, list[Notice]] = attrs.field(factory=dict)
    executors: dict[str, Executor] = attrs.field(factory=dict)
    seq: int = 0
    notice_id: int = 0

    # ---- one change ---------------------------------------------------------------------------

    def apply(self, task_id: str, event: Event) -> TaskRecord:
        """Load, apply, save; journal; announce an ended attempt."""
        before = self.records.get(task_id)
        after = apply(task_id, before, event, self.facts(task_id, event))
        if after is before:
            return after
        asked = [value for each in after.questions for value in (each.schema, each.answer)]
        for value in (after.args, after.metadata, after.checkpoint, after.result, *asked):
            if not is_json(value):
                raise InvalidValue(f"task '{task_id}' cannot be stored: {value!r} is not JSON")
        if before is None:
            self.seq += 1
            after = attrs.evolve(after, seq=self.seq)
            if after.idempotency_key is not None:
                self.keys[after.owner_thread_id, after.idempotency_key] = task_id
        total = 0 if before is None else before.output_bytes
        if isinstance(event, OutputAppended):
            self.append(task_id, total, event.offset, event.text, event.keep_bytes)
        elif isinstance(event, Finished):
            self.append(task_id, total, event.output_offset, event.output, event.keep_bytes)
        self.records[task_id] = after
        entry = journal_entry(before, event, after)
        if entry is not None:
            self.journal.setdefault(task_id, []).append(entry)
        if ends_attempt(event, after):
            self.notice_id += 1
            notice = Notice(self.notice_id, after.summary(), after.background)
            self.notices.setdefault(after.owner_thread_id, []).append(notice)
        return after

    def facts(self, task_id: str, event: Event) -> Facts:
        """Return what the lifecycle has to know beside the record."""
        if isinstance(event, CancelRequested | QuestionAnswered):
            return Facts()
        fenced = self.is_fenced(event.executor_id)
        if not isinstance(event, Registered):
            return Facts(executor_fenced=fenced)
        parent = self.records.get(event.parent_task_id or "")
        return Facts(
            executor_fenced=fenced,
            id_used=task_id in self.collected,
            key_used_by=self.keys.get((event.owner_thread_id, event.idempotency_key or "")),
            parent_cancelled=parent is not None and parent.cancel_accepted,
        )

    def append(self, task_id: str, total: int, offset: int, text: str, keep_bytes: int) -> None:
        """Add what is new of ``text``; over the cap the oldest goes."""
        data = text.encode()[max(0, total - offset) :]
        if not data:
            return
        pieces = self.output.setdefault(task_id, [])
        pieces.append((max(offset, total), data))
        excess = sum(len(data) for _, data in pieces) - keep_bytes
        while excess > 0:
            at, data = pieces.pop(0)
            cut = next_character(data, min(excess, len(data)))
            if cut < len(data):
                pieces.insert(0, (at + cut, data[cut:]))
            excess -= cut

    # ---- the other writes ---------------------------------------------------------------------

    def acknowledge(self, owner: str, notice_ids: Sequence[int]) -> None:
        """Delete these notices of the owner."""
        mine = self.notices.get(owner, [])
        self.notices[owner] = [notice for notice in mine if notice.notice_id not in notice_ids]

    def collect(self, owner: str | None, before_ms: int, limit: int) -> list[str]:
        """Delete what has ended and has no running descendant."""
        busy: set[str] = set()
        for record in self.records.values():
            above = record.parent_task_id if record.status is TaskStatus.RUNNING else None
            while above is not None and above not in busy:
                busy.add(above)
                parent = self.records.get(above)
                above = None if parent is None else parent.parent_task_id
        gone = [
            record.task_id
            for record in self.records.values()
            if owner in (None, record.owner_thread_id)
            and record.has_ended
            and record.task_id not in busy
            and (record.completed_at_ms or 0) <= before_ms
        ][:limit]
        for task_id in gone:
            del self.records[task_id]
            self.journal.pop(task_id, None)
            self.output.pop(task_id, None)
        self.collected.update(gone)
        return gone

    def is_fenced(self, executor_id: str) -> bool:
        """True for an executor that is fenced, retired or unknown."""
        executor = self.executors.get(executor_id)
        return executor is None or executor.fenced

    def renew(self, executor_id: str, expires_at_ms: int) -> bool:
        """Extend a lease, unless its executor was found dead: never resurrect."""
        if self.is_fenced(executor_id):
            return False
        self.executors[executor_id].expires_at_ms = expires_at_ms
        return True

    def fence_dead(self, at_ms: int, suspect: str | None) -> list[str]:
        """Fence whose lease has run out."""
        dead = [
            name
            for name, executor in self.executors.items()
            if suspect in (None, name) and not executor.fenced and executor.expires_at_ms <= at_ms
        ]
        for name in dead:
            self.executors[name].fenced = True
        return dead

    def end_orphans(self, at_ms: int, suspect: str | None) -> list[tuple[str, str]]:
        """Stop what runs under executors that are fenced."""
        ended: list[tuple[str, str]] = []
        for record in list(self.records.values()):
            name = record.executor_id
            if name is not None and suspect in (None, name) and self.is_fenced(name):
                self.apply(record.task_id, Orphaned(at_ms, name, record.attempt))
                ended.append((record.task_id, record.owner_thread_id))
        return ended

    # ---- reading ------------------------------------------------------------------------------

    def read_output(self, task_id: str, offset: int, limit: int) -> OutputPage:
        """Return what is kept from ``offset`` on, up to the next gap."""
        record = self.records.get(task_id)
        total = 0 if record is None else record.output_bytes
        pieces = self.output.get(task_id, [])
        dropped = total - sum(len(data) for _, data in pieces)
        start = max(0, total + offset) if offset < 0 else min(offset, total)
        first, page = total, b""
        for at, data in pieces:
            if page and at != first + len(page):
                break
            skip = 0 if page else next_character(data, max(0, start - at))
            if not page and skip < len(data):
                first = at + skip
            page += data[skip:]
        end = max(limit, 4)
        while end < len(page) and page[end] & 0xC0 == 0x80:
            end -= 1
        page = page[:end]
        return OutputPage(page.decode(), first, first + len(page), total, dropped)


class FileTaskStore:
    """A `TaskStore` in the file ``path``, which several processes may use. It trusts the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def change(self, work: Callable[[State], T]) -> T:
        """Do ``work`` in one transaction: nobody else comes between reading and writing."""
        with self._locked():
            state = self.read()
            result = work(state)
            self.write(state)
        return result

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self) -> State:
        """Return what is in the file."""
        if not self._path.exists():
            return State()
        state: State = pickle.loads(self._path.read_bytes())
        return state

    def write(self, state: State) -> None:
        """Replace the file, as a whole."""
        new = self._path.with_name(f"{uuid.uuid4().hex}.new")
        new.write_bytes(pickle.dumps(state))
        new.replace(self._path)

    # ---- writing ------------------------------------------------------------------------------

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        """Let ``event`` happen to a task."""
        return copy.deepcopy(await self.change(lambda state: state.apply(task_id, event)))

    async def acknowledge(self, owner_thread_id: str, notice_ids: Sequence[int]) -> None:
        """Delete exactly these notices of the owner."""
        await self.change(lambda state: state.acknowledge(owner_thread_id, notice_ids))

    async def collect(
        self, owner_thread_id: str | None, *, ended_before_ms: int, limit: int = 200
    ) -> list[str]:
        """Delete ended records without a running descendant."""
        return await self.change(
            lambda state: state.collect(owner_thread_id, ended_before_ms, limit)
        )

    # ---- reading ------------------------------------------------------------------------------

    async def load(self, task_id: str) -> TaskRecord | None:
        """Return the record."""
        return self.read().records.get(task_id)

    async def load_by_key(self, owner_thread_id: str, key: str) -> TaskRecord | None:
        """Return the record that the key started."""
        state = self.read()
        return state.records.get(state.keys.get((owner_thread_id, key), ""))

    async def list_owner(
        self,
        owner_thread_id: str,
        *,
        after: int = 0,
        limit: int = 200,
        status: TaskStatus | None = None,
        task_type: str | None = None,
    ) -> RecordPage:
        """Return a page of the owner's records."""
        return page_of(
            (
                record
                for record in self.read().records.values()
                if record.owner_thread_id == owner_thread_id
                and status in (None, record.status)
                and task_type in (None, record.task_type)
            ),
            after,
            limit,
        )

    async def children(self, task_id: str, *, after: int = 0, limit: int = 200) -> RecordPage:
        """Return a page of the records whose parent it is."""
        records = self.read().records.values()
        return page_of((r for r in records if r.parent_task_id == task_id), after, limit)

    async def history(self, task_id: str) -> list[JournalEntry]:
        """Return the journal."""
        return self.read().journal.get(task_id, [])

    async def read_output(self, task_id: str, *, offset: int, limit: int) -> OutputPage:
        """Return a page of the output log."""
        return self.read().read_output(task_id, offset, limit)

    async def notices(
        self, owner_thread_id: str, *, limit: int = 200, background_only: bool = False
    ) -> list[Notice]:
        """Return the oldest notices of the owner."""
        mine = self.read().notices.get(owner_thread_id, [])
        return [notice for notice in mine if notice.background or not background_only][:limit]

    async def owners(self, *, after: str = "", limit: int = 200) -> list[str]:
        """Return who has records."""
        owners = {record.owner_thread_id for record in self.read().records.values()}
        return sorted(owner for owner in owners if owner > after)[:limit]

    async def cancel_marks(self, executor_id: str) -> list[str]:
        """Return the executor's running tasks with an accepted cancel."""
        return [
            record.task_id
            for record in self.read().records.values()
            if record.executor_id == executor_id and record.cancel_requested_at_ms is not None
        ]

    # ---- executors ----------------------------------------------------------------------------

    @asynccontextmanager
    async def executor(
        self, terms: LeaseTerms, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> AsyncIterator[Handle]:
        """Register an executor, renew its lease, retire it."""
        handle = Handle(f"ex_{uuid.uuid4().hex}")

        def expiry() -> int:
            return clock_ms() + int(terms.lease_s * 1000)

        async def renew() -> None:
            while not handle.lost.is_set():
                await trio.sleep(terms.renew_s)
                if not await self.change(lambda state: state.renew(handle.executor_id, expiry())):
                    handle.lost.set()

        def register(state: State) -> None:
            state.executors[handle.executor_id] = Executor(expiry())

        await self.change(register)
        raised: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(renew)
            try:
                yield handle
            except BaseException as error:  # noqa: BLE001 - raised below: a nursery would wrap it
                raised = error
            nursery.cancel_scope.cancel()
            nursery.cancel_scope.shield = True
            with trio.CancelScope(shield=True):
                await self.change(lambda state: state.executors.pop(handle.executor_id, None))
        if raised is not None:
            raise raised

    async def sweep(
        self, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        """Fence the dead, then end their tasks: two transactions."""
        fenced = await self.change(lambda state: state.fence_dead(at_ms, suspect))
        ended = await self.change(lambda state: state.end_orphans(at_ms, suspect))
        own = [
            (record.task_id, record.attempt)
            for record in self.read().records.values()
            if record.executor_id == executor_id and suspect is None
        ]
        return SweepReport(fenced, ended, own_running=own)


def page_of(records: Iterator[TaskRecord], after: int, limit: int) -> RecordPage:
    """Return those with a number above ``after``, and where to go on."""
    rest = [record for record in records if record.seq > after]
    page = rest[:limit]
    return RecordPage(page, next_after=page[-1].seq if len(rest) > limit else None)


def next_character(data: bytes, at: int) -> int:
    """Return where the next character of UTF-8 text begins."""
    while at < len(data) and data[at] & 0xC0 == 0x80:
        at += 1
    return at


def is_json(value: Any) -> bool:
    """True for what every store may keep."""
    match value:
        case None | bool():
            return True
        case int():
            return -(2**63) <= value < 2**63
        case float():
            return math.isfinite(value)
        case str():
            return "\0" not in value and value.encode(errors="ignore").decode() == value
        case list():
            return all(map(is_json, value))
        case dict():
            return all(isinstance(key, str) and is_json(key) for key in value) and all(
                map(is_json, value.values())
            )
        case _:
            return False
