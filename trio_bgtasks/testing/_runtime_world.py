"""The world of `RuntimeMachine`: machines on one store, and tools that follow orders."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import trio
import trio.testing

from trio_bgtasks import (
    BackgroundExecution,
    Cancelled,
    Failed,
    Refused,
    StartRequest,
    Stopped,
    Success,
    TaskError,
    TaskRecord,
    TaskResult,
    TaskStoreError,
)

from ._history import Body, History, Run, TaskHistory
from ._recorded import RecordedManager
from ._runtime_parts import (
    AWAKE_S,
    CLOSED_S,
    TIDY_S,
    Asking,
    Boom,
    Call,
    Host,
    Listener,
    Manners,
    Order,
    Waiter,
    Work,
)
from ._simulated import SimulatedExecutor, SimulationStore


class World:
    """The store, its machines, the tools and the callers; what they see goes into a history."""

    def __init__(self, nursery: trio.Nursery, store: SimulationStore) -> None:
        self.nursery = nursery
        self.store = store
        self.history: History = History()
        self.hosts: list[Host] = []
        self.work: list[Work] = []
        self.manners: dict[str, Manners] = {}
        self.spawned: dict[str, trio.CancelScope | None] = {}  # each with the scope of its caller
        self.disturbed_at: float = trio.current_time()

    @property
    def quiet_s(self) -> float:
        """How long nothing has been disturbed."""
        return trio.current_time() - self.disturbed_at

    def disturbed(self) -> None:
        """Something happened that takes time to be found out."""
        self.disturbed_at = trio.current_time()

    # ---- machines -----------------------------------------------------------------------------

    async def boot(self) -> Host:
        """Open one more machine."""
        name = f"m{len(self.hosts)}"
        simulated = await SimulatedExecutor.open(self.nursery, self.store, name=name)
        return self._is_up(name, simulated)

    async def restart(self, host: Host) -> Host:
        """Let a machine that has ended come again: ``m0`` as ``m0'``."""
        return self._is_up(f"{host.name}'", await host.simulated.restart())

    def _is_up(self, name: str, simulated: SimulatedExecutor) -> Host:
        manager = RecordedManager(simulated.manager, self.history, name)
        host = Host(name, simulated, manager)
        self.hosts.append(host)
        self.disturbed()
        return host

    def open_hosts(self) -> list[Host]:
        """Return the machines that can be asked something.

        Raises:
            AssertionError: promise 9: another one ended although nobody ended it.
        """
        fallen = [host.name for host in self.hosts if host.state == "closed" and not host.left]
        assert not fallen, f"promise 9: an error ended {', '.join(fallen)}, where a task failed"
        return [host for host in self.hosts if host.state == "open"]

    async def shut_down(self, host: Host, *, unsaved: bool = False) -> None:
        """End a machine as a program does that leaves its block; ``unsaved``: its store fails."""
        self.disturbed()
        runs = self.history.may_end("shutdown", machine=host.name)
        host.left = True
        lost: list[TaskHistory] = [] if unsaved else self.lost_on(host)
        with trio.move_on_after(CLOSED_S) as patience:
            try:
                await host.simulated.shut_down()
            except TaskStoreError as error:
                if unsaved:
                    raise
                self.damaged_only(error)
                lost = [task for task in lost if not _names(error, task)]
        still = ", ".join(run.task.task_id for run in runs if run.ended is None)
        assert not patience.cancelled_caught, f"promise 10: {host.name} does not close: {still}"
        if not unsaved:
            assert not lost, f"promise 10: it closed, and did not say what is lost\n{lost[0]}"
            self.history.closed(host.name)

    async def crash(self, host: Host) -> None:
        """End everything on a machine at this moment; nothing is recorded and nobody is told."""
        self.disturbed()
        self.history.lost(host.name)
        host.simulated.crash()
        for call in host.calls:
            call.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()

    def stall(self, host: Host) -> None:
        """Suspend a machine."""
        self.disturbed()
        self.history.suspended(host.name)
        self.history.doubtful(host.name)  # withdrawals are given up after a while
        host.simulated.stall()

    async def wake(self, host: Host) -> None:
        """Let a machine go on; return when it has found out how it stands, and has tidied up."""
        self.disturbed()
        host.simulated.wake()
        await trio.sleep(AWAKE_S)
        await trio.testing.wait_all_tasks_blocked()
        self.history.recovered(host.name)

    # ---- records that are damaged -------------------------------------------------------------

    def damage(self, task: TaskHistory) -> None:
        """Let the record of a task be read by nobody any more; the store is one that can do it."""
        store: Any = self.store
        self.history.damaged(task)
        store.corrupt(task.task_id)

    def lost_on(self, host: Host) -> list[TaskHistory]:
        """Return the tasks whose end on this machine cannot be stored, or could not."""
        return [
            run.task
            for run in self.history.runs(host.name)
            if run.task.damaged is not None
            and run.undisturbed
            and (run.ended is None or run.ended > run.task.damaged)
        ]

    def damaged_only(self, error: TaskStoreError) -> None:
        """Check what is said to be lost: only what was damaged can be."""
        for task in self.history.tasks.values():
            sound = task.damaged is None and _names(error, task)
            assert not sound, f"promise 12: its end was given up, its record is sound\n{task}"

    # ---- what the tools do --------------------------------------------------------------------

    def running(self, *states: str) -> list[Work]:
        """Return the bodies that really run now, on machines in one of these states.

        But those of damaged records: how they end is not kept.
        """
        return [
            work
            for work in self.work
            if work.run.ended is None
            and work.run.lost is None
            and work.run.task.damaged is None
            and work.host.state in states
        ]

    def body(self, host: Host) -> Body:
        """Return a body that follows orders, and has the manners of its task when cancelled."""

        async def body(execution: BackgroundExecution, scope: trio.CancelScope) -> TaskResult:
            return await self._work(host, execution.task_id, scope, execution)

        return body

    async def _work(
        self,
        host: Host,
        task_id: str,
        scope: trio.CancelScope,
        execution: BackgroundExecution | None,
    ) -> TaskResult:
        run = self.history.tasks[task_id].runs[-1]
        orders, inbox = trio.open_memory_channel[Order](1)
        work = Work(run, host, scope, execution, orders)
        self.work.append(work)
        try:
            return await self._follow(work, inbox)
        finally:
            work.leave()

    async def _follow(self, work: Work, inbox: trio.MemoryReceiveChannel[Order]) -> TaskResult:
        run = work.run
        try:
            order = await inbox.receive()
        except trio.Cancelled:  # noqa: ASYNC103 - that is what some tools do
            work.waits = False
            work.leave()
            if run.lost is not None:
                raise  # it was over before it could see this
            await self._tidy_up(work)  # noqa: ASYNC102 - shielded there
            answer = self._answer_to_cancellation(run)
            if answer is None:
                raise
            return answer  # noqa: ASYNC104
        work.waits = False
        work.leave()
        for asking in work.waiting:
            await asking.over.wait()
        return _obey(order, run)

    async def _tidy_up(self, work: Work) -> None:
        if self.manners[work.run.task.task_id] == "tidies up":
            with trio.CancelScope(shield=True):
                await self.speak(work, progress=1)
                await trio.sleep(TIDY_S)

    def _answer_to_cancellation(self, run: Run) -> TaskResult | None:
        """Return what a cancelled body returns; None: it passes the cancellation on."""
        match self.manners[run.task.task_id]:
            case "succeeds":
                return Success(run.attempt)
            case "fails":
                return Failed("cut off")
            case "raises":
                raise Boom("cut off")
            case _:
                return None

    async def speak(self, work: Work, *, progress: int | None = None) -> None:
        """Let a body that can, say something that nobody else says, and how far it is."""
        if work.execution is not None:
            await work.execution.write_output(f"<{work.run.attempt}.{len(work.run.said)}é>")
            if progress is not None:
                await work.execution.report_progress(progress)

    async def ask(self, work: Work, message: str, schema: dict[str, Any], bound_s: float) -> Asking:
        """Let a body ask, in a task of its own, for so long; return once that is under way."""
        assert work.execution is not None
        ask, asking = work.execution.ask, Asking()
        work.asking.append(asking)

        async def wait() -> None:
            with asking.scope, trio.move_on_after(bound_s):
                try:
                    await ask(message, schema)
                except Refused as refusal:
                    asking.refusal = refusal
                except (TaskError, ConnectionError):
                    pass  # it was declined, or could not be stored
            asking.over.set()

        self.nursery.start_soon(wait, name=f"question of {work.run.task.task_id}")
        await trio.testing.wait_all_tasks_blocked()
        return asking

    # ---- what callers do ----------------------------------------------------------------------

    def request(self, task_id: str, owner: str, **more: Any) -> StartRequest:
        """Return the request of a start, or of a resume."""
        key = None if "resume_attempt" in more else self.key_of(task_id)
        fields: dict[str, Any] = {"task_type": "tool", "idempotency_key": key, **more}
        return StartRequest(owner_thread_id=owner, task_id=task_id, **fields)

    def key_of(self, task_id: str) -> str:
        """Return the idempotency key with which a task is started."""
        return f"key of {task_id}"

    async def spawn(
        self,
        host: Host,
        task_id: str,
        owner: str,
        *,
        parent: str | None = None,
        scope: trio.CancelScope | None = None,
    ) -> str:
        """Spawn a task, in a scope of the caller's if there is one."""

        async def body(given: trio.CancelScope) -> TaskResult:
            return await self._work(host, task_id, given, None)

        self.spawned[task_id] = scope
        return await host.manager.spawn(
            owner, "tool", "", body, task_id=task_id, parent_task_id=parent, cancel_scope=scope
        )

    def cancel_scope_of(self, task: TaskHistory) -> None:
        """Cancel the scope that the caller gave to a spawn."""
        scope = self.spawned[task.task_id]
        assert scope is not None
        self.history.scope_cancelled(task)
        scope.cancel()

    async def call(self, host: Host, request: StartRequest) -> Call:
        """Make a foreground call in a task of its own; return once its body runs, or it failed."""
        assert request.task_id is not None
        call = Call(request.task_id)
        host.calls.append(call)

        async def caller() -> None:
            with call.scope:
                try:
                    call.answer = await host.manager.run(request, self.body(host))
                except Exception as error:  # noqa: BLE001 - what the caller got is looked at later
                    call.answer = error
            call.over = True

        self.nursery.start_soon(caller, name=f"caller of {request.task_id}")
        await trio.testing.wait_all_tasks_blocked()
        return call

    async def listen(self, host: Host, owner: str) -> None:
        """Open a subscription in a task of its own."""
        listener = Listener(owner, host.name)
        host.listeners.append(listener)

        async def hear() -> None:
            with listener.scope:
                async with host.manager.unrecorded.subscribe(owner) as changes:
                    async for task_id in changes:
                        listener.heard.add(task_id)

        self.nursery.start_soon(hear, name=f"subscriber of {owner}")
        await trio.testing.wait_all_tasks_blocked()

    async def wait(self, host: Host, task: TaskHistory) -> None:
        """Wait for a task in a task of its own."""
        waiter = Waiter(task)
        host.waits.append(waiter)

        async def wait() -> None:
            # It was collected, or damaged, or the machine closed or crashed, or its store failed.
            with waiter.scope, suppress(TaskError, ConnectionError):
                await host.manager.wait(task.owner, task.task_id)
            waiter.over = True

        self.nursery.start_soon(wait, name=f"waiter for {task.task_id}")
        await trio.testing.wait_all_tasks_blocked()

    async def record(self, task: TaskHistory) -> TaskRecord | None:
        """Return what is stored of a task: the durable truth."""
        return await self.store.load(task.task_id)


def _names(error: TaskStoreError, task: TaskHistory) -> bool:
    return re.search(rf"\b{task.task_id}\b", str(error)) is not None


def _obey(order: Order, run: Run) -> TaskResult:
    match order:
        case "succeed":
            return Success(run.attempt)
        case "fail":
            return Failed("as ordered")
        case "raise":
            raise Boom("as ordered")
        case "raise a group":
            raise ExceptionGroup("as ordered", [Boom("one"), ExceptionGroup("", [Boom("two")])])
        case "cancel itself":
            return Cancelled()
        case "stop":  # pragma: no branch (it is one of these)
            return Stopped("as ordered")
