"""One-line bugs of the lifecycle, the supervision and the manager, planted for `RuntimeMachine`.

Each is a function that patches the library by pytest's ``monkeypatch``; its docstring says what is
wrong then. `PLANTED` is the table of them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio

from tests.property.machines import Runtime
from trio_bgtasks import (
    BackgroundExecution,
    CancelRequested,
    Finished,
    MemoryTaskStore,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskSummary,
    _lifecycle,
    _supervision,
)
from trio_bgtasks._announcing import Announcer
from trio_bgtasks._attempt_log import AttemptLog
from trio_bgtasks._cancelling import Canceller, _Tree
from trio_bgtasks._ending import Ends
from trio_bgtasks._events import NO_FACTS, Facts
from trio_bgtasks._hints import Hints
from trio_bgtasks._liveness import Liveness
from trio_bgtasks._looking import Looker
from trio_bgtasks._outcome import BodyEnd, outcome_of
from trio_bgtasks._records import evolved
from trio_bgtasks._slots import Slot
from trio_bgtasks._supervision import Supervisor
from trio_bgtasks._waits import StoreWaits
from trio_bgtasks.stores import SweepReport
from trio_bgtasks.stores.memory import _Executor
from trio_bgtasks.testing import RuntimeMachine

Patch = pytest.MonkeyPatch
Bug = Callable[[Patch], None]


# ---- the lifecycle ------------------------------------------------------------------------------


def fenced_writers_are_taken(patch: Patch) -> None:
    """Whether the writer is fenced is not looked at."""

    def check(record: TaskRecord, executor_id: str, attempt: int, _: Facts) -> None:
        _lifecycle._check_attempt(record, executor_id, attempt)

    patch.setattr(_lifecycle, "_check_writer", check)


def no_attempt_guard(patch: Patch) -> None:
    """The executor has to be right, the attempt need not."""
    check_attempt = _lifecycle._check_attempt
    patch.setattr(
        _lifecycle,
        "_check_attempt",
        lambda record, by, _: check_attempt(record, by, record.attempt),
    )


def finish_is_not_compared(patch: Patch) -> None:
    """An end is taken from whatever attempt, of whatever executor."""
    finished = _lifecycle._finished

    def from_anybody(record: TaskRecord, event: Finished, _: Facts) -> TaskRecord:
        if record.executor_id is not None:
            event = attrs.evolve(event, attempt=record.attempt, executor_id=record.executor_id)
        return finished(record, event, NO_FACTS)

    patch.setattr(_lifecycle, "_finished", from_anybody)


def orphaned_clears_the_cancel(patch: Patch) -> None:
    """A crash takes an accepted cancel along."""
    orphaned = _lifecycle._orphaned
    patch.setattr(
        _lifecycle,
        "_orphaned",
        lambda record, event, facts: orphaned(
            evolved(record, cancel_requested_at_ms=None), event, facts
        ),
    )


def the_living_are_orphaned(patch: Patch) -> None:
    """Nobody looks whether the executor of an orphan was fenced; its lease ran out, that is all."""
    orphaned = _lifecycle._orphaned
    patch.setattr(
        _lifecycle,
        "_orphaned",
        lambda record, event, _: orphaned(record, event, Facts(executor_fenced=True)),
    )
    sweep = MemoryTaskStore.sweep

    async def unfenced(
        self: MemoryTaskStore, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        report = await sweep(self, executor_id, at_ms, suspect=suspect)
        for name in report.fenced:
            if name in self._executors:
                self._executors[name].fenced = False
        return report

    patch.setattr(MemoryTaskStore, "sweep", unfenced)


def resume_without_compare_and_set(patch: Patch) -> None:
    """Whoever resumes begins the next attempt, whatever happened since they looked."""
    started = _lifecycle._attempt_started

    def always(record: TaskRecord, event: Any, facts: Facts) -> TaskRecord:
        if record.status is TaskStatus.RUNNING:
            record = evolved(record, status=TaskStatus.STOPPED)
        return started(record, attrs.evolve(event, expected_attempt=record.attempt), facts)

    patch.setattr(_lifecycle, "_attempt_started", always)


def cancelled_is_resumed(patch: Patch) -> None:
    """Cancelled is taken for stopped by a resume."""
    started = _lifecycle._attempt_started

    def also_cancelled(record: TaskRecord, event: Any, facts: Facts) -> TaskRecord:
        if record.status is TaskStatus.CANCELLED:
            record = evolved(record, status=TaskStatus.STOPPED, cancel_requested_at_ms=None)
        return started(record, event, facts)

    patch.setattr(_lifecycle, "_attempt_started", also_cancelled)


def success_beats_an_accepted_cancel(patch: Patch) -> None:
    """A body that succeeds although it was cancelled completes its task."""
    finished = _lifecycle._finished

    def success_first(record: TaskRecord, event: Finished, facts: Facts) -> TaskRecord:
        if event.outcome.status is TaskStatus.COMPLETED:
            record = evolved(record, cancel_requested_at_ms=None)
            event = attrs.evolve(event, cancel_requested_at_ms=None)
        return finished(record, event, facts)

    patch.setattr(_lifecycle, "_finished", success_first)


def gc_takes_what_may_be_resumed(patch: Patch) -> None:
    """Stopped counts as ended, resumable or not."""
    ended = property(lambda record: record.status is not TaskStatus.RUNNING)
    patch.setattr(TaskRecord, "has_ended", ended)


# ---- the end of an attempt ----------------------------------------------------------------------


def _deaf_to(reason: str) -> Bug:
    def bug(patch: Patch) -> None:
        stop = Slot.stop

        def deaf(self: Slot, why: str) -> None:
            if why != reason:
                stop(self, why)

        patch.setattr(Slot, "stop", deaf)

    bug.__name__ = f"deaf_to_{reason}"
    bug.__doc__ = f"A body is not cancelled for {reason}."
    return bug


def status_by_what_came_back(patch: Patch) -> None:
    """What a cancelled body returns counts, as if nobody had cancelled it."""

    def returned_first(end: BodyEnd, reasons: set[str], **more: Any) -> TaskResult | None:
        return outcome_of(end, reasons if end.raised is not None or not end.ran else set(), **more)

    patch.setattr(_supervision, "outcome_of", returned_first)


def the_slot_is_freed_too_early(patch: Patch) -> None:
    """A slot is freed, and who waits is woken, before the end is stored."""

    async def record(self: Ends, slot: Slot, attempt: int, outcome: TaskResult, *rest: Any) -> None:
        self._free(slot)
        await self._try_end(slot, self._finished(slot, attempt, outcome, *rest))

    patch.setattr(Ends, "record", record)


def no_shield_around_the_last_write(patch: Patch) -> None:
    """A caller that is gone takes the end of its foreground run along."""
    bound = StoreWaits.bound

    def unshielded(self: StoreWaits, seconds: float, **_: bool) -> trio.CancelScope:
        return bound(self, seconds)

    patch.setattr(StoreWaits, "bound", unshielded)


def ends_are_not_tried_again(patch: Patch) -> None:
    """A store that failed once is not asked again."""

    async def once(self: Ends, slot: Slot, event: Finished) -> None:
        await trio.lowlevel.checkpoint()
        self._free(slot)

    patch.setattr(Ends, "_retry_end", once)


def last_words_are_lost(patch: Patch) -> None:
    """What was not stored when the body ended is given up."""
    close = AttemptLog.close

    def silent(self: AttemptLog) -> tuple[int, str, Any]:
        offset, _, progress = close(self)
        return offset, "", progress

    patch.setattr(AttemptLog, "close", silent)


def every_end_is_announced(patch: Patch) -> None:
    """A foreground run is announced although its caller has the answer."""
    finished = Ends._finished

    def announced(self: Ends, *args: Any) -> Finished:
        return attrs.evolve(finished(self, *args), announce=True)

    patch.setattr(Ends, "_finished", announced)


def a_caller_that_is_gone_is_answered(patch: Patch) -> None:
    """A foreground run is not announced, also if its caller is gone."""
    finished = Ends._finished

    def only_background(self: Ends, slot: Slot, *args: Any) -> Finished:
        return attrs.evolve(finished(self, slot, *args), announce=slot.background)

    patch.setattr(Ends, "_finished", only_background)


def failures_leave_their_attempt(patch: Patch) -> None:
    """What a body raises goes on into its owner's nursery."""
    run_attempt = Supervisor.run_attempt

    async def leaking(self: Supervisor, slot: Slot, body: Any) -> Any:
        end, outcome = await run_attempt(self, slot, body)
        if slot.background and isinstance(end.raised, Exception):
            raise end.raised
        return end, outcome

    patch.setattr(Supervisor, "run_attempt", leaking)


