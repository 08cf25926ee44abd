"""Executors on a file: the lock, the lease, and the sweep."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.processes import PATIENCE_S, until
from trio_bgtasks._errors import ExecutorFenced, StoreBusy, TaskStoreError
from trio_bgtasks._events import Registered
from trio_bgtasks.stores import LeaseTerms, SqliteTaskStore
from trio_bgtasks.stores._hostlock import HostLock, boot_id, is_held
from trio_bgtasks.stores.sqlite import _changes, _connection, _executors, inspect_file

from .conftest import FAR_AHEAD, Hand, add_executor

QUICK = LeaseTerms(lease_s=5.0, renew_s=0.02)
REFUSE_T1 = """
    CREATE TRIGGER refuse BEFORE UPDATE ON tasks WHEN old.task_id = 't1'
    BEGIN SELECT raise(ABORT, 'no'); END
"""
REFUSE_ITS_NOTICE = """
    CREATE TRIGGER refuse BEFORE INSERT ON notices WHEN new.task_id = 't1'
    BEGIN SELECT raise(ABORT, 'no'); END
"""
LONG_AGO = 0


@contextmanager
def raw(store: SqliteTaskStore) -> Generator[sqlite3.Connection, None, None]:
    """Yield another connection to the file, one that checks nothing."""
    connection = sqlite3.connect(store._engine.path, isolation_level=None)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    try:
        yield connection
    finally:
        connection.close()


def change(store: SqliteTaskStore, sql: str, *parameters: Any) -> None:
    """Change the file behind the store's back."""
    with raw(store) as connection:
        connection.execute(sql, parameters)


