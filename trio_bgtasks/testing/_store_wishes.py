"""What the clients of a `TaskStoreMachine` would like to do.

A wish is drawn before it is known what the store holds ("the newest task ends, under the attempt
before its last"); `Wish.call` makes of it the call of one client. Wishes are small so that failing
examples are.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias, get_args

import attrs
import hypothesis.strategies as st

from trio_bgtasks import (
    AttemptStarted,
    Cancelled,
    CancelRequested,
    CheckpointSaved,
    Event,
    ExternalRef,
    Failed,
    Finished,
    Orphaned,
    OutputAppended,
    Progress,
    ProgressReported,
    Registered,
    Stopped,
    Success,
    TaskRecord,
    TaskResult,
    ThreadMessageRef,
)

from ._store_calls import KEEP_BYTES, MANY, OWNERS, Acknowledge, Apply, Call, Collect
from ._store_model import StoreModel
from ._store_reads import Read, Reading

KEYS = ("key", "KEY")

# JSON that encodings like to change.
VALUES: tuple[dict[str, Any], ...] = (
    {},
    {"text": 'ünï "quoted" \\ 🎈 \n\t', "": [[], {}, [None, True, False]]},
    {"numbers": [0, -1, 2**63 - 1, -(2**63), 0.1, 1e300, -0.0, 5e-324, 1.0]},
)
NOT_JSON: tuple[Any, ...] = (float("nan"), float("inf"), {1: 2}, {1, 2}, "\ud800", "\0", 2**63)
OUTCOMES: tuple[TaskResult, ...] = (
    Success(),
    Stopped("later"),
    Failed("no", value=[1, {"a": []}]),
    Cancelled(),
    Stopped(),
    Success(VALUES[1], ThreadMessageRef("m", "1")),
    Success(VALUES[2], ExternalRef("file:///x")),
)

# Output is cut out of one text, so that late and repeated pieces say the same as the first.
_TEXT = "aé€🎈\n" * 200
_BYTES = _TEXT.encode()


Who: TypeAlias = Literal["its own", "mine", "a fenced one"]
Fate: TypeAlias = Literal["answered", "cancelled", "fails before", "answer lost", "killed"]


@attrs.frozen
class Scene:
    """What a wish is made a call of: the model, the caller's own executor, and the time."""

    model: StoreModel
    me: str
    now_ms: int

    def task(self, number: int) -> tuple[str, TaskRecord | None]:
        """Return a task that is there, counted from the newest one, if there is any."""
        ids = list(self.model.records)
        task_id = ids[-1 - number % len(ids)] if ids else "t0"
        return task_id, self.model.records.get(task_id)

    def executor(self, record: TaskRecord | None, who: Who) -> str:
        """Return the executor that writes; one that may be found dead at any time does not."""
        lives = self.model.executors
        if who == "a fenced one":
            return next((n for n in reversed(lives) if lives[n] == "fenced"), "nobody")
        own = None if record is None else record.executor_id
        return own if who == "its own" and own is not None and lives[own] != "dead" else self.me


class Wish(Protocol):
    """What a client would like to do."""

    def call(self, scene: Scene, /) -> Call:
        """Make a call of it."""
        ...


@attrs.frozen
class Start:
    """A new task; ``again``: under an id that was used before."""

    owner: str
    resumable: bool
    parent: int | None
    key: str | None
    value: Any
    again: int | None
    background: bool
    who: Who

    def call(self, scene: Scene, /) -> Call:
        """See `Wish.call`."""
        used = [*scene.model.records, *sorted(scene.model.collected)]
        new = self.again is None or not used
        return Apply(
            f"t{len(used)}" if new else used[(self.again or 0) % len(used)],
            Registered(
                scene.now_ms,
                scene.me if self.who == "its own" else scene.executor(None, self.who),
                self.owner,
                "crawl" if self.resumable else "build",
                "a task",
                background=self.background,
                supports_resume=self.resumable,
                parent_task_id=None if self.parent is None else f"t{self.parent}",
                args=self.value,
                metadata=self.value,
                idempotency_key=self.key,
            ),
        )


