"""Load a real server over HTTP: many tasks at a time, some clients, and dead ones beside them.

Nothing may be lost: at the end the server is killed, and every task is read from its database.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from trio_bgtasks import SqliteTaskStore, TaskStatus, open_task_manager

from ._http_client import HttpClient

OTHERS = ("none", "live", "dead")


@attrs.frozen(kw_only=True)
class Load:
    """What was measured beside some other clients; times in milliseconds."""

    others: str
    tasks: int
    polls: int
    p50: float
    p99: float
    polls_per_s: float
    server_mb: float
    started_per_s: float


@attrs.frozen(kw_only=True)
class Timing:
    """How long a question about a foreign id takes, and one about an unknown id."""

    questions: int
    foreign_us: float
    unknown_us: float
    told_apart: float
    """How often the slower one of two is the foreign one: 0.5 is a guess."""


@asynccontextmanager
async def served(folder: Path, tokens: list[str]) -> AsyncGenerator[tuple[int, int]]:
    """Run a server; give its port and its process. It is killed at the end."""
    path = folder / "tokens"
    path.write_text("".join(f"client-{number} {token}\n" for number, token in enumerate(tokens)))
    path.chmod(0o600)
    command = [sys.executable, "-m", "trio_bgtasks.cli", "serve", "--http", "127.0.0.1:0"]
    command += ["--tokens", str(path), "--no-shell", "--tools", "benchmarks._served:tools"]
    command += ["--db", str(folder / "tasks.db")]
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
        assert process.stderr is not None
        said = b""
        while b"\n" not in said:
            said += await process.stderr.receive_some()
        nursery.start_soon(_drain, process.stderr)
        try:
            yield int(said.split(b":")[-1].split(b"/")[0]), process.pid
        finally:
            process.kill()
            with trio.move_on_after(60, shield=True):
                await process.wait()


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass


class Worker(HttpClient):
    """A client that starts some tasks, and polls each of them one after the other."""

    def __init__(self, port: int, token: str, numbers: range) -> None:
        super().__init__(port, token)
        self.numbers = numbers
        self.tasks: dict[str, int] = {}

    async def start(self) -> None:
        """Start them."""
        for number in self.numbers:
            self.tasks[await self.call("held", number=number)] = number

    async def look(self) -> None:
        """Poll each twice; all of them run."""
        for task_id in [*self.tasks, *self.tasks]:
            assert (await self.poll(task_id))["status"] == "working"

    async def see_the_end(self) -> None:
        """Poll until each has come to its own result."""
        left = dict(self.tasks)
        while left:
            for task_id, number in list(left.items()):
                seen = await self.poll(task_id)
                if seen["status"] != "working":
                    assert seen["status"] == "completed", seen
                    assert seen["result"]["content"][-1]["text"] == str(number * number), seen
                    del left[task_id]


async def load(folder: Path, tasks: int, clients: int, others: str, count: int) -> Load:
    """Start all tasks, poll each of them, let them go, and poll until all have ended.

    Beside them are ``count`` subscribers that are ``live``, or ``dead``: four of five never
    read, one never ends its request; or there are ``none``.
    """
    tokens = [f"token-of-the-benchmark-{number}" for number in range(clients)]
    async with served(folder, tokens) as (port, pid), AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(Worker(port, token, range(number, tasks, clients)))
            for number, token in enumerate(tokens)
        ]
        began = trio.current_time()
        await _together(worker.start for worker in workers)
        starts_took = trio.current_time() - began
        nursery = await stack.enter_async_context(trio.open_nursery())
        for number in range(count if others != "none" else 0):
            worker, token = workers[number % clients], tokens[number % clients]
            one = await stack.enter_async_context(HttpClient(port, token))
            if others == "dead" and number % 5 == 4:
                await one.go_silent()
                continue
            await one.listen(list(worker.tasks))
            if others == "live":
                nursery.start_soon(one.read)
        began = trio.current_time()
        await _together(worker.look for worker in workers)
        await workers[0].call("let_go")
        await _together(worker.see_the_end for worker in workers)
        polls_took = trio.current_time() - began
        memory = _memory(pid)
        nursery.cancel_scope.cancel()
    started = {task_id: number for worker in workers for task_id, number in worker.tasks.items()}
    assert len(started) == tasks, "an id came twice"
    await check(folder, started)
    latencies = sorted(seconds for worker in workers for seconds in worker.latencies)
    return Load(
        others=others,
        tasks=tasks,
        polls=len(latencies),
        p50=1000 * statistics.median(latencies),
        p99=1000 * latencies[int(len(latencies) * 0.99)],
        polls_per_s=len(latencies) / polls_took,
        server_mb=memory / (1 << 20),
        started_per_s=tasks / starts_took,
    )


async def _together(calls: Iterable[Callable[[], Awaitable[None]]]) -> None:
    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(call)


def _memory(pid: int) -> int:
    path = Path(f"/proc/{pid}/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


async def check(folder: Path, found: dict[str, int]) -> None:
    """Read every task from the database of the killed server: completed, with its own result."""
    async with (
        SqliteTaskStore.open(folder / "tasks.db") as store,
        open_task_manager(store) as manager,
    ):
        kept = 0
        for owner in await manager.owners():
            for task in await manager.list_tasks(owner):
                record = await manager.find(task.task_id)
                assert record is not None
                assert record.status is TaskStatus.COMPLETED, record
                if record.task_type == "held":
                    assert record.result == found[task.task_id] ** 2, record
                    kept += 1
        assert kept == len(found), f"{len(found) - kept} tasks are lost"


async def timing(folder: Path, questions: int) -> Timing:
    """Ask, in turns, for another principal's task and for none at all."""
    tokens = [f"token-of-the-benchmark-{number}" for number in range(2)]
    async with (
        served(folder, tokens) as (port, _),
        HttpClient(port, tokens[0]) as ann,
        HttpClient(port, tokens[1]) as bob,
    ):
        foreign = await ann.call("held", number=1)
        unknown = f"{foreign[:-8]}{int(foreign[-8:], 16) ^ 1:08x}"
        for number in range(2 * questions):
            assert "code" in await bob.poll(foreign if number % 2 else unknown)
        unknowns, foreigns = bob.latencies[0::2], bob.latencies[1::2]
    slower = sum(a > b for a, b in zip(foreigns, unknowns, strict=True))
    return Timing(
        questions=questions,
        foreign_us=1e6 * statistics.median(foreigns),
        unknown_us=1e6 * statistics.median(unknowns),
        told_apart=slower / questions,
    )


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything; the loads take turns."""
    rounds: list[dict[str, Load]] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for number in range(arguments.rounds):
            rounds.append({})
            for others in OTHERS:
                folder = Path(name) / f"{number}-{others}"
                folder.mkdir()
                rounds[-1][others] = await load(
                    folder, arguments.tasks, arguments.clients, others, arguments.others
                )
        times = await timing(Path(name), arguments.questions)
    return {
        "rounds": rounds,
        "p99_ratios": {
            f"{one} / {other}": [each[one].p99 / each[other].p99 for each in rounds]
            for one, other in (("dead", "none"), ("live", "none"), ("dead", "live"))
        },
        "timing": times,
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.over_http", description=__doc__)
    parser.add_argument("--tasks", type=int, default=1000, help="how many run at a time")
    parser.add_argument("--clients", type=int, default=50, help="each with a request under way")
    parser.add_argument("--others", type=int, default=50, help="subscribers beside them")
    parser.add_argument("--questions", type=int, default=1000, help="pairs of foreign and unknown")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the databases go; not a RAM disk")
    parser.add_argument("--json", action="store_true", help="print JSON")
    found = trio.run(measure, parser.parse_args())
    if "--json" in sys.argv:
        print(json.dumps(found, indent=2, default=attrs.asdict))
        return
    print("| subscribers | tasks | starts/s | polls | polls/s | p50 | p99 | server |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for each in (one[others] for others in OTHERS for one in found["rounds"]):
        print(
            f"| {each.others} | {each.tasks:,} | {each.started_per_s:,.0f} | {each.polls:,} "
            f"| {each.polls_per_s:,.0f} | {each.p50:.0f} ms | {each.p99:.0f} ms "
            f"| {each.server_mb:.0f} MiB |"
        )
    print()
    for name, ratios in found["p99_ratios"].items():
        print(f"p99, {name}, by round:", ", ".join(f"{ratio:.2f}" for ratio in ratios))
    times = found["timing"]
    print(
        f"A foreign id: {times.foreign_us:.0f} us, an unknown one: {times.unknown_us:.0f} us "
        f"(medians of {times.questions}); the foreign one was the slower of {times.told_apart:.0%}"
    )
    print(f"Load average at the end: {found['load_average']:.1f}")


if __name__ == "__main__":
    main()
