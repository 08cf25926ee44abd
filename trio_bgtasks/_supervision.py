"""Owner nurseries, and the run of one attempt in its cancel scope to its recorded end."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import attrs
import trio

from ._errors import InvalidValue, ManagerClosed, Refused
from ._execution import Ambient, AttemptLog, AttemptPort, BackgroundExecution
from ._hints import Hints
from ._lifecycle import Event, Finished
from ._outcome import BodyEnd, leaves, outcome_of
from ._places import Places
from ._records import Failed, Success, TaskRecord, TaskResult
from ._requests import ManagerConfig
from ._slots import Slot
from .stores import TaskStore

log = logging.getLogger("trio_bgtasks.supervision")

Body: TypeAlias = Callable[[BackgroundExecution, trio.CancelScope], Awaitable[TaskResult]]

_RETRY_FIRST_S = 0.1
_RETRY_MOST_S = 5.0
_LAST_WRITE_S = 1.0  # what a write may still take when the shutdown grace is over


class OwnerNursery:
    """The long-lived nursery of one owner thread; its Trio task bears the owner's name."""

    def __init__(self, owner_thread_id: str) -> None:
        self.owner_thread_id = owner_thread_id
        self.nursery: trio.Nursery | None = None
        self.holds = 0
        self.idle_since = -math.inf
        self.opened = trio.Event()
        self._release = trio.Event()

    async def run(self) -> None:
        """Keep the nursery open until it is released."""
        async with trio.open_nursery() as self.nursery:
            self.opened.set()
            await self._release.wait()

    def release(self) -> None:
        """Let the nursery end; only with no hold left."""
        self._release.set()


