"""Group commit: who shares a transaction, who is told what, and what cancellation means."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import os
import random
import signal
import sqlite3
import sys
import threading
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import outcome
import pytest
import trio

from tests.processes import PATIENCE_S, until
from trio_bgtasks._errors import (
    InvalidValue,
    SchemaTooNew,
    StoreBusy,
    StoreClosed,
    TaskExists,
    TaskStoreError,
    UnknownTask,
)
from trio_bgtasks._events import Registered
from trio_bgtasks.stores import LeaseTerms, SqliteTaskStore
from trio_bgtasks.stores.sqlite import _connection, _engine, inspect_file

from .conftest import Hand


@asynccontextmanager
async def writer_kept_busy(store: SqliteTaskStore) -> AsyncGenerator[None, None]:
    """Within the block the writing thread is in the middle of a unit of work."""
    entered, leave = threading.Event(), threading.Event()

    def work(_: sqlite3.Connection) -> None:
        entered.set()
        leave.wait(PATIENCE_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store._engine.write, work)
        await until(entered.is_set)
        try:
            yield
        finally:
            leave.set()


async def statements(store: SqliteTaskStore) -> list[str]:
    """Return a list to which every statement of the writing connection is added."""
    seen: list[str] = []
    await store._engine.write(lambda connection: connection.set_trace_callback(seen.append))
    return seen


async def collected(results: dict[str, Any], name: str, call: Callable[[], Any]) -> None:
    """Note what a call returned or raised."""
    try:
        results[name] = await call()
    except Exception as error:  # noqa: BLE001
        results[name] = error


async def at_once(calls: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Make calls at the same time; return how each ended."""
    results: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        for name, call in calls.items():
            nursery.start_soon(collected, results, name, call)
    return results


async def together(
    store: SqliteTaskStore, calls: Mapping[str, Callable[[], Any]]
) -> dict[str, Any]:
    """Make calls that find themselves in one batch, in this order; return how each ended."""
    results: dict[str, Any] = {}
    async with trio.open_nursery() as nursery, writer_kept_busy(store):
        for name, call in calls.items():
            nursery.start_soon(collected, results, name, call)
            await trio.testing.wait_all_tasks_blocked()
    return results


def tasks_in(path: Path) -> set[str]:
    """Return the ids of the stored tasks, by another connection."""
    connection = sqlite3.connect(path)
    try:
        return {task_id for (task_id,) in connection.execute("SELECT task_id FROM tasks")}
    finally:
        connection.close()


def exits(_: sqlite3.Connection) -> None:
    """Fail as no unit of work should."""
    raise SystemExit(3)


# ---- sharing a transaction -----------------------------------------------------------------------


async def test_what_waits_shares_one_commit(sqlite: SqliteTaskStore, scribe: Hand) -> None:
    """Fifty callers that wait while the thread is busy are made durable by a single commit."""
    seen = await statements(sqlite)
    calls = {f"t{i}": partial(scribe.start, f"t{i}") for i in range(50)}
    results = await together(sqlite, calls)
    assert [results[f"t{i}"].task_id for i in range(50)] == list(calls)
    # One commit is that of `statements`, one that of the unit of work that kept the thread busy.
    assert seen.count("COMMIT") == 3
    assert seen.count("SAVEPOINT job") == 51


