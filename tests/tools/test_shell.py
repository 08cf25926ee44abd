"""`ShellTool` in a real manager: what the model is told is true of the processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.processes import PATIENCE_S, Marked, until
from tests.tools.commands import HARD_TO_END, LOSES_ITS_KEEPER
from trio_bgtasks import (
    BackgroundCapable,
    BackgroundTaskManager,
    InvalidArguments,
    ManagerConfig,
    MemoryTaskStore,
    SqliteTaskStore,
    TaskStatus,
    TaskStore,
    TaskSummary,
    ToolCallContext,
    ToolResult,
    open_task_manager,
)
from trio_bgtasks.tools import ShellTool

OWNER = "thread-1"
RESULT = {"exit_code", "signal", "duration_s", "output_bytes", "output_truncated"}
CTX = ToolCallContext(thread_id=OWNER)
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("marked")


@pytest.fixture(params=["memory", "sqlite"])
async def task_store(
    request: pytest.FixtureRequest, marked: Marked, tmp_path: Path
) -> AsyncIterator[TaskStore]:
    """Each of the stores; closed before the processes and descriptors are counted."""
    assert not marked.alive()
    if request.param == "memory":
        yield MemoryTaskStore()
    else:
        async with SqliteTaskStore.open(tmp_path / "tasks.db") as store:
            yield store


class Shell:
    """A shell tool in a manager, as a model and its host see it."""

    def __init__(self, manager: BackgroundTaskManager, **options: Any) -> None:
        self.manager = manager
        self.tool = BackgroundCapable(ShellTool(**{"grace_s": 0.3, **options}), manager)

    async def start(self, command: str, **args: Any) -> str:
        """Start a command in the background; return the task's id."""
        result = await self.run(command, run_in_background=True, **args)
        assert result.data["status"] == "running_in_background"
        return str(result.data["task_id"])

    async def run(self, command: str, **args: Any) -> ToolResult:
        """Call the tool, in the foreground if not told otherwise."""
        call = {"command": command, **args}
        self.tool.validate_args(call)
        with trio.fail_after(PATIENCE_S):
            return await self.tool.execute(call, CTX)

    async def ended(self, task_id: str) -> TaskSummary:
        """Wait for the end of a task."""
        with trio.fail_after(PATIENCE_S):
            return await self.manager.wait(OWNER, task_id)

    async def log(self, task_id: str) -> str:
        """Read the task's output."""
        return (await self.manager.output(OWNER, task_id)).text

    async def logged(self, task_id: str, text: str) -> None:
        """Wait until the output has a text."""
        with trio.fail_after(PATIENCE_S):
            while text not in await self.log(task_id):
                await trio.sleep(0.005)


@pytest.fixture
async def shell(task_store: TaskStore) -> AsyncIterator[Shell]:
    """A shell tool in a manager on each of the stores."""
    async with open_task_manager(task_store) as manager:
        yield Shell(manager)


# ---- how tasks end -----------------------------------------------------------------------------


async def test_a_command_that_succeeds_is_completed(shell: Shell) -> None:
    """The result has exactly the promised keys; stdout and stderr are one log."""
    task_id = await shell.start("echo out; echo err >&2", description="says things")
    task = await shell.ended(task_id)
    assert task.status is TaskStatus.COMPLETED
    assert task.error is None
    assert isinstance(task.result, dict)
    assert task.result.pop("duration_s") >= 0
    assert task.result == {
        "exit_code": 0,
        "signal": None,
        "output_bytes": 8,
        "output_truncated": False,
    }
    assert await shell.log(task_id) == "out\nerr\n"
    assert task.description == "says things (background)"


@pytest.mark.parametrize(
    ("command", "args", "error", "ended_with"),
    [
        ("echo no; exit 3", {}, "exit code 3", (3, None, 3)),
        ("no-such-command 2>/dev/null", {}, "exit code 127", (127, None, 0)),
        ("kill -9 $$", {}, "signal 9", (None, 9, 0)),
        ("echo hi; exec sleep 1000", {"timeout_s": 0.3}, "within 0.3 s", (None, 15, 3)),
        ("echo hi", {"timeout_s": 1e-9}, "within 1e-09 s", (None, None, 0)),
        ("trap 'exit 0' TERM; sleep 1000 & wait", {"timeout_s": 0.3}, "within", (0, None, 0)),
    ],
    ids=[
        *("exit code", "not found", "signal", "timeout"),
        *("timeout at once", "timeout that exits with 0"),
    ],
)
async def test_any_other_end_is_failed_and_says_why(
    shell: Shell,
    command: str,
    args: dict[str, Any],
    error: str,
    ended_with: tuple[int | None, int | None, int],
) -> None:
    """The error names code, signal or time; the result is kept all the same."""
    task = await shell.ended(await shell.start(command, **args))
    assert task.status is TaskStatus.FAILED
    assert error in (task.error or "")
    assert isinstance(task.result, dict)
    assert set(task.result) == RESULT
    assert tuple(task.result[key] for key in ("exit_code", "signal", "output_bytes")) == ended_with


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ({"cwd": "/no/such"}, "cwd '/no/such': No such file or directory"),
        ({"env": {"A=B": "c"}}, "env: 'A=B' cannot be the name of a variable"),
    ],
)
async def test_a_command_that_cannot_be_started_is_failed(
    shell: Shell, args: dict[str, Any], error: str
) -> None:
    """The error is about the argument, not about our machinery; the result has all its keys."""
    task = await shell.ended(await shell.start("echo hi", **args))
    assert (task.status, task.error) == (TaskStatus.FAILED, error)
    assert isinstance(task.result, dict)
    assert task.result.pop("duration_s") >= 0
    assert task.result == {
        "exit_code": None,
        "signal": None,
        "output_bytes": 0,
        "output_truncated": False,
    }


