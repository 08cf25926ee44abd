"""The reads of a store: each as a call, and all of them for a look at everything."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import attrs

from trio_bgtasks import CorruptRecord, OutputPage, TaskRecord, TaskStore

from ._store_calls import MANY, OWNERS, Unsaid
from ._store_model import StoreModel
from ._store_view import OUTPUT, Record, View, broken, complaint

Reading: TypeAlias = Literal[
    "load",
    "load_by_key",
    "list_owner",
    "children",
    "history",
    "read_output",
    "notices",
    "owners",
    "cancel_marks",
]


@attrs.frozen
class Disagreement(Unsaid):
    """What stands for the answer of a read that should have been another one."""

    promise: str


@attrs.frozen
class Read:
    """One read of all that there is of a task, an owner or an executor: of ``about``."""

    method: Reading
    about: str = ""
    key: str = ""

    def __str__(self) -> str:
        return f"{self.method}({', '.join(repr(word) for word in (self.about, self.key) if word)})"

    async def make(self, store: TaskStore) -> View:
        """See `Call.make`; the answer is a view of this alone."""
        view = View()
        await self.show(store, view)
        return view

    def play(self, model: StoreModel, answer: Any) -> Any:
        """See `Call.play`."""
        if answer is None:
            return None
        wrong = complaint(model.copy(), answer)  # what it learns may be only half of it
        return answer if wrong is None else Disagreement(f"otherwise: {wrong[1]}", wrong[0])

    async def show(self, store: TaskStore, view: View) -> None:
        """Add what it is answered to a view."""
        about = self.about
        match self.method:
            case "load":
                view.records[about] = await _readable(store.load(about))
            case "load_by_key":
                record = await _readable(store.load_by_key(about, self.key))
                view.by_key[about, self.key] = None if record is None else record.task_id
            case "list_owner":
                view.of_owner[about] = await store.list_owner(about, limit=MANY)
            case "children":
                view.of_parent[about] = await store.children(about, limit=MANY)
            case "history":
                view.history[about] = await store.history(about)
            case "read_output":
                view.pages[about] = await store.read_output(about, offset=0, limit=MANY)
            case "notices":
                view.notices[about] = await store.notices(about, limit=MANY)
            case "owners":
                view.owners = await store.owners(limit=MANY)
            case "cancel_marks":  # pragma: no branch (it is one of these)
                view.marks[about] = await store.cancel_marks(about)


async def _readable(reading: Awaitable[TaskRecord | None]) -> Record:
    try:
        return await reading
    except CorruptRecord as error:
        return error


async def look(store: TaskStore, models: Sequence[StoreModel], touched: Iterable[str]) -> View:
    """Read everything about the ``touched`` tasks, and the lists of all.

    The models are what may be so at this moment: they differ in what was touched.
    """
    model, view = models[0], View()
    reads = [Read("owners")]
    for task_id in touched:
        reads += [Read("load", task_id), Read("children", task_id)]
        if task_id not in model.corrupt:
            reads.append(Read("history", task_id))
            view.output[task_id] = await read_through(store, task_id)
    keys = dict.fromkeys(key for model in models for key in model.keys)
    reads += [Read("load_by_key", owner, key) for owner, key in keys]
    for owner in OWNERS:
        reads += [Read("list_owner", owner), Read("notices", owner)]
        view.background[owner] = await store.notices(owner, limit=2, background_only=True)
    reads += [Read("cancel_marks", executor_id) for executor_id in [*model.executors][-4:]]
    for read in reads:
        await read.show(store, view)
    return view


async def read_through(store: TaskStore, task_id: str) -> list[OutputPage]:
    """Read the whole output log, page by page."""
    pages: list[OutputPage] = []
    offset = 0
    while not pages or offset < pages[-1].total_bytes:
        page = await store.read_output(task_id, offset=offset, limit=25)
        if page.next_offset <= offset and page.total_bytes > offset:
            raise broken(
                OUTPUT, f"read_output({task_id!r}, offset={offset}) gets no further: {page}"
            )
        pages.append(page)
        offset = page.next_offset
    return pages
