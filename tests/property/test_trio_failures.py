"""What goes wrong in a `TrioStateMachine`, or is wrong with it, is named and leaves nothing."""

from __future__ import annotations

import pytest
import trio
from hypothesis.stateful import (
    Bundle,
    invariant,
    precondition,
    rule,
)

from tests.property.trio_runs import nothing_left, run_machine
from trio_bgtasks.testing import (
    Deadlock,
    Livelock,
    TrioRun,
    TrioStateMachine,
    _trio_run,
    in_trio,
)

# ---- what goes wrong --------------------------------------------------------------------------------


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


class NurseryAcrossRules(TrioStateMachine):
    """What was entered in one rule's task cannot be left in another's."""

    async def set_up(self) -> None:
        self.opened = trio.open_nursery()
        await self.opened.__aenter__()

    @rule()
    @in_trio
    async def work(self) -> None:
        """The machine is broken already."""


class ScopeAcrossRules(TrioStateMachine):
    async def set_up(self) -> None:
        self.scope = trio.CancelScope().__enter__()

    @rule()
    @in_trio
    async def leave(self) -> None:
        self.scope.__exit__(None, None, None)


class CancelsItsRun(TrioStateMachine):
    """There is no run to go on in."""

    @rule()
    @in_trio
    async def work(self) -> None:
        self.run.nursery.cancel_scope.cancel()


class CancelsItsRunAndWaits(CancelsItsRun):
    @rule()
    @in_trio
    async def work(self) -> None:
        self.run.nursery.cancel_scope.cancel()
        await trio.sleep(1)


class CrashingWhileARuleWaits(TrioStateMachine):
    """The rule is cancelled by the crash: that is not what went wrong."""

    @rule()
    @in_trio
    async def work(self) -> None:
        self.run.nursery.start_soon(self.crash)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)

    async def crash(self) -> None:
        await trio.sleep(1)
        raise KeyError("background")


class FailingInTheBackground(CrashingWhileARuleWaits):
    """What pytest raises is no `Exception`."""

    async def crash(self) -> None:
        await trio.lowlevel.checkpoint()
        pytest.fail("background")


class UsingASocket(TrioStateMachine):
    """The answer may be on its way; on a virtual clock that is idleness."""

    @rule()
    @in_trio
    async def receive(self) -> None:
        one, other = trio.socket.socketpair()
        with one, other:
            await one.recv(1)


class PollingForNothing(TrioStateMachine):
    patience_s = 5

    @rule()
    @in_trio
    async def poll(self) -> None:
        while True:
            await trio.sleep(1)


class SleepingLessAndLess(TrioStateMachine):
    @rule()
    @in_trio
    async def retry(self) -> None:
        while True:
            await trio.sleep(1e-9)


class DeafInRealTime(Deaf):
    virtual_time = False
    patience_s = 0.1

    @rule()
    @in_trio
    async def try_again(self) -> None:
        self.run.nursery.start_soon(self.for_ever)
        raise KeyError("rule")


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
        (NurseryAcrossRules, RuntimeError, "Nursery stack corrupted", ""),
        (ScopeAcrossRules, RuntimeError, "Cancel scope stack corrupted", ""),
        (CancelsItsRun, RuntimeError, "nursery of this Trio run was cancelled", ""),
        (CancelsItsRunAndWaits, RuntimeError, "nursery of this Trio run was cancelled", ""),
        (CrashingWhileARuleWaits, KeyError, "background", ""),
        (FailingInTheBackground, pytest.fail.Exception, "background", ""),
        (UsingASocket, Deadlock, r"\(UsingASocket.receive\) \(.*needs virtual_time = False", ""),
        (PollingForNothing, Deadlock, r"still waiting: .*PollingForNothing.poll", ""),
        (SleepingLessAndLess, Livelock, r"no time passes: .*SleepingLessAndLess.retry", ""),
        (DeafInRealTime, KeyError, "rule", "After that, at the end: Livelock: cancelled again"),
        (Nested, RuntimeError, "a call is under way", ""),
        (Spinning, Livelock, r"no time passes: .*try_again at test_trio_failures.py:\d+", ""),
        (Deaf, KeyError, "rule", "After that, at the end: Livelock: "),
        (BadSetUpForEver, Deadlock, r"set_up at test_trio_failures.py:\d+ \(BadSetUpForEver", ""),
        (BadCleanUpForEver, Deadlock, r"clean_up at test_trio_failures.py:\d+ \(BadCl", ""),
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
    monkeypatch.setattr(_trio_run, "TURNS", 1_000)
    monkeypatch.setattr(_trio_run, "ROUNDS", 1)
    with nothing_left(), pytest.raises(error, match=text) as failed:
        run_machine(machine)
    assert noted in "".join(failed.value.__notes__)


def test_a_teardown_that_leaves_out_super_ends_the_run_all_the_same() -> None:
    """In Hypothesis there is nothing to call; the run must not be left for the next example."""
    torn: list[TrioRun] = []

    class Machine(TrioStateMachine):
        @rule()
        @in_trio
        async def work(self) -> None:
            await trio.sleep(1)

        def teardown(self) -> None:
            torn.append(self.run)
            raise KeyError("teardown")

    with nothing_left(), pytest.raises(KeyError, match="teardown"):
        run_machine(Machine)
    assert torn
    assert all(run.over for run in torn)


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
