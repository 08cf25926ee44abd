"""Opening and closing a manager: what is told, what is raised, and how often."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
import signal
from typing import Any, Literal

import attrs
import pytest
import trio
import trio.testing

from tests.support import (
    OTHER,
    OWNER,
    FaultyStore,
    StoreWrapper,
    Stubborn,
    forever,
    opened,
    request,
    stored,
)
from trio_bgtasks import (
    BackgroundTaskManager,
    MemoryTaskStore,
    TaskStatus,
    TaskStoreError,
    open_task_manager,
)
from trio_bgtasks.stores import SweepReport


async def test_closing_takes_no_longer_than_its_bodies(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The grace is for what does not end: where everything does, closing waits for nothing."""
    async with opened(attempts_total=1) as manager:
        await manager.start(request(), forever)
        await manager.start(request(), forever)
        await trio.sleep(100)
        began = trio.current_time()
    assert trio.current_time() == began


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


# ---- Ctrl-C --------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 3, math.inf])
def test_ctrl_c_while_the_manager_opens(steps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves bare, and no Trio task and no executor is left, however far the opening has got.

    ``steps``: from the time when it is pressed the opening is that many checkpoints from its end.
    """
    memory, begun, tasks = MemoryTaskStore(), list[str](), list[int]()

    class Pressing(StoreWrapper):
        """Ctrl-C is pressed in the sweep that opens the manager."""

        @trio.lowlevel.enable_ki_protection  # so that it meets the main task
        async def sweep(self, *args: Any, **options: Any) -> SweepReport:
            signal.raise_signal(signal.SIGINT)
            if steps == math.inf:
                await trio.sleep_forever()
            for _ in range(int(steps)):
                await trio.lowlevel.cancel_shielded_checkpoint()
            return await super().sweep(*args, **options)

    async def main() -> None:
        tasks.append(trio.lowlevel.current_statistics().tasks_living)
        try:
            async with open_task_manager(Pressing(memory)):
                begun.append("block")
                await trio.sleep_forever()
        finally:
            tasks.append(trio.lowlevel.current_statistics().tasks_living)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert steps < 1 or begun == []
    assert tasks[0] == tasks[1]
    assert all(executor.fenced for executor in memory._executors.values())


@attrs.define
class PressedAround:
    """The context of a manager; Ctrl-C is pressed when it has been entered, or is to be left."""

    context: Any
    when: Literal["entered", "left"]

    async def __aenter__(self) -> None:
        await self.context.__aenter__()
        if self.when == "entered":
            signal.raise_signal(signal.SIGINT)

    async def __aexit__(self, *error: object) -> bool | None:
        if self.when == "left":
            signal.raise_signal(signal.SIGINT)
        return await self.context.__aexit__(*error)  # type: ignore[no-any-return]


@pytest.mark.parametrize("when", ["entered", "left"])
def test_ctrl_c_at_the_edges_of_the_block(when: Literal["entered", "left"]) -> None:
    """Wherever it comes, what was opened is closed: it is taken within the block, or afterwards."""
    store = MemoryTaskStore()

    async def main() -> None:
        context: Any = open_task_manager(store)
        context._context = PressedAround(context._context, when)
        async with context as manager:
            await manager.start(request(task_id="t"), forever)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert all(executor.fenced for executor in store._executors.values())
    if when == "left":
        assert trio.run(stored, store, "t").status is TaskStatus.STOPPED
