"""``run`` and ``resume``: shell tasks in this process, watched until they end."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import attrs
import trio

from .. import (
    RUN_IN_BACKGROUND_PARAM,
    BackgroundCapable,
    BackgroundTaskManager,
    TaskNotResumable,
    TaskNotStopped,
    TaskRecord,
    TaskStatus,
    ToolCallContext,
    UnknownTask,
)
from .._json import JsonObject
from ..tools import ShellTool
from ._session import CommandError, Session, complain, exit_code, find_all, owned
from ._text import last_line, one_line
from ._views import OwnedTask, is_live, live_grid, say, say_json, show, tasks_grid, tasks_json

_REDRAW_S = 0.25
_TAIL_BYTES = 1000


@attrs.define
class _Begun:
    """A task that this command started, and the last line that it said.

    ``ended`` is how it stood when it ended: kept, as somebody may collect it while others run.
    """

    owner: str
    task_id: str
    last_line: str = ""
    ended: OwnedTask | None = None


async def run(session: Session, commands: Sequence[str], *, owner: str, resumable: bool) -> int:
    """Run each command as a background shell task; return when all have ended."""

    async def start(manager: BackgroundTaskManager, begun: list[_Begun]) -> None:
        tool = BackgroundCapable(ShellTool(supports_resume=resumable), manager)
        for command in commands:
            # The folder is stored: a resume elsewhere goes on in the same one.
            args: JsonObject = {"command": command, "cwd": str(Path.cwd())}
            await _start(tool, owner, args, begun)

    return await _see_through(session, start)


async def resume(session: Session, task_ids: tuple[str, ...]) -> int:
    """Run stopped shell tasks again, all or none; return when they have ended."""

    async def start(manager: BackgroundTaskManager, begun: list[_Begun]) -> None:
        records = await find_all(manager, task_ids)
        tool = ShellTool(supports_resume=True)
        for record in records:
            _check_resumable(record, tool.task_type)
        wrapped = BackgroundCapable(tool, manager)
        for record in records:
            await _start(wrapped, record.owner_thread_id, {"task_id": record.task_id}, begun)

    return await _see_through(session, start)


def _check_resumable(record: TaskRecord, task_type: str) -> None:
    if record.task_type != task_type:
        reason = f"it is a {record.task_type} task; only {task_type} tasks can be resumed here"
        raise TaskNotResumable(record.task_id, reason)
    if record.status is not TaskStatus.STOPPED:
        raise TaskNotStopped(record.task_id, record.status)
    if not record.supports_resume:
        raise TaskNotResumable(record.task_id, "it was not started with --resumable")


async def _start(
    tool: BackgroundCapable, owner: str, args: JsonObject, begun: list[_Begun]
) -> None:
    call = {**args, RUN_IN_BACKGROUND_PARAM: True}
    tool.validate_args(call)
    result = await tool.execute(call, ToolCallContext(thread_id=owner))
    if result.is_error:
        raise CommandError(result.message or "the task was not started")
    if result.data["status"] != "running_in_background":
        # Somebody else was faster.
        raise TaskNotStopped(result.data["task_id"], result.data["status"])
    begun.append(_Begun(owner, result.data["task_id"]))


# ---- watching ------------------------------------------------------------------------------------


async def _see_through(
    session: Session,
    start: Callable[[BackgroundTaskManager, list[_Begun]], Awaitable[None]],
) -> int:
    """Start tasks, watch them to their ends, print how they ended, however this is ended."""
    begun: list[_Begun] = []
    tasks: list[OwnedTask] = []
    try:
        async with session.manager() as manager:
            try:
                await start(manager, begun)
                await _watch(session, manager, begun)
            finally:
                if not _all_ended(begun):
                    complain("stopping")
    finally:
        with trio.CancelScope(shield=True):
            tasks += await _ends(session, begun)
        _summarise(session, tasks)
    return exit_code(tasks)


async def _watch(session: Session, manager: BackgroundTaskManager, begun: list[_Begun]) -> None:
    async with trio.open_nursery() as nursery:
        for task in begun:
            nursery.start_soon(_wait_for, manager, task)
        if session.json:
            pass  # the summary says it all
        elif is_live():
            await _draw(manager, begun)
        else:
            for task in begun:
                say(f"{one_line(task.task_id)}  started")


async def _wait_for(manager: BackgroundTaskManager, task: _Begun) -> None:
    summary = await manager.wait(task.owner, task.task_id)
    task.last_line = await _last_line(manager, task)
    task.ended = await owned(manager, task.owner, summary)


def _all_ended(begun: list[_Begun]) -> bool:
    return all(task.ended is not None for task in begun)


async def _draw(manager: BackgroundTaskManager, begun: list[_Begun]) -> None:
    """Draw the live table until all have ended."""
    from rich.console import Console  # noqa: PLC0415 - slow to import, and for a terminal only
    from rich.live import Live  # noqa: PLC0415

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while not _all_ended(begun):
            rows = [await _look(manager, task) for task in begun]
            live.update(live_grid(rows, console.height).rich(), refresh=True)
            await trio.sleep(_REDRAW_S)


async def _look(manager: BackgroundTaskManager, task: _Begun) -> tuple[OwnedTask, str]:
    """Return how a task stands, and the last line of its output."""
    if task.ended is not None:
        return task.ended, task.last_line
    return await _read_back(manager, task), await _last_line(manager, task)


async def _last_line(manager: BackgroundTaskManager, task: _Begun) -> str:
    page = await manager.output(task.owner, task.task_id, offset=-_TAIL_BYTES)
    return last_line(page.text)


async def _read_back(manager: BackgroundTaskManager, task: _Begun) -> OwnedTask:
    summary = await manager.get(task.owner, task.task_id)
    if summary is None:
        raise UnknownTask(task.task_id)
    return await owned(manager, task.owner, summary)


# ---- the summary ---------------------------------------------------------------------------------


async def _ends(session: Session, begun: list[_Begun]) -> list[OwnedTask]:
    """Return how the tasks ended; those whose end was not waited for are read back."""
    if _all_ended(begun):
        return [task.ended for task in begun if task.ended is not None]
    async with session.manager() as manager:
        return [task.ended or await _read_back(manager, task) for task in begun]


def _summarise(session: Session, tasks: list[OwnedTask]) -> None:
    if not tasks:
        return  # the first one could not be started
    if session.json:
        say_json(tasks_json(tasks))
        return
    show(tasks_grid(tasks))
    again = [
        shlex.quote(one_line(task.summary.task_id))
        for task in tasks
        if task.summary.status is TaskStatus.STOPPED and task.summary.supports_resume
    ]
    if again:
        say(f"to go on: trio-bgtasks resume {' '.join(again)}")
