"""Wake-ups inside one process: who waits for a task, who subscribes to an owner."""

from __future__ import annotations

from typing import Self, final

import trio

_BOUND = 1024  # task ids that a subscriber who does not read may leave behind


@final
class Subscription(trio.abc.ReceiveChannel[str]):
    """Ids of tasks of one owner about which something changed: a hint to look, never the truth.

    Coalesced per task, bounded (the oldest hint goes), never waited for. It ends when the manager
    closes.
    """

    def __init__(self, hints: Hints, owner_thread_id: str) -> None:
        self._hints = hints
        self._owner_thread_id = owner_thread_id
        self._pending: dict[str, None] = {}
        self._news = trio.Event()
        self._closed = False
        self._ended = False

    async def receive(self) -> str:
        """Return the next task id; wait for one if there is none.

        Raises:
            trio.EndOfChannel: the manager closed.
            trio.ClosedResourceError: this subscription was closed.
        """
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            if self._pending:
                task_id = next(iter(self._pending))
                del self._pending[task_id]
                return task_id
            if self._ended:
                raise trio.EndOfChannel
            if self._news.is_set():
                self._news = trio.Event()
            await self._news.wait()

    async def aclose(self) -> None:
        """Stop listening."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Stop listening, at once."""
        self._closed = True
        self._hints.unsubscribe(self._owner_thread_id, self)
        self._news.set()

    def put(self, task_id: str) -> None:
        """Remember a change of ``task_id``."""
        self._pending[task_id] = None
        if len(self._pending) > _BOUND:
            del self._pending[next(iter(self._pending))]
        self._news.set()

    def end(self) -> None:
        """No more hints will come."""
        self._ended = True
        self._news.set()


class Hints:
    """The waiters (``waiters`` of them, however they wait) and subscribers of one manager."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[trio.Event, int]] = {}
        self._subscribers: dict[str, dict[Subscription, None]] = {}
        self.waiters = 0
        self.closed: bool = False

    @property
    def subscribers(self) -> int:
        """How many subscriptions are open."""
        return sum(map(len, self._subscribers.values()))

    def watch(self, task_id: str) -> Watch:
        """Return a context manager that registers a waiter for ``task_id``."""
        return Watch(self._waiting, task_id)

    def changed(self, owner_thread_id: str, task_id: str, *, wake: bool = True) -> None:
        """Tell subscribers of the owner; with ``wake``, also who waits for the task."""
        if wake and task_id in self._waiting:
            event, count = self._waiting[task_id]
            self._waiting[task_id] = trio.Event(), count
            event.set()
        for subscription in self._subscribers.get(owner_thread_id, ()):
            subscription.put(task_id)

    def subscribe(self, owner_thread_id: str) -> Subscription:
        """Open a subscription."""
        subscription = Subscription(self, owner_thread_id)
        self._subscribers.setdefault(owner_thread_id, {})[subscription] = None
        if self.closed:
            subscription.end()
        return subscription

    def unsubscribe(self, owner_thread_id: str, subscription: Subscription) -> None:
        """Forget a subscription."""
        mine = self._subscribers.get(owner_thread_id, {})
        mine.pop(subscription, None)
        if not mine:
            self._subscribers.pop(owner_thread_id, None)

    def close(self) -> None:
        """Wake everybody: nothing more will happen here."""
        self.closed = True
        for event, _ in self._waiting.values():
            event.set()
        for mine in self._subscribers.values():
            for subscription in mine:
                subscription.end()


class Watch:
    """A registered waiter: ``event`` fires at the next change. Take it before reading the truth."""

    __slots__ = ("_task_id", "_waiting")

    def __init__(self, waiting: dict[str, tuple[trio.Event, int]], task_id: str) -> None:
        self._waiting = waiting
        self._task_id = task_id

    @property
    def event(self) -> trio.Event:
        """The event of the next change."""
        return self._waiting[self._task_id][0]

    def __enter__(self) -> Self:
        event, count = self._waiting.get(self._task_id) or (trio.Event(), 0)
        self._waiting[self._task_id] = event, count + 1
        return self

    def __exit__(self, *_: object) -> None:
        event, count = self._waiting[self._task_id]
        if count > 1:
            self._waiting[self._task_id] = event, count - 1
        else:
            del self._waiting[self._task_id]
