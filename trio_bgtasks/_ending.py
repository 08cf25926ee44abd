"""The ends of attempts, and cancels: stored at once if possible, else again and again."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import attrs
import trio

from ._errors import CorruptRecord, ExecutorFenced, InvalidValue, Refused, TaskStoreError
from ._events import CancelRequested, Finished
from ._records import Failed, Progress, Stopped, Success, TaskRecord, TaskResult
from ._requests import ManagerConfig
from ._slots import FREED, RETURNED, Slot
from ._waits import StoreWaits
from .stores import TaskStore

log = logging.getLogger("trio_bgtasks.supervision")

_RETRY_FIRST_S = 0.1
_RETRY_MOST_S = 5.0
_NO_ANSWER = "the store did not answer in time"
UNCONFIRMED = "Its start could not be confirmed in time; its body did not run"


class Ends:
    """Stores how attempts ended, and the cancels that were accepted though they are not stored.

    A slot is freed once its attempt is over and nothing of it is to be stored, or that is given up.

    Attributes:
        finished: How many ends were stored.
        write_retries: How many writes of ends were repeated.
        given_up: What was never stored, by task: the store refused it to the end of the shutdown
            grace, or the record is corrupt.
    """

    def __init__(
        self,
        store: TaskStore,
        config: ManagerConfig,
        waits: StoreWaits,
        closing: trio.Event,
        free: Callable[[Slot], None],
        start_soon: Callable[[Callable[[], Awaitable[None]], str], None],
    ) -> None:
        self._store = store
        self._config = config
        self._waits = waits
        self._closing = closing
        self._free = free
        self._start_soon = start_soon
        self.finished = self.write_retries = 0
        self.given_up: dict[str, str] = {}

    async def record(
        self,
        slot: Slot,
        attempt: int,
        outcome: TaskResult,
        output_offset: int,
        output: str,
        progress: Progress | None,
    ) -> None:
        """Store the end and let the slot go; leave that to a helper if the store refuses it."""
        event = self._finished(slot, attempt, outcome, output_offset, output, progress)
        try:
            error = await self._try_end(slot, event)
        except BaseException as interrupt:  # Ctrl-C reaches the main task in a shield, too
            self._retry_later(slot, event, _named(interrupt))
            raise
        if error is None:
            self.let_go(slot)
        else:
            self._retry_later(slot, event, _named(error))

    def unconfirmed(self, slot: Slot, attempt: int, error: BaseException) -> None:
        """End an attempt whose start may have been stored, but whose body was not run."""
        slot.note_unasked_cancel()
        self._retry_later(slot, self._finished(slot, attempt, Stopped(UNCONFIRMED)), _named(error))

    def let_go(self, slot: Slot) -> None:
        """Note that nothing of the attempt runs any more; free its slot if all of it is stored."""
        slot.advance(RETURNED)
        if slot.persistence_error is None:
            self._free(slot)

    def owe_mark(self, slot: Slot, error: Exception) -> None:
        """Store an accepted cancel that the store did not take; until then the slot stays."""
        slot.mark_error = f"the cancellation is not stored yet: {_named(error)}"
        self._start_soon(partial(self._retry_mark, slot), f"cancel mark of {slot.task_id}")
        log.warning("task %s: %s", slot.task_id, slot.mark_error, extra=slot.extra())

    def marked(self, slot: Slot) -> None:
        """Note that an accepted cancel is stored."""
        if slot.mark_error is not None:
            slot.mark_error = None
            if slot.stage == RETURNED:
                self.let_go(slot)

    def _finished(
        self,
        slot: Slot,
        attempt: int,
        outcome: TaskResult,
        output_offset: int = 0,
        output: str = "",
        progress: Progress | None = None,
    ) -> Finished:
        now = self._config.clock_ms()
        mark = slot.cancel_at_ms
        if mark is None and "cancel" in slot.reasons and not isinstance(outcome, Success):
            mark = now
        return Finished(
            now,
            slot.executor.executor_id,
            attempt,
            outcome,
            mark,
            output_offset,
            output,
            self._config.output_bytes,
            slot.background or slot.caller_gone,  # is it announced?
            progress,
        )

    async def _try_end(self, slot: Slot, event: Finished) -> Exception | None:
        """Store the end; return None when it is settled, else why it is not."""
        try:
            if self._waits.at_once:
                slot.note(await self._apply_end(slot, event))
            else:
                with self._waits.bound(self._config.write_grace_s, shield=True) as answer:
                    slot.note(await self._apply_end(slot, event))
                if answer.cancelled_caught:
                    return TaskStoreError(_NO_ANSWER)
        except Exception as failure:  # noqa: BLE001 - a store may fail in any way
            return failure
        slot.end_error = None
        if slot.record is None or slot.record.status.is_terminal or slot.record.cancel_accepted:
            slot.mark_error = None
        self.finished += slot.record is not None  # there may have been no such start
        return None

    async def _apply_end(self, slot: Slot, event: Finished) -> TaskRecord | None:
        try:
            return await self._store.apply(slot.task_id, event)
        except InvalidValue as blame:
            return await self._apply_refused(slot, attrs.evolve(event, outcome=_failed(blame)))
        except Refused as refusal:
            # An earlier try was applied after all, or somebody else ended the attempt for good.
            if isinstance(refusal, ExecutorFenced):
                slot.executor.lost.set()
            return await self._store.load(slot.task_id)

    async def _apply_refused(self, slot: Slot, event: Finished) -> TaskRecord:
        """End an attempt, as failed, of which the store refuses the result, or the last words."""
        try:
            return await self._store.apply(slot.task_id, event)
        except InvalidValue as blame:
            bare = attrs.evolve(event, outcome=_failed(blame), output="", progress=None)
            return await self._store.apply(slot.task_id, bare)

    def _retry_later(self, slot: Slot, event: Finished, error: str) -> None:
        self._note_unsaved(slot, event, error)
        self.let_go(slot)
        self._start_soon(partial(self._retry_end, slot, event), f"end of {slot.task_id}")

    def _note_unsaved(self, slot: Slot, event: Finished, error: str) -> None:
        status = event.outcome.status
        slot.end_error = f"the task ended as {status}, which is not stored yet: {error}"
        log.warning("task %s: %s", slot.task_id, slot.end_error, extra=slot.extra())

    async def _retry_end(self, slot: Slot, event: Finished) -> None:
        delay = _RETRY_FIRST_S
        while not self._waits.over:
            delay = await self._pause(slot, delay)
            self.write_retries += 1
            if slot.cancel_at_ms is not None and event.cancel_requested_at_ms is None:
                event = attrs.evolve(event, cancel_requested_at_ms=slot.cancel_at_ms)
            error = await self._try_end(slot, event)
            if error is None:
                self.let_go(slot)
                return
            self._note_unsaved(slot, event, _named(error))
            if isinstance(error, CorruptRecord):  # who waits for it is not to wait for ever
                log.error("task %s: its end is lost: %s", slot.task_id, error, extra=slot.extra())
                break
        self._give_up(slot)

    async def _retry_mark(self, slot: Slot) -> None:
        delay = _RETRY_FIRST_S
        while slot.mark_error is not None:
            delay = await self._pause(slot, delay)
            error = await self._try_mark(slot)
            if error is None:
                self.marked(slot)
            else:
                self._note_unmarked(slot, error)

    async def _try_mark(self, slot: Slot) -> Exception | None:
        """Store the mark; return None when nothing is owed any more, else why it is."""
        if slot.mark_error is None:
            return None  # the end took it along, or another cancel stored it
        assert slot.cancel_at_ms is not None
        with self._waits.bound(self._config.write_grace_s):
            try:
                record = await self._apply_mark(slot, slot.cancel_at_ms)
            except Exception as error:  # noqa: BLE001 - a store may fail in any way
                return error
            if slot.stage == RETURNED or record is None or record.status.is_terminal:
                slot.note(record)
            return None
        return TaskStoreError(_NO_ANSWER)

    async def _apply_mark(self, slot: Slot, at_ms: int) -> TaskRecord | None:
        try:
            return await self._store.apply(slot.task_id, CancelRequested(at_ms))
        except Refused:  # it has ended: what was owed is not stored, nor will it be
            record = await self._store.load(slot.task_id)  # as long as that fails, it is owed
            slot.cancel_at_ms = None
            return record

    def _note_unmarked(self, slot: Slot, error: Exception) -> None:
        if slot.mark_error is None:
            return  # settled meanwhile
        log.warning(
            "task %s: its cancel is not stored: %s", slot.task_id, error, extra=slot.extra()
        )
        if slot.end_error is not None or slot.stage < RETURNED:
            return  # its end may take it along
        if self._waits.over:
            self._give_up(slot)
        elif isinstance(error, CorruptRecord):
            log.error("task %s: its cancel is lost: %s", slot.task_id, error, extra=slot.extra())
            self.marked(slot)

    def _give_up(self, slot: Slot) -> None:
        slot.lost = self.given_up[slot.task_id] = slot.persistence_error or ""
        slot.end_error = slot.mark_error = None
        self.let_go(slot)

    async def _pause(self, slot: Slot, delay: float) -> float:
        """Wait before a retry; return how long to wait next time. Closing hurries the first."""
        with self._waits.bound(delay):
            if self._closing.is_set():
                await slot.reach(FREED)
            else:
                await self._closing.wait()
            return _RETRY_FIRST_S
        return min(delay * 2, _RETRY_MOST_S)


def _failed(blame: InvalidValue) -> Failed:
    return Failed(str(blame))


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