async def test_a_lost_keeper_is_a_failure(shell: Shell, caplog: pytest.LogCaptureFixture) -> None:
    """When nobody knows how a command ended, its task does not pretend to, and a warning is logged."""
    task_id = await shell.start("printf '\\377'; kill -9 $PPID; sleep 1000")
    task = await shell.ended(task_id)
    assert task.status is TaskStatus.FAILED
    assert "keeper process was killed from outside" in (task.error or "")
    assert isinstance(task.result, dict)
    assert set(task.result) == RESULT
    ended_with = (task.result[key] for key in ("exit_code", "signal", "output_bytes"))
    assert tuple(ended_with) == (None, None, 1)
    (warning,) = [record for record in caplog.records if record.name == "trio_bgtasks.tools"]
    assert warning.levelname == "WARNING"
    assert task_id in warning.getMessage()
    fields = {name: vars(warning)[name] for name in ("task_id", "owner_thread_id", "attempt")}
    assert fields == {"task_id": task_id, "owner_thread_id": OWNER, "attempt": 1}


async def test_a_lost_keeper_is_told_of_a_cancelled_task_too(shell: Shell, marked: Marked) -> None:
    """A cancelled task of which something may still run says so in its error."""
    task_id = await shell.start(LOSES_ITS_KEEPER)
    await shell.logged(task_id, "ready")
    await shell.manager.cancel(OWNER, task_id)
    task = await shell.ended(task_id)
    assert task.status is TaskStatus.CANCELLED
    assert "may still run" in (task.error or "")
    marked.kill()


async def test_a_command_in_the_background_of_its_shell_is_not_completed(
    shell: Shell, tmp_path: Path
) -> None:
    """`nohup ... & echo hi` is running until its last process has ended."""
    command = f"nohup sh -c 'while [ ! -e {tmp_path}/go-on ]; do sleep 0.02; done' & echo hi"
    task_id = await shell.start(command)
    await shell.logged(task_id, "hi\n")
    task = await shell.manager.get(OWNER, task_id)
    assert task is not None
    assert task.status is TaskStatus.RUNNING
    (tmp_path / "go-on").touch()
    assert (await shell.ended(task_id)).status is TaskStatus.COMPLETED


# ---- arguments ---------------------------------------------------------------------------------


async def test_runs_where_and_as_told(shell: Shell, tmp_path: Path) -> None:
    """``cwd`` and ``env`` reach the command; the host's environment is under them."""
    (tmp_path / "here").mkdir()
    command = 'pwd; echo "$NAME"; test -n "$PATH" && test -n "$TRIO_BGTASKS_TEST_MARK"; cat'
    task_id = await shell.start(command, cwd=str(tmp_path / "here"), env={"NAME": "ä b"})
    task = await shell.ended(task_id)
    assert task.status is TaskStatus.COMPLETED
    assert await shell.log(task_id) == f"{tmp_path}/here\nä b\n"


async def test_the_host_may_give_shell_and_environment(task_store: TaskStore) -> None:
    """With ``env`` a command sees those variables, those of its call, and no other."""
    async with open_task_manager(task_store) as manager:
        shell = Shell(manager, env={"A": "1", "B": "2"}, shell=sys.executable)
        code = "import os; print({name: os.environ.get(name) for name in ('A', 'B', 'HOME')})"
        task_id = await shell.start(code, env={"B": "3"})
        await shell.ended(task_id)
        assert await shell.log(task_id) == "{'A': '1', 'B': '3', 'HOME': None}\n"


