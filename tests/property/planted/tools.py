"""Tools with one fault each, and the machine that must find it.

Each one counts up to ``limit``, a checkpoint a number; `Count` is the one that does it right.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import hypothesis.strategies as st
import trio

from trio_bgtasks import (
    BackgroundExecutable,
    BackgroundExecution,
    ExecutionFailed,
    Stopped,
    Success,
    TaskResult,
    ToolCallContext,
    ToolDescriptor,
    ToolResult,
)
from trio_bgtasks.testing import BackgroundToolMachine


class Count(BackgroundExecutable[None]):
    """Counts right: adds up the numbers, and shows them on its way."""

    task_type = "count"
    supports_resume = True

    def descriptor(self) -> ToolDescriptor:
        schema: dict[str, Any] = {"type": "object", "properties": {"limit": {"type": "integer"}}}
        return ToolDescriptor("count", type(self).__name__, "Add up.", schema)

    async def execute_background(
        self,
        task_id: str,
        args: dict[str, Any],
        prepared: None,
        execution: BackgroundExecution,
        cancel_scope: trio.CancelScope,
        /,
    ) -> TaskResult:
        return Success(await self.count(args, execution))

    async def count(self, args: dict[str, Any], execution: BackgroundExecution) -> Any:
        at, total = execution.checkpoint or (0, 0)
        while at < args["limit"]:
            at, total = at + 1, total + at + 1
            await self.work(at, execution)
            await execution.save_checkpoint([at, total])
        return total

    async def work(self, number: int, execution: BackgroundExecution) -> None:
        await execution.write_output(f"{number}\n")
        await trio.sleep(1)


class IgnoresItsCheckpoint(Count):
    """Begins again whatever it was given."""

    async def count(self, args: dict[str, Any], execution: BackgroundExecution) -> Any:
        execution.checkpoint = None
        return await super().count(args, execution)


class CountsTwice(Count):
    """Begins again with the total that it had."""

    async def count(self, args: dict[str, Any], execution: BackgroundExecution) -> Any:
        _, total = execution.checkpoint or (0, 0)
        for number in range(1, args["limit"] + 1):
            total += number
            await self.work(number, execution)
            await execution.save_checkpoint([-number, total])
        return total


class SavesTooEarly(Count):
    """Says that a number is done, then does it."""

    async def count(self, args: dict[str, Any], execution: BackgroundExecution) -> Any:
        at, total = execution.checkpoint or (0, 0)
        while at < args["limit"]:
            at += 1
            await execution.save_checkpoint([at, total])
            await self.work(at, execution)
            total += at
        return total


class RemembersInItself(Count):
    """Keeps its total in the instance, which dies with its process."""

    total = 0

    async def count(self, args: dict[str, Any], execution: BackgroundExecution) -> Any:
        if not execution.is_resume:
            self.total = 0
        at = execution.checkpoint or 0
        while at < args["limit"]:
            at += 1
            await self.work(at, execution)
            self.total += at
            await execution.save_checkpoint(at)
        return self.total


class TellsTheAttempt(Count):
    """Ends otherwise when it was resumed."""

    async def count(self, args: dict[str, Any], execution: BackgroundExecution) -> Any:
        return [await super().count(args, execution), execution.attempt]


class AsksEachAttemptAnew(Count):
    """Asks how much to add by the number of its attempt: nobody was asked that before."""

    async def count(self, args: dict[str, Any], execution: BackgroundExecution) -> Any:
        more = await execution.ask(f"And {execution.attempt}?", {"enum": [*range(100)]})
        return more + await super().count(args, execution)


class LeavesATask(Count):
    """Logs in a task that nobody ends."""

    async def work(self, number: int, execution: BackgroundExecution) -> None:
        trio.lowlevel.spawn_system_task(trio.sleep, 1.5, name="log of the counter")
        await super().work(number, execution)


class SwallowsCancelled(Count):
    """Takes a cancellation for a failed try."""

    async def count(self, args: dict[str, Any], execution: BackgroundExecution) -> Any:
        at, total = execution.checkpoint or (0, 0)
        while at < args["limit"]:
            at, total = at + 1, total + at + 1
            try:
                await self.work(at, execution)
                await execution.save_checkpoint([at, total])
            except BaseException:  # noqa: BLE001 - as planted
                continue
        return total


class NeverStopsTrying(Count):
    """Tries again for ever, and takes a cancellation for a failed try."""

    async def work(self, number: int, execution: BackgroundExecution) -> None:
        while True:
            try:
                return await super().work(number, execution)
            except BaseException:  # noqa: BLE001 - as planted
                continue


class ShieldsItsSleep(Count):
    """Cannot be interrupted for a minute."""

    async def work(self, number: int, execution: BackgroundExecution) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(60)


class WaitsInItsFinally(Count):
    """Its clean-up waits for what will never come."""

    async def work(self, number: int, execution: BackgroundExecution) -> None:
        written = trio.Event()
        try:
            await super().work(number, execution)
            written.set()
        finally:
            with trio.CancelScope(shield=True):
                await written.wait()


class FailsToCleanUp(Count):
    """Its clean-up takes for granted what is not there yet."""

    async def work(self, number: int, execution: BackgroundExecution) -> None:
        opened: list[int] = []
        try:
            await super().work(number, execution)
            opened.append(number)
        finally:
            opened.pop()


class SwallowsTheThird(Count):
    """Takes its third await, and no other, for one that cannot be interrupted."""

    async def count(self, args: dict[str, Any], execution: BackgroundExecution) -> Any:
        at, total = execution.checkpoint or (0, 0)
        while at < args["limit"]:
            at, total = at + 1, total + at + 1
            try:
                await trio.sleep(1)
            except trio.Cancelled:
                if at != 3:
                    raise
                return total
            await execution.save_checkpoint([at, total])
        return total


class SwallowsAfterAResume(Count):
    """Is careful the first time."""

    async def work(self, number: int, execution: BackgroundExecution) -> None:
        with trio.CancelScope(shield=execution.is_resume):
            await trio.sleep(10)


class RaisesWhenCancelled(Count):
    """Reports a cancellation as its own failure, by an exception that tools may raise."""

    async def work(self, number: int, execution: BackgroundExecution) -> None:
        try:
            await super().work(number, execution)
        except BaseException as error:
            raise ExecutionFailed(f"it failed: {error}") from error


class TrustsItsCheckpoint(Count):
    """Was interrupted before it had one."""

    async def count(self, args: dict[str, Any], execution: BackgroundExecution) -> Any:
        if execution.is_resume:
            _, _ = execution.checkpoint
        return await super().count(args, execution)


class DividesByTheAttempt(Count):
    """Its result is no JSON once it was resumed."""

    async def count(self, args: dict[str, Any], execution: BackgroundExecution) -> Any:
        total = await super().count(args, execution)
        return float("nan") if execution.is_resume else total


class LeavesANursery(Count):
    """Opens a nursery and never closes it."""

    async def work(self, number: int, execution: BackgroundExecution) -> None:
        nursery = await trio.open_nursery().__aenter__()
        nursery.start_soon(trio.sleep, 1.5, name="child of the counter")
        await super().work(number, execution)


class LeavesAThread(Count):
    """Logs in a thread that nobody ends."""

    async def work(self, number: int, execution: BackgroundExecution) -> None:
        threading.Thread(target=time.sleep, args=[60], name="log thread", daemon=True).start()
        await super().work(number, execution)


class BlocksTheLoop(Count):
    """Works without Trio."""

    async def work(self, number: int, execution: BackgroundExecution) -> None:
        time.sleep(0.6)  # noqa: ASYNC251 - as planted
        await super().work(number, execution)


class LeavesAGrandchild(Count):
    """Ends its process, and not what that has started in a session of its own."""

    async def work(self, number: int, execution: BackgroundExecution) -> None:
        await trio.run_process(["sh", "-c", "setsid sh -c 'sleep 601 >/dev/null 2>&1 &' &"])


class ReturnsASet(Count):
    """Its result is no JSON."""

    async def count(self, args: dict[str, Any], execution: BackgroundExecution) -> Any:
        return {await super().count(args, execution)}


class ReturnsNoOutcome(Count):
    """Returns its result as it is."""

    async def execute_background(self, *given: Any) -> Any:
        return (await super().execute_background(*given)).value  # type: ignore[union-attr]


class SavesALock(Count):
    """Its checkpoint is no JSON."""

    async def work(self, number: int, execution: BackgroundExecution) -> None:
        await execution.save_checkpoint([number, threading.Lock()])


class ChangesItsArguments(Count):
    """Counts its limit down."""

    async def count(self, args: dict[str, Any], execution: BackgroundExecution) -> Any:
        at, total = execution.checkpoint or (args["limit"], 0)
        while at > 0:
            await self.work(at, execution)
            at, total = at - 1, total + at
            args["limit"] = at
            await execution.save_checkpoint([at, total])
        return total


class DiffersInTheForeground(Count):
    """Shows something else to a caller who waits."""

    async def execute(self, args: dict[str, Any], ctx: ToolCallContext) -> ToolResult:
        return ToolResult.success("count", args["limit"])


class StopsForEver(Count):
    """Leaves the work to the next attempt, each time."""

    async def count(self, args: dict[str, Any], execution: BackgroundExecution) -> Any:
        await trio.sleep(1)
        return None

    async def execute_background(self, *given: Any) -> Any:
        await super().execute_background(*given)
        return Stopped("later")


class NeverEnds(Count):
    """Waits for what nobody will send."""

    async def work(self, number: int, execution: BackgroundExecution) -> None:
        await trio.sleep_forever()


class LeavesAProcess(Count):
    """Starts a helper and forgets it."""

    async def work(self, number: int, execution: BackgroundExecution) -> None:
        await trio.run_process(["sh", "-c", "sleep 600 >/dev/null 2>&1 &"])


PLANTED: list[tuple[type[Count], str]] = [
    (
        IgnoresItsCheckpoint,
        r"ignores its checkpoint: it was given \[\d, \d+\] and saved \[\d, \d+\]",
    ),
    (CountsTwice, "is not resumable: it was interrupted, and ends differently"),
    (SavesTooEarly, "is not resumable"),
    (RemembersInItself, "is not resumable"),
    (TellsTheAttempt, "is not resumable"),
    (AsksEachAttemptAnew, "is not resumable"),
    (LeavesATask, "leaves Trio tasks behind: log of the counter"),
    (SwallowsCancelled, r"swallows trio.Cancelled: it received it at tools.py:\d+ \(Count.work\)"),
    (NeverStopsTrying, "is not cancellable: .* swallows trio.Cancelled"),
    (ShieldsItsSleep, r"not cancellable: it still runs after 5 s, at tools.py:\d+ \(Shields.*work"),
    (WaitsInItsFinally, r"not cancellable: it still runs after 5 s, at tools.py:\d+ \(Waits.*work"),
    (SwallowsTheThird, "swallows trio.Cancelled"),
    (SwallowsAfterAResume, r"not cancellable: it still runs after 5 s, at tools.py:\d+ \(Swallows"),
    (RaisesWhenCancelled, "raises ExecutionFailed when it is interrupted"),
    (TrustsItsCheckpoint, "raises TypeError"),
    (DividesByTheAttempt, "outcome that cannot be stored: result is not JSON"),
    (LeavesANursery, "leaves Trio tasks behind: child of the counter"),
    (LeavesAThread, "leaves threads behind: log thread"),
    (LeavesAGrandchild, "leaves processes behind: .*sleep 601"),
    (FailsToCleanUp, "raises IndexError when it is interrupted: pop from empty list"),
    (ReturnsASet, r"outcome that cannot be stored: result is not JSON: \$: set"),
    (ReturnsNoOutcome, "outcome that cannot be stored: TypeError: the tool returned int"),
    (SavesALock, "raises ValueError: checkpoint is not JSON"),
    (ChangesItsArguments, r"changes its arguments: they have become \{'limit': 0\}"),
    (DiffersInTheForeground, "does something else in the foreground"),
    (StopsForEver, "stops itself again and again"),
    (LeavesAProcess, "leaves processes behind: sleep 600"),
    (NeverEnds, r"does not end: after 3000 s it waits at tools.py:\d+ \(NeverEnds.work\)"),
]


def machine_for(tool: type[Count]) -> type[BackgroundToolMachine]:
    """Return the machine of a tool, as its author would write it."""

    class Machine(BackgroundToolMachine):
        virtual_time = tool not in (LeavesAProcess, LeavesAGrandchild)
        bound_s = 5.0 if virtual_time else 0.1
        arguments = st.fixed_dictionaries({"limit": st.integers(0, 4)})

        def make_tool(self) -> BackgroundExecutable[Any]:
            return tool()

    return Machine
