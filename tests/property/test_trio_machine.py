"""The base of the async machines: what it finds, what it reports, and that it leaves nothing."""

from __future__ import annotations

import gc
import threading
from collections.abc import Generator
from contextlib import contextmanager

import greenlet  # type: ignore[import-untyped]
import pytest
import trio
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from trio_bgtasks.testing import Deadlock, TrioRun, TrioStateMachine, in_trio
from trio_bgtasks.testing._trio_machine import PATIENCE_S

QUICK = settings(
    derandomize=True,
    max_examples=20,
    stateful_step_count=10,
    phases=[Phase.generate],
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)


def run_machine(machine: type[RuleBasedStateMachine], how: settings = QUICK) -> None:
    """Run a machine as Hypothesis does."""
    run_state_machine_as_test(machine, settings=how)


@contextmanager
def nothing_left() -> Generator[None]:
    """Check that no greenlet, thread or Trio run of the block is alive after it."""
    threads = threading.active_count()
    yield
    gc.collect()
    inside = [g for g in gc.get_objects() if isinstance(g, greenlet.greenlet) and g and not g.dead]
    assert inside in ([], [greenlet.getcurrent()])
    assert threading.active_count() <= threads

    async def nothing() -> None:
        """A run can be started again: none is going on."""

    trio.run(nothing)


# ---- one run ------------------------------------------------------------------------------------


def test_calls_share_one_run_that_is_frozen_between_them() -> None:
    """Time and background tasks go on only while a call is under way."""
    with nothing_left():
        run = TrioRun()
        ticks: list[float] = []

        async def tick_for_ever() -> None:
            while True:
                ticks.append(trio.current_time())
                await trio.sleep(1)

        async def start() -> str:
            run.nursery.start_soon(tick_for_ever)
            return "started"

        assert run.call(start) == "started"
        seen = len(ticks)
        gc.collect()
        assert len(ticks) == seen

        async def pass_time() -> float:
            await trio.sleep(10.5)
            return trio.current_time()

        before = run.call(pass_time)
        assert len(ticks) == 11
        assert run.call(pass_time) - before == 10.5
        run.close()
        run.close()
        with pytest.raises(RuntimeError, match="is over"):
            run.call(pass_time)


def test_an_exception_comes_out_as_it_was_raised_and_the_run_goes_on() -> None:
    """A call may fail without harm to the next one."""
    with nothing_left():
        run = TrioRun()
        error = ValueError("boom")

        async def fail() -> None:
            raise error

        async def work() -> int:
            await trio.lowlevel.checkpoint()
            return 7

        with pytest.raises(ValueError, match="boom") as caught:
            run.call(fail)
        assert caught.value is error
        assert run.call(work) == 7
        run.close()


def test_a_deadlock_is_found_at_once_and_named() -> None:
    """A call that waits for what never comes fails after a virtual hour; others may follow."""
    with nothing_left():
        run = TrioRun()
        event = trio.Event()

        async def knot() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(event.wait, name="Vladimir")
                nursery.start_soon(event.wait, name="Estragon")

        with pytest.raises(
            Deadlock, match=r"still waiting: (Vladimir, Estragon|Estragon, Vladimir)"
        ):
            run.call(knot)

        async def untie() -> float:
            event.set()
            return trio.current_time()

        assert run.call(untie) >= PATIENCE_S
        run.close()


def test_a_background_crash_is_raised_by_the_call_under_way() -> None:
    """The crash is not lost, not wrapped, and told once; then the run is over."""
    with nothing_left():
        run = TrioRun()

        async def crash_later() -> None:
            await trio.sleep(5)
            raise KeyError("crash")

        async def start() -> None:
            run.nursery.start_soon(crash_later)

        run.call(start)
        with pytest.raises(KeyError, match="crash"):
            run.call(trio.sleep_forever)
        assert run.over
        run.close()


