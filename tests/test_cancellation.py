"""How attempts end that are told to: the table of design section 7, in the background and not."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import pytest
import trio
import trio.testing

from tests.support import OWNER, StallingStore, opened, request, stored
from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    Cancelled,
    Failed,
    LeaseTerms,
    MemoryTaskStore,
    StartRequest,
    Stopped,
    Success,
    TaskResult,
    open_task_manager,
)

Way = Literal["passes it on", "Cancelled", "Failed", "Success", "nothing", "raises"]
Reason = Literal["cancel", "shutdown", "owner close", "caller", "deadline", "lost lease"]

NOTHING = "TypeError: the tool returned NoneType instead of a TaskResult"
SHUTDOWN = "The runtime was shut down"
OWNER_CLOSE = "The owner thread was closed"
CALLER = "The caller of the foreground run is gone"
DEADLINE = "The deadline of 5 s passed"
LEASE_LOST = "The lease was lost; another executor owns the task"
ORPHAN = "No live executor found; marked stopped"

# reason: way: (status, error). What is stored, wherever the attempt ran.
TABLE: dict[Reason, dict[Way, tuple[str, str | None]]] = {
    "cancel": {
        "passes it on": ("cancelled", None),
        "Cancelled": ("cancelled", None),
        "Failed": ("cancelled", "it broke"),
        "Success": ("cancelled", None),  # an accepted cancel wins; the result is kept
        "nothing": ("cancelled", NOTHING),
        "raises": ("cancelled", "ValueError: bad"),
    },
    "shutdown": {
        "passes it on": ("stopped", SHUTDOWN),
        "Cancelled": ("stopped", SHUTDOWN),
        "Failed": ("stopped", f"{SHUTDOWN}: it broke"),
        "Success": ("completed", None),
        "nothing": ("stopped", f"{SHUTDOWN}: {NOTHING}"),
        "raises": ("stopped", f"{SHUTDOWN}: ValueError: bad"),
    },
    "owner close": {
        "passes it on": ("stopped", OWNER_CLOSE),
        "Cancelled": ("stopped", OWNER_CLOSE),
        "Failed": ("stopped", f"{OWNER_CLOSE}: it broke"),
        "Success": ("completed", None),
        "nothing": ("stopped", f"{OWNER_CLOSE}: {NOTHING}"),
        "raises": ("stopped", f"{OWNER_CLOSE}: ValueError: bad"),
    },
    "caller": {
        "passes it on": ("stopped", CALLER),
        "Cancelled": ("stopped", CALLER),
        "Failed": ("stopped", f"{CALLER}: it broke"),
        "Success": ("completed", None),
        "nothing": ("stopped", f"{CALLER}: {NOTHING}"),
        "raises": ("stopped", f"{CALLER}: ValueError: bad"),
    },
    "deadline": {
        "passes it on": ("failed", DEADLINE),
        "Cancelled": ("failed", DEADLINE),
        "Failed": ("failed", f"{DEADLINE}: it broke"),
        "Success": ("completed", None),
        "nothing": ("failed", f"{DEADLINE}: {NOTHING}"),
        "raises": ("failed", f"{DEADLINE}: ValueError: bad"),
    },
    "lost lease": dict.fromkeys(
        # Whatever it was: whoever fenced the executor ended the attempt already.
        ("passes it on", "Cancelled", "Failed", "Success", "nothing", "raises"),
        ("stopped", ORPHAN),
    ),
}

ROWS = [(reason, way) for reason, ways in TABLE.items() for way in ways]


ANSWERS: dict[Way, Any] = {
    "Cancelled": Cancelled(),
    "Failed": Failed("it broke", {"n": 2}),
    "Success": Success({"n": 1}),
    "nothing": None,
}


@attrs.define(eq=False)
class Answering:
    """A body that waits to be cancelled, and answers in one of the six ways."""

    way: Way
    entered: trio.Event = attrs.field(factory=trio.Event)
    stopping: str | None = None

    async def __call__(self, execution: BackgroundExecution, _: trio.CancelScope) -> Any:
        self.entered.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:  # noqa: ASYNC103 - to swallow it is what is tested
            self.stopping = execution.stopping
            if self.way == "passes it on":
                raise
            if self.way == "raises":
                raise ValueError("bad") from None  # noqa: ASYNC104
            return ANSWERS[self.way]  # noqa: ASYNC104
        raise AssertionError


@attrs.define
class Told:
    """What a foreground caller got."""

    answer: TaskResult | None = None
    raised: BaseException | None = None
    gone: bool = False


async def ask(
    manager: BackgroundTaskManager,
    asked: StartRequest,
    body: Answering,
    scope: trio.CancelScope,
    told: Told,
) -> None:
    """Run a task in the foreground; note what its caller gets."""
    with scope:
        try:
            told.answer = await manager.run(asked, body)
        except Exception as error:  # noqa: BLE001 - to be looked at
            told.raised = error
    told.gone = scope.cancelled_caught


async def end(reason: Reason, manager: BackgroundTaskManager, caller: trio.CancelScope) -> None:
    """Give the task its reason to end; shutdown is the end of the caller's block."""
    match reason:
        case "cancel":
            await manager.cancel(OWNER, "t")
        case "owner close":
            await manager.close_owner(OWNER)
        case "caller":
            caller.cancel()
        case "deadline":
            await trio.sleep(5)
        case "shutdown" | "lost lease":
            pass


