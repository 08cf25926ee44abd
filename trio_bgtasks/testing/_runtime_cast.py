"""Who is on the stage of `RuntimeMachine`, and may be chosen by its rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import hypothesis.strategies as st

from ._corruptible import CorruptibleStore
from ._history import History, TaskHistory
from ._runtime_parts import Call, Host, Listener, Order, Work
from ._runtime_world import World
from ._simulated import SimulationStore
from ._trio_machine import TrioStateMachine

T = TypeVar("T")

OWNERS = ("ann", "bob")

_WHOLE = {"type": "integer"}
WORDS: list[tuple[str, dict[str, Any]]] = [  # the first two differ in their schema only
    ("How many?", _WHOLE),
    ("How many?", {"type": ["integer", "null"]}),
    ("Which one?", _WHOLE),
]

few = st.integers(0, 2)
owners = st.sampled_from(OWNERS)
orders: st.SearchStrategy[Order] = st.sampled_from(
    ["succeed", "fail", "raise", "raise a group", "cancel itself", "cancel itself", "stop", "stop"]
)


def newest(things: list[T], number: int) -> T:
    """Return one of ``things``, counted from the newest."""
    return things[-1 - number % len(things)]


def some(list_of: Callable[[RuntimeCast], list[T]]) -> Callable[[RuntimeCast], bool]:
    """Return a precondition: there is one to choose from."""
    return lambda self: bool(list_of(self))


class RuntimeCast(TrioStateMachine):
    """Machines on one store, their tasks, bodies and callers; it has no rules of its own."""

    machines: ClassVar[int] = 2

    def make_store(self) -> SimulationStore:
        """Return the new store that the machines share.

        Its method ``corrupt(task_id)``, if it has one as `CorruptibleStore` has, is used for
        promise 12.
        """
        return CorruptibleStore()

    async def set_up(self) -> None:
        """Open the machines."""
        self.world: World = World(self.run.nursery, self.make_store())
        self.history: History = self.world.history
        self.asked: int = 0  # starts, those that were refused too
        self.answered: int = 0  # so often, each time otherwise
        self.doubtful: set[str] = set()  # they were stored, and nobody was told
        self.tried: dict[str, set[str]] = {owner: set() for owner in OWNERS}  # ids of others
        for _ in range(self.machines):
            await self.world.boot()

    def next_number(self) -> int:
        """Return the number of the next start."""
        self.asked += 1
        return self.asked - 1

    def next_answer(self) -> int:
        """Return an answer that nobody gave before."""
        self.answered += 1
        return self.answered

    # ---- what there is to choose from ------------------------------------------------------------

    @property
    def tasks(self) -> list[TaskHistory]:
        """The tasks that somebody knows of, but those whose record is damaged."""
        return [task for task in self.with_damaged if task.damaged is None]

    @property
    def with_damaged(self) -> list[TaskHistory]:
        """The tasks that somebody knows of."""
        there = self.history.tasks.values()
        return [task for task in there if task.known or task.task_id in self.doubtful]

    @property
    def damaged(self) -> list[TaskHistory]:
        """The tasks whose record is damaged."""
        return [task for task in self.with_damaged if task.damaged is not None]

    @property
    def running(self) -> list[Work]:
        """The bodies that run on an open machine."""
        return self.world.running("open")

    @property
    def talking(self) -> list[Work]:
        """Those of them that can save and say something: they were not spawned."""
        return [work for work in self.running if work.execution is not None]

    @property
    def obeying(self) -> list[Work]:
        """Those of them that wait for orders."""
        return [work for work in self.running if work.waits and not work.run.causes]

    @property
    def scoped(self) -> list[Work]:
        """Those of them that run in a scope of their caller's, and would notice its cancel."""
        scopes = self.world.spawned
        return [work for work in self.obeying if scopes.get(work.run.task.task_id) is not None]

    @property
    def asking(self) -> list[Work]:
        """Those of them that wait for an answer."""
        return [work for work in self.talking if work.waiting and not work.run.causes]

    @property
    def cancelled(self) -> list[TaskHistory]:
        """The tasks of which somebody was told that they are, or will be, cancelled."""
        return [task for task in self.tasks if task.cancel_accepted is not None]

    @property
    def listening(self) -> list[Listener]:
        """The subscribers on open machines."""
        hosts = self.world.open_hosts()
        there = [listener for host in hosts for listener in host.listeners]
        return [listener for listener in there if not listener.scope.cancel_called]

    @property
    def stalled(self) -> list[Host]:
        """The machines that are suspended."""
        return [host for host in self.world.hosts if host.state == "stalled"]

    @property
    def calls(self) -> list[tuple[Host, Call]]:
        """The foreground calls under way on open machines."""
        hosts = self.world.open_hosts()
        return [(host, call) for host in hosts for call in host.calls if not call.over]

    def host(self, number: int) -> Host:
        """Return an open machine."""
        return newest(self.world.open_hosts(), number)

    async def two_hosts(self) -> None:
        """Open one more machine if there is one only."""
        if len(self.world.open_hosts()) < 2:
            await self.world.boot()

    def other_than(self, host: Host, number: int) -> Host:
        """Return another open machine."""
        return newest([other for other in self.world.open_hosts() if other is not host], number)