class Supervisor:
    """The live slots of one manager, their nurseries, and the way an attempt runs and ends."""

    def __init__(self, store: TaskStore, config: ManagerConfig, hints: Hints) -> None:
        self._store = store
        self._config = config
        self._hints = hints
        self.slots: dict[str, Slot] = {}
        self.owners: dict[str, OwnerNursery] = {}
        self.closing_owners: set[str] = set()
        self.places = Places(config.attempts_per_owner, config.attempts_total)
        self.closing = False
        self.store_deadline = math.inf  # on Trio's clock; finite once the manager closes
        self.started = self.finished = self.write_retries = 0
        self.given_up: dict[str, str] = {}
        self.interrupted: KeyboardInterrupt | None = None
        self._nursery: trio.Nursery | None = None
        self._on_interrupt: Callable[[], None] = lambda: None

    # ---- nurseries ----------------------------------------------------------------------------

    def open(self, nursery: trio.Nursery, on_interrupt: Callable[[], None]) -> None:
        """Run owners' nurseries and helpers in ``nursery`` from now on."""
        self._nursery = nursery
        self._on_interrupt = on_interrupt

    def start_soon(self, afn: Callable[[], Awaitable[None]], name: str) -> None:
        """Run a helper of an attempt in the manager's nursery."""
        assert self._nursery is not None
        self._nursery.start_soon(afn, name=f"trio_bgtasks {name}")

    async def hold(self, owner_thread_id: str) -> OwnerNursery:
        """Return the owner's nursery, opened at its first task, and keep it from being released."""
        owner = self.owners.get(owner_thread_id)
        if owner is None:
            owner = self.owners[owner_thread_id] = OwnerNursery(owner_thread_id)
            self.start_soon(owner.run, f"owner {owner_thread_id}")
        owner.holds += 1
        if owner.nursery is None:
            try:
                await owner.opened.wait()
            except BaseException:
                self.unhold(owner)
                raise
        return owner

    def unhold(self, owner: OwnerNursery) -> None:
        """Give a hold back."""
        owner.holds -= 1
        owner.idle_since = trio.current_time()
        if self.closing:
            self.release_owners()

    async def release_idle_owners(self) -> None:
        """Release, now and then, every nursery that nobody has held for ``owner_idle_s``."""
        while True:
            await trio.sleep(max(1.0, self._config.owner_idle_s / 4))
            self.release_owners()

    def release_owners(self) -> None:
        """Release every nursery that nobody has held for ``owner_idle_s``."""
        since = trio.current_time() - self._config.owner_idle_s
        for owner in list(self.owners.values()):
            if not owner.holds and (self.closing or owner.idle_since <= since):
                del self.owners[owner.owner_thread_id]
                owner.release()

    def check_open(self, owner_thread_id: str) -> None:
        """Raise `ManagerClosed` when nothing may be started for this owner."""
        if self.closing:
            raise ManagerClosed("the task manager is closed")
        if owner_thread_id in self.closing_owners:
            raise ManagerClosed(f"owner thread {owner_thread_id!r} is being closed")

    # ---- slots --------------------------------------------------------------------------------

    def of_owner(self, owner_thread_id: str) -> list[Slot]:
        """Return the owner's live slots."""
        return [s for s in self.slots.values() if s.owner_thread_id == owner_thread_id]

    def free(self, slot: Slot) -> None:
        """Forget a slot, then wake who waits for its task."""
        del self.slots[slot.task_id]
        self._leave_place(slot)
        slot.answered.set()
        slot.freed.set()
        self._hints.changed(slot.owner_thread_id, slot.task_id)

    def _leave_place(self, slot: Slot) -> None:
        if slot.ticket is not None:
            self.places.release(slot.ticket)
            slot.ticket = None

    # ---- one attempt --------------------------------------------------------------------------

    async def run_background(self, slot: Slot, owner: OwnerNursery, body: Body) -> None:
        """Run an attempt to its recorded end in the owner's nursery; lets nothing out."""
        try:
            await self.run_attempt(slot, body)
        finally:
            self.unhold(owner)

    @trio.lowlevel.enable_ki_protection
    async def run_attempt(self, slot: Slot, body: Body) -> tuple[BodyEnd, TaskResult | None]:
        """Run the body in its scope, record how it ended, free the slot.

        Returns how the body ended and the outcome that was recorded or is being retried (None: the
        lease was lost). `KeyboardInterrupt` in the background ends the program through the manager.
        """
        self.started += 1
        execution, attempt_log = self._execution(slot)
        end = await self._run_body(slot, execution, body)
        attempt_log.close()
        slot.running = False
        self._leave_place(slot)
        self._note_unasked_cancel(slot, end)
        outcome = outcome_of(end, slot.reasons, deadline_s=slot.deadline_s)
        self._log_end(slot, end, outcome)
        if outcome is None:
            self.free(slot)
        else:
            await self._record_end(slot, outcome, attempt_log)
        if end.raised is not None:
            self._pass_interrupt_on(slot, end.raised)
        return end, outcome

    def _execution(self, slot: Slot) -> tuple[BackgroundExecution, AttemptLog]:
        record = slot.record
        assert record is not None
        port = AttemptPort(
            record.task_id,
            slot.executor.executor_id,
            record.attempt,
            self._store.apply,
            self._config.clock_ms,
            self.start_soon,
        )
        attempt_log = AttemptLog(port, record.output_bytes, self._config.output_bytes)
        execution = BackgroundExecution(
            record, port, slot.scope, attempt_log, slot.reasons, self, slot.executor.lock_fds
        )
        return execution, attempt_log

    @trio.lowlevel.enable_ki_protection
    async def _run_body(self, slot: Slot, execution: BackgroundExecution, body: Body) -> BodyEnd:
        end = BodyEnd(ran=False)
        try:
            with slot.scope:
                if slot.ticket is not None:
                    await slot.ticket.granted.wait()
                if slot.reasons or slot.scope.cancel_called:
                    return end
                end = BodyEnd()
                slot.running = True
                if slot.deadline_s is not None:
                    self.start_soon(lambda: self._deadline(slot), f"deadline of {slot.task_id}")
                with Ambient(execution):
                    end = BodyEnd(await _unprotected(body, execution, slot.scope))
                return end
        except GeneratorExit:
            raise  # the run was torn down: nothing can be awaited any more
        except BaseException as error:  # noqa: BLE001 - all of them are recorded, some passed on
            return BodyEnd(raised=error, ran=end.ran)
        # The scope took the cancellation.
        return BodyEnd(raised=None, ran=False)

    async def _deadline(self, slot: Slot) -> None:
        assert slot.deadline_s is not None
        with trio.move_on_after(slot.deadline_s) as timer:
            await slot.freed.wait()
        if timer.cancelled_caught and slot.running:
            slot.stop("deadline")

    def _note_unasked_cancel(self, slot: Slot, end: BodyEnd) -> None:
        """Name a cancellation that did not come through the manager."""
        if slot.reasons:
            return
        if slot.scope.cancel_called:
            # Whoever owns the scope cancelled it: a cancel.
            slot.reasons.add("cancel")
        elif trio.current_effective_deadline() <= trio.current_time() or (
            end.raised is not None
            and any(isinstance(leaf, trio.Cancelled) for leaf in leaves(end.raised))
        ):
            slot.reasons.add("shutdown" if slot.background else "caller")

    def _log_end(self, slot: Slot, end: BodyEnd, outcome: TaskResult | None) -> None:
        errors = [] if end.raised is None else leaves(end.raised)
        if any(not isinstance(error, trio.Cancelled | KeyboardInterrupt) for error in errors):
            log.error("task %s raised", slot.task_id, exc_info=end.raised, extra=slot.extra())
        what = "nothing recorded: lease lost" if outcome is None else outcome.status
        log.info("task %s ended: %s", slot.task_id, what, extra=slot.extra())

    def _pass_interrupt_on(self, slot: Slot, raised: BaseException) -> None:
        for leaf in leaves(raised):
            if isinstance(leaf, KeyboardInterrupt):
                if not slot.background:
                    raise leaf
                self.interrupted = leaf
                self._on_interrupt()

    # ---- the end of an attempt ----------------------------------------------------------------

    async def _record_end(self, slot: Slot, outcome: TaskResult, attempt_log: AttemptLog) -> None:
        event = self._finished(slot, outcome, attempt_log)
        error = await self._try_end(slot, event, self._config.write_grace_s)
        if error is None:
            self.free(slot)
            return
        self._note_unsaved(slot, event, error)
        self.start_soon(lambda: self._retry_end(slot, event), f"end of {slot.task_id}")

    def _finished(self, slot: Slot, outcome: TaskResult, attempt_log: AttemptLog) -> Finished:
        record = slot.record
        assert record is not None
        mark = slot.cancel_at_ms
        if mark is None and "cancel" in slot.reasons and not isinstance(outcome, Success):
            mark = self._config.clock_ms()
        offset, text = attempt_log.rest()
        return Finished(
            self._config.clock_ms(),
            slot.executor.executor_id,
            record.attempt,
            outcome,
            mark,
            offset,
            text,
            self._config.output_bytes,
            announce=slot.background or "caller" in slot.reasons,
        )

    async def _try_end(self, slot: Slot, event: Finished, bound_s: float) -> str | None:
        """Store the end; return None when it is settled, else why it is not."""
        now = trio.current_time()
        until = min(now + bound_s, max(self.store_deadline, now + _LAST_WRITE_S))
        error = f"no answer within {until - now:g} s"
        with trio.CancelScope(shield=True, deadline=until):
            try:
                slot.record = await self._apply_end(slot, event)
            except Exception as failure:  # noqa: BLE001 - a store may fail in any way
                error = f"{type(failure).__name__}: {failure}"
            else:
                self.finished += 1
                return None
        return error

    async def _apply_end(self, slot: Slot, event: Finished) -> TaskRecord | None:
        try:
            return await self._store.apply(slot.task_id, event)
        except InvalidValue as blame:
            # The value itself is refused, for ever: that is how the attempt ends.
            failed = attrs.evolve(event, outcome=Failed(str(blame)), output="")
            return await self._store.apply(slot.task_id, failed)
        except Refused:
            # An earlier try was applied after all, or somebody else ended the attempt for good.
            return await self._store.load(slot.task_id)

    def _note_unsaved(self, slot: Slot, event: Event, error: str) -> None:
        status = event.outcome.status if isinstance(event, Finished) else "ended"
        slot.end_error = f"the task ended as {status}, which is not stored yet: {error}"
        log.warning("task %s: %s", slot.task_id, slot.end_error, extra=slot.extra())

    async def _retry_end(self, slot: Slot, event: Finished) -> None:
        delay = _RETRY_FIRST_S
        while trio.current_time() < self.store_deadline:
            with trio.move_on_at(self.store_deadline):
                await trio.sleep(delay)
            delay = min(delay * 2, _RETRY_MOST_S)
            self.write_retries += 1
            if slot.cancel_at_ms is not None and event.cancel_requested_at_ms is None:
                event = attrs.evolve(event, cancel_requested_at_ms=slot.cancel_at_ms)
            error = await self._try_end(slot, event, self._config.write_grace_s)
            if error is None:
                break
            self._note_unsaved(slot, event, error)
        else:
            self.given_up[slot.task_id] = slot.end_error or ""
        self.free(slot)


@trio.lowlevel.disable_ki_protection
async def _unprotected(
    body: Body, execution: BackgroundExecution, scope: trio.CancelScope
) -> Any:
    return await body(execution, scope)