def test_a_crash_beside_a_failing_call_leaves_the_calls_own_error() -> None:
    """When both fail, the call raises what it raised itself, and the end tells the crash."""
    with nothing_left():
        run = TrioRun()

        async def crash() -> None:
            raise KeyError("crash")

        async def fail() -> None:
            run.nursery.start_soon(crash)
            raise ValueError("own")

        with pytest.raises(ValueError, match="own"):
            run.call(fail)
        with pytest.raises(KeyError, match="crash"):
            run.close()


def test_several_crashes_are_a_group() -> None:
    """Nothing that went wrong in the background is left out."""
    with nothing_left():
        run = TrioRun()

        async def crash(error: Exception) -> None:
            raise error

        async def start() -> None:
            run.nursery.start_soon(crash, KeyError("a"))
            run.nursery.start_soon(crash, ValueError("b"))
            await trio.sleep_forever()

        with pytest.RaisesGroup(KeyError, ValueError):
            run.call(start)
        run.close()


def test_a_crash_while_the_run_ends_is_raised_by_close() -> None:
    """Clean-up that fails is no less a bug than anything else."""
    with nothing_left():
        run = TrioRun()

        async def bad_clean_up() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError("clean-up")

        async def start() -> None:
            run.nursery.start_soon(bad_clean_up)
            await trio.sleep(1)

        run.call(start)
        with pytest.raises(KeyError, match="clean-up"):
            run.close()


def test_what_will_not_end_is_named_and_ended_all_the_same() -> None:
    """A task that is shielded for ever does not hang the tests, and is gone after the report."""
    with nothing_left():
        run = TrioRun()

        async def stubborn() -> None:
            try:
                with trio.CancelScope(shield=True):
                    await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep_forever()

        async def start() -> None:
            run.nursery.start_soon(stubborn, name="stubborn")

        run.call(start)
        with pytest.raises(Deadlock, match="in 3600 s: stubborn"):
            run.close()
        run.close()


def test_a_slow_end_is_waited_for() -> None:
    """Clean-up in a shield takes its virtual time, and has happened when close returns."""
    with nothing_left():
        run = TrioRun()
        done: list[str] = []

        async def tidy() -> None:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(600)
                    done.append("tidy")

        async def start() -> None:
            run.nursery.start_soon(tidy)
            await trio.sleep(1)

        run.call(start)
        run.close()
        assert done == ["tidy"]


# ---- machines -----------------------------------------------------------------------------------


def test_rules_share_the_run_and_keep_hypothesis_context() -> None:
    """Async rules, invariants and preconditions run in one Trio run; drawing works in them."""
    runs: list[TrioRun] = []
    drawn: list[int] = []
    closed: list[TrioRun] = []

    class Machine(TrioStateMachine):
        async def set_up(self) -> None:
            self.started = trio.current_time()
            runs.append(self.run)

        async def clean_up(self) -> None:
            closed.append(self.run)

        @precondition(lambda self: not self.run.over)
        @rule(data=st.data(), seconds=st.integers(1, 3))
        @in_trio
        async def draw(self, data: st.DataObject, seconds: int) -> None:
            await trio.sleep(seconds)
            drawn.append(data.draw(st.integers(0, 9)))
            note(f"drew at {trio.current_time()}")

        @invariant()
        @in_trio
        async def in_a_run(self) -> None:
            assert trio.current_time() >= self.started
            await trio.lowlevel.checkpoint()

    with nothing_left():
        run_machine(Machine)
    assert drawn
    assert runs == closed
    assert all(run.over for run in runs)


def test_a_machine_in_real_time_waits_for_threads() -> None:
    """On a virtual clock the time-out would be over before the thread has begun."""
    answers: list[int] = []

    class Machine(TrioStateMachine):
        virtual_time = False

        @rule()
        @in_trio
        async def ask_a_thread(self) -> None:
            with trio.fail_after(50):
                answers.append(await trio.to_thread.run_sync(lambda: 7))

    run_machine(Machine, settings(QUICK, max_examples=2))
    assert set(answers) == {7}