def an_old_checkpoint_is_handed_out(patch: Patch) -> None:
    """A resume begins at the beginning."""
    init = BackgroundExecution.__init__

    def forgetful(self: BackgroundExecution, record: TaskRecord, *args: Any) -> None:
        init(self, evolved(record, checkpoint=None), *args)

    patch.setattr(BackgroundExecution, "__init__", forgetful)


# ---- the manager --------------------------------------------------------------------------------


def foreground_is_not_live(patch: Patch) -> None:
    """A run in its caller's task has no slot that anybody could find."""
    reserve, free = Supervisor.reserve, Supervisor.free

    def hidden(self: Supervisor, slot: Slot) -> None:
        reserve(self, slot)
        if not slot.background:
            del self.slots[slot.task_id]

    def freed(self: Supervisor, slot: Slot) -> None:
        self.slots.setdefault(slot.task_id, slot)
        free(self, slot)

    patch.setattr(Supervisor, "reserve", hidden)
    patch.setattr(Supervisor, "free", freed)


def notices_are_never_acknowledged(patch: Patch) -> None:
    """What was taken comes again."""

    async def ignored(self: Announcer, *_: Any) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(Announcer, "_acknowledge", ignored)


def cancels_are_not_durable(patch: Patch) -> None:
    """The cancel of what runs here is not stored before it is answered."""
    mark = Canceller._mark

    async def local(self: Canceller, task_id: str, event: CancelRequested, *rest: Any) -> Any:
        slot = self._slots.get(task_id)
        if slot is None or slot.record is None:
            return await mark(self, task_id, event, *rest)
        return evolved(slot.record, cancel_requested_at_ms=event.at_ms)

    patch.setattr(Canceller, "_mark", local)


