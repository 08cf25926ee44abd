"""Stateful tests whose rules are async: one Trio run per example, entered and left by every rule.

``trio.run`` lives in a greenlet of its own. A rule switches into it with an async function and is
switched back when that has returned; between two rules the run is frozen, so nothing happens that
no rule asked for. Everything stays in one thread, so Hypothesis' ``data.draw``, ``note`` and
``event`` work inside async rules. The clock is virtual unless a machine says otherwise, and Trio's
scheduler is seeded by the example, so that schedules vary, shrink and can be replayed.
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any, ClassVar, Concatenate, NoReturn, ParamSpec, TypeVar, cast

import greenlet  # type: ignore[import-untyped]
import hypothesis.strategies as st
import outcome
import trio
from hypothesis.stateful import (
    INITIALIZE_RULE_MARKER,
    INVARIANT_MARKER,
    RULE_MARKER,
    RuleBasedStateMachine,
    initialize,
)
from trio.testing import MockClock

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound="TrioStateMachine")
AsyncFunction = Callable[[], Awaitable[T]]

# Virtual seconds after which nothing will happen any more. Not longer than any rule needs, because
# everything periodic (leases, sweeps, polls) is run through on the way to it.
PATIENCE_S = 3600.0
REAL_PATIENCE_S = 60.0  # on the real clock: longer than any thread or process may need


# Turns of the loop in which no virtual time passes, after which none ever will.
TURNS = 50_000


class Deadlock(AssertionError):
    """A rule, or the end of the run, was still waiting after a virtual hour, or a real minute."""


class Livelock(AssertionError):
    """The tasks of a run went on and on while no virtual time passed; the run was abandoned."""


class TrioRun:
    """A Trio run that synchronous code enters with `call` and ends with `close`.

    ``nursery`` is for whatever has to go on between the calls. When a task of it crashes the run is
    over: the call that was under way raises what the task raised. ``virtual_time`` is for what runs
    on the loop alone: to a virtual clock a thread that works is nothing to wait for.
    """

    nursery: trio.Nursery
    over: bool

    def __init__(self, *, virtual_time: bool = True) -> None:
        self.over: bool = False
        self._patience_s = PATIENCE_S if virtual_time else REAL_PATIENCE_S
        self._crash: Exception | None = None
        self._born, self._ended = trio.Event(), trio.Event()  # the nursery
        self._news = trio.Event()  # the call under way has returned, or the nursery has ended
        self._hub = greenlet.getcurrent()
        clock = MockClock(autojump_threshold=0) if virtual_time else None
        self._turns = None if clock is None else _Turns(clock)
        instruments = [] if self._turns is None else [self._turns]
        run = partial(trio.run, self._main, clock=clock, instruments=instruments)
        self._inside = greenlet.greenlet(run)
        self._inside.switch()

    # ---- from outside -------------------------------------------------------------------------

    def call(self, function: AsyncFunction[T]) -> T:
        """Call ``function`` inside the run; return its value, or raise what it raised.

        Raises:
            Deadlock: it did not return in time; it is still waiting.
            Livelock: it will never return; the run is over.
            RuntimeError: the run is over.
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
            Exception: a background task crashed, and no call has raised that yet.
        """
        if self._inside.dead:
            return
        self.over = True
        stuck: str | None = self._switch(None)
        if stuck is not None:
            raise Deadlock(f"not ended by its cancellation in {self._patience_s:.0f} s: {stuck}")
        if self._crash is not None:
            raise self._crash

    def _switch(self, function: AsyncFunction[Any] | None) -> Any:
        if greenlet.getcurrent() is self._inside:
            raise RuntimeError(
                "a call is under way: from within it, await an async method that is not in_trio"
            )
        if self._turns is not None:
            self._turns.count = 0
        try:
            return self._inside.switch(function)
        except BaseExceptionGroup as group:
            raise _interrupt(group) or group from None
        except trio.TrioInternalError as error:
            self.over = True
            if isinstance(error.__cause__, Livelock):
                _abandoned.append(self.nursery)
                turning = ", ".join(_names(self.nursery))
                raise Livelock(
                    f"{TURNS} turns of the loop, and no time passes: {turning}"
                ) from None
            raise

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
            self.nursery.start_soon(self._perform, function, replies, name=function)
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
    """Make a rule or an invariant of an async method; goes below Hypothesis' decorators.

    One error that fails nurseries of the method is raised without their groups around it.

    Raises:
        TypeError: it is no async method, or one that Hypothesis has decorated already.
    """
    if not inspect.iscoroutinefunction(rule):
        name = getattr(rule, "__qualname__", repr(rule))
        if inspect.iscoroutinefunction(inspect.unwrap(rule)):
            raise TypeError(f"{name}: in_trio goes below @rule, @invariant and the like, not above")
        raise TypeError(f"{name}: in_trio takes an async method; one that is not needs none")

    @wraps(rule)
    def called(self: M, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return self.run.call(partial(rule, self, *args, **kwargs))
        except ExceptionGroup as group:
            raise _alone(group) from None  # of the nurseries that the rule opened

    return called


class TrioStateMachine(RuleBasedStateMachine):
    """A state machine whose rules and invariants may be async, in one Trio run per example.

    What the rules start goes on only while one of them is under way. A deadlock is a failure at
    once, the order in which tasks run is drawn, and when an example dies nothing of it is left.
    Override `set_up` and `clean_up`; write `in_trio` below each decorator of an async method::

        class CacheMachine(TrioStateMachine):
            async def set_up(self) -> None:
                self.cache = Cache()

            @rule(key=st.sampled_from("ab"))
            @in_trio
            async def get(self, key: str) -> None:
                assert await self.cache.get(key) == key.upper()

        TestCache = CacheMachine.TestCase

    Raises:
        TypeError: a class has an async rule, invariant or precondition without `in_trio`, or a
            `set_up` or `clean_up` that is not async.

    Attributes:
        virtual_time: False for what waits for threads or processes: then time is real, and a
            deadlock is found after a minute.
    """

    virtual_time: ClassVar[bool] = True
    __run: TrioRun | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in dir(cls):
            _check_async(cls, name)

    @property
    def run(self) -> TrioRun:
        """The run of this example; its ``nursery`` is for what goes on between the rules."""
        if self.__run is None:
            self.__run = TrioRun(virtual_time=self.virtual_time)
            self.__run.call(self.set_up)
        return self.__run

    @initialize(schedule=st.random_module())
    def begin(self, schedule: object) -> None:
        """Start the run; the drawn seed is that of Trio's scheduler, too."""
        del schedule
        self.run.call(trio.lowlevel.checkpoint)

    async def set_up(self) -> None:
        """Make what the rules need; open-ended parts in ``self.run.nursery``."""

    async def clean_up(self) -> None:
        """Release what cancellation does not end, and check what has to hold at the end.

        Not called when a background task has crashed.
        """

    def teardown(self) -> None:
        """End the run, whatever happened in it.

        What fails first is raised; what fails after that is a note on it.
        """
        if self.__run is None:
            return
        before = failure = sys.exception()
        try:
            if not self.__run.over:
                self.__run.call(self.clean_up)
        except Exception as error:  # noqa: BLE001 - raised below, when the run has ended
            failure = _first(failure, error)
        finally:
            try:
                self.__run.close()
            except Exception as error:  # noqa: BLE001 - raised below
                failure = _first(failure, error)
        if failure is not None and failure is not before:
            raise failure


