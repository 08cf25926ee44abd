"""Opening and closing a manager: what is told, what is raised, and how often."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.support import Stubborn, opened, request


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
