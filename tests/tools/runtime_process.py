"""A runtime of its own to be killed: runs one command under a lock and shows its output.

Arguments: lock file, grace period in seconds, command, and one of

* ``fork``: leave a forked copy of the runtime behind (as multiprocessing does), which prints its
  number;
* ``fork early`` or, so that Python does not know of it, ``fork unseen``: fork such a copy while the
  keeper is started; when the command has ended, print whether the copy still lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from tests.processes import PATIENCE_S
from trio_bgtasks.tools._process import KeeperLost, run_command

if TYPE_CHECKING:
    from collections.abc import Callable

FORKS: dict[str, Callable[[], int]] = {
    "fork early": os.fork,
    "fork unseen": ctypes.PyDLL(None).fork,
}


class CopyWhileOpening:
    """Forks this process when it opens the next one: what another thread could do."""

    def __init__(self, how: str) -> None:
        self._fork = FORKS[how]
        self._open = trio.lowlevel.open_process
        self._copy = 0
        trio.lowlevel.open_process = self._fork_and_open

    async def _fork_and_open(self, *args: Any, **options: Any) -> trio.Process:
        self._copy = self._fork()
        if self._copy == 0:
            signal.alarm(
                int(PATIENCE_S / 4)
            )  # it ends then, and so a test fails instead of hanging
            signal.pause()
        return await self._open(*args, **options)

    def report(self) -> None:
        ended, _ = os.waitpid(self._copy, os.WNOHANG)
        if not ended:
            os.kill(self._copy, signal.SIGKILL)
            os.waitpid(self._copy, 0)
        print("copy", "died" if ended else "lives", flush=True)


async def main(lock_file: str, grace_s: str, command: str, *options: str) -> None:
    """Hold the lock, run the command, print what it prints."""
    lock = os.open(lock_file, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)

    def leave_a_forked_copy() -> None:
        if os.fork() == 0:
            os.close(lock)
            os.write(1, b"copy %d\n" % os.getpid())  # in one piece: the other prints, too
            time.sleep(1000)

    async def show(text: str) -> None:
        if "fork" in options:
            leave_a_forked_copy()
        print(text, end="", flush=True)
        await trio.lowlevel.checkpoint()

    early = CopyWhileOpening(options[0]) if options and options[0] in FORKS else None
    with contextlib.suppress(KeeperLost):
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
    if early is not None:
        early.report()


if __name__ == "__main__":
    trio.run(partial(main, *sys.argv[1:]))
