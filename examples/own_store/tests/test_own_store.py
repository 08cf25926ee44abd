"""Both stores under the machine: one passes, the other is found out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from last_write_wins import LastWriteWins
from own_store import FileTaskStore

from trio_bgtasks import LeaseTerms, TaskStore
from trio_bgtasks.testing import TaskStoreMachine


class FileStoreMachine(TaskStoreMachine):
    """How to open the store, and what is left of it when its processes are killed."""

    cancelled_is_not_applied = True

    @contextmanager
    def new_place(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / "tasks"

    @asynccontextmanager
    async def open_store(self, place: Path) -> AsyncIterator[TaskStore]:
        yield FileTaskStore(place)

    async def kill(self, place: Path, executor_ids: Sequence[str]) -> Path:
        copy = place.with_name(f"{place.name}+")
        shutil.copyfile(place, copy)
        await trio.sleep(LeaseTerms().lease_s)  # in virtual time: their leases run out
        return copy


TestFileStore = FileStoreMachine.TestCase
TestFileStore.settings = settings(
    TestFileStore.settings, max_examples=30, stateful_step_count=20, report_multiple_bugs=False
)


class LastWriteWinsMachine(FileStoreMachine):
    """The same machine; it cannot know that the store is another one."""

    cancelled_is_not_applied = False

    @asynccontextmanager
    async def open_store(self, place: Path) -> AsyncIterator[TaskStore]:
        yield LastWriteWins(place)


def test_last_write_wins_is_found_out() -> None:
    """The message says which promise is broken: the first one on a way drawn by chance."""
    how = settings(deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    with pytest.raises(AssertionError, match=r"^the store broke a promise: "):
        run_state_machine_as_test(LastWriteWinsMachine, settings=how)
