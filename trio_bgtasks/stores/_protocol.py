"""What a task store is: a transactional load and save of records around `lifecycle.apply`.

Stores are duck-typed. A wrapper that overrides ``apply`` and delegates the rest works.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import attrs
import trio

from .._checks import check_period
from .._errors import CorruptRecord
from .._events import Event
from .._records import JournalEntry, Notice, OutputPage, TaskRecord, TaskStatus

PAGE = 200

_LONGEST_LEASE_S = 1e9  # a thread waits for no more, and no store could write when it ends


def wall_clock_ms() -> int:
    """Return milliseconds of the epoch."""
    return time.time_ns() // 1_000_000


@attrs.frozen
class LeaseTerms:
    """How an executor proves that it is alive.

    ``lease_s`` after its last renewal it may be taken for dead where no lock says otherwise; it is
    renewed every ``renew_s``, but not while the loop has not ticked for ``stall_s``. None is the
    store's default: never on a lock, nor in memory, where everybody waits for the same loop.

    Raises:
        TypeError: one is not a number.
        ValueError: one is not positive and finite, or a lease runs out before it is renewed.
    """

    lease_s: float = 30.0
    renew_s: float = 10.0
    stall_s: float | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse what cannot be kept."""
        if check_period(self.lease_s, "lease_s") > _LONGEST_LEASE_S:
            raise ValueError(f"lease_s must be at most {_LONGEST_LEASE_S:.0f}")
        if check_period(self.renew_s, "renew_s") >= self.lease_s:
            raise ValueError("renew_s must be less than lease_s: the lease would run out")
        if self.stall_s is not None:
            check_period(self.stall_s, "stall_s")


class ExecutorHandle(Protocol):
    """One registered executor, for as long as its context manager is open."""

    @property
    def executor_id(self) -> str:
        """A fresh id of this incarnation; never used again."""
        ...

    @property
    def lost(self) -> trio.Event:
        """Set on the loop once this executor was fenced, or can no longer prove its lease."""
        ...

    @property
    def lock_fds(self) -> tuple[int, ...]:
        """The descriptors to pass to whatever may outlive the process and still do its work."""
        ...


@attrs.frozen
class RecordPage:
    """Records in order of creation. ``next_after`` asks for the next page; None: there is none."""

    records: Sequence[TaskRecord]
    corrupt: Sequence[CorruptRecord] = ()
    next_after: int | None = None


@attrs.frozen
class SweepReport:
    """What a sweep found and did.

    ``fenced``: executors found dead, fenced now. ``ended``: (task, owner) of their tasks, now
    stopped or cancelled. ``own_running``: (task, attempt) of every running record of the sweeping
    executor itself; empty for a sweep of one suspect.
    """

    fenced: Sequence[str] = ()
    ended: Sequence[tuple[str, str]] = ()
    corrupt: Sequence[CorruptRecord] = ()
    own_running: Sequence[tuple[str, int]] = ()


class TaskStore(Protocol):
    """The durable truth about tasks.

    Every call is one transaction. A `Refused` or `StoreBusy` means that nothing was changed; after
    any other failure of a write, and after a cancelled one unless the store promises more, the
    answer is unknown. What a store hands out can be changed without changing the store. Stores do
    not checkpoint for fairness: their callers do, and have checked the ids and numbers they pass.
    """

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        """Load, apply, save; journal; write the notice of an ended attempt: in one transaction.

        Raises:
            Refused: the lifecycle refuses the event.
            CorruptRecord: the stored record cannot be read.
            TaskStoreError: the store failed.
        """
        ...

    async def load(self, task_id: str) -> TaskRecord | None:
        """Return the record, None when there is none; raise `CorruptRecord` for a bad one."""
        ...

    async def load_by_key(self, owner_thread_id: str, key: str) -> TaskRecord | None:
        """Return the record that this owner's idempotency key started, if it is still there."""
        ...

    async def list_owner(
        self,
        owner_thread_id: str,
        *,
        after: int = 0,
        limit: int = PAGE,
        status: TaskStatus | None = None,
        task_type: str | None = None,
    ) -> RecordPage:
        """Return a page of the owner's records with ``seq`` above ``after``, by index."""
        ...

    async def children(self, task_id: str, *, after: int = 0, limit: int = PAGE) -> RecordPage:
        """Return a page of the records whose parent is ``task_id``, whoever owns them."""
        ...

    async def history(self, task_id: str) -> list[JournalEntry]:
        """Return the journal of a task, oldest first; it survives its collection for no one."""
        ...

    async def read_output(self, task_id: str, *, offset: int, limit: int) -> OutputPage:
        """Return output from byte ``offset`` (negative: from the end), about ``limit`` bytes.

        At least one character when there is one; an unknown task has no output.
        """
        ...

    async def notices(
        self, owner_thread_id: str, *, limit: int = PAGE, background_only: bool = False
    ) -> list[Notice]:
        """Return the owner's oldest unacknowledged notices.

        ``background_only`` passes over those of foreground attempts; they do not count.
        """
        ...

    async def acknowledge(self, owner_thread_id: str, notice_ids: Sequence[int]) -> None:
        """Delete exactly these notices of the owner; those already gone are passed over."""
        ...

    async def collect(
        self, owner_thread_id: str | None, *, ended_before_ms: int, limit: int = PAGE
    ) -> list[str]:
        """Delete ended records (None: of all owners) without a running descendant; return ids.

        At most ``limit``, fewer if they have much output; call again until it returns none. Their
        ids and keys stay used, their notices stay; journal and output go. ``ended_before_ms`` is
        inclusive.
        """
        ...

    async def owners(self, *, after: str = "", limit: int = PAGE) -> list[str]:
        """Return the next owners that have records, in order of their ids."""
        ...

    def executor(
        self, terms: LeaseTerms, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> AbstractAsyncContextManager[ExecutorHandle]:
        """Register a fresh executor, keep its lease renewed, and retire it (fenced) at the end.

        ``clock_ms`` is the wall clock for what the store writes down of it.
        """
        ...

    async def sweep(
        self, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        """Fence every dead executor, each in a transaction of its own, then end its tasks.

        When it returns, the tasks of every executor that it found dead have ended, also where
        somebody else was faster. ``executor_id`` is who sweeps; ``suspect`` limits the sweep to one
        executor. Running records whose executor is fenced, retired or unknown are ended too. A
        corrupt record is reported and passed over.
        """
        ...

    async def cancel_marks(self, executor_id: str) -> list[str]:
        """Return the ids of the running records of this executor with an accepted cancel."""
        ...