async def test_a_batch_is_bounded(
    sqlite: SqliteTaskStore, scribe: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storm does not become one endless transaction."""
    monkeypatch.setattr(_engine, "_LARGEST_BATCH", 10)
    seen = await statements(sqlite)
    await together(sqlite, {f"t{i}": partial(scribe.start, f"t{i}") for i in range(25)})
    assert seen.count("COMMIT") == 1 + 1 + 3  # the first one is that of `statements`


async def test_a_failing_job_fails_alone(sqlite: SqliteTaskStore, scribe: Hand) -> None:
    """A refusal, a bad value and a faulty unit of work undo only what they did themselves."""

    def faulty(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM tasks")
        raise ZeroDivisionError

    results = await together(
        sqlite,
        {
            "a": lambda: scribe.start("a"),
            "again": lambda: scribe.start("a"),
            "bad": lambda: scribe.start("bad", owner="\ud800"),
            "faulty": lambda: sqlite._engine.write(faulty),
            "absent": lambda: scribe.end("absent"),
            "b": lambda: scribe.start("b"),
        },
    )
    assert isinstance(results["again"], TaskExists)
    assert isinstance(results["bad"], InvalidValue)
    assert isinstance(results["faulty"], ZeroDivisionError)
    assert isinstance(results["absent"], UnknownTask)
    assert [results[name].task_id for name in "ab"] == ["a", "b"]
    assert tasks_in(sqlite._engine.path) == {"a", "b"}


async def test_a_full_disk_hits_only_the_job_that_fills_it(
    sqlite: SqliteTaskStore, scribe: Hand
) -> None:
    """SQLite undoes the whole transaction; the innocent are run again and answered truly."""

    def bound(connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 4}")

    await sqlite._engine.write(bound)
    calls: Mapping[str, Callable[[], Any]] = {
        "a": lambda: scribe.start("a"),
        "big": lambda: scribe.start("big", args={"x": "y" * 500_000}),
        "b": lambda: scribe.start("b"),
        "a again": lambda: scribe.start("a"),
    }
    results = await together(sqlite, calls)
    assert [results[name].task_id for name in "ab"] == ["a", "b"]
    assert results["a"].seq != results["b"].seq
    assert isinstance(results["a again"], TaskExists)
    assert type(results["big"]) is TaskStoreError
    assert "the disk is full" in str(results["big"])
    assert isinstance(results["big"].__cause__, sqlite3.OperationalError)
    assert tasks_in(sqlite._engine.path) == {"a", "b"}
    await sqlite._engine.write(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchall())
    await scribe.start("big", args={"x": "y" * 500_000})


async def test_a_job_that_is_run_again_alone_may_fail_again(
    sqlite: SqliteTaskStore, scribe: Hand
) -> None:
    """Two that fill the disk both fail, and one that dies; what stands between them does not."""

    def bound(connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 4}")

    await sqlite._engine.write(bound)
    results = await together(
        sqlite,
        {
            "big": lambda: scribe.start("big", args={"x": "y" * 500_000}),
            "a": lambda: scribe.start("a"),
            "huge": lambda: scribe.start("huge", args={"x": "y" * 500_000}),
            "exit": lambda: sqlite._engine.write(exits),
        },
    )
    assert {name: type(result).__name__ for name, result in results.items()} == {
        "big": "TaskStoreError",
        "a": "TaskRecord",
        "huge": "TaskStoreError",
        "exit": "TaskStoreError",
    }
    assert tasks_in(sqlite._engine.path) == {"a"}


async def test_a_dying_unit_of_work_does_not_take_the_thread_with_it(
    sqlite: SqliteTaskStore, scribe: Hand
) -> None:
    """What is not an `Exception` fails the whole batch, each caller with an error of its own."""
    results = await together(
        sqlite, {"a": lambda: scribe.start("a"), "exit": lambda: sqlite._engine.write(exits)}
    )
    assert type(results["a"]) is type(results["exit"]) is TaskStoreError
    assert results["a"] is not results["exit"]
    assert "SystemExit(3)" in str(results["a"])
    assert tasks_in(sqlite._engine.path) == set()
    await scribe.start("a")


# ---- cancellation --------------------------------------------------------------------------------


async def test_cancelled_while_waiting_is_not_done(sqlite: SqliteTaskStore, scribe: Hand) -> None:
    """The caller gets away at once, although the thread is busy, and nothing is applied."""
    async with writer_kept_busy(sqlite):
        with trio.move_on_after(0.05) as scope:
            await scribe.start("t")
        assert scope.cancelled_caught
    await scribe.start("u")
    assert tasks_in(sqlite._engine.path) == {"u"}


async def test_a_cancelled_caller_does_not_even_ask(sqlite: SqliteTaskStore, scribe: Hand) -> None:
    """Cancelled before the call: nothing is queued."""
    seen = await statements(sqlite)
    with trio.CancelScope() as scope:
        scope.cancel()
        await scribe.start("t")
    assert scope.cancelled_caught
    await scribe.start("u")
    assert seen.count("BEGIN IMMEDIATE") == 1
    assert tasks_in(sqlite._engine.path) == {"u"}


async def test_once_taken_the_caller_waits_for_the_answer(sqlite: SqliteTaskStore) -> None:
    """A cancellation that comes too late does not hide what happened."""
    entered, leave = threading.Event(), threading.Event()

    def work(_: sqlite3.Connection) -> str:
        entered.set()
        leave.wait(PATIENCE_S)
        return "done"

    answers: list[str] = []

    async def caller() -> None:
        answers.append(await sqlite._engine.write(work))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(caller)
        await until(entered.is_set)
        nursery.cancel_scope.cancel()
        leave.set()
    assert answers == ["done"]


def test_ctrl_c_in_the_middle_of_a_write_harms_nobody(tmp_path: Path) -> None:
    """It is raised out of the call, which was then not done, or after it; the store goes on."""
    path, outcomes = tmp_path / "tasks.db", list[str]()

    async def main() -> None:
        async with SqliteTaskStore.open(path) as store, store.executor(LeaseTerms()) as executor:
            hand, put = Hand(store, executor.executor_id), store._engine._put

            def put_and_interrupt(job: _engine._Job) -> None:
                put(job)
                store._engine._put = put  # type: ignore[method-assign]
                signal.raise_signal(signal.SIGINT)

            store._engine._put = put_and_interrupt  # type: ignore[method-assign]
            try:
                await hand.start("t")
                outcomes.append("done")
                await trio.lowlevel.checkpoint()
            except KeyboardInterrupt:
                outcomes.append("interrupted")
            await hand.start("u")

    trio.run(main)
    assert outcomes[-1] == "interrupted"
    assert tasks_in(path) == ({"t", "u"} if "done" in outcomes else {"u"})


@pytest.mark.parametrize("mode", ["truncate", "wal"])
async def test_a_thousand_callers_cancelled_at_random(
    mode: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Cancelled means not applied, acknowledged means durable, and the next write works."""
    request.getfixturevalue("wal" if mode == "wal" else "rollback_journal")
    path, dice = tmp_path / "tasks.db", random.Random(7)
    acknowledged: set[str] = set()
    cancelled: set[str] = set()

    async def caller(hand: Hand, task_id: str, after_s: float) -> None:
        with trio.move_on_after(after_s) as scope:
            await trio.sleep(dice.random() * 0.3)
            await hand.start(task_id)
            acknowledged.add(task_id)
        if scope.cancelled_caught:
            cancelled.add(task_id)

    async with SqliteTaskStore.open(path) as store, store.executor(LeaseTerms()) as executor:
        hand = Hand(store, executor.executor_id)
        async with trio.open_nursery() as nursery:
            for i in range(1000):
                nursery.start_soon(caller, hand, f"t{i}", dice.random() * 0.4)
        await hand.start("last")
        assert acknowledged
        assert cancelled
        assert acknowledged.isdisjoint(cancelled)
        assert len(acknowledged | cancelled) == 1000
        assert tasks_in(path) == {*acknowledged, "last"}
    assert tasks_in(path) == {*acknowledged, "last"}


# ---- other processes -----------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a busy file up early."""
    monkeypatch.setattr(_connection, "BUSY_S", 0.2)


@pytest.mark.usefixtures("impatient")
async def test_a_file_that_others_write_is_busy(sqlite: SqliteTaskStore, scribe: Hand) -> None:
    """Without the write lock in time every caller of the batch hears `StoreBusy`; then it works."""
    other = sqlite3.connect(sqlite._engine.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    results = await at_once({"a": lambda: scribe.start("a"), "b": lambda: scribe.start("b")})
    assert [type(results[name]) for name in "ab"] == [StoreBusy, StoreBusy]
    assert results["a"] is not results["b"]
    assert "nothing was changed" in str(results["a"])
    other.execute("COMMIT")
    other.close()
    assert tasks_in(sqlite._engine.path) == set()
    await scribe.start("a")


async def refused_as_busy(hand: Hand, task_id: str, refused: list[str]) -> None:
    """Start a task, and be told that the file is busy."""
    with pytest.raises(StoreBusy):
        await hand.start(task_id)
    refused.append(task_id)


async def test_whoever_waits_behind_others_is_told_in_the_same_time(
    sqlite: SqliteTaskStore, scribe: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long a busy file is tried for does not grow with the number of batches that wait."""
    monkeypatch.setattr(_connection, "BUSY_S", 1.0)
    monkeypatch.setattr(_engine, "_LARGEST_BATCH", 10)
    other, refused = sqlite3.connect(sqlite._engine.path, isolation_level=None), list[str]()
    other.execute("BEGIN IMMEDIATE")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for i in range(300):
                nursery.start_soon(refused_as_busy, scribe, f"t{i}", refused)
    assert len(refused) == 300
    other.close()


async def test_who_came_later_is_tried_for_longer(
    sqlite: SqliteTaskStore, scribe: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each caller has its own time: one that gives up takes nobody with it."""
    monkeypatch.setattr(_connection, "BUSY_S", 4.0)
    other, refused = sqlite3.connect(sqlite._engine.path, isolation_level=None), list[str]()
    other.execute("BEGIN IMMEDIATE")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused_as_busy, scribe, "early", refused)
        await trio.sleep(2)  # so far from both their bounds: machines dawdle
        nursery.start_soon(scribe.start, "late")
        await until(lambda: refused)
        other.execute("COMMIT")
    other.close()
    assert tasks_in(sqlite._engine.path) == {"late"}


async def test_nobody_waits_for_those_who_have_left(
    sqlite: SqliteTaskStore, scribe: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy file is not tried for a write that was withdrawn."""
    monkeypatch.setattr(_connection, "BUSY_S", 1.0)
    monkeypatch.setattr(_engine, "_LARGEST_BATCH", 10)
    other = sqlite3.connect(sqlite._engine.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with trio.move_on_after(0.1):
        async with trio.open_nursery() as nursery:
            for i in range(300):
                nursery.start_soon(scribe.start, f"t{i}")
    with trio.fail_after(10):
        await refused_as_busy(scribe, "next", [])
    other.execute("COMMIT")
    other.close()
    await scribe.start("last")
    assert tasks_in(sqlite._engine.path) == {"last"}


async def test_a_caller_may_leave_while_the_file_is_busy(
    sqlite: SqliteTaskStore, scribe: Hand
) -> None:
    """As long as the write lock is waited for, nothing has been taken."""
    other = sqlite3.connect(sqlite._engine.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with trio.move_on_after(0.2) as scope:
        await scribe.start("a")
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scribe.start, "b")
        await trio.sleep(0.05)
        other.execute("COMMIT")
    other.close()
    assert tasks_in(sqlite._engine.path) == {"b"}


async def test_what_comes_while_the_file_is_busy_joins_the_batch(
    sqlite: SqliteTaskStore, scribe: Hand
) -> None:
    """The wait for the write lock is not wasted: who came meanwhile shares the transaction."""
    seen = await statements(sqlite)
    other = sqlite3.connect(sqlite._engine.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scribe.start, "a")
        await until(lambda: "BEGIN IMMEDIATE" in seen)
        nursery.start_soon(scribe.start, "b")
        await trio.testing.wait_all_tasks_blocked()
        other.execute("COMMIT")
    other.close()
    assert seen.count("COMMIT") == 2  # that of `statements`, and one for both


@pytest.mark.usefixtures("impatient", "rollback_journal")
async def test_a_commit_that_readers_hold_up_is_undone(
    sqlite: SqliteTaskStore, scribe: Hand
) -> None:
    """With a rollback journal a reader can stop a commit: `StoreBusy` to all, a refusal too."""
    other = sqlite3.connect(sqlite._engine.path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM tasks").fetchall()
    results = await at_once({"a": lambda: scribe.start("a"), "a again": lambda: scribe.start("a")})
    assert [type(result) for result in results.values()] == [StoreBusy, StoreBusy]
    other.execute("COMMIT")
    other.close()
    assert tasks_in(sqlite._engine.path) == set()
    await scribe.start("a")


@pytest.mark.usefixtures("rollback_journal")
async def test_batches_whose_commits_readers_hold_up_share_one_wait(
    sqlite: SqliteTaskStore, scribe: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits behind other batches is refused when they are, not a whole wait for each later."""
    monkeypatch.setattr(_connection, "BUSY_S", 1.0)
    monkeypatch.setattr(_engine, "_LARGEST_BATCH", 10)
    other, refused = sqlite3.connect(sqlite._engine.path, isolation_level=None), list[str]()
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM tasks").fetchall()
    with trio.fail_after(10):  # one by one the 20 batches would take 20 s
        async with trio.open_nursery() as nursery:
            for i in range(200):
                nursery.start_soon(refused_as_busy, scribe, f"t{i}", refused)
    assert len(refused) == 200
    other.execute("COMMIT")
    other.close()
    await scribe.start("t")


async def test_jobs_that_are_run_again_alone_share_one_wait(
    sqlite: SqliteTaskStore, scribe: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process was faster after a full disk: all are refused when the first of them is."""
    monkeypatch.setattr(_connection, "BUSY_S", 1.0)
    other = sqlite3.connect(
        sqlite._engine.path, isolation_level=None, timeout=PATIENCE_S, check_same_thread=False
    )

    def full(connection: sqlite3.Connection) -> None:
        connection.execute("ROLLBACK")  # as a full disk makes SQLite do
        other.execute("BEGIN IMMEDIATE")
        raise sqlite3.OperationalError("database or disk is full")

    calls: dict[str, Callable[[], Any]] = {"full": lambda: sqlite._engine.write(full)}
    calls |= {f"t{i}": partial(scribe.start, f"t{i}") for i in range(20)}
    began_at = time.monotonic()
    results = await together(sqlite, calls)
    assert time.monotonic() < began_at + 10  # one by one they would take 20 s
    assert type(results.pop("full")) is TaskStoreError
    assert {type(result) for result in results.values()} == {StoreBusy}
    other.execute("COMMIT")
    other.close()
    await scribe.start("t")


async def test_to_wait_for_our_own_batch_uses_up_no_patience(
    sqlite: SqliteTaskStore, scribe: Hand
) -> None:
    """Who waited long behind a slow unit of work is not refused at the first busy moment."""
    assert scribe.executor_id
    seen = await statements(sqlite)
    other = sqlite3.connect(sqlite._engine.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answer: Future[outcome.Outcome[Any]] = Future()
    long_ago = time.monotonic() - 100
    sqlite._engine._put(_engine._Job(lambda _: 7, future=answer, asked_at=long_ago))
    await until(lambda: answer.done() or seen.count("BEGIN IMMEDIATE") > 2)
    other.execute("COMMIT")
    other.close()
    await until(answer.done)
    assert answer.result().unwrap() == 7


@pytest.mark.usefixtures("impatient", "rollback_journal")
async def test_a_reader_waits_for_an_exclusive_lock_and_gives_up(
    sqlite: SqliteTaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read is tried again while the file is locked, and then raises `StoreBusy`."""
    other = sqlite3.connect(sqlite._engine.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreBusy):
        await sqlite.load("t")
    other.execute("COMMIT")
    assert await sqlite.load("t") is None
    monkeypatch.setattr(_connection, "BUSY_S", PATIENCE_S)
    other.execute("BEGIN EXCLUSIVE")

    async def later() -> None:
        await trio.sleep(0.05)
        other.execute("COMMIT")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(later)
        assert await sqlite.load("t") is None
    other.close()


async def test_a_second_store_of_the_process_drops_no_lock(sqlite: SqliteTaskStore) -> None:
    """Closing any descriptor of a file drops the process's locks on it: nobody may open it twice.

    While a unit of work runs, other processes stay locked out, whatever is opened here meanwhile.
    """
    path = sqlite._engine.path
    attempt = (
        "import sqlite3, sys\n"
        "try: sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')\n"
        "except sqlite3.OperationalError as error: print(error)"
    )
    async with writer_kept_busy(sqlite):
        async with SqliteTaskStore.open(path) as same:
            await same.load("t")
        command = [sys.executable, "-c", attempt, str(path)]
        done = await trio.run_process(command, capture_stdout=True)
    assert done.stdout.decode().strip() == "database is locked"


async def test_a_forked_child_cannot_use_the_store(sqlite: SqliteTaskStore, scribe: Hand) -> None:
    """In the child every call says so, and none can be opened; the parent goes on.

    What SQLite knows of its locks was copied in the middle: a child that used it would block
    itself, and its parent.
    """
    path = sqlite._engine.path

    def refused(call: Callable[[], Any]) -> bool:
        try:
            call()
        except TaskStoreError as error:
            return "fork before you open" in str(error)
        return False

    def closes() -> bool:
        try:
            sqlite._engine._close().send(None)
        except StopIteration:
            return True
        return False

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork
        child = os.fork()
    if child == 0:
        fine = False
        try:
            start = Registered(1, scribe.executor_id, "ann", "shell", "x")
            fine = (
                refused(lambda: sqlite.load("t").send(None))
                and refused(lambda: sqlite.apply("t", start).send(None))
                and refused(lambda: sqlite._engine.write_from_thread(lambda _: None))
                and refused(lambda: SqliteTaskStore.open(path).__aenter__().send(None))
                and closes()
                and refused(lambda: SqliteTaskStore.open(path).__aenter__().send(None))
            )
        finally:
            os._exit(0 if fine else 1)
    _, status = await trio.to_thread.run_sync(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    await scribe.start("t")


def test_a_child_that_was_forked_with_no_store_open_has_its_own(tmp_path: Path) -> None:
    """Also where its parent had one before."""
    path = tmp_path / "tasks.db"

    async def open_one() -> None:
        async with SqliteTaskStore.open(path) as store, store.executor(LeaseTerms()) as executor:
            await Hand(store, executor.executor_id).start(f"t{os.getpid()}")

    trio.run(open_one)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork
        child = os.fork()
    if child == 0:
        code = 1
        signal.alarm(int(PATIENCE_S))  # it ends, whatever happens
        try:
            trio.run(open_one)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert tasks_in(path) == {f"t{os.getpid()}", f"t{child}"}


# ---- opening, closing, threads -------------------------------------------------------------------


async def test_what_was_asked_before_closing_is_done(tmp_path: Path) -> None:
    """Closing waits for the queue; afterwards every call is refused, nothing is changed."""
    path = tmp_path / "tasks.db"
    results: dict[str, Any] = {}
    async with (
        trio.open_nursery() as nursery,
        SqliteTaskStore.open(path) as store,
        store.executor(LeaseTerms()) as executor,
        writer_kept_busy(store),
    ):
        hand = Hand(store, executor.executor_id)
        for i in range(5):
            nursery.start_soon(collected, results, f"t{i}", partial(hand.start, f"t{i}"))
        await trio.testing.wait_all_tasks_blocked()
    assert [results[f"t{i}"].task_id for i in range(5)] == [f"t{i}" for i in range(5)]
    with pytest.raises(StoreClosed):
        await hand.start("late")
    with pytest.raises(StoreClosed):
        await store.load("t1")
    with pytest.raises(StoreClosed):
        store._engine.write_from_thread(lambda _: None)
    assert tasks_in(path) == {f"t{i}" for i in range(5)}
    assert not [t for t in threading.enumerate() if t.name.startswith("bgtasks")]


async def test_a_reader_that_outlasts_the_store_closes_its_connection(tmp_path: Path) -> None:
    """A read that is under way when the store is closed is answered, and leaves nothing open."""
    leave, entered = threading.Event(), threading.Event()
    seen: list[sqlite3.Connection] = []

    def slow(connection: sqlite3.Connection) -> int:
        seen.append(connection)
        entered.set()
        leave.wait(PATIENCE_S)
        return 7

    answers: list[int] = []
    async with trio.open_nursery() as nursery:
        async with SqliteTaskStore.open(tmp_path / "tasks.db") as store:

            async def reader() -> None:
                answers.append(await store._engine.read(slow))

            nursery.start_soon(reader)
            await until(entered.is_set)
        leave.set()
    assert answers == [7]
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        seen[0].execute("SELECT 1")


async def test_a_thread_may_write_too(sqlite: SqliteTaskStore) -> None:
    """Its unit of work shares the transactions of the loop's; its errors are raised there."""

    def work(connection: sqlite3.Connection) -> int:
        return int(connection.execute("SELECT 41 + 1").fetchone()[0])

    def faulty(_: sqlite3.Connection) -> None:
        raise ZeroDivisionError

    assert await trio.to_thread.run_sync(sqlite._engine.write_from_thread, work) == 42
    with pytest.raises(ZeroDivisionError):
        await trio.to_thread.run_sync(sqlite._engine.write_from_thread, faulty)


async def test_an_answer_for_a_loop_that_has_ended_is_dropped(sqlite: SqliteTaskStore) -> None:
    """Nobody is left to be told; the thread goes on."""

    async def token() -> trio.lowlevel.TrioToken:
        return trio.lowlevel.current_trio_token()

    ended = await trio.to_thread.run_sync(trio.run, token)
    job = _engine._Job(lambda _: None, ended, trio.lowlevel.current_task())
    job.outcome = outcome.Value(None)
    _engine._deliver([job])
    assert await sqlite.load("t") is None


async def test_tools_cannot_keep_the_store_from_its_threads(tmp_path: Path) -> None:
    """With all of Trio's default threads occupied everything works, to the closing."""
    limiter = trio.to_thread.current_default_thread_limiter()
    limiter.total_tokens = 1
    async with limiter:
        with trio.fail_after(PATIENCE_S):
            async with (
                SqliteTaskStore.open(tmp_path / "tasks.db") as store,
                store.executor(LeaseTerms()) as executor,
            ):
                await Hand(store, executor.executor_id).start("t")
                await store.sweep(executor.executor_id, 1)
                await store.sweep(executor.executor_id, 1, suspect="another")
                await inspect_file(store._engine.path)


async def test_the_threads_are_named(sqlite: SqliteTaskStore, scribe: Hand) -> None:
    """A thread dump tells which is whose."""
    assert scribe.executor_id
    names = {thread.name for thread in threading.enumerate()}
    assert "bgtasks-sqlite tasks.db" in names
    assert f"bgtasks-lease {scribe.executor_id}" in names
    assert sqlite._engine._thread.name in names


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("INSERT INTO tombstones (task_id) VALUES ('t'), ('t')", ()),
        ("INSERT INTO tombstones (task_id) VALUES (?)", ("\ud800",)),
        ("INSERT INTO tombstones (task_id) VALUES (?)", (object(),)),
        ("UPDATE executors SET pid = ?", ("text",)),
        ("SELECT ?", (2**63,)),
        ("SELECT zeroblob(2000000000)", ()),
    ],
    ids=["constraint", "surrogate", "type", "datatype", "overflow", "too big"],
)
async def test_a_value_that_sqlite_refuses_is_an_invalid_value(
    sqlite: SqliteTaskStore, scribe: Hand, sql: str, parameters: tuple[Any, ...]
) -> None:
    """Repeating such a write is useless, and the error says so by its type."""
    assert scribe.executor_id  # there is an executor to be updated
    with pytest.raises(InvalidValue):
        await sqlite._engine.write(lambda c: c.execute(sql, parameters).fetchall())


async def test_another_sqlite_error_keeps_its_cause(sqlite: SqliteTaskStore) -> None:
    """What nobody foresaw is a `TaskStoreError` with SQLite's own error behind it."""
    for call in (sqlite._engine.write, sqlite._engine.read):
        with pytest.raises(TaskStoreError, match="no such table") as caught:
            await call(lambda c: c.execute("SELECT * FROM nowhere").fetchall())
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)


async def test_a_file_that_was_removed_is_an_error(sqlite: SqliteTaskStore) -> None:
    """A reader does not make a new, empty store in its place."""
    path = sqlite._engine.path
    path.unlink()
    with pytest.raises(TaskStoreError, match="opened"):
        await sqlite.load("t")
    assert not path.exists()


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
@pytest.mark.parametrize("mode", ["truncate", "wal"])
async def test_nothing_is_acknowledged_that_nobody_will_find(
    mode: str,
    replaced: bool,  # noqa: FBT001
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """A write into a file that was removed, or that another has taken the place of, is an error."""
    request.getfixturevalue("wal" if mode == "wal" else "rollback_journal")
    path, other = tmp_path / "tasks.db", tmp_path / "other.db"
    async with SqliteTaskStore.open(other):
        pass
    async with SqliteTaskStore.open(path) as store, store.executor(LeaseTerms()) as executor:
        hand = Hand(store, executor.executor_id)
        await hand.start("t")
        if replaced:
            other.rename(path)
        else:
            path.unlink()
        results = await at_once({"u": lambda: hand.start("u"), "v": lambda: hand.start("v")})
        assert [type(result) for result in results.values()] == [TaskStoreError] * 2
        assert "was removed or replaced" in str(results["u"])


async def test_nothing_is_read_that_others_do_not_find(tmp_path: Path) -> None:
    """A replaced file is read no more, by a connection to the old one or to the new one."""
    path, other = tmp_path / "tasks.db", tmp_path / "other.db"
    async with SqliteTaskStore.open(other):
        pass
    async with SqliteTaskStore.open(path) as store:
        assert await store.load("t") is None  # by a connection that is kept
        other.rename(path)
        for _ in range(2):
            with pytest.raises(TaskStoreError, match="was removed or replaced"):
                await store.load("t")


async def test_nothing_is_read_that_a_newer_version_has_migrated(sqlite: SqliteTaskStore) -> None:
    """A store that was open before does not misread tables that it does not know."""
    assert await sqlite.load("t") is None
    with closing(sqlite3.connect(sqlite._engine.path, isolation_level=None)) as other:
        other.execute("PRAGMA user_version = 1000")
        with pytest.raises(SchemaTooNew, match="version is 1000"):
            await sqlite.load("t")
        other.execute("PRAGMA user_version = 1")
    assert await sqlite.load("t") is None


@pytest.mark.parametrize(
    ("kind", "why"),
    [(NotADirectoryError, "was removed or replaced"), (PermissionError, "cannot be looked for")],
)
async def test_a_file_that_cannot_be_looked_for_is_a_store_error(
    sqlite: SqliteTaskStore,
    scribe: Hand,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[OSError],
    why: str,
) -> None:
    """Its folder was taken away or closed: reads and writes say so, with the path."""

    def fails(_: Path) -> tuple[int, int]:
        raise kind(1, "no")

    with monkeypatch.context() as patch:
        patch.setattr(_connection, "file_identity", fails)
        for call in (partial(sqlite.load, "t"), partial(scribe.start, "t")):
            with pytest.raises(TaskStoreError, match=rf"tasks\.db {why}"):
                await call()
    await scribe.start("t")


async def test_a_file_that_a_newer_version_has_migrated_is_left_alone(
    sqlite: SqliteTaskStore, scribe: Hand
) -> None:
    """A store that was open before does not write into tables that it does not know."""
    await scribe.start("t")
    other = sqlite3.connect(sqlite._engine.path, isolation_level=None)
    other.execute("PRAGMA user_version = 1000")
    results = await at_once({"u": lambda: scribe.start("u"), "v": lambda: scribe.start("v")})
    assert [type(result) for result in results.values()] == [SchemaTooNew] * 2
    assert results["u"] is not results["v"]
    assert "version is 1000" in str(results["u"])
    assert tasks_in(sqlite._engine.path) == {"t"}
    other.execute("PRAGMA user_version = 1")
    other.close()
    await scribe.start("u")
