"""`AttemptLog`: output and progress of an attempt, on their way to the store."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable

import attrs
import trio

from ._errors import Refused, StaleAttempt
from ._events import AttemptWrite, OutputAppended, ProgressReported
from ._hints import Hints
from ._json import clean_text
from ._records import Progress, TaskRecord
from ._requests import ManagerConfig
from ._waits import StoreWaits
from .stores import TaskStore

log = logging.getLogger("trio_bgtasks.execution")

_HIGH_WATER = 1 << 20  # unsent output at which a writer waits for the store
_FLUSH_S = 0.04  # readers see output within 0.1 s; a chatty body makes 25 writes a second at most
_PROGRESS_S = 0.25
_BACKOFF_S = 1.0
_CONTINUATION = 0x80  # the two high bits of every byte of a UTF-8 character but its first


@attrs.frozen
class AttemptPort:
    """The way from the attempts of a manager to its store, and where their helpers run."""

    store: TaskStore
    config: ManagerConfig
    waits: StoreWaits
    hints: Hints
    start_soon: Callable[[Callable[[], Awaitable[None]], str], None]


class AttemptLog:
    """What a body said and the store does not have yet; bounded.

    Writing is synchronous. A helper task, started with the first word, stores it soon; the rest is
    taken along by the attempt's end. Offsets make a repeated or doubled write harmless.
    """

    # Most attempts say nothing, and are started by the thousand: what only a word needs is made
    # with the first one, and until then the class has the values.
    _pending = 0
    _progress: Progress | None = None
    _progress_after = -math.inf
    _closed = False
    _refused = False  # the store takes no more output of this attempt
    _flushing: trio.CancelScope | None = None
    _parts: deque[bytes]
    _news: trio.Event
    _drained: trio.Event

    def __init__(self, port: AttemptPort, record: TaskRecord) -> None:
        self.port = port
        self.record = record  # as the attempt began: who writes
        self._offset = record.output_bytes  # of the first unsent byte, in all output of the task

    def write(self, text: str) -> None:
        """Take ``text``; over the bound, the oldest unsent text is given up."""
        self._open()
        data = clean_text(text).encode()
        self._parts.append(data)
        self._pending += len(data)
        excess = self._pending - self.port.config.output_bytes
        if excess > 0:
            self._drop(excess)
            while self._parts[0][0] & 0xC0 == _CONTINUATION:  # not within a character
                self._drop(1)
        self._news.set()

    def report(self, progress: Progress) -> None:
        """Take the latest progress; it replaces one that was not stored yet."""
        self._open()
        self._progress = progress
        self._news.set()

    async def store(self, kind: Callable[..., AttemptWrite], *fields: object) -> TaskRecord:
        """Store a write of the attempt: an event of this kind."""
        record, port = self.record, self.port
        assert record.executor_id is not None
        event = kind(port.config.clock_ms(), record.executor_id, record.attempt, *fields)
        return await port.store.apply(record.task_id, event)

    async def drained(self) -> None:
        """Wait until unsent output is below the high-water mark again."""
        while self._pending > _HIGH_WATER and not (self._closed or self._refused):
            await self._drained.wait()

    def close(self) -> tuple[int, str, Progress | None]:
        """Take nothing any more; return offset and text of everything unsent, and the progress.

        A write that is under way may still arrive: what it stored is passed over at the end.
        """
        self._closed = True
        if self._flushing is None:
            return self._offset, "", None
        self._drained.set()
        self._flushing.cancel()
        unsent = self._unsent()
        self._parts.clear()  # whoever keeps the execution does not keep its output
        return *unsent, self._progress

    def _unsent(self) -> tuple[int, str]:
        data = b"".join(self._parts)
        self._parts = deque([data] if data else ())
        return self._offset, data.decode()

    def check_open(self) -> None:
        """Raise `StaleAttempt` once the body has ended."""
        if self._closed:
            attempt = self.record.attempt
            raise StaleAttempt(self.record.task_id, attempt, attempt, "ended")

    def _open(self) -> None:
        """Make ready for a word."""
        self.check_open()
        if self._flushing is None:
            self._flushing = trio.CancelScope()
            self._parts = deque()
            self._news, self._drained = trio.Event(), trio.Event()
            self.port.start_soon(self._flush_for_ever, f"output of {self.record.task_id}")

    def _drop(self, size: int) -> None:
        """Forget ``size`` bytes at the start: they are stored, or given up."""
        self._offset += size
        self._pending -= size
        while size:
            part = self._parts.popleft()
            if len(part) > size:
                self._parts.appendleft(part[size:])
                size = 0
            else:
                size -= len(part)

    async def _flush_for_ever(self) -> None:
        assert self._flushing is not None
        with self._flushing:
            while True:
                await self._news.wait()
                self._news = trio.Event()
                pause_s = _FLUSH_S
                try:
                    await self._flush()
                except Refused:
                    # The attempt is over; its end takes the rest along, or it lost its task.
                    self._refused = True
                    self._drained.set()
                    return
                except Exception as error:  # noqa: BLE001 - a store may fail in any way
                    log.warning(
                        "output not stored yet: %s: %s",
                        type(error).__name__,
                        error,
                        extra=self.extra(),
                    )
                    self._news.set()
                    pause_s = _BACKOFF_S
                await trio.sleep(pause_s)  # let text gather

    async def _flush(self) -> None:
        offset, text = self._unsent()
        if text:
            await self.store(OutputAppended, offset, text, self.port.config.output_bytes)
            self._stored(offset + len(text.encode()))
        progress, now = self._progress, trio.current_time()
        if progress is None:
            return
        if now < self._progress_after:
            self._news.set()
            return
        self._progress_after = now + _PROGRESS_S
        await self.store(ProgressReported, progress)
        self.port.hints.changed(self.record.owner_thread_id, self.record.task_id, wake=False)
        if self._progress is progress:
            self._progress = None

    def _stored(self, end: int) -> None:
        if self._closed:
            return
        if end > self._offset:
            self._drop(end - self._offset)
        if self._pending <= _HIGH_WATER:
            self._drained.set()
            self._drained = trio.Event()

    def extra(self) -> dict[str, object]:
        """Return the ``extra`` fields of a log line about the attempt."""
        record = self.record
        return {
            "task_id": record.task_id,
            "owner_thread_id": record.owner_thread_id,
            "attempt": record.attempt,
        }
