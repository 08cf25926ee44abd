"""``run`` and ``resume``, with real commands in real processes."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.cli.command import Cli
from tests.processes import until
from tests.support import FaultyStore, forever, request
from trio_bgtasks import (
    BackgroundCapable,
    BackgroundTaskManager,
    Stopped,
    StoreBusy,
    TaskNotStopped,
    TaskResult,
    TaskStatus,
    TaskSummary,
    background_tool,
    open_task_manager,
)
from trio_bgtasks.cli import _run
from trio_bgtasks.cli._session import CommandError, Session, owned
from trio_bgtasks.cli._views import OwnedTask
from trio_bgtasks.stores.sqlite import SqliteTaskStore

_manager_wait = BackgroundTaskManager.wait


async def test_all_completed_is_exit_code_0(cli: Cli) -> None:
    """Each command is a task; the summary is plain text without a terminal, the exit code 0."""
    done = await cli("run", "echo one", "echo two")

    assert (done.code, done.errors) == (0, "")
    lines = done.out.splitlines()
    started, header, summary = lines[:2], lines[2], lines[3:]
    assert [line.split()[1:] for line in started] == [["started"]] * 2
    assert header.split() == ["TASK", "STATUS", "ATTEMPT", "TIME", "DESCRIPTION", "DETAIL"]
    assert [line.split()[1:3] for line in summary] == [["completed", "1"]] * 2
    assert [line.split()[0] for line in summary] == [line.split()[0] for line in started]
    assert "echo one" in summary[0]
    assert "\x1b" not in done.out


async def test_any_other_end_is_exit_code_1(cli: Cli) -> None:
    """One failed command makes it 1; JSON has every task's result, and nothing else is printed."""
    done = await cli("--json", "run", "exit 3", "true", "--owner", "me")

    assert (done.code, done.errors) == (1, "")
    assert done.statuses == ["failed", "completed"]
    first = done.json["tasks"][0]
    assert first["result"]["exit_code"] == 3
    assert first["owner_thread_id"] == "me"


async def test_an_empty_command_is_a_usage_error(cli: Cli) -> None:
    """What the tool refuses before anything is started is exit code 2, in one line."""
    done = await cli("run", "")

    assert (done.code, done.out) == (2, "")
    assert done.errors.count("\n") == 1
    assert "command" in done.errors


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_stops_the_tasks(cli: Cli, number: int, code: int) -> None:
    """Every process is ended, the tasks are stopped, the exit code names the signal."""
    async with cli.running("run", "--resumable", "sleep 1000", "sleep 1000 | sleep 1000") as run:
        ids = await run.started(2)
        await until(lambda: cli.sleeping() == 3)
        run.process.send_signal(number)
        done = await run.end()
        assert cli.processes.alive() == {}

    assert done.code == code
    assert done.errors == "trio-bgtasks: stopping\n"
    assert done.out.endswith(f"to go on: trio-bgtasks resume {ids[0]} {ids[1]}\n")
    assert (await cli("ls", "--json")).statuses == ["stopped", "stopped"]


async def test_a_second_signal_does_not_break_the_clean_up(cli: Cli) -> None:
    """While a command that ignores TERM is being ended, more signals of both kinds do nothing."""
    async with cli.running("run", "trap '' TERM; echo ready; while :; do sleep 1; done") as run:
        (task_id,) = await run.started(1)
        while (await cli("logs", task_id)).raw != b"ready\n":
            assert not run.ended.is_set()
        run.process.send_signal(signal.SIGTERM)
        await until(lambda: b"stopping" in run.errors)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            run.process.send_signal(number)
        done = await run.end()

    assert (done.code, done.errors) == (143, "trio-bgtasks: stopping\n")
    assert (await cli("ls", "--json")).statuses == ["stopped"]

    again = await cli("resume", task_id)
    assert (again.code, again.out) == (1, "")
    assert "not started with --resumable" in again.errors


