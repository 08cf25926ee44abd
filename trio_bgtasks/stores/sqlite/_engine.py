"""Group commit: one thread writes, and what waits for it shares one durable transaction.

The unit of work is a synchronous function of the connection. It runs in a savepoint of its own
inside the transaction of its batch, so its failure undoes it alone. Its caller is answered after
the commit:

* cancelled while it waits its turn: the work is not done at all;
* kept waiting by other processes for `BUSY_S`, whoever else waits: refused, nothing was done; a
  commit that is kept waiting goes by the last caller of its batch;
* once the thread has taken it, the caller waits for the real answer, cancelled or not;
* an answer, a refusal too, is given only when what it was read from is durable.
"""

from __future__ import annotations

import enum
import os
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, TypeVarTuple

import attrs
import outcome
import trio

from ..._errors import StoreClosed, TaskStoreError
from ._connection import (
    SQLITE_ERRORS,
    Synchronous,
    check_still_ours,
    file_identity,
    is_busy,
    is_overdue,
    open_reader,
    open_writer,
    pause,
    roll_back,
    store_error,
    view,
    while_busy,
)

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")
_Work: TypeAlias = Callable[[sqlite3.Connection], _T]

_LARGEST_BATCH: Final = 256
_READERS: Final = 3
_HELPERS: Final = 3
_PAUSE_S: Final = 0.0005
_FORKED: Final = (
    "this process was forked while a task store was open, and has half of SQLite's locks: "
    "fork before you open one, or start the process by spawn or forkserver"
)

_opened: set[object] = set()  # a mark for every store that this process has open
_inherited: set[object] = set()  # those that its parent had open at the fork
os.register_at_fork(after_in_child=lambda: _inherited.update(_opened))


class _State(enum.Enum):
    WAITING = enum.auto()
    TAKEN = enum.auto()
    WITHDRAWN = enum.auto()


@attrs.define(eq=False)
class _Job:
    """One unit of work, and who waits for it: a Trio task, or a thread with a future."""

    work: _Work[Any]
    token: trio.lowlevel.TrioToken | None = None
    task: trio.lowlevel.Task | None = None
    future: Future[outcome.Outcome[Any]] | None = None
    asked_at: float = attrs.field(factory=time.monotonic)
    state: _State = _State.WAITING
    outcome: outcome.Outcome[Any] | None = None


