"""`AttemptLog`: output and progress of an attempt, on their way to the store."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable

import attrs
import trio

from ._errors import Refused, StaleAttempt
from ._json import clean_text
from ._lifecycle import Event, OutputAppended, ProgressReported
from ._records import Progress, TaskRecord

log = logging.getLogger("trio_bgtasks.execution")

_HIGH_WATER = 1 << 20  # unsent output at which a writer waits for the store
_FLUSH_S = 0.04  # readers see output within 0.1 s; a chatty body makes 25 writes a second at most
_PROGRESS_S = 0.25
_BACKOFF_S = 1.0
_CONTINUATION = 0x80  # the two high bits of every byte of a UTF-8 character but its first


@attrs.frozen
class AttemptPort:
    """The way from an attempt to its store: who writes, with which clock, where helpers run."""

    task_id: str
    owner_thread_id: str
    executor_id: str
    attempt: int
    apply: Callable[[str, Event], Awaitable[TaskRecord]]
    clock_ms: Callable[[], int]
    start_soon: Callable[[Callable[[], Awaitable[None]], str], None]

    async def write(self, event: Event) -> TaskRecord:
        """Store a write of the attempt."""
        return await self.apply(self.task_id, event)

    def extra(self) -> dict[str, object]:
        """Return the ``extra`` fields of a log line about this attempt."""
        return {
            "task_id": self.task_id,
            "owner_thread_id": self.owner_thread_id,
            "attempt": self.attempt,
        }


class AttemptLog:
    """What a body said and the store does not have yet; bounded.

    Writing is synchronous. A helper task, started with the first word, stores it soon; the rest is
    taken along by the attempt's end. Offsets make a repeated or doubled write harmless.
    """

    def __init__(self, port: AttemptPort, offset: int, keep_bytes: int) -> None:
        self._port = port
        self.keep_bytes = keep_bytes
        self._parts: deque[bytes] = deque()
        self._offset = offset  # of the first unsent byte, in all output of the task
        self._pending = 0
        self._progress: Progress | None = None
        self._progress_after = -math.inf
        self._closed = False
        self._refused = False  # the store takes no more output of this attempt
        # Made with the helper: most attempts say nothing, and are started by the thousand.
        self._news: trio.Event
        self._drained: trio.Event
        self._flushing: trio.CancelScope | None = None

    def write(self, text: str) -> None:
        """Take ``text``; over the bound, the oldest unsent text is given up."""
        self.check_open()
        data = clean_text(text).encode()
        self._parts.append(data)
        self._pending += len(data)
        excess = self._pending - self.keep_bytes
        if excess > 0:
            self._drop(excess)
            while self._parts[0][0] & 0xC0 == _CONTINUATION:  # not within a character
                self._drop(1)
        self._wake()

    def report(self, progress: Progress) -> None:
        """Take the latest progress; it replaces one that was not stored yet."""
        self.check_open()
        self._progress = progress
        self._wake()

    async def drained(self) -> None:
        """Wait until unsent output is below the high-water mark again."""
        while self._pending > _HIGH_WATER and not (self._closed or self._refused):
            await self._drained.wait()

    def close(self) -> tuple[int, str, Progress | None]:
        """Take nothing any more; return offset and text of everything unsent, and the progress.

        A write that is under way may still arrive: what it stored is passed over at the end.
        """
        self._closed = True
        if self._flushing is not None:
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
            port = self._port
            raise StaleAttempt(port.task_id, port.attempt, port.attempt, "ended")

    def _wake(self) -> None:
        if self._flushing is None:
            self._flushing = trio.CancelScope()
            self._news, self._drained = trio.Event(), trio.Event()
            self._port.start_soon(self._flush_for_ever, f"output of {self._port.task_id}")
        self._news.set()

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
                        extra=self._port.extra(),
                    )
                    self._news.set()
                    pause_s = _BACKOFF_S
                await trio.sleep(pause_s)  # let text gather

    async def _flush(self) -> None:
        port = self._port
        offset, text = self._unsent()
        if text:
            await port.write(
                OutputAppended(
                    port.clock_ms(), port.executor_id, port.attempt, offset, text, self.keep_bytes
                )
            )
            self._stored(offset + len(text.encode()))
        progress, now = self._progress, trio.current_time()
        if progress is None:
            return
        if now < self._progress_after:
            self._news.set()
            return
        self._progress_after = now + _PROGRESS_S
        await port.write(
            ProgressReported(port.clock_ms(), port.executor_id, port.attempt, progress)
        )
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
