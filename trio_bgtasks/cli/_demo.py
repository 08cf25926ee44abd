"""``demo``: the whole story with real processes. Only its headings are fixed text.

Every id, status, attempt, checkpoint, result and line of output that it prints was read back from
the store, and so was the time that an ended task took; the time of a running one is counted on this
process's clock. Whether a process lives was read from the system.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from .. import (
    RUN_IN_BACKGROUND_PARAM,
    BackgroundCapable,
    BackgroundTaskManager,
    TaskRecord,
    TaskStatus,
    ToolCallContext,
)
from .._json import JsonObject
from .._lifecycle import ORPHAN_ERROR
from ..tools import ShellTool
from ._demo_worker import GOAL
from ._session import CommandError, Exit, Session, execute, find, owned
from ._text import one_line
from ._views import Grid, journal_grid, say, show, tasks_grid

_OWNER = "demo"
_MARK = "TRIO_BGTASKS_DEMO"
_KILL_AFTER = 6
_PATIENCE_S = 60.0
_LOOK_S = 0.05
_PROC = Path("/proc")

_LINES = "for n in 1 2 3 4 5 6 7 8; do echo line $n; sleep 0.4; done"
_TREE = """
echo shell $$
sleep 300 & echo child $!
nohup sleep 300 >/dev/null 2>&1 & echo nohup $!
(trap '' TERM; while :; do sleep 1; done) & echo ignores-TERM $!
"""
_OWN_SESSION = "setsid sleep 300 & echo own-session $!\n"  # found again on Linux only


def demo() -> int:
    """Tell the story in a database of its own and leave nothing behind; 1 if it does not hold."""
    with tempfile.TemporaryDirectory(prefix="trio-bgtasks-demo-") as folder:
        database = Path(folder) / "tasks.db"
        return execute(_story, db=database, json=False, log_level=logging.ERROR)


async def _story(session: Session) -> int:
    async with session.manager(create=True) as manager:
        stage = _Stage(session.db, manager)
        await _background(stage)
        await _cancel(stage)
        await _crash(stage)
        _heading("Every task of this story, as it is stored now")
        summaries = await manager.list_tasks(_OWNER)
        show(tasks_grid([await owned(manager, _OWNER, summary) for summary in summaries]))
    return Exit.COMPLETED


# ---- scenes --------------------------------------------------------------------------------------


async def _background(stage: _Stage) -> None:
    _heading("A shell command is started in the background: its id is there at once")
    task_id = await stage.shell({"command": _LINES})
    record = await stage.show(task_id)
    _check(record.status is TaskStatus.RUNNING, "it runs when its start is answered")

    _heading("Its output is read while it runs")
    while_running = await stage.relay(task_id, lambda _: False)
    record = await stage.show(task_id)
    _check(record.status is TaskStatus.COMPLETED, "it completed")
    _check(while_running > 1, "its output is there while it runs")
    _check(len(await stage.lines(task_id)) == 8, "all of its output is stored")


async def _cancel(stage: _Stage) -> None:
    _heading("A tree of processes is started; some of them will not end when asked to")
    script = _TREE + (_OWN_SESSION if sys.platform == "linux" and shutil.which("setsid") else "")
    mark = uuid.uuid4().hex
    task_id = await stage.shell(
        {"command": script + "wait", "env": {_MARK: mark}, "description": "a process tree"}
    )
    await stage.show(task_id)

    async def started() -> bool:
        return len(await stage.lines(task_id)) == script.count("echo")

    await _until(started, "the processes are started")
    processes = {int(pid): name for name, pid in map(str.split, await stage.lines(task_id))}
    living = _living(mark, processes)
    _show_processes(processes, living)
    _check(processes.keys() <= living, "all of them live")

    _heading("It is cancelled: all of them are gone when its status says so")
    await stage.manager.cancel_tree(_OWNER, task_id)
    await stage.manager.wait(_OWNER, task_id)
    living = _living(mark, processes)
    record = await stage.show(task_id)
    _show_processes(processes, living)
    _check(record.status is TaskStatus.CANCELLED, "it is cancelled")
    _check(not living, "no process of it is left")


async def _crash(stage: _Stage) -> None:
    _heading("A second process counts, with a checkpoint after each number")
    async with _worker(stage.database) as process:
        task_id = await _task_of(stage, process)
        await stage.show(task_id)
        await stage.relay(task_id, lambda record: (record.checkpoint or 0) >= _KILL_AFTER)

        _heading("That process is killed with -9; its orphan is found at the first look")
        process.kill()
        await process.wait()
        stopped = await stage.show(task_id)
    checkpoint = stopped.checkpoint
    say(f"error: {one_line(stopped.error or '')}")
    say(f"checkpoint: {checkpoint}")
    _check(process.returncode == -signal.SIGKILL, "the process was killed")
    _check(stopped.status is TaskStatus.STOPPED, "the orphan is stopped")
    _check(stopped.error == ORPHAN_ERROR, "it was found to be an orphan")
    _check(_KILL_AFTER <= checkpoint < GOAL, "its checkpoint is there")

    _heading("A third process resumes it, from that checkpoint to its end")
    async with _worker(stage.database, task_id) as process:
        await _until_resumed(stage, task_id, process)
        await stage.relay(task_id, lambda _: False, offset=stopped.output_bytes)
    completed = await stage.show(task_id)
    say(f"result: {json.dumps(completed.result)}")
    _check(completed.status is TaskStatus.COMPLETED, "it completed")
    _check(completed.attempt == 2, "its second attempt did")
    counted = {"counted_to": GOAL, "began_after": checkpoint}
    _check(completed.result == counted, "it went on from its checkpoint and counted to the end")

    _heading("Its history")
    show(journal_grid(await stage.manager.history(_OWNER, task_id)))


# ---- what the scenes are made of -----------------------------------------------------------------


@attrs.frozen
class _Stage:
    """The first process of the story: its database, and the manager through which it looks."""

    database: Path
    manager: BackgroundTaskManager

    async def shell(self, args: JsonObject) -> str:
        """Start a shell task in the background; return its id."""
        tool = BackgroundCapable(ShellTool(grace_s=1.0), self.manager)
        call = {**args, RUN_IN_BACKGROUND_PARAM: True}
        result = await tool.execute(call, ToolCallContext(thread_id=_OWNER))
        _check(result.is_success, f"it was started: {result.message}")
        return str(result.data["task_id"])

    async def record(self, task_id: str) -> TaskRecord:
        """Read a task."""
        return await find(self.manager, task_id)

    async def show(self, task_id: str) -> TaskRecord:
        """Read a task and print how it stands."""
        record = await self.record(task_id)
        task = await owned(self.manager, _OWNER, record.summary())
        show(attrs.evolve(tasks_grid([task]), header=False))
        return record

    async def lines(self, task_id: str, offset: int = 0) -> list[str]:
        """Read the whole lines of output from byte ``offset``."""
        page = await self.manager.output(_OWNER, task_id, offset=offset)
        return page.text.split("\n")[:-1]

    async def relay(
        self, task_id: str, enough: Callable[[TaskRecord], bool], *, offset: int = 0
    ) -> int:
        """Print output as it comes, until there is ``enough`` or the attempt ended.

        Returns how many lines of it were read while the task was running.
        """
        while_running = 0
        with trio.move_on_after(_PATIENCE_S):
            while True:
                record = await self.record(task_id)
                running = record.status is TaskStatus.RUNNING
                for line in await self.lines(task_id, offset):
                    say(f"{record.status.value}  {one_line(line)}")
                    offset += len(line.encode()) + 1
                    while_running += running
                if not running or enough(record):
                    return while_running
                await trio.sleep(_LOOK_S)
        raise CommandError(f"the demo failed, this takes too long: {task_id}")


@asynccontextmanager
async def _worker(database: Path, *task_id: str) -> AsyncGenerator[trio.Process, None]:
    """Run another process of the story; it does not outlive the block."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", f"{__package__}._demo_worker", str(database), _OWNER, *task_id],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is for us alone
    )
    try:
        yield process
        with trio.fail_after(_PATIENCE_S):
            await process.wait()
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()


