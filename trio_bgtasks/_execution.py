"""What a running body holds: `BackgroundExecution`, its output log, and the ambient attempt."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias, final

import attrs
import trio

from ._errors import Refused, StaleAttempt, TaskError
from ._json import clean_text, json_value
from ._lifecycle import CheckpointSaved, Event, OutputAppended, ProgressReported
from ._records import Progress, TaskRecord

log = logging.getLogger("trio_bgtasks.execution")

Stopping: TypeAlias = Literal["cancel", "shutdown", "deadline", "fenced"]

_HIGH_WATER = 1 << 20  # unsent output at which a writer waits for the store
_FLUSH_S = 0.04  # readers see output within 0.1 s; a chatty body makes 25 writes a second at most
_PROGRESS_S = 0.25
_BACKOFF_S = 1.0

_current: ContextVar[BackgroundExecution | None] = ContextVar("trio_bgtasks_current", default=None)


@attrs.frozen
class AttemptPort:
    """The way from an attempt to its store: who writes, with which clock, where helpers run."""

    task_id: str
    executor_id: str
    attempt: int
    apply: Callable[[str, Event], Awaitable[TaskRecord]]
    clock_ms: Callable[[], int]
    start_soon: Callable[[Callable[[], Awaitable[None]], str], None]


class AttemptLog:
    """What a body said and the store does not have yet; bounded.

    Writing is synchronous. A helper task, started with the first word, stores it soon; the rest is
    taken along by the attempt's end. Offsets make a repeated or doubled write harmless.
    """

    def __init__(self, port: AttemptPort, offset: int, keep_bytes: int) -> None:
        self._port = port
        self._parts: deque[bytes] = deque()
        self._offset = offset  # of the first unsent byte, in all output of the task
        self.pending = 0
        self.keep_bytes = keep_bytes
        self.written = 0
        self._progress: Progress | None = None
        self._progress_after = 0.0
        self._closed = False
        self._flushing = False
        self._news = trio.Event()
        self._drained = trio.Event()
        self._end = trio.Event()

    def write(self, text: str) -> None:
        """Take ``text``; over the bound, the oldest unsent text is given up."""
        data = clean_text(text).encode()
        self._check_open()
        self._parts.append(data)
        self.pending += len(data)
        self.written += len(data)
        while self.pending > self.keep_bytes and len(self._parts) > 1:
            self._drop(len(self._parts[0]))
        self._wake()

    def report(self, progress: Progress) -> None:
        """Take the latest progress; it replaces one that was not stored yet."""
        self._check_open()
        self._progress = progress
        self._wake()

    async def drained(self) -> None:
        """Wait until unsent output is below the high-water mark again."""
        while self.pending > _HIGH_WATER and not self._closed:
            await self._drained.wait()

    def rest(self) -> tuple[int, str]:
        """Return the offset and text of everything unsent."""
        data = b"".join(self._parts)
        self._parts = deque([data] if data else ())
        return self._offset, data.decode()

    def close(self) -> None:
        """Take nothing any more; the helper ends."""
        self._closed = True
        self._end.set()
        self._news.set()
        self._drained.set()

    def _check_open(self) -> None:
        if self._closed:
            port = self._port
            raise StaleAttempt(port.task_id, port.attempt, port.attempt, "ended")

    def _wake(self) -> None:
        self._news.set()
        if not self._flushing:
            self._flushing = True
            self._port.start_soon(self._flush_loop, f"output of {self._port.task_id}")

    def _drop(self, size: int) -> None:
        """Forget ``size`` bytes at the start: they are stored, or given up."""
        self._offset += size
        self.pending -= size
        while size:
            part = self._parts.popleft()
            if len(part) > size:
                self._parts.appendleft(part[size:])
                size = 0
            else:
                size -= len(part)

    async def _flush_loop(self) -> None:
        while not self._closed:
            await self._news.wait()
            self._news = trio.Event()
            try:
                await self._flush()
            except Refused:
                return  # the attempt is over; its end took the rest along, or it lost its task
            except TaskError as error:
                log.warning("output of task %s not stored: %s", self._port.task_id, error)
                self._news.set()
                await self._pause(_BACKOFF_S)
            else:
                await self._pause(_FLUSH_S)

    async def _pause(self, seconds: float) -> None:
        """Let text gather; only the end of the attempt cuts the pause short."""
        with trio.move_on_after(seconds):
            await self._end.wait()

    async def _flush(self) -> None:
        port = self._port
        offset, text = self.rest()
        if text and not self._closed:
            event = OutputAppended(
                port.clock_ms(), port.executor_id, port.attempt, offset, text, self.keep_bytes
            )
            await port.apply(port.task_id, event)
            self._stored(offset + len(text.encode()))
        progress, now = self._progress, trio.current_time()
        if progress is not None and not self._closed:
            if now < self._progress_after:
                self._news.set()
                return
            self._progress_after = now + _PROGRESS_S
            await port.apply(
                port.task_id,
                ProgressReported(port.clock_ms(), port.executor_id, port.attempt, progress),
            )
            if self._progress is progress:
                self._progress = None

    def _stored(self, end: int) -> None:
        if end > self._offset:
            self._drop(min(end - self._offset, self.pending))
        if self.pending <= _HIGH_WATER:
            self._drained.set()
            self._drained = trio.Event()


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
    """

    __slots__ = (
        "_log",
        "_outer",
        "_port",
        "_reasons",
        "attempt",
        "cancel_scope",
        "checkpoint",
        "is_resume",
        "live",
        "lock_fds",
        "manager",
        "owner_thread_id",
        "parent_task_id",
        "task_id",
    )

    def __init__(
        self,
        record: TaskRecord,
        port: AttemptPort,
        cancel_scope: trio.CancelScope,
        log_: AttemptLog,
        reasons: set[str],
        manager: object,
        lock_fds: tuple[int, ...],
    ) -> None:
        self.task_id = record.task_id
        self.owner_thread_id = record.owner_thread_id
        self.parent_task_id = record.parent_task_id
        self.attempt = record.attempt
        self.is_resume = record.attempt > 1
        self.checkpoint: Any = record.checkpoint
        self.cancel_scope = cancel_scope
        self.lock_fds = lock_fds
        self.manager = manager
        self.live = True
        self._log = log_
        self._port = port
        self._reasons = reasons
        self._outer: BackgroundExecution | None = None

    def __repr__(self) -> str:
        return f"<BackgroundExecution {self.task_id} attempt {self.attempt} {self.stopping or ''}>"

    @property
    def stopping(self) -> Stopping | None:
        """Why the runtime cancelled the scope; None while it did not.

        The close of the owner shows as ``"shutdown"``.
        """
        for reason in ("fenced", "cancel", "shutdown", "deadline"):
            if reason in self._reasons:
                return reason
        return "shutdown" if "owner_close" in self._reasons else None

    async def save_checkpoint(self, value: object) -> None:
        """Store ``value`` (JSON) as the state to resume from; durable when it returns.

        Raises:
            ValueError: it is not JSON; the last checkpoint stays.
            Refused: this attempt may not write any more.
            TaskStoreError: the store failed.
        """
        copied = json_value(value, "checkpoint")
        await trio.lowlevel.checkpoint()
        port = self._port
        event = CheckpointSaved(port.clock_ms(), port.executor_id, port.attempt, copied)
        await port.apply(port.task_id, event)
        self.checkpoint = json_value(copied, "checkpoint")

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
        """Tell how far the attempt is; only the latest value is stored, a few times a second."""
        for name, value in (("done", done), ("total", total)):
            if name == "done" or value is not None:
                json_value(value, name)
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise TypeError(f"{name} must be a number, not {type(value).__name__}")
        self._log.report(
            Progress(done, total, None if message is None else clean_text(message)[:500])
        )
        await trio.lowlevel.checkpoint()


