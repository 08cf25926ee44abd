"""What `RuntimeMachine` plays with: bodies and their orders, calls, listeners, machines."""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs
import trio

from trio_bgtasks import BackgroundExecution, Refused, TaskResult

from ._history import Run, TaskHistory
from ._recorded import RecordedManager
from ._simulated import SimulatedExecutor

Order: TypeAlias = Literal["succeed", "fail", "raise", "raise a group", "cancel itself", "stop"]
Manners: TypeAlias = Literal["passes on", "tidies up", "succeeds", "fails", "raises"]

TIDY_S = 3.0  # how long a body takes that tidies up when it is cancelled
CLOSED_S = 1200.0  # when a manager, or an owner, has closed, whatever the tools and the store do
AWAKE_S = 10.0  # when a machine that was suspended has tried everything again that went wrong


class Boom(Exception):
    """What a tool raises."""


@attrs.define(eq=False)
class Asking:
    """A call of ``ask`` under way in a body, and how to leave it."""

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    over: trio.Event = attrs.field(factory=trio.Event)
    refusal: Refused | None = None


@attrs.define(eq=False)
class Work:
    """A body that was called: its run in the history, and how to give it orders while it waits."""

    run: Run
    host: Host
    scope: trio.CancelScope
    execution: BackgroundExecution | None  # None: it was spawned, and has a scope only
    orders: trio.MemorySendChannel[Order]
    waits: bool = True
    asking: list[Asking] = attrs.field(factory=list[Asking])

    @property
    def waiting(self) -> list[Asking]:
        """The calls of ``ask`` that wait."""
        return [asking for asking in self.asking if not asking.over.is_set()]

    def leave(self) -> None:
        """Leave the questions for which it waits."""
        for asking in self.waiting:
            asking.scope.cancel()


@attrs.define(eq=False)
class Call:
    """A foreground call under way, or answered."""

    task_id: str
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    answer: TaskResult | Exception | None = None
    over: bool = False


@attrs.define(eq=False)
class Waiter:
    """Somebody who waits for the end of a task."""

    task: TaskHistory
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    over: bool = False


@attrs.define(eq=False)
class Listener:
    """A subscription to an owner, and what was heard."""

    owner: str
    machine: str
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    heard: set[str] = attrs.field(factory=set[str])


@attrs.define(eq=False)
class Host:
    """A machine, the callers on it, and what they wait for.

    Its name is that in the history, where a machine that was restarted is another one.
    """

    name: str
    simulated: SimulatedExecutor
    manager: RecordedManager
    calls: list[Call] = attrs.field(factory=list[Call])
    listeners: list[Listener] = attrs.field(factory=list[Listener])
    waits: list[Waiter] = attrs.field(factory=list[Waiter])
    left: bool = False  # was it shut down?

    @property
    def state(self) -> str:
        """See `SimulatedExecutor.state`."""
        return self.simulated.state
