"""Owners do not wait for one another's announcements."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import gc
from typing import Any

import pytest
import trio
import trio.testing

from tests.support import OTHER, OWNER, StoreWrapper, done, ended, opened, request
from trio_bgtasks import Notice


class SlowForOne(StoreWrapper):
    """Never answers a read of one owner's notices."""

    async def notices(self, owner_thread_id: str, **options: Any) -> list[Notice]:
        if owner_thread_id == OTHER:
            await trio.sleep_forever()
        return await super().notices(owner_thread_id, **options)


async def test_an_owner_does_not_wait_for_another_ones_notices(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A read that hangs holds up neither another owner's read, nor its acknowledgement."""
    async with opened(SlowForOne()) as manager, trio.open_nursery() as nursery:
        await ended(manager, await manager.start(request(), done))
        async with manager.notices(OWNER) as summaries:
            assert len(summaries) == 1
            nursery.start_soon(manager.take_notices, OTHER)
            await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(1):
            assert await manager.take_notices(OWNER) == []
        nursery.cancel_scope.cancel()


async def test_what_was_handed_out_is_not_kept(autojump_clock: trio.testing.MockClock) -> None:
    """Blocks that ended, in whatever way, leave nothing behind of their owners."""
    async with opened() as manager:
        for n in range(10):
            owner = f"owner {n}"
            await ended(manager, await manager.start(request(owner), done), owner)
            with pytest.raises(ZeroDivisionError):
                async with manager.notices(owner) as summaries:
                    assert len(summaries) == 1
                    raise ZeroDivisionError
            async with manager.notices(owner) as summaries:
                assert len(summaries) == 1
                assert await manager.take_notices(owner) == []
        gc.collect()
        assert len(manager._announcer._desks) == 0
