"""What the tools of the wire machine do, and so what is true of each call: a `Job`."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias, cast

import attrs
import trio

from trio_bgtasks import (
    BackgroundExecution,
    InternalError,
    QuestionDeclined,
    Stopped,
    background_tool,
)

from .wire_lines import Client, Request

Kind: TypeAlias = Literal[
    "running", "cancelling", "completed", "failed", "broken", "cancelled", "stopped", "gone"
]
What: TypeAlias = Literal[
    "output", "progress", "checkpoint", "ask", "finish", "fail", "break", "stop"
]
LIVE: tuple[Kind, ...] = ("running", "cancelling")
FORM: Any = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


@attrs.frozen
class Truth:
    """How a task stands: ``asks`` are its open questions, ``said`` what it ended with, if known."""

    kind: Kind
    attempt: int = 1
    asks: frozenset[str] = frozenset()
    said: str | None = None


@attrs.frozen
class Order:
    """What a body is told to do next."""

    what: What
    value: Any = None


@attrs.define(eq=False)
class Attempt:
    """One run of a body. ``doomed`` is what a cancellation of it will make of the task."""

    number: int
    execution: BackgroundExecution
    doomed: Truth | None = None
    lost: bool = False  # its server crashed,
    found: bool = False  # and that was found out
    cancelled: bool = False
    over: bool = False
    answers: dict[str, Any] = attrs.field(factory=dict[str, Any])
    orders: Any = attrs.field(factory=lambda: trio.open_memory_channel[Order](math.inf))

    @property
    def live(self) -> bool:
        """Does it take orders?"""
        return not (self.over or self.cancelled)

    def orphaned(self, truth: Truth) -> list[Truth]:
        """Return what becomes of its task, its server having crashed, once that is found out."""
        if truth.attempt != self.number or truth.kind not in LIVE:
            return [truth]
        return [Truth("stopped" if truth.kind == "running" else "cancelled", self.number)]


@attrs.define(eq=False)
class Job:
    """One call of a tool, and all that was true of its task, in order.

    ``history`` has sets: of what may be true, if that is not certain. Each has the machine's count
    of the moment, so that it can be said what was true since a request was made.
    """

    number: int
    client: Client
    resumable: bool
    count: Iterator[int]
    failures: list[Exception]
    background: bool = True
    request: Request | None = None
    task_id: str | None = None
    attempts: list[Attempt] = attrs.field(factory=list[Attempt])
    history: list[tuple[int, frozenset[Truth]]] = attrs.field(
        factory=list[tuple[int, frozenset[Truth]]]
    )
    keys: dict[str, str] = attrs.field(factory=dict[str, str])
    sent: dict[str, list[Any]] = attrs.field(factory=dict[str, list[Any]])
    output: str = ""
    said: set[str] = attrs.field(factory=set[str])
    ended_from: float | None = None
    ended_by: float | None = None
    crashed: bool = False
    spoken: Iterator[int] = attrs.field(factory=itertools.count)

    def __str__(self) -> str:
        now = " or ".join(sorted(map(str, self.now)))
        return f"job {self.number} ({self.client.owner}, {self.task_id}): {now}"

    @property
    def now(self) -> frozenset[Truth]:
        """What may be true."""
        return self.history[-1][1]

    @property
    def live(self) -> Attempt | None:
        """The attempt that takes orders."""
        return self.attempts[-1] if self.attempts and self.attempts[-1].live else None

    def words(self, what: str) -> str:
        """Return words that nobody used before."""
        return f"{what} {self.number}.{next(self.spoken)}"

    def since(self, stamp: int) -> list[frozenset[Truth]]:
        """Return what may have been true since a moment, the earliest first."""
        first = max((i for i, (at, _) in enumerate(self.history) if at <= stamp), default=0)
        return [truths for _, truths in self.history[first:]]

    def push(self, *truths: Truth) -> None:
        """Note what may be true from now on; what is lost may be found out at any time."""
        for attempt in self.attempts:
            if attempt.lost and not attempt.found:
                truths += tuple(orphan for t in truths for orphan in attempt.orphaned(t))
        if self.history and self.now == frozenset(truths):
            return
        self.history.append((next(self.count), frozenset(truths)))
        ended = [self.has_ended(truth) for truth in truths]
        now = trio.current_time()
        if any(ended) and self.ended_from is None:
            self.ended_from = now
        if not any(ended):
            self.ended_from = self.ended_by = None
        elif all(ended) and self.ended_by is None:
            self.ended_by = now

    def has_ended(self, truth: Truth) -> bool:
        """Will it stay as it is?"""
        return truth.kind not in LIVE and not (truth.kind == "stopped" and self.resumable)

    def change(self, change: Callable[[Truth], list[Truth]]) -> None:
        """Push what becomes of each thing that may be true."""
        self.push(*itertools.chain.from_iterable(map(change, self.now)))

    # ---- the body --------------------------------------------------------------------------------

    async def run(self, execution: BackgroundExecution, first: str, clean_up_s: float) -> Any:
        """Do what orders say, until one of them is an end."""
        self._check(self.task_id in (None, execution.task_id), "it has another id than was told")
        self.task_id = execution.task_id
        attempt = Attempt(execution.attempt, execution)
        self._check(execution.attempt == len(self.attempts) + 1, f"attempt {execution.attempt}")
        self.attempts.append(attempt)
        self.push(Truth("running", attempt.number))
        sending, orders = attempt.orders
        order = Order("checkpoint")  # nothing was ordered yet
        if first and attempt.number == 1:
            sending.send_nowait(ORDERS[cast("What", first)](self))
        try:
            async with trio.open_nursery() as nursery:
                while (order := await orders.receive()).what not in ENDS:
                    await self._obey(attempt, order, nursery)
                self.change(withdrawn)
                nursery.cancel_scope.cancel()
        except BaseException:
            attempt.cancelled = True
            with trio.CancelScope(shield=True):
                await trio.sleep(clean_up_s)
            attempt.over = True
            self._check(attempt.doomed or attempt.lost, "nobody cancelled it")
            if attempt.doomed and not attempt.lost:
                self.push(attempt.doomed)
            raise
        attempt.over = True
        return self._end(attempt, order)

    def _check(self, right: object, what: str) -> None:
        """Note what is wrong: raised here, it would be the tool's own error."""
        if not right:
            self.failures.append(AssertionError(f"{what}: {self}"))

    async def _obey(self, attempt: Attempt, order: Order, nursery: trio.Nursery) -> None:
        execution = attempt.execution
        match order.what:
            case "output":
                self.output += order.value
                await execution.write_output(order.value)
            case "progress":
                self.said.add(order.value)
                await execution.report_progress(1, 4, order.value)
            case "checkpoint":
                await execution.save_checkpoint(order.value)
            case _:
                self._asks(order.value, opened=True)
                nursery.start_soon(self._ask, attempt, order.value)

    async def _ask(self, attempt: Attempt, words: str) -> None:
        try:
            answer = await attempt.execution.ask(words, FORM)
        except QuestionDeclined:
            answer = None
        self._check(words not in attempt.answers, f"{words} is answered twice")
        self._check(answer in self.sent.get(words, []), f"{words}: nobody said {answer}")
        attempt.answers[words] = answer
        self._asks(words, opened=False)

    def _asks(self, words: str, *, opened: bool) -> None:
        def asks(truth: Truth) -> list[Truth]:
            if truth.kind != "running":
                return [truth]
            asked = truth.asks | {words} if opened else truth.asks - {words}
            return [attrs.evolve(truth, asks=asked)]

        self.change(asks)

    def _end(self, attempt: Attempt, order: Order) -> Any:
        value = order.value
        said = json.dumps(value, sort_keys=True) if order.what == "finish" else value
        end = Truth(ENDS[order.what], attempt.number, said=said)
        self.push(end, *([] if attempt.doomed is None else [attempt.doomed]))
        match order.what:
            case "finish":
                return value
            case "fail":
                raise ValueError(value)
            case "break":
                raise InternalError(value)
            case _:
                return Stopped(value)


