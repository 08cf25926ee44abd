"""The runtime under test: a manager on a store, and tasks that do one checkpoint."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from unittest import mock

import trio

from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    MemoryTaskStore,
    SqliteTaskStore,
    StartRequest,
    Success,
    TaskResult,
    TaskStatus,
    open_task_manager,
)
from trio_bgtasks.stores.sqlite import _engine

from ._measure import by_clients

OWNER = "benchmark"
_numbers = count()
REQUEST = StartRequest(owner_thread_id=OWNER, task_type="benchmark")


async def body(execution: BackgroundExecution, cancel_scope: trio.CancelScope) -> TaskResult:
    """Do what every task of every contender does: one checkpoint."""
    await trio.lowlevel.checkpoint()
    return Success()


@asynccontextmanager
async def manager_on(path: Path | None) -> AsyncGenerator[BackgroundTaskManager, None]:
    """Open a manager on a new file in the folder ``path``; None: in memory."""
    if path is None:
        async with open_task_manager(MemoryTaskStore()) as manager:
            yield manager
    else:
        async with (
            SqliteTaskStore.open(path / f"{next(_numbers)}.db") as store,
            open_task_manager(store) as manager,
        ):
            yield manager


async def starts_and_waits(clients: int, tasks: int, path: Path | None) -> float:
    """Let each client start a background task and wait for its end, again and again."""
    async with manager_on(path) as manager:

        async def one() -> None:
            started = await manager.start(REQUEST, body)
            ended = await manager.wait(OWNER, started.task_id)
            if ended.status is not TaskStatus.COMPLETED:
                raise AssertionError(f"{ended.task_id} is {ended.status}: {ended.error}")

        return await by_clients(clients, tasks, one)


async def ungrouped(clients: int, tasks: int, path: Path) -> float:
    """Do the same with a commit for every write, and no pause for other processes in between."""
    with mock.patch.multiple(_engine, _LARGEST_BATCH=1, _PAUSE_S=0):
        return await starts_and_waits(clients, tasks, path)


async def burst(tasks: int) -> float:
    """Start all tasks, one call after the other, and wait until the end of each is stored."""
    async with manager_on(None) as manager:
        start = time.perf_counter()
        for _ in range(tasks):
            await manager.start(REQUEST, body)
        while manager.live(OWNER):
            await trio.lowlevel.checkpoint()
        seconds = time.perf_counter() - start
        if (finished := manager.statistics().finished) != tasks:
            raise AssertionError(f"{finished} of {tasks} tasks have ended")
        return seconds


async def start_latencies(tasks: int, path: Path | None) -> list[float]:
    """Return how long each start took, in seconds, sorted; nothing else goes on."""
    seconds: list[float] = []
    async with manager_on(path) as manager:
        for _ in range(tasks):
            began = time.perf_counter()
            started = await manager.start(REQUEST, body)
            seconds.append(time.perf_counter() - began)
            await manager.wait(OWNER, started.task_id)
    return sorted(seconds)
