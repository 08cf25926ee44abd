"""Several machines on one memory store, and tools that write down what really happened.

A `Machine` is one manager; it can end gracefully or crash. A `Run` is one execution of a tool's
body: it follows orders, and notes its own start and end. Those notes, and what callers were
answered, are all that the invariants of the state machine believe.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import attrs
import trio
import trio.testing

from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    Cancelled,
    CheckpointSaved,
    Failed,
    Finished,
    ManagerConfig,
    MemoryTaskStore,
    Refused,
    StartRequest,
    Stopped,
    StoreClosed,
    Success,
    TaskResult,
    TaskStatus,
    TaskStoreError,
    open_task_manager,
)
from trio_bgtasks.stores import SweepReport

Order = Literal["succeed", "fail", "raise", "cancel itself", "stop itself"]
Manners = Literal["passes on", "tidies up", "succeeds", "fails", "raises"]  # when it is cancelled
Reason = Literal["cancel", "owner close", "shutdown", "caller"]

TIDY_S = 3.0


class Boom(Exception):
    """What a tool raises."""


@attrs.define(eq=False)
class Task:
    """A task as those who started it know it."""

    task_id: str
    owner: str
    resumable: bool
    parent: str | None
    manners: Manners
    attached: bool = True  # its parent was not collected yet when it started
    attempts: int = 1
    cancelled: bool = False  # a cancel of it was accepted
    collected: bool = False
    checkpoint: int | None = None  # the last one of which a tool was told that it is saved
    runs: list[Run] = attrs.field(factory=list["Run"])


@attrs.define(eq=False)
class Run:
    """One execution of the body of a task, as the tool itself saw it."""

    task: Task
    machine: Machine
    executor_id: str
    execution: BackgroundExecution
    background: bool
    orders: trio.MemorySendChannel[Order]
    reasons: set[Reason] = attrs.field(factory=set["Reason"])  # why it may be cancelled
    said: list[str] = attrs.field(factory=list[str])
    ended: Order | Manners | Literal["crash"] | None = None
    fenced: bool = False  # its machine was found dead while it ran: no matter how it ends

    @property
    def attempt(self) -> int:
        return self.execution.attempt

    @property
    def over(self) -> bool:
        """Is it at least no attempt that may write any more?"""
        return self.fenced or self.ended is not None

    def expected_status(self) -> set[TaskStatus]:
        """Return what the attempt may have ended as, from what the tool and its callers know."""
        if self.ended == "crash" or self.fenced:
            return {TaskStatus.STOPPED}
        if self.ended in ("succeed", "succeeds"):
            return {TaskStatus.COMPLETED}
        asked: dict[str | None, TaskStatus] = {
            "fail": TaskStatus.FAILED,
            "raise": TaskStatus.FAILED,
            "cancel itself": TaskStatus.CANCELLED,
            "stop itself": TaskStatus.STOPPED,
        }
        if self.ended in asked and not self.reasons:
            return {asked[self.ended]}
        return {TaskStatus.STOPPED}


@attrs.define(eq=False)
class Call:
    """A foreground call: its task's id once it runs, and what its caller got in the end."""

    scope: trio.CancelScope
    task_id: str
    answer: TaskResult | Exception | None = None
    gone: bool = False


class SweptInSteps(MemoryTaskStore):
    """Ends the tasks of the dead a moment after the fence, as a store does that has many of them.

    In between arrives what they wrote last: nothing of it may be taken.
    """

    _only_fence = False

    async def sweep(
        self, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        self._only_fence = True
        fenced = (await super().sweep(executor_id, at_ms, suspect=suspect)).fenced
        self._only_fence = False
        for name in fenced:
            for task_id in self._running_under(name):
                attempt = self._records[task_id].attempt
                for late in (
                    CheckpointSaved(at_ms, name, attempt, "late"),
                    Finished(at_ms, name, attempt, Success("late")),
                ):
                    with suppress(Refused, StoreClosed):
                        await self.apply(task_id, late)
        report = await super().sweep(executor_id, at_ms, suspect=suspect)
        return attrs.evolve(report, fenced=fenced)

    def _end_orphans(self, suspect: str | None, at_ms: int) -> list[tuple[str, str]]:
        return [] if self._only_fence else super()._end_orphans(suspect, at_ms)


@attrs.define(eq=False)
class Machine:
    """One manager on the shared store, in a task of its own."""

    world: World
    name: str
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    opened: trio.Event = attrs.field(factory=trio.Event)
    stop: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)
    crashed: bool = False
    executors: set[str] = attrs.field(factory=set[str])
    calls: list[Call] = attrs.field(factory=list[Call])
    manager: BackgroundTaskManager = attrs.field(init=False)

    async def live(self) -> None:
        try:
            with self.scope:
                config = ManagerConfig(clock_ms=lambda: int(trio.current_time() * 1000))
                async with open_task_manager(self.world.store, config=config) as self.manager:
                    self.executors.add(self.manager.statistics().executor_id)
                    self.opened.set()
                    await self.stop.wait()
        except TaskStoreError:
            assert self.crashed  # a machine that is gone cannot store how its attempts ended
        finally:
            self.ended.set()

    async def shut_down(self) -> None:
        """End the manager as a program does that leaves its block."""
        for run in self.world.live_runs(self):
            run.reasons.add("shutdown")
        self.stop.set()
        await self.ended.wait()

    def stall(self) -> None:
        """Renew the lease no more, and know nothing of it: everything here goes on."""
        executor = self.world.store._executors.get(self.manager.statistics().executor_id)
        assert executor is not None, "a living machine was buried"
        executor.renewal.cancel()

    def crash(self) -> None:
        """End everything here at this moment; nothing is recorded and nobody is told."""
        self.crashed = True
        self.world.store.crash(self.manager.statistics().executor_id)
        for run in self.world.live_runs(self):
            run.ended = "crash"
        self.scope.cancel()
        for call in self.calls:
            call.gone = call.gone or call.answer is None
            call.scope.cancel()


