"""The way in: reserve a slot, store the start, settle an unknown answer."""

from __future__ import annotations

import logging

import trio

from ._errors import (
    ExecutorFenced,
    InvalidValue,
    Refused,
    StoreBusy,
    TaskExists,
    TaskNotStopped,
    TaskStoreError,
)
from ._execution import ambient
from ._json import new_id, shorten
from ._lifecycle import AttemptStarted, Registered
from ._liveness import Liveness
from ._records import TaskRecord, TaskStatus
from ._requests import ManagerConfig, StartRequest
from ._slots import Slot
from ._supervision import Supervisor
from .stores import ExecutorHandle, TaskStore

log = logging.getLogger("trio_bgtasks.manager")

_READ_BACK_S = 0.05


class Starter:
    """Admits attempts: afterwards the slot is live and its start is stored, or nothing happened."""

    def __init__(
        self, store: TaskStore, config: ManagerConfig, supervisor: Supervisor, liveness: Liveness
    ) -> None:
        self._store = store
        self._config = config
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
        task_id = request.task_id or new_id("bg_")
        await self._wait_for_other_call(task_id, request)
        executor = await self._liveness.ready()
        self._supervisor.check_open(request.owner_thread_id)
        await self._wait_for_other_call(task_id, request)
        slot = self._reserve(task_id, request, executor, background=background, scope=scope)
        try:
            slot.record = await self._store_start(slot, request)
        except BaseException:
            self._supervisor.free(slot)
            raise
        slot.answered.set()
        return slot

    async def _wait_for_other_call(self, task_id: str, request: StartRequest) -> None:
        """Let another call for this id get its answer, then go by the record."""
        while (other := self._supervisor.slots.get(task_id)) is not None:
            await other.answered.wait()
            if self._supervisor.slots.get(task_id) is other:
                if request.resume_attempt is None:
                    raise TaskExists(task_id, TaskStatus.RUNNING)
                raise TaskNotStopped(task_id, TaskStatus.RUNNING)

    def _reserve(
        self,
        task_id: str,
        request: StartRequest,
        executor: ExecutorHandle,
        *,
        background: bool,
        scope: trio.CancelScope | None,
    ) -> Slot:
        parent = self._parent_of(request)
        above = None if parent is None else self._supervisor.slots.get(parent)
        lineage: tuple[str, ...] = () if parent is None else (parent,)
        if above is not None:
            lineage += above.lineage
        slot = Slot(
            task_id,
            request.owner_thread_id,
            background,
            trio.CancelScope() if scope is None else scope,
            executor,
            lineage,
        )
        slot.deadline_s = request.deadline_s
        if slot.deadline_s is None:
            slot.deadline_s = self._config.attempt_deadline_s
        places = self._supervisor.places
        counted = background and not any(i in self._supervisor.slots for i in lineage)
        if places.bounded and counted:
            slot.ticket = places.claim(slot.owner_thread_id)
        self._supervisor.slots[task_id] = slot
        return slot

    def _parent_of(self, request: StartRequest) -> str | None:
        if request.parent_task_id is not None:
            return request.parent_task_id
        around = ambient(self._supervisor)
        return None if around is None else around.task_id

    async def _store_start(self, slot: Slot, request: StartRequest) -> TaskRecord:
        event = self._event(slot, request)
        try:
            return await self._store.apply(slot.task_id, event)
        except ExecutorFenced:
            # Found dead by somebody else; `lost` follows. Nothing ran, so the call may be repeated.
            slot.executor.lost.set()
            raise StoreBusy("the executor was fenced; the start was not applied") from None
        except (Refused, StoreBusy, InvalidValue):
            raise
        except Exception as error:
            record = await self._read_back(slot, event)
            if record is not None:
                return record
            if isinstance(error, TaskStoreError):
                raise
            raise TaskStoreError(f"{type(error).__name__}: {error}") from error
        except trio.Cancelled:
            # A store that promises less than ours may have applied it all the same.
            record = await self._read_back(slot, event)
            if record is None:
                raise
            return record

    def _event(self, slot: Slot, request: StartRequest) -> Registered | AttemptStarted:
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
            slot.lineage[0] if slot.lineage else None,
            request.args,
            request.metadata,
            request.idempotency_key,
        )

    async def _read_back(self, slot: Slot, event: Registered | AttemptStarted) -> TaskRecord | None:
        """Find out, within bounds, whether a start of unknown answer was stored.

        Where even that fails the slot goes, and the sweep ends the record if there is one.
        """
        attempt = 1 if isinstance(event, Registered) else event.expected_attempt + 1
        with trio.CancelScope(shield=True) as shield:
            shield.deadline = trio.current_time() + self._config.write_grace_s
            while True:
                try:
                    record = await self._store.load(slot.task_id)
                except Exception as error:  # noqa: BLE001 - a store may fail in any way
                    log.warning("start not read back: %s", error, extra=slot.extra())
                else:
                    return record if self._is_ours(slot, record, attempt) else None
                await trio.sleep(_READ_BACK_S)
        return None

    def _is_ours(self, slot: Slot, record: TaskRecord | None, attempt: int) -> bool:
        return (
            record is not None
            and record.status is TaskStatus.RUNNING
            and (record.executor_id, record.attempt) == (slot.executor.executor_id, attempt)
        )

