"""What `BackgroundToolMachine` sees of a tool: every step of an attempt, and what it saves."""

from __future__ import annotations

import copy
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import outcome
import trio

from trio_bgtasks import (
    BackgroundExecution,
    CheckpointSaved,
    Event,
    MemoryTaskStore,
    QuestionAsked,
    Success,
    TaskRecord,
    ToolResult,
)

from ._trio_run import place_of

T = TypeVar("T")
ToolT = TypeVar("ToolT")
AsyncFunction = Callable[..., Awaitable[Any]]

# The text that the runtime, and the machine, give when they cancel: so a `Cancelled` that comes
# from there can be told from one of a scope that is the tool's own.
OURS = "trio_bgtasks"
STRUCK = f"{OURS}: interrupted by BackgroundToolMachine"

# Steps that a body may take after it was interrupted while no time passes.
SPINS = 5000


class NotingStore(MemoryTaskStore):
    """Tells which checkpoints were saved, and ``asked`` of which task a question, at once."""

    def __init__(self, asked: Callable[[TaskRecord], None]) -> None:
        super().__init__()
        self._asked = asked
        self.saved: list[Any] = []

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        after = await super().apply(task_id, event)
        if isinstance(event, CheckpointSaved):
            self.saved.append(after.checkpoint)
        elif isinstance(event, QuestionAsked):
            self._asked(after)
        return after


