"""What a rule of `RuntimeMachine` is there for, it finds: each is played once, on a wrong manager."""

from __future__ import annotations

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
    StaleAttempt,
    TaskResult,
    TaskStoreError,
)
from trio_bgtasks.testing._history import Body
from trio_bgtasks.testing._runtime_cast import OWNERS
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