async def test_a_killed_run_can_be_resumed(cli: Cli, tmp_path: Path) -> None:
    """After kill -9 of ``run`` its task is stopped at the next look; ``resume`` runs it again.

    It runs in the folder where it was started, wherever the resume is.
    """
    there = tmp_path / "there"
    there.mkdir()
    command = "test -e go || sleep 1000; pwd"
    async with cli.running("run", "--resumable", command, cwd=there) as run:
        (task_id,) = await run.started(1)
        await until(cli.sleeping)
        run.process.kill()
        await run.end()
    await until(lambda: not cli.processes.alive())  # its keeper ends what it left

    listed = await cli("ls", "--json")
    assert listed.statuses == ["stopped"]
    assert listed.errors == f"trio-bgtasks: warning: task {task_id} was an orphan\n"

    (there / "go").touch()
    done = await cli("resume", task_id, task_id, "--json", cwd=tmp_path)
    assert (done.code, done.errors, done.statuses) == (0, "", ["completed"])
    assert done.json["tasks"][0]["attempt"] == 2
    assert (await cli("logs", task_id)).out == f"{there}\n"


async def test_exactly_one_of_two_resumes_wins(cli: Cli, tmp_path: Path) -> None:
    """Two terminals resume one task at once: one runs it, the other is told that it is not stopped.

    It is run once.
    """
    ran = tmp_path / "ran"
    command = f"echo x >>{ran}; test -e {tmp_path}/go || sleep 1000; sleep 0.5"
    async with cli.running("run", "--resumable", command) as run:
        (task_id,) = await run.started(1)
        await until(ran.exists)
        run.process.send_signal(signal.SIGTERM)
        await run.end()
    (tmp_path / "go").touch()
    ran.unlink()

    both = await cli.together(["resume", task_id], ["resume", task_id])
    won, lost = sorted(both, key=lambda done: done.code)
    assert (won.code, won.errors) == (0, "")
    assert (lost.code, lost.out) == (1, "")
    assert f"Task '{task_id}' is not stopped" in lost.errors
    assert ran.read_text() == "x\n"


async def test_an_ended_task_may_be_collected_while_others_run(cli: Cli, tmp_path: Path) -> None:
    """``gc`` from another terminal takes what has ended; the summary has it all the same."""
    waits = f"while ! test -e {tmp_path}/go; do sleep 0.05; done"
    async with cli.running("run", waits, "echo quick") as run:
        _, quick = await run.started(2)
        await cli("wait", quick)
        assert (await cli("gc")).out == "1 ended tasks deleted\n"
        (tmp_path / "go").touch()
        done = await run.end()

    assert (done.code, done.errors) == (0, "")
    assert [line.split()[1] for line in done.out.splitlines()[3:]] == ["completed", "completed"]


