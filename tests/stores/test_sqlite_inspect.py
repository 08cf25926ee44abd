"""`inspect_file` looks and does not touch, whatever the file is."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
import trio

from trio_bgtasks._errors import StoreBusy, TaskStoreError
from trio_bgtasks.stores import SqliteTaskStore
from trio_bgtasks.stores.sqlite import _connection, _inspect, _schema, inspect_file

from .conftest import Hand

_KILLED = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
connection.execute("CREATE TABLE half (x)")
connection.executemany("INSERT INTO half VALUES (?)", [("x" * 3000,)] * 100)
os._exit(9)
"""  # in the middle of a transaction, of which a part is in the file already


async def _store(path: Path) -> None:
    """Make a store with a rollback journal, also by an SQLite that would choose the other one."""
    async with SqliteTaskStore.open(path):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = delete")


async def test_a_transaction_that_was_cut_off_is_left_to_who_opens_the_store(
    tmp_path: Path,
) -> None:
    """It is not rolled back by a look, which says so; an opened store has it rolled back."""
    path = tmp_path / "tasks.db"
    await _store(path)
    killed = await trio.run_process([sys.executable, "-c", _KILLED, str(path)], check=False)
    assert killed.returncode == 9
    before = path.read_bytes()

    with pytest.raises(TaskStoreError, match="killed while it wrote; whoever opens the store"):
        await inspect_file(path)
    assert path.read_bytes() == before
    async with SqliteTaskStore.open(path):
        assert (await inspect_file(path)).schema == "current"


async def test_an_older_schema_is_told_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version is reported, its tables are not read."""
    path = tmp_path / "tasks.db"
    await _store(path)
    before = path.read_bytes()
    monkeypatch.setattr(_schema, "SCHEMA_VERSION", _schema.SCHEMA_VERSION + 1)

    report = await inspect_file(path)
    assert (report.schema, report.schema_version) == ("older", _schema.SCHEMA_VERSION - 1)
    assert (report.executors, report.orphans, report.corrupt) == ((), (), ())
    assert path.read_bytes() == before


async def test_a_file_that_is_kept_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says that it is busy, not that it is broken."""
    path = tmp_path / "tasks.db"
    await _store(path)
    monkeypatch.setattr(_connection, "BUSY_S", 0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreBusy, match="cannot read the task store"):
            await inspect_file(path)


async def test_what_is_no_file(tmp_path: Path) -> None:
    """The error names the path; nothing is made there."""
    with pytest.raises(TaskStoreError, match="no such file"):
        await inspect_file(tmp_path / "none.db")
    with pytest.raises(ValueError, match="must name a file"):
        await inspect_file(":memory:")
    assert not (tmp_path / "none.db").exists()


async def test_a_look_can_be_cancelled(
    sqlite: SqliteTaskStore, scribe: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two of its steps: a large file does not hold up who no longer wants to know."""
    await scribe.start("t")
    state = _inspect._executor_state

    with trio.CancelScope() as scope:

        def cancelled_here(connection: sqlite3.Connection) -> object:
            trio.from_thread.run_sync(scope.cancel)
            return state(connection)

        monkeypatch.setattr(_inspect, "_executor_state", cancelled_here)
        await inspect_file(sqlite._engine.path)
    assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("damage", "name", "why"),
    [
        ("task_id = CAST(x'ff' AS TEXT)", r"b'\xff'", "notice 1: task_id: not UTF-8"),
        ("owner_thread_id = CAST(x'ff' AS TEXT)", "t", "notice 1: owner_thread_id: not UTF-8"),
        ("summary = '[]'", "t", 'notice 1: record: [] is not of type "object"'),
    ],
    ids=["id", "owner", "shape"],
)
async def test_a_damaged_notice_is_named(
    sqlite: SqliteTaskStore, scribe: Hand, damage: str, name: str, why: str
) -> None:
    """By its number and its task, as text, whatever is damaged in it."""
    await scribe.start("t")
    await scribe.end("t")
    with closing(sqlite3.connect(sqlite._engine.path, isolation_level=None)) as connection:
        connection.execute(f"UPDATE notices SET {damage}")
    report = await inspect_file(sqlite._engine.path)
    assert [(error.task_id, error.why) for error in report.corrupt] == [(name, why)]


async def test_an_executor_with_a_damaged_id_is_shown_as_text(
    sqlite: SqliteTaskStore, scribe: Hand
) -> None:
    """Its id is what can be shown of it; what it runs is still counted as its own."""
    await scribe.start("t")
    with closing(sqlite3.connect(sqlite._engine.path, isolation_level=None)) as connection:
        for table in ("executors", "tasks"):
            connection.execute(f"UPDATE {table} SET executor_id = CAST(x'ff' AS TEXT)")
    report = await inspect_file(sqlite._engine.path)
    assert [(e.executor_id, e.running_tasks) for e in report.executors] == [(r"b'\xff'", 1)]
