"""``run`` and ``resume``: shell tasks in this process, watched until they end."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import attrs
import trio

from .. import (
    RUN_IN_BACKGROUND_PARAM,
    BackgroundCapable,
    BackgroundExecutable,
    BackgroundTaskManager,
    TaskError,
    TaskNotResumable,
    TaskNotStopped,
    TaskRecord,
    TaskStatus,
    ToolCallContext,
    UnknownTask,
)
from .._json import JsonObject
from ..tools import ShellTool
from ._session import (
    OWNER,
    CommandError,
    Session,
    complain,
    ended,
    exit_code,
    find_all,
    forget_notices,
    owned,
)
from ._text import last_line, one_line
from ._views import OwnedTask, is_live, live_grid, say, say_json, show, tasks_grid, tasks_json

_REDRAW_S = 0.25
_TAIL_BYTES = 1000


@attrs.define
class _Begun:
    """A task that this command started, as it was known last, and the last line that it said.

    Once it has ``ended`` nothing of it is read any more: somebody may collect it while others run.
    """

    task: OwnedTask
    last_line: str = ""
    ended: bool = False


@attrs.frozen
class _Starter:
    """Starts tasks, and waits for each from then on."""

    manager: BackgroundTaskManager
    nursery: trio.Nursery
    begun: list[_Begun]

    async def start(self, tool: BackgroundExecutable[None], owner: str, args: JsonObject) -> None:
        """Start, or resume, a task."""
        wrapped = BackgroundCapable(tool, self.manager)
        call = {**args, RUN_IN_BACKGROUND_PARAM: True}
        result = await wrapped.execute(call, ToolCallContext(thread_id=owner))
        if result.is_error:
            raise CommandError(result.message or "the task was not started")
        task_id = result.data["task_id"]
        if result.data["status"] != "running_in_background":
            # Somebody else was faster.
            raise TaskNotStopped(task_id, result.data["status"])
        # It was started in this very step of the loop, so it is live.
        summary = next(s for s in self.manager.live(owner) if s.task_id == task_id)
        begun = _Begun(OwnedTask(owner, summary, summary.created_at_ms))
        self.begun.append(begun)
        self.nursery.start_soon(_wait_for, self.manager, begun)


async def run(session: Session, commands: Sequence[str], *, owner: str, resumable: bool) -> int:
    """Run each command as a background shell task; return when all have ended."""
    tool = ShellTool(supports_resume=resumable)
    # The folder is stored: a resume elsewhere goes on in the same one.
    calls: list[JsonObject] = [{"command": each, "cwd": str(Path.cwd())} for each in commands]
    for args in calls:
        tool.validate_args(args)  # all of them, before the first is started

    async def start(starter: _Starter) -> None:
        for args in calls:
            await starter.start(tool, owner, args)

    return await _see_through(session, start, create=True)


async def resume(session: Session, task_ids: tuple[str, ...]) -> int:
    """Run stopped shell tasks again, all or none; return when they have ended."""
    tool = ShellTool(supports_resume=True)

    async def start(starter: _Starter) -> None:
        records = await find_all(starter.manager, task_ids)
        for record in records:
            _check_resumable(record, tool.task_type)
        for record in records:
            await starter.start(tool, record.owner_thread_id, {"task_id": record.task_id})

    return await _see_through(session, start)


def _check_resumable(record: TaskRecord, task_type: str) -> None:
    if record.task_type != task_type:
        reason = (
            f"it is a {record.task_type} task; only {task_type} tasks can be resumed here, others "
            "by a call of their own tool with the task_id"
        )
        raise TaskNotResumable(record.task_id, reason)
    if record.status is not TaskStatus.STOPPED:
        raise TaskNotStopped(record.task_id, record.status)
    if not record.supports_resume:
        raise TaskNotResumable(record.task_id, "it was not started with --resumable")


# ---- watching ------------------------------------------------------------------------------------


async def _see_through(
    session: Session, start: Callable[[_Starter], Awaitable[None]], *, create: bool = False
) -> int:
    """Start tasks, watch them to their ends, print how they ended, however this is ended."""
    begun: list[_Begun] = []
    try:
        async with session.manager(create=create) as manager:
            try:
                async with trio.open_nursery() as nursery:
                    await start(_Starter(manager, nursery, begun))
                    await _watch(session, manager, begun)
            finally:
                if not _all_ended(begun):
                    complain("stopping")
                else:
                    with trio.CancelScope(shield=True):
                        await _announce(session, manager, begun)
    finally:
        if not _all_ended(begun):
            with trio.CancelScope(shield=True):
                await _read_back(session, begun)
    return exit_code([each.task for each in begun])


async def _watch(session: Session, manager: BackgroundTaskManager, begun: list[_Begun]) -> None:
    if session.json:
        pass  # the summary says it all
    elif is_live():
        await _draw(manager, begun)
    else:
        for each in begun:
            say(f"{one_line(each.task.summary.task_id)}  started")


async def _wait_for(manager: BackgroundTaskManager, begun: _Begun) -> None:
    task = await ended(manager, begun.task)
    line = await _last_line(manager, begun)
    begun.task, begun.last_line, begun.ended = task, line, True


def _all_ended(begun: list[_Begun]) -> bool:
    return all(each.ended for each in begun)


async def _draw(manager: BackgroundTaskManager, begun: list[_Begun]) -> None:
    """Draw the live table until all have ended."""
    from rich.console import Console  # noqa: PLC0415 - slow to import, and for a terminal only
    from rich.live import Live  # noqa: PLC0415

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while not _all_ended(begun):
            for each in begun:
                await _look(manager, each)
            width, height = console.size
            rows = [(each.task, each.last_line) for each in begun]
            live.update(live_grid(rows, width, height).rich(width), refresh=True)
            await trio.sleep(_REDRAW_S)


async def _look(manager: BackgroundTaskManager, begun: _Begun) -> None:
    """Read how a task stands, unless its end is known; one that was collected stays as it was."""
    if begun.ended:
        return
    owner = begun.task.owner_thread_id
    summary = await manager.get(owner, begun.task.summary.task_id)
    if summary is None:
        return
    task, line = await owned(manager, owner, summary), await _last_line(manager, begun)
    if not begun.ended:  # meanwhile
        begun.task, begun.last_line = task, line


async def _last_line(manager: BackgroundTaskManager, begun: _Begun) -> str:
    task = begun.task
    try:
        page = await manager.output(task.owner_thread_id, task.summary.task_id, offset=-_TAIL_BYTES)
    except UnknownTask:
        return begun.last_line
    return last_line(page.text)


# ---- the summary ---------------------------------------------------------------------------------


async def _read_back(session: Session, begun: list[_Begun]) -> None:
    """Announce how tasks ended whose end was not waited for.

    Where that cannot be read they are shown as they were known last, with a warning.
    """
    async with AsyncExitStack() as stack:
        try:
            manager = await stack.enter_async_context(session.manager())
            for each in begun:
                await _look(manager, each)
        except (TaskError, CommandError) as error:
            complain(f"warning: how the tasks ended could not be read: {error}")
            _summarise(session, begun)
        else:
            await _announce(session, manager, begun)


async def _announce(session: Session, manager: BackgroundTaskManager, begun: list[_Begun]) -> None:
    """Print how the tasks ended; that done, acknowledge the notices of the command's own owner.

    Those of another owner may be meant for a program. One that cannot be acknowledged says nothing
    of the tasks: it is a warning.
    """
    _summarise(session, begun)
    if not any(each.task.owner_thread_id == OWNER for each in begun):
        return
    try:
        await forget_notices(manager)
    except TaskError as error:
        complain(f"warning: the notices of owner {OWNER} stay: {error}")


def _summarise(session: Session, begun: list[_Begun]) -> None:
    tasks = [each.task for each in begun]
    if not tasks:
        return  # the first one could not be started
    if session.json:
        say_json(tasks_json(tasks))
        return
    show(tasks_grid(tasks))
    again = [
        shlex.quote(task.summary.task_id)
        for task in tasks
        if task.summary.status is TaskStatus.STOPPED and task.summary.supports_resume
    ]
    if again:
        where = ["--db", shlex.quote(str(session.db.absolute()))] if session.db_named else []
        say(one_line(f"to go on: trio-bgtasks resume {' '.join([*where, *again])}"))