def withdrawn(truth: Truth) -> list[Truth]:
    """Return what becomes of open questions for which nobody waits any more, one after another."""
    counts = range(len(truth.asks) + 1)
    left = itertools.chain.from_iterable(itertools.combinations(truth.asks, n) for n in counts)
    return [attrs.evolve(truth, asks=frozenset(asks)) for asks in left]


ENDS: dict[What, Kind] = {
    "finish": "completed",
    "fail": "failed",
    "break": "broken",
    "stop": "stopped",
}


ORDERS: dict[What, Callable[[Job], Order]] = {
    "output": lambda job: Order("output", job.words("öutput") + "\n"),
    "progress": lambda job: Order("progress", job.words("progress")),
    "checkpoint": lambda _: Order("checkpoint", 1),
    "ask": lambda job: Order("ask", job.words("question")),
    "finish": lambda job: Order("finish", {"words": job.words("result")}),
    "fail": lambda job: Order("fail", job.words("wrong")),
    "break": lambda job: Order("break", job.words("broken")),
    "stop": lambda job: Order("stop", job.words("reason")),
}
"""Every order, with words of its own."""


def tools_for(jobs: list[Job]) -> list[Any]:
    """Return the tools whose calls name the job that they are."""

    async def work(
        execution: BackgroundExecution, job: int, first: str = "", clean_up_s: float = 0
    ) -> Any:
        """Do as told."""
        return await jobs[job].run(execution, first, clean_up_s)

    return [
        background_tool(work, name="work"),
        background_tool(work, name="again", supports_resume=True),
    ]