@pytest.mark.parametrize(
    ("args", "path"),
    [
        ({}, "command"),
        ({"command": ""}, "$.command"),
        ({"command": 1}, "$.command"),
        ({"command": "true", "cwd": 1}, "$.cwd"),
        ({"command": "true", "env": {"A": 1}}, "$.env.A"),
        ({"command": "true", "env": ["A"]}, "$.env"),
        ({"command": "true", "timeout_s": 0}, "$.timeout_s"),
        ({"command": "true", "timeout_s": "1"}, "$.timeout_s"),
        ({"command": "true", "shell": "/bin/sh"}, "shell"),
        ({"command": "echo \0"}, "command"),
    ],
)
def test_bad_arguments_are_refused(args: dict[str, Any], path: str) -> None:
    """Each is named by its path, before anything is stored or run."""
    with pytest.raises(InvalidArguments) as raised:
        ShellTool().validate_args(args)
    assert path in str(raised.value)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"supports_resume": 1}, TypeError),
        ({"shell": ""}, TypeError),
        ({"shell": None}, TypeError),
        ({"grace_s": "3"}, TypeError),
        ({"grace_s": True}, TypeError),
        ({"grace_s": -1}, ValueError),
        ({"grace_s": float("inf")}, ValueError),
        ({"grace_s": float("nan")}, ValueError),
        ({"grace_s": 10**400}, ValueError),
        ({"grace_s": 10**5000}, ValueError),
        ({"shell": "a\0b"}, ValueError),
        ({"shell": "\ud800"}, ValueError),
        ({"env": 5}, TypeError),
        ({"env": []}, TypeError),
        ({"env": ["A"]}, TypeError),
        ({"env": {"A": 1}}, TypeError),
        ({"env": {1: "a"}}, TypeError),
        ({"env": {"A=": "x"}}, ValueError),
        ({"env": {"": "x"}}, ValueError),
        ({"env": {"A": "\0"}}, ValueError),
        ({"env": {"A": "\ud800"}}, ValueError),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    """A tool that could not work is not made; the error names the option."""
    with pytest.raises(error, match=next(iter(options))):
        ShellTool(**options)


async def test_only_a_resumable_tool_takes_a_task_id(shell: Shell) -> None:
    """``task_id`` is in the schema of a tool whose commands can be run again."""
    resumable = Shell(shell.manager, supports_resume=True)
    once_only = shell.tool.descriptor().parameters["properties"]
    assert isinstance(once_only, dict)
    again = resumable.tool.descriptor().parameters["properties"]
    assert isinstance(again, dict)
    assert set(again) - set(once_only) == {"task_id"}
    assert repr(ShellTool(shell="/bin/ksh")) == "<ShellTool /bin/ksh>"


# ---- output ------------------------------------------------------------------------------------


async def test_output_can_be_read_while_the_command_runs(shell: Shell) -> None:
    """What a command writes is readable within 0.1 s: the median of ten lines in a row.

    On a busy machine it takes more than ten lines until ten in a row had their share of it.
    """
    task_id = await shell.start("while :; do date +%s.%N; sleep 0.15; done")
    delays: list[float] = []
    with trio.fail_after(PATIENCE_S):
        while len(delays) < 10 or statistics.median(delays[-10:]) > 0.1:
            lines = (await shell.log(task_id)).splitlines()
            delays += [time.time() - float(line) for line in lines[len(delays) :]]
            await trio.sleep(0.002)
    await shell.manager.cancel(OWNER, task_id)


async def test_a_flood_of_output_is_capped(task_store: TaskStore) -> None:
    """The newest output is kept, what was dropped is counted, and the result says so."""
    config = ManagerConfig(output_bytes=20_000)
    async with open_task_manager(task_store, config=config) as manager:
        shell = Shell(manager)
        task_id = await shell.start("yes 0123456789 | head -c 5000000; echo; echo the end")
        task = await shell.ended(task_id)
        page = await manager.output(OWNER, task_id, offset=-9)
        assert isinstance(task.result, dict)
        assert task.result["output_bytes"] == page.total_bytes == 5_000_009
        assert task.result["output_truncated"] is True
        assert page.text == "\nthe end\n"
        assert page.dropped_bytes >= 4_980_009


async def test_any_bytes_can_be_stored(shell: Shell) -> None:
    """Binary output, NUL included, does not fail the task."""
    task_id = await shell.start("head -c 200000 /dev/urandom; printf 'a\\000b\\377c'")
    task = await shell.ended(task_id)
    assert task.status is TaskStatus.COMPLETED
    page = await shell.manager.output(OWNER, task_id, offset=-9)
    assert page.text == "a\ufffdb\ufffdc"


# ---- cancel, close, shutdown -------------------------------------------------------------------