class Attempt(trio.abc.Instrument):
    """One execution of a tool's body; calls ``strike`` at its step number ``at``.

    A step is what a task does between two awaits; those of the tasks that the body started count,
    too. Step 0 ends before the body has begun. Without ``strike`` the body is held there until its
    scope is cancelled; without ``at`` it is only watched.

    Attributes:
        execution: What the body was given; None: it has not begun.
        steps: Steps so far.
        struck: Set at the step.
        place: Where the body waited then.
        over: Set when the body has ended, or turns in circles without waiting for anything.
        news: Set when `struck` or `over` is.
        spins: Does it turn in circles?
        blocked_s: The real time of its longest step.
        blocker: Where it waited after that.
        returned: What it returned.
        raised: What it raised.
        heard: Where it received the `Cancelled` of the interruption.
        changed: What it had made of its arguments.
        left: The names of the tasks that it started and that were alive when it ended.
        from_checkpoint: What it was given to resume from.
        saved: The checkpoints that it saved.
    """

    def __init__(
        self,
        at: int | None = None,
        strike: Callable[[BackgroundExecution], None] | None = None,
    ) -> None:
        self._at = at
        self._strike = strike
        self._main: trio.lowlevel.Task | None = None
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._tasks: set[trio.lowlevel.Task] = set()
        self._last = 0, 0.0  # steps and time when time last passed after the strike
        self.execution: BackgroundExecution | None = None
        self.from_checkpoint: Any = None
        self.steps = 0
        self.struck = trio.Event()
        self.place = ""
        self.over = trio.Event()
        self.news = trio.Event()
        self.returned: Any = None
        self.raised: BaseException | None = None
        self.heard: list[str] = []
        self.changed: Any = None
        self.left: list[str] = []
        self.saved: list[Any] = []
        self.spins = False
        self.blocked_s = 0.0
        self.blocker = ""
        self._stepped_at = 0.0

    @contextmanager
    def watching(self) -> Generator[None, None, None]:
        """Watch the run's steps within the block."""
        trio.lowlevel.add_instrument(self)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(self)

    # ---- the body -----------------------------------------------------------------------------

    async def body(
        self, body: Callable[[], Awaitable[T]], args: Any, execution: BackgroundExecution
    ) -> T:
        """Run the body of the tool and note how it ends."""
        if self._main is not None:
            return await body()  # a foreground that calls the background

        async def begun() -> T:
            return await body()

        before = copy.deepcopy(args)
        self.execution = execution
        self.from_checkpoint = copy.deepcopy(execution.checkpoint)
        self._main = trio.lowlevel.current_task()
        self._tasks.add(self._main)
        self._coroutine = begun()
        self._stepped_at = time.perf_counter()
        self._take_step()
        try:
            self.returned = await _overheard(self._coroutine, self._hold, self._hear)
        except BaseException as error:
            self.raised = error
            raise
        else:
            return cast("T", self.returned)
        finally:
            self.changed = None if args == before else args
            self.left = sorted(task.name for task in self._tasks - {self._main})
            self._tasks.clear()
            self.end()

    def end(self) -> None:
        """Wait for the body no longer."""
        self.over.set()
        self.news.set()

    def where(self) -> str:
        """Return where in its own code the body waits."""
        return place_of(self._coroutine) or "before it has begun"

    async def _hold(self) -> None:
        """Keep the body from its next step until the runtime has cancelled it, as is due."""
        assert self.execution is not None
        while (
            self._strike is None
            and self.struck.is_set()
            and not self.execution.cancel_scope.cancel_called
        ):
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _hear(self, cancelled: trio.Cancelled) -> None:
        if (cancelled.reason or "").startswith(OURS):
            self.heard.append(self.where())

    @property
    def succeeded(self) -> bool:
        """Did the body return, and say that all went well?"""
        return isinstance(self.returned, Success) or (
            isinstance(self.returned, ToolResult) and self.returned.is_success
        )

    # ---- its steps ----------------------------------------------------------------------------

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """See `trio.abc.Instrument`."""
        # What the runtime starts on behalf of a call, another task for example, is the runtime's.
        if trio.lowlevel.current_task() in self._tasks and not task.name.startswith(OURS):
            self._tasks.add(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """See `trio.abc.Instrument`."""
        if task is not self._main:
            self._tasks.discard(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """See `trio.abc.Instrument`."""
        if task in self._tasks:
            self._stepped_at = time.perf_counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """See `trio.abc.Instrument`."""
        if task in self._tasks:
            took_s = time.perf_counter() - self._stepped_at
            if took_s > self.blocked_s:
                self.blocked_s, self.blocker = took_s, place_of(task.coro)
            self.steps += 1
            self._take_step()

    def _take_step(self) -> None:
        now = trio.current_time()
        if self.steps == self._at:
            self.place = self.where()
            self._last = self.steps, now
            if self._strike is not None and self.execution is not None:
                self._strike(self.execution)
            self.struck.set()
            self.news.set()
        if self.struck.is_set():
            steps, time = self._last
            if now > time:
                self._last = self.steps, now
            elif self.steps > steps + SPINS:
                self.spins = True
                self.end()


def watched(tool: ToolT, current: Callable[[], Attempt]) -> ToolT:
    """Return a copy of the tool whose bodies run under the eyes of the ``current()`` attempt."""
    seen = copy.copy(tool)

    def watch(name: str, args_at: int, execution_at: int) -> None:
        body: AsyncFunction = getattr(seen, name)

        async def watched_body(*given: Any, **options: Any) -> Any:
            run = partial(body, *given, **options)
            return await current().body(run, given[args_at], given[execution_at])

        # On the instance, not in a class on top of its own: `BackgroundCapable` looks at what a
        # tool's class defines.
        object.__setattr__(seen, name, watched_body)

    watch("execute_background", 1, 3)
    watch("execute_foreground", 0, 2)
    return seen


@types.coroutine
def _overheard(
    coroutine: Any, hold: Callable[[], Awaitable[None]], hear: Callable[[trio.Cancelled], None]
) -> Generator[Any, Any, Any]:
    """Run a coroutine: ``hold`` it before each step, ``hear`` each `Cancelled` that it gets."""
    step, given = coroutine.send, None
    while True:
        yield from hold().__await__()
        try:
            trap = step(given)
        except StopIteration as end:
            return end.value
        try:
            step, given = coroutine.send, (yield trap)
        except BaseException as error:  # noqa: BLE001, ASYNC103 - it is the coroutine's
            step, given = coroutine.throw, error  # noqa: ASYNC104
        if isinstance(given, outcome.Error) and isinstance(given.error, trio.Cancelled):
            hear(given.error)
