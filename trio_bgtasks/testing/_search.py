"""Every interleaving of a small world over one `apply`: an explicit-state search, breadth first.

One task; two executors, each with a starter, a resumer and the attempts that it runs; a canceller;
a reaper; a host that collects. Every actor reads, and later tells the record what follows from
that, so anything may have happened in between. Nobody but `apply` is careful: actors tell
their event also where a manager would know better, so each guard has to hold by itself.

``docs/explanation/model.md`` maps each step to the code that it stands for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any, Literal, TypeAlias

import attrs

from trio_bgtasks import (
    AttemptStarted,
    Cancelled,
    CancelRequested,
    CheckpointSaved,
    Event,
    Facts,
    Failed,
    Finished,
    Orphaned,
    QuestionAnswered,
    Refused,
    Registered,
    Stopped,
    Success,
    TaskNotRunning,
    TaskNotStopped,
    TaskRecord,
    TaskResult,
    TaskStatus,
    apply,
)

from ._lifecycle_log import shown
from ._lifecycle_stage import Apply

Health = Literal["alive", "stalled", "dead"]

_TASK = "bg_1"
_OWNER = ("ann", "shell")
_ENDS: Mapping[str, TaskResult] = {
    "succeeded": Success("result"),
    "failed": Failed("error"),
    "stopped": Stopped("shutdown"),
    "been cancelled": Cancelled(),
}
_CHECKPOINT = "checkpoint"
_ATTEMPTS = 3  # after which nobody resumes: two resumers can be in each other's way then


_fields_of = attrgetter(  # arguments and metadata have no hash, and never change here
    *(field.name for field in attrs.fields(TaskRecord) if field.name not in ("args", "metadata"))
)


def _value(record: TaskRecord | None) -> Any:
    """Return what records are compared by."""
    return record and _fields_of(record)


@attrs.frozen
class _Attempt:
    """What an executor knows of an attempt that it runs."""

    executor_id: str
    number: int


@attrs.frozen
class _Executor:
    """A runtime, and what its callers are about to do. A stalled one does nothing."""

    name: str
    health: Health = "alive"
    fenced: bool = False
    resumes: int | None = None  # the attempt that its resumer has read


@attrs.frozen(cache_hash=True)
class _World:
    """A state of the search: record, store, actors; and what was promised to whom so far."""

    record: TaskRecord | None = attrs.field(default=None, eq=_value)
    resumable: bool = True
    collected: bool = False
    executors: tuple[_Executor, ...] = (_Executor("ex_1"), _Executor("ex_2"))
    attempts: tuple[_Attempt, ...] = ()
    orphan: tuple[str, int] | None = None  # executor and attempt, as the reaper read them
    # Of the history only what the promises speak of.
    started: int = 0
    running: tuple[str, int] | None = None
    cancelled: bool = False
    saved: bool = False

    def fenced(self, name: str) -> bool:
        return any(executor.fenced for executor in self.executors if executor.name == name)

    def changed(self, executor: _Executor, **changes: Any) -> _World:
        """Return the world with one executor changed."""
        new = attrs.evolve(executor, **changes)
        return attrs.evolve(
            self, executors=tuple(new if e is executor else e for e in self.executors)
        )


_Step: TypeAlias = tuple[str, _World]
"""What somebody did, in words, and the world after it."""


@attrs.frozen
class LifecycleSearch:
    """What `search_lifecycle` went through: distinct states, steps between them, longest way."""

    states: int
    steps: int
    depth: int

    def __str__(self) -> str:
        return (
            f"no promise is broken in {self.states:,} states, {self.steps:,} steps between them, "
            f"at most {self.depth} from the start"
        )


def search_lifecycle(apply: Apply = apply) -> LifecycleSearch:
    """Return the numbers of an exhaustive search in which ``apply`` broke no promise.

    Two executors start, run, resume and end attempts of one task, while it is cancelled, found
    orphaned and collected, and while executors crash, stall and wake up: every interleaving of what
    they read and what they then tell ``apply``. Of what one attempt says, only checkpoints and ends
    are told, and there is one owner; for the rest see `LifecycleMachine`.

    Args:
        apply: the library's own, or yours, with the same arguments. It has to be pure.

    Raises:
        AssertionError: a promise is broken. The text says which and lists the steps of a shortest
            way to it.
    """
    starts = [_World(), _World(resumable=False)]
    came_from: dict[_World, tuple[_World, str] | None] = dict.fromkeys(starts)
    waiting = deque((world, 0) for world in starts)
    actors = _Actors(apply)
    steps = depth = 0
    while waiting:
        world, depth = waiting.popleft()
        try:
            for said, after in actors.steps(world):
                steps += 1
                if after not in came_from:
                    came_from[after] = (world, said)
                    waiting.append((after, depth + 1))
        except _Broken as broken:
            way = [broken.step]
            while (before := came_from[world]) is not None:
                world, said = before
                way.append(said)
            lines = [f"{n:3}. {said}" for n, said in enumerate(reversed(way), 1)]
            raise AssertionError("\n".join([str(broken), *lines])) from None
    return LifecycleSearch(len(came_from), steps, depth)


class _Broken(Exception):
    """A promise is broken by the last step."""

    def __init__(self, promise: str, step: str) -> None:
        self.step = step
        super().__init__(f"{promise} is broken:")


class _Actors:
    """Everything that may happen next, and whether that keeps the promises."""

    def __init__(self, apply: Apply) -> None:
        self._apply = apply

    def steps(self, world: _World) -> Iterator[_Step]:
        for executor in world.executors:
            yield from self._fate(world, executor)
            if executor.health == "alive":
                yield from self._start(world, executor)
                yield from self._resume(world, executor)
                for attempt in world.attempts:
                    if attempt.executor_id == executor.name:
                        yield from self._work(world, attempt)
        yield from self._cancel(world)
        yield from self._reap(world)
        record = world.record
        if record is not None and record.has_ended:
            yield "the host collects the record", attrs.evolve(world, record=None, collected=True)

    # ---- who does what ----------------------------------------------------------------------

    def _fate(self, world: _World, executor: _Executor) -> Iterator[_Step]:
        name = executor.name
        if executor.health == "dead":
            return
        dead = world.changed(executor, health="dead", resumes=None)
        left = tuple(attempt for attempt in world.attempts if attempt.executor_id != name)
        yield f"{name} crashes", attrs.evolve(dead, attempts=left)
        if executor.health == "alive":
            yield f"{name} stalls", world.changed(executor, health="stalled")
        else:
            yield f"{name} wakes up", world.changed(executor, health="alive")

    def _start(self, world: _World, executor: _Executor) -> Iterator[_Step]:
        if world.started == 0 and executor is not world.executors[0]:
            return  # they are alike: one way round says it all
        event = Registered(0, executor.name, *_OWNER, "", supports_resume=world.resumable)
        yield self._begin(world, event, 1, f"{executor.name} starts the task")

    def _resume(self, world: _World, executor: _Executor) -> Iterator[_Step]:
        name, seen = executor.name, executor.resumes
        if seen is not None:
            event = AttemptStarted(0, name, *_OWNER, seen, {})
            said = f"{name} resumes the task after attempt {seen}"
            yield self._begin(world.changed(executor, resumes=None), event, seen + 1, said)
        elif world.record is not None and world.started < _ATTEMPTS:
            said = f"{name}, about to resume, reads: {shown(world.record)}"
            yield said, world.changed(executor, resumes=world.record.attempt)

    def _begin(self, world: _World, event: Event, number: int, said: str) -> _Step:
        said, after, accepted = self._tell(world, event, said)
        if accepted:
            assert isinstance(event, Registered | AttemptStarted)
            attempts = (*after.attempts, _Attempt(event.executor_id, number))
            after = attrs.evolve(after, attempts=attempts)
        return said, after

    def _work(self, world: _World, attempt: _Attempt) -> Iterator[_Step]:
        """Whatever it has told, it may tell again, as when the answer was lost."""
        run = (0, attempt.executor_id, attempt.number)
        who = f"attempt {attempt.number} of {attempt.executor_id}"
        saved = CheckpointSaved(*run, _CHECKPOINT)
        yield self._tell(world, saved, f"{who} saves a checkpoint")[:2]
        for end, outcome in _ENDS.items():
            yield self._tell(world, Finished(*run, outcome), f"{who} tells that it has {end}")[:2]
        marked = Finished(*run, Cancelled(), cancel_requested_at_ms=0)
        said = f"{who} tells that it was cancelled by a mark that could not be stored"
        yield self._tell(world, marked, said)[:2]

    def _cancel(self, world: _World) -> Iterator[_Step]:
        yield self._tell(world, CancelRequested(0), "the canceller asks for the end")[:2]

    def _reap(self, world: _World) -> Iterator[_Step]:
        for executor in world.executors:
            if executor.health != "alive" and not executor.fenced:
                yield f"the reaper fences {executor.name}", world.changed(executor, fenced=True)
        if world.orphan is not None:
            event = Orphaned(0, *world.orphan)
            said = f"the reaper ends attempt {event.attempt} of {event.executor_id}"
            said, after, _ = self._tell(attrs.evolve(world, orphan=None), event, said)
            yield said, after
        elif world.record is not None and world.record.executor_id is not None:
            orphan = (world.record.executor_id, world.record.attempt)
            said = f"the reaper reads: {shown(world.record)}"
            yield said, attrs.evolve(world, orphan=orphan)

    # ---- what comes of it -------------------------------------------------------------------

    def _tell(self, world: _World, event: Event, said: str) -> tuple[str, _World, bool]:
        """Tell one event to the record, in one transaction; check the answer."""
        fenced = not isinstance(event, CancelRequested | QuestionAnswered) and world.fenced(
            event.executor_id
        )
        facts = Facts(executor_fenced=fenced, id_used=world.collected)
        try:
            after = self._apply(_TASK, world.record, event, facts)
        except Refused as refusal:
            said = f"{said} -> {refusal!r}"
            broken = _why_not_refused(world, event, facts, refusal)
        else:
            said = f"{said} -> {shown(after)}"
            broken = _why_not_accepted(world, event, facts, after)
            if broken is None:
                return said, _accepted(world, event, after), True
        if broken is not None:
            raise _Broken(broken, said)
        return said, world, False


def _accepted(world: _World, event: Event, after: TaskRecord) -> _World:
    """Return the world in which an event was accepted, its history kept."""
    changes: dict[str, Any] = {"record": after}
    if isinstance(event, Registered | AttemptStarted):
        changes["started"] = world.started + 1
        changes["running"] = (event.executor_id, after.attempt)
    elif isinstance(event, CheckpointSaved):
        changes["saved"] = True
    elif isinstance(event, CancelRequested) or after.status is TaskStatus.CANCELLED:
        changes["cancelled"] = True
    if after.status is not TaskStatus.RUNNING:
        changes["running"] = None
    return attrs.evolve(world, **changes)


# ---- the promises -------------------------------------------------------------------------------

_ONE_WRITES = "promise 1 (exactly one attempt may write)"
_DURABLE = "promise 2 (a status answer is durable truth)"
_TERMINAL = "promise 3 (terminal records never change)"
_GROW = "promise 3 (attempts only grow, by exactly 1)"
_IDS = "promise 3 (ids are never used twice)"
_LATE = "promise 4 (a write from attempt n is refused once the record is past n)"
_FENCED = "promise 4 (a fenced executor changes nothing)"
_FINAL = "promise 5 (an accepted cancel is final)"
_LOST = "promise 5 (a cancel is accepted, or says what the task ended as)"
_LIVE = "promise 6 (a live execution is never called an orphan)"
_FOUND = "promise 6 (an orphan is always found)"
_RESUME = "promise 7 (exactly one of several concurrent resumes wins)"
_LOSERS = "promise 7 (the other resumes get the running status)"


def _why_not_accepted(world: _World, event: Event, facts: Facts, after: TaskRecord) -> str | None:
    """Return the promise that is broken by accepting an event."""
    before, running = world.record, after.status is TaskStatus.RUNNING
    starts = isinstance(event, Registered | AttemptStarted)
    saved = world.saved or isinstance(event, CheckpointSaved)
    cancelled = (
        world.cancelled
        or isinstance(event, CancelRequested)
        or (isinstance(event, Finished) and event.cancel_requested_at_ms is not None)
    )
    checks = {
        _TERMINAL: before is None or not before.status.is_terminal,
        _IDS: not isinstance(event, Registered) or world.started == 0,
        _RESUME: not isinstance(event, AttemptStarted) or event.expected_attempt == world.started,
        _ONE_WRITES: not starts or world.running is None,
        _LATE: isinstance(event, Registered | AttemptStarted | CancelRequested | QuestionAnswered)
        or world.running == (event.executor_id, event.attempt),
        _LIVE: not isinstance(event, Orphaned) or facts.executor_fenced,
        _FENCED: isinstance(event, Orphaned) or not facts.executor_fenced,
        _GROW: after.attempt == world.started + starts,
        _FINAL: not cancelled
        or (not starts and after.status in (TaskStatus.RUNNING, TaskStatus.CANCELLED)),
        _FOUND: (after.executor_id is not None) is running
        and not (running and isinstance(event, Orphaned)),
        _DURABLE: after.checkpoint == (_CHECKPOINT if saved else None)
        and (cancelled or not isinstance(event, Finished) or after.status == event.outcome.status),
    }
    return next((promise for promise, kept in checks.items() if not kept), None)


def _why_not_refused(world: _World, event: Event, facts: Facts, refusal: Refused) -> str | None:
    """Return the promise that is broken by refusing an event, or by what the refusal says."""
    record = world.record
    if record is None:
        return None
    status, says = record.status, getattr(refusal, "status", None)
    lost = isinstance(refusal, TaskNotRunning) and says == status and status.is_terminal
    told = isinstance(refusal, TaskNotStopped) and says == status
    free = status is TaskStatus.STOPPED and record.supports_resume and not facts.executor_fenced
    ours = (
        isinstance(event, CheckpointSaved | Finished | Orphaned)
        and world.running == (event.executor_id, event.attempt)
        and facts.executor_fenced is isinstance(event, Orphaned)
    )
    checks = {
        _LOST: not isinstance(event, CancelRequested) or lost,
        _LOSERS: not isinstance(event, AttemptStarted) or status is not TaskStatus.RUNNING or told,
        _RESUME: not isinstance(event, AttemptStarted)
        or not free
        or event.expected_attempt != world.started,
        _FOUND: not isinstance(event, Orphaned) or not ours,
        _DURABLE: isinstance(event, Orphaned) or not ours,
    }
    return next((promise for promise, kept in checks.items() if not kept), None)
