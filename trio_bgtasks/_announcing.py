"""Notices: handed out to one block at a time, acknowledged when it succeeds."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from ._errors import TaskStoreError
from ._records import Notice, TaskSummary
from ._requests import ManagerConfig
from ._waits import StoreWaits
from .stores import TaskStore

AT_ONCE = 100


class Announcer:
    """Hands out the notices of one store to the blocks of one manager."""

    def __init__(self, store: TaskStore, config: ManagerConfig, waits: StoreWaits) -> None:
        self._store = store
        self._config = config
        self._waits = waits
        self._handed_out: set[int] = set()
        # Reading and acknowledging exclude one another: a reader under way would otherwise hand out
        # again what was acknowledged, and so no longer held, while it read.
        self._lock = trio.Lock()

    @asynccontextmanager
    async def notices(
        self, owner_thread_id: str, *, limit: int, background_only: bool
    ) -> AsyncGenerator[list[TaskSummary], None]:
        """Give the oldest notices that no other block holds; acknowledge them if it succeeds."""
        async with self._lock:
            mine = await self._oldest(
                owner_thread_id, min(limit, AT_ONCE), background_only=background_only
            )
            ids = {notice.notice_id for notice in mine}
            self._handed_out |= ids
        try:
            yield [notice.summary for notice in mine]
            if ids:
                await self._acknowledge(owner_thread_id, ids)
        finally:
            self._handed_out -= ids

    async def _oldest(
        self, owner_thread_id: str, limit: int, *, background_only: bool
    ) -> list[Notice]:
        # What is handed out must not hide the rest.
        found = await self._store.notices(
            owner_thread_id,
            limit=limit + len(self._handed_out),
            background_only=background_only,
        )
        return [n for n in found if n.notice_id not in self._handed_out][:limit]

    async def _acknowledge(self, owner_thread_id: str, ids: set[int]) -> None:
        with self._waits.bound(self._config.write_grace_s, shield=True):
            async with self._lock:
                await self._store.acknowledge(owner_thread_id, sorted(ids))
                self._handed_out -= ids
            return
        raise TaskStoreError("the notices could not be acknowledged in time")
