"""The lifecycle under events in any order, against the model by hand and the promises.

Tasks, executors, owners and keys are few, so that everything collides. Facts are read from the
model, as a store would read them. The invariants look at the log of what `apply` answered, never at
the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.property.by_hand import changed_fields, expected
from trio_bgtasks._errors import Refused
from trio_bgtasks._lifecycle import (
    AttemptStarted,
    CancelRequested,
    CheckpointSaved,
    Event,
    Facts,
    Finished,
    Orphaned,
    OutputAppended,
    ProgressReported,
    Registered,
    apply,
)
from trio_bgtasks._records import (
    Cancelled,
    Failed,
    Progress,
    Stopped,
    Success,
    TaskRecord,
    TaskResult,
    TaskStatus,
)

Apply = Callable[[str, TaskRecord | None, Event, Facts], TaskRecord]

recent = st.sampled_from([0, 0, 1])  # a task, counted from the newest
times = st.integers(0, 50)
# What is wrong with an event, one thing at a time; mostly nothing is.
right = [None] * 6
wrong_write = st.sampled_from([*right, "dead executor", "other executor", "earlier", "later"])
wrong_start = st.sampled_from([*right, "dead executor", "owner", "type", "earlier", "later"])
outcomes = st.sampled_from(
    [Success(1), Success(None), Failed("no", 2), Cancelled(), Stopped(), Stopped("shutdown")]
)


@attrs.frozen
class Step:
    """One event and its answer; ``after`` is None when it was refused."""

    task_id: str
    event: Event
    before: TaskRecord | None
    after: TaskRecord | None
    dead: frozenset[str]
    collected: frozenset[str]

    @property
    def executor_id(self) -> str | None:
        return getattr(self.event, "executor_id", None)


class LifecycleMachine(RuleBasedStateMachine):
    """Feeds events to `apply`; subclasses plant bugs and leave the model out."""

    apply: Apply = staticmethod(apply)
    compare = True

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[str, TaskRecord] = {}
        self.ids: list[str] = []
        self.live = ["ex_0", "ex_1"]
        self.dead = ["ex_never"]
        self.used: set[str] = set()
        self.keys: dict[tuple[str, str], str] = {}
        self.log: list[Step] = []

    # ---- rules ------------------------------------------------------------------------------

    @initialize()
    def one_task_to_begin_with(self) -> None:
        self.register(None, None, None, None, 0)

    @rule(
        old=st.none() | st.none() | recent,
        wrong=wrong_start,
        parent=st.none() | recent,
        key=st.sampled_from([None, None, "k1", "k2"]),
        at=times,
    )
    def register(
        self, old: int | None, wrong: str | None, parent: int | None, key: str | None, at: int
    ) -> None:
        parent_id = None if parent is None else self.task(parent)
        if old is None:
            self.ids.append(f"bg_{len(self.ids)}")
        event = Registered(
            at,
            self.dead[-1] if wrong == "dead executor" else self.live[at % 2],
            "bob" if wrong == "owner" else "ann",
            "agent_run" if wrong == "type" else "shell",
            "d",
            supports_resume=wrong != "later",
            parent_task_id=parent_id,
            idempotency_key=key,
        )
        self.step(self.task(old or 0), event)

    @rule(task=recent, wrong=wrong_write, offset=st.integers(0, 20), at=times)
    def write(self, task: int, wrong: str | None, offset: int, at: int) -> None:
        run = (at, *self.writer(task, wrong))
        writes: list[Event] = [
            CheckpointSaved(*run, {"at": at}),
            ProgressReported(*run, Progress(at)),
            OutputAppended(*run, offset, "é" * (offset % 4)),
        ]
        self.step(self.task(task), writes[offset % 3])

    @rule(
        task=recent,
        wrong=wrong_write,
        outcome=outcomes,
        mark=st.sampled_from([None, None, None, 7]),
        at=times,
    )
    def finish(
        self, task: int, wrong: str | None, outcome: TaskResult, mark: int | None, at: int
    ) -> None:
        run = self.writer(task, wrong)
        event = Finished(at, *run, outcome, mark, output_offset=3, output="end")
        self.step(self.task(task), event)

    @rule(task=recent, at=times)
    def cancel(self, task: int, at: int) -> None:
        self.step(self.task(task), CancelRequested(at))

    @rule(which=st.integers(0, 1))
    def fence(self, which: int) -> None:
        """An executor dies; a fresh one takes its place."""
        self.dead.append(self.live[which])
        self.live[which] = f"ex_{len(self.dead) + 1}"

    @rule(task=recent, wrong=wrong_write, at=times)
    def orphan(self, task: int, wrong: str | None, at: int) -> None:
        self.step(self.task(task), Orphaned(at, *self.writer(task, wrong)))

    @rule(task=recent, wrong=wrong_start, at=times)
    def resume(self, task: int, wrong: str | None, at: int) -> None:
        record = self.records.get(self.task(task))
        _, attempt = self.writer(task, wrong)
        event = AttemptStarted(
            at,
            self.dead[-1] if wrong == "dead executor" else self.live[at % 2],
            "carl" if wrong == "owner" or record is None else record.owner_thread_id,
            "other" if wrong == "type" or record is None else record.task_type,
            attempt,
            {"at": at},
        )
        self.step(self.task(task), event)

    @rule(
        task=recent,
        cancelled=st.booleans(),
        outcome=st.none() | st.just(Stopped()) | outcomes,
        at=times,
    )
    def end_and_resume(
        self,
        task: int,
        cancelled: bool,  # noqa: FBT001
        outcome: TaskResult | None,
        at: int,
    ) -> None:
        """The way through which most mistakes are found: blind draws seldom go all of it."""
        record = self.records.get(self.task(task))
        if cancelled:
            self.cancel(task, at)
        if outcome is not None:
            self.finish(task, None, outcome, None, at)
        elif record is not None and record.executor_id in self.live:
            self.fence(self.live.index(record.executor_id))
            self.orphan(task, None, at)
        self.resume(task, None, at)

    @rule(task=recent, again=st.booleans())
    def collect(self, task: int, again: bool) -> None:  # noqa: FBT001
        record = self.records.get(self.task(task))
        if record is not None and record.has_ended:
            del self.records[record.task_id]
            self.used.add(record.task_id)
            if again:
                self.register(task, None, None, None, 0)

    # ---- what the draws stand for -----------------------------------------------------------

    def task(self, recent: int) -> str:
        return self.ids[-1 - recent % len(self.ids)]

    def writer(self, task: int, wrong: str | None) -> tuple[str, int]:
        """Return who writes and as which attempt: those of the record, or wrong ones."""
        record = self.records.get(self.task(task))
        attempt = 1 if record is None else record.attempt
        attempt += {"earlier": -1, "later": 1}.get(wrong or "", 0)
        if wrong == "dead executor":
            return self.dead[-1], attempt
        current = None if record is None else record.executor_id
        other = self.live[1] if current == self.live[0] else self.live[0]
        return (other if wrong == "other executor" else current or other), attempt

    # ---- one step ---------------------------------------------------------------------------

    def step(self, task_id: str, what: Event) -> None:
        before = self.records.get(task_id)
        facts = self.facts(task_id, what)
        after: TaskRecord | None = None
        answer = ""
        try:
            after = self.apply(task_id, before, what, facts)
        except Refused as refusal:
            answer = type(refusal).__name__
        event(f"{type(what).__name__}: {answer or 'accepted'}")
        dead, collected = frozenset(self.dead), frozenset(self.used)
        self.log.append(Step(task_id, what, before, after, dead, collected))
        if after is not None:
            self.records[task_id] = after
            if isinstance(what, Registered) and what.idempotency_key is not None:
                self.keys.setdefault((what.owner_thread_id, what.idempotency_key), task_id)
        if self.compare:
            self.check_against_model(before, what, facts, after, answer)

    def facts(self, task_id: str, what: Event) -> Facts:
        fenced = getattr(what, "executor_id", None) in self.dead
        if not isinstance(what, Registered):
            return Facts(executor_fenced=fenced)
        parent = self.records.get(what.parent_task_id or "")
        return Facts(
            executor_fenced=fenced,
            id_used=task_id in self.used,
            key_used_by=self.keys.get((what.owner_thread_id, what.idempotency_key or "")),
            parent_cancelled=parent is not None
            and (parent.cancel_requested_at_ms is not None or parent.status == "cancelled"),
        )

    def check_against_model(
        self,
        before: TaskRecord | None,
        what: Event,
        facts: Facts,
        after: TaskRecord | None,
        answer: str,
    ) -> None:
        want = expected(before, what, facts)
        if after is None:
            assert answer in want
            return
        assert isinstance(want, str), f"accepted, but should be refused with {want}"
        changes: dict[str, Any] = changed_fields(before, what, want)
        model = after if before is None else before
        assert attrs.evolve(model, **changes) == after

    # ---- the promises, read off the log -----------------------------------------------------

    def accepted(self, task_id: str | None = None) -> Iterator[Step]:
        """Yield the accepted steps, of one task or of all."""
        for step in self.log:
            if step.after is not None and task_id in (None, step.task_id):
                yield step

    @invariant()
    def promise_3_terminal_records_never_change(self) -> None:
        for step in self.log:
            if step.before is not None and step.before.status.is_terminal:
                assert step.after is None

    @invariant()
    def promise_3_attempts_grow_by_exactly_one(self) -> None:
        current: dict[str, int] = {}
        for step in self.accepted():
            assert step.after is not None
            starts = isinstance(step.event, Registered | AttemptStarted)
            current[step.task_id] = current.get(step.task_id, 0) + starts
            assert step.after.attempt == current[step.task_id]

    @invariant()
    def promise_3_ids_and_keys_are_used_once(self) -> None:
        ids: list[str] = []
        keys: list[tuple[str, str]] = []
        for step in self.accepted():
            if isinstance(step.event, Registered):
                ids.append(step.task_id)
                if step.event.idempotency_key is not None:
                    keys.append((step.event.owner_thread_id, step.event.idempotency_key))
        assert len(ids) == len(set(ids))
        assert len(keys) == len(set(keys))

    @invariant()
    def promise_4_only_the_running_attempt_writes(self) -> None:
        for task_id in {step.task_id for step in self.log}:
            running: tuple[str, int] | None = None
            attempt = 0
            for step in self.accepted(task_id):
                match step.event:
                    case Registered() | AttemptStarted():
                        assert running is None
                        attempt += 1
                        running = (step.event.executor_id, attempt)
                    case CancelRequested():
                        pass
                    case _:
                        assert running == (step.event.executor_id, step.event.attempt)
                assert step.after is not None
                if step.after.status is not TaskStatus.RUNNING:
                    running = None

    @invariant()
    def promise_4_a_fenced_executor_changes_nothing(self) -> None:
        for step in self.accepted():
            if isinstance(step.event, Orphaned):
                assert step.executor_id in step.dead
            else:
                assert step.executor_id not in step.dead

    @invariant()
    def promise_5_an_accepted_cancel_is_final(self) -> None:
        cancelled: set[str] = set()
        for step in self.accepted():
            assert step.after is not None
            if isinstance(step.event, Registered):
                assert step.event.parent_task_id not in cancelled - step.collected
            if isinstance(step.event, CancelRequested):
                cancelled.add(step.task_id)
            if step.after.status is TaskStatus.CANCELLED:
                cancelled.add(step.task_id)
            if step.task_id in cancelled:
                assert not isinstance(step.event, AttemptStarted)
                assert step.after.status in (TaskStatus.RUNNING, TaskStatus.CANCELLED)

    @invariant()
    def the_executor_is_named_exactly_while_it_runs(self) -> None:
        for record in self.records.values():
            running = record.status is TaskStatus.RUNNING
            assert (record.executor_id is not None) is running
            assert (record.completed_at_ms is None) is running


TestLifecycle = LifecycleMachine.TestCase
TestLifecycle.settings = settings(stateful_step_count=40, max_examples=150, deadline=None)


# ---- planted bugs -------------------------------------------------------------------------------


def _late_end_is_taken(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    if isinstance(what, Finished) and record is not None:
        what = attrs.evolve(what, attempt=record.attempt)
    return apply(task_id, record, what, facts)


def _fence_is_ignored(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    fenced = isinstance(what, Orphaned) and facts.executor_fenced
    return apply(task_id, record, what, attrs.evolve(facts, executor_fenced=fenced))


def _live_task_is_reaped(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    fenced = isinstance(what, Orphaned) or facts.executor_fenced
    return apply(task_id, record, what, attrs.evolve(facts, executor_fenced=fenced))


def _cancel_is_lost_in_a_crash(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    if isinstance(what, Orphaned) and record is not None:
        record = attrs.evolve(record, cancel_requested_at_ms=None)
    return apply(task_id, record, what, facts)


def _late_success_beats_a_cancel(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    after = apply(task_id, record, what, facts)
    if isinstance(what, Finished) and isinstance(what.outcome, Success):
        return attrs.evolve(after, status=TaskStatus.COMPLETED)
    return after


def _ended_task_is_resumed(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    if isinstance(what, AttemptStarted) and record is not None and record.has_ended:
        record = attrs.evolve(record, status=TaskStatus.STOPPED, executor_id=None)
    return apply(task_id, record, what, facts)


def _resume_keeps_the_number(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    after = apply(task_id, record, what, facts)
    if isinstance(what, AttemptStarted):
        return attrs.evolve(after, attempt=after.attempt - 1)
    return after


def _collected_id_is_used_again(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    return apply(task_id, record, what, attrs.evolve(facts, id_used=False))


def _key_starts_twice(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    return apply(task_id, record, what, attrs.evolve(facts, key_used_by=None))


def _child_of_a_cancelled_parent_starts(
    task_id: str, record: TaskRecord | None, what: Event, facts: Facts
) -> TaskRecord:
    return apply(task_id, record, what, attrs.evolve(facts, parent_cancelled=False))


@pytest.mark.parametrize(
    "bug",
    [
        _late_end_is_taken,
        _fence_is_ignored,
        _live_task_is_reaped,
        _cancel_is_lost_in_a_crash,
        _late_success_beats_a_cancel,
        _ended_task_is_resumed,
        _resume_keeps_the_number,
        _collected_id_is_used_again,
        _key_starts_twice,
        _child_of_a_cancelled_parent_starts,
    ],
)
def test_the_promises_alone_find_planted_bugs(bug: Apply) -> None:
    """Without the model, the invariants find every bug of a known class."""

    class Planted(LifecycleMachine):
        apply = staticmethod(bug)
        compare = False

    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            Planted,
            settings=settings(
                derandomize=True,
                max_examples=500,
                stateful_step_count=40,
                phases=[Phase.generate],
                deadline=None,
                report_multiple_bugs=False,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            ),
        )
