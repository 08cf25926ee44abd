"""What happens to a store beneath its owner: the rules of `RuntimeMachine` that damage records."""

from __future__ import annotations

from contextlib import suppress

import hypothesis.strategies as st
import trio
import trio.testing
from hypothesis.stateful import precondition, rule

from trio_bgtasks import CorruptRecord, ParentCancelled, Refused, TaskNotStopped, TaskSummary

from ._history import TaskHistory
from ._runtime_cast import RuntimeCast, few, newest, owners, some
from ._runtime_parts import CLOSED_S, Host
from ._runtime_stage import RuntimeStage
from ._trio_machine import in_trio


def damageable(self: RuntimeCast) -> list[TaskHistory]:
    """Return the tasks whose record can be damaged; a few are enough for the others to suffer."""
    able = hasattr(self.world.store, "corrupt") and len(self.damaged) < 3
    return self.tasks if able else []


class DamageRules(RuntimeStage):
    """Promise 12: one corrupt record hides no other, and stops nothing; it is called corrupt."""

    @precondition(some(damageable))
    @rule(task=few, ends=st.booleans())
    @in_trio
    async def damage(self, task: int, ends: bool) -> None:  # noqa: FBT001
        """A record cannot be read any more; its body, if there is one, goes on, or ends."""
        chosen = newest(damageable(self), task)
        bodies = [work for work in self.obeying if work.run.task is chosen]
        self.world.damage(chosen)
        for work in bodies if ends else ():
            work.orders.send_nowait("succeed")
        await trio.sleep(1)  # that its end cannot be stored has been found out
        await trio.testing.wait_all_tasks_blocked()

    @precondition(some(damageable))
    @rule(work=few, owner=owners)
    @in_trio
    async def cancel_above_the_damaged(self, work: int, owner: str) -> None:
        """What runs is cancelled with the tree that it is in, although its record is corrupt."""
        above = await self.one_of("obeying", work)
        root, child, host = above.run.task, f"t{self.asked}", above.host
        self.new_task(None, "passes on")
        request = self.world.request(child, owner, parent_task_id=root.task_id)
        with suppress(ParentCancelled):
            await host.manager.start(request, self.world.body(host))
            await self.begun(self.history.tasks[child], 1)
            self.world.damage(self.history.tasks[child])
        await self.cancel_tree_of(host, root)

    @precondition(some(lambda self: self.damaged))
    @rule(host=few, task=few, how=st.sampled_from(["get", "wait", "cancel", "resume"]))
    @in_trio
    async def ask_for_the_damaged(self, host: int, task: int, how: str) -> None:
        """It is called corrupt, except where it runs: there it is said that nothing is stored."""
        where, chosen = self.host(host), newest(self.damaged, task)
        await trio.sleep(1)  # that an end just now cannot be stored has been found out
        await trio.testing.wait_all_tasks_blocked()
        runs = any(run.live and run.machine == where.name for run in chosen.runs)
        answer: object = None
        with trio.move_on_after(CLOSED_S) as patience:
            try:
                answer = await self.ask_for(chosen, where, how)
            except CorruptRecord:
                return
            except Refused as refusal:
                answer = refusal
        unanswered = patience.cancelled_caught
        assert not unanswered, f"promise 12: it is damaged, and {how}() is never answered\n{chosen}"
        unsaved = isinstance(answer, TaskSummary) and answer.persistence_error is not None
        told = runs and (unsaved or isinstance(answer, TaskNotStopped))
        assert told, f"promise 12: it is damaged, and the answer was {answer!r}\n{chosen}"
        await trio.testing.wait_all_tasks_blocked()

    async def ask_for(self, task: TaskHistory, host: Host, how: str) -> TaskSummary | None:
        """Ask a manager for a task in one of several ways; what runs there is not waited for."""
        manager = host.manager.unrecorded
        match how:
            case "wait" if not task.live:
                return await manager.wait(task.owner, task.task_id)
            case "cancel":
                return await manager.cancel(task.owner, task.task_id)
            case "resume":
                attempt = max((run.attempt for run in task.runs), default=1)
                request = self.world.request(
                    task.task_id, task.owner, resume_attempt=attempt, supports_resume=True
                )
                return await manager.start(request, self.world.body(host))
            case _:
                return await manager.get(task.owner, task.task_id)