def rows(store: SqliteTaskStore, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Read the file behind the store's back."""
    with raw(store) as connection:
        return connection.execute(sql, parameters).fetchall()


def expires(store: SqliteTaskStore, executor_id: str) -> int:
    """Return when the lease ends."""
    sql = "SELECT expires_at_ms FROM executors WHERE executor_id = ?"
    ((value,),) = rows(store, sql, executor_id)
    return int(value)


async def status(store: SqliteTaskStore, task_id: str) -> str:
    """Return the status of a task that is there."""
    record = await store.load(task_id)
    assert record is not None
    return record.status


# ---- one executor --------------------------------------------------------------------------------


async def test_an_executor_is_its_lock_and_its_row(sqlite: SqliteTaskStore) -> None:
    """Both while the block runs; after it the row is fenced, the lock file and the thread gone."""
    async with sqlite.executor(LeaseTerms()) as executor:
        path = sqlite._locks / f"{executor.executor_id}.lock"
        assert is_held(path)
        assert len(executor.lock_fds) == 1
        ((boot, fenced),) = rows(sqlite, "SELECT boot_id, fenced_at_ms FROM executors")
        assert (boot, fenced) == (boot_id(), None)
    assert not path.exists()
    ((fenced,),) = rows(sqlite, "SELECT fenced_at_ms FROM executors")
    assert fenced is not None
    assert not [t for t in threading.enumerate() if t.name.startswith("bgtasks-lease")]
    assert not executor.lost.is_set()


async def test_the_lease_is_renewed_also_while_the_loop_is_blocked(
    sqlite: SqliteTaskStore,
) -> None:
    """A thread renews it: a tool that blocks the loop does not look dead after a restart."""
    async with sqlite.executor(QUICK) as executor:
        first = expires(sqlite, executor.executor_id)
        deadline = time.monotonic() + PATIENCE_S
        while expires(sqlite, executor.executor_id) == first:  # the loop does not run meanwhile
            assert time.monotonic() < deadline
            time.sleep(0.01)  # noqa: ASYNC251


async def test_a_stalled_loop_is_not_renewed_for(
    sqlite: SqliteTaskStore, caplog: pytest.LogCaptureFixture
) -> None:
    """With a stall limit the lease is left alone until the loop answers again."""
    terms = LeaseTerms(lease_s=5.0, renew_s=0.02, stall_s=0.1)
    async with sqlite.executor(terms) as executor:
        name = executor.executor_id
        first = expires(sqlite, name)
        await until(lambda: expires(sqlite, name) > first)
        caplog.clear()
        deadline = time.monotonic() + PATIENCE_S
        while "stalled" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # noqa: ASYNC251
        stalled = expires(sqlite, name)
        time.sleep(0.2)  # noqa: ASYNC251
        assert expires(sqlite, name) == stalled
        await until(lambda: expires(sqlite, name) > stalled)
        assert not executor.lost.is_set()


@pytest.mark.parametrize(
    "sql",
    ["UPDATE executors SET fenced_at_ms = 1", "DELETE FROM executors"],
    ids=["fenced", "gone"],
)
async def test_a_fenced_executor_learns_that_it_is_lost(sqlite: SqliteTaskStore, sql: str) -> None:
    """A renewal never resurrects: it finds out, and says so on the loop."""
    async with sqlite.executor(QUICK) as executor:
        change(sqlite, sql)
        with trio.fail_after(PATIENCE_S):
            await executor.lost.wait()
        with pytest.raises(ExecutorFenced):
            await Hand(sqlite, executor.executor_id).start("t")


async def test_a_renewal_that_fails_is_tried_again(
    sqlite: SqliteTaskStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A busy file costs a renewal, not the executor: its lock is held."""
    monkeypatch.setattr(_connection, "BUSY_S", 0.05)
    async with sqlite.executor(QUICK) as executor:
        with raw(sqlite) as other:
            other.execute("BEGIN IMMEDIATE")
            await until(lambda: "not renewed" in caplog.text)
            other.execute("ROLLBACK")
        first = expires(sqlite, executor.executor_id)
        await until(lambda: expires(sqlite, executor.executor_id) > first)
        assert not executor.lost.is_set()


async def test_a_renewal_ends_with_the_store(tmp_path: Path) -> None:
    """A store that is closed before its executor leaves no thread behind."""
    async with SqliteTaskStore.open(tmp_path / "tasks.db") as store:
        block = store.executor(QUICK)
        await block.__aenter__()
    await until(
        lambda: not [t for t in threading.enumerate() if t.name.startswith("bgtasks-lease")]
    )
    await block.__aexit__(None, None, None)


async def test_the_lock_is_released_also_when_the_store_refuses(
    sqlite: SqliteTaskStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An executor that could not say goodbye is dead at once for the others, by its lock."""
    async with sqlite.executor(LeaseTerms()) as witness:
        with raw(sqlite) as other:
            async with sqlite.executor(LeaseTerms()) as executor:
                await Hand(sqlite, executor.executor_id).start("t")
                other.execute("BEGIN IMMEDIATE")
                monkeypatch.setattr(_connection, "BUSY_S", 0.05)
            other.execute("ROLLBACK")
        assert "could not be retired" in caplog.text
        assert is_held(sqlite._locks / f"{executor.executor_id}.lock") is False
        report = await sqlite.sweep(witness.executor_id, 1)
        assert list(report.fenced) == [executor.executor_id]
        assert list(report.ended) == [("t", "ann")]


async def test_an_executor_that_is_refused_leaves_no_lock(
    sqlite: SqliteTaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is bare; the lock file is gone."""
    monkeypatch.setattr(_connection, "BUSY_S", 0.05)
    with raw(sqlite) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy):
            async with sqlite.executor(LeaseTerms()):
                pytest.fail("not reached")
    assert list(sqlite._locks.iterdir()) == []


async def test_a_lock_that_cannot_be_made_is_a_store_error(sqlite: SqliteTaskStore) -> None:
    """It names the folder."""
    sqlite._locks.touch()
    with pytest.raises(TaskStoreError, match=r"tasks\.db\.locks"):
        async with sqlite.executor(LeaseTerms()):
            pytest.fail("not reached")


# ---- who is dead ---------------------------------------------------------------------------------


async def test_on_this_boot_the_lock_alone_decides(sqlite: SqliteTaskStore, scribe: Hand) -> None:
    """Held: alive, however long ago its lease ended. Free: dead, however long it has to run."""
    change(sqlite, "UPDATE executors SET expires_at_ms = ?", LONG_AGO)
    dead = add_executor(sqlite, expires_at_ms=FAR_AHEAD)
    await Hand(sqlite, dead).start("t")
    report = await sqlite.sweep("somebody else", 1000)
    assert list(report.fenced) == [dead]
    assert list(report.ended) == [("t", "ann")]
    assert (await scribe.start("u")).status == "running"


async def test_without_a_lock_file_the_lease_decides(sqlite: SqliteTaskStore, scribe: Hand) -> None:
    """Who removes lock files kills nobody: an executor is alive as long as it renews its lease."""
    executor_id = add_executor(sqlite, expires_at_ms=1000)
    await Hand(sqlite, executor_id).start("t")
    (sqlite._locks / f"{executor_id}.lock").unlink()
    report = await sqlite.sweep(scribe.executor_id, 999, suspect=executor_id)
    assert (list(report.fenced), list(report.ended)) == ([], [])
    assert await status(sqlite, "t") == "running"
    report = await sqlite.sweep(scribe.executor_id, 1000, suspect=executor_id)
    assert (list(report.fenced), list(report.ended)) == ([executor_id], [("t", "ann")])


async def test_after_another_boot_the_lease_decides(sqlite: SqliteTaskStore, scribe: Hand) -> None:
    """Locks do not survive a restart: an executor of another boot is dead when its lease ended."""
    executor_id = add_executor(sqlite, boot="another", expires_at_ms=1000)
    await Hand(sqlite, executor_id).start("t")
    report = await sqlite.sweep(scribe.executor_id, 999)
    assert list(report.fenced) == list[str]()
    assert await status(sqlite, "t") == "running"
    report = await sqlite.sweep(scribe.executor_id, 1000)
    assert list(report.fenced) == [executor_id]
    assert await status(sqlite, "t") == "stopped"


async def test_a_lease_that_is_renewed_meanwhile_is_not_fenced(
    sqlite: SqliteTaskStore, scribe: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fence asks again, in its own transaction."""
    executor_id = add_executor(sqlite, boot="another", expires_at_ms=1000)
    await Hand(sqlite, executor_id).start("t")
    probe = _executors._probe

    def probe_then_renewed(*args: Any) -> list[_executors.Registration]:
        dead = probe(*args)
        change(sqlite, "UPDATE executors SET expires_at_ms = 3000 WHERE boot_id = 'another'")
        return dead

    monkeypatch.setattr(_executors, "_probe", probe_then_renewed)
    report = await sqlite.sweep(scribe.executor_id, 2000)
    assert (list(report.fenced), list(report.ended)) == ([], [])
    assert await status(sqlite, "t") == "running"


async def test_what_another_sweep_fenced_first_is_ended_by_both(
    sqlite: SqliteTaskStore, scribe: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a sweep returns, the tasks of those it found dead have ended, whoever fenced them."""
    executor_id = add_executor(sqlite)
    await Hand(sqlite, executor_id).start("t")
    probe = _executors._probe

    def probe_then_fenced(*args: Any) -> list[_executors.Registration]:
        dead = probe(*args)
        change(sqlite, "UPDATE executors SET fenced_at_ms = 1 WHERE executor_id = ?", executor_id)
        return dead

    monkeypatch.setattr(_executors, "_probe", probe_then_fenced)
    report = await sqlite.sweep(scribe.executor_id, 5, suspect=executor_id)
    assert (list(report.fenced), list(report.ended)) == ([], [("t", "ann")])
    assert await status(sqlite, "t") == "stopped"


async def test_a_sweep_of_one_suspect_reads_nothing_of_others(
    sqlite: SqliteTaskStore, scribe: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at one task of an owner does not cost a row for every task that runs somewhere."""
    for i in range(50):
        await scribe.start(f"t{i}")
    suspect = add_executor(sqlite)
    await Hand(sqlite, suspect).start("t")
    survey, seen = _executors._survey, list[Any]()

    def counted(connection: sqlite3.Connection, **given: Any) -> Any:
        found = survey(connection, **given)
        seen.extend(row for part in found for row in part)
        return found

    monkeypatch.setattr(_executors, "_survey", counted)
    report = await sqlite.sweep(scribe.executor_id, 5, suspect=suspect)
    assert (list(report.ended), list(report.own_running)) == ([("t", "ann")], [])
    assert len(seen) == 1


async def test_what_starts_between_probe_and_fence_is_not_missed(
    sqlite: SqliteTaskStore, scribe: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that a dying executor got in at the last moment is ended with the others."""
    executor_id = add_executor(sqlite)
    probe = _executors._probe
    last = Registered(1, executor_id, "ann", "shell", "last words")

    def probe_then_started(*args: Any) -> list[_executors.Registration]:
        dead = probe(*args)
        sqlite._engine.write_from_thread(partial(_changes.apply_event, task_id="t", event=last))
        return dead

    monkeypatch.setattr(_executors, "_probe", probe_then_started)
    report = await sqlite.sweep(scribe.executor_id, 5)
    assert list(report.ended) == [("t", "ann")]
    with pytest.raises(ExecutorFenced):
        await Hand(sqlite, executor_id).start("u")


# ---- ending their tasks --------------------------------------------------------------------------


async def test_orphans_are_ended_page_by_page(
    sqlite: SqliteTaskStore, scribe: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No transaction grows with the number of orphans, and none is missed at a page's end."""
    monkeypatch.setattr(_executors, "_PAGE", 4)
    dead = Hand(sqlite, add_executor(sqlite))
    for i in range(8):
        await dead.start(f"t{i}")
    seen: list[str] = []
    await sqlite._engine.write(lambda c: c.set_trace_callback(seen.append))
    report = await sqlite.sweep(scribe.executor_id, 5)
    assert [task_id for task_id, _ in report.ended] == [f"t{i}" for i in range(8)]
    commits = [i for i, sql in enumerate(seen) if sql == "COMMIT"]
    assert max(seen[a:b].count("SAVEPOINT orphan") for a, b in pairwise(commits)) == 4


async def test_a_task_without_an_executors_row_is_an_orphan(
    sqlite: SqliteTaskStore, scribe: Hand
) -> None:
    """A row that is missing counts as fenced."""
    dead = add_executor(sqlite)
    await Hand(sqlite, dead).start("t")
    change(sqlite, "DELETE FROM executors WHERE executor_id = ?", dead)
    report = await sqlite.sweep(scribe.executor_id, 5, suspect=dead)
    assert (list(report.fenced), list(report.ended)) == ([], [("t", "ann")])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("UPDATE tasks SET args = '{' WHERE task_id = 't1'", "args"),
        ("UPDATE tasks SET metadata = '[]' WHERE task_id = 't1'", "metadata"),
        ("UPDATE tasks SET owner_thread_id = CAST(x'ff' AS TEXT) WHERE task_id = 't1'", "UTF-8"),
        (REFUSE_T1, "no"),
        (REFUSE_ITS_NOTICE, "no"),
    ],
    ids=["no JSON", "wrong shape", "no text", "refused", "half refused"],
)
async def test_a_corrupt_orphan_is_reported_and_passed_over(
    sqlite: SqliteTaskStore, scribe: Hand, damage: str, why: str
) -> None:
    """It does not stop the sweep; it is reported again each time, and its executor remembered."""
    dead = Hand(sqlite, add_executor(sqlite))
    for i in range(3):
        await dead.start(f"t{i}")
    change(sqlite, damage)
    for ended in ([("t0", "ann"), ("t2", "ann")], []):
        report = await sqlite.sweep(scribe.executor_id, 5)
        assert list(report.ended) == ended
        (corrupt,) = report.corrupt
        assert corrupt.task_id == "t1"
        assert why in corrupt.why
    assert rows(sqlite, "SELECT status FROM tasks WHERE task_id = 't1'") == [("running",)]
    assert (dead.executor_id,) in rows(sqlite, "SELECT executor_id FROM executors")
    assert rows(sqlite, "SELECT task_id FROM notices ORDER BY 1") == [("t0",), ("t2",)]


@pytest.mark.parametrize(
    ("damage", "name", "why"),
    [
        ("task_id = CAST(x'ff' AS TEXT)", r"b'\xff'", "task_id: not UTF-8"),
        ("executor_id = CAST(x'ff' AS TEXT)", "t1", "executor_id: not UTF-8"),
        (f"metadata = '{{\"a\":{'[' * 500}{']' * 500}}}'", "t1", "metadata: nested too deeply"),
    ],
    ids=["id", "executor", "deep"],
)
async def test_damage_of_every_kind_is_reported_by_every_sweep(
    sqlite: SqliteTaskStore, scribe: Hand, damage: str, name: str, why: str
) -> None:
    """Also where the row cannot be found by its id, or the dead one's name cannot be read."""
    dead = Hand(sqlite, add_executor(sqlite))
    for i in range(3):
        await dead.start(f"t{i}")
    change(sqlite, f"UPDATE tasks SET {damage} WHERE task_id = 't1'")
    for ended in ([("t0", "ann"), ("t2", "ann")], []):
        report = await sqlite.sweep(scribe.executor_id, 5)
        assert list(report.ended) == ended
        assert [(error.task_id, error.why) for error in report.corrupt] == [(name, why)]
    page = await sqlite.list_owner("ann")
    assert [record.task_id for record in page.records] == ["t0", "t2"]
    assert [error.task_id for error in (await inspect_file(sqlite._engine.path)).corrupt] == [name]


async def test_a_full_sweep_forgets_the_dead(sqlite: SqliteTaskStore, scribe: Hand) -> None:
    """Their rows and lock files go when nothing of theirs runs; living ones stay."""
    for _ in range(3):
        add_executor(sqlite)
    stale = sqlite._locks / "ex_stale.lock"
    stale.touch()
    foreign = HostLock.acquire(sqlite._locks)  # about to register: its row is not there yet
    await sqlite.sweep(scribe.executor_id, 5, suspect="nobody")
    assert len(rows(sqlite, "SELECT * FROM executors")) == 4
    assert stale.exists()
    report = await sqlite.sweep(scribe.executor_id, 5)
    assert len(report.fenced) == 3
    assert rows(sqlite, "SELECT executor_id FROM executors") == [(scribe.executor_id,)]
    assert sorted(sqlite._locks.iterdir()) == sorted(
        [foreign.path, sqlite._locks / f"{scribe.executor_id}.lock"]
    )
    foreign.release()


async def test_an_idle_sweep_writes_nothing(sqlite: SqliteTaskStore, scribe: Hand) -> None:
    """With everybody alive it takes no write lock at all."""
    with raw(sqlite) as other:
        other.execute("BEGIN IMMEDIATE")
        report = await sqlite.sweep(scribe.executor_id, 5)
        other.execute("ROLLBACK")
    assert list(report.fenced) == list[str]()
