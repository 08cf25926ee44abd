"""Opening and closing a manager: what is told, what is raised, and how often."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.support import OTHER, OWNER, FaultyStore, Stubborn, forever, opened, request
from trio_bgtasks import BackgroundTaskManager, TaskStoreError


@pytest.mark.parametrize("grace_s", [0, 1e-4, 1])
async def test_closing_names_who_does_not_end_once_a_second_at_most(
    grace_s: float, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """However short the grace, waiting for a body does not flood the log."""
    body = Stubborn()

    async def let_go() -> None:
        await trio.sleep(10.5)
        body.opened.set()

    async with trio.open_nursery() as nursery, opened(shutdown_grace_s=grace_s) as manager:
        await manager.start(request(task_id="t"), body)
        await body.entered.wait()
        nursery.start_soon(let_go)
    assert caplog.text.count("closing still waits for the bodies of: t") == 10


async def test_closing_an_owner_tells_which_ends_are_not_stored(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It does not return as if they were, when the manager closed meanwhile and gave them up."""
    store, told = FaultyStore(), list[str]()

    async def close_owner(manager: BackgroundTaskManager) -> None:
        try:
            await manager.close_owner(OWNER)
        except TaskStoreError as error:
            told.append(str(error))

    async with trio.open_nursery() as nursery:
        with pytest.raises(TaskStoreError, match="closed with 3 ends not stored"):
            async with opened(store, shutdown_grace_s=2) as manager:
                for owner, task_id in ((OWNER, "a"), (OWNER, "b"), (OTHER, "c")):
                    await manager.start(request(owner, task_id=task_id), forever)
                store.break_down("apply")
                nursery.start_soon(close_owner, manager)  # noqa: ASYNC111
                await trio.sleep(1)
                assert told == []
    (text,) = told
    assert text.startswith("2 ends of owner thread 'thread-1' are not stored: a: the task ended as")
    assert "; b: the task ended as" in text
    assert "store is down" in text
    assert "; c: " not in text
