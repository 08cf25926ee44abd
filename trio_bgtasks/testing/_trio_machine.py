"""Stateful tests whose rules are async: one Trio run per example, entered and left by every rule.

``trio.run`` lives in a greenlet of its own. A rule switches into it with an async function and is
switched back when that has returned; between two rules the run is frozen, so nothing happens that
no rule asked for. Everything stays in one thread, so Hypothesis' ``data.draw``, ``note`` and
``event`` work inside async rules. The clock is virtual unless a machine says otherwise, and Trio's
scheduler is seeded by the example, so that schedules vary, shrink and can be replayed.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterator
from functools import partial, wraps
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar, cast

import greenlet  # type: ignore[import-untyped]
import hypothesis.strategies as st
import outcome
import trio
from hypothesis.stateful import RuleBasedStateMachine, initialize
from trio.testing import MockClock

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound="TrioStateMachine")
AsyncFunction = Callable[[], Awaitable[T]]

# Virtual seconds after which nothing will happen any more. Not longer than any rule needs, because
# everything periodic (leases, sweeps, polls) is run through on the way to it.
PATIENCE_S = 3600.0
REAL_PATIENCE_S = 60.0  # on the real clock: longer than any thread or process may need


class Deadlock(AssertionError):
    """A rule, or the end of the run, was still waiting after a virtual hour, or a real minute."""


class TrioRun:
    """A Trio run that synchronous code enters with `call` and ends with `close`.

    ``nursery`` is for whatever has to go on between the calls. When a task of it crashes the run is
    over: the call that was under way raises what the task raised. ``virtual_time`` is for what runs
    on the loop alone: to a virtual clock a thread that works is nothing to wait for.
    """

    nursery: trio.Nursery

    def __init__(self, *, virtual_time: bool = True) -> None:
        self.over = False
        self._patience_s = PATIENCE_S if virtual_time else REAL_PATIENCE_S
        self._crash: Exception | None = None
        self._born, self._ended = trio.Event(), trio.Event()  # the nursery
        self._news = trio.Event()  # the call under way has returned, or the nursery has ended
        self._hub = greenlet.getcurrent()
        clock = MockClock(autojump_threshold=0) if virtual_time else None
        self._inside = greenlet.greenlet(partial(trio.run, self._main, clock=clock))
        self._inside.switch()

    # ---- from outside -------------------------------------------------------------------------

    def call(self, function: AsyncFunction[T]) -> T:
        """Call ``function`` inside the run; return its value, or raise what it raised.

        Raises:
            Deadlock: it did not return in time; it is still waiting.
            RuntimeError: the run is over.
        """
        if self.over:
            raise RuntimeError("this Trio run is over")
        reply: outcome.Outcome[T] = self._inside.switch(function)
        return reply.unwrap()

    def close(self) -> None:
        """End the run: cancel what is left of it and wait. Nothing of it is alive afterwards.

        Raises:
            Deadlock: something would not end in time, until its shields were taken.
            Exception: a background task crashed, and no call has raised that yet.
        """
        if self._inside.dead:
            return
        self.over = True
        stuck: str | None = self._inside.switch(None)
        if stuck is not None:
            raise Deadlock(f"not ended by its cancellation in {self._patience_s:.0f} s: {stuck}")
        if self._crash is not None:
            raise self._crash

    # ---- inside -------------------------------------------------------------------------------

    async def _main(self) -> str | None:
        stuck: str | None = None
        async with trio.open_nursery() as root:
            root.start_soon(self._live)
            await self._serve()
            self.nursery.cancel_scope.cancel()
            while not await self._in_time(self._ended):
                stuck = stuck or ", ".join(_names(self.nursery))
                _take_shields()
        return stuck

    async def _live(self) -> None:
        try:
            async with trio.open_nursery() as self.nursery:
                self._born.set()
                await trio.sleep_forever()
        except Exception as crash:  # noqa: BLE001 - the call under way raises it, or close()
            self._crash = _alone(crash)
        finally:
            self._ended.set()
            self._news.set()

    async def _serve(self) -> None:
        """Make the calls that come from outside, one at a time, until there is none any more."""
        await self._born.wait()
        reply: outcome.Outcome[Any] | None = None
        while (function := self._hub.switch(reply)) is not None:
            self._news = trio.Event()
            replies: list[outcome.Outcome[Any]] = []
            self.nursery.start_soon(self._perform, function, replies)
            await self._in_time(self._news)
            reply = self._outcome(replies)

    async def _perform(
        self, function: AsyncFunction[Any], replies: list[outcome.Outcome[Any]]
    ) -> None:
        result: outcome.Outcome[Any] = await outcome.acapture(function)
        match result:
            case outcome.Error(error=trio.Cancelled()):
                result.unwrap()  # the run is ending; the call raises what ended it
            case _:
                replies.append(result)
                self._news.set()

    async def _in_time(self, event: trio.Event) -> bool:
        with trio.move_on_after(self._patience_s):
            await event.wait()
        return event.is_set()

    def _outcome(self, replies: list[outcome.Outcome[Any]]) -> outcome.Outcome[Any]:
        self.over = self._ended.is_set()
        if replies and (self._crash is None or isinstance(replies[0], outcome.Error)):
            return replies[0]
        if self._crash is not None:
            crash, self._crash = self._crash, None
            return outcome.Error(crash)
        return outcome.Error(Deadlock(f"still waiting: {', '.join(_names(self.nursery))}"))


def in_trio(rule: Callable[Concatenate[M, P], Awaitable[T]]) -> Callable[Concatenate[M, P], T]:
    """Make a rule or an invariant of an async method; goes below Hypothesis' decorator."""

    @wraps(rule)
    def called(self: M, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.run.call(partial(rule, self, *args, **kwargs))

    return called


class TrioStateMachine(RuleBasedStateMachine):
    """A state machine with a Trio run. Override `set_up` and `clean_up`; decorate with `in_trio`.

    Use no other ``@initialize``: several of them run in an order that is drawn.

    Attributes:
        virtual_time: False for what waits for threads or processes: then time is real, and a
            deadlock is found after a minute.
    """

    virtual_time: ClassVar[bool] = True
    run: TrioRun

    @initialize(schedule=st.random_module())
    def begin(self, schedule: object) -> None:
        """Start the run; the drawn seed is that of Trio's scheduler, too."""
        del schedule
        self.run = TrioRun(virtual_time=self.virtual_time)
        self.run.call(self.set_up)

    async def set_up(self) -> None:
        """Make what the rules need; open-ended parts in ``self.run.nursery``."""

    async def clean_up(self) -> None:
        """Release what cancellation does not end, and check what has to hold at the end.

        Not called when a background task has crashed.
        """

    def teardown(self) -> None:
        """End the run, whatever happened in it."""
        if not hasattr(self, "run"):
            return
        try:
            if not self.run.over:
                self.run.call(self.clean_up)
        finally:
            self.run.close()


# ---- small things -------------------------------------------------------------------------------


def _alone(error: Exception) -> Exception:
    """Return what a nursery wrapped, if it is one exception."""
    if not isinstance(error, ExceptionGroup):
        return error
    group = cast("ExceptionGroup[Exception]", error)
    return _alone(group.exceptions[0]) if len(group.exceptions) == 1 else group


def _names(nursery: trio.Nursery) -> Iterator[str]:
    """Yield the names of the tasks of a nursery that wait for no other task of it."""
    for task in nursery.child_tasks:
        inner = [name for child in task.child_nurseries for name in _names(child)]
        yield from inner or [task.name]


def _take_shields() -> None:
    """Let cancellation reach everything; only what is stuck anyway is left to be reached."""
    for thing in gc.get_objects():
        if isinstance(thing, trio.CancelScope):
            thing.shield = False
