"""What a running body holds: `BackgroundExecution`; and the attempts around a call."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Any, Literal, TypeAlias, cast, final

import attrs
import trio

from ._attempt_log import AttemptLog
from ._json import clean_text, clone_json, json_value, shorten
from ._lifecycle import CheckpointSaved
from ._records import Progress, TaskRecord

Stopping: TypeAlias = Literal["cancel", "shutdown", "deadline", "fenced"]

_SHOWN: dict[str, Stopping] = {
    "fenced": "fenced",
    "cancel": "cancel",
    "owner_close": "shutdown",
    "shutdown": "shutdown",
    "deadline": "deadline",
}

_MAX_MESSAGE = 500


@final
class BackgroundExecution:
    """One attempt, as its body sees it; valid while the body runs.

    Attributes:
        task_id: The task.
        owner_thread_id: The conversation that owns it.
        parent_task_id: Its parent in the lineage, or None.
        is_resume: Did an earlier attempt run?
        attempt: The number of this attempt, from 1: the fencing token for effects outside.
        checkpoint: The latest saved checkpoint of any attempt, or None; a private copy.
        cancel_scope: The scope around the body.
        lock_fds: Descriptors that prove this process alive: pass them to a guard process that may
            outlive it and still do its work, so that "dead" includes that guard.
        output_limit: How many bytes of the task's output are kept; the oldest are dropped first.
    """

    __slots__ = (
        "_log",
        "_reasons",
        "attempt",
        "cancel_scope",
        "checkpoint",
        "is_resume",
        "lock_fds",
        "output_limit",
        "owner_thread_id",
        "parent_task_id",
        "task_id",
    )

    def __init__(
        self,
        record: TaskRecord,
        log_: AttemptLog,
        cancel_scope: trio.CancelScope,
        reasons: set[str],
        lock_fds: tuple[int, ...],
    ) -> None:
        self.task_id: str = record.task_id
        self.owner_thread_id: str = record.owner_thread_id
        self.parent_task_id: str | None = record.parent_task_id
        self.attempt: int = record.attempt
        self.is_resume: bool = record.attempt > 1
        self.checkpoint: Any = record.checkpoint
        self.cancel_scope: trio.CancelScope = cancel_scope
        self.lock_fds: tuple[int, ...] = lock_fds
        self.output_limit: int = log_.port.keep_bytes
        self._log = log_
        self._reasons = reasons

    def __repr__(self) -> str:
        return f"<BackgroundExecution {self.task_id} attempt {self.attempt} {self.stopping or ''}>"

    @property
    def stopping(self) -> Stopping | None:
        """Why the runtime cancelled the scope; None while it did not.

        The close of the owner shows as ``"shutdown"``.
        """
        for reason, shown in _SHOWN.items():
            if reason in self._reasons:
                return shown
        return None

    async def save_checkpoint(self, value: object) -> None:
        """Store ``value`` (JSON) as the state to resume from; durable when it returns.

        Raises:
            ValueError: it is not JSON; the last checkpoint stays.
            Refused: this attempt may not write any more.
            TaskStoreError: the store failed.
        """
        copied = json_value(value, "checkpoint")
        await trio.lowlevel.checkpoint()
        self._log.check_open()
        await self._log.store(CheckpointSaved, copied)
        self.checkpoint = clone_json(copied)

    async def write_output(self, text: str) -> None:
        """Add ``text`` to the output log: taken at once, stored soon, at the latest with the end.

        It is taken also in a cancelled scope. A writer that is faster than the store waits here.
        Characters that cannot be stored are replaced.
        """
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"text must be a string, not {type(text).__name__}")
        if text:
            self._log.write(text)
        await trio.lowlevel.checkpoint()
        await self._log.drained()

    async def report_progress(
        self, done: float, total: float | None = None, message: str | None = None
    ) -> None:
        """Tell how far the attempt is; only the latest value is stored, a few times a second.

        Raises:
            TypeError: a number, or the message, is not one.
            ValueError: a number is not finite, or beyond 64 bits.
        """
        done = _number(done, "done")
        if total is not None:
            total = _number(total, "total")
        if message is not None:
            if not isinstance(message, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"message must be a string, not {type(message).__name__}")
            message = shorten(clean_text(message), _MAX_MESSAGE)
        self._log.report(Progress(done, total, message))
        await trio.lowlevel.checkpoint()


def _number(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{field} must be a number, not {type(value).__name__}")
    return cast("float", json_value(value, field))


# ---- the attempts around a call ------------------------------------------------------------------


@attrs.define(eq=False)
class Ambient:
    """Context manager: within it ``execution`` is the current attempt of ``manager``.

    So it is in every task that is started there, for as long as the body runs.
    """

    execution: BackgroundExecution
    manager: object
    outer: Ambient | None = None
    live: bool = False
    token: Token[Ambient | None] | None = None

    def __enter__(self) -> None:
        self.outer = _living(_current.get())
        self.live = True
        self.token = _current.set(self)

    def __exit__(self, *_: object) -> None:
        assert self.token is not None
        self.live = False
        _current.reset(self.token)


_current: ContextVar[Ambient | None] = ContextVar("trio_bgtasks_current", default=None)


def around() -> list[Ambient]:
    """Return every running attempt around this call, innermost first, of whatever manager."""
    found: list[Ambient] = []
    here = _living(_current.get())
    while here is not None:
        found.append(here)
        # Those that ended are forgotten: each task may start the next one, for ever.
        here.outer = _living(here.outer)
        here = here.outer
    return found


def _living(found: Ambient | None) -> Ambient | None:
    while found is not None and not found.live:
        found = found.outer
    return found


def ambient(manager: object) -> list[BackgroundExecution]:
    """Return every running attempt of ``manager`` around this call, innermost first."""
    found = around()
    return [one.execution for one in found if one.manager is manager] if found else []


def current_execution() -> BackgroundExecution:
    """Return the attempt whose body makes this call.

    Raises:
        RuntimeError: the call is not made from within a running attempt.
    """
    for found in around():
        return found.execution
    raise RuntimeError("current_execution() works inside a running attempt only")