@attrs.frozen
class End:
    """The end of an attempt, with a last piece of output."""

    task: int
    outcome: TaskResult
    late: int
    who: Who
    announce: bool
    marked: bool
    skew: int

    def call(self, scene: Scene, /) -> Call:
        """See `Wish.call`."""
        task_id, record = scene.task(self.task)
        offset, text = _piece(record, self.skew, 3)
        return Apply(
            task_id,
            Finished(
                scene.now_ms,
                scene.executor(record, self.who),
                _attempt(record, self.late),
                self.outcome,
                cancel_requested_at_ms=scene.now_ms if self.marked else None,
                output_offset=offset,
                output=text,
                keep_bytes=KEEP_BYTES,
                announce=self.announce,
            ),
        )


@attrs.frozen
class Write:
    """Something that a running attempt has to say."""

    task: int
    what: Literal["output", "checkpoint", "progress"]
    late: int
    who: Who
    value: Any
    skew: int
    length: int

    def call(self, scene: Scene, /) -> Call:
        """See `Wish.call`."""
        task_id, record = scene.task(self.task)
        writer = scene.now_ms, scene.executor(record, self.who), _attempt(record, self.late)
        event: Event
        match self.what:
            case "checkpoint":
                event = CheckpointSaved(*writer, self.value)
            case "progress":
                event = ProgressReported(*writer, Progress(self.length, 20.5, "ünder way"))
            case "output":  # pragma: no branch (it is one of these)
                offset, text = _piece(record, self.skew, self.length)
                event = OutputAppended(*writer, offset, text, keep_bytes=KEEP_BYTES)
        return Apply(task_id, event)


@attrs.frozen
class Cancel:
    """A request to end a task."""

    task: int

    def call(self, scene: Scene, /) -> Call:
        """See `Wish.call`."""
        return Apply(scene.task(self.task)[0], CancelRequested(scene.now_ms))


@attrs.frozen
class Resume:
    """The next attempt of a task; ``stranger``: asked for by another owner."""

    task: int
    late: int
    who: Who
    stranger: bool
    value: Any

    def call(self, scene: Scene, /) -> Call:
        """See `Wish.call`."""
        task_id, record = scene.task(self.task)
        owner = "nobody" if record is None or self.stranger else record.owner_thread_id
        return Apply(
            task_id,
            AttemptStarted(
                scene.now_ms,
                scene.me if self.who == "its own" else scene.executor(record, self.who),
                owner,
                "" if record is None else record.task_type,
                _attempt(record, self.late),
                self.value,
            ),
        )


@attrs.frozen
class Claim:
    """The news that a task's executor is dead, true or not."""

    task: int
    who: Who

    def call(self, scene: Scene, /) -> Call:
        """See `Wish.call`."""
        task_id, record = scene.task(self.task)
        attempt = _attempt(record, 0)
        return Apply(task_id, Orphaned(scene.now_ms, scene.executor(record, self.who), attempt))


@attrs.frozen
class Forget:
    """An acknowledgement of some notices that were ever seen, whosever; or of all of the owner."""

    owner: str
    picks: tuple[int, ...]

    def call(self, scene: Scene, /) -> Call:
        """See `Wish.call`."""
        if not self.picks:
            waiting = (n.notice_id for n in scene.model.notices if n.owner == self.owner)
            return Acknowledge(self.owner, tuple(waiting))
        seen = sorted(scene.model.notice_ids, reverse=True) or [1 << 40]  # nobody's
        return Acknowledge(self.owner, tuple(seen[pick % len(seen)] for pick in self.picks))


@attrs.frozen
class Clear:
    """A collection of what has ended until now, or a moment ago."""

    owner: str | None
    older_ms: int
    limit: int

    def call(self, scene: Scene, /) -> Call:
        """See `Wish.call`."""
        return Collect(self.owner, scene.now_ms - self.older_ms, self.limit)


