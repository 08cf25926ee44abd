"""What applications and their tools do: the everyday rules of `RuntimeMachine`."""

from __future__ import annotations

from contextlib import suppress

import hypothesis.strategies as st
import trio
import trio.testing
from hypothesis.stateful import precondition, rule

from trio_bgtasks import (
    ParentCancelled,
    Refused,
    TaskExists,
    UnknownTask,
)

from ._history import TaskHistory
from ._runtime_cast import OWNERS, few, newest, orders, owners, some
from ._runtime_parts import TIDY_S, Boom, Host, Manners, Order
from ._runtime_stage import SETTLED_S, RuntimeStage
from ._trio_machine import in_trio

manners: st.SearchStrategy[Manners] = st.sampled_from(
    ["passes on", "passes on", "tidies up", "tidies up", "succeeds", "fails", "raises"]
)


class EverydayRules(RuntimeStage):
    """Starts, work, cancels, resumes, looks, notices, collection."""

    # ---- starting --------------------------------------------------------------------------------

    @rule(
        host=few,
        owner=owners,
        parent=st.none() | few,
        manners=manners,
        resumable=st.sampled_from([True, True, False]),
        background=st.sampled_from([True, True, False]),
    )
    @in_trio
    async def start(
        self,
        host: int,
        owner: str,
        parent: int | None,
        manners: Manners,
        resumable: bool,  # noqa: FBT001
        background: bool,  # noqa: FBT001
    ) -> None:
        """Start a task in the background, or call it in the foreground."""
        do = self.begin_task if background else self.call_task
        await do(self.host(host), owner, parent, manners, resumable=resumable)

    @rule(
        host=few,
        owner=owners,
        parent=st.none() | few,
        manners=manners,
        scope=st.sampled_from(["none", "a scope", "a scope", "a cancelled scope"]),
    )
    @in_trio
    async def spawn(
        self, host: int, owner: str, parent: int | None, manners: Manners, scope: str
    ) -> None:
        """Spawn a task, in a scope of the caller's or in none."""
        given = None if scope == "none" else trio.CancelScope()
        if given is not None and scope == "a cancelled scope":
            given.cancel()
        await self.spawn_task(self.host(host), owner, parent, manners, given)

    @precondition(some(lambda self: self.cancelled))
    @rule(host=few, owner=owners, parent=few, door=st.sampled_from(["start", "run", "spawn"]))
    @in_trio
    async def start_below_the_cancelled(
        self, host: int, owner: str, parent: int, door: str
    ) -> None:
        """Nothing is started below an accepted cancel."""
        above, where = newest(self.cancelled, parent), self.host(host)
        if await self.is_cancelled(above.task_id):  # else it was collected
            task_id, _ = self.new_task(None, "passes on")
            request = self.world.request(task_id, owner, parent_task_id=above.task_id)
            with suppress(ParentCancelled):
                with trio.move_on_after(1):  # in the foreground it waits for its body
                    if door == "spawn":
                        await self.world.spawn(where, task_id, owner, parent=above.task_id)
                    else:
                        do = where.manager.start if door == "start" else where.manager.run
                        await do(request, self.world.body(where))
                raise AssertionError(f"promise 5: {task_id} was started below it\n{above}")

    @precondition(some(lambda self: self.tasks))
    @rule(host=few, task=few, key=st.booleans())
    @in_trio
    async def start_again(self, host: int, task: int, key: bool) -> None:  # noqa: FBT001
        """An id starts one task for ever; so does the key of an owner, who is told which."""
        where, chosen = self.host(host), newest(self.tasks, task)
        record = await self.looked_at(where, chosen)
        key = key and chosen.task_id not in self.world.spawned  # those have none
        task_id = f"{chosen.task_id} again" if key else chosen.task_id
        request = self.world.request(
            task_id, chosen.owner, idempotency_key=self.world.key_of(chosen.task_id)
        )
        try:
            summary = await where.manager.unrecorded.start(request, self.world.body(where))
        except Refused as refusal:
            named = isinstance(refusal, TaskExists) and chosen.task_id in str(refusal)
            assert named, f"promise 3: refused by {refusal!r}\n{chosen}"  # noqa: PT017
        else:
            truth = None if record is None else record.summary()
            assert summary == truth, f"promise 3: answered {summary!r}, true is {truth!r}"

    # ---- what bodies do --------------------------------------------------------------------------

    @rule(work=few, order=orders, then=st.sampled_from(["nothing", "resume", "cancel"]))
    @in_trio
    async def order(
        self,
        work: int,
        order: Order,
        then: str,
    ) -> None:
        """Let a body return or raise something; its caller gets just that. Try to go on from it."""
        chosen = await self.one_of("obeying", work)
        call = self.call_of(chosen)
        await self.world.speak(chosen)  # its last words
        chosen.orders.send_nowait(order)
        await trio.testing.wait_all_tasks_blocked()
        assert chosen.run.ended is not None, f"promise 9: it did not end\n{chosen.run.task}"
        if call is not None and chosen.run.task.cancel_asked is None:
            got = call.answer
            assert got is not None, f"promise 2: its caller was not answered\n{chosen.run.task}"
            assert got == chosen.run.outcome or got is chosen.run.raised, f"promise 2: {got!r}"
        if then == "resume":
            await self.resume_at_once(chosen.run.task, [self.host(0)])
        elif then == "cancel":
            await self.cancel_task(self.host(0), chosen.run.task)

    @rule(work=few, value=st.integers(0, 99))
    @in_trio
    async def save(self, work: int, value: int) -> None:
        """Save a checkpoint; it is kept when that returns."""
        await self.save_in(await self.one_of("talking", work), value)

    @rule(work=few, often=st.integers(1, 3))
    @in_trio
    async def say(self, work: int, often: int) -> None:
        """Write output, and tell how far it is."""
        chosen = await self.one_of("talking", work)
        for number in range(often):
            await self.world.speak(chosen, progress=number)

    # ---- ending them from outside ----------------------------------------------------------------

    @precondition(some(lambda self: self.tasks))
    @rule(host=few, task=few)
    @in_trio
    async def cancel(self, host: int, task: int) -> None:
        """Cancel what runs or is stopped; who is too late is told so."""
        await self.cancel_task(self.host(host), newest(self.tasks, task))

    @rule(work=few, host=few, order=orders)
    @in_trio
    async def cancel_from_elsewhere(self, work: int, host: int, order: Order) -> None:
        """A body ends before it hears of a cancel that another machine accepted."""
        chosen = await self.one_of("obeying", work)
        await self.two_hosts()
        other = self.other_than(chosen.host, host)
        await self.cancel_task(other, chosen.run.task)
        await self.resume_at_once(chosen.run.task, [other])
        if chosen in self.obeying:  # pragma: no branch (unless its machine asks at this moment)
            chosen.orders.send_nowait(order)
            await trio.testing.wait_all_tasks_blocked()

    @rule(
        work=st.none() | few,
        manners=manners,
        close=st.sampled_from(["no", "no", "before", "after"]),
    )
    @in_trio
    async def cancel_its_scope(self, work: int | None, manners: Manners, close: str) -> None:
        """Whoever spawned a task cancels the scope that it was given: that is a cancel.

        It is none any more when its owner is being closed; a close after it takes nothing back.
        Only a body that tidies up is still there then.
        """
        if work is None or not self.scoped:
            manners = manners if close == "no" else "tidies up"
            await self.spawn_task(self.host(0), "bob", None, manners, trio.CancelScope())
        chosen = newest(self.scoped, work or 0)
        async with trio.open_nursery() as nursery:
            if close == "before":
                nursery.start_soon(self.end_owner, chosen.host, chosen.run.task.owner)
                await trio.testing.wait_all_tasks_blocked()
            self.world.cancel_scope_of(chosen.run.task)
            if close == "after":
                await trio.testing.wait_all_tasks_blocked()
                await self.end_owner(chosen.host, chosen.run.task.owner)
        await trio.testing.wait_all_tasks_blocked()
        goes_on = f"its scope was cancelled, and it goes on\n{chosen.run.task}"
        assert not chosen.waits, f"promise 5: {goes_on}"

    @precondition(some(lambda self: self.tasks))
    @rule(host=few, task=few)
    @in_trio
    async def cancel_tree(self, host: int, task: int) -> None:
        """Cancel a task and everything below it, whoever owns that."""
        await self.cancel_tree_of(self.host(host), newest(self.tasks, task))

    @rule(host=few, owner=owners)
    @in_trio
    async def close_owner(self, host: int, owner: str) -> None:
        """End every attempt of an owner on one machine."""
        await self.end_owner(self.host(host), owner)

    @rule(call=few)
    @in_trio
    async def hang_up(self, call: int) -> None:
        """The caller of a foreground run goes away."""
        if not self.calls:
            await self.call_task(self.host(0), "bob", None, "passes on", resumable=True)
        _, chosen = newest(self.calls, call)
        for work in self.running:
            if self.call_of(work) is chosen:
                work.run.causes.add("caller")
        chosen.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()

    # ---- resuming --------------------------------------------------------------------------------

    @precondition(some(lambda self: self.tasks))
    @rule(task=few, host=few, rivals=few)
    @in_trio
    async def resume(self, task: int, host: int, rivals: int) -> None:
        """One caller or several resume a task at the same time, on one machine or several."""
        where = [self.host(host + i) for i in range(rivals + 1)]
        await self.resume_at_once(newest(self.tasks, task), where)

    @precondition(some(lambda self: self.tasks))
    @rule(host=few, task=few, how=st.sampled_from(["owner", "type", "attempt"]))
    @in_trio
    async def resume_wrongly(self, host: int, task: int, how: str) -> None:
        """Another owner, another tool, or one that knows another attempt, resumes nothing."""
        where, chosen = self.host(host), newest(self.tasks, task)
        record = await self.looked_at(where, chosen)
        attempt = 1 if record is None else record.attempt
        stranger = OWNERS[1 - OWNERS.index(chosen.owner)]
        if how == "owner":
            self.tried[stranger].add(chosen.task_id)
        request = self.world.request(
            chosen.task_id,
            stranger if how == "owner" else chosen.owner,
            task_type="another" if how == "type" else "tool",
            resume_attempt=attempt + (how == "attempt"),
        )
        try:
            await where.manager.unrecorded.start(request, self.world.body(where))
        except UnknownTask as error:
            same = str(error) == f"Unknown task_id: {chosen.task_id}"
            assert same, f"promise 8: the answer was {error}"  # noqa: PT017
            assert record is None or how != "attempt", f"promise 2: called unknown\n{chosen}"
        except Refused as error:
            assert how == "attempt", f"promise 8: the answer was {error!r}\n{chosen}"  # noqa: PT017
        else:
            promise = 7 if how == "attempt" else 8
            raise AssertionError(f"promise {promise}: resumed by another {how}\n{chosen}")

    # ---- looking, announcing, collecting ---------------------------------------------------------

    @precondition(some(lambda self: self.tasks))
    @rule(host=few, task=few)
    @in_trio
    async def look(self, host: int, task: int) -> None:
        """Everyone is told the truth; another owner is told what a stranger is told."""
        chosen, manager = newest(self.tasks, task), self.host(host).manager
        summary = await manager.get(chosen.owner, chosen.task_id)
        record = await self.world.record(chosen)
        truth = None if record is None else record.summary()
        assert summary == truth, f"promise 2: told {summary!r}, true is {truth!r}"
        stranger = OWNERS[1 - OWNERS.index(chosen.owner)]
        told = await manager.get(stranger, chosen.task_id)
        assert told is None, f"promise 8: {stranger} was told {told!r}"
        await manager.list_tasks(stranger)
        for task_id in (chosen.task_id, "nobody's"):
            try:
                await manager.unrecorded.cancel(stranger, task_id)
            except UnknownTask as error:
                same = str(error) == f"Unknown task_id: {task_id}"
                assert same, f"promise 8: {stranger} was told {error}"  # noqa: PT017
            else:
                raise AssertionError(f"promise 8: {stranger} cancelled it\n{chosen}")

    @rule(host=few, owner=owners)
    @in_trio
    async def look_at_them_all(self, host: int, owner: str) -> None:
        """An owner is shown the tasks in order of creation."""
        await self.look_at_all(self.host(host), owner)

    @precondition(some(lambda self: self.tasks))
    @rule(host=few, task=few)
    @in_trio
    async def wait(self, host: int, task: int) -> None:
        """Somebody waits for a task; what they are told is so."""
        await self.world.wait(self.host(host), newest(self.tasks, task))

    @rule(host=few, owner=owners)
    @in_trio
    async def listen(self, host: int, owner: str) -> None:
        """Somebody subscribes to an owner; they hear of every task that is started there."""
        await self.world.listen(self.host(host), owner)

    @precondition(some(lambda self: self.listening))
    @rule(number=few)
    @in_trio
    async def stop_listening(self, number: int) -> None:
        """A subscriber goes away."""
        chosen = newest(self.listening, number)
        chosen.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()

    @rule(host=few, owner=owners, fails=st.booleans())
    @in_trio
    async def take_notices(
        self,
        host: int,
        owner: str,
        fails: bool,  # noqa: FBT001
    ) -> None:
        """What a block was given that failed, comes again."""
        with suppress(Boom):
            async with self.host(host).manager.notices(owner):
                if fails:  # pragma: no branch (both ways are gone; coverage misses one on 3.11)
                    raise Boom

    @rule(host=few, owner=owners)
    @in_trio
    async def collect(self, host: int, owner: str) -> None:
        """Delete ended records."""
        await self.collect_ended(self.host(host), owner)

    @rule(host=few, work=few, order=st.sampled_from(["stop", "succeed"]))
    @in_trio
    async def end_and_collect(self, host: int, work: int, order: Order) -> None:
        """Delete ended records just when one more has ended, and somebody resumes it."""
        chosen = await self.one_of("obeying", work)
        chosen.orders.send_nowait(order)
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            if chosen.run.attempt == 1 and order == "succeed":
                nursery.start_soon(self.resume_in_vain, self.host(host + 1), chosen.run.task)
            await self.collect_ended(self.host(host), chosen.run.task.owner)

    async def resume_in_vain(self, host: Host, task: TaskHistory) -> None:
        """Resume what has ended, and may be gone."""
        request = self.world.request(
            task.task_id, task.owner, resume_attempt=1, supports_resume=task.resumable
        )
        try:
            await host.manager.unrecorded.start(request, self.world.body(host))
        except Refused:
            return
        raise AssertionError(f"promise 3: it had ended, and was resumed\n{task}")

    async def collect_ended(self, host: Host, owner: str) -> None:
        """Delete them; what may go on, and what is above something that runs, stays."""
        before = [
            (task, record, await self.tree(task))
            for task in self.tasks
            if task.owner == owner and (record := await self.world.record(task)) is not None
        ]
        await host.manager.gc_terminal(owner)
        for task, record, below in before:
            if await self.world.record(task) is None:
                ended = record.status.is_terminal or not record.supports_resume
                assert ended, f"promise 3: collected, although it may go on\n{task}"
                live = [str(t) for t in below if t.live]
                assert not live, f"promise 3: collected, and below it runs {live[0]}\n{task}"

    @rule(seconds=st.sampled_from([0.5, TIDY_S, 20.0, SETTLED_S]))
    @in_trio
    async def pass_time(self, seconds: float) -> None:
        """Nothing else happens for a while."""
        await self.pass_time_by(seconds)
