"""`open_task_manager`: the one way to a manager."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType

import trio

from ._manager import BackgroundTaskManager
from ._requests import ManagerConfig
from .stores import MemoryTaskStore, TaskStore


def _check_store(store: object) -> None:
    # Stores are duck-typed; what is given instead is a class, a path, or a store not entered yet.
    methods = (getattr(store, "apply", None), getattr(store, "executor", None))
    if isinstance(store, type) or not all(map(callable, methods)):
        kind = f"the class {store.__name__}" if isinstance(store, type) else type(store).__name__
        raise TypeError(f"store must be an open TaskStore, not {kind}")


def open_task_manager(
    store: TaskStore | None = None, *, config: ManagerConfig | None = None
) -> AbstractAsyncContextManager[BackgroundTaskManager]:
    """Open a manager on ``store`` (None: a new `MemoryTaskStore`) for an ``async with`` block.

    Orphans of earlier runs are settled before the block begins. When it ends, every attempt is
    cancelled and given ``shutdown_grace_s`` to clean up; afterwards no Trio task, thread or process
    of the manager is left. An exception of the block leaves as it was raised.

    Raises:
        TypeError: ``store`` is no store, or not an open one; ``config`` is no `ManagerConfig`.
        TaskStoreError: at the start: the store failed; at the end: it refused ends to the last, or
            their records are corrupt, and the text names those tasks.
        RuntimeError: the block ends within an attempt of the manager itself.
    """
    if store is not None:
        _check_store(store)
    if config is not None and not isinstance(config, ManagerConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"config must be a ManagerConfig, not {type(config).__name__}")
    return _Opened(
        BackgroundTaskManager(
            MemoryTaskStore() if store is None else store,
            ManagerConfig() if config is None else config,
        )
    )


class _Opened(AbstractAsyncContextManager[BackgroundTaskManager]):
    """Ends the manager, unless that is asked for from within an attempt that it would wait for."""

    def __init__(self, manager: BackgroundTaskManager) -> None:
        self._manager = manager
        self._context = manager._services.serve()  # pyright: ignore[reportPrivateUsage]

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> BackgroundTaskManager:
        await self._context.__aenter__()
        return self._manager

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        if self._manager.current_task_id() is not None:
            raise RuntimeError("the task manager cannot end within one of its own tasks")
        return await self._context.__aexit__(kind, error, trace)  # noqa: ASYNC102 - it shields itself
