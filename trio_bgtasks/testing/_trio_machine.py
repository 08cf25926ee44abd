"""Stateful tests whose rules are async: one Trio run per example, entered and left by every rule.

Between two rules the run is frozen, so nothing happens that no rule asked for. Everything stays in
one thread, so Hypothesis' ``data.draw``, ``note`` and ``event`` work inside async rules. The clock
is virtual unless a machine says otherwise, and Trio's scheduler is seeded by the example, so that
schedules vary, shrink and can be replayed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import hypothesis.strategies as st
import trio
from hypothesis import Phase, settings
from hypothesis.stateful import (
    INITIALIZE_RULE_MARKER,
    INVARIANT_MARKER,
    RULE_MARKER,
    RuleBasedStateMachine,
    initialize,
)

from ._trio_run import TrioRun, alone

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound="TrioStateMachine")


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
            raise alone(group) from None  # of the nurseries that the rule opened

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
        TestCache.settings = settings(TestCache.settings, max_examples=200)  # deeper than usual

    The settings of its test case leave `Phase.explain` out, which would take minutes for a failure
    that is found in seconds. Say what is to be different, as above, and it stays out.

    Raises:
        TypeError: a class has an async rule, invariant or precondition without `in_trio`, or a
            `set_up` or `clean_up` that is not async.

    Attributes:
        virtual_time: False for what waits for threads or processes: then time is real.
        patience_s: Seconds of its time after which a rule is a `Deadlock`; None: an hour of virtual
            time, a minute of real time. What polls is run through until then, so make it short.
    """

    virtual_time: ClassVar[bool] = True
    patience_s: ClassVar[float | None] = None
    __run: TrioRun | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in dir(cls):
            _check_async(cls, name)
        if "teardown" in vars(cls):
            cls.teardown = _and_ends_the_run(cls.teardown)  # type: ignore[assignment,method-assign]
        usual = cls.TestCase.settings
        # To explain a failure, Hypothesis traces every line of it: minutes, for one of seconds.
        phases = [phase for phase in usual.phases if phase is not Phase.explain]
        cls.TestCase.settings = settings(usual, phases=phases)

    @property
    def run(self) -> TrioRun:
        """The run of this example; its ``nursery`` is for what goes on between the rules."""
        if self.__run is None:
            self.__run = TrioRun(virtual_time=self.virtual_time, patience_s=self.patience_s)
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


def _first(failure: BaseException | None, error: Exception) -> BaseException:
    """Return what failed first; what failed after that is a note on it."""
    if failure is None:
        return alone(error)
    failure.add_note(f"After that, at the end: {type(error).__name__}: {error}")
    return failure


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


def _and_ends_the_run(teardown: Callable[[M], None]) -> Callable[[M], None]:
    """Make a teardown end the run also if it fails before that, or leaves it out."""

    @wraps(teardown)
    def torn_down(self: M) -> None:
        try:
            teardown(self)
        finally:
            TrioStateMachine.teardown(self)

    return torn_down
