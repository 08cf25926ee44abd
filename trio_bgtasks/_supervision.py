"""The live slots of one manager, and the run of one attempt in its scope to its recorded end."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

import trio

from ._attempt_log import AttemptLog, AttemptPort
from ._ending import Ends
from ._errors import ManagerClosed
from ._execution import Ambient, BackgroundExecution
from ._hints import Hints
from ._outcome import LEASE_LOST, BodyEnd, counted, outcome_of
from ._owners import Owners
from ._places import Places
from ._records import (
    Cancelled,
    Failed,
    Stopped,
    Success,
    TaskResult,
)
from ._requests import ManagerConfig
from ._slots import FREED, Slot
from ._waits import StoreWaits
from .stores import TaskStore

log = logging.getLogger("trio_bgtasks.supervision")

Body: TypeAlias = Callable[[BackgroundExecution, trio.CancelScope], Awaitable[TaskResult]]


class Supervisor:
    """The live slots of one manager, and the way an attempt runs and ends."""

    def __init__(
        self, store: TaskStore, config: ManagerConfig, hints: Hints, waits: StoreWaits
    ) -> None:
        self._hints = hints
        self.slots: dict[str, Slot] = {}
        self.owners = Owners(config.owner_idle_s)
        self.closing_owners: Counter[str] = Counter()
        self.places = Places(config.attempts_per_owner, config.attempts_total)
        self.started = 0
        self.interrupted: KeyboardInterrupt | None = None
        self._closing = trio.Event()
        self.ends = Ends(store, config, waits, self._closing, self.free, self._start_soon)
        self._port = AttemptPort(store, config, waits, hints, self._start_soon)
        self._nursery: trio.Nursery | None = None
        self._on_interrupt: Callable[[], None] = lambda: None

    def open(self, nursery: trio.Nursery, on_interrupt: Callable[[], None]) -> None:
        """Run owners' nurseries and helpers in ``nursery`` from now on."""
        self._nursery = nursery
        self._on_interrupt = on_interrupt
        self.owners.run_in(nursery)

    @property
    def closing(self) -> bool:
        """Has the manager begun to close, or closed?"""
        return self._closing.is_set()

    def begin_closing(self) -> None:
        """Start nothing any more, cancel every attempt, hurry every write."""
        self._closing.set()
        for slot in list(self.slots.values()):
            slot.stop("shutdown")

    def check_open(self, owner_thread_id: str) -> None:
        """Raise `ManagerClosed` when nothing may be started for this owner."""
        if self._closing.is_set():
            raise ManagerClosed("the task manager is closed")
        if owner_thread_id in self.closing_owners:
            raise ManagerClosed(f"owner thread {owner_thread_id!r} is being closed")

    # ---- slots --------------------------------------------------------------------------------

    def reserve(self, slot: Slot) -> None:
        """Take the task id for a start that is about to be stored."""
        self.slots[slot.task_id] = slot
        if slot.owner is not None:
            slot.owner.hold()

    def of_owner(self, owner_thread_id: str) -> list[Slot]:
        """Return the owner's live slots."""
        return [s for s in self.slots.values() if s.owner_thread_id == owner_thread_id]

    def free(self, slot: Slot) -> None:
        """Forget a slot, then wake who waits for its task."""
        del self.slots[slot.task_id]
        if slot.owner is not None:
            slot.owner.unhold()
        slot.advance(FREED)
        self._hints.changed(slot.owner_thread_id, slot.task_id)

    def _start_soon(self, afn: Callable[[], Awaitable[None]], name: str) -> None:
        """Run a helper of an attempt in the manager's nursery."""
        assert self._nursery is not None
        self._nursery.start_soon(afn, name=f"trio_bgtasks {name}")

    # ---- one attempt --------------------------------------------------------------------------

    def start_background(self, slot: Slot, body: Body) -> None:
        """Run an attempt to its recorded end in its owner's nursery; lets nothing out."""
        assert slot.owner is not None
        assert slot.owner.nursery is not None
        name = f"trio_bgtasks task {slot.task_id}"
        slot.owner.nursery.start_soon(self.run_attempt, slot, body, name=name)

    async def run_foreground(self, slot: Slot, body: Body) -> tuple[BodyEnd, TaskResult]:
        """Run an attempt in the caller's task.

        Returns how the body ended and the outcome that counts: as recorded, or as it is being
        retried.
        """
        assert slot.record is not None
        attempt = slot.record.attempt
        end, outcome = await self.run_attempt(slot, body)
        return end, self._counted(slot, attempt, outcome)

    @trio.lowlevel.enable_ki_protection
    async def run_attempt(self, slot: Slot, body: Body) -> tuple[BodyEnd, TaskResult | None]:
        """Run the body in its scope, record how it ended, free the slot.

        Returns how the body ended and the outcome to record (None: nothing). `KeyboardInterrupt`
        in the background ends the program through the manager.
        """
        record = slot.record
        assert record is not None
        self.started += 1
        attempt_log = AttemptLog(self._port, record)
        execution = BackgroundExecution(
            record, attempt_log, slot.scope, slot.reasons, slot.executor.lock_fds
        )
        end = await self._run_body(slot, execution, body)
        unsent = attempt_log.close()
        slot.running = False
        if slot.ticket is not None:
            self.places.release(slot.ticket)
            slot.ticket = None
        self._note_unasked_cancel(slot, end)
        outcome = _outcome_of(slot, end)
        if outcome is not None:
            await self.ends.record(slot, record.attempt, outcome, *unsent)
        else:
            self.ends.let_go(slot)
        if end.raised is not None or log.isEnabledFor(logging.INFO):
            with suppress(Exception):  # a logging filter of the host's must not end the others
                self._log_end(slot, end, outcome)
            self._pass_interrupt_on(slot, end)
        return end, outcome

    async def _run_body(self, slot: Slot, execution: BackgroundExecution, body: Body) -> BodyEnd:
        """Run the body if it may still start; let nothing out."""
        task = trio.lowlevel.current_task()
        try:
            with slot.scope:
                if slot.ticket is not None:
                    await slot.ticket.granted.wait()
                # Cancelled before it began, by whomever: then it does not begin.
                if not slot.scope.cancel_called and not _caller_is_cancelled(slot):
                    slot.running = True
                    if slot.deadline_s is not None:
                        self._start_soon(partial(self._deadline, slot), "deadline")
                    with Ambient(execution, self):
                        return BodyEnd(await _unprotected(body, execution, slot.scope))
        except BaseException as error:  # noqa: ASYNC103 - all are recorded, some passed on
            if isinstance(error, GeneratorExit) and not _is_running(task):
                raise  # pragma: no cover - the run was torn down: nothing can be awaited any more
            return BodyEnd(raised=error)  # noqa: ASYNC104
        return BodyEnd(ran=False)  # the scope took the cancellation

    async def _deadline(self, slot: Slot) -> None:
        assert slot.deadline_s is not None
        with trio.move_on_after(slot.deadline_s) as timer:
            await slot.reach(FREED)
        if timer.cancelled_caught and slot.running:
            slot.stop("deadline")

    def _note_unasked_cancel(self, slot: Slot, end: BodyEnd) -> None:
        """Name a cancellation that did not come through the manager."""
        slot.note_unasked_cancel()
        if slot.background and end.raised is None:
            return  # as it is with most
        if _caller_is_cancelled(slot) or end.has(trio.Cancelled):
            slot.reasons.add("shutdown" if slot.background else "caller")
            slot.caller_gone = True
        elif end.has(KeyboardInterrupt):
            slot.caller_gone = True

    def _log_end(self, slot: Slot, end: BodyEnd, outcome: TaskResult | None) -> None:
        if any(not isinstance(e, trio.Cancelled | KeyboardInterrupt) for e in end.errors()):
            log.error("task %s raised", slot.task_id, exc_info=end.raised, extra=slot.extra())
        if log.isEnabledFor(logging.INFO):
            what = "nothing recorded: lease lost" if outcome is None else outcome.status
            log.info("task %s ended: %s", slot.task_id, what, extra=slot.extra())

    def _pass_interrupt_on(self, slot: Slot, end: BodyEnd) -> None:
        for leaf in end.errors():
            if isinstance(leaf, KeyboardInterrupt):
                if not slot.background:
                    raise leaf
                self.interrupted = leaf
                self._on_interrupt()

    def _counted(self, slot: Slot, attempt: int, outcome: TaskResult | None) -> TaskResult:
        """Return the outcome that counts, now that it is recorded or being retried."""
        if outcome is None:
            return Stopped(LEASE_LOST)
        if slot.end_error is None:
            ended = counted(outcome, slot.record, attempt)
            owed = slot.mark_error is not None and isinstance(ended, Stopped)
            return Cancelled() if owed else ended
        cancelled = slot.cancel_at_ms is not None or "cancel" in slot.reasons
        return Cancelled() if cancelled and not isinstance(outcome, Success) else outcome


def _caller_is_cancelled(slot: Slot) -> bool:
    # Nobody but the manager cancels around a background attempt, and that only when it has ended.
    if slot.owner is not None:
        return False
    return trio.current_effective_deadline() <= trio.current_time()


def _is_running(task: trio.lowlevel.Task) -> bool:
    try:
        return trio.lowlevel.current_task() is task
    except RuntimeError:  # pragma: no cover - the loop itself has died
        return False


def _outcome_of(slot: Slot, end: BodyEnd) -> TaskResult | None:
    """Return the outcome to record, also of a body whose end cannot be described."""
    try:
        return outcome_of(end, slot.reasons, deadline_s=slot.deadline_s)
    except Exception as error:  # noqa: BLE001 - what a body returns or raises may be anything
        return Failed(f"the end of the attempt could not be read: {type(error).__name__}")


@trio.lowlevel.disable_ki_protection
async def _unprotected(body: Body, execution: BackgroundExecution, scope: trio.CancelScope) -> Any:
    return await body(execution, scope)
