"""`GuardedShell`: a shell that is kept to some commands, and to one directory. No sandbox."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from .._executable import Args
from .._execution import BackgroundExecution
from .._json import shorten
from .._records import TaskResult
from .._tool import Denied, ToolCallContext
from .shell import ShellTool

# Without what lets another command begin, or sends what a command says elsewhere.
_PLAIN = "[^;&|<>()`$\n\r]"
_ANY = "(?s:.)"
_MAX_NAME = 200


class GuardedShell(ShellTool):
    """Runs the commands that it is told to allow, in the directory that it is told.

    What is not allowed is refused (`Denied`) before anything is stored. That keeps a model from
    mistakes. It is no sandbox: a command that is allowed may do whatever this user may.

    Args:
        allow: Patterns; a command that none of them matches as a whole is refused. None: all are
            allowed. ``*`` stands for any text in which no other command can begin (it has none of
            ``;&|<>()`$`` and no new line), ``?`` for one character of such a text.
        deny: Patterns; a command that one of them matches as a whole is refused, whatever is
            allowed. Here ``*`` stands for any text, ``?`` for any character.
        root: Commands run there or below: ``cwd`` is relative to it, and what is outside of it,
            also by a symbolic link, is refused. None: anywhere.
        supports_resume: See `ShellTool`; so for the others.
        shell: See `ShellTool`.
        grace_s: See `ShellTool`.
        env: See `ShellTool`.

    Raises:
        TypeError: An argument is of the wrong kind; the error names it.
        ValueError: ``root`` is no directory; else see `ShellTool`.
    """

    def __init__(
        self,
        *,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] = (),
        root: str | os.PathLike[str] | None = None,
        supports_resume: bool = False,
        shell: str = "/bin/sh",
        grace_s: float = 3.0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(supports_resume=supports_resume, shell=shell, grace_s=grace_s, env=env)
        self._allow = None if allow is None else _patterns(allow, "allow", _PLAIN)
        self._deny = _patterns(deny, "deny", _ANY)
        self._root = None if root is None else _folder(root)

    def prepare_background(self, args: Args, ctx: ToolCallContext, /, *, is_resume: bool) -> None:
        """Refuse what is not allowed; also at a resume, for what is allowed may have changed."""
        super().prepare_background(args, ctx, is_resume=is_resume)
        command = args["command"]
        if any(pattern.fullmatch(command) for pattern in self._deny):
            raise Denied("this server does not run such a command")
        if self._allow is not None and not any(p.fullmatch(command) for p in self._allow):
            raise Denied("this command is none of those that this server runs")
        self._place(args)

    async def execute_background(
        self,
        task_id: str,
        args: Args,
        prepared: None,
        execution: BackgroundExecution,
        cancel_scope: trio.CancelScope,
        /,
    ) -> TaskResult:
        """Run the command where it may run."""
        # Again: it may have waited, and links change. What changes from here on is not seen.
        placed = {**args, "cwd": self._place(args)}
        return await super().execute_background(task_id, placed, prepared, execution, cancel_scope)

    def _place(self, args: Args) -> str | None:
        """Return where to run it, or raise `Denied`."""
        cwd: str | None = args.get("cwd")
        if self._root is None:
            return cwd
        try:
            place = self._root.joinpath(cwd or "").resolve()
        except (OSError, ValueError):  # it leads in circles, or is no name of a file at all
            place = None
        if place is None or not place.is_relative_to(self._root):
            raise Denied(f"cwd is outside of {self._root}")
        return str(place)


def _folder(root: str | os.PathLike[str]) -> Path:
    if not isinstance(root, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        kind = type(root).__name__
        raise TypeError(f"root must be a str or os.PathLike[str], not {kind}")
    try:
        place = Path(root).resolve(strict=True)
    except (OSError, ValueError):  # none of that name, or no name of a file at all
        place = None
    if place is None or not place.is_dir():
        raise ValueError(f"root is no directory: {shorten(repr(os.fspath(root)), _MAX_NAME)}")
    return place


def _patterns(given: Sequence[str], field: str, character: str) -> list[re.Pattern[str]]:
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{field} must be a list of patterns, not {type(given).__name__}")
    for text in given:
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{field} must have strings as patterns, not {type(text).__name__}")
    return [_pattern(text, character) for text in given]


def _pattern(text: str, character: str) -> re.Pattern[str]:
    """Compile a pattern to an expression that needs no more time than the command is long.

    Where a part between two ``*`` is found first, it may stay: whatever a later place leaves to the
    ``*`` before it, that ``*`` after it can take.
    """
    first, *others = (re.escape(part).replace(r"\?", character) for part in text.split("*"))
    for part in others[:-1]:
        first += f"(?>{character}*?{part})"
    return re.compile(first + (f"{character}*{others[-1]}" if others else ""))
