"""The base of the async machines: what it finds, what it reports, and that it leaves nothing."""

from __future__ import annotations

import ast
import gc
import inspect
import re
import signal
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from typing import ClassVar

import greenlet  # type: ignore[import-untyped]
import pytest
import trio
from hypothesis import (
    HealthCheck,
    Phase,
    assume,
    event,
    note,
    reproduce_failure,
    settings,
    target,
)
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from trio_bgtasks.testing import (
    Deadlock,
    Livelock,
    TrioRun,
    TrioStateMachine,
    _trio_machine,
    in_trio,
)
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


# ---- what people write ----------------------------------------------------------------------------


class Shop(TrioStateMachine):
    """Bundles, preconditions, invariants, drawn values, an initialize of its own; all async."""

    taken = Bundle("taken")
    seen: ClassVar[Counter[str]] = Counter()

    async def set_up(self) -> None:
        self.stock = 3
        self.opened = False

    @initialize(target=taken, stock=st.integers(3, 5))
    @in_trio
    async def open(self, stock: int) -> MultipleResults[int]:
        await trio.lowlevel.checkpoint()
        self.stock, self.opened = stock, True
        return multiple()

    @precondition(lambda self: self.stock > 0)
    @rule(target=taken, data=st.data())
    @in_trio
    async def take(self, data: st.DataObject) -> int:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1)
            number = data.draw(st.integers(1, 2), label="number")
            assume(number <= self.stock)  # within a nursery: Hypothesis has to see through a group
            self.stock -= number
        note(f"took {number}")
        event(f"took {number}")
        self.seen[f"took {number}"] += 1
        return number

    @rule(number=consumes(taken))
    @in_trio
    async def give_back(self, number: int) -> None:
        await trio.lowlevel.checkpoint()
        assert number in (1, 2)
        self.stock += number
        self.seen["gave back"] += 1

    async def clean_up(self) -> None:
        target(float(self.stock), label="stock")
        await trio.lowlevel.checkpoint()
        self.seen["aimed"] += 1

    @invariant()
    @in_trio
    async def never_negative(self) -> None:
        await trio.lowlevel.checkpoint()
        assert self.opened
        assert self.stock >= 0
        self.seen["checked"] += 1


def test_everything_of_hypothesis_works_in_async_rules() -> None:
    """Bundles get what async rules return; drawing, assuming, noting and aiming work inside."""
    Shop.seen.clear()
    with nothing_left():
        run_machine(Shop, settings(QUICK, phases=[Phase.generate, Phase.target]))
    assert set(Shop.seen) == {"took 1", "took 2", "gave back", "checked", "aimed"}


class Racy(TrioStateMachine):
    """Fails only in one order of two tasks."""

    @rule()
    @in_trio
    async def race(self) -> None:
        order: list[str] = []

        async def run(name: str) -> None:
            await trio.lowlevel.checkpoint()
            order.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "a")
            nursery.start_soon(run, "b")
        assert order != ["b", "a"]


def test_a_failing_schedule_is_reproduced_from_its_blob() -> None:
    """What `print_blob` prints is enough to see the same interleaving again."""
    how = settings(QUICK, print_blob=True, database=None)
    with pytest.raises(AssertionError) as failed:
        run_machine(Racy, how)
    (version, blob), *_ = re.findall(
        r"@reproduce_failure\('(.+?)', (b'.+?')\)", "".join(failed.value.__notes__)
    )
    again = reproduce_failure(version, ast.literal_eval(blob))(type("Again", (Racy,), {}))
    with nothing_left(), pytest.raises(AssertionError, match=r"\['b', 'a'\]"):
        run_machine(again, settings(how, print_blob=False))


async def test_a_machine_within_a_trio_test_says_that_it_cannot() -> None:
    """There is a run already; the error says so, and nothing is left of the attempt."""
    with pytest.raises(RuntimeError, match=r"call run\(\) from inside a run\(\)"):
        run_machine(Racy)
    await trio.lowlevel.checkpoint()


# ---- what people get wrong ------------------------------------------------------------------------


def test_an_async_rule_without_in_trio_is_refused() -> None:
    """Nobody would await it; in a bundle its coroutine would pass for a value."""
    with pytest.raises(TypeError, match=r"Machine.work is async: write @in_trio below"):

        class Machine(TrioStateMachine):
            @rule(target=Bundle("things"))
            async def work(self) -> int:
                return 1


def test_an_async_invariant_without_in_trio_is_refused() -> None:
    """It would never fail."""
    with pytest.raises(TypeError, match=r"Machine.holds is async: write @in_trio below"):

        class Machine(TrioStateMachine):
            @precondition(lambda _: True)
            @invariant()
            async def holds(self) -> None:
                raise AssertionError


def test_in_trio_above_the_decorator_is_refused() -> None:
    """Hypothesis would call the async method itself."""
    with pytest.raises(TypeError, match=r"work: in_trio goes below @rule"):

        class Machine(TrioStateMachine):
            @in_trio  # type: ignore[arg-type]  # the mistake
            @rule()  # type: ignore[arg-type]  # Hypothesis' own types refuse an async rule, too
            async def work(self) -> None:
                """Do nothing."""


