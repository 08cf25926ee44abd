"""`TaskStoreMachine`: does a store keep what `TaskStore` promises?

Several clients make calls at the same time, calls fail, lose their answer or are cancelled, clients
come, go and are killed. After every step all that the store shows is compared with a dictionary
model: there has to be one order of the calls that explains every answer and every record.
"""

from __future__ import annotations

from typing import Any

import attrs
import hypothesis.strategies as st
from hypothesis.stateful import rule

from trio_bgtasks import (
    CheckpointSaved,
    Event,
    Finished,
    InvalidValue,
    QuestionAnswered,
    QuestionAsked,
    Registered,
    Stopped,
    Success,
)

from . import _store_questions as question
from . import _store_view as view
from . import _store_wishes as wish
from ._store_calls import Apply, brief
from ._store_clients import CLIENTS, REQUESTS, STEPS, Made, Request
from ._store_disasters import StoreDisasters
from ._store_readers import StoreReaders
from ._store_scene import Wish
from ._store_view import broken
from ._trio_machine import in_trio


class TaskStoreMachine(StoreReaders, StoreDisasters):
    """A state machine that finds out whether a `TaskStore` keeps its promises.

    A violated promise is an AssertionError that says which one, and what was seen. Subclass it,
    override `new_place` and `open_store`, and let pytest find its test case::

        class MyMachine(TaskStoreMachine):
            @contextmanager
            def new_place(self):
                with tempfile.TemporaryDirectory() as folder:
                    yield Path(folder) / "tasks.json"

            @asynccontextmanager
            async def open_store(self, place):
                yield MyStore(place)


        TestMyStore = MyMachine.TestCase

    Override `kill` for a store that outlives its process or simulates several, `corrupt` for one
    whose rows can be damaged. That a store survives a process that dies in the middle of a write is
    shown if `kill` ends a real one; what it does at a power cut only tests of your own can show.

    Attributes:
        virtual_time: Set it to False for a store that uses threads or processes.
        cancelled_is_not_applied: Set it to True for a store that promises so; otherwise a cancelled
            call may have been applied, as a whole.
    """

    @rule(requests=st.lists(REQUESTS, min_size=1, max_size=4))
    @in_trio
    async def call(self, requests: list[Request]) -> None:
        """Some calls at the same time; those whose answer was lost are made again."""
        made = [self._made(request) for request in requests]
        await self._together(made)
        again = [Made(m.client, m.call) for m in made if m.fate == "answer lost"]
        if again:
            await self._together(again)

    @rule(
        start=wish.starts,
        wishes=st.lists(wish.events, max_size=2),
        read=wish.reads,
        steps=STEPS,
    )
    @in_trio
    async def cancel_callers(
        self, start: wish.Start, wishes: list[Wish], read: wish.Ask, steps: int
    ) -> None:
        """Some callers go away before they are answered, or shown notices: nothing half is done."""
        new, notices = attrs.evolve(start, again=None), attrs.evolve(read, what="notices")
        everybody: list[Wish] = [new, notices, *wishes]
        await self._together(
            [
                self._made(Request(wish, number, "cancelled", steps))
                for number, wish in enumerate(everybody)
            ]
        )

    @rule(wish=wish.events, clients=st.lists(CLIENTS, min_size=2, max_size=4))
    @in_trio
    async def race(self, wish: Wish, clients: list[int]) -> None:
        """Several clients want the same: of what excludes itself exactly one wins."""
        await self._together([self._made(Request(wish, client)) for client in clients])

    @rule(
        wishes=st.lists(st.tuples(wish.resumes | wish.cancels, CLIENTS), min_size=1, max_size=4),
        end=wish.ends,
        forget=wish.acknowledgements,
    )
    @in_trio
    async def resume_at_once(
        self,
        wishes: list[tuple[wish.Resume | wish.Cancel, int]],
        end: wish.End,
        forget: wish.Forget,
    ) -> None:
        """A new task stops, several clients resume or abandon it, and its end is read."""
        await self._alone(wish.PLAIN)
        task_id, record = self._scene(0).task(0)
        assert record is not None
        assert record.executor_id is not None  # it has just been started
        stop = Finished(self._now_ms(), record.executor_id, record.attempt, Stopped())
        await self._together([Made(self._one(0), Apply(task_id, stop))])
        await self._together(
            [self._made(Request(attrs.evolve(wish, task=0), client)) for wish, client in wishes]
        )
        await self._alone(attrs.evolve(end, task=0, late=0, who="its own"))
        await self._alone(attrs.evolve(forget, owner="ann"))

    @rule(
        asks=st.lists(question.inquiries, min_size=1, max_size=2),
        replies=st.lists(st.tuples(question.replies, CLIENTS), min_size=1, max_size=3),
        beside=wish.ends | wish.pieces | question.inquiries,
        again=question.inquiries,
    )
    @in_trio
    async def answer_at_once(
        self,
        asks: list[question.Inquiry],
        replies: list[tuple[question.Reply, int]],
        beside: wish.End | wish.Write | question.Inquiry,
        again: question.Inquiry,
    ) -> None:
        """A new task asks, several clients answer, while it goes on or ends; it is resumed."""
        await self._alone(wish.PLAIN)
        for ask in asks:
            await self._alone(attrs.evolve(ask, task=0, late=0, what="ask", who="its own"))
        calls = [Request(attrs.evolve(reply, task=0), client) for reply, client in replies]
        calls.append(Request(attrs.evolve(beside, task=0, late=0, who="its own"), 0))
        await self._together([self._made(call) for call in calls])
        resume = wish.Resume(0, 0, "its own", stranger=False, value={})
        for then in (resume, attrs.evolve(again, task=0, late=0, who="its own")):
            await self._alone(then)

    @rule(
        client=CLIENTS,
        pieces=st.lists(wish.pieces, min_size=1, max_size=4),
        offset=st.integers(-90, 90),
        limit=st.integers(1, 30),
    )
    @in_trio
    async def write(self, client: int, pieces: list[wish.Write], offset: int, limit: int) -> None:
        """A running task says more and more; its log is read from the middle, or its end."""
        await self._write(client, pieces)
        await self._read_output(0, offset, limit)

    @rule(
        parent=wish.starts,
        child=wish.starts,
        ends=st.lists(wish.ends, min_size=1, max_size=2),
        clear=wish.collections,
    )
    @in_trio
    async def collect_a_family(
        self, parent: wish.Start, child: wish.Start, ends: list[wish.End], clear: wish.Clear
    ) -> None:
        """Of a task and its child some end and are collected; ids, keys and numbers stay used."""
        await self._alone(attrs.evolve(parent, again=None))
        task_id, _ = self._scene(0).task(0)
        await self._alone(attrs.evolve(child, again=None, parent=int(task_id[1:])))
        for number, end in zip((1, 0), ends, strict=False):  # the parent first
            await self._alone(attrs.evolve(end, task=number, late=0, who="its own"))
        await self._alone(clear)
        if self._model.collected:
            await self._alone(attrs.evolve(child, again=len(self._model.records)))
        used = [key for key, by in self._model.keys.items() if by in self._model.collected]
        for owner, key in used:
            await self._alone(attrs.evolve(child, owner=owner, key=key, again=None))
        await self._alone(attrs.evolve(parent, again=None))

    @rule(value=st.sampled_from(wish.NOT_JSON))
    @in_trio
    async def refuse(self, value: Any) -> None:
        """What is not JSON is refused, wherever it is given."""
        client, now = self._one(0), self._now_ms()
        new = Registered(now, client.executor_id, "ann", "build", "a task")
        bad: list[tuple[str, Event]] = [
            ("new", attrs.evolve(new, args={"a": value})),
            ("new", attrs.evolve(new, metadata={"a": [value]})),
        ]
        for record in self._model.records.values():
            writer = now, record.executor_id or "", record.attempt
            if self._model.executors.get(writer[1]) == "alive" and not self._model.corrupt:
                bad.append((record.task_id, CheckpointSaved(*writer, value)))
                bad.append((record.task_id, Finished(*writer, Success([value]))))
                asked = QuestionAsked(*writer, "?", {"const": value})
                bad.append((record.task_id, asked))
                for question in record.open_questions:
                    answered = QuestionAnswered(now, question.question_id, [value])
                    bad.append((record.task_id, answered))
        for task_id, event in bad:
            try:
                answer = await client.store.apply(task_id, event)
            except InvalidValue:
                continue
            raise broken(view.VALUES, f"apply({task_id!r}, {brief(event)})\n  -> {brief(answer)}")
        await self._check("values that are not JSON were refused")
