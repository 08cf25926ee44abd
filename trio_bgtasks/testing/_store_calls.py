"""The writes of a store, made and played on the model; and how calls are told to people."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Iterable
from typing import Any, Protocol

import attrs

from trio_bgtasks import (
    Event,
    Notice,
    TaskRecord,
    TaskStore,
    TaskSummary,
)
from trio_bgtasks.stores import SweepReport

from ._store_model import StoreModel

MANY = 1000  # more than there is of anything in one example
OWNERS = ("ann", "bob", "éva")
KEEP_BYTES = 64  # of each output log
SPOILED = "changed by the caller, after the call"  # a store that made no copy shows it


# ---- calls --------------------------------------------------------------------------------------


class Call(Protocol):
    """One call of a store."""

    @property
    def method(self) -> str:
        """The name of the method that is called."""
        ...

    def make(self, store: TaskStore) -> Awaitable[Any]:
        """Make the call, with arguments of its own."""
        ...

    def play(self, model: StoreModel, answer: Any) -> Any:
        """Do to the model what the call does; return (or raise) what it is to be answered.

        ``answer`` is what it was answered, for where the store has a choice; None: nobody knows.
        """
        ...


@attrs.frozen
class Apply:
    """One event for one task."""

    task_id: str
    event: Event
    method = "apply"

    def __str__(self) -> str:
        return f"apply({self.task_id!r}, {brief(self.event)})"

    async def make(self, store: TaskStore) -> Any:
        """See `Call.make`; what was given is changed afterwards, as its owner may."""
        event = copy.deepcopy(self.event)
        try:
            return await store.apply(self.task_id, event)
        finally:
            spoil(event)

    def play(self, model: StoreModel, answer: Any) -> Any:
        """See `Call.play`."""
        del answer
        return model.apply(self.task_id, self.event)


@attrs.frozen
class Acknowledge:
    """Some notices of one owner; also such as are not there any more, or another's."""

    owner: str
    notice_ids: tuple[int, ...]
    method = "acknowledge"

    def __str__(self) -> str:
        return f"acknowledge({self.owner!r}, {list(self.notice_ids)})"

    async def make(self, store: TaskStore) -> Any:
        """See `Call.make`."""
        return await store.acknowledge(self.owner, list(self.notice_ids))

    def play(self, model: StoreModel, answer: Any) -> Any:
        """See `Call.play`."""
        del answer
        model.acknowledge(self.owner, self.notice_ids)


@attrs.frozen
class Collect:
    """What has ended, of one owner or of all."""

    owner: str | None
    before_ms: int
    limit: int
    method = "collect"

    def __str__(self) -> str:
        return f"collect({self.owner!r}, ended_before_ms={self.before_ms}, limit={self.limit})"

    async def make(self, store: TaskStore) -> Any:
        """See `Call.make`."""
        return await store.collect(self.owner, ended_before_ms=self.before_ms, limit=self.limit)

    def play(self, model: StoreModel, answer: Any) -> Any:
        """See `Call.play`; which ones are taken first, and damaged ones at all, is the store's."""
        may = model.collectable(self.owner, self.before_ms)
        taken = may if answer is None else set[str](answer)
        must = may - model.corrupt
        if not taken <= may or len(taken) > self.limit or (must and not taken):
            return f"{'some' if must else 'none'} of {sorted(may)}, at most {self.limit}"
        model.collect(taken)
        return answer


@attrs.frozen
class Sweep:
    """A sweep; unlike the other calls it is several transactions."""

    executor_id: str
    at_ms: int
    suspect: str | None
    method = "sweep"

    def __str__(self) -> str:
        return f"sweep(suspect={self.suspect!r})"

    async def make(self, store: TaskStore) -> Any:
        """See `Call.make`."""
        return await store.sweep(self.executor_id, self.at_ms, suspect=self.suspect)

    def play(self, model: StoreModel, answer: Any) -> SweepReport:
        """See `Call.play`; what several sweeps at once share among them is for the caller."""
        del answer
        return model.sweep(self.executor_id, self.at_ms, self.suspect)


@attrs.frozen
class Unsaid:
    """What stands for an answer that there is none."""

    why: str


def fields(thing: object) -> tuple[attrs.Attribute[Any], ...]:
    """Return the fields of an object that attrs made; none for any other."""
    kind: Any = type(thing)
    return attrs.fields(kind) if attrs.has(kind) else ()


def brief(thing: Any) -> str:  # noqa: PLR0911 - a table
    """Return a text for people: of a record and a notice what matters, else what is no default."""
    parts: Any = thing
    match thing:
        case Unsaid():
            return thing.why
        case BaseException():
            return f"{type(thing).__name__}: {thing}"
        case TaskRecord() | TaskSummary():
            return f"{thing.task_id}: {thing.status}, attempt {thing.attempt}"
        case Notice():
            return f"notice {thing.notice_id} of {brief(thing.summary)}"
        case dict():
            return f"{{{', '.join(f'{key!r}: {brief(value)}' for key, value in parts.items())}}}"
        case list():
            return f"[{', '.join(map(brief, parts))}]"
        case _ if not fields(thing):
            return repr(thing)
        case _:
            shown = [
                f"{field.name}={brief(value)}"
                for field in fields(thing)
                if (value := getattr(thing, field.name)) not in (field.default, {})
            ]
            return f"{type(thing).__name__}({', '.join(shown)})"


def lines(things: Iterable[object]) -> str:
    """Return a line for each thing."""
    return "\n".join(f"  {brief(thing)}" for thing in things) or "  nothing"


def spoil(thing: Any) -> None:
    """Change everything in ``thing`` that can be changed."""
    parts: Any = thing
    if isinstance(thing, dict):
        spoil([*parts.values()])
        parts[SPOILED] = True
    elif isinstance(thing, list | tuple):
        for item in parts:
            spoil(item)
        if isinstance(thing, list):
            parts.append(SPOILED)
    else:
        for field in fields(thing):
            spoil(getattr(thing, field.name))
