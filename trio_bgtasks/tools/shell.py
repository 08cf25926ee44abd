"""`ShellTool`: shell commands as tasks, of which no process is ever left behind."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

import trio

from .._executable import Args, BackgroundExecutable
from .._execution import BackgroundExecution
from .._json import JsonObject, clone_json
from .._records import Failed, Success, TaskResult
from .._tool import ToolDescriptor
from ._process import (
    CommandEnd,
    CommandNotStarted,
    KeeperLost,
    command_spec,
    run_command,
)

_log = logging.getLogger("trio_bgtasks.tools")

_PARAMETERS: JsonObject = {
    "type": "object",
    "properties": {
        "command": {
            "type": "string",
            "minLength": 1,
            "description": "The command line for the shell. Its stdin is empty.",
        },
        "cwd": {"type": "string", "description": "The directory to run it in."},
        "env": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Environment variables to add or replace.",
        },
        "timeout_s": {
            "type": "number",
            "exclusiveMinimum": 0,
            "description": "End the command, as failed, after this many seconds.",
        },
        "description": {
            "type": "string",
            "description": "What the command is for, in a few words.",
        },
    },
    "required": ["command"],
    "additionalProperties": False,
}


class ShellTool(BackgroundExecutable[None]):
    """Runs a shell command to the end of the last process that it started.

    When the task has ended, in whatever way but one, none of those processes is alive: a cancel
    sends TERM to all of them, also to those that left the process group or double-forked, and KILL
    after ``grace_s``. If this process is killed with -9, a keeper does the same, and until it is
    done the executor's lock is held: nobody takes the task for an orphan. stdout and stderr go to
    the task's output log while the command runs.

    The one exception: if the keeper itself is killed from outside, what had left the command's
    process group may still run. The task's error then says so, whatever its status, and a warning
    is logged.

    The result, also of a failed one, is ``{"exit_code", "signal", "duration_s", "output_bytes",
    "output_truncated"}``; a non-zero exit, a signal and a time-out are failures. The first two are
    None if nothing was run, or nobody knows.

    On macOS, or where ``/proc`` is not mounted, there is only the process group: a process that
    leaves it is neither waited for nor ended. This is no sandbox.

    Args:
        supports_resume: May a stopped command be run again, from its start?
        shell: The shell, called with ``-c`` and the command.
        grace_s: Seconds between TERM and KILL.
        env: The environment of every command; None: the one of this process.

    Raises:
        TypeError: An argument is of the wrong kind; the error names it.
        ValueError: No command could be run with it, or ``grace_s`` is negative or not finite.
    """

    task_type = "shell"

    def __init__(
        self,
        *,
        supports_resume: bool = False,
        shell: str = "/bin/sh",
        grace_s: float = 3.0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(supports_resume, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            kind = type(supports_resume).__name__
            raise TypeError(f"supports_resume must be a boolean, not {kind}")
        if not isinstance(shell, str) or not shell:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError("shell must be the path of a shell")
        if isinstance(grace_s, bool) or not isinstance(grace_s, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"grace_s must be seconds, not {type(grace_s).__name__}")
        if not 0 <= grace_s <= sys.float_info.max:
            raise ValueError("grace_s must be a finite number of seconds, not negative")
        self._env = None if env is None else _environment(env)
        try:
            command_spec("", shell, None, self._env or {})
        except CommandNotStarted as error:
            raise ValueError(str(error)) from None
        self.supports_resume = supports_resume
        self._shell = shell
        self._grace_s = float(grace_s)

    def __repr__(self) -> str:
        return f"<ShellTool {self._shell}>"

    def descriptor(self) -> ToolDescriptor:
        """Return what the model is shown."""
        return ToolDescriptor(
            id="shell",
            name="shell",
            description=(
                "Run a shell command. stdout and stderr go to one output log. It ends when the "
                "last process that it started has ended, those in the background too."
            ),
            parameters=clone_json(_PARAMETERS),
        )

    async def execute_background(
        self,
        task_id: str,
        args: Args,
        prepared: None,  # noqa: ARG002
        execution: BackgroundExecution,
        cancel_scope: trio.CancelScope,  # noqa: ARG002
        /,
    ) -> TaskResult:
        """Run the command; its output goes to the log as it comes."""
        written = 0
        started = trio.current_time()

        async def write(text: str) -> None:
            nonlocal written
            written += len(text.encode())
            await execution.write_output(text)

        environment = dict(os.environ if self._env is None else self._env)
        environment.update(args.get("env") or {})
        timeout_s = args.get("timeout_s")
        try:
            end = await run_command(
                args["command"],
                shell=self._shell,
                cwd=args.get("cwd"),
                env=environment,
                timeout_s=timeout_s,
                grace_s=self._grace_s,
                lock_fds=execution.lock_fds,
                on_output=write,
            )
            problem = _problem(end, timeout_s)
        except CommandNotStarted as error:
            end, problem = CommandEnd(duration_s=trio.current_time() - started), str(error)
        except KeeperLost as error:
            end, problem = error.end, str(error)
            extra = {
                "task_id": task_id,
                "owner_thread_id": execution.owner_thread_id,
                "attempt": execution.attempt,
            }
            _log.warning("task %s: %s", task_id, problem, extra=extra)
        value = _shown(end, truncated=written > execution.output_limit)
        return Success(value) if problem is None else Failed(problem, value)


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(env, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"env must be a mapping of names to values, not {type(env).__name__}")
    for text in (*env, *env.values()):
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"env must have strings as names and values, not {type(text).__name__}")
    return dict(env)


def _shown(end: CommandEnd, *, truncated: bool) -> dict[str, Any]:
    return {
        "exit_code": end.exit_code,
        "signal": end.signal,
        "duration_s": round(end.duration_s, 3),
        "output_bytes": end.output_bytes,
        "output_truncated": truncated,
    }


def _problem(end: CommandEnd, timeout_s: float | None) -> str | None:
    if end.timed_out:
        return f"the command did not end within {timeout_s:g} s and was ended"
    if end.signal is not None:
        return f"the command was killed by signal {end.signal}"
    if end.exit_code:
        return f"the command ended with exit code {end.exit_code}"
    return None
