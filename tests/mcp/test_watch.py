"""Watching tasks: hints that are never waited for, and few subscriptions for many watchers."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.support import Gate, request
from trio_bgtasks import BackgroundTaskManager
from trio_bgtasks.mcp._watch import POLL_S, Watch


async def test_news_come_once(autojump_clock: MockClock, runtime: BackgroundTaskManager) -> None:
    """Who does not read hears once of each task that changed, however often it did; and of no other."""
    async with trio.open_nursery() as nursery:
        watch = Watch(runtime, nursery)
        gates = {name: Gate() for name in "abc"}
        async with watch.watch("thread-1", ["a", "b"]) as news:
            await wait_all_tasks_blocked()
            assert await news.next() == {"a", "b"}  # what changed before anybody listened
            for name, gate in gates.items():
                await runtime.start(request(task_id=name), gate)
            for gate in (gates["a"], gates["c"]):
                gate.opened.set()
            await wait_all_tasks_blocked()
            assert await news.next() == {"a", "b"}
            gates["b"].opened.set()
            began = trio.current_time()
            assert await news.next() == {"b"}
            assert trio.current_time() == began
            assert await news.next() == {"a", "b"}  # nothing for a while: better to look
            assert trio.current_time() == began + POLL_S


async def test_one_subscription_for_all(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """However many watch tasks of an owner, the manager has one subscriber; none when all have gone."""
    async with trio.open_nursery() as nursery:
        watch = Watch(runtime, nursery)
        slow: list[trio.CancelScope] = []

        async def look(owner: str, name: str) -> None:
            with trio.CancelScope() as scope:
                slow.append(scope)
                async with watch.watch(owner, [name]):
                    await trio.sleep_forever()

        for number in range(50):
            nursery.start_soon(look, "thread-1", f"t{number % 2}")
        nursery.start_soon(look, "thread-2", "t0")
        await wait_all_tasks_blocked()
        assert (watch.watchers, runtime.statistics().subscribers) == (51, 2)
        for scope in slow[1:]:
            scope.cancel()
        await wait_all_tasks_blocked()
        assert (watch.watchers, runtime.statistics().subscribers) == (1, 1)
        slow[0].cancel()
        await wait_all_tasks_blocked()
        assert (watch.watchers, runtime.statistics().subscribers) == (0, 0)
        async with watch.watch("thread-1", ["t0"]) as news:  # and again
            await runtime.start(request(task_id="t0"), Gate())
            assert await news.next() == {"t0"}
            nursery.cancel_scope.cancel()