def test_schedules_vary_and_can_be_replayed() -> None:
    """The order of tasks differs between examples, and is the same when they are run again."""

    def orders() -> list[str]:
        seen: list[str] = []

        class Machine(TrioStateMachine):
            @rule()
            @in_trio
            async def race(self) -> None:
                order: list[str] = []

                async def run(name: str) -> None:
                    await trio.lowlevel.checkpoint()
                    order.append(name)

                async with trio.open_nursery() as nursery:
                    for name in "abc":
                        nursery.start_soon(run, name)
                seen.append("".join(order))

        run_machine(Machine)
        return seen

    first = orders()
    assert len(set(first)) > 1
    assert orders() == first


class Stubborn(TrioStateMachine):
    """Leaves a shielded task behind, which only `clean_up` can end."""

    async def set_up(self) -> None:
        self.release = trio.Event()
        self.run.nursery.start_soon(self.shielded)

    async def shielded(self) -> None:
        with trio.CancelScope(shield=True):
            await self.release.wait()

    async def clean_up(self) -> None:
        self.release.set()


class Deadlocked(Stubborn):
    @rule()
    @in_trio
    async def wait_for_ever(self) -> None:
        await trio.Event().wait()


class Raising(Stubborn):
    @rule()
    @in_trio
    async def fail(self) -> None:
        raise KeyError("rule")


class Crashing(Stubborn):
    """A crash cannot be released from any more: the shield ends by itself here."""

    async def set_up(self) -> None:
        self.run.nursery.start_soon(self.crash)

    async def crash(self) -> None:
        await trio.sleep(3)
        raise KeyError("background")

    @rule()
    @in_trio
    async def pass_time(self) -> None:
        await trio.sleep(1)


class BadSetUp(TrioStateMachine):
    async def set_up(self) -> None:
        raise KeyError("set-up")

    @rule()
    def never(self) -> None:
        raise AssertionError


class BadCleanUp(Stubborn):
    async def clean_up(self) -> None:
        await super().clean_up()
        raise KeyError("clean-up")

    @rule()
    def work(self) -> None:
        """Nothing is wrong before the end."""


class BadInvariant(Stubborn):
    @rule()
    def work(self) -> None:
        """Whatever happens, the invariant fails after it."""

    @invariant()
    def never_holds(self) -> None:
        raise KeyError("invariant")


@pytest.mark.parametrize(
    ("machine", "error", "text"),
    [
        (Deadlocked, Deadlock, "still waiting"),
        (Raising, KeyError, "rule"),
        (Crashing, KeyError, "background"),
        (BadSetUp, KeyError, "set-up"),
        (BadCleanUp, KeyError, "clean-up"),
        (BadInvariant, KeyError, "invariant"),
    ],
)
def test_what_goes_wrong_is_reported_and_leaves_nothing(
    machine: type[TrioStateMachine], error: type[Exception], text: str
) -> None:
    """However an example dies, its failure is the one reported and its run is closed."""
    with nothing_left(), pytest.raises(error, match=text):
        run_machine(machine)


def test_a_failing_example_is_shrunk() -> None:
    """A machine's failure is reproducible, so Hypothesis reduces it to what it takes."""
    steps: list[int] = []

    class Machine(TrioStateMachine):
        async def set_up(self) -> None:
            self.total = 0
            steps.clear()

        @rule(n=st.integers(0, 100))
        @in_trio
        async def add(self, n: int) -> None:
            await trio.sleep(n)
            steps.append(n)
            self.total += n
            assert self.total < 50

    with nothing_left(), pytest.raises(AssertionError):
        run_machine(Machine, settings(QUICK, phases=[Phase.generate, Phase.shrink]))
    assert steps == [50]


def test_a_machine_that_never_began_is_torn_down() -> None:
    """Hypothesis tears a machine down also when its first step could not be drawn."""
    TrioStateMachine.teardown(object.__new__(TrioStateMachine))
