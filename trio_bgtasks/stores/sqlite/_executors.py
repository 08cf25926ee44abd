"""Executors of one host: registering, renewing, and ending the tasks of the dead."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from ..._errors import CorruptRecord, ExecutorAlive, StoreClosed, TaskStoreError
from ..._events import Orphaned
from .._hostlock import HostLock, boot_id, is_held, lock_files, lock_path, remove_if_free
from .._protocol import LeaseTerms, SweepReport
from ._changes import apply_event
from ._engine import Engine

_log = logging.getLogger("trio_bgtasks.store")

_PAGE: Final = 100


# ---- one executor --------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class SqliteExecutor:
    """A registered executor; the lock is its life, the lease is for after a restart of the host."""

    executor_id: str
    lost: trio.Event
    lock_fds: tuple[int, ...]


@asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def registered(
    engine: Engine, locks: Path, terms: LeaseTerms, clock_ms: Callable[[], int]
) -> AsyncGenerator[SqliteExecutor, None]:
    """Take the lock, then store the row, so that a row without a lock is always a dead one's."""
    try:
        lock = await engine.in_thread(HostLock.acquire, locks)
    except OSError as error:
        raise TaskStoreError(f"cannot create a lock file in {locks}: {error.strerror}") from error
    executor = SqliteExecutor(lock.executor_id, trio.Event(), (lock.fd,))
    is_retired = True  # nothing of it is stored yet
    try:
        lease = _Lease(lock.executor_id, round(terms.lease_s * 1000), clock_ms)
        await engine.write(lease.register)
        is_retired = False
        renewal = _Renewal(engine, executor, terms, lease)
        renewal.start()
        try:
            yield executor
        finally:
            with trio.CancelScope(shield=True):
                is_retired = await _retire(engine, renewal, lease)
    finally:
        # Also when the store refused to be told: others see a dead executor by its free lock.
        lock.release(is_retired=is_retired)


@attrs.frozen
class _Lease:
    """The row of one executor, as it writes it itself."""

    executor_id: str
    lease_ms: int
    clock_ms: Callable[[], int]

    def register(self, connection: sqlite3.Connection) -> None:
        now = self.clock_ms()
        connection.execute(
            "INSERT INTO executors (executor_id, boot_id, pid, registered_at_ms, expires_at_ms) "
            "VALUES (?, ?, ?, ?, ?)",
            (self.executor_id, boot_id(), os.getpid(), now, now + self.lease_ms),
        )

    def renew(self, connection: sqlite3.Connection) -> bool:
        """Extend the lease; return False when it is fenced or gone: never resurrect."""
        renewed = connection.execute(
            "UPDATE executors SET expires_at_ms = ? WHERE executor_id = ? AND fenced_at_ms IS NULL",
            (self.clock_ms() + self.lease_ms, self.executor_id),
        )
        return renewed.rowcount == 1

    def fence(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            "UPDATE executors SET fenced_at_ms = ? WHERE executor_id = ? AND fenced_at_ms IS NULL",
            (self.clock_ms(), self.executor_id),
        )


async def _retire(engine: Engine, renewal: _Renewal, lease: _Lease) -> bool:
    renewal.stop.set()
    is_retired = True
    try:
        await engine.write(lease.fence)
    except TaskStoreError as error:
        is_retired = False
        _log.warning("executor %s could not be retired: %s", lease.executor_id, error)
    await engine.in_thread(renewal.join)
    return is_retired