class Engine:
    """The connections to one file: a writing one with its thread, a few reading ones."""

    def __init__(self, path: Path, synchronous: Synchronous, writer: sqlite3.Connection) -> None:
        self.path = path
        self.synchronous = synchronous
        self.journal_mode: str = writer.execute("PRAGMA journal_mode").fetchone()[0]
        self._identity = file_identity(path)
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards every job's state, and `_closed` with the queue
        self._closed = False  # nothing more is taken
        self._drained = False  # the writing thread has seen the last job
        self._busy_since: float | None = None  # other processes have let it commit nothing since
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._serve, args=(writer,), name=f"bgtasks-sqlite {path.name}", daemon=True
        )
        self._idle_readers: list[sqlite3.Connection] = []
        # Threads of our own: tools may occupy all of Trio's default ones for as long as they like.
        self._readers = trio.CapacityLimiter(_READERS)
        self._helpers = trio.CapacityLimiter(_HELPERS)

    @classmethod
    @asynccontextmanager
    @trio.lowlevel.enable_ki_protection
    async def open(cls, path: Path, synchronous: Synchronous) -> AsyncGenerator[Engine, None]:
        """Open the file, creating or migrating it; close it, all work done, at the end."""
        if _inherited:
            raise TaskStoreError(f"cannot open the task store {path}: {_FORKED}")
        mark = object()
        _opened.add(mark)
        try:
            writer = await trio.to_thread.run_sync(
                open_writer, path, synchronous, limiter=trio.CapacityLimiter(1)
            )
            engine = cls(path, synchronous, writer)
            engine._thread.start()
            try:
                yield engine
            finally:
                with trio.CancelScope(shield=True):
                    await engine._close()
        finally:
            _opened.discard(mark)

    async def _close(self) -> None:
        if os.getpid() != self._pid:
            return  # a forked child: the thread, and what it opened, are the parent's
        with self._lock:
            self._closed = True
            self._queue.put(None)
            idle, self._idle_readers = self._idle_readers, []
        for reader in idle:
            reader.close()
        await self.in_thread(self._thread.join)

    # ---- callers ------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def write(self, work: _Work[_T]) -> _T:
        """Return ``work(connection)``, durable; cancelled while it waits its turn: not done.

        Raises:
            StoreBusy: other processes held the write lock too long; nothing was changed.
            TaskStoreError: the commit failed; whether it took effect is unknown.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        job = _Job(work, trio.lowlevel.current_trio_token(), trio.lowlevel.current_task())
        self._put(job)

        def withdraw(_: Any) -> trio.lowlevel.Abort:
            with self._lock:
                if job.state is _State.TAKEN:
                    return trio.lowlevel.Abort.FAILED
                job.state = _State.WITHDRAWN
                return trio.lowlevel.Abort.SUCCEEDED

        result: _T = await trio.lowlevel.wait_task_rescheduled(withdraw)
        return result

    def write_from_thread(self, work: _Work[_T]) -> _T:
        """Do the same for a thread that is not the loop's; blocks it."""
        future: Future[outcome.Outcome[_T]] = Future()
        self._put(_Job(work, future=future))
        return future.result().unwrap()

    async def read(self, work: _Work[_T]) -> _T:
        """Return ``work(connection)``: one consistent view of the file, on a worker thread.

        ``work`` may be called again when the file is busy.
        """
        self._check_process()
        if self._closed:
            raise StoreClosed("the task store is closed")
        return await trio.to_thread.run_sync(self._read, work, limiter=self._readers)

    async def in_thread(self, work: Callable[[*_Args], _T], *args: *_Args) -> _T:
        """Return ``work(*args)``, which may block, but is not about the file's contents."""
        return await trio.to_thread.run_sync(work, *args, limiter=self._helpers)

    def _put(self, job: _Job) -> None:
        self._check_process()
        with self._lock:
            if self._closed:
                raise StoreClosed("the task store is closed; nothing was changed")
            self._queue.put(job)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise TaskStoreError(_FORKED)

    # ---- reading ------------------------------------------------------------------------------

    def _read(self, work: _Work[_T]) -> _T:
        with self._lock:
            connection = self._idle_readers.pop() if self._idle_readers else None
        try:
            connection = connection or open_reader(self.path)
            result = while_busy(partial(view, connection, partial(self._look, work)))
        except BaseException as error:
            if connection is not None:
                connection.close()  # whatever is wrong with it, the next reader shall not meet it
            if isinstance(error, SQLITE_ERRORS):
                raise store_error(error) from error  # noqa: ASYNC104 - no loop in this thread
            raise
        with self._lock:
            if not self._closed:
                self._idle_readers.append(connection)
                return result
        connection.close()
        return result

    def _look(self, work: _Work[_T], connection: sqlite3.Connection) -> _T:
        check_still_ours(connection, self.path, self._identity)
        return work(connection)

    # ---- the writing thread -------------------------------------------------------------------

    def _serve(self, connection: sqlite3.Connection) -> None:
        batch: list[_Job] = []
        try:
            while batch or not self._drained:
                batch = self._gather(batch, wait=not batch)
                if batch and self._begin(connection, batch):
                    self._work_off(connection, self._gather(batch, wait=False))
                    batch = []
                    if not self._queue.empty():
                        time.sleep(_PAUSE_S)  # another process may want the write lock
        finally:
            connection.close()

    def _gather(self, batch: list[_Job], *, wait: bool) -> list[_Job]:
        """Return who waits, of ``batch`` and of the queue; if ``wait``, at least one or the end."""
        batch = [job for job in batch if job.state is _State.WAITING]
        while len(batch) < _LARGEST_BATCH and not self._drained:
            try:
                job = self._queue.get(block=wait and not batch)
            except queue.Empty:
                break
            if job is None:
                self._drained = True
            elif job.state is _State.WAITING:
                batch.append(job)
        return batch

    def _begin(self, connection: sqlite3.Connection, batch: list[_Job]) -> bool:
        """Try once to begin a transaction; until then every caller may still withdraw.

        While the file is busy, those are refused who have waited long enough.
        """
        try:
            connection.execute("BEGIN IMMEDIATE")
            check_still_ours(connection, self.path, self._identity)
        except BaseException as error:  # noqa: ASYNC103, BLE001
            busy = is_busy(error)
            refused = self._take([j for j in batch if not busy or self._is_enough([j])])
            _fail(connection, refused, error)
            _deliver(refused)
        else:
            return True
        pause()
        return False

    def _work_off(self, connection: sqlite3.Connection, batch: list[_Job]) -> None:
        taken = self._take(batch)
        alone: list[_Job] = []
        try:
            alone = self._run(connection, taken)
        except BaseException as error:  # noqa: ASYNC103, BLE001
            _fail(connection, taken, error)
        for job in alone:
            try:
                begin = partial(connection.execute, "BEGIN IMMEDIATE")
                while_busy(begin, partial(self._is_enough, [job]))
                check_still_ours(connection, self.path, self._identity)
                self._run(connection, [job])
            except BaseException as error:  # noqa: ASYNC103, BLE001
                _fail(connection, [job], error)
        _deliver(taken)

    def _run(self, connection: sqlite3.Connection, jobs: list[_Job]) -> list[_Job]:
        """Run ``jobs`` in the open transaction and commit; return those to be run again, alone.

        A full disk or an I/O error makes SQLite undo the whole transaction: all but the job that
        met it are innocent.
        """
        for job in jobs:
            connection.execute("SAVEPOINT job")
            try:
                job.outcome = outcome.Value(job.work(connection))
            except Exception as error:  # noqa: BLE001
                job.outcome = outcome.Error(_ours(error))
                if not connection.in_transaction:
                    return [other for other in jobs if other is not job]
                connection.execute("ROLLBACK TO job")
            connection.execute("RELEASE job")
        while_busy(partial(connection.execute, "COMMIT"), partial(self._is_enough, jobs))
        self._busy_since = None
        return []

    def _take(self, batch: list[_Job]) -> list[_Job]:
        with self._lock:
            taken = [job for job in batch if job.state is _State.WAITING]
            for job in taken:
                job.state = _State.TAKEN
        return taken

    def _is_enough(self, jobs: list[_Job]) -> bool:
        """Note that the file is busy; return whether that has kept all ``jobs`` waiting too long.

        What they waited before, for our own batches, does not count.
        """
        if self._busy_since is None:
            self._busy_since = time.monotonic()
        return all(is_overdue(max(job.asked_at, self._busy_since)) for job in jobs)


