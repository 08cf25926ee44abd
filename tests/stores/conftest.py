"""The stores under test, and a hand that writes events to them."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from trio_bgtasks._events import (
    CancelRequested,
    CheckpointSaved,
    Event,
    Finished,
    OutputAppended,
    Registered,
)
from trio_bgtasks._records import Success, TaskRecord, TaskResult
from trio_bgtasks.stores import LeaseTerms, MemoryTaskStore, SqliteTaskStore, TaskStore
from trio_bgtasks.stores._hostlock import HostLock, boot_id
from trio_bgtasks.stores.sqlite import _connection


@attrs.define
class Hand:
    """Writes as one executor; its clock is a counter."""

    store: TaskStore
    executor_id: str
    clock: Iterator[int] = attrs.field(factory=lambda: itertools.count(1000))

    async def start(self, task_id: str, *, owner: str = "ann", **fields: Any) -> TaskRecord:
        """Register a task."""
        task_type = fields.pop("task_type", "shell")
        event = Registered(next(self.clock), self.executor_id, owner, task_type, "test", **fields)
        return await self.store.apply(task_id, event)

    async def end(
        self, task_id: str, outcome: TaskResult | None = None, *, attempt: int = 1, **fields: Any
    ) -> TaskRecord:
        """Finish an attempt, with success if nothing else is said."""
        outcome = Success() if outcome is None else outcome
        event = Finished(next(self.clock), self.executor_id, attempt, outcome, **fields)
        return await self.store.apply(task_id, event)

    async def write(self, task_id: str, offset: int, text: str, **fields: Any) -> TaskRecord:
        """Append output."""
        event = OutputAppended(next(self.clock), self.executor_id, 1, offset, text, **fields)
        return await self.store.apply(task_id, event)

    async def checkpoint(self, task_id: str, value: Any) -> TaskRecord:
        """Save a checkpoint."""
        event = CheckpointSaved(next(self.clock), self.executor_id, 1, value)
        return await self.store.apply(task_id, event)

    async def cancel(self, task_id: str) -> TaskRecord:
        """Mark a task as cancelled."""
        return await self.store.apply(task_id, CancelRequested(next(self.clock)))

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        """Apply any event."""
        return await self.store.apply(task_id, event)


FAR_AHEAD = 1 << 52


def add_executor(
    store: SqliteTaskStore, *, boot: str | None = None, expires_at_ms: int = FAR_AHEAD
) -> str:
    """Add row and free lock of an executor whose process is not there any more."""
    lock = HostLock.acquire(store._locks)
    lock.release(is_retired=False)
    connection = sqlite3.connect(store._engine.path, isolation_level=None)
    try:
        sql = "INSERT INTO executors VALUES (?, ?, 1, 0, ?, NULL)"
        connection.execute(sql, (lock.executor_id, boot or boot_id(), expires_at_ms))
    finally:
        connection.close()
    return lock.executor_id


@pytest.fixture
def wal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write-ahead log also with a SQLite that has the reset race: one process is safe."""
    monkeypatch.setattr(_connection, "has_wal_reset_race", lambda: False)


@pytest.fixture
def rollback_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No write-ahead log, whatever the version of SQLite."""
    monkeypatch.setattr(_connection, "has_wal_reset_race", lambda: True)


@pytest.fixture(params=["memory", "sqlite", "sqlite-wal"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[TaskStore]:
    """Every store that is in the tree."""
    if request.param == "memory":
        yield MemoryTaskStore()
        return
    race = request.param == "sqlite"
    monkeypatch.setattr(_connection, "has_wal_reset_race", lambda: race)
    async with SqliteTaskStore.open(tmp_path / "tasks.db") as opened:
        yield opened


@pytest.fixture
async def hand(store: TaskStore) -> AsyncIterator[Hand]:
    """A registered executor of that store."""
    async with store.executor(LeaseTerms()) as executor:
        yield Hand(store, executor.executor_id)


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[SqliteTaskStore]:
    """A SQLite store as it comes."""
    async with SqliteTaskStore.open(tmp_path / "tasks.db") as opened:
        yield opened


@pytest.fixture
async def scribe(sqlite: SqliteTaskStore) -> AsyncIterator[Hand]:
    """A registered executor of the SQLite store."""
    async with sqlite.executor(LeaseTerms()) as executor:
        yield Hand(sqlite, executor.executor_id)
