"""Long reads and collections let others run between two pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
import trio
import trio.testing

from tests.support import OWNER, StoreWrapper, done, opened, request

T = TypeVar("T")


class Greedy(StoreWrapper):
    """Counts the pages that are asked for while nobody else has a turn."""

    in_one_go = most = 0

    async def around(self, call: str, afn: Callable[[], Awaitable[T]]) -> T:
        if call in ("list_owner", "owners", "collect"):
            self.in_one_go += 1
            self.most = max(self.most, self.in_one_go)
        return await afn()

    async def give_turns(self) -> None:
        """Be the others."""
        while True:
            self.in_one_go = 0
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("what", ["list", "owners", "gc", "retention"])
async def test_the_loop_has_a_turn_between_two_pages(
    what: str, autojump_clock: trio.testing.MockClock
) -> None:
    """However much there is, the memory store answers a page at a time."""
    store = Greedy()
    now_ms = 0
    async with opened(store, clock_ms=lambda: now_ms, retention_s=10) as manager:
        for n in range(1000):
            owner = f"owner {n}" if what == "owners" else OWNER
            await manager.start(request(owner), done)
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.give_turns)
            await trio.lowlevel.checkpoint()
            store.most = 0
            match what:
                case "list":
                    assert len(await manager.list_tasks(OWNER)) == 1000
                case "owners":
                    assert len(await manager.owners()) == 1000
                case "gc":
                    assert await manager.gc_terminal(OWNER) == 1000
                case _:
                    now_ms = 100_000
                    autojump_clock.jump(15)  # the next sweep is due
                    while await store.inner.owners():
                        await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        # Turns may be taken in the order A, B, B, A; a list looks after its orphans first.
        assert 1 <= store.most <= 3
