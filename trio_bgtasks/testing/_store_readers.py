"""Reading a store: page by page under writes, in parts, and after what it gave was changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import hypothesis.strategies as st
import trio
from hypothesis.stateful import rule

from trio_bgtasks import TaskStatus

from . import _store_view as view
from . import _store_wishes as wish
from ._store_calls import MANY, OWNERS, lines, spoil
from ._store_clients import Made, Request, StoreClients
from ._store_reads import read_through
from ._store_scene import Wish
from ._store_view import broken
from ._trio_machine import in_trio


class StoreReaders(StoreClients):
    """The rules of a `TaskStoreMachine` that are about reading."""

    @rule()
    @in_trio
    async def spoil(self) -> None:
        """Everything that the store has handed out is changed: the store is not."""
        spoil(await self._check("nothing"))
        seen = await self._look([self._model], list(self._model.records))
        if wrong := view.complaint(self._model, seen):
            raise broken(view.OWN, f"{wrong[1]}\nafter what it had handed out was changed")

    @rule(
        reads=st.lists(st.tuples(wish.reads, wish.fates), min_size=1, max_size=4),
        writes=st.lists(wish.pieces | wish.events, max_size=2),
        steps=st.integers(0, 2),
        late=st.integers(0, 3),
    )
    @in_trio
    async def read_beside_writes(
        self,
        reads: list[tuple[wish.Ask, wish.Fate]],
        writes: list[Wish],
        steps: int,
        late: int,
    ) -> None:
        """Each read shows one moment between the writes; one that fails has changed nothing.

        The writes are cancelled: what is seen of one that is under way must be there in the end.
        """
        requests = [Request(read, n, fate, steps, late) for n, (read, fate) in enumerate(reads)]
        requests += [Request(write, n, "cancelled", steps) for n, write in enumerate(writes)]
        await self._together([self._made(request) for request in requests])

    @rule(
        limit=st.integers(1, 2),
        parent=st.sampled_from([None, None, None, 0, 1, 2]),
        status=st.sampled_from([*[None] * len(TaskStatus), *TaskStatus]),
        starts=st.lists(wish.starts, min_size=4, max_size=7),
        clear=st.none() | wish.collections,
    )
    @in_trio
    async def turn_pages(
        self,
        limit: int,
        parent: int | None,
        status: TaskStatus | None,
        starts: list[wish.Start],
        clear: wish.Clear | None,
    ) -> None:
        """Read page by page while records are created and collected."""
        mine = [attrs.evolve(start, owner="ann", parent=parent, again=None) for start in starts]
        for start in mine[:3]:
            await self._alone(start)
        before = self._listed(parent, status)
        wishes: list[Wish] = [*mine[3:], *([] if clear is None else [clear])]
        made = [self._made(Request(wish, number)) for number, wish in enumerate(wishes)]
        shown: list[tuple[int, str]] = []
        longest, steady = 0, True
        await self._pass_time()
        async with trio.open_nursery() as nursery:
            for steps, one in enumerate(made):
                nursery.start_soon(_after_steps, steps, self._make, one)
            after: int | None = 0
            while after is not None:
                store = self._one(len(shown)).store
                if parent is None:
                    page = await store.list_owner("ann", after=after, limit=limit, status=status)
                else:
                    page = await store.children(f"t{parent}", after=after, limit=limit)
                shown += [(record.seq, record.task_id) for record in page.records]
                longest = max(longest, len(page.records))
                steady = page.next_after is None or page.next_after > after
                after = page.next_after if steady else None
                await trio.lowlevel.checkpoint()
        await self._settle(made)
        kept = [task_id for task_id in before if task_id in self._listed(parent, status)]
        what = f"pages of {limit} showed {shown}\nwhile this was done:\n" + "\n".join(
            map(str, made)
        )
        if longest > limit or not steady:
            raise broken(view.PAGES, f"a page is too long, or followed by itself: {what}")
        if shown != sorted(set(shown)):
            raise broken(f"{view.PAGES}; {view.ORDER}", what)
        if missing := sorted(set(kept) - {task_id for _, task_id in shown}):
            raise broken(view.PAGES, f"{missing} were there all the time\n{what}")

    def _listed(self, parent: int | None, status: TaskStatus | None) -> list[str]:
        model = self._model
        return [
            record.task_id
            for record in (
                model.of_owner("ann") if parent is None else model.of_parent(f"t{parent}")
            )
            if record.task_id not in model.corrupt
            and (parent is not None or status in (None, record.status))
        ]

    @rule(
        owner=st.sampled_from(OWNERS),
        after=st.integers(0, 5),
        limit=st.integers(1, 3),
        status=st.none() | st.sampled_from(TaskStatus),
        task_type=st.sampled_from([None, "crawl", "build"]),
        offset=st.integers(-90, 90),
    )
    @in_trio
    async def read(
        self,
        owner: str,
        after: int,
        limit: int,
        status: TaskStatus | None,
        task_type: str | None,
        offset: int,
    ) -> None:
        """Parts of lists and logs, wherever they begin, are parts of the whole."""
        await self._read_output(after, offset, limit * 7)
        if not self._model.corrupt:  # how many of those a page counts is the store's
            await self._read_lists(owner, after, limit, status, task_type)

    async def _read_lists(
        self, owner: str, after: int, limit: int, status: TaskStatus | None, task_type: str | None
    ) -> None:
        store = self._one(after).store
        records = list(self._model.of_owner(owner))
        seq = records[after % len(records)].seq if records and after else 0
        page = await store.list_owner(
            owner, after=seq, limit=limit, status=status, task_type=task_type
        )
        rest = [
            record
            for record in records
            if record.seq > seq
            and status in (None, record.status)
            and task_type in (None, record.task_type)
        ]
        asked = f"list_owner({owner!r}, after={seq}, {limit=}, {status=}, {task_type=})"
        wrong = view.page_complaint(self._model, rest[:limit], page)
        if wrong is None and (page.next_after is None) != (len(rest) <= limit):
            wrong = view.PAGES, f"next_after is {page.next_after}, {len(rest)} are left"
        if wrong is not None:
            raise broken(wrong[0], f"{asked}: {wrong[1]}")
        notices = await store.notices(owner, limit=MANY)
        if (first := await store.notices(owner, limit=limit)) != notices[:limit]:
            raise broken(
                view.NOTICES,
                f"the first {limit} of {owner!r} should be\n{lines(notices[:limit])}\n"
                f"but:\n{lines(first)}",
            )
        owners = [other for other in self._model.owners() if other > owner][:limit]
        if (found_owners := await store.owners(after=owner, limit=limit)) != owners:
            raise broken(view.KEPT, f"owners after {owner!r} are {owners}, not {found_owners}")

    async def _read_output(self, number: int, offset: int, limit: int) -> None:
        task_id, record = self._scene(0).task(number)
        if record is None or task_id in self._model.corrupt:
            return
        store = self._one(number).store
        total = record.output_bytes
        start = max(0, total + offset) if offset < 0 else min(offset, total)
        page = await store.read_output(task_id, offset=offset, limit=limit)
        whole = await read_through(store, task_id)
        log = {at: char for one in whole for at, char in _characters(one.offset, one.text)}
        shown = dict(_characters(page.offset, page.text))
        first = min((at for at in log if at >= start), default=total)
        if (
            page.offset != first
            or any(log.get(at) != char for at, char in shown.items())
            or page.next_offset != page.offset + len(page.text.encode())
            or len(page.text.encode()) > max(limit, 4)
            or (first < total and not page.text)
            or page.total_bytes != total
        ):
            raise broken(
                view.OUTPUT,
                f"read_output({task_id!r}, {offset=}, {limit=})\n  -> {page}\n"
                f"the whole log: {whole}",
            )


# ---- small things -------------------------------------------------------------------------------


async def _after_steps(steps: int, make: Any, made: Made) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    await make(made)


def _characters(offset: int, text: str) -> Iterator[tuple[int, str]]:
    for char in text:
        yield offset, char
        offset += len(char.encode())
