"""Real processes on one SQLite file: kill -9, SIGSTOP, cancels from elsewhere."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    ManagerConfig,
    SqliteTaskStore,
    Success,
    TaskResult,
    TaskStatus,
    open_task_manager,
)

from .worker_runtime import LEASE, OWNER, request

PATIENCE_S = 60.0
ROUNDS = 20


@contextmanager
def worker(database: Path, count: int, kind: str) -> Generator[subprocess.Popen[str], None, None]:
    """Run another runtime on ``database``; dead afterwards, however the test goes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.worker_runtime", str(database), str(count), kind],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


async def line(process: subprocess.Popen[str], word: str) -> str:
    """Return what follows the next line that begins with ``word``."""

    def read() -> str:
        assert process.stdout is not None
        while text := process.stdout.readline():
            if text.startswith(word):
                return text.removeprefix(word).strip()
        raise AssertionError(f"the worker ended before it said {word!r}")

    with trio.fail_after(PATIENCE_S):
        return await trio.to_thread.run_sync(read)


@asynccontextmanager
async def runtime(database: Path) -> AsyncGenerator[BackgroundTaskManager, None]:
    """Open our own runtime on ``database``."""
    config = ManagerConfig(lease=LEASE, poll_s=0.1, sweep_s=0.5)
    async with (
        SqliteTaskStore.open(database) as store,
        open_task_manager(store, config=config) as manager,
    ):
        yield manager


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition of the world outside."""
    with trio.fail_after(PATIENCE_S):
        while not condition():
            await trio.sleep(0.01)


async def output_grows(manager: BackgroundTaskManager, task_id: str) -> None:
    """Wait until the task has written something more."""
    before = (await manager.output(OWNER, task_id)).total_bytes
    with trio.fail_after(PATIENCE_S):
        while (await manager.output(OWNER, task_id)).total_bytes == before:
            await trio.sleep(0.01)


def is_stopped(pid: int) -> bool:
    """Has SIGSTOP arrived, in every thread?"""
    threads = Path(f"/proc/{pid}/task").iterdir()
    stats = [(thread / "stat").read_text() for thread in threads]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def is_writing(database: Path) -> bool:
    """Does anybody hold the write lock of the file at this moment?"""
    connection = sqlite3.connect(database, timeout=0, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return True
    finally:
        connection.close()
    return False


async def stop_between_writes(process: subprocess.Popen[str], database: Path) -> None:
    """Suspend the process while it does not hold the file's lock."""
    while True:
        process.send_signal(signal.SIGSTOP)
        await until(lambda: is_stopped(process.pid))
        if not await trio.to_thread.run_sync(is_writing, database):
            return
        process.send_signal(signal.SIGCONT)
        await trio.sleep(random.uniform(0, 0.02))


async def test_a_live_task_of_another_process_is_never_an_orphan(tmp_path: Path) -> None:
    """C1: a live task of another process is shown as running, and no call disturbs it."""
    database = tmp_path / "tasks.db"
    with worker(database, 1, "slow") as other:
        task_id = await line(other, "saved")
        async with runtime(database) as manager:
            for _ in range(5):
                summary = await manager.get(OWNER, task_id)
                assert summary is not None
                assert (summary.status, summary.attempt) == (TaskStatus.RUNNING, 1)
                assert [s.status for s in await manager.list_tasks(OWNER)] == [TaskStatus.RUNNING]
                await output_grows(manager, task_id)


async def test_a_stopped_process_is_not_dead(tmp_path: Path) -> None:
    """A process under SIGSTOP for longer than its lease keeps its task, and goes on with it."""
    database = tmp_path / "tasks.db"
    with worker(database, 1, "slow") as other:
        task_id = await line(other, "saved")
        async with runtime(database) as manager:
            await output_grows(manager, task_id)
            await stop_between_writes(other, database)
            deadline = trio.current_time() + 3 * LEASE.lease_s
            while trio.current_time() < deadline:
                summary = await manager.get(OWNER, task_id)
                assert summary is not None
                assert (summary.status, summary.attempt) == (TaskStatus.RUNNING, 1)
                await trio.sleep(0.1)
            other.send_signal(signal.SIGCONT)
            await output_grows(manager, task_id)
            summary = await manager.get(OWNER, task_id)
            assert summary is not None
            assert (summary.status, summary.attempt) == (TaskStatus.RUNNING, 1)


