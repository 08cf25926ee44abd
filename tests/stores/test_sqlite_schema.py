"""Opening a file: what it becomes, whose it may be, and how its tables are read."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_bgtasks._errors import (
    IdempotencyKeyUsed,
    SchemaTooNew,
    StoreBusy,
    TaskExists,
    TaskStoreError,
)
from trio_bgtasks._events import AttemptStarted
from trio_bgtasks._lifecycle import ORPHAN_ERROR
from trio_bgtasks._records import Progress, TaskRecord, TaskStatus
from trio_bgtasks.stores import LeaseTerms, SqliteTaskStore
from trio_bgtasks.stores.sqlite import _changes, _connection, _inspect, _schema, inspect_file

from .conftest import Hand, add_executor
from .make_schema_db import CONTENT, DATA, SINCE_V2


def mode(path: Path) -> int:
    """Return the permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def allow(path: Path, bits: int) -> None:
    """Set the permission bits."""
    path.chmod(bits)


def names(folder: Path) -> list[str]:
    """Return what is in the folder."""
    return sorted(entry.name for entry in folder.iterdir())


def all_rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """Ask the file for rows."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def ask(path: Path, sql: str) -> Any:
    """Ask the file for one value, by another connection."""
    return all_rows(path, sql)[0][0]


def tell(path: Path, *statements: str) -> None:
    """Change the file by another connection."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for sql in statements:
            connection.execute(sql).fetchall()
    finally:
        connection.close()


