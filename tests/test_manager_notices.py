"""What becomes of a task that has ended: it is announced until acknowledged, then collected."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
import trio.testing

from tests.support import (
    OTHER,
    OWNER,
    FaultyStore,
    StoreWrapper,
    done,
    ended,
    forever,
    grow,
    opened,
    records,
    request,
    stop,
    stored,
)
from trio_bgtasks import (
    BackgroundTaskManager,
    MemoryTaskStore,
    Notice,
    TaskStoreError,
    open_task_manager,
)

# ---- announcing ----------------------------------------------------------------------------------


async def ids(manager: BackgroundTaskManager) -> list[str]:
    """Take the notices; return their task ids."""
    return [summary.task_id for summary in await manager.take_notices(OWNER)]


async def test_a_notice_comes_until_it_is_acknowledged(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is acknowledged when the block succeeds; if it raises, or is cancelled, it comes again. C44."""
    async with open_task_manager() as manager:
        await ended(manager, await manager.start(request(task_id="t"), done))
        with pytest.raises(ZeroDivisionError):
            async with manager.notices(OWNER) as summaries:
                assert [summary.result for summary in summaries] == ["done"]
                raise ZeroDivisionError
        with trio.move_on_after(1):
            async with manager.notices(OWNER) as summaries:
                assert len(summaries) == 1
                await trio.sleep_forever()
        assert await ids(manager) == ["t"]
        assert await ids(manager) == []


async def test_two_takers_never_share_a_notice(autojump_clock: trio.testing.MockClock) -> None:
    """What one block holds no other is given; if it fails, the next one gets it."""
    async with open_task_manager() as manager:
        for n in range(3):
            await ended(manager, await manager.start(request(task_id=f"t{n}"), done))
        with pytest.raises(ZeroDivisionError):
            async with manager.notices(OWNER) as first:
                assert len(first) == 3
                await ended(manager, await manager.start(request(task_id="late"), done))
                assert await ids(manager) == ["late"]
                async with manager.notices(OWNER) as none:
                    assert none == []
                raise ZeroDivisionError
        assert await ids(manager) == ["t0", "t1", "t2"]


async def test_takers_at_once_on_a_slow_store(autojump_clock: trio.testing.MockClock) -> None:
    """Many takers, a store that takes its time: every notice goes to exactly one of them."""

    class Slow(StoreWrapper):
        """Takes a moment for every call."""

        async def around(self, call: str, afn: Any) -> Any:
            await trio.sleep(0.01)
            answer = await afn()
            await trio.sleep(0.01)
            return answer

    taken: list[str] = []
    async with open_task_manager(Slow()) as manager:

        async def take() -> None:
            taken.extend(await ids(manager))

        async with trio.open_nursery() as nursery:
            for n in range(20):
                await manager.run(request(), done)
                await ended(manager, await manager.start(request(task_id=f"t{n}"), done))
                for _ in range(3):
                    nursery.start_soon(take)
        await take()
    assert sorted(taken) == sorted(f"t{n}" for n in range(20))


async def test_an_acknowledgement_that_failed(autojump_clock: trio.testing.MockClock) -> None:
    """A block whose notices could not be acknowledged is told; they come again."""
    store = FaultyStore()
    async with open_task_manager(store) as manager:
        await ended(manager, await manager.start(request(task_id="t"), done))
        store.break_down("acknowledge", error=lambda: TaskStoreError("no"))
        with pytest.raises(TaskStoreError, match="no"):
            await ids(manager)
        store.break_down("acknowledge", fault="hang")
        with pytest.raises(
            TaskStoreError, match=r"^the notices could not be acknowledged in time$"
        ):
            await ids(manager)
        store.repair()
        assert await ids(manager) == ["t"]


async def test_notices_in_portions(autojump_clock: trio.testing.MockClock) -> None:
    """At most a hundred at a time, the oldest first, each as its attempt ended."""
    async with open_task_manager() as manager:
        for n in range(250):
            await ended(manager, await manager.start(request(task_id=f"t{n}"), done))
        found: list[str] = []
        for size in (100, 100, 50, 0):
            portion = await ids(manager)
            assert len(portion) == size
            found += portion
        assert found == [f"t{n}" for n in range(250)]


async def test_each_attempt_has_its_notice(autojump_clock: trio.testing.MockClock) -> None:
    """A stopped attempt, and the one that resumed it, are announced each as it ended."""
    async with open_task_manager() as manager:
        asked = request(task_id="t", supports_resume=True)
        await ended(manager, await manager.start(asked, stop))
        again = attrs.evolve(asked, resume_attempt=1)
        await ended(manager, await manager.start(again, done))
        told = [(s.attempt, s.status.value, s.error) for s in await manager.take_notices(OWNER)]
        assert told == [(1, "stopped", "enough"), (2, "completed", None)]


