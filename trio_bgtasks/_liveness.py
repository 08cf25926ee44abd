"""Being alive, and finding who is not: executor identity, sweeps, and cancels from elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from ._errors import Refused
from ._hints import Hints
from ._lifecycle import CancelRequested, Finished
from ._records import Stopped, TaskRecord
from ._requests import ManagerConfig
from ._slots import Slot
from .stores import ExecutorHandle, SweepReport, TaskStore

log = logging.getLogger("trio_bgtasks.liveness")

_REOPEN_S = 1.0
LEFT_BEHIND = "No attempt of the live executor runs this task; marked stopped"


class Liveness:
    """The executor of one manager, renewed for as long as it serves; a fresh one after a loss."""

    def __init__(
        self, store: TaskStore, config: ManagerConfig, slots: dict[str, Slot], hints: Hints
    ) -> None:
        self._store = store
        self._config = config
        self._slots = slots
        self._hints = hints
        self._handle: ExecutorHandle | None = None
        self._ready = trio.Event()
        self.orphans = 0

    @property
    def executor_id(self) -> str:
        """The id of the current executor, or of the one that was lost last."""
        return "" if self._handle is None else self._handle.executor_id

    async def ready(self) -> ExecutorHandle:
        """Return the current executor; after a loss, wait for the fresh one."""
        while self._handle is None or self._handle.lost.is_set():
            await self._ready.wait()
        return self._handle

    async def serve(
        self, closed: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep an executor alive until ``closed``; started once the first sweep is over."""
        reported = False
        while True:
            try:
                async with self._store.executor(self._config.lease) as handle:
                    self._handle = handle
                    if not reported:
                        self._take(await self._sweep())
                        reported = True
                        task_status.started()
                    self._ready.set()
                    await _first_of(handle.lost.wait, closed.wait)
                    self._ready = trio.Event()
                    await self._lose(handle)
            except Exception:
                if not reported or closed.is_set():
                    raise
                log.exception("no fresh executor")
                await trio.sleep(_REOPEN_S)
            if closed.is_set():
                return

    async def _lose(self, handle: ExecutorHandle) -> None:
        """End every attempt of a lost executor; return when its last body has returned."""
        if not handle.lost.is_set():
            return
        log.warning("executor %s lost its lease", handle.executor_id)
        lost = [s for s in self._slots.values() if s.executor is handle]
        for slot in lost:
            slot.stop("fenced")
        for slot in lost:
            await slot.freed.wait()

    # ---- sweeps -------------------------------------------------------------------------------

    async def sweep_for_ever(self) -> None:
        """Find orphans, and our own running records without a slot, every ``sweep_s``."""
        while True:
            await trio.sleep(self._config.sweep_s)
            await _logged(self._sweep_once, "sweep")

    async def _sweep_once(self) -> None:
        report = await self._sweep()
        self._take(report)
        await self._end_left_behind(report)
        await self._collect()

    async def _sweep(self) -> SweepReport:
        return await self._store.sweep(self.executor_id, self._config.clock_ms())

    async def settle(self, record: TaskRecord) -> bool:
        """Look whether the executor of a foreign running record is dead; True if that ended it."""
        suspect = record.executor_id
        if suspect is None or suspect == self.executor_id:
            return False
        now = self._config.clock_ms()
        report = await self._store.sweep(self.executor_id, now, suspect=suspect)
        self._take(report)
        return bool(report.ended) or bool(report.fenced)

    def _take(self, report: SweepReport) -> None:
        self.orphans += len(report.ended)
        for error in report.corrupt:
            log.error("passed over in a sweep: %s", error, extra={"task_id": error.task_id})
        for task_id, owner in report.ended:
            log.warning(
                "task %s was an orphan", task_id, extra={"task_id": task_id, "owner_thread_id": owner}
            )
            self._hints.changed(owner, task_id)

    async def _end_left_behind(self, report: SweepReport) -> None:
        executor_id = self.executor_id
        for task_id, attempt in report.own_running:
            if task_id in self._slots:
                continue
            stopped = Stopped(LEFT_BEHIND)
            event = Finished(self._config.clock_ms(), executor_id, attempt, stopped)
            try:
                record = await self._store.apply(task_id, event)
            except Refused:
                continue  # it ended between the report and now
            log.warning("task %s was left behind", task_id, extra={"task_id": task_id})
            self._hints.changed(record.owner_thread_id, task_id)

    async def _collect(self) -> None:
        keep_s = self._config.retention_s
        if keep_s is None:
            return
        before = self._config.clock_ms() - int(keep_s * 1000)
        while await self._store.collect(None, ended_before_ms=before):
            pass

    # ---- cancels from elsewhere ---------------------------------------------------------------

    async def poll_for_ever(self) -> None:
        """See cancels that others accepted, and store the marks that we owe."""
        while True:
            await trio.sleep(self._config.poll_s)
            if self._slots:
                await _logged(self._poll_once, "poll")

    async def _poll_once(self) -> None:
        for slot in list(self._slots.values()):
            if slot.mark_error is not None:
                await self.mark(slot)
        for task_id in await self._store.cancel_marks(self.executor_id):
            slot = self._slots.get(task_id)
            if slot is not None and "cancel" not in slot.reasons:
                slot.stop("cancel")

    async def mark(self, slot: Slot) -> None:
        """Store the cancel mark that could not be stored before."""
        at_ms = slot.cancel_at_ms
        assert at_ms is not None
        try:
            slot.record = await self._store.apply(slot.task_id, CancelRequested(at_ms))
        except Refused:
            pass  # the end took the mark along
        slot.mark_error = None


async def _first_of(*waits: Callable[[], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(afn: Callable[[], Awaitable[None]]) -> None:
            await afn()
            nursery.cancel_scope.cancel()

        for afn in waits:
            nursery.start_soon(wait, afn)


async def _logged(afn: Callable[[], Awaitable[None]], what: str) -> None:
    try:
        await afn()
    except Exception as error:  # noqa: BLE001 - a service survives every failure of the store
        log.warning("%s failed: %s: %s", what, type(error).__name__, error)