async def opening_fails(path: Path, error: type[Exception], match: str) -> None:
    """Open the store and expect it to be refused, with nothing changed."""
    before = {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}
    with pytest.raises(error, match=match):
        async with SqliteTaskStore.open(path):
            pytest.fail("it was opened")
    after = {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}
    assert after == before


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("journal", ["truncate", "wal"])
async def test_everything_of_a_store_is_private(
    journal: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Files are 0600 and the folders that we make 0700, also under a generous umask."""
    request.getfixturevalue("wal" if journal == "wal" else "rollback_journal")
    path = tmp_path / "new" / "folder" / "tasks.db"
    umask = os.umask(0)
    try:
        async with SqliteTaskStore.open(path) as store, store.executor(LeaseTerms()) as executor:
            await Hand(store, executor.executor_id).start("t")
            await store.load("t")
            files = [file for file in path.parent.rglob("*") if file.is_file()]
            assert {mode(file) for file in files} == {0o600}
            suffixes = {file.name.removeprefix("tasks.db") for file in files}
            wanted = {"-journal"} if journal == "truncate" else {"-wal", "-shm"}
            assert wanted <= suffixes
            assert mode(path.parent) == mode(path.parent.parent) == 0o700
            assert mode(store._locks) == 0o700
    finally:
        os.umask(umask)


async def test_what_was_stored_is_there_when_opened_again(tmp_path: Path) -> None:
    """Also under another name for the same file, whose locks are then the same."""
    path, name = tmp_path / "tasks.db", tmp_path / "link.db"
    name.symlink_to(path)
    async with SqliteTaskStore.open(str(path)) as store, store.executor(LeaseTerms()) as executor:
        await Hand(store, executor.executor_id).start("t")
        async with SqliteTaskStore.open(name) as same:
            assert repr(same) == f"<SqliteTaskStore {path}>"
            report = await same.sweep("another", 1)
            assert list(report.ended) == list[tuple[str, str]]()
            record = await same.load("t")
    async with SqliteTaskStore.open(path) as store:
        assert await store.load("t") == record


async def test_the_blocks_exception_leaves_open_as_raised(tmp_path: Path) -> None:
    """The very object, not in a group; the store is closed."""
    error = ExceptionGroup("two", [ValueError(), KeyError()])
    with pytest.raises(ExceptionGroup) as caught:
        async with SqliteTaskStore.open(tmp_path / "tasks.db"):
            raise error
    assert caught.value is error


async def test_a_file_name_is_taken_literally(tmp_path: Path) -> None:
    """No character of a path means something to SQLite."""
    path = tmp_path / "a b?mode=memory#%41ü'\".db"
    async with SqliteTaskStore.open(path) as store:
        assert await store.load("t") is None
    assert path.stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"path": b"tasks.db"}, TypeError, "path must be a str"),
        ({"path": 7}, TypeError, "PathLike"),
        ({"path": ""}, ValueError, "must name a file"),
        ({"path": ":memory:"}, ValueError, "MemoryTaskStore"),
        ({"path": "tasks.db", "synchronous": "off"}, ValueError, "'full' or 'normal'"),
        ({"path": "tasks.db", "synchronous": ["full"]}, ValueError, "'full' or 'normal'"),
    ],
    ids=["bytes", "int", "empty", "memory", "off", "list"],
)
async def test_bad_arguments_are_refused(
    arguments: dict[str, Any],
    error: type[Exception],
    match: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sentence names the argument; no file is made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=match):
        async with SqliteTaskStore.open(**arguments):
            pytest.fail("it was opened")
    assert names(tmp_path) == []


async def test_what_is_no_database_is_left_alone(tmp_path: Path) -> None:
    """A text file, a damaged one, a folder: one clear error that names the path."""
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but long enough to look like one " * 100)
    await opening_fails(text, TaskStoreError, r"notes\.txt: it is not a SQLite database")
    folder = tmp_path / "folder"
    folder.mkdir()
    await opening_fails(folder, TaskStoreError, r"folder: it is a folder")
    below = text / "tasks.db"
    await opening_fails(below, TaskStoreError, r"notes\.txt/tasks\.db: ")
    damaged = tmp_path / "damaged.db"
    async with SqliteTaskStore.open(damaged):
        pass
    with damaged.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 3000)
    await opening_fails(damaged, TaskStoreError, r"damaged\.db: the file is damaged")


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE tasks (x)", "PRAGMA user_version = 1", "PRAGMA application_id = 7"],
)
async def test_another_applications_database_is_left_alone(statement: str, tmp_path: Path) -> None:
    """Our tables are never added to somebody else's file."""
    path = tmp_path / "theirs.db"
    tell(path, statement)
    await opening_fails(path, TaskStoreError, "another application")


async def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    """A file of no bytes is what `tempfile` and `touch` make."""
    path = tmp_path / "tasks.db"
    path.touch()
    async with SqliteTaskStore.open(path) as store:
        assert await store.owners() == []


async def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without STRICT tables nothing is made."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 0))
    await opening_fails(tmp_path / "tasks.db", TaskStoreError, r"SQLite 3\.37\.0 is needed")


def unprivileged(script: str, folder: Path) -> str:
    """Run a script in a process that may not do what root may; return what it prints."""
    preamble = (
        "import atexit, os, sys, trio\n"
        "from trio_bgtasks import TaskStoreError\n"
        "from trio_bgtasks.stores import LeaseTerms, SqliteTaskStore\n"
        "if os.getuid() == 0:\n"
        "    os.setgroups([]); os.setgid(65534); os.setresuid(65534, 65534, 0)\n"
        "    atexit.register(os.setresuid, 0, 0, 0)  # or coverage could not write what it saw\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", preamble + script, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def public_folder() -> Generator[Path, None, None]:
    """Yield a folder that every user may enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


OPEN = """
async def main():
    try:
        async with SqliteTaskStore.open(sys.argv[1] + "/tasks.db") as store:
            async with store.executor(LeaseTerms()):
                print("opened")
    except TaskStoreError as error:
        print(f"{type(error).__name__}: {error}")
trio.run(main)
"""


async def test_a_read_only_folder_is_one_clear_error(public_folder: Path) -> None:
    """For a user who may not write there: with and without a store in it."""
    allow(public_folder, 0o555)
    said = await trio.to_thread.run_sync(unprivileged, OPEN, public_folder)
    assert said.startswith("TaskStoreError: cannot open the task store")
    assert said.endswith("Permission denied")
    assert names(public_folder) == []
    allow(public_folder, 0o755)
    path = public_folder / "tasks.db"
    async with SqliteTaskStore.open(path):
        pass
    before, there = path.read_bytes(), names(public_folder)
    allow(path, 0o444)
    allow(public_folder, 0o555)
    said = await trio.to_thread.run_sync(unprivileged, OPEN, public_folder)
    assert said.endswith(f"tasks.db: {path} is not writable")
    allow(path, 0o666)
    said = await trio.to_thread.run_sync(unprivileged, OPEN, public_folder)
    assert said.endswith(f"tasks.db: {public_folder} is not writable")
    assert path.read_bytes() == before
    assert names(public_folder) == there


# ---- journal and durability ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "race"),
    [
        ((3, 37, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 0), True),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
    ],
)
def test_which_versions_have_the_wal_reset_race(version: tuple[int, ...], race: bool) -> None:  # noqa: FBT001
    """3.51.3 fixed it, and the back-ports 3.50.7 and 3.44.6."""
    assert _connection.has_wal_reset_race(version) is race


@pytest.mark.parametrize(("race", "journal"), [(True, "truncate"), (False, "wal")])
@pytest.mark.parametrize(("synchronous", "level"), [("full", 2), ("normal", 1)])
async def test_journal_and_synchronous_are_as_said(
    race: bool,  # noqa: FBT001
    journal: str,
    synchronous: Any,
    level: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The version of SQLite chooses the journal, the caller how durable a commit is."""
    monkeypatch.setattr(_connection, "has_wal_reset_race", lambda: race)
    path = tmp_path / "tasks.db"
    async with SqliteTaskStore.open(path, synchronous=synchronous) as store:

        def pragma(name: str) -> Callable[[sqlite3.Connection], Any]:
            return lambda connection: connection.execute(f"PRAGMA {name}").fetchone()[0]

        assert await store._engine.write(pragma("journal_mode")) == journal
        assert store._engine.journal_mode == journal
        assert await store._engine.write(pragma("synchronous")) == level
        for flush in ("fullfsync", "checkpoint_fullfsync"):  # what durable means on macOS
            assert await store._engine.write(pragma(flush)) == (level == 2)
        assert await store._engine.read(pragma("query_only")) == 1


async def test_an_affected_sqlite_takes_a_file_out_of_wal_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless somebody uses it in that mode: then it is refused, with the reason."""
    monkeypatch.setattr(_connection, "BUSY_S", 0.1)
    monkeypatch.setattr(_connection, "has_wal_reset_race", lambda: False)
    path = tmp_path / "tasks.db"
    async with SqliteTaskStore.open(path) as store:
        await store.load("t")
        monkeypatch.setattr(_connection, "has_wal_reset_race", lambda: True)
        with pytest.raises(StoreBusy, match="WAL mode, which is not safe"):
            async with SqliteTaskStore.open(path):
                pytest.fail("it was opened")
    async with SqliteTaskStore.open(path) as store:
        assert store._engine.journal_mode == "truncate"


async def test_an_unaffected_sqlite_leaves_a_file_in_its_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot see whether those who use the file are safe in another."""
    path = tmp_path / "tasks.db"
    for made_with_race, journal in ((True, "truncate"), (False, "wal")):
        monkeypatch.setattr(_connection, "has_wal_reset_race", lambda race=made_with_race: race)
        async with SqliteTaskStore.open(path):
            pass
        monkeypatch.setattr(_connection, "has_wal_reset_race", lambda: False)
        async with SqliteTaskStore.open(path) as store:
            assert store._engine.journal_mode == journal
            assert await store.load("t") is None
        path.unlink()


@pytest.mark.parametrize("race", [True, False])
async def test_a_file_that_others_keep_locked_is_busy_at_open(
    race: bool,  # noqa: FBT001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two that make the same file: the later one gives up in the end, and may try again."""
    monkeypatch.setattr(_connection, "BUSY_S", 0.1)
    monkeypatch.setattr(_connection, "has_wal_reset_race", lambda: race)
    path = tmp_path / "tasks.db"
    for lock in ("BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"):
        other = sqlite3.connect(path, isolation_level=None)
        other.execute(lock)
        with pytest.raises(StoreBusy, match=r"tasks\.db: other processes keep the file busy"):
            async with SqliteTaskStore.open(path):
                pytest.fail("it was opened")
        other.execute("ROLLBACK")
        other.close()
    async with SqliteTaskStore.open(path) as store:
        assert await store.owners() == []


# ---- versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("newer", [_schema.SCHEMA_VERSION + 1, 1000])
async def test_a_newer_file_is_left_as_it_is(newer: int, tmp_path: Path) -> None:
    """The error names both versions."""
    path = tmp_path / "tasks.db"
    async with SqliteTaskStore.open(path):
        pass
    tell(path, f"PRAGMA user_version = {newer}")
    await opening_fails(path, SchemaTooNew, f"version is {newer}, this library knows")


async def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    """Each looks again under the write lock; one makes the tables."""
    path = tmp_path / "tasks.db"
    opened: list[int] = []

    async def opener() -> None:
        async with SqliteTaskStore.open(path) as store:
            assert await store.owners() == []
            opened.append(1)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(opener)
    assert len(opened) == 8
    assert ask(path, "PRAGMA user_version") == _schema.SCHEMA_VERSION


async def test_a_file_is_looked_at_in_one_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that somebody makes while we look is not taken for another application's file."""
    path, pragma = tmp_path / "tasks.db", _schema._pragma
    outcomes: list[str] = []

    def made_meanwhile(connection: sqlite3.Connection, name: str) -> int:
        value = pragma(connection, name)
        monkeypatch.setattr(_schema, "_pragma", pragma)
        other = sqlite3.connect(path, isolation_level=None, timeout=0)
        try:
            other.execute("BEGIN IMMEDIATE")
            _schema.migrate(other)
            other.execute("COMMIT")
            outcomes.append("made")
        except sqlite3.OperationalError as error:
            outcomes.append(str(error))
        finally:
            other.close()
        return value

    monkeypatch.setattr(_schema, "_pragma", made_meanwhile)
    async with SqliteTaskStore.open(path) as store:
        assert await store.owners() == []
    assert outcomes == ["database is locked"]


async def test_a_migration_is_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails leaves the older version; one that succeeds is made once, data kept."""
    path = tmp_path / "tasks.db"
    async with SqliteTaskStore.open(path) as store, store.executor(LeaseTerms()) as executor:
        await Hand(store, executor.executor_id).start("t")
    step = ("ALTER TABLE executors ADD COLUMN note TEXT",)
    now, made = _schema.SCHEMA_VERSION, _schema.MIGRATIONS
    monkeypatch.setattr(_schema, "SCHEMA_VERSION", now + 1)
    monkeypatch.setattr(_connection, "SCHEMA_VERSION", now + 1)
    monkeypatch.setattr(_schema, "MIGRATIONS", (*made, (*step, "NONSENSE")))
    await opening_fails(path, TaskStoreError, "syntax error")
    assert ask(path, "PRAGMA user_version") == now
    monkeypatch.setattr(_schema, "MIGRATIONS", (*made, step))
    for _ in range(2):
        async with SqliteTaskStore.open(path) as store:
            assert (await store.load("t")) is not None
        assert ask(path, "PRAGMA user_version") == now + 1
        assert ask(path, "SELECT count(note) FROM executors") == 0


@pytest.mark.parametrize("version", range(1, _schema.SCHEMA_VERSION + 1))
async def test_the_file_of_every_version_can_be_read(version: int, tmp_path: Path) -> None:
    """A database that an older version of the library wrote shows what was written then."""
    path = tmp_path / "tasks.db"
    shutil.copyfile(DATA / f"schema_v{version}.db", path)
    async with SqliteTaskStore.open(path) as store, store.executor(LeaseTerms()) as executor:
        records = {r.task_id: r for r in (await store.list_owner("ann")).records}
        content = CONTENT if version < 2 else CONTENT | SINCE_V2
        assert list(records) == list(content)
        for task_id, fields in content.items():
            assert {name: getattr(records[task_id], name) for name in fields} == fields
        assert records["running"].progress == Progress(1, 2, "half")
        assert (await store.read_output("completed", offset=0, limit=99)).text == "héllo wörld"
        assert [entry.kind for entry in await store.history("stopped")] == [
            "registered",
            "finished",
            "attempt_started",
            "finished",
        ]
        announced = [n.summary.task_id for n in await store.notices("ann")]
        more = [] if version < 2 else list(SINCE_V2)
        assert announced == ["completed", "stopped", "stopped", "message", "uri", *more]
        hand = Hand(store, executor.executor_id)
        with pytest.raises(TaskExists):
            await hand.start("collected")
        with pytest.raises(IdempotencyKeyUsed):
            await hand.start("new", idempotency_key="old key")
        report = await store.sweep(executor.executor_id, 10**6)
        assert list(report.ended) == [("running", "ann")]
        ended = await store.load("running")
        assert ended is not None
        assert (ended.status, ended.error) == ("cancelled", ORPHAN_ERROR)
        resume = AttemptStarted(5000, executor.executor_id, "ann", "shell", 2, {})
        assert (await hand.apply("stopped", resume)).attempt == 3
        assert list((await inspect_file(store._engine.path)).integrity) == list[str]()


@pytest.mark.parametrize("version", range(1, _schema.SCHEMA_VERSION + 1))
async def test_an_old_file_becomes_what_a_new_one_is(version: int, tmp_path: Path) -> None:
    """A file of any version, migrated, has the very tables and indices that a fresh one has."""
    old, fresh = tmp_path / "old.db", tmp_path / "fresh.db"
    shutil.copyfile(DATA / f"schema_v{version}.db", old)
    for path in (old, fresh):
        async with SqliteTaskStore.open(path):
            pass
    schema = "SELECT name, sql FROM sqlite_schema ORDER BY name"
    assert all_rows(old, schema) == all_rows(fresh, schema)


def test_the_newest_version_has_its_file() -> None:
    """A new schema comes with the file that its successors will be tested with."""
    assert (DATA / f"schema_v{_schema.SCHEMA_VERSION}.db").exists()


# ---- how tables are read -------------------------------------------------------------------------


async def test_nothing_reads_all_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C32: no call, and no start, scans a table or sorts what it lists: SQLite's plans say so."""
    seen: set[str] = set()
    connect = _connection._connect

    def traced(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.set_trace_callback(seen.add)
        return connection

    monkeypatch.setattr(_connection, "_connect", traced)
    path = tmp_path / "tasks.db"
    async with SqliteTaskStore.open(path):
        pass
    seen.clear()  # making the tables
    async with SqliteTaskStore.open(path) as store, store.executor(LeaseTerms()) as executor:
        hand = Hand(store, executor.executor_id)
        for i in range(20):
            await hand.start(f"t{i}", owner=f"o{i % 3}", parent_task_id="p", idempotency_key=str(i))
        await hand.write("t1", 0, "x" * 100, keep_bytes=50)
        await hand.checkpoint("t1", 1)
        await hand.cancel("t1")
        for i in range(10):
            await hand.end(f"t{i}")
        await store.load("t1")
        await store.load_by_key("o1", "1")
        await store.list_owner("o1")
        await store.list_owner("o1", status=TaskStatus.RUNNING)
        await store.list_owner("o1", status=TaskStatus.RUNNING, task_type="shell")
        await store.list_owner("o1", after=3, task_type="shell")
        await store.children("p")
        await store.history("t1")
        await store.read_output("t1", offset=-5, limit=5)
        notices = await store.notices("o1")
        await store.acknowledge("o1", [notice.notice_id for notice in notices])
        await store.owners(after="o0")
        await store.cancel_marks(executor.executor_id)
        async with store.executor(LeaseTerms()) as other:
            await Hand(store, other.executor_id).start("orphan")
        await store.sweep(executor.executor_id, 1, suspect=other.executor_id)
        await store.sweep(executor.executor_id, 1)
        await store.collect("o1", ended_before_ms=10**9)
        await store.collect(None, ended_before_ms=10**9)
    plans = set(explain(path, seen))
    assert len(plans) > 30
    # A table of executors is as long as there are processes; the last two are CTEs.
    small = r"SCAN (e|executors|busy|next|CONSTANT ROW)\b"
    # The partial index has an entry for each running task only.
    running = r"SCAN tasks USING (COVERING )?INDEX tasks_by_executor"
    scans = {plan for plan in plans if plan.startswith("SCAN") and not re.match(small, plan)}
    assert {plan for plan in scans if not re.match(running, plan)} == set()
    assert {plan for plan in plans if "ORDER BY" in plan} == set()
    assert {plan for plan in plans if re.search(r"tasks USING INTEGER .*>", plan)} == set()
    # And no index is there for nothing.
    made = {
        name for (name,) in all_rows(path, "SELECT name FROM sqlite_schema WHERE type = 'index'")
    }
    used = {match[1] for plan in plans if (match := re.search(r"INDEX (\w+)", plan))}
    assert made - used == set()
    assert "tasks_by_owner_status" in used  # who lists what runs does not read what has ended


def explain(path: Path, statements: set[str]) -> Generator[str, None, None]:
    """Yield every line of the query plans of these statements."""
    connection = sqlite3.connect(path, isolation_level=None)
    for sql in statements:
        if re.match(r"\s*(SELECT|WITH|UPDATE|DELETE|INSERT)", sql):
            for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}"):
                yield row[3]
    connection.close()


# ---- damaged rows --------------------------------------------------------------------------------


def damage(store: SqliteTaskStore, *statements: str) -> None:
    """Change rows into what no version of this library writes."""
    tell(store._engine.path, "PRAGMA ignore_check_constraints = ON", *statements)


DAMAGES = {
    "status": "UPDATE tasks SET status = 'odd'",
    "args": "UPDATE tasks SET args = '{\"a\"'",
    "args:": "UPDATE tasks SET args = '{\"a\": NaN}'",
    "metadata": "UPDATE tasks SET metadata = '[1]'",
    "result": "UPDATE tasks SET result = 'x'",
    "checkpoint": f"UPDATE tasks SET checkpoint = '{'[' * 9000}'",
    "progress": 'UPDATE tasks SET progress = \'{"done": "1"}\'',
    "result_ref": 'UPDATE tasks SET result_ref = \'{"kind": "odd"}\'',
    "executor_id": "UPDATE tasks SET executor_id = NULL",
    "attempt": "UPDATE tasks SET attempt = 0",
    "description": "UPDATE tasks SET description = CAST(x'c3' AS TEXT)",
}


@pytest.mark.parametrize("field", DAMAGES)
async def test_a_corrupt_record_hides_nothing_else(
    sqlite: SqliteTaskStore, scribe: Hand, field: str
) -> None:
    """C31: asked for by id it is named with what is wrong; lists report it, and go on after it."""
    for i in range(5):
        await scribe.start(f"t{i}", parent_task_id="p", idempotency_key=f"k{i}")
    damage(sqlite, f"{DAMAGES[field]} WHERE task_id = 't2'")
    seen: list[TaskRecord] = []
    corrupt: list[str] = []
    after: int | None = 0
    while after is not None:
        page = await sqlite.list_owner("ann", after=after, limit=1)
        seen += page.records
        corrupt += [error.task_id for error in page.corrupt]
        after = page.next_after
    assert [record.task_id for record in seen] == ["t0", "t1", "t3", "t4"]
    assert corrupt == ["t2"]
    assert [error.task_id for error in (await sqlite.children("p")).corrupt] == ["t2"]
    calls: list[Callable[[], Any]] = [
        partial(sqlite.load, "t2"),
        partial(sqlite.load_by_key, "ann", "k2"),
        partial(scribe.end, "t2"),
        partial(scribe.start, "t2"),
    ]
    for call in calls:
        with pytest.raises(TaskStoreError, match=f"'t2' is corrupt: {field.strip(':')}\\b"):
            await call()
    assert [error.task_id for error in (await inspect_file(sqlite._engine.path)).corrupt] == ["t2"]
    assert (await scribe.end("t3")).status == "completed"


@pytest.mark.parametrize("field", ["task_id", "owner_thread_id", "idempotency_key"])
async def test_a_corrupt_record_stops_no_collection(
    sqlite: SqliteTaskStore, scribe: Hand, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays, is logged, does not use up the page, and hides no owner but a damaged one."""
    for i in range(4):
        await scribe.start(f"t{i}", owner=f"o{i}", idempotency_key="k")
        await scribe.end(f"t{i}")
    damage(
        sqlite,
        f"UPDATE tasks SET {field} = CAST(x'ff' || {field} AS TEXT) WHERE task_id IN ('t0', 't1')",
    )
    assert (await sqlite.owners(limit=2))[-1] == ("o3" if field == "owner_thread_id" else "o1")
    for gone in (["t2"], ["t3"], []):
        assert await sqlite.collect(None, ended_before_ms=10**9, limit=1) == gone
    lines = [vars(line) for line in caplog.records if "not collected: " in line.getMessage()]
    named = {"task_id": "t0", "owner_thread_id": "o0"}
    named |= {field: str(b"\xff" + named[field].encode())} if field in named else {}
    assert {name: lines[0][name] for name in named} == named
    assert len((await inspect_file(sqlite._engine.path)).corrupt) == 2


async def test_a_page_of_a_collection_is_bounded_by_its_output_too(
    sqlite: SqliteTaskStore, scribe: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To delete much output takes long, and nobody else can write meanwhile."""
    monkeypatch.setattr(_changes, "_LARGEST_COLLECTION", 250)
    for i in range(5):
        await scribe.start(f"t{i}")
        await scribe.write(f"t{i}", 0, "x" * 100)
        await scribe.end(f"t{i}")
    sizes: list[int] = []
    while gone := await sqlite.collect("ann", ended_before_ms=10**9):
        sizes.append(len(gone))
    assert sizes == [3, 2]
    assert await sqlite.collect("ann", ended_before_ms=10**9, limit=0) == []


async def test_a_corrupt_notice_hides_no_other(
    sqlite: SqliteTaskStore, scribe: Hand, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged and passed over, and does not use up the page."""
    for i in range(5):
        await scribe.start(f"t{i}")
        await scribe.end(f"t{i}")
    damage(
        sqlite,
        "UPDATE notices SET summary = '{' WHERE task_id = 't0'",
        "UPDATE notices SET summary = '{\"task_id\": 1}' WHERE task_id = 't1'",
        f"UPDATE notices SET summary = '{'[' * 500}{']' * 500}' WHERE task_id = 't4'",
    )
    announced = await sqlite.notices("ann", limit=2)
    assert [notice.summary.task_id for notice in announced] == ["t2", "t3"]
    line = next(vars(r) for r in caplog.records if "notice 1 is corrupt" in r.getMessage())
    assert (line["task_id"], line["owner_thread_id"]) == ("t0", "ann")
    assert [error.task_id for error in (await inspect_file(sqlite._engine.path)).corrupt] == [
        "t0",
        "t1",
        "t4",
    ]


async def test_a_corrupt_journal_is_named(sqlite: SqliteTaskStore, scribe: Hand) -> None:
    """A line that cannot be read raises for its task only."""
    await scribe.start("t")
    await scribe.start("u")
    damage(sqlite, "UPDATE task_events SET status = 'odd' WHERE task_id = 't'")
    with pytest.raises(TaskStoreError, match="'t' is corrupt: journal"):
        await sqlite.history("t")
    assert len(await sqlite.history("u")) == 1


# ---- inspect -------------------------------------------------------------------------------------


async def test_inspect_tells_a_doctor_what_there_is(sqlite: SqliteTaskStore, scribe: Hand) -> None:
    """Executors and who is alive, orphans, sizes; a sound file has no complaints."""
    await scribe.start("mine")
    async with sqlite.executor(LeaseTerms()) as other:
        await Hand(sqlite, other.executor_id).start("orphan")
    report = await inspect_file(sqlite._engine.path)
    assert report.path == sqlite._engine.path
    assert report.sqlite_version == sqlite3.sqlite_version
    assert report.journal_mode == ("wal" if sqlite._engine.journal_mode == "wal" else "rollback")
    assert (report.schema, report.schema_version) == ("current", _schema.SCHEMA_VERSION)
    assert (list(report.integrity), list(report.corrupt)) == ([], [])
    assert [(e.executor_id, e.alive, e.pid, e.running_tasks) for e in report.executors] == [
        (scribe.executor_id, True, os.getpid(), 1),
        (other.executor_id, False, os.getpid(), 1),
    ]
    assert list(report.orphans) == ["orphan"]
    assert report.file_bytes == sqlite._engine.path.stat().st_size
    assert report.free_bytes > 0


async def test_inspect_calls_nothing_an_orphan_that_has_just_ended(
    sqlite: SqliteTaskStore, scribe: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep by somebody else, while it is looked for the dead, leaves no orphan."""
    look, dead = _inspect._dead, add_executor(sqlite)
    await Hand(sqlite, dead).start("t")

    def swept_first(*args: Any) -> set[str]:
        trio.from_thread.run(partial(sqlite.sweep, scribe.executor_id, 5, suspect=dead))
        return look(*args)

    monkeypatch.setattr(_inspect, "_dead", swept_first)
    report = await inspect_file(sqlite._engine.path)
    assert list(report.orphans) == list[str]()
    assert [executor.running_tasks for executor in report.executors] == [0, 0]


_FORGET_AN_INDEX = "DELETE FROM sqlite_schema WHERE name = 'tasks_by_end'"


async def test_inspect_shows_what_sqlites_own_check_finds(
    sqlite: SqliteTaskStore, scribe: Hand
) -> None:
    """A file that is not sound has its complaints in the report."""
    await scribe.start("t")
    damage(sqlite, "PRAGMA writable_schema = ON", _FORGET_AN_INDEX)
    (complaint,) = (await inspect_file(sqlite._engine.path)).integrity
    assert "never used" in complaint