def _fail(connection: sqlite3.Connection, jobs: list[_Job], error: BaseException) -> None:
    """Answer ``jobs`` with ``error``: none of them, a refused one neither, was committed."""
    with suppress(sqlite3.Error):  # the thread must live: everybody waits for it
        roll_back(connection)
    for job in jobs:  # an error of its own for each: whoever raises it adds a traceback
        if isinstance(error, TaskStoreError):
            ours: BaseException = type(error)(str(error))
        elif (ours := _ours(error)) is error:
            ours = TaskStoreError(f"the transaction failed: {error!r}")
        job.outcome = outcome.Error(ours)


def _ours(error: BaseException) -> BaseException:
    if not isinstance(error, SQLITE_ERRORS):
        return error
    ours = store_error(error)
    ours.__cause__ = error
    return ours


def _deliver(jobs: list[_Job]) -> None:
    by_loop: dict[trio.lowlevel.TrioToken, list[_Job]] = {}
    for job in jobs:
        if job.token is not None:
            by_loop.setdefault(job.token, []).append(job)
        else:
            assert job.future is not None
            assert job.outcome is not None
            job.future.set_result(job.outcome)
    for token, theirs in by_loop.items():
        with suppress(trio.RunFinishedError):  # nobody is left to be told
            token.run_sync_soon(_wake, theirs)


def _wake(jobs: list[_Job]) -> None:
    for job in jobs:
        assert job.task is not None
        assert job.outcome is not None
        trio.lowlevel.reschedule(job.task, job.outcome)
