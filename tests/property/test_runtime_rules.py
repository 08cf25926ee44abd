"""What a rule of `RuntimeMachine` is there for, it finds: each is played once, on a wrong manager."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import product
from typing import Any, TypeAlias

import pytest
import trio
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.property.machines import Runtime
from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    ManagerClosed,
    QuestionClosed,
    StaleAttempt,
    TaskResult,
    TaskStoreError,
)
from trio_bgtasks.testing._history import Body
from trio_bgtasks.testing._runtime_cast import OWNERS, WORDS
from trio_bgtasks.testing._runtime_disasters import ACTIONS
from trio_bgtasks.testing._runtime_parts import Host
from trio_bgtasks.testing._runtime_stage import SETTLED_S
from trio_bgtasks.testing._runtime_world import World

Play: TypeAlias = Callable[[Runtime], None]


def play(steps: Play) -> None:
    """Take these steps on a machine, in a test of Hypothesis, which rules need for their notes."""

    @settings(max_examples=1, database=None, phases=[Phase.generate], deadline=None)
    @given(st.none())
    def once(_: None) -> None:
        machine = Runtime()
        try:
            assert machine.run  # it is set up while nothing is wrong
            steps(machine)
            machine.every_promise_is_kept()
        finally:
            machine.teardown()

    once()


# ---- nothing is wrong ---------------------------------------------------------------------------


def test_who_waits_for_what_goes_on_is_not_told_otherwise() -> None:
    """However long that takes."""

    def steps(machine: Runtime) -> None:
        machine.wait(0, 0)
        machine.pass_time(SETTLED_S)

    play(steps)


def test_a_store_fails_while_tasks_are_resumed_and_scopes_cancelled() -> None:
    """Each machine cancels the scopes of its own tasks, and resumes what is stopped and there."""

    def steps(machine: Runtime) -> None:
        for host in (0, 1):
            machine.spawn(host, "bob", None, "passes on", "a scope")
        machine.close_owner(0, "ann")
        machine.collect(0, "ann")
        for task in range(len(machine.tasks)):
            what = ["resume", "cancel a scope"]
            machine.fail_the_store(0, "after", ("apply",), 1, 1.0, what, "repair", task)
            machine.every_promise_is_kept()

    play(steps)


def test_a_store_fails_while_anything_is_done() -> None:
    """Whatever it is, and whatever is asked and waited for meanwhile, no promise is broken."""

    def steps(machine: Runtime) -> None:
        for action in dict.fromkeys(ACTIONS):
            for number, spawned in ((1, False), (0, False), (0, True)):
                machine.start(0, "ann", None, "passes on", True, True)  # noqa: FBT003
                machine.ask(0, WORDS[number], math.inf)
                machine.wait(0, 0)
                if spawned:
                    machine.spawn(0, "bob", None, "passes on", "none")
                how = ("apply",), 1, 0.5, [action], "repair"
                machine.fail_the_store(0, "hang", *how, number)
                machine.every_promise_is_kept()

    play(steps)


def test_a_withdrawal_is_given_up_while_its_machine_sleeps() -> None:
    """Its question stays open until the attempt ends, or asks again: that is no broken promise."""

    def steps(machine: Runtime) -> None:
        machine.ask(0, WORDS[0], 1)
        machine.take_over_from_the_sleeping(0, 0, 29, False, "succeed")  # noqa: FBT003

    play(steps)


def test_the_scope_of_what_was_spawned_before_is_cancelled() -> None:
    """Not that of a new one."""

    def steps(machine: Runtime) -> None:
        machine.spawn(0, "bob", None, "passes on", "a scope")
        machine.cancel_its_scope(0, "passes on", "no")
        assert not machine.scoped

    play(steps)


def test_nothing_is_started_below_what_was_damaged() -> None:
    """Whether that is cancelled, nobody can tell."""

    def steps(machine: Runtime) -> None:
        machine.damage(0, False)  # noqa: FBT003
        machine.start(0, "ann", 1, "passes on", True, True)  # noqa: FBT003
        record = machine.run.call(partial(machine.world.record, machine.tasks[-1]))
        assert record is not None
        assert record.parent_task_id is None

    play(steps)


def test_what_is_started_for_a_rule_is_cancelled_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """That breaks promise 9; it is no error of the machine, which has nothing to choose from."""

    def steps(machine: Runtime) -> None:
        for host, owner in product((0, 1), OWNERS):
            machine.close_owner(host, owner)
        with monkeypatch.context() as patch:
            patch.setattr(World, "body", in_a_cancelled_scope)
            machine.order(0, "succeed", "nothing")

    with pytest.raises(AssertionError, match="promise 9: what was started just now"):
        play(steps)


@pytest.mark.parametrize("fails", [True, False])
def test_notices_are_taken_by_a_block_that_succeeds(fails: bool) -> None:  # noqa: FBT001
    """Those of a block that failed come again."""

    def steps(machine: Runtime) -> None:
        machine.close_owner(0, "ann")
        machine.take_notices(0, "ann", fails)
        announced = [task for task in machine.tasks if task.announced]
        assert bool(announced) is not fails

    play(steps)


def test_whoever_runs_a_task_that_was_damaged_says_so() -> None:
    """Where it runs it is no corrupt record, but one of which nothing is stored."""

    def steps(machine: Runtime) -> None:
        work = machine.obeying[0]
        machine.damage(machine.tasks[::-1].index(work.run.task), False)  # noqa: FBT003
        hosts = machine.world.open_hosts()
        host = hosts[::-1].index(work.host)
        for how in ("get", "resume"):
            machine.ask_for_the_damaged(host, 0, how)

    play(steps)


# ---- managers with one bug each -----------------------------------------------------------------

# Each has it for one rule only: Hypothesis plays once more what has failed, from the beginning.


async def anything(*_: Any, **__: Any) -> None:
    """Whatever is asked for, nothing is refused."""


def in_a_cancelled_scope(world: World, host: Host) -> Body:
    """Whatever begins is cancelled by then, as in a nursery that an error ended."""

    async def body(execution: BackgroundExecution, scope: trio.CancelScope) -> TaskResult:
        scope.cancel()
        return await world._work(host, execution.task_id, scope, execution)

    return body


async def refuses(execution: BackgroundExecution, *_: Any) -> None:
    """No body may write."""
    raise StaleAttempt(execution.task_id, 1, 2, "running")


@pytest.mark.parametrize(
    ("how", "promise"),
    [("owner", 8), ("type", 8), ("attempt", 7)],
    ids=["owner", "type", "attempt"],
)
def test_a_resume_that_should_have_been_refused(
    how: str, promise: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another owner, by another tool, by one that knows another attempt."""

    def steps(machine: Runtime) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(BackgroundTaskManager, "start", anything)
            machine.resume_wrongly(0, 0, how)

    with pytest.raises(AssertionError, match=f"promise {promise}: resumed by another {how}"):
        play(steps)


