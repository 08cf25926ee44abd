"""The pytest plugin: `task_store`, `task_manager` and `crash`, for tests under pytest-trio.

Every pytest session of an environment with this package imports this module. So it lies beside the
package, as that takes a while to import, and imports what a fixture needs when it is used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import trio

    from trio_bgtasks import BackgroundTaskManager, MemoryTaskStore


@pytest.fixture
def task_store() -> MemoryTaskStore:
    """Return a fresh `MemoryTaskStore`."""
    from trio_bgtasks import MemoryTaskStore  # noqa: PLC0415 - see above

    return MemoryTaskStore()


class _Process:
    """One manager in a task of its own, so that it can be gone without a goodbye."""

    manager: BackgroundTaskManager

    def __init__(self, store: MemoryTaskStore) -> None:
        import trio  # noqa: PLC0415 - see above

        self._store = store
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self.stop = trio.Event()

    async def live(self, task_status: trio.TaskStatus[None]) -> None:
        from trio_bgtasks import ManagerConfig, open_task_manager  # noqa: PLC0415 - see above

        # A memory store takes an end at once or, after a crash, never: that is not waited for.
        config = ManagerConfig(shutdown_grace_s=0)
        try:
            with self._scope:
                async with open_task_manager(self._store, config=config) as self.manager:
                    task_status.started()
                    await self.stop.wait()
        finally:
            self._ended.set()

    async def crash(self) -> None:
        self._store.crash(self.manager.statistics().executor_id)
        self._scope.cancel(reason="its process is simulated to crash")
        await self._ended.wait()


@pytest.fixture
async def _task_process(task_store: MemoryTaskStore) -> AsyncIterator[_Process]:
    import trio  # noqa: PLC0415 - see above

    async with trio.open_nursery() as nursery:
        process = _Process(task_store)
        await nursery.start(process.live)
        yield process
        process.stop.set()


@pytest.fixture
async def task_manager(_task_process: _Process) -> BackgroundTaskManager:
    """Return an open manager on `task_store`; it is closed when the test has ended."""
    return _task_process.manager


@pytest.fixture
async def crash(_task_process: _Process) -> Callable[[], Awaitable[None]]:
    """Return an async function after which `task_manager` is gone as if its process was killed.

    Nothing of it is stored any more, and no task of it runs. Another manager that is opened on
    `task_store` finds what it has left once its lease has run out: 30 s, which are nothing on
    virtual time (`autojump_clock`).
    """
    return _task_process.crash
