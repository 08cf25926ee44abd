"""A second process of the demo: a runtime that counts, with a checkpoint after each step.

``python -m trio_bgtasks.cli._demo_worker DATABASE OWNER [TASK_ID]`` starts the counting, or resumes
it, and ends with it.
"""

from __future__ import annotations

import sys
from functools import partial

import trio

from .. import (
    RUN_IN_BACKGROUND_PARAM,
    BackgroundCapable,
    BackgroundExecution,
    SqliteTaskStore,
    ToolCallContext,
    background_tool,
    open_task_manager,
)
from .._json import JsonObject

GOAL = 14
_STEP_S = 0.5


@background_tool(supports_resume=True)
async def count(to: int, execution: BackgroundExecution) -> dict[str, int]:
    """Count up to a number; after a crash, from where the last checkpoint says.

    Args:
        to: The last number.
        execution: This attempt.
    """
    began = execution.checkpoint or 0
    await execution.write_output(f"attempt {execution.attempt} begins after {began}\n")
    for number in range(began + 1, to + 1):
        await trio.sleep(_STEP_S)
        await execution.write_output(f"{number}\n")
        await execution.save_checkpoint(number)
    return {"counted_to": to, "began_after": began}


async def main(database: str, owner: str, *task_id: str) -> None:
    """Count to the end in a runtime of its own."""
    args: JsonObject = {"task_id": task_id[0]} if task_id else {"to": GOAL}
    async with SqliteTaskStore.open(database) as store, open_task_manager(store) as manager:
        tool = BackgroundCapable(count, manager)
        call = {**args, RUN_IN_BACKGROUND_PARAM: True}
        started = await tool.execute(call, ToolCallContext(thread_id=owner))
        await manager.wait(owner, started.data["task_id"])


if __name__ == "__main__":
    trio.run(partial(main, *sys.argv[1:]))
