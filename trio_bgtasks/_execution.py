"""What a running body holds: `BackgroundExecution`; and the attempts around a call."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Any, Literal, TypeAlias, cast, final

import attrs
import trio

from ._asking import Asker
from ._attempt_log import AttemptLog
from ._events import CheckpointSaved
from ._json import JsonObject, clean_text, clone_json, json_object, json_value, shorten
from ._json_schema import schema_validator
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
_MAX_QUESTION = 4000  # a person reads it: it is not shortened


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
        "_asker",
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
        self.output_limit: int = log_.port.config.output_bytes
        self._asker: Asker | None = None
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
        used = () if self._asker is None else self._asker.delivered  # what ``value`` can know of
        await trio.lowlevel.checkpoint()
        self._log.check_open()
        record = await self._log.store(CheckpointSaved, copied, used)
        if self._asker is not None:
            self._asker.saved(record, used)
        self.checkpoint = clone_json(copied)

    async def ask(self, message: str, schema: dict[str, Any]) -> Any:
        """Ask ``message``; wait for an answer that fits the JSON Schema ``schema``; return it.

        The question is stored before anybody is asked, and its answer before it is given to this
        call, once. Nobody is asked twice: an attempt that resumes from a checkpoint and asks the
        same as the attempt before did since then gets the same answer at once. What is answered
        after this call was left (bound it with a cancel scope) goes to the next one of the same
        words and schema. Several calls at a time are several questions.

        An answer that was given before a checkpoint is saved is the checkpoint's to keep. A task
        that waits keeps its place, and its deadline goes on.

        Raises:
            QuestionDeclined: whoever was asked declined.
            TypeError: an argument is of the wrong kind.
            ValueError: the message is empty or longer than 4000 characters, or the schema is none.
            RuntimeError: 100 questions are open, or were answered since the last checkpoint.
            Refused: this attempt may not write any more.
            TaskStoreError: the question could not be stored.
        """
        question = _checked_question(message, schema)
        await trio.lowlevel.checkpoint()
        self._log.check_open()
        if self._asker is None:
            self._asker = Asker(self._log, self.cancel_scope)
        return await self._asker.ask(*question)

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


def _checked_question(message: object, schema: object) -> tuple[str, JsonObject]:
    if not isinstance(message, str):
        raise TypeError(f"message must be a string, not {type(message).__name__}")
    if not message.strip():
        raise ValueError("message cannot be empty")
    if len(message) > _MAX_QUESTION:
        raise ValueError(f"message is longer than {_MAX_QUESTION} characters")
    copied = json_object(schema, "schema")
    try:
        schema_validator(copied)
    except ValueError as error:
        raise ValueError(f"schema is no JSON Schema: {error}") from None
    return clean_text(message), copied


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
