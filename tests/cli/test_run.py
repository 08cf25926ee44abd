"""``run`` and ``resume``, with real commands in real processes."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio

from tests.cli.command import Cli
from tests.processes import until
from trio_bgtasks import (
    BackgroundCapable,
    Stopped,
    TaskNotStopped,
    TaskResult,
    UnknownTask,
    background_tool,
    open_task_manager,
)
from trio_bgtasks.cli import _run
from trio_bgtasks.cli._session import CommandError


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


async def test_a_resume_that_comes_too_late_starts_nothing() -> None:
    """The task was resumed by somebody else after it was looked at: the answer names its status."""

    @background_tool(supports_resume=True)
    async def endless() -> None:
        await trio.sleep_forever()

    async with open_task_manager() as manager:
        tool = BackgroundCapable(endless, manager)
        begun: list[_run._Begun] = []
        await _run._start(tool, "me", {}, begun)
        with pytest.raises(TaskNotStopped, match="running"):
            await _run._start(tool, "me", {"task_id": begun[0].task_id}, begun)
        with pytest.raises(CommandError, match="Unknown task"):
            await _run._start(tool, "you", {"task_id": begun[0].task_id}, begun)
        assert len(begun) == 1

        gone = _run._Begun("you", begun[0].task_id)
        with pytest.raises(UnknownTask):
            await _run._look(manager, gone)


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
