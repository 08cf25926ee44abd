"""A runtime of its own to be killed: starts one shell task on a database and stays.

Arguments: database and command. Prints ``started TASK_ID``.
"""

from __future__ import annotations

import sys
from functools import partial

import trio

from trio_bgtasks import (
    BackgroundCapable,
    SqliteTaskStore,
    ToolCallContext,
    open_task_manager,
)
from trio_bgtasks.tools import ShellTool


async def main(database: str, command: str) -> None:
    """Start the command in the background and wait to be killed."""
    async with (
        SqliteTaskStore.open(database) as store,
        open_task_manager(store) as manager,
    ):
        tool = BackgroundCapable(ShellTool(supports_resume=True, grace_s=0.5), manager)
        result = await tool.execute(
            {"command": command, "run_in_background": True}, ToolCallContext(thread_id="thread-1")
        )
        print("started", result.data["task_id"], flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(partial(main, *sys.argv[1:]))
