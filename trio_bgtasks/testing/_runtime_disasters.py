"""What operators and bad luck do: the rules of `RuntimeMachine` that lose machines and stores."""

from __future__ import annotations

import math
from contextlib import suppress

import hypothesis.strategies as st
import trio
import trio.testing
from hypothesis.stateful import precondition, rule

from trio_bgtasks import (
    LeaseTerms,
    Success,
    TaskError,
    TaskStatus,
    TaskStore,
    TaskStoreError,
)

from ._faulty import Fault
from ._history import TaskHistory
from ._runtime_cast import OWNERS, WORDS, few, newest, orders, some
from ._runtime_parts import TIDY_S, Host, Order
from ._runtime_stage import RuntimeStage
from ._trio_machine import in_trio

FAULTS: list[Fault] = ["before", "after", "hang", "hang after", "slow", "wait"]
# So long after its crash the lease of a machine has not run out, whenever it was renewed last.
LEASED_S = LeaseTerms().lease_s - LeaseTerms().renew_s
CALLS = tuple(name for name in vars(TaskStore) if not name.startswith("_"))
ACTIONS = [
    *("start", "spawn", "call", "resume", "cancel", "cancel a scope", "close owner"),
    *("take notices", "collect"),
    *("ask", "ask", "leave", "answer"),
    *("save", "say", "succeed", "fail", "stop", "raise"),
]


