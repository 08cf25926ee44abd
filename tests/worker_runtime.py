"""A runtime in a process of its own, to be stopped and killed: starts tasks and says so.

Arguments: database, number of tasks, and ``quick`` for bodies that end at once, over and over (a
storm), or ``slow`` for bodies that save a checkpoint and go on until they are cancelled. Each line
that it prints is an acknowledgement: ``started ID`` and ``ended ID STATUS RESULT``.
"""

from __future__ import annotations

import itertools
import sys
from functools import partial

import trio

from trio_bgtasks import (
    BackgroundExecution,
    LeaseTerms,
    ManagerConfig,
    SqliteTaskStore,
    StartRequest,
    Success,
    TaskResult,
    open_task_manager,
)
from trio_bgtasks._manager import BackgroundTaskManager

OWNER = "conversation"
LEASE = LeaseTerms(lease_s=1.0, renew_s=0.3)


def request(**changes: object) -> StartRequest:
    """Return the request that all tasks of these tests share."""
    return StartRequest(
        owner_thread_id=OWNER,
        task_type="work",
        supports_resume=True,
        **changes,  # type: ignore[arg-type]
    )


def say(*words: object) -> None:
    """Acknowledge: what was printed must be true for ever."""
    print(*words, flush=True)


async def slow(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
    """Save a checkpoint, then tick until cancelled."""
    await execution.save_checkpoint({"pid": "worker"})
    say("saved", execution.task_id)
    for tick in itertools.count():
        await execution.write_output(f"tick {tick}\n")
        await trio.sleep(0.05)
    raise AssertionError


async def storm(manager: BackgroundTaskManager) -> None:
    """Start one task after the other; acknowledge each start and each result."""
    for number in itertools.count():

        async def body(
            number: int, execution: BackgroundExecution, _: trio.CancelScope
        ) -> TaskResult:
            await execution.write_output(f"{number}\n")
            return Success(number)

        summary = await manager.start(request(), partial(body, number))
        say("started", summary.task_id)
        if number % 3:
            ended = await manager.wait(OWNER, summary.task_id)
            say("ended", ended.task_id, ended.status, ended.result)


async def main(*argv: str) -> None:
    """Run until killed."""
    database, count, kind = argv
    config = ManagerConfig(lease=LEASE, poll_s=0.1, sweep_s=0.5)
    async with (
        SqliteTaskStore.open(database) as store,
        open_task_manager(store, config=config) as manager,
        trio.open_nursery() as nursery,
    ):
        for _ in range(int(count)):
            if kind == "quick":
                nursery.start_soon(storm, manager)
            else:
                say("started", (await manager.start(request(), slow)).task_id)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