async def test_a_cancel_reaches_another_process(tmp_path: Path) -> None:
    """C24: a task of another process is cancelled, and `wait` sees its end."""
    database = tmp_path / "tasks.db"
    with worker(database, 1, "slow") as other:
        task_id = await line(other, "saved")
        async with runtime(database) as manager:
            accepted = await manager.cancel(OWNER, task_id)
            assert accepted.status is TaskStatus.RUNNING
            with trio.fail_after(PATIENCE_S):
                ended = await manager.wait(OWNER, task_id)
            assert ended.status is TaskStatus.CANCELLED
            assert other.poll() is None


async def test_a_cancel_of_a_stopped_process_holds_when_it_is_killed(tmp_path: Path) -> None:
    """C7: an accepted cancel is final: the orphan of a killed process is cancelled, not stopped."""
    database = tmp_path / "tasks.db"
    with worker(database, 1, "slow") as other:
        task_id = await line(other, "saved")
        async with runtime(database) as manager:
            await stop_between_writes(other, database)
            await manager.cancel(OWNER, task_id)
            other.kill()
            other.wait()
            summary = await manager.get(OWNER, task_id)
            assert summary is not None
            assert summary.status is TaskStatus.CANCELLED


async def test_an_orphan_is_found_at_once_and_resumed_from_its_checkpoint(tmp_path: Path) -> None:
    """After kill -9 the first look says stopped; a resume has the checkpoint and attempt 2."""
    database = tmp_path / "tasks.db"
    with worker(database, 1, "slow") as other:
        task_id = await line(other, "saved")
        async with runtime(database) as manager:
            await output_grows(manager, task_id)
            other.kill()
            other.wait()
            summary = await manager.get(OWNER, task_id)
            assert summary is not None
            assert summary.status is TaskStatus.STOPPED
            assert summary.error == "No live executor found; marked stopped"
            seen: list[object] = []

            async def resumed(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
                seen.append((execution.checkpoint, execution.attempt, execution.is_resume))
                return Success("done")

            await manager.start(request(task_id=task_id, resume_attempt=1), resumed)
            ended = await manager.wait(OWNER, task_id)
            assert (ended.status, ended.attempt, ended.result) == (TaskStatus.COMPLETED, 2, "done")
            assert seen == [({"pid": "worker"}, 2, True)]
            announced = [(n.attempt, n.status) for n in await manager.take_notices(OWNER)]
            assert announced == [(1, TaskStatus.STOPPED), (2, TaskStatus.COMPLETED)]


async def test_kill_in_a_storm_loses_nothing(tmp_path: Path) -> None:
    """20 kills amid starts and results on one file: nothing acknowledged is lost, all settled."""
    database = tmp_path / "tasks.db"
    acknowledged: dict[str, tuple[str, str] | None] = {}
    leftovers = 0
    for round_ in range(ROUNDS):
        with worker(database, 5, "quick") as other:
            assert other.stdout is not None
            await line(other, "started")
            await trio.sleep(random.Random(round_).uniform(0, 0.3))  # noqa: ASYNC910
            other.kill()
            for text in other.stdout:  # what it had said before it died
                if not text.endswith("\n"):
                    continue
                word, task_id, *rest = text.split()
                if word == "started":
                    acknowledged.setdefault(task_id, None)
                else:
                    acknowledged[task_id] = rest[0], rest[1]
        async with runtime(database) as manager:
            summaries = {s.task_id: s for s in await manager.list_tasks(OWNER)}
            assert not await manager.has_running_tasks(OWNER)
            leftovers += manager.statistics().orphans
            for task_id, end in acknowledged.items():
                summary = summaries[task_id]
                if end is not None:
                    assert (summary.status, str(summary.result)) == end
                else:
                    assert summary.status in (TaskStatus.COMPLETED, TaskStatus.STOPPED)
    with sqlite3.connect(database) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert leftovers > 0, "no round left an orphan: the storm was too tame to prove anything"
    assert not list((tmp_path / "tasks.db.locks").iterdir())