def test_a_cancel_by_another_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody cancels what is not theirs."""

    def steps(machine: Runtime) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(BackgroundTaskManager, "cancel", anything)
            machine.look(0, 0)

    with pytest.raises(AssertionError, match=r"promise 8: (ann|bob) cancelled it"):
        play(steps)


def test_a_body_that_may_not_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs, and has not been fenced, saves its checkpoints."""

    def steps(machine: Runtime) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(BackgroundExecution, "save_checkpoint", refuses)
            machine.run.call(partial(machine.save_in, machine.talking[0], 7))

    with pytest.raises(AssertionError, match="promise 6: it runs, and may not write: "):
        play(steps)


def test_a_manager_that_closes_and_keeps_its_losses_to_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whose end is not stored is told."""
    shut_down = World.shut_down

    async def silent(world: World, host: Host, *, unsaved: bool = False) -> None:
        with suppress(TaskStoreError):
            await shut_down(world, host, unsaved=unsaved)

    def steps(machine: Runtime) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(World, "shut_down", silent)
            machine.lose_unsaved(0)

    with pytest.raises(AssertionError, match="promise 10: it closed, and did not say what is lost"):
        play(steps)


def test_an_answer_to_what_is_shown_as_open_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sees a question may answer it."""

    async def closed(manager: BackgroundTaskManager, owner: str, task_id: str, *_: Any) -> None:
        raise QuestionClosed(task_id, "q1", "closed")

    def steps(machine: Runtime) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(BackgroundTaskManager, "answer", closed)
            machine.answer(0, 0, 0, False, 0)  # noqa: FBT003

    with pytest.raises(AssertionError, match="promise 13: q1 is shown as open, its answer was"):
        play(steps)


def test_what_has_ended_is_resumed_while_it_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """That it had ended is known then, too."""

    def steps(machine: Runtime) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(BackgroundTaskManager, "start", anything)
            machine.end_and_collect(0, 0, "succeed")

    with pytest.raises(AssertionError, match="promise 3: it had ended, and was resumed"):
        play(steps)


def test_a_manager_that_is_open_says_that_it_has_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that was closed long ago, too, is opened again by a resume."""

    async def closed(*_: Any, **__: Any) -> None:
        raise ManagerClosed("closed")

    def steps(machine: Runtime) -> None:
        machine.order(0, "stop", "nothing")
        with monkeypatch.context() as patch:
            patch.setattr(BackgroundTaskManager, "start", closed)
            machine.run.call(
                partial(machine.resume_at_once, machine.tasks[0], machine.world.open_hosts()[:1])
            )

    told = pytest.RaisesExc(AssertionError, match="promise 10: it is long closed")
    with pytest.RaisesGroup(told, flatten_subgroups=True):
        play(steps)
