"""The stage of `LifecycleMachine`: records, the executors around them, and how a step is judged."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import attrs
from hypothesis import event as tell_hypothesis
from hypothesis.stateful import RuleBasedStateMachine, invariant

from trio_bgtasks import (
    Event,
    Facts,
    Orphaned,
    Refused,
    Registered,
    TaskRecord,
    TaskStatus,
    apply,
)

from ._lifecycle_log import LifecycleStep, check_promises, shown
from ._model import changed_fields, expected

Apply = Callable[[str, TaskRecord | None, Event, Facts], TaskRecord]


class LifecycleStage(RuleBasedStateMachine):
    """Records and executors, and what is checked after each step; it has no rules of its own."""

    apply: Apply = staticmethod(apply)

    def __init__(self) -> None:
        super().__init__()
        self.log: list[LifecycleStep] = []
        self.records: dict[str, TaskRecord] = {}
        self._told: dict[str, TaskRecord] = {}  # copies of the records, as they were answered
        self._ids: list[str] = []
        self._live = ["ex_0", "ex_1"]
        self._dead = ["ex_never"]
        self._used: set[str] = set()
        self._keys: dict[tuple[str, str], str] = {}

    # ---- what the draws stand for -----------------------------------------------------------

    def _task(self, recent: int) -> str:
        return self._ids[-1 - recent % len(self._ids)]

    def _writer(self, task: int, wrong: str | None) -> tuple[str, int]:
        """Return who writes and as which attempt: those of the record, or wrong ones."""
        record = self.records.get(self._task(task))
        attempt = 1 if record is None else record.attempt
        attempt += {"earlier": -1, "later": 1}.get(wrong or "", 0)
        if wrong == "dead executor":
            return self._dead[-1], attempt
        current = None if record is None else record.executor_id
        other = self._live[1] if current == self._live[0] else self._live[0]
        return (other if wrong == "other executor" else current or other), attempt

    # ---- one step ---------------------------------------------------------------------------

    def step(self, task_id: str, event: Event) -> None:
        """Tell ``apply`` one event, with the facts that a store would have read; log the answer."""
        before, facts = self.records.get(task_id), self._facts(task_id, event)
        after, refusal = self._asked(task_id, before, event, facts)
        dead, collected = frozenset(self._dead), frozenset(self._used)
        step = LifecycleStep(task_id, event, facts, before, after, refusal, dead, collected)
        tell_hypothesis(f"{type(event).__name__}: {'refused' if after is None else 'accepted'}")
        self.log.append(step)
        if after is not None:
            self.records[task_id], self._told[task_id] = after, deepcopy(after)
            if isinstance(event, Registered) and event.idempotency_key is not None:
                self._keys.setdefault((event.owner_thread_id, event.idempotency_key), task_id)
        self.check_against_table(step)

    def _asked(
        self, task_id: str, before: TaskRecord | None, event: Event, facts: Facts
    ) -> tuple[TaskRecord | None, Refused | None]:
        try:
            return self.apply(task_id, before, event, facts), None
        except Refused as refusal:
            return None, refusal

    def _facts(self, task_id: str, event: Event) -> Facts:
        fenced = getattr(event, "executor_id", None) in self._dead
        if not isinstance(event, Registered):
            return Facts(executor_fenced=fenced)
        parent = self.records.get(event.parent_task_id or "")
        return Facts(
            executor_fenced=fenced,
            id_used=task_id in self._used,
            key_used_by=self._keys.get((event.owner_thread_id, event.idempotency_key or "")),
            parent_cancelled=parent is not None
            and (parent.cancel_requested_at_ms is not None or parent.status == "cancelled"),
        )

    def check_against_table(self, step: LifecycleStep) -> None:
        """Compare one answer with the lifecycle that was written by hand, field by field."""
        want = expected(step.before, step.event, step.facts)
        said = f"the table of the lifecycle says {want!r}; {step}"
        if step.after is None:
            assert step.answer in want, said
            return
        assert isinstance(want, str), said
        changes: dict[str, Any] = changed_fields(step.before, step.event, want)
        model = step.after if step.before is None else step.before
        for name, value in attrs.asdict(attrs.evolve(model, **changes), recurse=False).items():
            seen = getattr(step.after, name)
            assert seen == value, f"{name} is {seen!r}, not {value!r}; {said}"

    # ---- the promises -----------------------------------------------------------------------

    @invariant()
    def promises(self) -> None:
        """Every promise that concerns records holds."""
        self._the_executor_is_named_exactly_while_it_runs()
        self._promise_2_an_answer_stays_true()
        self._promise_6_orphans_are_found()
        check_promises(self.log)

    def _promise_2_an_answer_stays_true(self) -> None:
        """What was answered is what the record says, until the next event is accepted."""
        for task_id, record in self.records.items():
            told = self._told[task_id]
            assert record == told, (
                f"promise 2 (a status answer is durable truth) is broken: "
                f"the record that was answered has changed by itself: {told} -> {record}"
            )

    def _promise_6_orphans_are_found(self) -> None:
        """The task of a dead executor can be ended; that of a live one cannot."""
        for record in self.records.values():
            if record.executor_id is None:
                continue
            dead = record.executor_id in self._dead
            event = Orphaned(record.updated_at_ms, record.executor_id, record.attempt)
            facts = Facts(executor_fenced=dead)
            found, refusal = self._asked(record.task_id, record, event, facts)
            ended = found is not None and found.status is not TaskStatus.RUNNING
            assert ended is dead, (
                f"promise 6 (an orphan is found, a live execution is never called one) is broken: "
                f"{record.executor_id} is {'dead' if dead else 'alive'}; task {record.task_id}: "
                f"{shown(record)} -> Orphaned -> {shown(found) if found else repr(refusal)}"
            )

    def _the_executor_is_named_exactly_while_it_runs(self) -> None:
        """Whoever looks for orphans finds every running record, and no other."""
        for record in self.records.values():
            running = record.status is TaskStatus.RUNNING
            named = record.executor_id is not None, record.completed_at_ms is None
            assert named == (running, running), (
                f"executor_id is set, and completed_at_ms is not, exactly while running: {record}"
            )