def cancels_from_elsewhere_are_not_seen(patch: Patch) -> None:
    """Nobody asks the store for cancels that another machine accepted."""
    patch.setattr(Liveness, "_see_marks", _nothing)


def a_tree_is_its_root(patch: Patch) -> None:
    """What is below a cancelled task goes on."""

    async def none(self: _Tree, _: str) -> dict[str, TaskRecord | None]:
        await trio.lowlevel.checkpoint()
        return {}

    patch.setattr(_Tree, "_children", none)


def owners_are_not_compared(patch: Patch) -> None:
    """Who asks for the id of a task is told how it stands."""
    settled = Looker.settled
    patch.setattr(Looker, "settled", lambda self, _, task_id: settled(self, None, task_id))


def owners_hear_of_each_other(patch: Patch) -> None:
    """A change is told to all subscribers."""
    changed = Hints.changed

    def to_all(self: Hints, owner: str, task_id: str, *, wake: bool = True) -> None:
        changed(self, owner, task_id, wake=wake)
        for subscribers in self._subscribers.values():
            for subscription in subscribers:
                subscription.put(task_id)

    patch.setattr(Hints, "changed", to_all)


def wait_returns_too_early(patch: Patch) -> None:
    """Who waits is answered as soon as anything is known."""

    async def at_once(self: Looker, owner: str, task_id: str) -> TaskSummary:
        return self.summary(await self.known(owner, task_id))

    patch.setattr(Looker, "wait", at_once)


def nobody_sweeps(patch: Patch) -> None:
    """Orphans are found by who looks at them only."""
    patch.setattr(Liveness, "_sweep_once", _nothing)


def a_lost_lease_is_not_noticed(patch: Patch) -> None:
    """Who was taken for dead goes on, and is not told."""

    def unnoticed(self: _Executor) -> None:
        del self

    patch.setattr(_Executor, "find_out", unnoticed)


def leases_are_not_renewed(patch: Patch) -> None:
    """A machine that is well is taken for dead after a while."""

    async def never(self: _Executor) -> None:
        self.renewal.cancel()
        await trio.lowlevel.checkpoint()

    patch.setattr(_Executor, "renew", never)


async def _nothing(*_: Any) -> None:
    await trio.lowlevel.checkpoint()


PLANTED: list[tuple[Bug, str]] = [
    (fenced_writers_are_taken, "promise [24]:"),
    (no_attempt_guard, "promise 4:"),
    (finish_is_not_compared, "promise [24]:"),
    (orphaned_clears_the_cancel, "promise 5:"),
    (the_living_are_orphaned, "promise [46]:"),
    (resume_without_compare_and_set, "promise 7:"),
    (cancelled_is_resumed, "promise 5:"),
    (success_beats_an_accepted_cancel, "promise 5:"),
    (gc_takes_what_may_be_resumed, "promise 3:"),
    (_deaf_to("cancel"), "promise 5:"),
    (_deaf_to("owner_close"), "promise 10:"),
    (_deaf_to("shutdown"), "promise 10:"),
    (status_by_what_came_back, "promise 2:"),
    (the_slot_is_freed_too_early, "promise 11:"),
    (no_shield_around_the_last_write, "promise 2:"),
    (ends_are_not_tried_again, "promise 11:"),
    (last_words_are_lost, "promise 2:"),
    (every_end_is_announced, "promise 11:"),
    (a_caller_that_is_gone_is_answered, "promise 11:"),
    (failures_leave_their_attempt, "promise 9:"),
    (an_old_checkpoint_is_handed_out, "promise 2:"),
    (foreground_is_not_live, "promise (5|10):"),
    (notices_are_never_acknowledged, "promise 11:"),
    (cancels_are_not_durable, "promise 5:"),
    (cancels_from_elsewhere_are_not_seen, "promise 5:"),
    (a_tree_is_its_root, "promise 5:"),
    (owners_are_not_compared, "promise 8:"),
    (owners_hear_of_each_other, "promise 8:"),
    (wait_returns_too_early, "promise 2:"),
    (nobody_sweeps, "promise 6:"),
    (a_lost_lease_is_not_noticed, "promise 6:"),
    (leases_are_not_renewed, "promise 6:"),
]


def machine_with(bug: Bug, patch: Patch) -> type[RuntimeMachine]:
    """Plant a bug; return the machine that runs on it."""
    bug(patch)
    return Runtime