class _Turns(trio.abc.Instrument):
    """Ends a run in which nothing waits for time and nothing ends: it would spin for ever.

    Cancellation is no way out, because what turns there may swallow it.
    """

    def __init__(self, clock: MockClock) -> None:
        self.count = 0
        self._clock = clock
        self._now = 0.0

    def after_io_wait(self, timeout: float) -> None:
        """See `trio.abc.Instrument`; next, the loop asks its clock."""
        del timeout
        now = self._clock.current_time()
        self.count = self.count + 1 if now == self._now else 0
        self._now = now
        if self.count > TURNS:
            # Nothing else that an error could come from is public; Trio ends the run by it.
            self._clock.current_time = _raise_livelock  # type: ignore[method-assign]


# The tasks of runs that were abandoned: they can neither go on nor be collected, because that would
# resume them outside of any run.
_abandoned: list[trio.Nursery] = []


def _raise_livelock() -> NoReturn:
    raise Livelock


# ---- small things -------------------------------------------------------------------------------


def _first(failure: BaseException | None, error: Exception) -> BaseException:
    """Return what failed first; what failed after that is a note on it."""
    if failure is None:
        return _alone(error)
    failure.add_note(f"After that, at the end: {type(error).__name__}: {error}")
    return failure


def _alone(error: Exception) -> Exception:
    """Return what a nursery wrapped, if it is one exception."""
    if not isinstance(error, ExceptionGroup):
        return error
    group = cast("ExceptionGroup[Exception]", error)
    return _alone(group.exceptions[0]) if len(group.exceptions) == 1 else group


def _interrupt(group: BaseExceptionGroup[BaseException]) -> KeyboardInterrupt | None:
    """Return the Ctrl-C that ended a run, out of the groups that its nurseries made of it."""
    interrupts, rest = group.split(KeyboardInterrupt)
    return KeyboardInterrupt() if interrupts is not None and rest is None else None


def _names(nursery: trio.Nursery) -> Iterator[str]:
    """Yield the names of the tasks of a nursery that wait for no other task of it, and where."""
    for task in nursery.child_tasks:
        inner = [name for child in task.child_nurseries for name in _names(child)]
        yield from inner or [" ".join(filter(None, (task.name, place_of(task.coro))))]


def place_of(coroutine: Any) -> str:
    """Return the innermost place in foreign code at which a coroutine waits; or nothing."""
    place = ""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None and coroutine.cr_await is not None:
            package = str(frame.f_globals.get("__name__")).partition(".")[0]
            if package not in ("trio", "outcome", "trio_bgtasks"):
                code = frame.f_code
                place = f"at {Path(code.co_filename).name}:{frame.f_lineno} ({code.co_qualname})"
        coroutine = getattr(coroutine, "cr_await", None)
    return place


def _check_async(cls: type, name: str) -> None:
    """Refuse what would make a coroutine of a rule that nobody awaits, or await what is none."""
    value = inspect.getattr_static(cls, name)
    where = f"{cls.__qualname__}.{name}"
    if name in ("set_up", "clean_up"):
        if not inspect.iscoroutinefunction(value):
            raise TypeError(f"{where} must be an async method, without in_trio")
        return
    for marker in (RULE_MARKER, INITIALIZE_RULE_MARKER, INVARIANT_MARKER):
        step = getattr(value, marker, None)
        if step is None:
            continue
        if inspect.iscoroutinefunction(step.function):
            raise TypeError(f"{where} is async: write @in_trio below Hypothesis' decorators")
        if any(inspect.iscoroutinefunction(asked) for asked in step.preconditions):
            raise TypeError(f"{where} has an async precondition: it would always hold")


def _take_shields() -> None:
    """Let cancellation reach everything; only what is stuck anyway is left to be reached."""
    for thing in gc.get_objects():
        if isinstance(thing, trio.CancelScope):
            thing.shield = False
