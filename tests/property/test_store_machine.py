"""The stores of the library keep their promises, as `TaskStoreMachine` knows them.

Others, that do not, are in ``test_planted.py``.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from tests.property.depth import deep, depth
from tests.property.machines import MemoryMachine
from tests.stores.make_schema_db import DATA
from trio_bgtasks import MemoryTaskStore, SqliteTaskStore, TaskStore
from trio_bgtasks.testing import FaultyStore, TaskStoreMachine

from .store_process import RemoteStore, open_remotely


class WrappedMachine(MemoryMachine):
    """The same in a wrapper that hands on every call."""

    @asynccontextmanager
    async def open_store(self, place: MemoryTaskStore) -> AsyncIterator[TaskStore]:
        yield FaultyStore(place)


def copy_if_there(source: str, target: str) -> None:
    """Copy a file; a sweep that is under way may remove a lock that nobody needs any more."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(source, target)


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
        with contextlib.closing(sqlite3.connect(place, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")  # the copy is of one moment
            shutil.copytree(place.parent, copy, copy_function=copy_if_there)
        return copy / place.name

    async def corrupt(self, place: Path, task_id: str) -> None:
        with contextlib.closing(sqlite3.connect(place, isolation_level=None)) as connection:
            connection.execute(
                "UPDATE tasks SET description = CAST(x'80' AS TEXT) WHERE task_id = ?", (task_id,)
            )


class KilledMachine(SqliteMachine):
    """The same in processes that are killed with SIGKILL, whatever they do at that moment."""

    cancelled_is_not_applied = False

    def __init__(self) -> None:
        super().__init__()
        self._open: list[RemoteStore] = []

    @asynccontextmanager
    async def open_store(self, place: Path) -> AsyncIterator[TaskStore]:
        async with open_remotely(place) as store:
            self._open.append(store)
            yield cast("TaskStore", store)

    async def kill(self, place: Path, executor_ids: Sequence[str]) -> Path:
        for store in self._open:
            store.stop()  # no sweep finds one of them dead while another still lives
        for store in self._open:
            store.kill()
        self._open.clear()
        return place


class MigratedMachine(SqliteMachine):
    """The same in a file that another version of the library wrote; its rows are not the model's.

    That its rows are read as they were is shown in ``tests/stores/test_sqlite_schema.py``.
    """

    written: Path

    @staticmethod
    def empty(place: Path) -> None:
        """Delete what is in the file, and keep the file."""
        with contextlib.closing(sqlite3.connect(place)) as connection:
            tables = (
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
            )
            for (table,) in connection.execute(tables).fetchall():
                connection.execute(f"DELETE FROM {table}")
            connection.commit()

    @contextmanager
    def new_place(self) -> Iterator[Path]:
        with super().new_place() as place:
            place.parent.mkdir()
            shutil.copyfile(self.written, place)
            self.empty(place)
            yield place


TestMemory = deep(MemoryMachine, share=1.0, steps=25)
TestWrapped = deep(WrappedMachine, share=0.1, steps=25)
TestSqlite = deep(SqliteMachine, share=0.25, steps=25)
TestKilled = deep(KilledMachine, share=0.05, steps=25)


@pytest.mark.machine
@pytest.mark.parametrize("file", sorted(DATA.glob("schema_v*.db")), ids=lambda file: file.stem)
def test_a_migrated_file_keeps_them_too(file: Path) -> None:
    """Of every version that there ever was."""

    class Machine(MigratedMachine):
        written = file

    run_state_machine_as_test(Machine, settings=depth(share=0.05, steps=25))


@settings(max_examples=1, database=None)
@given(schedule=st.just(0))
def test_a_sweep_that_nobody_heard_of_need_not_report_what_is_damaged(schedule: int) -> None:
    """The one answer was lost, so nothing was reported; the nightly run took that for a fault."""
    state = SqliteMachine()
    try:
        state.begin(schedule=schedule)
        state.reopen(client=0, pieces=[])
        state.damage(number=0)
        state.sweep(sweepers=[(0, "answer lost", 0)], suspect=None, again=False)
        state.sweep(sweepers=[(0, "answer lost", 0)], suspect=None, again=True)
    finally:
        state.teardown()
