"""Notices: handed out to one block at a time, acknowledged when it succeeds."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

import attrs
import trio

from ._errors import TaskStoreError
from ._records import TaskSummary
from ._requests import ManagerConfig
from ._waits import StoreWaits
from .stores import TaskStore

AT_ONCE = 100


@attrs.define(eq=False)
class _Desk:
    """Where the notices of one owner are handed out; there for as long as somebody is."""

    held: set[int] = attrs.field(factory=set[int])
    # Reading and acknowledging exclude one another: a reader under way would otherwise hand out
    # again what was acknowledged, and so no longer held, while it read.
    lock: trio.Lock = attrs.field(factory=trio.Lock)


class Announcer:
    """Hands out the notices of one store to the blocks of one manager."""

    def __init__(self, store: TaskStore, config: ManagerConfig, waits: StoreWaits) -> None:
        self._store = store
        self._config = config
        self._waits = waits
        self._desks: WeakValueDictionary[str, _Desk] = WeakValueDictionary()

    @asynccontextmanager
    async def notices(
        self, owner_thread_id: str, *, limit: int, background_only: bool
    ) -> AsyncGenerator[list[TaskSummary], None]:
        """Give the oldest notices that no other block holds; acknowledge them if it succeeds."""
        desk = self._desks.setdefault(owner_thread_id, _Desk())
        async with desk.lock:
            limit = min(limit, AT_ONCE)
            found = await self._store.notices(
                owner_thread_id,
                limit=limit + len(desk.held),  # what is handed out must not hide the rest
                background_only=background_only,
            )
            mine = [notice for notice in found if notice.notice_id not in desk.held][:limit]
            ids = {notice.notice_id for notice in mine}
            desk.held |= ids
        try:
            yield [notice.summary for notice in mine]
            if ids:
                await self._acknowledge(owner_thread_id, desk, ids)
        finally:
            desk.held -= ids

    async def _acknowledge(self, owner_thread_id: str, desk: _Desk, ids: set[int]) -> None:
        with self._waits.bound(self._config.write_grace_s, shield=True):
            async with desk.lock:
                await self._store.acknowledge(owner_thread_id, sorted(ids))
                desk.held -= ids
            return
        raise TaskStoreError("the notices could not be acknowledged in time")
