"""A runtime of its own to be killed: runs one command under a lock and shows its output.

Arguments: lock file, grace period in seconds, command, and ``fork`` to also leave a forked copy of
the runtime behind (as multiprocessing does), which prints its number.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from functools import partial

import trio

from trio_bgtasks.tools._process import run_command


async def main(lock_file: str, grace_s: str, command: str, *options: str) -> None:
    """Hold the lock, run the command, print what it prints."""
    lock = os.open(lock_file, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)

    def leave_a_forked_copy() -> None:
        if os.fork() == 0:
            os.close(lock)
            print("copy", os.getpid(), flush=True)
            time.sleep(1000)

    async def show(text: str) -> None:
        if "fork" in options:
            leave_a_forked_copy()
        print(text, end="", flush=True)
        await trio.lowlevel.checkpoint()

    await run_command(
        command,
        shell="/bin/sh",
        cwd=None,
        env=dict(os.environ),
        timeout_s=None,
        grace_s=float(grace_s),
        lock_fds=[lock],
        on_output=show,
    )


if __name__ == "__main__":
    trio.run(partial(main, *sys.argv[1:]))
