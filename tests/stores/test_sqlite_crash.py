"""Real processes on one file: killed in the middle of a storm, stopped, out of disk."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import os
import random
import signal
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.forks import FORKS
from tests.processes import until
from trio_bgtasks._events import CancelRequested
from trio_bgtasks.stores import LeaseTerms, SqliteTaskStore
from trio_bgtasks.stores.sqlite import inspect_file

from . import storm


@attrs.frozen
class Worker:
    """A running storm, and what it was told so far."""

    process: ForkServerProcess
    log: Path

    def lines(self) -> list[list[str]]:
        """Return the complete lines of its log, as words."""
        text = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]

    def started(self) -> set[str]:
        """Return the tasks whose start was acknowledged."""
        return {words[1] for words in self.lines() if words[0] == "start"}

    def ended(self) -> dict[str, int]:
        """Return the results that were acknowledged."""
        return {words[1]: int(words[2]) for words in self.lines() if words[0] == "end"}

    def has_ended_more(self, than: int) -> bool:
        """Return whether more results than that were acknowledged."""
        return len(self.ended()) > than

    def errors(self) -> list[str]:
        """Return what the store could not do."""
        return [" ".join(words[1:]) for words in self.lines() if words[0] == "error"]

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.process.kill()
        self.process.join()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


@contextmanager
def worker(path: Path, what: str) -> Generator[Worker, None, None]:
    """Run another process on the file; dead afterwards, however the test goes."""
    log = path.with_name(f"{what}-{random.randbytes(4).hex()}.log")
    process = FORKS.Process(target=storm.run, args=(path, log, what))
    process.start()
    try:
        yield Worker(process, log)
    finally:
        process.kill()
        process.join()
        process.close()


def ask(path: Path, sql: str) -> list[Any]:
    """Read the file by another connection."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def stored(path: Path) -> dict[str, tuple[str, Any, str]]:
    """Return status, result and output of every task in the file."""
    rows = ask(
        path,
        "SELECT task_id, status, result, (SELECT group_concat(CAST(data AS TEXT), '') "
        "FROM task_output WHERE task_output.task_id = tasks.task_id) FROM tasks",
    )
    return {task_id: tuple(rest) for task_id, *rest in rows}


@pytest.mark.parametrize(("what", "rounds"), [("storm", 20), ("storm wal", 10)])
async def test_kill_9_in_a_storm_loses_nothing_that_was_acknowledged(
    what: str, rounds: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """C30: two processes storm one file and are killed one after the other, again and again.

    No start and no result that was acknowledged is missing, the file is sound, the survivor is
    never taken for dead nor told an error, and what was left running is found at once.
    """
    if what.endswith("wal"):
        request.getfixturevalue("wal")
    path, dice = tmp_path / "tasks.db", random.Random(5)
    leftovers = 0
    async with SqliteTaskStore.open(path) as store, store.executor(LeaseTerms()) as sweeper:
        assert what == "storm" or store._engine.journal_mode == "wal"
        for _ in range(rounds):
            with worker(path, what) as first, worker(path, what) as second:
                await until(first.started)
                await until(second.ended)
                await trio.sleep(dice.random() * 0.05)
                first.kill()
                report = await store.sweep(sweeper.executor_id, 3)
                assert len(report.fenced) == 1
                leftovers += len(report.ended)
                so_far = len(second.ended())
                await until(partial(Worker.has_ended_more, second, so_far))
                second.kill()
                report = await store.sweep(sweeper.executor_id, 3)
                assert len(report.fenced) == 1
                leftovers += len(report.ended)
                found = stored(path)
                assert {row[0] for row in found.values()} <= {"completed", "stopped"}
                for victim in (first, second):
                    assert victim.errors() == []
                    assert victim.started() <= set(found)
                    for task_id, value in victim.ended().items():
                        assert found[task_id] == ("completed", str(value), str(value))
        assert ask(path, "PRAGMA integrity_check") == [("ok",)]
        seen = await inspect_file(store._engine.path)
        assert (list(seen.orphans), list(seen.corrupt)) == ([], [])
        assert [executor.executor_id for executor in seen.executors] == [sweeper.executor_id]
    assert leftovers > rounds


async def test_a_stopped_process_is_never_an_orphan(tmp_path: Path) -> None:
    """SIGSTOP for longer than its lease, while it is not writing: it keeps its lock and goes on."""
    path = tmp_path / "tasks.db"
    async with SqliteTaskStore.open(path) as store, store.executor(LeaseTerms()) as sweeper:
        with worker(path, "idle") as other:
            await until(other.started)
            (task_id,) = other.started()
            other.signal(signal.SIGSTOP)
            far_ahead = 1 << 52  # its lease ended long before
            for suspect in (None, ask(path, "SELECT executor_id FROM tasks")[0][0]):
                report = await store.sweep(sweeper.executor_id, far_ahead, suspect=suspect)
                assert list(report.fenced) == list[str]()
                assert list(report.ended) == list[tuple[str, str]]()
            other.signal(signal.SIGCONT)
            other.log.with_name(f"{other.log.name}.go").touch()
            await trio.to_thread.run_sync(other.process.join)
            assert other.process.exitcode == 0
            assert other.ended() == {task_id: 7}
        record = await store.load(task_id)
        assert record is not None
        assert (record.status, record.result) == ("completed", 7)


async def test_a_cancel_of_a_stopped_process_outlives_its_kill(tmp_path: Path) -> None:
    """An accepted cancel is final: the orphan ends cancelled, not stopped."""
    path = tmp_path / "tasks.db"
    async with SqliteTaskStore.open(path) as store, store.executor(LeaseTerms()) as sweeper:
        with worker(path, "idle") as other:
            await until(other.started)
            (task_id,) = other.started()
            other.signal(signal.SIGSTOP)
            await store.apply(task_id, CancelRequested(5))
            other.kill()
        report = await store.sweep(sweeper.executor_id, 9)
        assert list(report.ended) == [(task_id, "ann")]
        record = await store.load(task_id)
        assert record is not None
        assert record.status == "cancelled"


@pytest.mark.parametrize("what", ["full", "full wal"])
async def test_a_full_disk_loses_nothing_that_was_acknowledged(what: str, tmp_path: Path) -> None:
    """Callers hear that the disk is full, not that nothing was changed; with room it goes on."""
    path = tmp_path / "tasks.db"
    with worker(path, what) as full:
        await trio.to_thread.run_sync(full.process.join)
        assert full.process.exitcode == 0
        errors = full.errors()
        assert errors
        assert not [error for error in errors if error.startswith("busy")]
        assert [error for error in errors if "the disk" in error] == errors
        found = stored(path)
        assert full.started() <= set(found)
        assert "room" in found
        for task_id, value in full.ended().items():
            assert found[task_id] == ("completed", str(value), str(value))
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
