"""A SQLite store in a process of its own, which a test can kill in the middle of its calls."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import attrs
import outcome
import trio

from tests.forks import FORKS
from trio_bgtasks import LeaseTerms, SqliteTaskStore
from trio_bgtasks.stores import wall_clock_ms


@attrs.define
class _Handle:
    executor_id: str
    lost: trio.Event = attrs.field(factory=trio.Event)
    lock_fds: tuple[int, ...] = ()


@attrs.define
class _Question:
    answered: trio.Event = attrs.field(factory=trio.Event)
    answer: outcome.Outcome[Any] = attrs.field(
        factory=lambda: outcome.Error(ConnectionError("the process of the store is dead"))
    )


class RemoteStore:
    """A `TaskStore` whose calls are made in another process; it waits for those it cancels."""

    def __init__(self, pipe: Connection, process: ForkServerProcess) -> None:
        self._pipe = pipe
        self._process = process
        self._asked: list[_Question] = []

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(self._ask, method)

    async def _ask(self, method: str, *args: Any, **options: Any) -> Any:
        question = _Question()
        with contextlib.suppress(OSError):  # it is dead
            self._pipe.send((len(self._asked), method, args, options))
            self._asked.append(question)
            with trio.CancelScope(shield=True):
                await question.answered.wait()
        return question.answer.unwrap()

    @asynccontextmanager
    async def executor(
        self, terms: LeaseTerms, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> AsyncGenerator[_Handle, None]:
        """Register an executor, by the clock of the other process; retire it if that is alive."""
        del clock_ms
        executor_id = await self._ask("register", terms)
        try:
            yield _Handle(executor_id)
        finally:
            with contextlib.suppress(ConnectionError):
                await self._ask("retire", executor_id)

    async def listen(self) -> None:
        """Hand out the answers until the process is dead."""
        with contextlib.suppress(EOFError, OSError), trio.CancelScope(shield=True):
            while True:
                await trio.lowlevel.wait_readable(self._pipe)
                number, answer = self._pipe.recv()
                self._asked[number].answer = answer
                self._asked[number].answered.set()
        self._pipe.close()
        for question in self._asked:
            question.answered.set()

    def stop(self) -> None:
        """Keep the process from its next step, as `kill -STOP` does."""
        pid = self._process.pid
        if pid is None or not self._process.is_alive():
            return
        os.kill(pid, signal.SIGSTOP)
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZ":
            os.sched_yield()

    def kill(self) -> None:
        """End the process as `kill -9` does."""
        self._process.kill()
        self._process.join()


@asynccontextmanager
async def open_remotely(path: Path) -> AsyncGenerator[RemoteStore, None]:
    """Open the store in a process that is dead at the end."""
    ours, theirs = FORKS.Pipe()
    process = FORKS.Process(target=_run, args=(path, theirs))
    process.start()
    theirs.close()
    store = RemoteStore(ours, process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.listen)
        try:
            yield store
        finally:
            store.kill()


# ---- in that process ----------------------------------------------------------------------------


def _run(path: Path, pipe: Connection) -> None:
    trio.run(_serve, path, pipe)


async def _serve(path: Path, pipe: Connection) -> None:
    async with (
        SqliteTaskStore.open(path, synchronous="normal") as store,
        trio.open_nursery() as nursery,
    ):
        server = _Server(store, nursery)
        with contextlib.suppress(EOFError):  # whoever asked has gone
            while True:
                await trio.lowlevel.wait_readable(pipe)
                number, method, args, options = pipe.recv()
                call = partial(
                    getattr(server, method, None) or getattr(store, method), *args, **options
                )
                nursery.start_soon(_answer, pipe, number, call)
        nursery.cancel_scope.cancel()


async def _answer(pipe: Connection, number: int, call: Callable[[], Any]) -> None:
    pipe.send((number, await outcome.acapture(call)))


class _Server:
    """The two calls that a store has as one context manager."""

    def __init__(self, store: SqliteTaskStore, nursery: trio.Nursery) -> None:
        self._store = store
        self._nursery = nursery
        self._retire: dict[str, tuple[trio.Event, trio.Event]] = {}

    async def register(self, terms: LeaseTerms) -> str:
        executor_id: str = await self._nursery.start(self._hold, terms)
        return executor_id

    async def _hold(self, terms: LeaseTerms, task_status: trio.TaskStatus[str]) -> None:
        async with self._store.executor(terms) as executor:
            asked, done = trio.Event(), trio.Event()
            self._retire[executor.executor_id] = asked, done
            task_status.started(executor.executor_id)
            await asked.wait()
        done.set()

    async def retire(self, executor_id: str) -> None:
        asked, done = self._retire.pop(executor_id)
        asked.set()
        await done.wait()
