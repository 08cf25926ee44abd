"""What the runtime is measured against: the least that one could do without it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TypeAlias

import trio

from ._measure import by_clients

_SCHEMA = "CREATE TABLE tasks (task_id INTEGER PRIMARY KEY, status TEXT, record TEXT) STRICT"
_START = "INSERT INTO tasks (status, record) VALUES ('running', ?) RETURNING task_id"
_END = "UPDATE tasks SET status = 'completed' WHERE task_id = ?"
_RECORD = '{"owner": "benchmark", "task_type": "benchmark", "description": "", "attempt": 1}'


# ---- a raw Trio nursery -------------------------------------------------------------------------


async def body() -> None:
    """Do what every task of every contender does: one checkpoint."""
    await trio.lowlevel.checkpoint()


async def raw_burst(tasks: int) -> float:
    """Start all tasks in one nursery and wait for them."""
    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(body)
    return time.perf_counter() - start


async def scoped_burst(tasks: int) -> float:
    """Do the same with what the runtime asks of Trio itself: how much is left for everything else.

    A start is a public async call, which checkpoints; a task has a cancel scope of its own.
    """

    async def task() -> None:
        with trio.CancelScope():
            await body()

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            await trio.lowlevel.checkpoint()
            nursery.start_soon(task)
    return time.perf_counter() - start


async def raw_clients(count: int, tasks: int) -> float:
    """Let each client start a task in a shared nursery and wait for its event."""

    async def task(done: trio.Event) -> None:
        await body()
        done.set()

    async with trio.open_nursery() as nursery:

        async def one() -> None:
            done = trio.Event()
            nursery.start_soon(task, done)
            await done.wait()

        return await by_clients(count, tasks, one)  # noqa: ASYNC121 - they all have ended by then


# ---- plain SQLite: one commit per write ---------------------------------------------------------


def connect(folder: Path, name: str, journal_mode: str) -> sqlite3.Connection:
    """Make a new file as safe as ours: the same journal mode, ``synchronous=FULL``."""
    number = len(list(folder.glob(f"{name}*.db")))
    connection = sqlite3.connect(
        folder / f"{name}{number}.db", isolation_level=None, check_same_thread=False
    )
    connection.execute(f"PRAGMA journal_mode = {journal_mode}")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(_SCHEMA)
    return connection


async def commit_per_write(tasks: int, folder: Path, journal_mode: str) -> float:
    """Store start and end of each task, each in a transaction of its own, one after the other."""
    connection = connect(folder, "single", journal_mode)
    start = time.perf_counter()
    for _ in range(tasks):
        (task_id,) = connection.execute(_START, (_RECORD,)).fetchone()
        await trio.lowlevel.checkpoint()
        connection.execute(_END, (task_id,))
    seconds = time.perf_counter() - start
    connection.close()
    return seconds


# ---- a bare group-commit loop -------------------------------------------------------------------

_Write: TypeAlias = Callable[[sqlite3.Connection], int]


class _Job:
    def __init__(self, write: _Write) -> None:
        self.write = write
        self.done = trio.Event()
        self.answer = 0


class GroupCommit:
    """One thread; everything that waits for it shares one transaction. Knows no errors."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._token = trio.lowlevel.current_trio_token()
        self._thread = Thread(target=self._serve)
        self._thread.start()

    async def write(self, write: _Write) -> int:
        """Return the answer of ``write`` once it is committed."""
        job = _Job(write)
        self._queue.put(job)
        await job.done.wait()
        return job.answer

    def close(self) -> None:
        """End the thread."""
        self._queue.put(None)
        self._thread.join()
        self._connection.close()

    def _serve(self) -> None:
        while True:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            jobs = [job for job in batch if job is not None]
            if jobs:
                self._connection.execute("BEGIN IMMEDIATE")
                for job in jobs:
                    job.answer = job.write(self._connection)
                self._connection.execute("COMMIT")
                self._token.run_sync_soon(_deliver, jobs)
            if len(jobs) < len(batch):
                return


def _deliver(jobs: list[_Job]) -> None:
    for job in jobs:
        job.done.set()


def _start(connection: sqlite3.Connection) -> int:
    (task_id,) = connection.execute(_START, (_RECORD,)).fetchone()
    assert isinstance(task_id, int)
    return task_id


async def group_commit(count: int, tasks: int, folder: Path, journal_mode: str) -> float:
    """Let each client store the start and the end of a task, again and again."""
    loop = GroupCommit(connect(folder, "group", journal_mode))

    async def one() -> None:
        task_id = await loop.write(_start)
        await trio.lowlevel.checkpoint()
        await loop.write(lambda connection: connection.execute(_END, (task_id,)).rowcount)

    try:
        return await by_clients(count, tasks, one)
    finally:
        loop.close()
