"""Find every living process that a test started, by walking /proc, and every descriptor left open.

Each test that uses the fixture `marked` runs under an environment variable with a unique value,
which its processes inherit, through every fork, exec, double fork and new session. A zombie has
no environment any more and does not count.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MARK = "TRIO_BGTASKS_TEST_MARK"

PATIENCE_S = 60.0
"""For what must happen, on however slow a machine."""


class Marked:
    """The processes of one test."""

    def __init__(self, mark: str) -> None:
        self._entry = f"{MARK}={mark}".encode()

    def alive(self) -> dict[int, str]:
        """The command line of every living process of this test but this one, by its number."""
        found = {}
        for process in Path("/proc").iterdir():
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
        """The numbers of the living processes with that text in their command line."""
        return [number for number, line in self.alive().items() if text in line]

    def kill(self) -> None:
        """Kill them all, so that a failed test does not spoil the next one."""
        while left := self.alive():
            for number in left:
                try:
                    os.kill(number, signal.SIGKILL)
                except ProcessLookupError:
                    continue


def descriptors() -> dict[int, str]:
    """What every open descriptor of this process refers to, by its number."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except OSError:
            continue  # the one that listed them
    return found


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Marked]:
    """The test's processes; at its end none may be alive and no new descriptor open."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    processes = Marked(mark)
    gc.collect()
    before = descriptors()
    yield processes
    alive = processes.alive()
    processes.kill()
    gc.collect()
    opened = {fd: what for fd, what in descriptors().items() if before.get(fd) != what}
    assert not alive, f"left behind: {alive}"
    assert not opened, f"left open: {opened}"


def process_state(number: int) -> str:
    """The state letter of a process: R, S, T (stopped), Z, ...; X when it has gone."""
    try:
        text = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "X"
    return text.rpartition(")")[2].split()[0]


def lock_is_free(path: Path) -> bool:
    """Whether nobody holds the file's lock, asked in the way the store asks: by a shared lock."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


async def until(condition: Callable[[], object]) -> None:
    """Wait on the real clock for what must become true; fail when it does not."""
    with trio.fail_after(PATIENCE_S):
        while not condition():
            await trio.sleep(0.01)
