"""What the clients of a `TaskStoreMachine` ask, and answer."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import hypothesis.strategies as st

from trio_bgtasks import QuestionAnswered, QuestionAsked, QuestionsWithdrawn

from ._store_calls import Apply, Call
from ._store_scene import VALUES, Scene, Who, attempt_of, lates, mostly, values, whose

# 1 is not 1.0 and not true: these are other questions.
SCHEMAS: tuple[dict[str, Any], ...] = ({"const": 1}, {"const": 1.0}, {"const": True}, *VALUES[1:])


@attrs.frozen
class Inquiry:
    """A question of an attempt, or a withdrawal; other calls wait for all open ones, or none."""

    task: int
    what: Literal["ask", "withdraw"]
    schema: dict[str, Any]
    waits: Literal["all", "none"]
    late: int
    who: Who

    def call(self, scene: Scene, /) -> Call:
        """See `Wish.call`."""
        task_id, record = scene.task(self.task)
        there = () if record is None or self.waits == "none" else record.questions
        waiting = tuple(q.question_id for q in there if q.state == "open")
        used = tuple(q.question_id for q in there if q.state != "open")
        run = scene.now_ms, scene.executor(record, self.who), attempt_of(record, self.late)
        if self.what == "withdraw":
            return Apply(task_id, QuestionsWithdrawn(*run, waiting))
        return Apply(task_id, QuestionAsked(*run, "Sure, ünd why?", self.schema, waiting, used))


@attrs.frozen
class Reply:
    """An answer to a question, counted from the newest; also to one that cannot be answered."""

    task: int
    recent: int
    value: Any
    declined: bool

    def call(self, scene: Scene, /) -> Call:
        """See `Wish.call`."""
        task_id, record = scene.task(self.task)
        number = (0 if record is None else record.questions_asked) - self.recent
        answer = None if self.declined else self.value
        event = QuestionAnswered(scene.now_ms, f"q{number}", answer, self.declined)
        return Apply(task_id, event)


inquiries = st.builds(
    Inquiry,
    task=mostly(0, 1, 2, times=2),
    what=mostly("ask", "withdraw"),
    schema=st.sampled_from(SCHEMAS),
    waits=mostly("all", "none", times=2),
    late=lates,
    who=whose,
)
replies = st.builds(
    Reply,
    task=mostly(0, 1, 2, times=2),
    recent=mostly(0, 1, 2, -1, times=1),
    value=values,
    declined=mostly(*(False, True), times=2),
)