def current_execution() -> BackgroundExecution:
    """Return the attempt whose body makes this call.

    Raises:
        RuntimeError: the call is not made from within a running attempt.
    """
    execution = _current.get()
    while execution is not None and not execution.live:
        execution = execution._outer  # pyright: ignore[reportPrivateUsage]
    if execution is None:
        raise RuntimeError("current_execution() works inside a running attempt only")
    return execution


def ambient(manager: object) -> BackgroundExecution | None:
    """Return the innermost live attempt of ``manager`` around this call."""
    for execution in around():
        if execution.manager is manager and execution.live:
            return execution
    return None


def around() -> Iterator[BackgroundExecution]:
    """Yield every attempt around this call, innermost first, of whatever manager."""
    execution = _current.get()
    while execution is not None:
        yield execution
        execution = execution._outer  # pyright: ignore[reportPrivateUsage]


class Ambient:
    """Context manager: within it, ``execution`` is the current attempt."""

    __slots__ = ("_execution", "_token")

    def __init__(self, execution: BackgroundExecution) -> None:
        self._execution = execution

    def __enter__(self) -> None:
        self._execution._outer = _current.get()  # pyright: ignore[reportPrivateUsage]
        self._token = _current.set(self._execution)

    def __exit__(self, *_: object) -> None:
        self._execution.live = False
        _current.reset(self._token)