async def test_a_notice_survives_the_record(autojump_clock: trio.testing.MockClock) -> None:
    """A collected task is announced all the same. C26."""
    async with open_task_manager() as manager:
        await ended(manager, await manager.start(request(task_id="t"), done))
        assert await manager.gc_terminal(OWNER) == 1
        assert await manager.get(OWNER, "t") is None
        assert await ids(manager) == ["t"]


async def test_foreground_notices_can_be_passed_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """``background_only`` leaves the others where they are, however many there are."""
    async with open_task_manager() as manager:
        for n in range(120):
            with trio.move_on_after(1):
                await manager.run(request(task_id=f"f{n}"), forever)
        await ended(manager, await manager.start(request(task_id="b"), done))
        async with manager.notices(OWNER, background_only=True) as summaries:
            assert [summary.task_id for summary in summaries] == ["b"]
        assert await ids(manager) == [f"f{n}" for n in range(100)]


async def test_foreground_notices_that_are_passed_over_are_not_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """However many stay for the host, a reader of background ones asks the store once for few."""

    class Counting(StoreWrapper):
        async def notices(self, owner_thread_id: str, **options: Any) -> list[Notice]:
            found = await super().notices(owner_thread_id, **options)
            read.append(len(found))
            return found

    read: list[int] = []
    async with open_task_manager(Counting()) as manager:
        for n in range(120):
            with trio.move_on_after(1):
                await manager.run(request(task_id=f"f{n}"), forever)
        for n in range(3):
            await ended(manager, await manager.start(request(task_id=f"b{n}"), done))
        async with manager.notices(OWNER, background_only=True, limit=2) as summaries:
            assert [summary.task_id for summary in summaries] == ["b0", "b1"]
            # Meanwhile these two are nobody else's.
            async with manager.notices(OWNER, background_only=True, limit=2) as others:
                assert [summary.task_id for summary in others] == ["b2"]
    assert read == [2, 3]


@pytest.mark.parametrize("limit", [0, True, "1"])
async def test_a_bad_limit_is_refused(limit: Any) -> None:
    """At least one notice can be asked for at once."""
    async with open_task_manager() as manager:
        with pytest.raises((TypeError, ValueError), match=r"^limit must be"):
            async with manager.notices(OWNER, limit=limit):
                pass


# ---- collecting ----------------------------------------------------------------------------------


async def test_what_has_ended_is_collected(autojump_clock: trio.testing.MockClock) -> None:
    """Ended records of this owner, of that age, without a running descendant. C21, C26, C32."""
    now, store = [1_000_000], MemoryTaskStore()
    async with opened(store, clock_ms=lambda: now[0]) as manager:
        gates = await grow(manager, "parent", "sub:child<parent", "old")
        for name in ("parent", "old"):
            gates[name].opened.set()
            await manager.wait(OWNER, name)
        now[0] += 60_000
        await manager.run(request(task_id="young"), done)
        await manager.run(request(task_id="stopped"), stop)
        await manager.run(request(task_id="resumable", supports_resume=True), stop)
        await manager.run(request(OTHER, task_id="theirs"), done)
        assert await manager.gc_terminal(OWNER, older_than_s=61) == 0
        assert await manager.gc_terminal(OWNER, older_than_s=60) == 1  # the old one
        assert await manager.gc_terminal(OWNER, older_than_s=1e308) == 0
        assert await manager.gc_terminal(OWNER) == 2
        assert [r.task_id for r in await records(store)] == ["parent", "resumable"]
        gates["child"].opened.set()
        await manager.wait("sub", "child")
        assert await manager.gc_terminal(OWNER) == 1
        assert await stored(store, "theirs")


async def test_an_unsaved_end_is_not_collected(autojump_clock: trio.testing.MockClock) -> None:
    """Only what the store says has ended can go. C26."""
    store = FaultyStore()
    async with open_task_manager(store) as manager:
        await manager.start(request(task_id="t"), done)
        store.break_down("apply")
        await trio.sleep(10)
        assert await manager.gc_terminal(OWNER) == 0
        store.repair()
        assert (await manager.wait(OWNER, "t")).result == "done"
        assert await manager.gc_terminal(OWNER) == 1


async def test_owners_in_pages(autojump_clock: trio.testing.MockClock) -> None:
    """Every owner that has tasks, once, in order."""
    async with open_task_manager() as manager:
        names = ["A", *(f"owner {n:03}" for n in range(450))]
        for name in names:
            await manager.run(request(name), done)
        assert await manager.owners() == names
