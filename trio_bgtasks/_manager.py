"""`BackgroundTaskManager`: every public operation on tasks."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import final

import trio

from ._announcing import AT_ONCE, Announcer
from ._answering import Answerer
from ._cancelling import Canceller
from ._checks import check_bool, check_int, check_seconds
from ._errors import IdempotencyKeyUsed, TaskStoreError
from ._events import QuestionAnswered
from ._execution import ambient
from ._hints import Hints, Subscription
from ._json import JsonObject, JsonValue, check_id, json_value
from ._liveness import Liveness
from ._looking import Looker
from ._records import (
    JournalEntry,
    OutputPage,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskSummary,
)
from ._requests import (
    CancelledTree,
    ManagerConfig,
    ManagerStatistics,
    StartRequest,
    cutoff_ms,
)
from ._serving import Services
from ._slots import ANSWERED, FREED, Slot
from ._starting import Starter
from ._supervision import Body, Supervisor
from ._waits import StoreWaits
from .stores import TaskStore

log = logging.getLogger("trio_bgtasks.manager")

_PAGE_BYTES = 64 << 10


@final
class BackgroundTaskManager:
    """The runtime of one process: starts, supervises, cancels and answers for tasks.

    Opened by `open_task_manager`, valid until that context ends. Owners see their own tasks only:
    for another owner's id every method answers as for an unknown one. Every public call checkpoints
    once, at its start; cancelled there, it was not applied.
    """

    def __init__(self, store: TaskStore, config: ManagerConfig) -> None:
        self._store = store
        self._config = config
        waits = StoreWaits(store)
        self._hints = Hints()
        self._supervisor = Supervisor(store, config, self._hints, waits)
        self._slots = self._supervisor.slots
        self._liveness = Liveness(store, config, waits, self._slots, self._hints)
        self._starter = Starter(store, config, waits, self._supervisor, self._liveness)
        self._canceller = Canceller(store, config, waits, self._supervisor, self._hints)
        self._looker = Looker(store, config, self._supervisor, self._liveness, self._hints)
        self._answerer = Answerer(store, config, self._looker, self._hints)
        self._announcer = Announcer(store, config, waits)
        self._services = Services(config, waits, self._supervisor, self._liveness, self._hints)

    def __repr__(self) -> str:
        state = "closed" if self._supervisor.closing else "open"
        return f"<BackgroundTaskManager {state}, {len(self._slots)} live tasks>"

    @property
    def config(self) -> ManagerConfig:
        """The bounds it was opened with."""
        return self._config

    # ---- starting -----------------------------------------------------------------------------

    async def start(self, request: StartRequest, body: Body) -> TaskSummary:
        """Start ``body(execution, cancel_scope)`` in the background; return once that is stored.

        The body runs in the owner's nursery, whatever becomes of the caller. An idempotency key
        that this owner used for the same ``task_type`` starts nothing: the summary of that task is
        returned (its id tells).

        Raises:
            Refused: the record does not allow it (`TaskExists`, `ParentCancelled`,
                `IdempotencyKeyUsed` for another type, `TaskNotStopped` and others for a resume).
            ManagerClosed: the manager or the owner is closing.
            TaskStoreError: the start could not be stored; the body does not run.
        """
        return await self._start(request, body, None)

    @trio.lowlevel.enable_ki_protection
    async def _start(
        self, request: StartRequest, body: Body, scope: trio.CancelScope | None
    ) -> TaskSummary:
        _check_start(request, body)
        await trio.lowlevel.checkpoint()
        try:
            slot = await self._starter.admit(request, background=True, scope=scope)
        except IdempotencyKeyUsed as used:
            return await self._recalled(request, used)
        self._supervisor.start_background(slot, body)
        self._hints.changed(slot.owner_thread_id, slot.task_id, wake=False)
        assert slot.record is not None
        return slot.summary(slot.record)

    @trio.lowlevel.enable_ki_protection
    async def run(self, request: StartRequest, body: Body) -> TaskResult:
        """Run ``body(execution, cancel_scope)`` in the caller's task; return how it ended.

        Live, listed and cancellable like a background attempt. An exception of the body is raised
        again after it was recorded; the caller's own cancellation passes through, the task is then
        stopped. See `persistence_error` for an end that is not stored yet.

        Raises:
            Refused: the record does not allow it (see `start`); `IdempotencyKeyUsed` also for the
                same type.
            ManagerClosed: the manager or the owner is closing.
            TaskStoreError: the start could not be stored; the body did not run.
        """
        _check_start(request, body)
        await trio.lowlevel.checkpoint()
        slot = await self._starter.admit(request, background=False, scope=None)
        self._hints.changed(slot.owner_thread_id, slot.task_id, wake=False)
        end, outcome = await self._supervisor.run_foreground(slot, body)
        if "caller" in slot.reasons:
            await trio.lowlevel.checkpoint()  # raises the caller's own Cancelled
        if end.raised is not None and not slot.reasons:
            raise end.raised
        return outcome

    async def spawn(
        self,
        owner_thread_id: str,
        task_type: str,
        description: str,
        body: Callable[[trio.CancelScope], Awaitable[TaskResult]],
        *,
        task_id: str | None = None,
        parent_task_id: str | None = None,
        metadata: JsonObject | None = None,
        cancel_scope: trio.CancelScope | None = None,
    ) -> str:
        """Start ``body(cancel_scope)`` in the background; return its task id. Never resumable.

        ``cancel_scope``: a scope of the caller's to run it in; cancelling it is a cancel,
        stored with the end, unless something else was to end the task before. Raises as `start`
        does.
        """
        if cancel_scope is not None and not isinstance(cancel_scope, trio.CancelScope):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"cancel_scope must be a trio.CancelScope, not {type(cancel_scope).__name__}"
            )
        if not callable(body):
            raise TypeError(f"body must be an async function, not {type(body).__name__}")
        request = StartRequest(
            owner_thread_id=owner_thread_id,
            task_type=task_type,
            description=description,
            task_id=task_id,
            parent_task_id=parent_task_id,
            metadata={} if metadata is None else metadata,
        )
        summary = await self._start(request, lambda _, scope: body(scope), cancel_scope)
        return summary.task_id

    async def recall(
        self, owner_thread_id: str, task_type: str, idempotency_key: str
    ) -> TaskRecord | None:
        """Return the task that this owner's key started; None when the key is new.

        Raises:
            IdempotencyKeyUsed: by a task of another type.
            TaskStoreError: the store failed.
        """
        check_id(owner_thread_id, "owner_thread_id")
        check_id(task_type, "task_type")
        check_id(idempotency_key, "idempotency_key")
        await trio.lowlevel.checkpoint()
        record = await self._store.load_by_key(owner_thread_id, idempotency_key)
        if record is None:
            return None
        if record.task_type != task_type:
            raise IdempotencyKeyUsed(record.task_id, idempotency_key)
        return await self._looker.settled(owner_thread_id, record.task_id)

    async def _recalled(self, request: StartRequest, used: IdempotencyKeyUsed) -> TaskSummary:
        """Answer a start with a used key as a status call for the task that it started."""
        record = await self._looker.settled(request.owner_thread_id, used.task_id)
        if record is None or record.task_type != request.task_type:
            raise used
        return self._looker.summary(record)

    # ---- cancelling ---------------------------------------------------------------------------

    async def cancel(self, owner_thread_id: str, task_id: str) -> TaskSummary:
        """Cancel one task, running or stopped, in whatever process; return how it stands.

        When it returns, the cancel is accepted: the task ends cancelled, also across a crash, and
        is never resumed. If the mark could not be stored and the task runs here, it is cancelled
        all the same and ``persistence_error`` says so.

        Raises:
            UnknownTask: this owner has no such task.
            TaskNotRunning: it has ended.
            TaskStoreError: the mark could not be stored and the task does not run here.
        """
        return await self._canceller.cancel(await self._root(owner_thread_id, task_id))

    async def cancel_tree(self, owner_thread_id: str, task_id: str) -> CancelledTree:
        """Cancel a task of this owner and everything below it, whoever owns that.

        Once begun it goes on to its end, also when its caller is cancelled: no tree is left half
        cancelled.

        Raises as `cancel` does; `TaskNotRunning` when nothing in the tree runs or is stopped.
        """
        return await self._canceller.cancel_tree(await self._root(owner_thread_id, task_id))

    async def _root(self, owner_thread_id: str, task_id: str) -> TaskRecord:
        await self._enter(owner_thread_id, task_id)
        slot = self._looker.own_slot(owner_thread_id, task_id)
        if slot is not None and slot.record is not None:
            return slot.record  # what is live here can be cancelled without reading the store
        return await self._looker.known(owner_thread_id, task_id)

    @trio.lowlevel.enable_ki_protection
    async def close_owner(self, owner_thread_id: str) -> None:
        """End every attempt of the owner as stopped; return when that is stored.

        Meanwhile nothing can be started for the owner; afterwards it may start again.

        Raises:
            RuntimeError: called from within a task that it would wait for.
            TaskStoreError: ends were given up: the manager closed meanwhile and the store refused
                them, or their records are corrupt; the text names those tasks.
        """
        check_id(owner_thread_id, "owner_thread_id")
        await trio.lowlevel.checkpoint()
        if any(slot.owner_thread_id == owner_thread_id for slot in self._bodies_around()):
            raise RuntimeError("close_owner() would wait for the task that calls it")
        closing = self._supervisor.closing_owners
        closing[owner_thread_id] += 1
        try:
            mine = self._supervisor.of_owner(owner_thread_id)
            for slot in mine:
                slot.stop("owner_close")
            for slot in mine:
                await slot.reach(FREED)
        finally:
            closing[owner_thread_id] -= 1
            if not closing[owner_thread_id]:
                del closing[owner_thread_id]
        lost = [f"{slot.task_id}: {slot.lost}" for slot in mine if slot.lost is not None]
        if lost:
            ends = f"{len(lost)} ends of owner thread {owner_thread_id!r}"
            raise TaskStoreError(f"{ends} are not stored: {'; '.join(lost)}")

    def _bodies_around(self) -> Iterator[Slot]:
        """Yield the attempts that cannot end before this call: from the innermost outwards."""
        for execution in ambient(self._supervisor):
            slot = self._slots[execution.task_id]  # there for as long as its body runs
            yield slot
            if slot.background:
                return  # whoever started it does not wait for it

    # ---- looking ------------------------------------------------------------------------------

    async def get(self, owner_thread_id: str, task_id: str) -> TaskSummary | None:
        """Return how a task stands, None when this owner has no such task.

        Durable truth: what it says survives ``kill -9``. While an end is not stored, it goes on
        saying running, with ``persistence_error``; so it does for a live task when the store fails.

        Raises:
            TaskStoreError: the store failed and the task is not live here.
        """
        await self._enter(owner_thread_id, task_id)
        return await self._looker.get(owner_thread_id, task_id)

    async def record(self, owner_thread_id: str, task_id: str) -> TaskRecord | None:
        """Return the whole record, None when this owner has no such task. Raises as `get` does."""
        await self._enter(owner_thread_id, task_id)
        return await self._looker.settled(owner_thread_id, task_id)

    def live(self, owner_thread_id: str) -> list[TaskSummary]:
        """Return what is live here of this owner, without asking the store."""
        check_id(owner_thread_id, "owner_thread_id")
        return [
            slot.summary(slot.record)
            for slot in self._supervisor.of_owner(owner_thread_id)
            if slot.record is not None
        ]

    def persistence_error(self, owner_thread_id: str, task_id: str) -> str | None:
        """Return why the end, or the cancel mark, of a task is not stored yet; None if it is."""
        check_id(owner_thread_id, "owner_thread_id")
        check_id(task_id, "task_id")
        slot = self._looker.own_slot(owner_thread_id, task_id)
        return None if slot is None else slot.persistence_error

    def current_task_id(self) -> str | None:
        """Return the task whose live attempt makes this call, None outside any."""
        return next((e.task_id for e in ambient(self._supervisor)), None)

    async def list_tasks(
        self,
        owner_thread_id: str,
        *,
        status: TaskStatus | None = None,
        task_type: str | None = None,
        background_only: bool = False,
    ) -> list[TaskSummary]:
        """Return the owner's tasks in order of creation; a corrupt one is left out and logged."""
        check_id(owner_thread_id, "owner_thread_id")
        if status is not None:
            status = _check_status(status)
        if task_type is not None:
            check_id(task_type, "task_type")
        check_bool(background_only, "background_only")
        await trio.lowlevel.checkpoint()
        records = await self._looker.records(owner_thread_id, status, task_type)
        shown = (r for r in records if r.background or not background_only)
        return [self._looker.summary(record) for record in shown]

    async def has_running_tasks(self, owner_thread_id: str) -> bool:
        """Tell whether any task of the owner runs, in whatever process."""
        check_id(owner_thread_id, "owner_thread_id")
        await trio.lowlevel.checkpoint()
        if self.live(owner_thread_id):
            return True
        return bool(await self._looker.records(owner_thread_id, TaskStatus.RUNNING, None))

    async def output(
        self, owner_thread_id: str, task_id: str, *, offset: int = 0, limit: int | None = None
    ) -> OutputPage:
        """Return a page of the task's output log from byte ``offset`` (negative: from the end).

        ``limit``: about how many bytes; None: 64 KiB.

        Raises:
            UnknownTask: this owner has no such task.
            TaskStoreError: the store failed.
        """
        check_int(offset, "offset")
        if limit is not None:
            check_int(limit, "limit", least=1)
        await self._enter(owner_thread_id, task_id)
        await self._looker.known(owner_thread_id, task_id)
        size = _PAGE_BYTES if limit is None else limit
        return await self._store.read_output(task_id, offset=offset, limit=size)

    async def history(self, owner_thread_id: str, task_id: str) -> list[JournalEntry]:
        """Return the task's journal, oldest first. Raises as `output` does."""
        await self._enter(owner_thread_id, task_id)
        await self._looker.known(owner_thread_id, task_id)
        return await self._store.history(task_id)

    async def wait(self, owner_thread_id: str, task_id: str) -> TaskSummary:
        """Wait until the task is not running, in whatever process; return how it stands then.

        Bound it with a cancel scope. Tasks of this process wake it; others are polled.

        Raises:
            UnknownTask: this owner has no such task, or it was collected.
            ManagerClosed: the manager closed first.
            RuntimeError: called from within the task or one below it.
            TaskStoreError: the store failed and the task is not live here.
        """
        await self._enter(owner_thread_id, task_id)
        return await self._looker.wait(owner_thread_id, task_id)

    # ---- answering ----------------------------------------------------------------------------

    async def answer(
        self, owner_thread_id: str, task_id: str, question_id: str, value: object
    ) -> TaskSummary:
        """Answer an open question of a task, in whatever process; return how the task stands.

        When it returns, the answer is stored: it is given, once, to whoever asked; after a crash,
        to the attempt that a resume starts, when that asks the same. The first answer wins.

        Raises:
            UnknownTask: this owner has no such task.
            TaskNotRunning: it has ended, or is stopped.
            QuestionClosed: it has no such question, or that was answered or withdrawn, or the task
                is being cancelled.
            InvalidAnswer: ``value`` does not fit the question's schema; the question stays open.
            ValueError: ``value`` is not JSON.
            TaskStoreError: the store failed.
        """
        value = json_value(value, "value")
        return await self._answer(owner_thread_id, task_id, question_id, value, declined=False)

    async def decline(self, owner_thread_id: str, task_id: str, question_id: str) -> TaskSummary:
        """Decline to answer: whoever asked gets `QuestionDeclined`. Else as `answer`."""
        return await self._answer(owner_thread_id, task_id, question_id, None, declined=True)

    async def _answer(
        self,
        owner_thread_id: str,
        task_id: str,
        question_id: str,
        value: JsonValue,
        *,
        declined: bool,
    ) -> TaskSummary:
        check_id(question_id, "question_id")
        await self._enter(owner_thread_id, task_id)
        event = QuestionAnswered(self._config.clock_ms(), question_id, value, declined)
        return await self._answerer.answer(owner_thread_id, task_id, event)

    # ---- announcing ---------------------------------------------------------------------------

    @asynccontextmanager
    async def notices(
        self, owner_thread_id: str, *, background_only: bool = False, limit: int = AT_ONCE
    ) -> AsyncGenerator[list[TaskSummary], None]:
        """Give the announcements of ended attempts, each as its attempt ended, oldest first.

        They are acknowledged, for ever, when the block succeeds; if it raises, they come again. At
        most ``limit`` at a time, and never more than 100. What one block holds no other block of
        this manager is given.
        ``background_only`` passes over foreground attempts, whose notices stay.

        Raises:
            TaskStoreError: they could not be read, or not acknowledged: then they come again.
        """
        check_id(owner_thread_id, "owner_thread_id")
        check_bool(background_only, "background_only")
        check_int(limit, "limit", least=1)
        await trio.lowlevel.checkpoint()
        found = self._announcer.notices(
            owner_thread_id, limit=limit, background_only=background_only
        )
        async with found as summaries:
            yield summaries

    async def take_notices(self, owner_thread_id: str) -> list[TaskSummary]:
        """Return the announcements and acknowledge them at once. See `notices`."""
        async with self.notices(owner_thread_id) as summaries:
            return summaries

    @asynccontextmanager
    async def subscribe(self, owner_thread_id: str) -> AsyncGenerator[Subscription, None]:
        """Give a channel of ids of the owner's tasks about which something changed here.

        A hint to look, never the truth: coalesced per task, bounded, never waited for. The channel
        ends when the manager closes.
        """
        check_id(owner_thread_id, "owner_thread_id")
        await trio.lowlevel.checkpoint()
        subscription = self._hints.subscribe(owner_thread_id)
        try:
            yield subscription
        finally:
            subscription.close()

    # ---- housekeeping -------------------------------------------------------------------------

    async def gc_terminal(self, owner_thread_id: str, *, older_than_s: float = 0) -> int:
        """Delete the owner's ended records without a running descendant; return how many.

        A stopped record that may be resumed has not ended. Notices survive, ids and keys stay used.
        """
        check_id(owner_thread_id, "owner_thread_id")
        check_seconds(older_than_s, "older_than_s")
        await trio.lowlevel.checkpoint()
        before = cutoff_ms(self._config.clock_ms(), older_than_s)
        count = 0
        while gone := await self._store.collect(owner_thread_id, ended_before_ms=before):
            count += len(gone)
            for task_id in gone:
                self._hints.changed(owner_thread_id, task_id)
            await trio.lowlevel.cancel_shielded_checkpoint()  # others' turn; it is applied already
        return count

    async def find(self, task_id: str) -> TaskRecord | None:
        """Return a task of whatever owner: for the host, never for a model."""
        check_id(task_id, "task_id")
        await trio.lowlevel.checkpoint()
        return await self._looker.settled(None, task_id)

    async def owners(self) -> list[str]:
        """Return every owner that has tasks: for the host, never for a model."""
        await trio.lowlevel.checkpoint()
        owners: list[str] = []
        while page := await self._store.owners(after=owners[-1] if owners else ""):
            owners += page
            await trio.lowlevel.checkpoint()
        return owners

    def statistics(self) -> ManagerStatistics:
        """Return what the manager holds at this moment."""
        slots = self._slots.values()
        supervisor = self._supervisor
        return ManagerStatistics(
            executor_id=self._liveness.executor_id,
            owners=len(supervisor.owners),
            starting=sum(slot.stage < ANSWERED for slot in slots),
            queued=sum(slot.queued for slot in slots),
            background=sum(slot.running and slot.background for slot in slots),
            foreground=sum(slot.running and not slot.background for slot in slots),
            unsaved=sum(slot.end_error is not None for slot in slots),
            waiters=self._hints.waiters,
            subscribers=self._hints.subscribers,
            started=supervisor.started,
            finished=supervisor.ends.finished,
            orphans=self._liveness.orphans,
            write_retries=supervisor.ends.write_retries,
        )

    # ---- shared -------------------------------------------------------------------------------

    async def _enter(self, owner_thread_id: str, task_id: str) -> None:
        check_id(owner_thread_id, "owner_thread_id")
        check_id(task_id, "task_id")
        await trio.lowlevel.checkpoint()


def _check_start(request: object, body: object) -> None:
    if not isinstance(request, StartRequest):
        raise TypeError(f"request must be a StartRequest, not {type(request).__name__}")
    if not callable(body):
        raise TypeError(f"body must be an async function, not {type(body).__name__}")


def _check_status(value: object) -> TaskStatus:
    if not isinstance(value, str):
        raise TypeError(f"status must be a TaskStatus, not {type(value).__name__}")
    try:
        return TaskStatus(value)
    except ValueError:
        raise ValueError(f"status must be one of {', '.join(TaskStatus)}") from None
