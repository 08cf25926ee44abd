"""Being alive, and finding who is not: executor identity, sweeps, and cancels from elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from ._errors import Refused
from ._events import Finished
from ._hints import Hints
from ._records import Stopped, TaskRecord
from ._requests import ManagerConfig, cutoff_ms
from ._slots import ANSWERED, RETURNED, Slot
from ._waits import StoreWaits
from .stores import ExecutorHandle, SweepReport, TaskStore

log = logging.getLogger("trio_bgtasks.liveness")

_REOPEN_S = 1.0
LEFT_BEHIND = "No attempt of the live executor runs this task; marked stopped"


class Liveness:
    """The executor of one manager, renewed for as long as it serves; a fresh one after a loss.

    Attributes:
        ready: Set while there is an executor. Once it is, look at ``current`` again.
        orphans: How many tasks of dead executors were ended.
    """

    def __init__(
        self,
        store: TaskStore,
        config: ManagerConfig,
        waits: StoreWaits,
        slots: dict[str, Slot],
        hints: Hints,
    ) -> None:
        self._store = store
        self._config = config
        self._waits = waits
        self._slots = slots
        self._hints = hints
        self._handle: ExecutorHandle | None = None
        self.ready = trio.Event()
        self.orphans = 0

    @property
    def executor_id(self) -> str:
        """The id of the current executor, or of the one that was lost last."""
        return "" if self._handle is None else self._handle.executor_id

    @property
    def current(self) -> ExecutorHandle | None:
        """The executor under which an attempt may be started now."""
        return None if self._handle is None or self._handle.lost.is_set() else self._handle

    async def serve(
        self, over: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep an executor alive until ``over``; started once the first sweep is over.

        Raises whatever the store raises before that; afterwards it is tried again, for ever.
        """
        opened, config = False, self._config
        while not over.is_set():
            try:
                async with self._store.executor(config.lease, config.clock_ms) as handle:
                    self._handle = handle
                    if not opened:
                        self._take(await self._sweep())
                        opened = True
                        task_status.started()
                    await self._until_lost(handle, over)
            except Exception:
                if not opened:
                    raise
                log.exception("executor %s: not retired, or no fresh one", self.executor_id)
                with trio.move_on_after(_REOPEN_S):
                    await over.wait()

    async def _until_lost(self, handle: ExecutorHandle, over: trio.Event) -> None:
        """Return when everything is over, or the executor is lost and its last body returned."""
        self.ready.set()
        await _first_of(handle.lost.wait, over.wait)
        if not handle.lost.is_set():
            return
        self.ready = trio.Event()
        log.warning("executor %s lost its lease", handle.executor_id)
        lost = [slot for slot in self._slots.values() if slot.executor is handle]
        for slot in lost:
            slot.stop("fenced")
        for slot in lost:
            if slot.stage >= ANSWERED:  # else no body of it runs, nor will
                await slot.reach(RETURNED)
        # An end that is not stored yet is welcome until we are fenced, which retiring would do.
        with trio.move_on_after(self._config.lease.lease_s):
            for slot in lost:
                while slot.end_error is not None:
                    await slot.changed()

    # ---- sweeps -------------------------------------------------------------------------------

    async def sweep_for_ever(self) -> None:
        """Find orphans, and our own running records without a slot, every ``sweep_s``."""
        while True:
            await trio.sleep(self._config.sweep_s)
            # One that is never answered is not to be the last one.
            await self._try(self._sweep_once, self._config.lease.lease_s, "sweep")

    async def _sweep_once(self) -> None:
        report = await self._sweep()
        self._take(report)
        await self._end_left_behind(report)
        await self._collect()

    async def _sweep(self) -> SweepReport:
        return await self._store.sweep(self.executor_id, self._config.clock_ms())

    async def settle(self, record: TaskRecord) -> bool:
        """End the running record of a foreign executor that is dead.

        Return whether the executor is a foreign one: then read the record again, because others may
        have ended it meanwhile.
        """
        suspect = record.executor_id
        if suspect is None or suspect == self.executor_id:
            return False
        now = self._config.clock_ms()
        report = await self._store.sweep(self.executor_id, now, suspect=suspect)
        self._take(report)
        return True

    def _take(self, report: SweepReport) -> None:
        self.orphans += len(report.ended)
        for error in report.corrupt:
            log.error("passed over in a sweep: %s", error, extra={"task_id": error.task_id})
        for task_id, owner in report.ended:
            extra = {"task_id": task_id, "owner_thread_id": owner}
            log.warning("task %s was an orphan", task_id, extra=extra)
            self._hints.changed(owner, task_id)

    async def _end_left_behind(self, report: SweepReport) -> None:
        executor_id = self.executor_id
        for task_id, attempt in report.own_running:
            if task_id in self._slots:
                continue
            extra = {"task_id": task_id, "attempt": attempt}
            stopped = Stopped(LEFT_BEHIND)
            event = Finished(self._config.clock_ms(), executor_id, attempt, stopped)
            try:
                record = await self._store.apply(task_id, event)
            except Refused:
                continue  # it ended between the report and now
            except Exception as error:  # noqa: BLE001 - the others are not to wait for this one
                log.warning("task %s is left behind: %s", task_id, error, extra=extra)
                continue
            log.warning("task %s was left behind", task_id, extra=extra)
            self._hints.changed(record.owner_thread_id, task_id)

    async def _collect(self) -> None:
        if self._config.retention_s is None:
            return
        before = cutoff_ms(self._config.clock_ms(), self._config.retention_s)
        while await self._store.collect(None, ended_before_ms=before):  # noqa: ASYNC110 - it works
            await trio.lowlevel.checkpoint()

    # ---- cancels from elsewhere ---------------------------------------------------------------

    async def poll_for_ever(self) -> None:
        """See cancels that others accepted."""
        while True:
            await trio.sleep(self._config.poll_s)
            if self._slots:
                await self._try(self._see_marks, self._config.write_grace_s, "poll for cancels")

    async def _see_marks(self) -> None:
        for task_id in await self._store.cancel_marks(self.executor_id):
            slot = self._slots.get(task_id)
            if slot is not None and "cancel" not in slot.reasons:
                slot.stop("cancel")

    async def _try(self, afn: Callable[[], Awaitable[None]], within_s: float, what: str) -> None:
        """Do one piece of a service, which goes on whatever becomes of this one."""
        with self._waits.bound(within_s):
            try:
                await afn()
            except Exception as error:  # noqa: BLE001 - a store may fail in any way
                log.warning("%s failed: %s: %s", what, type(error).__name__, error)
            return
        log.warning("%s failed: the store did not answer in time", what)


async def _first_of(*waits: Callable[[], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(afn: Callable[[], Awaitable[None]]) -> None:
            await afn()
            nursery.cancel_scope.cancel()

        for afn in waits:
            nursery.start_soon(wait, afn)
