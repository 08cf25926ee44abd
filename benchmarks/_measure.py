"""Side by side: contenders take turns; ratios are taken per round, medians at the end."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import attrs
import trio

# Carries a number of tasks to their end and returns the seconds that this took.
Workload: TypeAlias = Callable[[], Awaitable[float]]


@attrs.frozen
class Contender:
    """Something that is measured; ``workload`` carries ``tasks`` tasks to their end."""

    name: str
    tasks: int
    workload: Workload


@attrs.frozen
class Figure:
    """A rate, in tasks per second, and its ratio to that of each baseline in the same round.

    All of them medians over the rounds.
    """

    name: str
    tasks_per_s: float
    baselines: Mapping[str, float]
    ratios: Mapping[str, float]


async def compare(contender: Contender, *baselines: Contender, rounds: int) -> Figure:
    """Let all of them take turns, in ``rounds`` rounds after one to warm up."""
    rates: dict[str, list[float]] = {}
    for _ in range(1 + rounds):
        for one in (contender, *baselines):
            gc.collect()
            rates.setdefault(one.name, []).append(one.tasks / await one.workload())
    own = rates.pop(contender.name)[1:]
    return Figure(
        contender.name,
        statistics.median(own),
        {name: statistics.median(theirs[1:]) for name, theirs in rates.items()},
        {
            name: statistics.median(a / b for a, b in zip(own, theirs[1:], strict=True))
            for name, theirs in rates.items()
        },
    )


async def by_clients(clients: int, tasks: int, one: Callable[[], Awaitable[object]]) -> float:
    """Let ``clients`` Trio tasks call ``one``, each again and again, ``tasks`` times together."""
    left = iter(range(tasks))

    async def client() -> None:
        for _ in left:
            await one()

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(client)
    return time.perf_counter() - start
