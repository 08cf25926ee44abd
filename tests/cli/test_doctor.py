"""``doctor``: what it finds, and that it changes nothing."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import trio

from tests.cli.command import Cli
from tests.processes import until
from trio_bgtasks import Success, TaskResult
from trio_bgtasks.cli._doctor import _SCHEMAS
from trio_bgtasks.stores.sqlite._schema import APPLICATION_ID, SCHEMA_VERSION


async def _completed(_: trio.CancelScope) -> TaskResult:
    return Success()


async def _one_task(cli: Cli) -> str:
    async with cli.manager() as manager:
        task_id = await manager.spawn("cli", "other", "", _completed)
        await manager.wait("cli", task_id)
    return task_id


async def test_a_sound_database(cli: Cli) -> None:
    """Version, journal, schema, integrity, who is alive, disk space; exit code 0."""
    async with cli.manager():
        done = await cli("doctor")
        found = (await cli("doctor", "--json")).json

    assert (done.code, done.errors) == (0, "")
    assert found["sqlite_version"] == sqlite3.sqlite_version
    assert found["journal_mode"] in ("wal", "rollback")
    assert (found["schema"], found["schema_version"]) == ("current", SCHEMA_VERSION)
    assert found["free_bytes"] > 0
    assert (found["integrity"], found["orphans"], found["corrupt"]) == ([], [], [])
    (executor,) = found["executors"]
    assert (executor["alive"], executor["running_tasks"]) == (True, 0)
    fields = dict(line.split(None, 1) for line in done.out.split("\n\n")[0].splitlines())
    assert fields["database"] == str(cli.db)
    assert fields["integrity"] == "ok"
    assert fields["executors"] == "1 alive, 0 dead"
    assert done.out.splitlines()[-1].split()[:2] == [executor["executor_id"], "alive"]


async def test_an_orphan_is_shown_and_left(cli: Cli) -> None:
    """The task of a killed runtime is listed, with its executor; the doctor does not end it."""
    async with cli.running("run", "sleep 1000") as run:
        (task_id,) = await run.started(1)
        run.process.kill()
        await run.end()
    await until(lambda: not cli.processes.alive())

    for _ in range(2):
        done = await cli("doctor", "--json")
        assert done.code == 0
        assert done.json["orphans"] == [task_id]
        (executor,) = done.json["executors"]
        assert (executor["alive"], executor["running_tasks"]) == (False, 1)


async def test_a_corrupt_record_is_named(cli: Cli) -> None:
    """Exit code 1, the record and the reason; the others are listed all the same."""
    bad, good = await _one_task(cli), await _one_task(cli)
    _change(cli, 'UPDATE tasks SET result_ref = \'{"kind": "no"}\' WHERE task_id = ?', bad)

    done, found, listed, shown = await cli.together(
        ["doctor"], ["doctor", "--json"], ["ls", "--json"], ["show", bad]
    )
    assert (done.code, done.errors) == (1, "")
    assert bad in done.out
    assert [error["task_id"] for error in found.json["corrupt"]] == [bad]
    assert [task["task_id"] for task in listed.json["tasks"]] == [good]
    assert listed.errors.count("\n") == 1
    assert bad in listed.errors
    assert (shown.code, shown.out, shown.errors.count("\n")) == (1, "", 1)


async def test_a_damaged_file_is_found(cli: Cli) -> None:
    """What SQLite's own check complains about is printed; exit code 1."""
    await _one_task(cli)
    connection = sqlite3.connect(cli.db)
    (page,) = connection.execute(
        "SELECT rootpage FROM sqlite_schema WHERE name = 'tasks_by_owner'"
    ).fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with cli.db.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\x0a" + bytes(size - 1))  # an index without an entry

    done = await cli("doctor", "--json")
    assert done.code == 1
    assert done.json["integrity"]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("statement", "schema", "version", "code"),
    [
        ("", "empty", 0, 0),
        (f"PRAGMA application_id = {APPLICATION_ID}", "empty", 0, 0),
        ("CREATE TABLE theirs (x)", "foreign", 0, 1),
        (
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION + 1}",
            "newer",
            SCHEMA_VERSION + 1,
            1,
        ),
    ],
)
async def test_what_is_no_store_of_this_version(
    cli: Cli, tmp_path: Path, statement: str, schema: str, version: int, code: int
) -> None:
    """Its kind is told; it is neither made a store nor brought up to date."""
    path = tmp_path / "alone" / "some.db"
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.executescript(statement)
    connection.close()
    path.touch()
    before = _files(path.parent)

    done, found = await cli.together(
        ["doctor", "--db", f"{path}"], ["doctor", "--json", "--db", f"{path}"]
    )
    assert (done.code, found.code, done.errors) == (code, code, "")
    assert (found.json["schema"], found.json["schema_version"]) == (schema, version)
    fields = dict(line.split(None, 1) for line in done.out.splitlines())
    assert fields["schema"] == _SCHEMAS[schema].format(version)
    assert list(fields)[-1] == "integrity"  # of what there is in a store nothing is known
    assert _files(path.parent) == before
    assert list(path.parent.iterdir()) == [path]


async def test_the_journal_mode_is_left_as_it_is(cli: Cli) -> None:
    """A file in WAL mode stays so, whatever the SQLite of the doctor thinks of that mode."""
    await _one_task(cli)
    connection = sqlite3.connect(cli.db)
    connection.execute("PRAGMA journal_mode = wal")
    connection.close()
    before = cli.db.read_bytes()

    done = await cli("doctor", "--json")
    assert (done.code, done.json["journal_mode"]) == (0, "wal")
    assert cli.db.read_bytes() == before


async def test_what_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    """A folder, a text: one line, exit code 1, nothing changed."""
    text = tmp_path / "text.db"
    text.write_text("no database" * 1000)
    for path, why in ((tmp_path, "it is a folder"), (text, "it is not a SQLite database")):
        done = await cli("doctor", "--db", f"{path}")
        assert (done.code, done.out, done.errors.count("\n")) == (1, "", 1)
        assert done.errors.startswith(f"trio-bgtasks: cannot read the task store {path}: {why}")
    assert text.read_text() == "no database" * 1000


async def test_there_is_no_database(cli: Cli) -> None:
    """A wrong path is no healthy store, and is not made into one."""
    done = await cli("doctor")
    assert (done.code, done.out) == (1, "")
    assert done.errors == f"trio-bgtasks: there is no database at {cli.db}\n"
    assert not cli.db.exists()


def _change(cli: Cli, statement: str, *values: str) -> None:
    connection = sqlite3.connect(cli.db)
    with connection:
        connection.execute(statement, values)
    connection.close()
