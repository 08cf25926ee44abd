"""Group commit: one thread writes, and what waits for it shares one durable transaction.

The unit of work is a synchronous function of the connection. It runs in a savepoint of its own
inside the transaction of its batch, so its failure undoes it alone. Its caller is answered after
the commit:

* cancelled while it waits its turn: the work is not done at all;
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
from typing import Any, Final, TypeAlias, TypeVar

import attrs
import outcome
import trio

from ..._errors import StoreClosed, TaskStoreError
from ._connection import (
    SQLITE_ERRORS,
    Synchronous,
    begin,
    open_reader,
    open_writer,
    roll_back,
    store_error,
    view,
    while_busy,
)

_T = TypeVar("_T")
_Work: TypeAlias = Callable[[sqlite3.Connection], _T]

_LARGEST_BATCH: Final = 256
_READERS: Final = 3
_PAUSE_S: Final = 0.0005


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
    state: _State = _State.WAITING
    outcome: outcome.Outcome[Any] | None = None


class Engine:
    """The connections to one file: a writing one with its thread, a few reading ones."""

    def __init__(self, path: Path, synchronous: Synchronous, writer: sqlite3.Connection) -> None:
        self.path = path
        self.synchronous = synchronous
        self.journal_mode: str = writer.execute("PRAGMA journal_mode").fetchone()[0]
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards every job's state, and `_closed` with the queue
        self._closed = False  # nothing more is taken
        self._drained = False  # the writing thread has seen the last job
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._serve, args=(writer,), name=f"bgtasks-sqlite {path.name}", daemon=True
        )
        self._idle_readers: list[sqlite3.Connection] = []
        self._readers = trio.CapacityLimiter(_READERS)

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, synchronous: Synchronous) -> AsyncGenerator[Engine, None]:
        """Open the file, creating or migrating it; close it, all work done, at the end."""
        writer = await trio.to_thread.run_sync(open_writer, path, synchronous)
        engine = cls(path, synchronous, writer)
        engine._thread.start()
        try:
            yield engine
        finally:
            with trio.CancelScope(shield=True):
                await engine._close()

    async def _close(self) -> None:
        if os.getpid() != self._pid:
            return  # a forked child: the thread, and what it opened, are the parent's
        with self._lock:
            self._closed = True
            self._queue.put(None)
            idle, self._idle_readers = self._idle_readers, []
        for reader in idle:
            reader.close()
        await trio.to_thread.run_sync(self._thread.join)

    # ---- callers ------------------------------------------------------------------------------

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

    def _put(self, job: _Job) -> None:
        self._check_process()
        with self._lock:
            if self._closed:
                raise StoreClosed("the task store is closed; nothing was changed")
            self._queue.put(job)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise TaskStoreError(
                "this task store was opened before a fork: open it anew in the child process"
            )

    # ---- reading ------------------------------------------------------------------------------

    def _read(self, work: _Work[_T]) -> _T:
        with self._lock:
            connection = self._idle_readers.pop() if self._idle_readers else None
        try:
            connection = connection or open_reader(self.path)
            result = while_busy(partial(view, connection, work))
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

    # ---- the writing thread -------------------------------------------------------------------

    def _serve(self, connection: sqlite3.Connection) -> None:
        try:
            while not self._drained:
                batch: list[_Job] = []
                self._gather(batch, wait=True)
                if batch:
                    self._work_off(connection, batch)
                    if not self._queue.empty():
                        time.sleep(_PAUSE_S)  # another process may want the write lock
        finally:
            connection.close()

    def _gather(self, batch: list[_Job], *, wait: bool) -> None:
        """Add to ``batch`` what is in the queue; if ``wait``, at least one job or the end."""
        while len(batch) < _LARGEST_BATCH and not self._drained:
            try:
                job = self._queue.get(block=wait and not batch)
            except queue.Empty:
                return
            if job is None:
                self._drained = True
            else:
                batch.append(job)

    def _work_off(self, connection: sqlite3.Connection, batch: list[_Job]) -> None:
        taken: list[_Job] = []
        alone: list[_Job] = []
        try:
            begin(connection)  # until then every caller may still withdraw
            self._gather(batch, wait=False)
            taken = self._take(batch)
            alone = _run(connection, taken)
        except BaseException as error:  # noqa: ASYNC103, BLE001
            taken = taken or self._take(batch)
            _fail(connection, taken, error)
        for job in alone:
            try:
                begin(connection)
                _run(connection, [job])
            except BaseException as error:  # noqa: ASYNC103, BLE001
                _fail(connection, [job], error)
        _deliver(taken)

    def _take(self, batch: list[_Job]) -> list[_Job]:
        with self._lock:
            taken = [job for job in batch if job.state is _State.WAITING]
            for job in taken:
                job.state = _State.TAKEN
        return taken


def _run(connection: sqlite3.Connection, jobs: list[_Job]) -> list[_Job]:
    """Run ``jobs`` in the open transaction and commit; return those to be run again, alone.

    A full disk or an I/O error makes SQLite undo the whole transaction: all but the job that met
    it are innocent.
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
    while_busy(lambda: connection.execute("COMMIT"))
    return []


def _fail(connection: sqlite3.Connection, jobs: list[_Job], error: BaseException) -> None:
    """Answer ``jobs`` with ``error``: none of them, a refused one neither, was committed."""
    with suppress(sqlite3.Error):  # the thread must live: everybody waits for it
        roll_back(connection)
    for job in jobs:  # an error of its own for each: whoever raises it adds a traceback
        ours = _ours(error)
        if ours is error:
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