class DisasterRules(RuntimeStage):
    """Shutdowns, crashes, machines that are suspended and wake up, stores that fail."""

    # ---- machines that end -----------------------------------------------------------------------

    @rule(host=few, crash=st.booleans(), replaced=st.booleans())
    @in_trio
    async def lose(
        self,
        host: int,
        crash: bool,  # noqa: FBT001
        replaced: bool,  # noqa: FBT001
    ) -> None:
        """A machine crashes or is shut down; another may take its place."""
        await self.end(self.host(host), crash=crash)
        if replaced or not self.world.open_hosts():
            await self.world.boot()

    async def end(self, host: Host, *, crash: bool) -> None:
        """Let a machine end, in one way or the other."""
        await (self.world.crash if crash else self.world.shut_down)(host)

    @rule(work=few, crash=st.booleans(), after_s=st.sampled_from([0, 1, 45]), in_vain=st.booleans())
    @in_trio
    async def restart(
        self,
        work: int,
        crash: bool,  # noqa: FBT001
        after_s: float,
        in_vain: bool,  # noqa: FBT001
    ) -> None:
        """A machine ends and comes again, perhaps more than once, and goes on with what it left.

        To the others it is a new one, and so it is to itself: what crashed with it is running until
        its lease has run out.
        """
        chosen = await self.one_of("running", work)
        task, host = chosen.run.task, chosen.host
        await self.end(host, crash=crash)
        host = await self.world.restart(host)
        if in_vain:
            await self.world.crash(host)
            host = await self.world.restart(host)
        await trio.sleep(after_s)
        await trio.testing.wait_all_tasks_blocked()
        record = await self.looked_at(host, task)
        if record is not None and record.status is TaskStatus.RUNNING:
            early = crash and after_s < LEASED_S
            assert early, f"promise 6: its machine ended, came again, and does not find it\n{task}"
        else:
            late = not crash or after_s > LEASED_S
            assert late, f"promise 6: its lease has not run out, and it is not running\n{task}"
        await self.resume_at_once(task, [host])

    @rule(work=few)
    @in_trio
    async def lose_unsaved(self, work: int) -> None:
        """A machine is shut down while its store fails: it says what is lost; all is found."""
        chosen = await self.one_of("running", work)
        host, task = chosen.host, chosen.run.task
        await self.two_hosts()
        host.simulated.store.break_down("apply")
        self.history.suspended(host.name)  # its ends are not stored
        try:
            await self.world.shut_down(host, unsaved=True)
        except TaskStoreError as error:
            named = task.task_id in str(error)
            assert named, f"promise 10: {error} names not\n{task}"  # noqa: PT017
        else:
            raise AssertionError(f"promise 10: it closed, and did not say what is lost\n{task}")
        record = await self.looked_at(self.host(0), task)
        running = record is not None and record.status is TaskStatus.RUNNING
        assert not running, f"promise 6: its machine closed, and it is not found\n{task}"

    # ---- machines that are suspended -------------------------------------------------------------

    @rule(work=few)
    @in_trio
    async def stall(self, work: int) -> None:
        """A machine is suspended; what happens to its tasks meanwhile is up to the others."""
        chosen = await self.one_of("running", work)
        await self.two_hosts()
        self.world.stall(chosen.host)

    @precondition(some(lambda self: self.stalled))
    @rule(host=few)
    @in_trio
    async def wake(self, host: int) -> None:
        """A suspended machine goes on; what others took over meanwhile, it lets go."""
        await self.world.wake(newest(self.stalled, host))

    # ---- others take over ------------------------------------------------------------------------

    @rule(work=few, host=few, crash=st.booleans(), after_s=st.sampled_from([0, 1, 10, 29, 45]))
    @in_trio
    async def take_over(
        self,
        work: int,
        host: int,
        crash: bool,  # noqa: FBT001
        after_s: float,
    ) -> None:
        """A task loses its machine or its owner, and others take it over, perhaps too early."""
        chosen = await self.one_of("running", work)
        task = chosen.run.task
        await self.two_hosts()
        async with trio.open_nursery() as nursery:
            if crash:
                await self.world.crash(chosen.host)
            else:
                nursery.start_soon(self.end_owner, chosen.host, task.owner)
                await trio.lowlevel.checkpoint()
            await trio.sleep(after_s)
            await trio.testing.wait_all_tasks_blocked()
            closed = after_s > TIDY_S  # until then nothing starts there for the owner
            able = self.world.open_hosts()
            able = able if closed else [h for h in able if h is not chosen.host]
            await self.resume_at_once(task, [newest(able, host)])

    @rule(
        work=few,
        host=few,
        after_s=st.sampled_from([5, 29, 45, 45]),
        early=st.booleans(),
        order=orders,
    )
    @in_trio
    async def take_over_from_the_sleeping(
        self,
        work: int,
        host: int,
        after_s: float,
        early: bool,  # noqa: FBT001
        order: Order,
    ) -> None:
        """A machine is suspended, a body there ends or goes on; others take over; it wakes up.

        Promises 1 and 4: what it has to say then counts if nobody took it for dead, else not.
        """
        chosen = await self.one_of("obeying", work)
        task = chosen.run.task
        await self.two_hosts()
        self.world.stall(chosen.host)
        if early:
            chosen.orders.send_nowait(order)
        await trio.sleep(after_s)
        await trio.testing.wait_all_tasks_blocked()
        await self.resume_at_once(task, [newest(self.world.open_hosts(), host)])
        await self.world.wake(chosen.host)
        for late in [late for late in self.talking if late.run is chosen.run]:
            await self.save_in(late, after_s)

    # ---- a store that fails ----------------------------------------------------------------------

    @rule(work=few)
    @in_trio
    async def cancel_unsaved(self, work: int) -> None:
        """A cancel is accepted while the store is down: it is kept as soon as that is possible."""
        chosen = await self.one_of("obeying", work)
        task, store = chosen.run.task, chosen.host.simulated.store
        store.break_down("apply")
        try:
            summary = await chosen.host.manager.cancel(task.owner, task.task_id)
        except ConnectionError as error:
            raise AssertionError(f"promise 5: it runs, and is not cancelled\n{task}") from error
        assert summary.persistence_error, f"promise 5: said to be stored: {summary!r}"
        await trio.sleep(1)
        store.repair()
        await trio.sleep(20)
        await trio.testing.wait_all_tasks_blocked()
        self.history.accepted(task)
        record = await self.world.record(task)
        cancelled = record is not None and record.status is TaskStatus.CANCELLED
        done = isinstance(chosen.run.outcome, Success)  # before the mark could be stored
        assert cancelled or done, f"promise 5: it was cancelled, and that was lost\n{task}"

    @rule(
        host=few,
        fault=st.sampled_from(FAULTS),
        calls=st.sampled_from([("apply",), ("apply", "load"), ("sweep",), CALLS]),
        first=st.sampled_from([1, 1, 2, 3]),
        for_s=st.sampled_from([0.5, 3, 20]),
        what=st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=3),
        end=st.sampled_from(["repair", "repair", "crash", "shut down"]),
        number=few,
    )
    @in_trio
    async def fail_the_store(
        self,
        host: int,
        fault: Fault,
        calls: tuple[str, ...],
        first: int,
        for_s: float,
        what: list[str],
        end: str,
        number: int,
    ) -> None:
        """One machine's store is down, slow or loses answers, while something is done there.

        It may get well again, or the machine crashes or is shut down before that.
        """
        where, before, since = self.host(host), self.asked, self.history.tick()
        self.world.disturbed()
        self.history.doubtful(where.name)
        where.simulated.store.break_down(*calls, fault=fault, first=first)
        async with trio.open_nursery() as nursery:
            for action in what:
                nursery.start_soon(self.try_to, action, where, number)
            await trio.sleep(for_s)
            self.history.doubtful(where.name)  # those that began meanwhile, too
            if end != "repair":
                self.history.suspended(where.name, since=since)
                await (self.world.crash if end == "crash" else self.leave)(where)
            where.simulated.store.repair()
        if not self.world.open_hosts():
            await self.world.boot()
        for call in where.calls:
            if call.task_id not in self.history.tasks:
                call.scope.cancel()  # what was not answered by now never will be
        for waiter in where.waits if fault.startswith("hang") else ():
            waiter.scope.cancel()  # the same
        await trio.sleep(30)  # ends are tried again, what was left behind is found
        await trio.testing.wait_all_tasks_blocked()
        self.world.disturbed()
        for started in range(before, self.asked):
            record = await self.world.store.load(f"t{started}")
            if record is not None:
                task = self.history.task(record.task_id, record.owner_thread_id)
                task.resumable, task.parent = record.supports_resume, record.parent_task_id
                self.doubtful.add(task.task_id)

    async def leave(self, host: Host) -> None:
        """Shut a machine down while its store fails: nothing runs there any more."""
        with suppress(TaskStoreError):  # it says what is lost
            await self.world.shut_down(host, unsaved=True)
        for run in self.history.runs(host.name):
            over = run.ended is not None or run.lost is not None
            assert over, f"promise 10: {host.name} has closed, it runs\n{run.task}"

    async def try_to(self, action: str, host: Host, number: int) -> None:
        """Do something on a machine whose store may fail; any answer is allowed, no lie is."""
        manager, owner = host.manager, OWNERS[number % len(OWNERS)]
        tasks = self.tasks
        with trio.move_on_after(15), suppress(TaskError, ConnectionError):
            match action:
                case "start" | "spawn" | "call":
                    await self.try_to_start(action, host, owner)
                case "resume" if tasks:
                    await self.try_to_resume(host, newest(tasks, number))
                case "cancel" if tasks:
                    here = [work.run.task for work in self.running if work.host is host]
                    task = newest(here or tasks, number)
                    await manager.cancel(task.owner, task.task_id)
                case "cancel a scope":
                    for work in self.scoped:
                        if work.host is host:
                            self.world.cancel_scope_of(work.run.task)
                case "close owner":
                    await manager.close_owner(owner)
                case "take notices":
                    await manager.take_notices(owner)
                case "collect":
                    await manager.gc_terminal(owner)
                case _:
                    await self.try_to_work(action, host, number)

    async def try_to_start(self, action: str, host: Host, owner: str) -> None:
        """Begin a task, by one of the three doors."""
        task_id, _ = self.new_task(None, "tidies up")
        request = self.world.request(task_id, owner, supports_resume=True)
        match action:
            case "start":
                await host.manager.start(request, self.world.body(host))
            case "spawn":
                await self.world.spawn(host, task_id, owner, scope=trio.CancelScope())
            case _:
                await self.world.call(host, request)

    async def try_to_resume(self, host: Host, task: TaskHistory) -> None:
        """Resume a task, if there is one."""
        record = await self.world.record(task)
        if record is not None:
            request = self.world.request(
                task.task_id,
                task.owner,
                resume_attempt=record.attempt,
                supports_resume=task.resumable,
            )
            await host.manager.start(request, self.world.body(host))

    async def try_to_answer(self, host: Host, number: int) -> None:
        """Answer or decline what a body asks, wherever that is."""
        for task in [work.run.task for work in self.asking]:
            summary = await host.manager.get(task.owner, task.task_id)
            for question in () if summary is None else summary.questions:
                about = task.owner, task.task_id, question.question_id
                if number:
                    await host.manager.answer(*about, self.next_answer())
                else:
                    await host.manager.decline(*about)

    async def try_to_work(self, action: str, host: Host, number: int) -> None:
        """Let a body on that machine do something, or somebody answer there what bodies ask."""
        bodies = [work for work in self.obeying if work.host is host]
        if not bodies:
            return
        work = newest(bodies, number)
        match action:
            case "answer":
                await self.try_to_answer(host, number)
            case "save" if work.execution is not None:
                await work.execution.save_checkpoint(number)
            case "say":
                await self.world.speak(work)
            case "ask" if work.execution is not None:
                await self.world.ask(work, *WORDS[number], bound_s=math.inf)
            case "leave":
                work.leave()
            case "succeed" | "fail" | "stop" | "raise":
                with suppress(trio.WouldBlock):  # it has its order
                    work.orders.send_nowait(action)
            case _:
                pass
