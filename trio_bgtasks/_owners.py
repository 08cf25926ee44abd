"""Owner nurseries: one for each owner thread, from its first task until it has been idle."""

from __future__ import annotations

import trio


class OwnerNursery:
    """The long-lived nursery of one owner thread; its Trio task bears the owner's name.

    A slot holds it from its reservation to its end; what is held is not released.
    """

    def __init__(self, owner_thread_id: str) -> None:
        self.owner_thread_id = owner_thread_id
        self.nursery: trio.Nursery | None = None
        self.opened = trio.Event()
        self._holds = 0
        self._idle_since = trio.current_time()
        self._released = trio.Event()

    async def run(self) -> None:
        """Keep the nursery open until it is released and its last task has ended."""
        async with trio.open_nursery() as self.nursery:
            self.opened.set()
            await self._released.wait()

    def hold(self) -> None:
        """Keep the nursery from being released."""
        self._holds += 1

    def unhold(self) -> None:
        """Give a hold back."""
        self._holds -= 1
        if not self._holds:
            self._idle_since = trio.current_time()

    def is_idle(self, since: float) -> bool:
        """Has nobody held it since then?"""
        return not self._holds and self._idle_since <= since

    def release(self) -> None:
        """Let the nursery end."""
        self._released.set()


class Owners:
    """The open owner nurseries of one manager."""

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._open: dict[str, OwnerNursery] = {}
        self._nursery: trio.Nursery | None = None

    def __len__(self) -> int:
        return len(self._open)

    def run_in(self, nursery: trio.Nursery) -> None:
        """Run the owners' nurseries in ``nursery`` from now on."""
        self._nursery = nursery

    def of(self, owner_thread_id: str) -> OwnerNursery:
        """Return the owner's nursery; a new one is open soon (``opened``)."""
        owner = self._open.get(owner_thread_id)
        if owner is None:
            assert self._nursery is not None
            owner = self._open[owner_thread_id] = OwnerNursery(owner_thread_id)
            self._nursery.start_soon(owner.run, name=f"trio_bgtasks owner {owner_thread_id}")
        return owner

    async def release_idle_for_ever(self) -> None:
        """Release, now and then, what has been idle for ``idle_s``."""
        while True:
            await trio.sleep(max(1.0, self._idle_s / 4))
            self.release(idle_s=self._idle_s)

    def release(self, *, idle_s: float = 0) -> None:
        """Release every nursery that nobody has held for ``idle_s``."""
        since = trio.current_time() - idle_s
        for owner in list(self._open.values()):
            if owner.is_idle(since):
                del self._open[owner.owner_thread_id]
                owner.release()
