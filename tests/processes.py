"""What processes and descriptors a test leaves, and how its processes stand."""

from __future__ import annotations

import fcntl
import gc
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from trio_bgtasks.testing._processes import MARK, Marked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Marked"]

PATIENCE_S = 60.0
"""For what must happen, on however slow a machine."""


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
