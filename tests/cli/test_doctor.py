"""``doctor``: what it finds, and that it changes nothing."""

from __future__ import annotations

import sqlite3

import trio

from tests.cli.command import Cli
from tests.processes import until
from trio_bgtasks import Success, TaskResult


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
    assert found["journal_mode"] in ("wal", "truncate")
    assert found["synchronous"] == "full"
    assert found["schema_version"] >= 1
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