class _Renewal(threading.Thread):
    """Renews the lease from a thread of its own, so that a blocked loop does not lose it.

    It writes through the engine: a second writing connection would compete with the first for the
    file's only write lock, and a renewal shares the commit of whatever is being written anyway.
    """

    def __init__(
        self, engine: Engine, executor: SqliteExecutor, terms: LeaseTerms, lease: _Lease
    ) -> None:
        super().__init__(name=f"bgtasks-lease {executor.executor_id}", daemon=True)
        self.stop = threading.Event()
        self._engine = engine
        self._executor = executor
        self._terms = terms
        self._lease = lease
        self._token = trio.lowlevel.current_trio_token()
        self._asked_at: float | None = None  # when the loop was asked for a sign of life

    def run(self) -> None:
        """Renew until told to stop, or until the row says that this executor is dead."""
        renew = self._lease.renew
        while not self.stop.wait(self._terms.renew_s):
            try:
                if self._loop_is_stalled():
                    _log.warning("the event loop is stalled: the lease is not renewed")
                elif not self._engine.write_from_thread(renew) and not self.stop.is_set():
                    self._token.run_sync_soon(self._executor.lost.set)
                    return
            except (StoreClosed, trio.RunFinishedError):
                return
            except TaskStoreError as error:
                _log.warning("the lease was not renewed: %s", error)

    def _loop_is_stalled(self) -> bool:
        stall_s = self._terms.stall_s
        if stall_s is None:
            return False  # while the lock is held nobody takes this executor for dead
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            self._token.run_sync_soon(self._answer)
            return False
        return time.monotonic() - self._asked_at > stall_s

    def _answer(self) -> None:
        self._asked_at = None


# ---- the sweep -----------------------------------------------------------------------------------


@attrs.frozen
class Registration:
    """A row of ``executors``."""

    executor_id: str
    boot_id: str
    pid: int
    registered_at_ms: int
    expires_at_ms: int
    fenced_at_ms: int | None

    def is_dead(self, locks: Path, at_ms: int) -> bool:
        """On this boot of this host its lock decides; without one nothing but the lease can."""
        if self.fenced_at_ms is not None:
            return True
        if self.boot_id == boot_id():
            held = is_held(lock_path(locks, self.executor_id))
            if held is not None:
                return not held
        return self.expires_at_ms <= at_ms


def registrations(connection: sqlite3.Connection, suspect: str | None = None) -> list[Registration]:
    """Return every executor that is known, or only ``suspect``, in order of registration."""
    only = "" if suspect is None else "WHERE executor_id = :suspect"
    rows = connection.execute(
        "SELECT executor_id, boot_id, pid, registered_at_ms, expires_at_ms, fenced_at_ms "  # noqa: S608
        f"FROM executors {only} ORDER BY executor_id",
        {"suspect": suspect},
    ).fetchall()
    return [Registration(*row) for row in rows]


async def sweep(
    engine: Engine, locks: Path, executor_id: str, at_ms: int, suspect: str | None
) -> SweepReport:
    """Fence every dead executor, each in its own transaction; then end, in pages, their tasks.

    A record that is registered between the probe and the fence is not missed: it is found after
    the fence, and none follows it. Who fenced an executor does not matter: whoever found it dead
    sees to it that its tasks have ended when this returns.
    """
    rows, forlorn = await engine.read(partial(_survey, suspect=suspect))
    dead = await engine.in_thread(_probe, rows, locks, at_ms)
    fenced = [
        row.executor_id
        for row in dead
        if await engine.write(partial(_fence_dead, row=row, at_ms=at_ms))
    ]
    ended: list[tuple[str, str]] = []
    corrupt: list[CorruptRecord] = []
    for name in (*(row.executor_id for row in dead), *forlorn):
        after: int | None = 0
        while after is not None:
            end_page = partial(_end_page, executor_id=name, at_ms=at_ms, after=after)
            some, bad, after = await engine.write(end_page)
            ended += some
            corrupt += bad
    if suspect is not None:
        return SweepReport(fenced, ended, corrupt)
    await _clean_up(engine, locks)
    own = await engine.read(partial(_running_of, executor_id=executor_id))
    return SweepReport(fenced, ended, corrupt, own)


def _survey(
    connection: sqlite3.Connection, *, suspect: str | None
) -> tuple[list[Registration], list[str]]:
    """Return who is known, and whose running tasks have nobody; or of ``suspect`` only."""
    only = "IS NOT NULL" if suspect is None else "= :suspect"
    forlorn = connection.execute(
        f"SELECT DISTINCT executor_id FROM tasks WHERE executor_id {only} "  # noqa: S608
        "AND executor_id NOT IN (SELECT executor_id FROM executors WHERE fenced_at_ms IS NULL)",
        {"suspect": suspect},
    ).fetchall()
    return registrations(connection, suspect), [name for (name,) in forlorn]


