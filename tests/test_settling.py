"""Several look-ups of one orphan at once: each sees how it ended, whoever ended it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from trio_bgtasks import BackgroundTaskManager, MemoryTaskStore, SqliteTaskStore, TaskStatus
from trio_bgtasks.stores import LeaseTerms, SweepReport

from .stores.conftest import Hand, add_executor
from .support import OWNER, StoreWrapper, done, opened, request


class Overtaken(StoreWrapper):
    """A store where somebody else's sweep of a suspect is always a little faster."""

    async def sweep(
        self, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        """Find that everything has been done."""
        if suspect is not None:
            await self.inner.sweep(executor_id, at_ms, suspect=suspect)
        return await self.inner.sweep(executor_id, at_ms, suspect=suspect)


Look = Callable[[BackgroundTaskManager], Awaitable[Any]]
LOOKS: dict[str, Look] = {
    "get": lambda manager: manager.get(OWNER, "t"),
    "record": lambda manager: manager.record(OWNER, "t"),
    "find": lambda manager: manager.find("t"),
    "wait": lambda manager: manager.wait(OWNER, "t"),
}


@pytest.mark.parametrize("how", LOOKS)
async def test_an_orphan_that_somebody_else_ended_is_read_again(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The answer is what is stored now, not what was stored before the look at its executor."""
    inner = MemoryTaskStore()
    async with inner.executor(LeaseTerms(lease_s=1, renew_s=0.5)) as executor:
        await Hand(inner, executor.executor_id).start("t", owner=OWNER)
        inner.crash(executor.executor_id)
        async with opened(Overtaken(inner), sweep_s=1e6) as manager:
            await trio.sleep(2)
            before = trio.current_time()
            assert (await LOOKS[how](manager)).status is TaskStatus.STOPPED
            assert trio.current_time() == before


async def test_looks_from_everywhere_meet_at_one_orphan(tmp_path: Path) -> None:
    """Two managers on one file: nobody hears that it still runs, and it can be resumed."""
    path = tmp_path / "tasks.db"
    seen: list[TaskStatus] = []

    async def look(manager: BackgroundTaskManager, task_id: str) -> None:
        summary = await manager.get(OWNER, task_id)
        assert summary is not None
        seen.append(summary.status)

    async with (
        SqliteTaskStore.open(path) as here,
        SqliteTaskStore.open(path) as there,
        opened(here) as manager,
        opened(there) as other,
    ):
        for i in range(5):
            hand = Hand(here, add_executor(here))
            await hand.start(f"t{i}", owner=OWNER, task_type="work", supports_resume=True)
            seen.clear()
            async with trio.open_nursery() as nursery:
                for looker in (manager, manager, other):
                    nursery.start_soon(look, looker, f"t{i}")
            assert seen == [TaskStatus.STOPPED] * 3
            await manager.start(request(task_id=f"t{i}", resume_attempt=1), done)
            assert (await other.wait(OWNER, f"t{i}")).status is TaskStatus.COMPLETED
