"""The way in: reserve a slot, store the start, settle an unknown answer."""

from __future__ import annotations

import logging
import math
from typing import NoReturn, TypeAlias

import trio

from ._errors import (
    CorruptRecord,
    ExecutorFenced,
    IdempotencyKeyUsed,
    InvalidValue,
    ParentCancelled,
    Refused,
    StoreBusy,
    TaskExists,
    TaskNotStopped,
    TaskStoreError,
    UnknownTask,
)
from ._events import AttemptStarted, Registered
from ._execution import ambient
from ._json import new_id, shorten
from ._liveness import Liveness
from ._records import TaskRecord, TaskStatus
from ._requests import ManagerConfig, StartRequest
from ._slots import ANSWERED, Slot
from ._supervision import Supervisor
from ._waits import StoreWaits
from .stores import TaskStore

log = logging.getLogger("trio_bgtasks.manager")

StartEvent: TypeAlias = Registered | AttemptStarted

_READ_BACK_S = 0.05
_MAX_LINEAGE = 100  # generations that are looked up for one start


class _AnswerUnknown(Exception):
    """Neither the start nor its read-back was answered; ``error`` is what the start met."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        super().__init__(error)


class Starter:
    """Admits attempts: afterwards the slot is live and its start is stored, or nothing happened."""

    def __init__(
        self,
        store: TaskStore,
        config: ManagerConfig,
        waits: StoreWaits,
        supervisor: Supervisor,
        liveness: Liveness,
    ) -> None:
        self._store = store
        self._config = config
        self._waits = waits
        self._supervisor = supervisor
        self._liveness = liveness

    async def admit(
        self, request: StartRequest, *, background: bool, scope: trio.CancelScope | None
    ) -> Slot:
        """Return the live slot of a stored start.

        Raises:
            Refused: the record does not allow it.
            ManagerClosed: the manager or the owner is closing.
            TaskStoreError: the start could not be stored; it does not run.
            trio.Cancelled: it is not stored. A start that was stored although its caller was
                cancelled is returned: a background one runs, a foreground one meets the
                cancellation at once.
        """
        slot, event = await self._reserve(request, background=background, scope=scope)
        try:
            record = await self._store_start(slot, event)
        except _AnswerUnknown as unknown:
            self._supervisor.ends.unconfirmed(slot, _attempt_of(event), unknown.error)
            _reraise(unknown.error)
        except BaseException:
            self._supervisor.ends.let_go(slot)
            raise
        slot.record = record
        if (parent := record.parent_task_id) is not None:
            try:
                slot.lineage = await self._lineage(parent)
            except BaseException as interrupt:  # Ctrl-C reaches the main task in a shield, too
                self._supervisor.ends.unconfirmed(slot, record.attempt, interrupt)
                raise
            if self._is_under_unsaved_cancel(parent):
                slot.stop("cancel")  # accepted while the store was asked
        places = self._supervisor.places
        if places.bounded and slot.background and not self._has_live_ancestor(slot):
            slot.ticket = places.claim(slot.owner_thread_id)
        slot.advance(ANSWERED)
        return slot

    async def _reserve(
        self, request: StartRequest, *, background: bool, scope: trio.CancelScope | None
    ) -> tuple[Slot, StartEvent]:
        """Wait until nothing stands in the way; take the slot without a pause after that look."""
        supervisor, owner_thread_id = self._supervisor, request.owner_thread_id
        task_id = request.task_id or new_id("bg_")
        owner = None
        while True:
            supervisor.check_open(owner_thread_id)
            parent = self._parent_of(task_id, request)
            executor = self._liveness.current
            if (other := supervisor.slots.get(task_id)) is not None:
                await self._answer_of(other, request)
            elif executor is None:
                self._check_not_fenced()
                await self._liveness.ready.wait()
            elif background and (owner := supervisor.owners.of(owner_thread_id)).nursery is None:
                await owner.opened.wait()
            else:
                break
        deadline_s = request.deadline_s
        if deadline_s is None:
            deadline_s = self._config.attempt_deadline_s
        if scope is None:
            scope = trio.CancelScope()
        slot = Slot(task_id, owner_thread_id, owner, scope, executor, deadline_s)
        event = self._event(slot, request, parent)
        supervisor.reserve(slot)
        return slot, event

    def _check_not_fenced(self) -> None:
        """Refuse who is waited for: a fresh executor comes when the last fenced body has returned.

        Before its body was told of the loss, it is not refused: it is to see that first.
        """
        told = not self._liveness.ready.is_set()
        if told and ambient(self._supervisor):
            raise StoreBusy("the executor of the calling task was lost; the start was not applied")

    def _parent_of(self, task_id: str, request: StartRequest) -> str | None:
        """Return the parent of a new task.

        Refuses what the store would refuse, had it taken the cancel of the parent already.
        """
        if request.resume_attempt is not None:
            return None
        parent = request.parent_task_id
        if parent is None and (around := ambient(self._supervisor)):
            parent = around[0].task_id
        if parent is not None and self._is_under_unsaved_cancel(parent):
            raise ParentCancelled(task_id, parent)
        return parent

    def _is_under_unsaved_cancel(self, parent: str) -> bool:
        above = self._supervisor.slots.get(parent)
        return above is not None and above.mark_error is not None

    async def _answer_of(self, other: Slot, request: StartRequest) -> None:
        """Let another call for this id get its answer; raise if the task is live then."""
        await other.reach(ANSWERED)
        if self._supervisor.slots.get(other.task_id) is not other:
            return
        record, key = other.record, request.idempotency_key
        if request.resume_attempt is None:
            used = None if record is None else (record.owner_thread_id, record.idempotency_key)
            if key is not None and used == (request.owner_thread_id, key):
                raise IdempotencyKeyUsed(other.task_id, key)
            raise TaskExists(other.task_id, TaskStatus.RUNNING)
        # Without a record it is not known yet of which type the task is: not by us, nor by them.
        theirs = other.owner_thread_id, request.task_type if record is None else record.task_type
        if theirs != (request.owner_thread_id, request.task_type):
            raise UnknownTask(other.task_id)
        raise TaskNotStopped(other.task_id, TaskStatus.RUNNING)

    async def _lineage(self, parent: str | None) -> tuple[str, ...]:
        """Return the parent, then those above it, up to the first live one and what is live above.

        Where places are bounded, those that have ended are looked up in the store.
        """
        slots = self._supervisor.slots
        lineage: list[str] = []
        while parent is not None and parent not in lineage and len(lineage) < _MAX_LINEAGE:
            lineage.append(parent)
            above = slots.get(parent)
            if above is not None:
                # Those that ended are left out: each task may start the next one, for ever.
                lineage += [task_id for task_id in above.lineage if task_id in slots]
                break
            parent = await self._parent_above(parent) if self._supervisor.places.bounded else None
        return tuple(lineage)

    async def _parent_above(self, task_id: str) -> str | None:
        with self._waits.bound(self._config.write_grace_s, shield=True):
            try:
                record = await self._store.load(task_id)
            except Exception as error:  # noqa: BLE001 - it then waits for a place, like any other
                log.warning("parent not read: %s", error, extra={"task_id": task_id})
            else:
                return None if record is None else record.parent_task_id
        return None

    def _has_live_ancestor(self, slot: Slot) -> bool:
        """Is it started by, or below, what holds a place? Who holds one never waits for one."""
        if ambient(self._supervisor):
            return True
        above = (self._supervisor.slots.get(i) for i in slot.lineage if i != slot.task_id)
        return any(other is not None and not other.queued for other in above)

    async def _store_start(self, slot: Slot, event: StartEvent) -> TaskRecord:
        try:
            if self._waits.at_once:
                return await self._store.apply(slot.task_id, event)
            with self._waits.bound(math.inf):
                return await self._store.apply(slot.task_id, event)
            raise TaskStoreError("the store did not answer before the task manager closed")  # noqa: TRY301 - as if the store had said so
        except ExecutorFenced:
            # Found dead by somebody else; `lost` follows. Nothing ran, so the call may be repeated.
            slot.executor.lost.set()
            raise StoreBusy("the executor was fenced; the start was not applied") from None
        except (Refused, StoreBusy, InvalidValue, CorruptRecord):
            raise  # nothing was applied
        except KeyboardInterrupt as interrupt:
            raise _AnswerUnknown(interrupt) from None  # it is not to wait for a read-back
        except (Exception, trio.Cancelled) as error:  # noqa: ASYNC103, BLE001 - applied or not?
            record = await self._read_back(slot, event, error)  # noqa: ASYNC102 - shielded there
            if record is None:
                _reraise(error)
            return record  # noqa: ASYNC104

    def _event(self, slot: Slot, request: StartRequest, parent: str | None) -> StartEvent:
        now, executor_id = self._config.clock_ms(), slot.executor.executor_id
        if request.resume_attempt is not None:
            return AttemptStarted(
                now,
                executor_id,
                request.owner_thread_id,
                request.task_type,
                request.resume_attempt,
                request.args,
                slot.background,
            )
        return Registered(
            now,
            executor_id,
            request.owner_thread_id,
            request.task_type,
            shorten(request.description, self._config.description_chars),
            slot.background,
            request.supports_resume,
            parent,
            request.args,
            request.metadata,
            request.idempotency_key,
        )

    async def _read_back(
        self, slot: Slot, event: StartEvent, error: BaseException
    ) -> TaskRecord | None:
        """Return the record if the start was stored after all, None if it was not.

        Raises:
            _AnswerUnknown: that could not be found out in time.
        """
        with self._waits.bound(self._config.write_grace_s, shield=True):
            while True:
                try:
                    record = await self._store.load(slot.task_id)
                except CorruptRecord:
                    return None  # not what we would have written
                except Exception as failure:  # noqa: BLE001 - a store may fail in any way
                    log.warning("start not read back: %s", failure, extra=slot.extra())
                except KeyboardInterrupt as interrupt:  # it reaches the main task in a shield, too
                    raise _AnswerUnknown(interrupt) from None
                else:
                    return record if _is_ours(slot, record, event) else None
                await trio.sleep(_READ_BACK_S)
        raise _AnswerUnknown(error)


def _attempt_of(event: StartEvent) -> int:
    return 1 if isinstance(event, Registered) else event.expected_attempt + 1


def _is_ours(slot: Slot, record: TaskRecord | None, event: StartEvent) -> bool:
    ours = slot.executor.executor_id, _attempt_of(event), TaskStatus.RUNNING
    return record is not None and (record.executor_id, record.attempt, record.status) == ours


def _reraise(error: BaseException) -> NoReturn:
    """Raise ``error``; a foreign exception of the store as the cause of one of ours."""
    if isinstance(error, TaskStoreError) or not isinstance(error, Exception):
        raise error
    raise TaskStoreError(f"{type(error).__name__}: {error}") from error
