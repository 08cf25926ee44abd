"""Find every living process that a test started, by walking ``/proc``.

They inherit a variable of the environment with a value of the test's own, through every fork, exec,
double fork and new session. A zombie has no environment any more and does not count. Where there is
no ``/proc`` nothing is found.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

PROC = Path("/proc")
MARK = "TRIO_BGTASKS_TEST_MARK"


class Marked:
    """The processes of one test."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self._entry = f"{MARK}={mark}".encode()

    def alive(self) -> dict[int, str]:
        """Return the command line of every living process but this one, by its number."""
        found: dict[int, str] = {}
        for process in PROC.iterdir() if PROC.is_dir() else ():
            if not process.name.isdigit() or int(process.name) == os.getpid():
                continue
            try:
                if self._entry in (process / "environ").read_bytes().split(b"\0"):
                    line = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(process.name)] = line.decode(errors="replace").strip()
            except OSError:
                continue  # it has ended meanwhile
        return found

    def numbers(self, text: str) -> list[int]:
        """Return the numbers of the living processes with that text in their command line."""
        return [number for number, line in self.alive().items() if text in line]

    def kill(self) -> None:
        """Kill them all, so that a failed test does not spoil the next one."""
        while left := self.alive():
            for number in left:
                try:
                    os.kill(number, signal.SIGKILL)
                except ProcessLookupError:
                    continue
