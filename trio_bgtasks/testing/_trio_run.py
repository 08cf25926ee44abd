"""One Trio run that synchronous code enters and leaves, frozen in between.

``trio.run`` lives in a greenlet of its own. A call switches into it with an async function and is
switched back when that has returned; between two calls the run is frozen, so nothing happens that
no call asked for. Everything stays in one thread.
"""

from __future__ import annotations

import gc
import itertools
import time
import types
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import greenlet  # type: ignore[import-untyped]
import outcome
import trio
from trio.testing import MockClock

T = TypeVar("T")
AsyncFunction = Callable[[], Awaitable[T]]

# Seconds after which nothing will happen any more. Not longer than most rules need, because
# everything periodic (leases, sweeps, polls) is run through on the way to it.
PATIENCE_S = 3600.0
REAL_PATIENCE_S = 60.0  # on the real clock: longer than any thread or process may need

# So many turns of the loop within so little virtual time: no deadline will ever be reached.
TURNS = 50_000
NO_TIME_S = 0.001

# What is left of a run that ends has its shields taken so often, then the run is abandoned.
ROUNDS = 10


class Deadlock(AssertionError):
    """A rule, or the end of the run, was still waiting after all the time that it was given."""


class Livelock(AssertionError):
    """The tasks of a run went on and on, and no time passed or no cancellation ended them.

    The run was abandoned.
    """


class TrioRun:
    """A Trio run that synchronous code enters with `call` and ends with `close`.

    ``nursery`` is for whatever has to go on between the calls. When a task of it crashes the run is
    over: the call that was under way raises what the task raised. ``virtual_time`` is for what runs
    on the loop alone: to a virtual clock a thread that works is nothing to wait for. A call has
    ``patience_s`` seconds of the run's time; None: an hour of virtual, a minute of real time.
    """

    nursery: trio.Nursery
    over: bool

    def __init__(self, *, virtual_time: bool = True, patience_s: float | None = None) -> None:
        self.over: bool = False
        self._virtual_time = virtual_time
        default_s = PATIENCE_S if virtual_time else REAL_PATIENCE_S
        self._patience_s = default_s if patience_s is None else patience_s
        self._crash: BaseException | None = None
        self._born, self._ended = trio.Event(), trio.Event()  # the nursery
        self._news = trio.Event()  # the call under way has returned, or the nursery has ended
        self._hub = greenlet.getcurrent()
        clock = MockClock(autojump_threshold=0) if virtual_time else _RealTime()
        self._turns = _Turns(clock)
        run = partial(trio.run, self._main, clock=clock, instruments=[self._turns])
        self._inside = greenlet.greenlet(run)
        self._inside.switch()

    # ---- from outside -------------------------------------------------------------------------

    def call(self, function: AsyncFunction[T]) -> T:
        """Call ``function`` inside the run; return its value, or raise what it raised.

        Raises:
            Deadlock: it did not return in time; it is still waiting.
            Livelock: it will never return; the run is over.
            RuntimeError: the run is over, or is so now because its nursery was cancelled.
            BaseException: what ``function`` raised, or a task of the nursery that crashed.
        """
        if self.over:
            raise RuntimeError("this Trio run is over")
        reply: outcome.Outcome[T] = self._switch(function)
        return reply.unwrap()

    def close(self) -> None:
        """End the run: cancel what is left of it and wait. Nothing of it is alive afterwards.

        Raises:
            Deadlock: something would not end in time, until its shields were taken.
            Livelock: something would never end.
            BaseException: a background task crashed, and no call has raised that yet.
        """
        if self._inside.dead:
            return
        self.over = True
        stuck: str | None = self._switch(None)
        if stuck is not None:
            raise Deadlock(f"not ended by its cancellation in {self._patience_s:g} s: {stuck}")
        if self._crash is not None:
            raise self._crash

    def _switch(self, function: AsyncFunction[Any] | None) -> Any:
        if greenlet.getcurrent() is self._inside:
            raise RuntimeError(
                "a call is under way: from within it, await an async method that is not in_trio"
            )
        self._turns.count = 0
        try:
            return _switched(self._inside, function)
        except BaseExceptionGroup as group:
            raise alone(group) from None
        except trio.TrioInternalError as error:
            _abandoned.append(self.nursery)
            _abandoned_scopes.update(_scopes())
            if isinstance(error.__cause__, Livelock):
                raise Livelock(f"{error.__cause__}: {self._waiting()}") from None
            raise
        finally:
            self.over = self.over or self._inside.dead

    # ---- inside -------------------------------------------------------------------------------

    async def _main(self) -> str | None:
        stuck: str | None = None
        async with trio.open_nursery() as root:
            root.start_soon(self._live)
            await self._serve()
            self.nursery.cancel_scope.cancel()
            for number in itertools.count():  # pragma: no branch (there is always a next one)
                if await self._in_time(self._ended, 1.0 if number else self._patience_s):
                    break
                if number == ROUNDS:
                    self._turns.hopeless = "cancelled again and again, and no end"
                stuck = stuck or self._waiting()
                _take_shields()
        return stuck

    async def _live(self) -> None:
        try:
            async with trio.open_nursery() as self.nursery:
                self._born.set()
                await trio.sleep_forever()
        except BaseException as crash:  # noqa: BLE001, ASYNC103 - raised by a call, or by close()
            self._crash = alone(crash)
        finally:
            self._ended.set()
            self._news.set()

    async def _serve(self) -> None:
        """Make the calls that come from outside, one at a time, until there is none any more."""
        await self._born.wait()
        reply: outcome.Outcome[Any] | None = None
        while (function := _switched(self._hub, reply)) is not None:
            self._news = trio.Event()
            replies: list[outcome.Outcome[Any]] = []
            if not self.nursery.cancel_scope.cancel_called:
                self.nursery.start_soon(self._perform, function, replies, name=function)
            await self._in_time(self._news, self._patience_s)
            reply = self._outcome(replies)

    async def _perform(
        self, function: AsyncFunction[Any], replies: list[outcome.Outcome[Any]]
    ) -> None:
        result: outcome.Outcome[Any] = await outcome.acapture(function)
        match result:
            case outcome.Error() if self.nursery.cancel_scope.cancel_called:
                result.unwrap()  # what ends the run came first; the call raises this with it
            case _:
                replies.append(result)
                self._news.set()

    async def _in_time(self, event: trio.Event, patience_s: float) -> bool:
        with trio.move_on_after(patience_s):
            await event.wait()
        return event.is_set()

    def _outcome(self, replies: list[outcome.Outcome[Any]]) -> outcome.Outcome[Any]:
        self.over = self._ended.is_set()
        if replies and (self._crash is None or isinstance(replies[0], outcome.Error)):
            return replies[0]
        if self._crash is not None:
            crash, self._crash = self._crash, None
            return outcome.Error(crash)
        if self.over:
            return outcome.Error(RuntimeError("the nursery of this Trio run was cancelled"))
        return outcome.Error(Deadlock(f"still waiting: {self._waiting()}"))

    def _waiting(self) -> str:
        """Return who waits, and where."""
        tasks = list(_waiting_tasks(self.nursery))
        waiting = ", ".join(f"{task.name} {place_of(task.coro)}".strip() for task in tasks)
        if self._virtual_time and any(_takes_real_time(task.coro) for task in tasks):
            waiting += " (for what takes real time: that needs virtual_time = False)"
        return waiting


