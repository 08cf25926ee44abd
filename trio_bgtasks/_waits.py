"""How long the manager itself waits for its store: each time a while, all within the grace."""

from __future__ import annotations

import math
from weakref import WeakSet

import trio

from .stores import MemoryTaskStore, TaskStore

LAST_WRITE_S = 1.0  # what a write may still take when the shutdown grace is over


class StoreWaits:
    """Makes the cancel scopes around the manager's own waits; closing bounds them all.

    A store that never answers must not keep the manager from closing. What a body, or a caller,
    waits for is theirs.

    Attributes:
        at_once: The memory store itself answers without waiting. What is done already needs no
            scope: the two that every task would need are a quarter of its cost (measured).
    """

    def __init__(self, store: TaskStore) -> None:
        self.at_once: bool = type(store) is MemoryTaskStore
        self._scopes: WeakSet[trio.CancelScope] = WeakSet()
        self._deadline = math.inf

    @property
    def over(self) -> bool:
        """Is the time up in which the manager waits for its store at all?"""
        return trio.current_time() >= self._deadline

    def until(self) -> float:
        """Return the time until which one that begins now may wait."""
        return max(self._deadline, trio.current_time() + LAST_WRITE_S)

    def bound(self, seconds: float, *, shield: bool = False) -> trio.CancelScope:
        """Return a scope to enter at once: it ends after ``seconds``, or with the shutdown grace.

        When the grace is over already, there is time for one last write.
        """
        until = min(trio.current_time() + seconds, self.until())
        scope = trio.CancelScope(deadline=until, shield=shield)
        self._scopes.add(scope)
        return scope

    def close(self, grace_s: float) -> None:
        """Let every wait end within ``grace_s``: those under way, too."""
        self._deadline = trio.current_time() + grace_s
        for scope in self._scopes:
            scope.deadline = min(scope.deadline, self._deadline)