def test_in_trio_on_what_is_not_async_is_refused() -> None:
    """Its value cannot be awaited."""
    with pytest.raises(TypeError, match=r"work: in_trio takes an async method"):

        class Machine(TrioStateMachine):
            @rule()
            @in_trio  # type: ignore[arg-type]  # the mistake
            def work(self) -> None:
                """Do nothing."""


def test_an_async_precondition_is_refused() -> None:
    """A coroutine is true."""

    async def never(_: object) -> bool:
        return False

    with pytest.raises(TypeError, match=r"Machine.work has an async precondition"):

        class Machine(TrioStateMachine):
            @precondition(never)  # type: ignore[arg-type]  # the mistake
            @rule()
            @in_trio
            async def work(self) -> None:
                """Do nothing."""


def test_a_set_up_that_is_not_async_is_refused() -> None:
    """Both are awaited by the machine itself."""
    with pytest.raises(TypeError, match=r"Machine.set_up must be an async method"):

        class Machine(TrioStateMachine):
            def set_up(self) -> None:  # type: ignore[override]  # the mistake
                """Do nothing."""


class Nested(TrioStateMachine):
    @rule()
    @in_trio
    async def work(self) -> None:
        """Do nothing."""

    @rule()
    @in_trio
    async def work_more(self) -> None:
        self.work()


class Deaf(TrioStateMachine):
    """Spins for ever: it takes every cancellation for a failure, and tries again."""

    @rule()
    @in_trio
    async def try_again(self) -> None:
        self.run.nursery.start_soon(self.for_ever)
        await trio.sleep(1)
        raise KeyError("rule")

    async def for_ever(self) -> None:
        while True:
            try:
                await trio.sleep(10)
            except BaseException:  # noqa: BLE001 - as planted
                continue


class Spinning(Deaf):
    @rule()
    @in_trio
    async def try_again(self) -> None:
        self.run.nursery.cancel_scope.cancel()
        await self.for_ever()


class BadSetUpForEver(Stubborn):
    async def set_up(self) -> None:
        await super().set_up()
        await trio.sleep_forever()

    @rule()
    def never(self) -> None:
        raise AssertionError


class BadCleanUpForEver(Stubborn):
    async def clean_up(self) -> None:
        await super().clean_up()
        await trio.sleep_forever()

    @rule()
    def work(self) -> None:
        """Nothing is wrong before the end."""


class FailsTwice(BadCleanUpForEver):
    @rule()
    def fail(self) -> None:
        raise KeyError("rule")


class FailsAtTheEnd(Stubborn):
    async def clean_up(self) -> None:
        raise KeyError("at the end")

    @rule()
    def work(self) -> None:
        """Nothing is wrong before the end."""


class FailsInANursery(TrioStateMachine):
    @rule()
    @in_trio
    async def fail(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(self.raise_it)

    async def raise_it(self) -> None:
        raise KeyError("in a nursery")


@pytest.mark.parametrize(
    ("machine", "error", "text", "noted"),
    [
        (Nested, RuntimeError, "a call is under way", ""),
        (Spinning, Livelock, r"no time passes: .*try_again at test_trio_machine.py:\d+", ""),
        (Deaf, KeyError, "rule", "After that, at the end: Livelock: "),
        (BadSetUpForEver, Deadlock, r"set_up at test_trio_machine.py:\d+ \(BadSetUpForEver", ""),
        (BadCleanUpForEver, Deadlock, r"clean_up at test_trio_machine.py:\d+ \(BadCl", ""),
        (FailsTwice, KeyError, "rule", "After that, at the end: Deadlock: still waiting"),
        (FailsAtTheEnd, KeyError, "at the end", "After that, at the end: Deadlock: not ended"),
        (FailsInANursery, KeyError, "in a nursery", ""),
    ],
)
def test_what_hangs_is_named_and_leaves_nothing(
    machine: type[TrioStateMachine],
    error: type[Exception],
    text: str,
    noted: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The place is told; what goes wrong at the end hides nothing that went wrong before."""
    monkeypatch.setattr(_trio_machine, "TURNS", 1_000)
    with nothing_left(), pytest.raises(error, match=text) as failed:
        run_machine(machine)
    assert noted in "".join(failed.value.__notes__)


def test_async_generators_are_closed_with_their_example() -> None:
    """One that was left open in the middle ends within the run, where it may still await."""
    closed: list[float] = []

    async def numbers() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            closed.append(trio.current_time())

    class Machine(TrioStateMachine):
        @rule()
        @in_trio
        async def fail(self) -> None:
            self.open = numbers()
            await anext(self.open)
            raise KeyError("rule")

    with nothing_left(), pytest.raises(KeyError):
        run_machine(Machine)
    assert closed


def test_ctrl_c_in_a_rule_is_ctrl_c() -> None:
    """It ends the tests at once, wherever it arrives, and leaves nothing."""
    for protected in (False, True):

        class Machine(TrioStateMachine):
            @rule()
            @in_trio
            async def be_interrupted(self) -> None:
                signal.raise_signal(signal.SIGINT)
                await trio.sleep_forever()

        if protected:
            Machine.be_interrupted = rule()(  # type: ignore[method-assign]  # another one
                in_trio(trio.lowlevel.enable_ki_protection(inspect.unwrap(Machine.be_interrupted)))
            )
        with nothing_left(), pytest.raises(KeyboardInterrupt):
            run_machine(Machine)