async def _task_of(stage: _Stage, process: trio.Process) -> str:
    """Return the id of the task that another process starts."""
    known = {summary.task_id for summary in await stage.manager.list_tasks(_OWNER)}
    found: list[str] = []

    async def started() -> bool:
        lived = process.poll() is None
        summaries = await stage.manager.list_tasks(_OWNER)
        found.extend(s.task_id for s in summaries if s.task_id not in known)
        _check(found or lived, "the process lives")
        return bool(found)

    await _until(started, "the process starts its task")
    return found[0]


async def _until_resumed(stage: _Stage, task_id: str, process: trio.Process) -> None:
    async def resumed() -> bool:
        lived = process.poll() is None  # before the look: it may end well just after it
        attempt = (await stage.record(task_id)).attempt
        _check(attempt == 2 or lived, "the process lives")
        return attempt == 2

    await _until(resumed, "the process resumes the task")


def _heading(text: str) -> None:
    say(f"\n== {text}")


def _check(holds: object, what: str) -> None:
    if not holds:
        raise CommandError(f"the demo failed, this does not hold: {what}")


async def _until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    with trio.move_on_after(_PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - another process makes it true
            await trio.sleep(_LOOK_S)
        return
    raise CommandError(f"the demo failed, this takes too long: {what}")


# ---- processes -----------------------------------------------------------------------------------


def _living(mark: str, expected: Mapping[int, str]) -> set[int]:
    """Return the living processes of the tree, found by what they inherited.

    Where there is no ``/proc``: those of the ``expected`` ones that can be signalled.
    """
    if not _PROC.is_dir():
        return {pid for pid in expected if _answers(pid)}
    found: set[int] = set()
    entry = f"{_MARK}={mark}".encode()
    for process in _PROC.iterdir():
        try:
            if process.name.isdigit() and entry in (process / "environ").read_bytes().split(b"\0"):
                found.add(int(process.name))
        except OSError:
            continue  # it ended just now, or is somebody else's
    return found


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _show_processes(processes: Mapping[int, str], living: set[int]) -> None:
    rows = [
        (str(pid), name, "alive" if pid in living else "gone") for pid, name in processes.items()
    ]
    show(Grid(("pid", "name", "state"), rows, header=False))