@pytest.mark.parametrize("command", HARD_TO_END.values(), ids=HARD_TO_END.keys())
async def test_cancelled_means_gone(shell: Shell, marked: Marked, command: str) -> None:
    """When the status says cancelled, no process of the command is alive."""
    task_id = await shell.start(command)
    await shell.logged(task_id, "ready")
    await shell.manager.cancel(OWNER, task_id)
    task = await shell.ended(task_id)
    assert task.status is TaskStatus.CANCELLED
    assert not marked.alive()


async def test_last_words_of_a_cancelled_command_are_kept(shell: Shell) -> None:
    """What a command writes while it is ended is in the log."""
    task_id = await shell.start("trap 'echo bye; exit' TERM; echo ready; sleep 1000 & wait")
    await shell.logged(task_id, "ready")
    await shell.manager.cancel(OWNER, task_id)
    await shell.ended(task_id)
    assert (await shell.log(task_id)).endswith("bye\n")


async def test_a_closed_owner_has_no_processes(shell: Shell, marked: Marked) -> None:
    """After ``close_owner`` its commands are stopped and gone."""
    task_id = await shell.start("setsid sleep 1000 & echo ready; wait")
    await shell.logged(task_id, "ready")
    await shell.manager.close_owner(OWNER)
    assert not marked.alive()
    assert (await shell.ended(task_id)).status is TaskStatus.STOPPED


async def test_a_closed_manager_has_no_processes(task_store: TaskStore, marked: Marked) -> None:
    """When the manager has closed nothing is left; a second one runs the command again."""
    async with open_task_manager(task_store) as manager:
        shell = Shell(manager, supports_resume=True)
        task_id = await shell.start("echo attempt; sleep $NAP", env={"NAP": "1000"})
        await shell.logged(task_id, "attempt")
    assert not marked.alive()
    async with open_task_manager(task_store) as manager:
        shell = Shell(manager, supports_resume=True)
        stopped = await manager.get(OWNER, task_id)
        assert stopped is not None
        assert stopped.status is TaskStatus.STOPPED
        call = {"task_id": task_id, "env": {"NAP": "0"}, "run_in_background": True}
        await shell.tool.execute(call, CTX)
        task = await shell.ended(task_id)
        assert (task.status, task.attempt) == (TaskStatus.COMPLETED, 2)
        assert await shell.log(task_id) == "attempt\nattempt\n"


# ---- foreground --------------------------------------------------------------------------------


async def test_in_the_foreground_the_caller_gets_the_result(shell: Shell) -> None:
    """A foreground command answers with its result, a failed one with an error that names it."""
    result = await shell.run("echo hi")
    assert result.is_success
    assert result.data["exit_code"] == 0
    result = await shell.run("exit 4")
    assert result.is_error
    assert "exit code 4" in (result.message or "")


async def test_a_foreground_command_ends_with_its_caller(shell: Shell, marked: Marked) -> None:
    """A caller that is cancelled leaves no process, and the task is stopped."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shell.run, "setsid sleep 1000 & sleep 1000")
        await until(lambda: len(marked.numbers("sleep 1000")) >= 3)
        nursery.cancel_scope.cancel()
    assert not marked.alive()
    (task,) = await shell.manager.list_tasks(OWNER)
    assert task.status is TaskStatus.STOPPED


# ---- the death of the runtime ------------------------------------------------------------------


def a_runtime(database: Path, command: str) -> subprocess.Popen[bytes]:
    """Start a second process that runs a command as a task (see shell_runtime.py)."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tools.shell_runtime", database, command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    "name", ["plain", "daemon: double fork, own session, ignores TERM", "nohup", "stopped"]
)
async def test_a_killed_runtimes_task_is_no_orphan_before_its_processes_are_gone(
    marked: Marked, tmp_path: Path, name: str
) -> None:
    """After -9 the task is running until the last process has ended, then at once stopped.

    It can then be run again, by another runtime.
    """
    database = tmp_path / "tasks.db"
    runtime = a_runtime(database, HARD_TO_END[name])
    assert runtime.stdout is not None
    task_id = runtime.stdout.readline().split()[1].decode()
    async with (
        SqliteTaskStore.open(database) as store,
        open_task_manager(store) as manager,
    ):
        shell = Shell(manager, supports_resume=True)
        await shell.logged(task_id, "ready")
        runtime.kill()
        runtime.wait()
        runtime.stdout.close()
        with trio.fail_after(PATIENCE_S):
            while True:
                task = await manager.get(OWNER, task_id)
                alive = marked.alive()  # asked after the store
                assert task is not None
                if task.status is not TaskStatus.RUNNING:
                    break
                await trio.sleep(0.005)
        assert task.status is TaskStatus.STOPPED
        assert not alive
        await shell.start("echo again", task_id=task_id)
        assert (await shell.ended(task_id)).status is TaskStatus.COMPLETED