@attrs.frozen
class Ask:
    """A look at a task, at its owner or at the caller's own executor."""

    what: Reading
    task: int
    owner: str
    key: str

    def call(self, scene: Scene, /) -> Call:
        """See `Wish.call`."""
        what, (about, _) = self.what, scene.task(self.task)
        match what:
            case "load_by_key":
                return Read(what, self.owner, self.key)
            case "list_owner":
                about = self.owner
            case "notices":
                told = [notice.owner for notice in scene.model.notices] or [self.owner]
                about = told[self.task % len(told)]
            case "owners":
                about = ""
            case "cancel_marks":
                about = scene.me
            case "history" | "read_output" if about in scene.model.corrupt:
                what = "load"  # what else there is of it is the store's
            case _:
                pass
        return Read(what, about)


def _attempt(record: TaskRecord | None, late: int) -> int:
    return (1 if record is None else record.attempt) - late


def _piece(record: TaskRecord | None, skew: int, length: int) -> tuple[int, str]:
    """Return (offset, text): ``skew`` characters after the end of the output, before it if < 0."""
    end = 0 if record is None else record.output_bytes
    start = max(0, len(_BYTES[:end].decode()) + skew)
    return len(_TEXT[:start].encode()), _TEXT[start : start + length]


def _mostly(usual: Any, *others: Any, times: int = 4) -> st.SearchStrategy[Any]:
    """Draw ``usual`` ``times`` as often as the others together."""
    return st.sampled_from([usual] * times * len(others) + list(others))


PLAIN = Start("ann", True, None, None, {}, None, True, "its own")  # noqa: FBT003

_tasks = st.integers(0, 5)
_owners = st.sampled_from(OWNERS)
_values = st.sampled_from(VALUES)
_late = _mostly(0, 1, -1)
_who = _mostly("its own", "mine", "a fenced one")
_skews = _mostly(0, -3, 2, times=1)
_usually = _mostly(*(True, False))
_rarely = _mostly(*(False, True))

starts = st.builds(
    Start,
    owner=_owners,
    resumable=_usually,
    parent=st.none() | _tasks,
    key=_mostly(None, *KEYS, times=2),
    value=_values,
    again=_mostly(None, 0, 1, 2),
    background=st.booleans(),
    who=_who,
)
ends = st.builds(
    End,
    task=_tasks,
    outcome=st.sampled_from(OUTCOMES),
    late=_late,
    who=_who,
    announce=_usually,
    marked=_rarely,
    skew=_skews,
)
writes = st.builds(
    Write,
    task=_tasks,
    what=st.sampled_from(["output", "checkpoint", "progress"]),
    late=_late,
    who=_who,
    value=_values,
    skew=_skews,
    length=st.integers(0, 40),
)
pieces = st.builds(
    Write,
    task=st.just(0),
    what=_mostly("output", "checkpoint", "progress", times=1),
    late=_late,
    who=_who,
    value=_values,
    skew=_skews,
    length=st.integers(0, 40),
)
cancels = st.builds(Cancel, task=_tasks)
resumes = st.builds(
    Resume,
    task=_tasks,
    late=_late,
    who=_who,
    stranger=_rarely,
    value=_values,
)
claims = st.builds(Claim, task=_tasks, who=_who)
acknowledgements = st.builds(Forget, owner=_owners, picks=st.lists(_tasks, max_size=3).map(tuple))
collections = st.builds(
    Clear,
    owner=st.none() | _owners,
    older_ms=_mostly(0, 1, 3),
    limit=_mostly(MANY, 1, 2),
)
reads = st.builds(
    Ask,
    what=st.sampled_from(get_args(Reading)),
    task=_mostly(0, 1, 2, 3, times=1),
    owner=_owners,
    key=st.sampled_from(KEYS),
)
events: st.SearchStrategy[Wish] = st.one_of(starts, ends, writes, cancels, resumes, claims)
wishes: st.SearchStrategy[Wish] = st.one_of(
    starts, starts, ends, ends, writes, cancels, resumes, claims, acknowledgements, collections
)
fates: st.SearchStrategy[Fate] = _mostly(
    "answered", "cancelled", "cancelled", "answer lost", "fails before", times=1
)