async def run_row(
    reason: Reason, body: Answering, *, foreground: bool
) -> tuple[MemoryTaskStore, Told]:
    """Start the task and end it for the reason; return the store after all has come to an end."""
    store, told, caller = MemoryTaskStore(), Told(), trio.CancelScope()
    # A machine that does not renew is found dead by the sweep of another one.
    seen = StallingStore(store) if reason == "lost lease" else store
    asked = request(task_id="t", deadline_s=5 if reason == "deadline" else None)
    async with (
        trio.open_nursery() as callers,  # a caller may outlive the manager
        opened(seen, lease=LeaseTerms(lease_s=30)) as manager,
    ):
        if foreground:
            callers.start_soon(ask, manager, asked, body, caller, told)  # noqa: ASYNC111
        else:
            await manager.start(asked, body)
        await body.entered.wait()
        if reason == "lost lease":
            await trio.sleep(31)
            async with open_task_manager(store):
                await trio.testing.wait_all_tasks_blocked()
        await end(reason, manager, caller)
        if reason != "shutdown":
            await trio.testing.wait_all_tasks_blocked()
            assert not manager.live(OWNER)
    return store, told


@pytest.mark.parametrize(("reason", "way"), [row for row in ROWS if row[0] != "caller"])
async def test_background(reason: Reason, way: Way, autojump_clock: trio.testing.MockClock) -> None:
    """A background attempt that is ended is recorded by the table, and announced once.

    C5, C19, C20, C23, C35: none of the ends leaves a running record.
    """
    body = Answering(way)
    store, _ = await run_row(reason, body, foreground=False)
    record = await stored(store, "t")
    assert (str(record.status), record.error) == TABLE[reason][way]
    assert record.result == result_of(reason, way)
    (notice,) = await store.notices(OWNER)
    assert notice.summary == record.summary()
    assert body.stopping == STOPPING[reason]


@pytest.mark.parametrize(("reason", "way"), ROWS)
async def test_foreground(reason: Reason, way: Way, autojump_clock: trio.testing.MockClock) -> None:
    """A foreground attempt that is ended is recorded by the same table; its caller is told.

    The caller gets the outcome that counts, or its own cancellation. A notice is made only for a
    caller that is gone, and for the orphan of a lost lease. C5, C29.
    """
    body = Answering(way)
    store, told = await run_row(reason, body, foreground=True)
    record = await stored(store, "t")
    status, error = TABLE[reason][way]
    assert (str(record.status), record.error) == (status, error)
    assert record.result == result_of(reason, way)
    announced = reason in ("caller", "lost lease")
    assert [n.summary for n in await store.notices(OWNER)] == [record.summary()] * announced
    assert told.raised is None
    assert told.gone is (reason == "caller")
    assert body.stopping == STOPPING[reason]
    if reason == "lost lease" and way != "Success":
        error = LEASE_LOST  # nothing was recorded, so nothing is known about the record
    assert told.answer == {
        "completed": Success(result_of(reason, way)),
        "cancelled": Cancelled(),
        "stopped": Stopped(error),
        "failed": Failed(error or "", result_of(reason, way)),
    }.get("" if told.gone else status)


STOPPING = {
    "cancel": "cancel",
    "shutdown": "shutdown",
    "owner close": "shutdown",
    "caller": None,  # that was not the runtime
    "deadline": "deadline",
    "lost lease": "fenced",
}


def result_of(reason: Reason, way: Way) -> Any:
    """Return the stored result: what the body returned is kept, except where it is not asked."""
    if way == "Success" and reason != "lost lease":
        return {"n": 1}
    return {"n": 2} if way == "Failed" and reason in ("cancel", "deadline") else None
