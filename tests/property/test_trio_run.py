"""One Trio run, entered by calls: what it raises, and that it leaves nothing."""

from __future__ import annotations

import gc
import signal

import pytest
import trio

from tests.property.trio_runs import nothing_left
from trio_bgtasks.testing import (
    Deadlock,
    TrioRun,
)
from trio_bgtasks.testing._trio_run import PATIENCE_S


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


def test_a_ctrl_c_that_no_call_takes_ends_the_run() -> None:
    """It comes out bare, as it would of a synchronous test."""
    with nothing_left():
        run = TrioRun()

        @trio.lowlevel.enable_ki_protection
        async def press() -> None:
            signal.raise_signal(signal.SIGINT)
            await trio.sleep_forever()

        with pytest.raises(KeyboardInterrupt):
            run.call(press)
        assert run.over
        run.close()


def test_a_run_that_trio_itself_gives_up_is_over() -> None:
    """Trio's own error is raised; nothing of the run is resumed outside of it when it goes."""

    def abort(_: object) -> trio.lowlevel.Abort:
        raise KeyError("abort")

    async def wait_in_vain() -> None:
        with trio.move_on_after(1):
            await trio.lowlevel.wait_task_rescheduled(abort)

    def break_a_run() -> None:
        run = TrioRun()
        with pytest.raises(trio.TrioInternalError) as broken:
            run.call(wait_in_vain)
        assert isinstance(broken.value.__cause__, KeyError)
        assert run.over
        run.close()

    with nothing_left():
        break_a_run()  # where its names end, so that it can be collected


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
