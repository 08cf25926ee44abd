"""`SimulatedExecutor`: one manager on a shared store, as a machine of its own on virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar, cast, final

import trio

from trio_bgtasks import (
    BackgroundTaskManager,
    ManagerConfig,
    StoreClosed,
    TaskStore,
    open_task_manager,
)
from trio_bgtasks.stores import ExecutorHandle

from ._faulty import FaultyStore, StoreWrapper

T = TypeVar("T")


class SimulationStore(TaskStore, Protocol):
    """A store on which machines can be simulated: `MemoryTaskStore`, or a wrapper around it.

    Its leases run on Trio's clock, and it can take away what proves an executor alive.
    """

    def crash(self, executor_id: str) -> None:
        """Take nothing from the executor any more; it does not retire, its lease runs out."""
        ...

    def stall(self, executor_id: str) -> None:
        """Renew the executor's lease no more; do not tell it that it was fenced."""
        ...

    def wake(self, executor_id: str) -> None:
        """Renew the executor's lease again, or tell it that it was fenced."""
        ...


def virtual_clock_ms() -> int:
    """Return milliseconds of Trio's clock: the wall clock of simulated machines."""
    return int(trio.current_time() * 1000)


@final
class SimulatedExecutor:
    """One manager on a shared store, as a machine of its own, from its opening to its end.

    It sees the shared store through ``store``, a `FaultyStore` of its own: what breaks there breaks
    for this machine only. It ends once, by `shut_down` or by `crash`; `restart` gives the next one.
    Everything happens on Trio's clock, so that leases run out in no time under a virtual one.

    Attributes:
        name: For messages.
        store: What this machine sees of the store.
        manager: Its manager.
    """

    manager: BackgroundTaskManager

    def __init__(
        self,
        nursery: trio.Nursery,
        store: SimulationStore,
        *,
        name: str = "machine",
        config: ManagerConfig | None = None,
    ) -> None:
        self.name = name
        self.store: FaultyStore = FaultyStore(_Link(name, store))
        self._nursery = nursery
        self._config = ManagerConfig(clock_ms=virtual_clock_ms) if config is None else config
        self._scope = trio.CancelScope()
        self._opened, self._leaving, self._ended = trio.Event(), trio.Event(), trio.Event()
        self._failure: Exception | None = None

    def __repr__(self) -> str:
        return f"<SimulatedExecutor {self.name} {self.state}>"

    @property
    def _link(self) -> _Link:
        return cast("_Link", self.store.inner)

    @property
    def state(self) -> str:
        """Return ``"open"``, ``"stalled"``, ``"closing"``, ``"closed"`` or ``"crashed"``."""
        if self._link.crashed:
            return "crashed"
        if self._ended.is_set():
            return "closed"
        if self._leaving.is_set():
            return "closing"
        return "open" if self._link.woken is None else "stalled"

    @property
    def executor_ids(self) -> frozenset[str]:
        """Every id under which it was registered so far: a fresh one after each lost lease."""
        return frozenset(handle.executor_id for handle in self._link.handles)

    @property
    def is_gone(self) -> bool:
        """Has its last task ended? After a crash, clean-up that was under way takes a moment."""
        return self._ended.is_set()

    # ---- from its opening to its end ----------------------------------------------------------

    @classmethod
    async def open(
        cls,
        nursery: trio.Nursery,
        store: SimulationStore,
        *,
        name: str = "machine",
        config: ManagerConfig | None = None,
    ) -> SimulatedExecutor:
        """Open a manager on ``store``, in a task of its own in ``nursery``; return once it is open.

        ``config``: None is the default one on Trio's clock. Raises what `open_task_manager` raises.
        """
        machine = cls(nursery, store, name=name, config=config)
        nursery.start_soon(machine._live, name=f"simulated {name}")
        await machine._opened.wait()
        machine._raise_failure()
        return machine

    async def _live(self) -> None:
        try:
            with self._scope:
                async with open_task_manager(self.store, config=self._config) as self.manager:
                    self._opened.set()
                    await self._leaving.wait()
        except Exception as error:  # noqa: BLE001 - raised by who opens it or shuts it down
            self._failure = error
        finally:
            self._opened.set()
            self._ended.set()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def shut_down(self) -> None:
        """Let the program leave its manager's block; return when that has closed.

        A stalled machine is woken for it. Raises what the manager's exit raises.
        """
        self.wake()
        self._leaving.set()
        await self._ended.wait()
        self._raise_failure()

    def crash(self) -> None:
        """End it here and now: nothing is recorded, nobody is told, its lease just runs out.

        Its bodies are cancelled. What they still do reaches the store no more.
        """
        link = self._link
        link.crashed = True
        with suppress(KeyError):  # it was lost, and has none at the moment
            link.simulated.crash(link.handles[-1].executor_id)
        link.go_on()
        self._scope.cancel()

    async def restart(self) -> SimulatedExecutor:
        """Open the machine again after its end: a new incarnation, under a fresh executor id."""
        if self.state not in ("closed", "crashed"):
            raise RuntimeError(f"{self.name} is {self.state}: shut it down, or let it crash, first")
        return await SimulatedExecutor.open(
            self._nursery, self._link.simulated, name=self.name, config=self._config
        )

    # ---- being suspended ----------------------------------------------------------------------

    def stall(self) -> None:
        """Suspend it as far as others can see: no renewal, and no call of it reaches the store.

        Its bodies go on, and its calls wait until `wake`. If others find its lease run out before
        that, they fence it, and what was waiting comes too late.
        """
        link = self._link
        if self.state != "open":
            raise RuntimeError(f"{self.name} is {self.state}")
        link.woken = trio.Event()
        with suppress(KeyError):  # it was lost, and has none at the moment
            link.simulated.stall(link.handles[-1].executor_id)

    def wake(self) -> None:
        """Let it go on from where it was, if it is stalled."""
        link = self._link
        if link.woken is not None and not link.crashed:
            with suppress(KeyError):
                link.simulated.wake(link.handles[-1].executor_id)
            link.go_on()


class _Link(StoreWrapper):
    """The way from one machine to the shared store; cut by its crash, blocked while it stalls."""

    def __init__(self, name: str, simulated: SimulationStore) -> None:
        super().__init__(simulated)
        self.name = name
        self.simulated = simulated
        self.handles: list[ExecutorHandle] = []
        self.crashed = False
        self.woken: trio.Event | None = None

    def go_on(self) -> None:
        if self.woken is not None:
            self.woken.set()
            self.woken = None

    async def around(self, call: str, afn: Callable[[], Awaitable[T]]) -> T:
        await trio.lowlevel.checkpoint()  # it takes a moment to get there, and another one back
        while self.woken is not None:
            await self.woken.wait()
        if self.crashed:
            raise StoreClosed(f"{self.name} crashed")
        answer = await afn()
        if call == "executor":
            self.handles.append(cast("ExecutorHandle", answer))
        await trio.lowlevel.checkpoint()
        return answer
