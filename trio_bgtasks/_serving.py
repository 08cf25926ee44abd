"""The services of one manager, and the order in which it opens and closes."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import trio

from ._errors import TaskStoreError
from ._hints import Hints
from ._liveness import Liveness
from ._requests import ManagerConfig
from ._supervision import Supervisor

log = logging.getLogger("trio_bgtasks.manager")


class Services:
    """What runs beside the block of an open manager: executor, sweeps, polls, attempts."""

    def __init__(
        self, config: ManagerConfig, supervisor: Supervisor, liveness: Liveness, hints: Hints
    ) -> None:
        self._config = config
        self._supervisor = supervisor
        self._liveness = liveness
        self._hints = hints

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[None, None]:
        """Run the services in a shielded task beside the block; close in order."""
        failure: BaseException | None = None
        closing = trio.Event()
        with trio.CancelScope() as block:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._supervise, closing, block.cancel)
                try:
                    yield
                except BaseException as error:  # noqa: BLE001 - raised again below, as it was
                    failure = error
                self._begin_closing()
                closing.set()
        if self._supervisor.interrupted is not None:
            raise self._supervisor.interrupted
        if failure is not None:
            raise failure
        if self._supervisor.given_up:
            ends = self._supervisor.given_up
            lost = "; ".join(f"{task_id}: {text}" for task_id, text in ends.items())
            raise TaskStoreError(f"closed with {len(ends)} ends not stored: {lost}")

    async def _supervise(
        self,
        closing: trio.Event,
        interrupt: Callable[[], object],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        over = trio.Event()
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as services:
                await services.start(self._liveness.serve, over)
                services.start_soon(self._liveness.sweep_for_ever)
                services.start_soon(self._liveness.poll_for_ever)
                services.start_soon(self._supervisor.release_idle_owners)
                async with trio.open_nursery() as attempts:
                    self._supervisor.open(attempts, lambda: interrupt())
                    task_status.started()
                    await closing.wait()
                    await self._end_attempts()
                over.set()
                services.cancel_scope.cancel()

    def _begin_closing(self) -> None:
        supervisor = self._supervisor
        supervisor.closing = True
        supervisor.store_deadline = trio.current_time() + self._config.shutdown_grace_s
        for slot in list(self._supervisor.slots.values()):
            slot.stop("shutdown")

    async def _end_attempts(self) -> None:
        """Wait for every attempt's end; name those that do not end, each grace period."""
        while self._supervisor.slots:
            with trio.move_on_after(self._config.shutdown_grace_s or 1.0) as grace:
                for slot in list(self._supervisor.slots.values()):
                    await slot.freed.wait()
            if grace.cancelled_caught:
                names = ", ".join(sorted(self._supervisor.slots))
                log.warning("closing still waits for the bodies of: %s", names)
        self._supervisor.release_owners()
        self._hints.close()
