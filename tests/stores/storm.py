"""A process that writes to a store until it is killed.

Every answer that it got is a line of its log, written before the next call: ``start ID``,
``end ID VALUE``, or ``error TEXT``. What it does, ``what`` says:

* ``storm``: as many starts and ends as it can.
* ``idle``: one start, with a lease that is long over, then nothing until there is a file LOG.go; one
  end.
* ``full``: a storm on a disk that is full after a while; the errors it saw; then, with room, one
  start more.
* ``storm wal``, ``full wal``: the same with a write-ahead log, whatever the version of SQLite.
"""

from __future__ import annotations

import os
import resource
import signal
from itertools import count
from pathlib import Path

import trio

from trio_bgtasks._errors import StoreBusy, TaskStoreError
from trio_bgtasks._events import Finished, Registered
from trio_bgtasks._records import Success
from trio_bgtasks.stores import LeaseTerms, SqliteTaskStore, wall_clock_ms
from trio_bgtasks.stores.sqlite import _connection

CLIENTS = 20


class Writer:
    """One executor of this process."""

    def __init__(self, store: SqliteTaskStore, executor_id: str, log: int) -> None:
        self.store = store
        self.executor_id = executor_id
        self.log = log

    def say(self, text: str) -> None:
        """Write a line; what was written survives this process."""
        os.write(self.log, f"{text}\n".encode())

    async def start(self, task_id: str) -> None:
        """Register a task."""
        event = Registered(1, self.executor_id, "ann", "storm", "x" * 50, args={"id": task_id})
        await self.store.apply(task_id, event)
        self.say(f"start {task_id}")

    async def end(self, task_id: str, value: int) -> None:
        """Finish it."""
        event = Finished(2, self.executor_id, 1, Success(value), output=f"{value}")
        await self.store.apply(task_id, event)
        self.say(f"end {task_id} {value}")

    async def storm(self, client: int) -> None:
        """Start and end, over and over."""
        for n in count():
            task_id = f"{os.getpid()}-{client}-{n}"
            await self.start(task_id)
            await self.end(task_id, n)

    async def until_full(self, client: int) -> None:
        """Do so until the store cannot."""
        try:
            await self.storm(client)
        except TaskStoreError as error:
            busy = isinstance(error, StoreBusy)
            self.say(f"error {'busy ' if busy else ''}{error}")


def no_race(version: tuple[int, ...] = ()) -> bool:
    """Say of every version that it has no race."""
    return version == (0,)


def long_ago_ms() -> int:
    """Return a time at which a lease that was renewed then is long over."""
    return 1


async def main(path: Path, log: Path, what: str) -> None:
    """Do what is asked."""
    if what.endswith("wal"):
        _connection.has_wal_reset_race = no_race
    clock_ms = long_ago_ms if what == "idle" else wall_clock_ms
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    async with (
        SqliteTaskStore.open(path) as store,
        store.executor(LeaseTerms(), clock_ms) as executor,
    ):
        writer = Writer(store, executor.executor_id, descriptor)
        if what == "idle":
            await writer.start(f"{os.getpid()}")
            go = trio.Path(f"{log}.go")
            while not await go.exists():
                await trio.sleep(0.01)
            await writer.end(f"{os.getpid()}", 7)
            return
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if what.startswith("full"):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))
        async with trio.open_nursery() as nursery:
            for client in range(CLIENTS):
                nursery.start_soon(
                    writer.until_full if what.startswith("full") else writer.storm, client
                )
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        await writer.start("room")


def run(path: Path, log: Path, what: str) -> None:
    """Be that process."""
    trio.run(main, path, log, what)
