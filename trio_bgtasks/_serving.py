"""The services of one manager, and the order in which it opens and closes."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import trio

from ._errors import TaskStoreError
from ._hints import Hints
from ._liveness import Liveness
from ._outcome import leaves
from ._requests import ManagerConfig
from ._slots import FREED
from ._supervision import Supervisor
from ._waits import LAST_WRITE_S, StoreWaits

log = logging.getLogger("trio_bgtasks.manager")


class Services:
    """What runs beside the block of an open manager: executor, sweeps, polls, attempts."""

    def __init__(
        self,
        config: ManagerConfig,
        waits: StoreWaits,
        supervisor: Supervisor,
        liveness: Liveness,
        hints: Hints,
    ) -> None:
        self._config = config
        self._waits = waits
        self._supervisor = supervisor
        self._liveness = liveness
        self._hints = hints

    @asynccontextmanager
    @trio.lowlevel.enable_ki_protection  # the block itself is not ours, and not protected
    async def serve(self) -> AsyncGenerator[None, None]:
        """Run the services in a task beside the block, shielded once it is open; close in order."""
        failure: BaseException | None = None
        opened, closing = trio.Event(), trio.Event()
        try:
            with trio.CancelScope() as block:
                async with trio.open_nursery() as nursery:
                    # Not by `start`: a Ctrl-C there may leave it started, with nobody to close it.
                    nursery.start_soon(self._supervise, opened, closing, block.cancel)  # noqa: ASYNC113
                    try:
                        await opened.wait()
                        yield
                    except BaseException as error:  # noqa: ASYNC103, BLE001 - raised again below
                        failure = error
                        if not opened.is_set():
                            nursery.cancel_scope.cancel()
                    closing.set()
                    self._begin_closing()
        except BaseExceptionGroup as group:
            # Opening failed, or Ctrl-C came while we were closing: a nursery wraps it.
            found = [leaf for leaf in leaves(group) if not isinstance(leaf, trio.Cancelled)]
            failure = found[0] if found else failure or leaves(group)[0]
        unsaved = self._unsaved()
        if self._supervisor.interrupted is not None:
            raise self._supervisor.interrupted
        if failure is not None:
            raise failure
        if unsaved is not None:
            raise unsaved

    def _unsaved(self) -> TaskStoreError | None:
        ends = self._supervisor.ends.given_up
        if not ends:
            return None
        lost = "; ".join(f"{task_id}: {text}" for task_id, text in ends.items())
        error = TaskStoreError(f"closed with {len(ends)} ends not stored: {lost}")
        log.error("%s", error)
        return error

    async def _supervise(
        self, opened: trio.Event, closing: trio.Event, interrupt: Callable[[], None]
    ) -> None:
        over = trio.Event()
        with trio.CancelScope() as shield:
            async with trio.open_nursery() as executor:
                await executor.start(self._liveness.serve, over)
                shield.shield = True  # opening could be cancelled; from here on, closing is the way
                async with trio.open_nursery() as services:
                    services.start_soon(self._liveness.sweep_for_ever)
                    services.start_soon(self._liveness.poll_for_ever)
                    services.start_soon(self._supervisor.owners.release_idle_for_ever)
                    async with trio.open_nursery() as attempts:
                        self._supervisor.open(attempts, interrupt)
                        opened.set()
                        await closing.wait()
                        await self._end_attempts()
                    services.cancel_scope.cancel()
                self._hints.close()
                over.set()
                executor.cancel_scope.deadline = self._waits.until()

    def _begin_closing(self) -> None:
        self._waits.close(self._config.shutdown_grace_s)
        self._supervisor.begin_closing()
        self._liveness.ready.set()  # who waits for an executor is to see that it is too late

    async def _end_attempts(self) -> None:
        """Wait for every attempt's end; name those that do not end, each grace period.

        But once a second at most: the grace may be as short as one likes.
        """
        slots = self._supervisor.slots
        while slots:
            with trio.move_on_after(max(self._config.shutdown_grace_s, LAST_WRITE_S)) as grace:
                for slot in list(slots.values()):
                    await slot.reach(FREED)
            if grace.cancelled_caught and slots:
                log.warning("closing still waits for the bodies of: %s", ", ".join(sorted(slots)))
        self._supervisor.owners.release()