class _RealTime(trio.abc.Clock):
    """Real time. Trio's own clock is not public, and cannot be made to raise."""

    def start_clock(self) -> None:
        """See `trio.abc.Clock`."""

    def current_time(self) -> float:
        """See `trio.abc.Clock`."""
        return time.perf_counter()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """See `trio.abc.Clock`."""
        return deadline - self.current_time()


class _Turns(trio.abc.Instrument):
    """Ends a run in which nothing waits for time and nothing ends: it would spin for ever.

    Cancellation is no way out, because what turns there may swallow it.
    """

    def __init__(self, clock: trio.abc.Clock) -> None:
        self.count = 0
        self.hopeless: str | None = None
        self._clock = clock
        self._now = 0.0

    def after_io_wait(self, timeout: float) -> None:
        """See `trio.abc.Instrument`; next, the loop itself asks its clock."""
        del timeout
        now = self._clock.current_time()
        self.count += 1
        if now > self._now + NO_TIME_S:
            self.count, self._now = 0, now
        elif self.count > TURNS:
            self.hopeless = f"{TURNS} turns of the loop, and no time passes"
        if self.hopeless is not None:
            # Nothing else that an error could come from is public; Trio ends the run by it.
            self._clock.current_time = self._fail  # type: ignore[method-assign]

    def _fail(self) -> NoReturn:
        raise Livelock(self.hopeless)


# The tasks of runs that were abandoned: they can neither go on nor be collected, because that would
# resume them outside of any run.
_abandoned: list[trio.Nursery] = []
_abandoned_scopes: set[trio.CancelScope] = set()


# ---- small things -------------------------------------------------------------------------------


def _switched(other: Any, value: object) -> Any:
    """Switch to another greenlet; return what comes back.

    Nothing follows within this function, because coverage knows whose lines it sees only once a
    function has been called, or left, since the switch.
    """
    return other.switch(value)


def alone(error: BaseException) -> BaseException:
    """Return what nurseries wrapped, if it is one exception; Ctrl-C is one, wherever it arrived."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    if group.split(KeyboardInterrupt)[1] is None:
        return KeyboardInterrupt()
    return alone(group.exceptions[0]) if len(group.exceptions) == 1 else group


def _waiting_tasks(nursery: trio.Nursery) -> Iterator[trio.lowlevel.Task]:
    """Yield the tasks of a nursery that wait for no other task of it."""
    for task in nursery.child_tasks:
        inner = [waiting for child in task.child_nurseries for waiting in _waiting_tasks(child)]
        yield from inner or [task]


def place_of(coroutine: Any) -> str:
    """Return the innermost place in foreign code at which a coroutine waits; or nothing."""
    place = ""
    for module, frame in _frames(coroutine):
        if module.partition(".")[0] not in ("trio", "outcome", "trio_bgtasks"):
            code = frame.f_code
            place = f"at {Path(code.co_filename).name}:{frame.f_lineno} ({code.co_qualname})"
    return place


def _takes_real_time(coroutine: Any) -> bool:
    """Does it wait for a thread, a process or a socket, which a virtual clock does not see?"""
    outside = ("trio._threads", "trio._subprocess", "trio._unix_pipes", "trio._socket")
    return any(module.startswith(outside) for module, _ in _frames(coroutine))


def _frames(coroutine: Any) -> Iterator[tuple[str, types.FrameType]]:
    """Yield the frames of a coroutine that waits, the outermost first, with their modules."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None and coroutine.cr_await is not None:
            yield str(frame.f_globals.get("__name__")), frame
        coroutine = getattr(coroutine, "cr_await", None)


def _take_shields() -> None:
    """Let cancellation reach everything; only what is stuck anyway is left to be reached."""
    for scope in _scopes() - _abandoned_scopes:
        if scope.shield:
            scope.shield = False


def _scopes() -> set[trio.CancelScope]:
    """Return every cancel scope that there is: Trio does not tell which ones a task is in."""
    return {thing for thing in gc.get_objects() if isinstance(thing, trio.CancelScope)}
