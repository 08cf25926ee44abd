"""The base of the async machines: what it finds, what it reports, and that it leaves nothing."""

from __future__ import annotations

import ast
import inspect
import re
import signal
from collections import Counter
from collections.abc import AsyncGenerator
from typing import ClassVar

import pytest
import trio
from hypothesis import (
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
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from tests.property.trio_runs import QUICK, nothing_left, run_machine
from trio_bgtasks.testing import (
    TrioRun,
    TrioStateMachine,
    in_trio,
)


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


def test_a_failure_is_not_explained_unless_asked_for() -> None:
    """The test case of a machine has all usual phases but the one that traces every line."""

    class Machine(TrioStateMachine):
        """Its settings count, not its rules."""

    assert set(Machine.TestCase.settings.phases) == {*settings().phases} - {Phase.explain}


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
