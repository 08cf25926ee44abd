"""Bugs around corrupt records, used ids, spawns and restarts, and two more, for `RuntimeMachine`.

As in ``runtime_managers`` and ``runtime_stores``; `PLANTED` says what the machine says of each.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import pytest
import trio

from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    CorruptRecord,
    Event,
    Finished,
    MemoryTaskStore,
    Registered,
    StartRequest,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskSummary,
    _ending,
)
from trio_bgtasks._cancelling import _Tree
from trio_bgtasks._ending import Ends
from trio_bgtasks._looking import Looker
from trio_bgtasks._slots import Slot
from trio_bgtasks._supervision import Supervisor
from trio_bgtasks.stores import ExecutorHandle
from trio_bgtasks.testing import CorruptibleStore
from trio_bgtasks.testing._history import Body

from .runtime_managers import Bug

Patch = pytest.MonkeyPatch


# ---- corrupt records ----------------------------------------------------------------------------


def one_hides_the_others(patch: Patch) -> None:
    """A list ends where a record is corrupt."""
    read = Looker._list

    async def short(
        self: Looker, owner: str, status: TaskStatus | None, task_type: str | None
    ) -> list[TaskRecord]:
        records = await read(self, owner, status, task_type)
        bad = (await self._store.list_owner(owner)).corrupt
        return [record for record in records if not bad or record.task_id < bad[0].task_id]

    patch.setattr(Looker, "_list", short)


def corrupt_is_unknown(patch: Patch) -> None:
    """A record that cannot be read is not there."""
    settled = Looker.settled

    async def forgiving(self: Looker, owner: str | None, task_id: str) -> TaskRecord | None:
        try:
            return await settled(self, owner, task_id)
        except CorruptRecord:
            return None

    patch.setattr(Looker, "settled", forgiving)


def lost_ends_are_tried_for_ever(patch: Patch) -> None:
    """Who waits for the end of what is corrupt waits for ever, and so does who closes its owner."""

    class Never(Exception):
        pass

    patch.setattr(_ending, "CorruptRecord", Never)


def what_is_live_is_left_alone(patch: Patch) -> None:
    """A tree leaves out what cannot be read, also if it runs here."""
    children = _Tree._children

    async def readable(self: _Tree, task_id: str) -> dict[str, TaskRecord | None]:
        found = await children(self, task_id)
        bad = {error.task_id for error in (await self._store.children(task_id)).corrupt}
        return {i: None if i in bad else record for i, record in found.items()}

    patch.setattr(_Tree, "_children", readable)


def a_sweep_stops(patch: Patch) -> None:
    """No orphan is ended once one of them cannot be."""
    end_orphans = CorruptibleStore._end_orphans

    def stopping(self: CorruptibleStore, suspect: str | None, at_ms: int) -> list[tuple[str, str]]:
        bad = [name for t, name in self._running.items() if t in self._damaged]
        return [] if any(map(self._is_fenced, bad)) else end_orphans(self, suspect, at_ms)

    patch.setattr(CorruptibleStore, "_end_orphans", stopping)


# ---- used ids and keys --------------------------------------------------------------------------


def collected_ids_are_free(patch: Patch) -> None:
    """Nothing is kept of what was collected."""
    forget = MemoryTaskStore._forget

    def wholly(self: MemoryTaskStore, gone: list[TaskRecord]) -> None:
        forget(self, gone)
        self._used_ids.clear()
        for record in gone:
            self._keys.pop((record.owner_thread_id, record.idempotency_key or ""), None)

    patch.setattr(MemoryTaskStore, "_forget", wholly)


def keys_are_not_kept(patch: Patch) -> None:
    """A key says nothing."""
    apply = MemoryTaskStore._apply

    def keyless(self: MemoryTaskStore, task_id: str, event: Event) -> TaskRecord:
        if isinstance(event, Registered):
            event = attrs.evolve(event, idempotency_key=None)
        return apply(self, task_id, event)

    patch.setattr(MemoryTaskStore, "_apply", keyless)


# ---- spawns and restarts ------------------------------------------------------------------------


def the_callers_scope_is_ignored(patch: Patch) -> None:
    """What is spawned runs in a scope of its own, whatever its caller gave to it."""
    start = BackgroundTaskManager._start

    def scopeless(
        self: BackgroundTaskManager, request: StartRequest, body: Body, _: trio.CancelScope | None
    ) -> Awaitable[TaskSummary]:
        return start(self, request, body, None)

    patch.setattr(BackgroundTaskManager, "_start", scopeless)


def a_close_forgets_the_callers_cancel(patch: Patch) -> None:
    """That its caller cancelled the scope of a body counts only if nothing ends it before it ends."""
    stop = Slot.stop

    def forgetful(self: Slot, reason: str) -> None:
        self.reasons.add(reason)
        stop(self, reason)

    patch.setattr(Slot, "stop", forgetful)


def a_cancelled_scope_takes_success_away(patch: Patch) -> None:
    """What succeeds in a scope that its caller cancelled counts as cancelled."""
    finished = Ends._finished

    def marked(self: Ends, slot: Slot, *end: Any) -> Finished:
        event = finished(self, slot, *end)
        mark = event.at_ms if "cancel" in slot.reasons else event.cancel_requested_at_ms
        return attrs.evolve(event, cancel_requested_at_ms=mark)

    patch.setattr(Ends, "_finished", marked)


def a_callers_cancel_is_never_late(patch: Patch) -> None:
    """Its caller may cancel the scope of a body that a close has cancelled: then it is cancelled."""
    cancel, note = trio.CancelScope.cancel, Slot.note_unasked_cancel
    late: list[trio.CancelScope] = []

    def cancelled(self: trio.CancelScope, reason: str | None = None) -> None:
        if reason is None and self.cancel_called:
            late.append(self)
        cancel(self, reason)

    def noted(self: Slot) -> None:
        note(self)
        if self.scope in late:
            self.reasons.add("cancel")

    patch.setattr(trio.CancelScope, "cancel", cancelled)
    patch.setattr(Slot, "note_unasked_cancel", noted)


def spawns_are_answered_too_early(patch: Patch) -> None:
    """Who spawns is answered before the start is stored."""
    spawn = BackgroundTaskManager.spawn

    async def early(self: BackgroundTaskManager, *args: Any, task_id: str, **options: Any) -> str:
        await trio.lowlevel.checkpoint()
        late: Any = partial(spawn, self, *args, task_id=task_id, **options)
        self._supervisor._start_soon(late, "spawn")
        return task_id

    patch.setattr(BackgroundTaskManager, "spawn", early)


def the_dead_are_followed_by_themselves(patch: Patch) -> None:
    """An executor that registers after a crash is given the id of the one that crashed."""
    executor = MemoryTaskStore.executor

    @asynccontextmanager
    async def again(self: MemoryTaskStore, *args: Any) -> AsyncGenerator[ExecutorHandle, None]:
        async with executor(self, *args) as handle:
            for other in list(self._executors.values()):
                if other.crashed and not other.fenced:
                    new = self._executors.pop(handle.executor_id)
                    new.executor_id = other.executor_id
                    self._executors[new.executor_id] = new
            yield handle

    patch.setattr(MemoryTaskStore, "executor", again)


# ---- bodies -------------------------------------------------------------------------------------


def bodies_begin_twice(patch: Patch) -> None:
    """A body that has failed is tried once more, as the same attempt."""
    start = Supervisor.start_background

    def started(self: Supervisor, slot: Slot, body: Body) -> None:
        async def twice(execution: BackgroundExecution, scope: trio.CancelScope) -> TaskResult:
            try:
                return await body(execution, scope)
            except Exception:  # noqa: BLE001 - whatever it was
                return await body(execution, scope)

        start(self, slot, twice)

    patch.setattr(Supervisor, "start_background", started)


def who_closes_an_owner_does_not_wait(patch: Patch) -> None:
    """Its bodies are told, and go on for as long as they like."""

    async def hasty(self: BackgroundTaskManager, owner_thread_id: str) -> None:
        await trio.lowlevel.checkpoint()
        for slot in self._supervisor.of_owner(owner_thread_id):
            slot.stop("owner_close")

    patch.setattr(BackgroundTaskManager, "close_owner", hasty)


PLANTED: list[tuple[Bug, str]] = [
    (one_hides_the_others, "promise 12"),
    (corrupt_is_unknown, "promise 12"),
    (lost_ends_are_tried_for_ever, "promise 1[02]:"),
    (what_is_live_is_left_alone, "promise 5"),
    (a_sweep_stops, "promise 6"),
    (collected_ids_are_free, "promise 3"),
    (keys_are_not_kept, "promise 3"),
    (the_callers_scope_is_ignored, "promise 5:"),
    (a_close_forgets_the_callers_cancel, "promise 5:"),
    (a_cancelled_scope_takes_success_away, "promise 9:"),
    (a_callers_cancel_is_never_late, "promise [29]:"),
    (spawns_are_answered_too_early, "promise 2:"),
    (the_dead_are_followed_by_themselves, "promise [46]:"),
    (bodies_begin_twice, "promise 1:"),
    (who_closes_an_owner_does_not_wait, "promise 10"),
]
