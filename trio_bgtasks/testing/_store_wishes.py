"""What the clients of a `TaskStoreMachine` would like to do.

A wish is drawn before it is known what the store holds ("the newest task ends, under the attempt
before its last"); `Wish.call` makes of it the call of one client. Wishes are small so that failing
examples are.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

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
from ._store_questions import inquiries, replies
from ._store_reads import Read, Reading
from ._store_scene import VALUES, Scene, Who, Wish, attempt_of, lates, mostly, tasks, values, whose

KEYS = ("key", "KEY")

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


Fate: TypeAlias = Literal["answered", "cancelled", "fails before", "answer lost", "killed"]


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
                attempt_of(record, self.late),
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
        writer = scene.now_ms, scene.executor(record, self.who), attempt_of(record, self.late)
        event: Event
        match self.what:
            case "checkpoint":
                there = () if record is None or self.skew else record.questions
                used = tuple(q.question_id for q in there if q.state != "open")
                event = CheckpointSaved(*writer, self.value, used)
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
                attempt_of(record, self.late),
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
        attempt = attempt_of(record, 0)
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


def _piece(record: TaskRecord | None, skew: int, length: int) -> tuple[int, str]:
    """Return (offset, text): ``skew`` characters after the end of the output, before it if < 0."""
    end = 0 if record is None else record.output_bytes
    start = max(0, len(_BYTES[:end].decode()) + skew)
    return len(_TEXT[:start].encode()), _TEXT[start : start + length]


PLAIN = Start("ann", True, None, None, {}, None, True, "its own")  # noqa: FBT003

_owners = st.sampled_from(OWNERS)
_skews = mostly(0, -3, 2, times=1)
_usually = mostly(*(True, False))
_rarely = mostly(*(False, True))

starts = st.builds(
    Start,
    owner=_owners,
    resumable=_usually,
    parent=st.none() | tasks,
    key=mostly(None, *KEYS, times=2),
    value=values,
    again=mostly(None, 0, 1, 2),
    background=st.booleans(),
    who=whose,
)
ends = st.builds(
    End,
    task=tasks,
    outcome=st.sampled_from(OUTCOMES),
    late=lates,
    who=whose,
    announce=_usually,
    marked=_rarely,
    skew=_skews,
)
writes = st.builds(
    Write,
    task=tasks,
    what=st.sampled_from(["output", "checkpoint", "progress"]),
    late=lates,
    who=whose,
    value=values,
    skew=_skews,
    length=st.integers(0, 40),
)
pieces = st.builds(
    Write,
    task=st.just(0),
    what=mostly("output", "checkpoint", "progress", times=1),
    late=lates,
    who=whose,
    value=values,
    skew=_skews,
    length=st.integers(0, 40),
)
cancels = st.builds(Cancel, task=tasks)
resumes = st.builds(
    Resume,
    task=tasks,
    late=lates,
    who=whose,
    stranger=_rarely,
    value=values,
)
claims = st.builds(Claim, task=tasks, who=whose)
acknowledgements = st.builds(Forget, owner=_owners, picks=st.lists(tasks, max_size=3).map(tuple))
collections = st.builds(
    Clear,
    owner=st.none() | _owners,
    older_ms=mostly(0, 1, 3),
    limit=mostly(MANY, 1, 2),
)
reads = st.builds(
    Ask,
    what=st.sampled_from(get_args(Reading)),
    task=mostly(0, 1, 2, 3, times=1),
    owner=_owners,
    key=st.sampled_from(KEYS),
)
events: st.SearchStrategy[Wish] = st.one_of(
    starts, ends, writes, cancels, resumes, claims, inquiries, replies
)
wishes: st.SearchStrategy[Wish] = st.one_of(
    *(starts, starts, ends, ends, writes, cancels, resumes, claims),
    *(inquiries, replies, acknowledgements, collections),
)
fates: st.SearchStrategy[Fate] = mostly(
    "answered", "cancelled", "cancelled", "answer lost", "fails before", times=1
)