def _running_of(connection: sqlite3.Connection, *, executor_id: str) -> list[tuple[str, int]]:
    return connection.execute(
        "SELECT task_id, attempt FROM tasks WHERE executor_id = ? ORDER BY seq", (executor_id,)
    ).fetchall()


def _probe(rows: list[Registration], locks: Path, at_ms: int) -> list[Registration]:
    return [row for row in rows if row.fenced_at_ms is None and row.is_dead(locks, at_ms)]


def _fence_dead(connection: sqlite3.Connection, *, row: Registration, at_ms: int) -> bool:
    """Fence, unless it was renewed since it was found dead."""
    done = connection.execute(
        "UPDATE executors SET fenced_at_ms = ? WHERE executor_id = ? "
        "AND fenced_at_ms IS NULL AND expires_at_ms = ?",
        (at_ms, row.executor_id, row.expires_at_ms),
    )
    return done.rowcount == 1


def _end_page(
    connection: sqlite3.Connection, *, executor_id: str, at_ms: int, after: int
) -> tuple[list[tuple[str, str]], list[CorruptRecord], int | None]:
    """End a page of the running tasks of a fenced executor, each in its own savepoint."""
    # An id that is damaged text is read as bytes, and found by them only if they are text again.
    rows: list[tuple[int, Any, str, int]] = connection.execute(
        "SELECT seq, task_id, owner_thread_id, attempt FROM tasks "
        "WHERE executor_id = CAST(? AS TEXT) AND seq > ? ORDER BY seq LIMIT ?",
        (executor_id, after, _PAGE),
    ).fetchall()
    ended: list[tuple[str, str]] = []
    corrupt: list[CorruptRecord] = []
    for _, task_id, owner_thread_id, attempt in rows:
        connection.execute("SAVEPOINT orphan")
        try:
            if isinstance(task_id, bytes):
                raise CorruptRecord(str(task_id), "task_id: not UTF-8")  # noqa: TRY301
            apply_event(connection, task_id, Orphaned(at_ms, executor_id, attempt))
            ended.append((task_id, owner_thread_id))
        except (CorruptRecord, ExecutorAlive, sqlite3.IntegrityError) as error:
            connection.execute("ROLLBACK TO orphan")
            if isinstance(error, sqlite3.IntegrityError):
                error = CorruptRecord(str(task_id), str(error))
            if isinstance(error, CorruptRecord):
                corrupt.append(error)
        connection.execute("RELEASE orphan")
    return ended, corrupt, rows[-1][0] if len(rows) == _PAGE else None


async def _clean_up(engine: Engine, locks: Path) -> None:
    """Forget fenced executors that left nothing running, and lock files that nobody needs."""
    known, obsolete = await engine.read(_known_executors)
    if obsolete:
        await engine.write(partial(_forget, executor_ids=obsolete))
    await engine.in_thread(_remove_stale, locks, known.difference(obsolete))


def _known_executors(connection: sqlite3.Connection) -> tuple[set[str], list[str]]:
    known = connection.execute("SELECT executor_id FROM executors").fetchall()
    obsolete = connection.execute(
        "SELECT executor_id FROM executors AS e WHERE fenced_at_ms IS NOT NULL "
        "AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.executor_id = e.executor_id)"
    ).fetchall()
    return {name for (name,) in known}, [name for (name,) in obsolete]


def _forget(connection: sqlite3.Connection, *, executor_ids: list[str]) -> None:
    connection.executemany(
        "DELETE FROM executors WHERE executor_id = ?", [(name,) for name in executor_ids]
    )


def _remove_stale(locks: Path, needed: set[str]) -> None:
    for executor_id, path in lock_files(locks):
        if executor_id not in needed:
            remove_if_free(path)
