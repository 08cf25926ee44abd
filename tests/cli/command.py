"""The command as a program: real processes, as a person at a terminal would start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

import trio_bgtasks
from tests.processes import PATIENCE_S, Marked, until
from trio_bgtasks import BackgroundTaskManager, ManagerConfig, open_task_manager
from trio_bgtasks.stores.sqlite import SqliteTaskStore

PROGRAM = (sys.executable, "-W", "error", "-m", "trio_bgtasks.cli")


def environment() -> dict[str, str]:
    """The environment of this test, in which the package is found from every folder.

    Without the size of a terminal, which the command is to ask for: workers of xdist have one.
    """
    inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    return {**inherited, "PYTHONPATH": str(Path(trio_bgtasks.__file__).parents[1])}


@attrs.frozen
class Done:
    """How a run of the command ended, and what it wrote."""

    code: int
    raw: bytes
    errors: str

    @property
    def out(self) -> str:
        """Standard output as text."""
        return self.raw.decode()

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.raw)

    @property
    def statuses(self) -> list[str]:
        """The statuses of the tasks in JSON output."""
        return [task["status"] for task in self.json["tasks"]]


class Running:
    """A run of the command beside the test."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.raw = b""
        self.errors = b""
        self.ended = trio.Event()

    async def attend(self) -> None:
        """Take in what it writes until it has ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_errors)
            assert self.process.stdout is not None
            async for piece in self.process.stdout:
                self.raw += piece
        await self.process.wait()
        self.ended.set()

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        async for piece in self.process.stderr:
            self.errors += piece

    async def started(self, count: int) -> list[str]:
        """Wait until it has started so many tasks; return their ids."""
        await until(lambda: self.raw.count(b"  started\n") >= count or self.ended.is_set())
        lines = [line.split() for line in self.raw.decode().splitlines()]
        ids = [words[0] for words in lines if words[1:] == ["started"]]
        assert len(ids) == count, self.errors.decode()
        return ids

    async def says(self, text: str) -> None:
        """Wait until it has written ``text``."""
        await until(lambda: text.encode() in self.raw or self.ended.is_set())
        assert text.encode() in self.raw, self.errors.decode()

    async def end(self) -> Done:
        """Wait for its end."""
        with trio.fail_after(PATIENCE_S):
            await self.ended.wait()
        assert self.process.returncode is not None
        return Done(self.process.returncode, self.raw, self.errors.decode())


class Cli:
    """The command, on one database."""

    def __init__(self, db: Path, processes: Marked) -> None:
        self.db = db
        self.processes = processes

    async def __call__(self, *args: str, cwd: Path | None = None) -> Done:
        """Run it to its end."""
        with trio.fail_after(PATIENCE_S):
            done = await trio.run_process(
                [*PROGRAM, *args],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                cwd=cwd,
                env=environment(),
            )
        return Done(done.returncode, done.stdout, done.stderr.decode())

    def sleeping(self) -> int:
        """How many ``sleep 1000`` run: the commands of a test, not who was told to start them."""
        return list(self.processes.alive().values()).count("sleep 1000")

    async def together(self, *runs: Sequence[str]) -> list[Done]:
        """Run it several times at once; return how each ended, in the order given."""
        ends: dict[int, Done] = {}

        async def run(number: int, args: Sequence[str]) -> None:
            ends[number] = await self(*args)

        async with trio.open_nursery() as nursery:
            for number, args in enumerate(runs):
                nursery.start_soon(run, number, args)
        return [ends[number] for number in range(len(runs))]

    @asynccontextmanager
    async def running(
        self, *args: str, cwd: Path | None = None, program: Sequence[str] = PROGRAM
    ) -> AsyncGenerator[Running, None]:
        """Run it beside the block, and no longer."""
        process = await trio.lowlevel.open_process(
            [*program, *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment(),
        )
        run = Running(process)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.attend)
            try:
                yield run
            finally:
                process.kill()

    @asynccontextmanager
    async def manager(self, **options: Any) -> AsyncGenerator[BackgroundTaskManager, None]:
        """A manager of the test's own on the same file: another process, for the command."""
        config = ManagerConfig(poll_s=0.1, **options)
        async with (
            SqliteTaskStore.open(self.db) as store,
            open_task_manager(store, config=config) as manager,
        ):
            yield manager
