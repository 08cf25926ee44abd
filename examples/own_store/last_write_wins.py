"""The same store with the usual mistake: it waits between reading and writing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio
from own_store import FileTaskStore, State

T = TypeVar("T")


class LastWriteWins(FileTaskStore):
    """Whoever writes last wins: what others have written meanwhile is gone."""

    async def change(self, work: Callable[[State], T]) -> T:
        """Do ``work`` on what is in the file now, and write the result a moment later."""
        state = self.read()
        result = work(state)
        await trio.lowlevel.checkpoint()  # a slow disk, a network, another thread
        self.write(state)
        return result
