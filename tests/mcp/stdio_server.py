"""A server over stdio, with its tasks in a database: ``python -m tests.mcp.stdio_server DATABASE``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import trio

from tests.mcp.wire import TOOLS
from trio_bgtasks import SqliteTaskStore, open_task_manager
from trio_bgtasks.mcp import build_server, client_owner, serve_stdio


async def main(*arguments: str) -> None:
    """Serve until stdin ends, or SIGTERM comes."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with (
            SqliteTaskStore.open(Path(arguments[0])) as store,
            open_task_manager(store) as manager,
            trio.open_nursery() as nursery,
        ):

            async def obey() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(obey)
            print("this is no message")  # to stdout, which is the wire from now on
            await serve_stdio(build_server(manager, TOOLS, owner_of=client_owner(Path.cwd())))
            nursery.cancel_scope.cancel()
    print("served", file=sys.stderr, flush=True)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
