"""Who waits for news of which task: one subscription of the manager for all who watch an owner."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import final

import attrs
import trio

from .._manager import BackgroundTaskManager

POLL_S = 5.0
"""How long a watcher is without news before it looks all the same.

Hints are bounded, and tell nothing of what other processes do.
"""


@final
class News:
    """Ids of watched tasks that may have changed: each once, however often it did."""

    def __init__(self, task_ids: Iterable[str]) -> None:
        self.watched = frozenset(task_ids)
        self._changed: set[str] = set()
        self._event = trio.Event()

    def put(self, task_id: str) -> None:
        """Remember that a task changed; who reads slowly is not waited for."""
        self._changed.add(task_id)
        self._event.set()

    async def next(self) -> frozenset[str]:
        """Return what changed since the last call; after a while without news: all of them."""
        with trio.move_on_after(POLL_S):
            await self._event.wait()
        changed = frozenset(self._changed) or self.watched
        self._changed.clear()
        self._event = trio.Event()
        return changed


@attrs.define(eq=False)
class _Owner:
    """Who watches the tasks of one owner, and the task that reads the hints for them."""

    scope: trio.CancelScope
    watchers: dict[str, set[News]] = attrs.field(factory=dict[str, set[News]])
    count: int = 0


@final
class Watch:
    """Hands out hints to those that watch single tasks, so that many of them cost as few do."""

    def __init__(self, manager: BackgroundTaskManager, nursery: trio.Nursery) -> None:
        self._manager = manager
        self._nursery = nursery
        self._owners: dict[str, _Owner] = {}

    @property
    def watchers(self) -> int:
        """How many there are."""
        return sum(owner.count for owner in self._owners.values())

    def start_soon(self, *call: object) -> None:
        """Run something for as long as the server runs, whatever becomes of the request."""
        self._nursery.start_soon(*call)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    @asynccontextmanager
    async def watch(self, owner: str, task_ids: Iterable[str]) -> AsyncGenerator[News, None]:
        """Give news of these tasks of an owner. Look at them after it was entered, not before."""
        news = News(task_ids)
        watched = await self._watched(owner)
        watched.count += 1
        for task_id in news.watched:
            watched.watchers.setdefault(task_id, set()).add(news)
        try:
            yield news
        finally:
            for task_id in news.watched:
                mine = watched.watchers[task_id]
                mine.discard(news)
                if not mine:
                    del watched.watchers[task_id]
            watched.count -= 1
            if watched.count == 0:
                watched.scope.cancel()
                del self._owners[owner]

    async def _watched(self, owner: str) -> _Owner:
        await trio.lowlevel.checkpoint()
        found = self._owners.get(owner)
        if found is None:
            found = self._owners[owner] = _Owner(trio.CancelScope())
            self._nursery.start_soon(self._read, owner, found)
        return found

    async def _read(self, owner: str, watched: _Owner) -> None:
        """Pass the hints on, until nobody watches any more or the manager closes."""
        with watched.scope:
            async with self._manager.subscribe(owner) as hints:
                for task_id in list(watched.watchers):  # what changed before this began
                    self._tell(watched, task_id)
                async for task_id in hints:
                    self._tell(watched, task_id)

    def _tell(self, watched: _Owner, task_id: str) -> None:
        for news in watched.watchers.get(task_id, ()):
            news.put(task_id)
