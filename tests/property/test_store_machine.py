"""The stores of the library keep their promises, as `TaskStoreMachine` knows them.

Others, that do not, are in ``test_planted.py``.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
import unittest
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

from hypothesis import settings

from tests.property.machines import MemoryMachine
from tests.stores.make_schema_db import DATA
from trio_bgtasks import MemoryTaskStore, SqliteTaskStore, TaskStore
from trio_bgtasks.testing import FaultyStore, TaskStoreMachine


class WrappedMachine(MemoryMachine):
    """The same in a wrapper that hands on every call."""

    @asynccontextmanager
    async def open_store(self, place: MemoryTaskStore) -> AsyncIterator[TaskStore]:
        yield FaultyStore(place)


class SqliteMachine(TaskStoreMachine):
    """The SQLite store: its place is a file, and a copy of that file is what a kill leaves."""

    virtual_time = False
    cancelled_is_not_applied = True

    @contextmanager
    def new_place(self) -> Iterator[Path]:
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # no disk: half the time
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            yield Path(folder) / "0" / "tasks.db"

    def open_store(self, place: Path) -> AbstractAsyncContextManager[TaskStore]:
        return SqliteTaskStore.open(place, synchronous="normal")

    async def kill(self, place: Path, executor_ids: Sequence[str]) -> Path:
        copy = place.parent.parent / str(int(place.parent.name) + 1)
        shutil.copytree(place.parent, copy)
        return copy / place.name

    async def corrupt(self, place: Path, task_id: str) -> None:
        with contextlib.closing(sqlite3.connect(place, isolation_level=None)) as connection:
            connection.execute(
                "UPDATE tasks SET description = CAST(x'80' AS TEXT) WHERE task_id = ?", (task_id,)
            )


class MigratedMachine(SqliteMachine):
    """The same in a file that another version of the library wrote; its rows are not the model's.

    That its rows are read as they were is shown in ``tests/stores/test_sqlite_schema.py``.
    """

    @staticmethod
    def empty(place: Path) -> None:
        """Delete what is in the file, and keep the file."""
        with contextlib.closing(sqlite3.connect(place)) as connection:
            for table in ("tasks", "task_events", "task_output", "notices", "executors"):
                connection.execute(f"DELETE FROM {table}")
            connection.commit()

    @contextmanager
    def new_place(self) -> Iterator[Path]:
        with super().new_place() as place:
            place.parent.mkdir()
            shutil.copyfile(DATA / "schema_v1.db", place)
            self.empty(place)
            yield place


TestMemory = MemoryMachine.TestCase
TestWrapped = WrappedMachine.TestCase
TestSqlite = SqliteMachine.TestCase
TestMigrated = MigratedMachine.TestCase


def deepen(case: type[unittest.TestCase], share: float) -> None:
    """Give a machine its share of the profile's examples."""
    examples = int(settings().max_examples * share)
    cast("Any", case).settings = settings(max_examples=examples, stateful_step_count=25)


deepen(TestMemory, 1.0)
deepen(TestWrapped, 0.1)
deepen(TestSqlite, 0.25)
deepen(TestMigrated, 0.05)
