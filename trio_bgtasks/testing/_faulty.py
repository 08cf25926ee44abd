"""Stores around a store: one hands on every call, the calls of the other go wrong when told to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Literal, TypeAlias, TypeVar

import trio

from trio_bgtasks import (
    Event,
    JournalEntry,
    LeaseTerms,
    MemoryTaskStore,
    Notice,
    OutputPage,
    TaskRecord,
    TaskStatus,
    TaskStore,
)
from trio_bgtasks.stores import ExecutorHandle, RecordPage, SweepReport, wall_clock_ms

T = TypeVar("T")

Fault: TypeAlias = Literal["before", "after", "hang", "hang after", "slow", "wait"]

PAGE = 200
_SLOW_S = 10.0


class StoreWrapper:
    """A `TaskStore` that hands every call on to ``inner``; `around` is what a subclass overrides.

    ``inner`` is a new `MemoryTaskStore` if it is not given.
    """

    def __init__(self, inner: TaskStore | None = None) -> None:
        self.inner: TaskStore = MemoryTaskStore() if inner is None else inner

    async def around(self, call: str, afn: Callable[[], Awaitable[T]]) -> T:
        """Make one call of the store; ``call`` is the name of the method.

        Of ``executor`` it is the registration; what it renews and how it retires is the store's.
        """
        del call
        return await afn()

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        """See `TaskStore.apply`."""
        return await self.around("apply", lambda: self.inner.apply(task_id, event))

    async def load(self, task_id: str) -> TaskRecord | None:
        """See `TaskStore.load`."""
        return await self.around("load", lambda: self.inner.load(task_id))

    async def load_by_key(self, owner_thread_id: str, key: str) -> TaskRecord | None:
        """See `TaskStore.load_by_key`."""
        return await self.around(
            "load_by_key", lambda: self.inner.load_by_key(owner_thread_id, key)
        )

    async def list_owner(
        self,
        owner_thread_id: str,
        *,
        after: int = 0,
        limit: int = PAGE,
        status: TaskStatus | None = None,
        task_type: str | None = None,
    ) -> RecordPage:
        """See `TaskStore.list_owner`."""
        return await self.around(
            "list_owner",
            lambda: self.inner.list_owner(
                owner_thread_id, after=after, limit=limit, status=status, task_type=task_type
            ),
        )

    async def children(self, task_id: str, *, after: int = 0, limit: int = PAGE) -> RecordPage:
        """See `TaskStore.children`."""
        return await self.around(
            "children", lambda: self.inner.children(task_id, after=after, limit=limit)
        )

    async def history(self, task_id: str) -> list[JournalEntry]:
        """See `TaskStore.history`."""
        return await self.around("history", lambda: self.inner.history(task_id))

    async def read_output(self, task_id: str, *, offset: int, limit: int) -> OutputPage:
        """See `TaskStore.read_output`."""
        return await self.around(
            "read_output", lambda: self.inner.read_output(task_id, offset=offset, limit=limit)
        )

    async def notices(
        self, owner_thread_id: str, *, limit: int = PAGE, background_only: bool = False
    ) -> list[Notice]:
        """See `TaskStore.notices`."""
        return await self.around(
            "notices",
            lambda: self.inner.notices(
                owner_thread_id, limit=limit, background_only=background_only
            ),
        )

    async def acknowledge(self, owner_thread_id: str, notice_ids: Sequence[int]) -> None:
        """See `TaskStore.acknowledge`."""
        await self.around(
            "acknowledge", lambda: self.inner.acknowledge(owner_thread_id, notice_ids)
        )

    async def collect(
        self, owner_thread_id: str | None, *, ended_before_ms: int, limit: int = PAGE
    ) -> list[str]:
        """See `TaskStore.collect`."""
        return await self.around(
            "collect",
            lambda: self.inner.collect(
                owner_thread_id, ended_before_ms=ended_before_ms, limit=limit
            ),
        )

    async def owners(self, *, after: str = "", limit: int = PAGE) -> list[str]:
        """See `TaskStore.owners`."""
        return await self.around("owners", lambda: self.inner.owners(after=after, limit=limit))

    async def sweep(
        self, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        """See `TaskStore.sweep`."""
        return await self.around(
            "sweep", lambda: self.inner.sweep(executor_id, at_ms, suspect=suspect)
        )

    async def cancel_marks(self, executor_id: str) -> list[str]:
        """See `TaskStore.cancel_marks`."""
        return await self.around("cancel_marks", lambda: self.inner.cancel_marks(executor_id))

    def executor(
        self, terms: LeaseTerms, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> AbstractAsyncContextManager[ExecutorHandle]:
        """See `TaskStore.executor`."""
        return self._register(terms, clock_ms)

    @asynccontextmanager
    async def _register(
        self, terms: LeaseTerms, clock_ms: Callable[[], int]
    ) -> AsyncGenerator[ExecutorHandle, None]:
        async with AsyncExitStack() as stack:
            opening = self.inner.executor(terms, clock_ms)
            yield await self.around("executor", lambda: stack.enter_async_context(opening))


class FaultyStore(StoreWrapper):
    """A `TaskStore` around ``inner`` that is as good as that one until `break_down`.

    A fault strikes calls by the names of the methods, and by their number if that is given. What
    went wrong before it was applied changed nothing; what went wrong after it was applied is in
    ``inner``, and only its answer is lost. So every call can be tried in every way in which a real
    store fails.

    Attributes:
        made: How often each broken call was made since `break_down`.
        struck: How many calls went wrong, in all.
    """

    def __init__(self, inner: TaskStore | None = None) -> None:
        super().__init__(inner)
        self.made: Counter[str] = Counter()
        self.struck: int = 0
        self._calls: frozenset[str] = frozenset()
        self._fault: Fault = "before"
        self._first, self._last = 1, math.inf
        self._error: Callable[[], Exception] = _is_down
        self._repaired = trio.Event()

    @property
    def broken(self) -> bool:
        """May a call go wrong now?"""
        return bool(self._calls)

    def break_down(
        self,
        *calls: str,
        fault: Fault = "before",
        first: int = 1,
        last: float = math.inf,
        error: Callable[[], Exception] | None = None,
    ) -> None:
        """Let the ``first`` to the ``last`` of ``calls`` (together, from now on) go wrong.

        It replaces what was broken before.

        Args:
            calls: Names of methods, such as ``"apply"``; ``"executor"`` is the registration.
            fault: ``"before"``: an error instead of the call. ``"after"``: an error although the
                call was applied. ``"hang"`` and ``"hang after"``: no answer, ever, without or
                although it was applied. ``"slow"``: it takes ten seconds. ``"wait"``: it is made
                after `repair`.
            first: Number of the first call to go wrong, from 1.
            last: Number of the last one.
            error: Makes what is raised; a `ConnectionError` if it is not given.
        """
        self.repair()
        self._calls, self._fault, self._first, self._last = frozenset(calls), fault, first, last
        self._error = _is_down if error is None else error
        self.made.clear()

    def repair(self) -> None:
        """Let everything go well again; what waits for it is made now."""
        self._calls = frozenset()
        self._repaired.set()
        self._repaired = trio.Event()

    async def around(self, call: str, afn: Callable[[], Awaitable[T]]) -> T:
        """Make one call, or let it go wrong."""
        if call not in self._calls:
            return await afn()
        self.made[call] += 1
        if not self._first <= self.made.total() <= self._last:
            return await afn()
        self.struck += 1
        error, repaired = self._error, self._repaired
        match self._fault:
            case "before":
                raise error()
            case "after":
                await afn()
                raise error()
            case "hang":
                await trio.sleep_forever()
            case "hang after":
                await afn()
                await trio.sleep_forever()
            case "slow":
                await trio.sleep(_SLOW_S)
            case "wait":  # pragma: no branch (it is one of these)
                await repaired.wait()
        return await afn()


def _is_down() -> Exception:
    return ConnectionError("store is down")
