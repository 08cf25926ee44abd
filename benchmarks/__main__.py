"""Measure the runtime beside its baselines and print the figures as Markdown or JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from trio_bgtasks import SqliteTaskStore

from . import _baselines, _ours
from ._measure import Contender, Figure, compare

CLIENTS = (1, 10, 100, 1000)
RAW, SCOPED = "raw nursery", "checkpoint and scope"
UNGROUPED = "the same writes, a commit each"
SINGLE, GROUP = "plain SQLite, a commit each", "plain SQLite, grouped"


async def memory(rounds: int, scale: float) -> list[Figure]:
    """Measure the memory store beside a raw nursery."""
    tasks = int(10_000 * scale)
    burst = await compare(
        Contender(f"burst of {tasks:,}", tasks, partial(_ours.burst, tasks)),
        Contender(RAW, tasks, partial(_baselines.raw_burst, tasks)),
        Contender(SCOPED, tasks, partial(_baselines.scoped_burst, tasks)),
        rounds=rounds,
    )
    return [burst] + [
        await compare(
            Contender(_clients(count), tasks, partial(_ours.starts_and_waits, count, tasks, None)),
            Contender(RAW, tasks, partial(_baselines.raw_clients, count, tasks)),
            rounds=rounds,
        )
        for count in CLIENTS
    ]


async def durable(rounds: int, scale: float, folder: Path) -> list[Figure]:
    """Measure the SQLite store beside plain SQLite, on the same disk."""
    mode = await journal_mode(folder)
    figures: list[Figure] = []
    for count in CLIENTS:
        tasks = int(scale * min(4000, 200 * count))
        few = int(scale * 200)
        figures.append(
            await compare(
                Contender(
                    _clients(count), tasks, partial(_ours.starts_and_waits, count, tasks, folder)
                ),
                Contender(UNGROUPED, few, partial(_ours.ungrouped, count, few, folder)),
                Contender(SINGLE, few, partial(_baselines.commit_per_write, few, folder, mode)),
                Contender(
                    GROUP, tasks, partial(_baselines.group_commit, count, tasks, folder, mode)
                ),
                Contender(RAW, tasks, partial(_baselines.raw_clients, count, tasks)),
                rounds=rounds,
            )
        )
    return figures


async def journal_mode(folder: Path) -> str:
    """Return the journal mode that our store chose for its file."""
    path = folder / "mode.db"
    async with SqliteTaskStore.open(path):
        pass
    connection = sqlite3.connect(path)
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    connection.close()
    # Only WAL is a property of the file; of the other modes the store knows one.
    return "wal" if mode == "wal" else "truncate"


async def latencies(scale: float, folder: Path) -> dict[str, dict[str, float]]:
    """Measure single starts; milliseconds."""
    found: dict[str, dict[str, float]] = {}
    for name, path, tasks in (("memory", None, 2000), ("SQLite", folder, 500)):
        seconds = await _ours.start_latencies(int(tasks * scale), path)
        found[name] = {
            "median": 1000 * statistics.median(seconds),
            "p99": 1000 * seconds[int(len(seconds) * 0.99)],
        }
    return found


def machine() -> str:
    """Describe what the figures depend on."""
    return (
        f"Python {platform.python_version()}, Trio {trio.__version__}, "
        f"SQLite {sqlite3.sqlite_version}, {platform.system()}, {os.cpu_count()} cores"
    )


def _clients(count: int) -> str:
    return f"{count} client" if count == 1 else f"{count} clients"


def _table(title: str, figures: list[Figure]) -> None:
    names = list({name: None for figure in figures for name in figure.baselines})
    print(f"\n{title}\n")
    print("| load | tasks/s |" + "".join(f" {name}, tasks/s | ratio |" for name in names))
    print("| --- | ---: |" + " ---: | ---: |" * len(names))
    for figure in figures:
        cells = [figure.name, f"{figure.tasks_per_s:,.0f}"]
        for name in names:
            rate, ratio = figure.baselines.get(name), figure.ratios.get(name)
            cells += ["", ""] if rate is None else [f"{rate:,.0f}", f"{ratio:.2g}"]
        print("| " + " | ".join(cells) + " |")


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything."""
    rounds, scale = arguments.rounds, arguments.scale
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        return {
            "machine": machine(),
            "rounds": rounds,
            "memory": await memory(rounds, scale),
            "durable": await durable(rounds, scale, folder),
            "start_ms": await latencies(scale, folder),
        }


def main() -> None:
    """Run the harness."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each load")
    parser.add_argument("--scale", type=float, default=1.0, help="how many tasks, as a factor")
    parser.add_argument("--folder", type=Path, help="where the databases go; not a RAM disk")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    found = trio.run(measure, arguments)
    if arguments.json:
        print(json.dumps(found, indent=2, default=attrs.asdict))
        return
    print(f"{found['machine']}; medians of {found['rounds']} rounds")
    _table("In memory", found["memory"])
    _table("On disk (SQLite, synchronous=FULL)", found["durable"])
    print("\nOne start, nothing else going on\n\n| store | median | p99 |\n| --- | ---: | ---: |")
    for store, ms in found["start_ms"].items():
        print(f"| {store} | {ms['median']:.2f} ms | {ms['p99']:.2f} ms |")


if __name__ == "__main__":
    main()
