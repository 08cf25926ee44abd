"""The command line: every command, its arguments, its help, its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import attrs
from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import mutually_exclusive

from .. import InvalidArguments, UnknownTask
from .._json import check_id
from ._session import OWNER, Command, CommandError, Exit, UsageError, complain, execute, said

if TYPE_CHECKING:
    from ._serve import Service

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


def _check_id(_: Any, value: str | Sequence[str] | None) -> None:
    for text in [value] if isinstance(value, str) else value or ():
        check_id(text, "it")


TaskId = Annotated[str, Parameter(validator=_check_id)]
Owner = Annotated[str, Parameter(validator=_check_id)]
Flag = Annotated[bool, Parameter(negative=())]
Several = Annotated[tuple[str, ...], Parameter(negative=())]

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
        text: The answer: JSON, or, if it is none or does not fit, a string as it stands.
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
def serve(
    *,
    http: str | None = None,
    tokens: Path | None = None,
    no_tokens: Flag = False,
    allowed_host: Several = (),
    owner: Owner | None = None,
    tools: Several = (),
    no_shell: Flag = False,
    allow: Several = (),
    deny: Several = (),
    root: Path | None = None,
    env: Several = (),
    attempts_per_owner: int | None = None,
    attempts_total: int | None = None,
    deadline_s: float | None = None,
    retention_s: float | None = None,
    output_bytes: int = 8 << 20,
    db: Path | None = None,
) -> int:
    """Serve a shell, and tools of your own, to clients of MCP: over stdio, unless --http is given.

    What runs in the background outlives the request and, over HTTP, the connection; its record and
    output outlive the server. A server that ends, as over stdio with its client, stops what runs,
    to be resumed. No option makes the shell a sandbox.

    Args:
        http: Serve at http://HOST:PORT/mcp instead.
        tokens: A file of bearer tokens that only you can read: NAME TOKEN [END] in a line.
        no_tokens: Serve whoever can reach the port, which must be one of this machine only.
        allowed_host: A further name under which clients reach the server. Repeatable.
        owner: Who owns the tasks. Default: each client (stdio) or each name of a token (HTTP).
        tools: module:attribute or file.py:attribute of tools of yours. Repeatable.
        no_shell: Serve those only.
        allow: Run only commands that match a pattern. Repeatable.
        deny: Never run commands that match a pattern. Repeatable.
        root: Run commands there or below only. Default: anywhere, from the current folder.
        env: A variable that commands are to see of the server's environment. Repeatable.
        attempts_per_owner: How many tasks of an owner run at a time; further ones are queued.
        attempts_total: How many run at a time in all.
        deadline_s: How long one may run.
        retention_s: How long the records of ended tasks are kept. Default: for ever.
        output_bytes: How much output of a task is kept; the newest is.
        db: The database file. Default: $TRIO_BGTASKS_DB, else one in your state folder.
    """
    options = dict(locals())
    del options["db"]
    service = _service(options)
    from ._serve import serve

    return execute(partial(serve, service=service), db=db, json=False)


def _service(options: Mapping[str, Any]) -> Service:
    try:
        from ._serve import Service
    except ImportError as error:
        raise CommandError(f"{error.name} is missing: install trio-bgtasks[cli,mcp]") from None
    return Service.of(options)


@app.command
def install(
    client: Literal["claude-code", "claude-desktop", "cursor", "vscode"],
    /,
    *arguments: str,
    name: str = "trio-bgtasks",
    write: Flag = False,
) -> int:
    """Print the entry for a client of MCP that starts `trio-bgtasks serve`.

    Args:
        client: The client.
        arguments: What `serve` is to be given, behind `--`.
        name: What the server is called there.
        write: Put it into the client's configuration, keeping a copy of what it was.
    """
    from ._install import install

    _, given, _ = app.parse_args(["serve", *arguments], exit_on_error=False, print_error=False)
    given.apply_defaults()
    db: Path | None = given.arguments.pop("db")
    service = _service(given.arguments)
    from ._serve import check_for_clients

    check_for_clients(service, db)
    return install(client, name=name, arguments=arguments, write=write)


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
        complain(_usage(error, tokens) if isinstance(error, CycloptsError) else said(error))
        return _code_of(error)
    return Exit.COMPLETED if code is None else code


def _usage(error: CycloptsError, tokens: Sequence[str]) -> str:
    if tokens[0] == "install" and "--" not in tokens:
        return f"{error} What is for serve stands behind --."
    return str(error)


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