async def test_a_task_may_be_collected_while_others_are_started(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task is waited for from its start: how it ended is known, whatever becomes of its record."""
    execute = BackgroundCapable.execute
    ids: list[str] = []

    async def collects_first(tool: Any, args: Any, ctx: Any) -> Any:
        """Starts a task when those before it have ended and are collected."""
        await _collected(cli, ids)
        result = await execute(tool, args, ctx)
        ids.append(result.data["task_id"])
        return result

    monkeypatch.setattr(BackgroundCapable, "execute", collects_first)
    session = Session(cli.db, json=True)
    code = await _run.run(session, ["true", "exit 3", "true"], owner="cli", resumable=False)

    tasks = json.loads(capsys.readouterr().out)["tasks"]
    assert code == 1
    assert [task["task_id"] for task in tasks] == ids
    assert [task["status"] for task in tasks] == ["completed", "failed", "completed"]


async def test_a_task_that_is_collected_unseen_costs_its_own_row_only(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stays as it was known last, with a warning, and counts as not completed."""
    ids: list[str] = []

    async def late(manager: BackgroundTaskManager, owner: str, task_id: str) -> TaskSummary:
        """The first task is waited for when it is gone already."""
        ids.append(task_id)
        if task_id == ids[0]:
            await _collected(cli, ids[:1])
        return await _manager_wait(manager, owner, task_id)

    monkeypatch.setattr(BackgroundTaskManager, "wait", late)
    session = Session(cli.db, json=True)
    code = await _run.run(session, ["true", "true"], owner="cli", resumable=False)

    out, errors = capsys.readouterr()
    tasks = json.loads(out)["tasks"]
    assert code == 1
    assert [task["task_id"] for task in tasks] == ids
    assert [task["status"] for task in tasks] == ["running", "completed"]
    assert errors == f"trio-bgtasks: warning: {ids[0]} was collected before its end was seen\n"


async def _collected(cli: Cli, ids: list[str]) -> None:
    """Wait, as another process does, until these tasks have ended and are collected."""
    async with cli.manager() as manager:
        for task_id in ids:
            if await manager.get("cli", task_id) is not None:
                await _manager_wait(manager, "cli", task_id)
        await manager.gc_terminal("cli")


async def test_a_resume_that_comes_too_late_starts_nothing() -> None:
    """The task was resumed by somebody else after it was looked at: the answer names its status."""

    @background_tool(supports_resume=True)
    async def endless() -> None:
        await trio.sleep_forever()

    async with open_task_manager() as manager, trio.open_nursery() as nursery:
        begun: list[_run._Begun] = []
        starter = _run._Starter(manager, nursery, begun)
        await starter.start(endless, "me", {})
        task_id = begun[0].task.summary.task_id
        with pytest.raises(TaskNotStopped, match="running"):
            await starter.start(endless, "me", {"task_id": task_id})
        with pytest.raises(CommandError, match="Unknown task"):
            await starter.start(endless, "you", {"task_id": task_id})
        assert len(begun) == 1
        nursery.cancel_scope.cancel()


async def test_an_end_that_was_seen_is_not_overwritten_by_an_older_look() -> None:
    """A look that waits for the store while the task ends changes nothing."""
    store = FaultyStore()
    async with open_task_manager(store) as manager, trio.open_nursery() as nursery:
        begun = _run._Begun(await owned(manager, "me", await manager.start(request("me"), forever)))
        store.break_down("read_output", fault="wait")
        nursery.start_soon(_run._look, manager, begun)
        await trio.testing.wait_all_tasks_blocked()
        end = OwnedTask("me", TaskSummary("t", "shell", "d", TaskStatus.COMPLETED, 1000), 2000)
        begun.task, begun.last_line, begun.ended = end, "its last line", True
        assert store.struck
        store.repair()
    assert (begun.task, begun.last_line) == (end, "its last line")


async def test_a_look_at_a_collected_task_leaves_it_as_it_was() -> None:
    """Neither its standing nor its last line is lost, and nothing is raised."""
    async with open_task_manager() as manager:
        summary = TaskSummary("gone", "shell", "d", TaskStatus.RUNNING, 1000, attempt=2)
        task = await owned(manager, "me", summary)
        assert task == OwnedTask("me", summary, 1000)
        begun = _run._Begun(task, "a line")
        await _run._look(manager, begun)
        assert begun == _run._Begun(task, "a line")
        assert await _run._last_line(manager, begun) == "a line"


async def test_what_the_summary_announced_is_no_news_any_more(cli: Cli) -> None:
    """The notices of owner ``cli`` go with the summary; another owner's wait for its program."""
    assert (await cli("run", "true", "exit 3", "--json")).code == 1
    assert (await cli("run", "true", "--owner", "bob")).code == 0
    async with cli.running("run", "--resumable", "sleep 1000") as run:
        (stopped,) = await run.started(1)
        run.process.send_signal(signal.SIGTERM)
        await run.end()
    assert await _notices(cli) == [0, 1]
    async with cli.manager() as manager:
        summary = await manager.cancel("cli", stopped)
    assert summary.status is TaskStatus.CANCELLED
    assert await _notices(cli) == [0, 1]


async def _notices(cli: Cli) -> list[int]:
    async with SqliteTaskStore.open(cli.db) as store:
        return [len(await store.notices(owner)) for owner in ("cli", "bob")]


async def test_notices_that_stay_are_a_warning(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is that of the tasks, also where a busy file keeps their notices."""

    async def busy(_: BackgroundTaskManager, owner: str) -> list[TaskSummary]:
        raise StoreBusy(f"no notices for {owner}")

    monkeypatch.setattr(BackgroundTaskManager, "take_notices", busy)
    code = await _run.run(Session(cli.db, json=True), ["true"], owner="cli", resumable=False)

    out, errors = capsys.readouterr()
    assert code == 0
    assert [task["status"] for task in json.loads(out)["tasks"]] == ["completed"]
    text = "warning: the notices of owner cli stay: no notices for cli"
    assert errors == f"trio-bgtasks: {text}\n"
    assert await _notices(cli) == [1, 0]


async def test_ends_that_cannot_be_read_back_cost_no_summary(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A busy file after an interrupt: each task is shown as it was known last, with a warning."""
    opened = Session.manager
    stop = trio.CancelScope()

    @asynccontextmanager
    async def once(
        session: Session, *, create: bool = False
    ) -> AsyncGenerator[BackgroundTaskManager, None]:
        if stop.cancel_called:
            raise StoreBusy("busy")
        async with opened(session, create=create) as manager:
            yield manager

    async def interrupted(*_: object) -> None:
        stop.cancel()

    monkeypatch.setattr(Session, "manager", once)
    monkeypatch.setattr(_run, "_watch", interrupted)
    with stop:
        await _run.run(Session(cli.db, json=True), ["sleep 1000"], owner="cli", resumable=False)

    out, errors = capsys.readouterr()
    assert stop.cancelled_caught
    assert [task["status"] for task in json.loads(out)["tasks"]] == ["running"]
    assert errors.splitlines() == [
        "trio-bgtasks: stopping",
        "trio-bgtasks: warning: how the tasks ended could not be read: busy",
    ]


@pytest.mark.parametrize("bad", ["", os.fsdecode(b"echo \xff")])
async def test_a_command_that_is_refused_is_refused_before_the_others_start(
    cli: Cli, tmp_path: Path, bad: str
) -> None:
    """All commands are checked first: exit code 2, and neither a task nor a database is made."""
    done = await cli("run", f"echo > '{tmp_path}/ran'", bad)

    assert (done.code, done.out) == (2, "")
    assert done.errors.count("\n") == 1
    assert not (tmp_path / "ran").exists()
    assert not cli.db.parent.exists()


async def test_the_hint_to_resume_names_the_database(cli: Cli, tmp_path: Path) -> None:
    """When the option named it, so that the line can be pasted in any folder."""
    (tmp_path / "a folder").mkdir()
    args = ("--db", "a folder/my.db", "run", "--resumable", "sleep 1000")
    async with cli.running(*args, cwd=tmp_path) as run:
        (task_id,) = await run.started(1)
        run.process.send_signal(signal.SIGINT)
        done = await run.end()

    hint = f"to go on: trio-bgtasks resume --db '{tmp_path}/a folder/my.db' {task_id}\n"
    assert done.out.endswith(hint)


async def test_what_cannot_be_resumed(cli: Cli) -> None:
    """A task that ended, is not resumable, or is no shell task is left alone, with the reason."""

    async def other(_: object) -> TaskResult:
        return Stopped("for now")

    ended = (await cli("run", "true", "--json")).json["tasks"][0]["task_id"]
    async with cli.manager() as manager:
        foreign = await manager.spawn("cli", "other", "", other)
        await manager.wait("cli", foreign)

    of_ended, of_foreign = await cli.together(["resume", ended], ["resume", foreign])
    assert (of_ended.code, of_ended.out) == (1, "")
    assert "is not stopped (current status: completed)" in of_ended.errors
    assert (of_foreign.code, of_foreign.out) == (1, "")
    assert "only shell tasks" in of_foreign.errors
