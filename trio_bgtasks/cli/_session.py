"""What every command runs in: one Trio run, one store, signals, exit codes, one line per error."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import TypeAlias

import attrs
import trio

from .. import (
    BackgroundTaskManager,
    ManagerConfig,
    SqliteTaskStore,
    TaskError,
    TaskRecord,
    TaskStatus,
    TaskSummary,
    ToolError,
    UnknownTask,
    open_task_manager,
)
from .._outcome import leaves
from ._text import one_line
from ._views import OwnedTask

ENV_DB = "TRIO_BGTASKS_DB"

OWNER = "cli"
"""Who owns the tasks of `run`, unless another owner is named."""

# Somebody waits at a terminal: what other processes did is seen soon.
_CONFIG = ManagerConfig(poll_s=0.5)


class Exit(IntEnum):
    """The exit codes; a signal's is 128 and its number."""

    COMPLETED = 0
    OTHER = 1
    USAGE = 2
    UNKNOWN_TASK = 3
    SIGNAL = 128


class CommandError(Exception):
    """The command cannot do what it was asked for; the text says why, in one line."""


class UsageError(CommandError):
    """The command line is not one."""


@attrs.frozen
class Session:
    """What a command works with, for as long as it runs.

    ``db_named``: the path of the database was an option, not the environment's or the default.
    """

    db: Path
    json: bool
    db_named: bool = False

    def check_database(self) -> None:
        """Raise `CommandError` if there is no database: a wrong path is not made into one."""
        if not self.db.exists():
            raise CommandError(f"there is no database at {self.db}")

    @asynccontextmanager
    async def manager(self, *, create: bool = False) -> AsyncGenerator[BackgroundTaskManager, None]:
        """Open the store and a manager on it; with ``create`` also where there is no database."""
        if not create:
            self.check_database()
        async with (
            SqliteTaskStore.open(self.db) as store,
            open_task_manager(store, config=_CONFIG) as manager,
        ):
            yield manager


Command: TypeAlias = Callable[[Session], Awaitable[int]]


def database(option: Path | None) -> Path:
    """Return the path of the database: the option, the environment's, the platform's."""
    if option is not None:
        return option
    if named := os.environ.get(ENV_DB):
        return Path(named)
    from platformdirs import user_state_path  # noqa: PLC0415 - not needed when it is named

    return user_state_path("trio_bgtasks", appauthor=False) / "tasks.db"


def execute(
    command: Command, *, db: Path | None, json: bool, log_level: int = logging.WARNING
) -> int:
    """Run ``command`` to its end, or to the first SIGINT or SIGTERM; return the exit code.

    A signal cancels the command, which then cleans up; further ones change nothing. An error of
    the clean-up is said, and the exit code is the signal's all the same.
    """
    _log_to_stderr(log_level)
    session = Session(database(db), json, db_named=db is not None)
    return trio.run(_serve, command, session)


async def _serve(command: Command, session: Session) -> int:
    scope = trio.CancelScope()
    code: int = Exit.OTHER
    failure: Exception | None = None
    first: list[int] = []
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as arriving:
        async with trio.open_nursery() as nursery:

            async def obey() -> None:
                async for number in arriving:
                    first.append(number)
                    scope.cancel(reason=f"signal {number}")

            nursery.start_soon(obey)
            try:
                with scope:
                    code = await command(session)
            except Exception as error:  # noqa: BLE001 - raised below, not in a group
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        cause = leaves(failure)[0]  # a command's nursery wraps it in a group
        if not first or isinstance(cause, BrokenPipeError):
            raise cause
        complain(said(cause))
        return Exit.SIGNAL + first[0]
    return Exit.SIGNAL + first[0] if scope.cancelled_caught else code


class _StderrHandler(logging.Handler):
    """Warnings of the library, with their tracebacks, wherever standard error is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(f"{record.levelname.lower()}: {record.getMessage()}")
        if record.exc_info:
            for line in "".join(traceback.format_exception(*record.exc_info)).splitlines():
                complain(line)


def _log_to_stderr(level: int) -> None:
    library = logging.getLogger("trio_bgtasks")
    library.handlers = [_StderrHandler(level)]
    library.propagate = False


def complain(text: str) -> None:
    """Print one line to standard error."""
    print(f"trio-bgtasks: {one_line(text)}", file=sys.stderr, flush=True)  # noqa: T201


def said(error: BaseException) -> str:
    """Return what to say of an error; one that is none of ours is named with its kind."""
    if isinstance(error, TaskError | ToolError | CommandError):
        return str(error)
    return f"{type(error).__name__}: {error}"


# ---- tasks ---------------------------------------------------------------------------------------


async def find(manager: BackgroundTaskManager, task_id: str) -> TaskRecord:
    """Return the task of whatever owner; raise `UnknownTask` when there is none."""
    record = await manager.find(task_id)
    if record is None:
        raise UnknownTask(task_id)
    return record


async def find_all(manager: BackgroundTaskManager, task_ids: tuple[str, ...]) -> list[TaskRecord]:
    """Return these tasks, each once; if one is unknown, nothing was done to any."""
    return [await find(manager, task_id) for task_id in dict.fromkeys(task_ids)]


async def owned(
    manager: BackgroundTaskManager, owner_thread_id: str, summary: TaskSummary
) -> OwnedTask:
    """Return what the views need of a task."""
    began_ms = summary.created_at_ms
    if summary.attempt > 1:
        with suppress(UnknownTask):  # collected meanwhile, its journal too
            journal = await manager.history(owner_thread_id, summary.task_id)
            began_ms = max(e.at_ms for e in journal if e.kind in ("registered", "attempt_started"))
    return OwnedTask(owner_thread_id, summary, began_ms)


async def ended(manager: BackgroundTaskManager, task: OwnedTask) -> OwnedTask:
    """Wait until the task is not running; return how it stands then.

    One that somebody collected before its end was seen stays as it was known last, with a warning.
    """
    owner, task_id = task.owner_thread_id, task.summary.task_id
    try:
        summary = await manager.wait(owner, task_id)
    except UnknownTask:
        complain(f"warning: {task_id} was collected before its end was seen")
        return task
    return await owned(manager, owner, summary)


async def forget_notices(manager: BackgroundTaskManager) -> None:
    """Acknowledge all notices of the command's own owner, which nobody else would ever read."""
    while await manager.take_notices(OWNER):
        pass


def exit_code(tasks: list[OwnedTask]) -> int:
    """Return 0 if all of them are completed, else 1."""
    completed = all(task.summary.status is TaskStatus.COMPLETED for task in tasks)
    return Exit.COMPLETED if completed else Exit.OTHER
