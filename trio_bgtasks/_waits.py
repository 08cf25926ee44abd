"""How long the manager itself waits for its store: each time a while, all within the grace."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from weakref import WeakSet

import trio

from .stores import MemoryTaskStore, TaskStore

LAST_WRITE_S = 1.0  # what a write may still take when the shutdown grace is over

_NO_WAIT = nullcontext()


class StoreWaits:
    """Makes the cancel scopes around the manager's own waits; closing bounds them all.

    A store that never answers must not keep the manager from closing. What a body, or a caller,
    waits for is theirs.
    """

    def __init__(self, store: TaskStore) -> None:
        self._at_once = type(store) is MemoryTaskStore
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

    def answer(self, seconds: float, *, shield: bool = False) -> AbstractContextManager[object]:
        """Return the same for one call of the store, of those that every task makes.

        The memory store itself answers without waiting. What is done already needs no scope: two of
        them are a quarter of the cost of a task (measured).
        """
        return _NO_WAIT if self._at_once else self.bound(seconds, shield=shield)

    def close(self, grace_s: float) -> None:
        """Let every wait end within ``grace_s``: those under way, too."""
        self._deadline = trio.current_time() + grace_s
        for scope in self._scopes:
            scope.deadline = min(scope.deadline, self._deadline)
