"""The command line: every command, its arguments, its help, its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import attrs
from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import mutually_exclusive

from .. import InvalidArguments, UnknownTask
from .._json import check_id
from ._session import OWNER, Command, Exit, UsageError, complain, execute, said

# Each command loads what it needs when it runs: most of them only look, and are to be quick.
# ruff: noqa: PLC0415

app = App(
    name="trio-bgtasks",
    help="Run shell commands as background tasks; see, follow, cancel and resume every task.",
    help_epilogue=(
        "Exit codes: 0 all completed, 1 any other end or an error, 2 usage, 3 unknown task, "
        "130 and 143 after SIGINT and SIGTERM."
    ),
    version=lambda: version("trio-bgtasks"),
    result_action="return_value",
)


def _check_id(_: Any, value: str | Sequence[str]) -> None:
    for text in [value] if isinstance(value, str) else value:
        check_id(text, "it")


TaskId = Annotated[str, Parameter(validator=_check_id)]
Owner = Annotated[str, Parameter(validator=_check_id)]
Flag = Annotated[bool, Parameter(negative=())]

# Whoever names an owner does not mean every one's, least of all to delete.
_WHOSE = Parameter(group=("Parameters", Group(show=False, validator=mutually_exclusive)))
OneOwner = Annotated[Owner, _WHOSE]
EveryOwner = Annotated[Flag, _WHOSE]


@Parameter(name="*")
@attrs.frozen
class Where:
    """What every command takes.

    Args:
        db: The database file. Default: $TRIO_BGTASKS_DB, else one in your state folder.
        json: Print JSON.
    """

    db: Path | None = None
    json: Flag = False

    def execute(self, command: Command) -> int:
        """Run the command on this database."""
        return execute(command, db=self.db, json=self.json)


HERE = Where()


@app.command
def run(
    command: str,
    /,
    *commands: str,
    resumable: Flag = False,
    owner: Owner = OWNER,
    where: Where = HERE,
) -> int:
    """Run shell commands as background tasks, side by side, and watch them until all have ended.

    SIGINT and SIGTERM stop them.

    Args:
        command: A command for /bin/sh, in one argument; behind `--` if it begins with `-`.
        commands: More of them.
        resumable: Those that are stopped may be run again with `resume`.
        owner: Who owns the tasks.
    """
    from ._run import run

    every = (command, *commands)
    return where.execute(partial(run, commands=every, owner=owner, resumable=resumable))


@app.command
def ls(*, owner: OneOwner = OWNER, all: EveryOwner = False, where: Where = HERE) -> int:  # noqa: A002
    """List tasks in order of creation.

    Args:
        owner: Whose tasks.
        all: Those of every owner.
    """
    from ._look import ls

    return where.execute(partial(ls, owner=None if all else owner))


@app.command
def show(task_id: TaskId, /, *, where: Where = HERE) -> int:
    """Show a task and its history.

    Args:
        task_id: The task, whoever owns it.
    """
    from ._look import show_task

    return where.execute(partial(show_task, task_id=task_id))


@app.command
def logs(
    task_id: TaskId,
    /,
    *,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), negative=())] = False,
    where: Where = HERE,
) -> int:
    """Write the output of a task, exactly as it is stored.

    Args:
        task_id: The task, whoever owns it.
        follow: Go on until the task is not running any more.
    """
    from ._look import logs

    return where.execute(partial(logs, task_id=task_id, follow=follow))


@app.command
def wait(task_id: TaskId, /, *task_ids: TaskId, where: Where = HERE) -> int:
    """Wait until no task is running, and show how they ended.

    Args:
        task_id: The task, whoever owns it.
        task_ids: More of them.
    """
    from ._look import wait

    return where.execute(partial(wait, task_ids=(task_id, *task_ids)))


@app.command
def cancel(task_id: TaskId, /, *task_ids: TaskId, tree: Flag = False, where: Where = HERE) -> int:
    """Cancel tasks, running or stopped, for good. A running one ends soon after.

    What cannot be cancelled does not keep the others from it.

    Args:
        task_id: The task, whoever owns it.
        task_ids: More of them.
        tree: Also every task below it.
    """
    from ._look import cancel

    return where.execute(partial(cancel, task_ids=(task_id, *task_ids), tree=tree))


@app.command
def answer(
    task_id: TaskId,
    text: str | None = None,
    /,
    *,
    question: str | None = None,
    decline: Flag = False,
    where: Where = HERE,
) -> int:
    """Answer a question of a running task, in whatever process; `show` shows what it asks.

    Args:
        task_id: The task, whoever owns it.
        text: The answer: JSON, or, if it is none, a string as it stands.
        question: The id of the question; not needed if there is only one.
        decline: Decline to answer.
    """
    from ._look import answer

    if (text is None) != decline:
        raise UsageError("give an answer, or --decline")
    return where.execute(partial(answer, task_id=task_id, question_id=question, text=text))


@app.command
def resume(task_id: TaskId, /, *task_ids: TaskId, where: Where = HERE) -> int:
    """Run stopped shell tasks again, in this process, and watch them until all have ended.

    Args:
        task_id: The task, whoever owns it.
        task_ids: More of them.
    """
    from ._run import resume

    return where.execute(partial(resume, task_ids=(task_id, *task_ids)))


@app.command
def gc(*, owner: OneOwner = OWNER, all: EveryOwner = False, where: Where = HERE) -> int:  # noqa: A002
    """Delete the records and output of tasks that have ended, and old notices of owner `cli`.

    Args:
        owner: Whose tasks.
        all: Those of every owner.
    """
    from ._look import gc

    return where.execute(partial(gc, owner=None if all else owner))


@app.command
def doctor(*, where: Where = HERE) -> int:
    """Check the database: file, executors, unsaved ends (orphans), corrupt records, disk space."""
    from ._doctor import doctor

    return where.execute(doctor)


@app.command
def demo() -> int:
    """See the whole story in about 20 seconds, with real processes and a database of its own."""
    from ._demo import demo

    return demo()


# ---- from the command line to the exit code ------------------------------------------------------


def run_app(tokens: Sequence[str]) -> int:
    """Run the command that ``tokens`` ask for; return its exit code. Errors become one line."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if not tokens:
        app.help_print([])
        return Exit.USAGE
    try:
        code = app(_command_first(tokens), exit_on_error=False, print_error=False, verbose=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone: nobody is left to be told, nor may the exit try to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OTHER
    except Exception as error:  # noqa: BLE001 - whatever it is, it is said in one line
        complain(str(error) if isinstance(error, CycloptsError) else said(error))
        return _code_of(error)
    return Exit.COMPLETED if code is None else code


def _command_first(tokens: Sequence[str]) -> list[str]:
    """Move options that stand before the command behind it, where each command has its own."""
    at = 0
    while at < len(tokens) and tokens[at].startswith("-") and tokens[at] not in _ALONE:
        at += 2 if tokens[at] in ("--db", "--owner") else 1
    if at >= len(tokens):
        raise UsageError("a command is missing; see trio-bgtasks --help")
    return [*tokens[at : at + 1], *tokens[:at], *tokens[at + 1 :]]


_ALONE = ("--", "--help", "-h", "--version")


def _code_of(error: Exception) -> Exit:
    if isinstance(error, UnknownTask):
        return Exit.UNKNOWN_TASK
    if isinstance(error, CycloptsError | InvalidArguments | UsageError):
        return Exit.USAGE
    return Exit.OTHER