class World:
    """The store, its machines, and everything that the tools and the callers noted."""

    def __init__(self, nursery: trio.Nursery, store: MemoryTaskStore) -> None:
        self.nursery = nursery
        self.store = store
        self.machines: list[Machine] = []
        self.tasks: dict[str, Task] = {}
        self.announced: list[tuple[str, int, TaskStatus]] = []

    # ---- machines -----------------------------------------------------------------------------

    async def boot(self) -> Machine:
        """Open one more machine."""
        machine = Machine(self, f"m{len(self.machines)}")
        self.machines.append(machine)
        self.nursery.start_soon(machine.live, name=machine.name)
        await machine.opened.wait()
        return machine

    @property
    def living(self) -> list[Machine]:
        return [m for m in self.machines if not m.crashed and not m.stop.is_set()]

    # ---- what the tools do --------------------------------------------------------------------

    @property
    def runs(self) -> list[Run]:
        return [run for task in self.tasks.values() for run in task.runs]

    def live_runs(self, machine: Machine | None = None) -> list[Run]:
        """Return the bodies that are really running now."""
        return [r for r in self.runs if r.ended is None and machine in (None, r.machine)]

    def body(self, task: Task, machine: Machine, *, background: bool) -> Any:
        """Return a body for one attempt of ``task`` on ``machine``."""

        async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
            orders, inbox = trio.open_memory_channel[Order](0)
            executor_id = machine.manager.statistics().executor_id
            machine.executors.add(executor_id)
            run = Run(task, machine, executor_id, execution, background, orders)
            self._check_start(run)
            task.runs.append(run)
            try:
                order = await inbox.receive()
            except trio.Cancelled:
                if machine.crashed:
                    raise  # it was over before it could see this
                return await self._cancelled(run)
            return self._ordered(run, order)

        return body

    def _check_start(self, run: Run) -> None:
        task, execution = run.task, run.execution
        assert execution.task_id == task.task_id
        assert execution.owner_thread_id == task.owner
        assert execution.is_resume is (execution.attempt > 1)
        assert execution.checkpoint == task.checkpoint, "a saved checkpoint is what a resume gets"
        assert all(other.over for other in task.runs), "two attempts of a task run at once"
        assert all(other.attempt < run.attempt for other in task.runs), "an attempt runs once"
        assert not run.machine.crashed

    def _ordered(self, run: Run, order: Order) -> TaskResult:
        run.ended = order
        match order:
            case "succeed":
                return Success(run.attempt)
            case "fail":
                return Failed("as ordered")
            case "raise":
                raise Boom("as ordered")
            case "cancel itself":
                return Cancelled()
            case "stop itself":
                return Stopped("as ordered")

    async def _cancelled(self, run: Run) -> TaskResult:
        """Answer a cancellation in the manners of the task's tool."""
        manners = run.task.manners
        if manners == "tidies up":
            with trio.CancelScope(shield=True):
                await trio.sleep(TIDY_S)
            if run.machine.crashed:
                return Stopped("nobody hears this")
        run.ended = manners
        match manners:
            case "succeeds":
                return Success(run.attempt)
            case "fails":
                return Failed("cut off")
            case "raises":
                raise Boom("cut off")
            case _:
                await trio.lowlevel.checkpoint()  # passes its Cancelled on
                raise AssertionError("not cancelled after all")

    # ---- what callers do ----------------------------------------------------------------------

    def request(self, task: Task, **more: Any) -> StartRequest:
        return StartRequest(
            owner_thread_id=task.owner,
            task_type="tool",
            task_id=task.task_id,
            parent_task_id=task.parent,
            supports_resume=task.resumable,
            **more,
        )

    async def call(self, machine: Machine, task: Task, request: StartRequest) -> Call:
        """Make a foreground call in a task of its own; return once its body runs, or it failed."""
        call = Call(trio.CancelScope(), task.task_id)
        machine.calls.append(call)
        body = self.body(task, machine, background=False)

        async def caller() -> None:
            with call.scope:
                try:
                    call.answer = await machine.manager.run(request, body)
                except Exception as error:  # noqa: BLE001 - what the caller got is looked at later
                    call.answer = error
            call.gone = call.answer is None

        self.nursery.start_soon(caller, name=f"caller of {task.task_id}")
        await trio.testing.wait_all_tasks_blocked()
        return call
