"""`TaskStoreMachine`: does a store keep what `TaskStore` promises?

Several clients make calls at the same time, calls fail, lose their answer or are cancelled, clients
come, go and are killed. After every step all that the store shows is compared with a dictionary
model: there has to be one order of the calls that explains every answer and every record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import attrs
import hypothesis.strategies as st
import trio
from hypothesis import note
from hypothesis.stateful import precondition, rule

from trio_bgtasks import (
    CheckpointSaved,
    Event,
    Finished,
    InvalidValue,
    Orphaned,
    Registered,
    Stopped,
    Success,
    TaskStatus,
)
from trio_bgtasks.stores import SweepReport

from . import _store_view as view
from . import _store_wishes as wish
from ._store_calls import MANY, Apply, brief, lines, spoil
from ._store_clients import Client, Made, Request, StoreClients
from ._store_view import broken
from ._store_wishes import OWNERS, Wish
from ._trio_machine import in_trio

F = TypeVar("F", bound=Callable[..., Any])

_MOST_CLIENTS = 3
_clients = st.integers(0, _MOST_CLIENTS - 1)
_requests = st.builds(
    Request,
    wish=wish.wishes,
    client=_clients,
    fate=wish.fates,
    steps=st.integers(0, 3) | st.integers(0, 30),
)


def _can(name: str) -> Callable[[F], F]:
    """Let a rule be used where a subclass says how."""

    def overridden(self: TaskStoreMachine) -> bool:
        return getattr(type(self), name) is not getattr(StoreClients, name)

    return precondition(overridden)


class TaskStoreMachine(StoreClients):
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
    whose rows can be damaged. What a store must do at a power cut, and while its process dies in
    the middle of a write, only tests of your own can show.

    Attributes:
        virtual_time: Set it to False for a store that uses threads or processes.
        cancelled_is_not_applied: Set it to True for a store that promises so; otherwise a cancelled
            call may have been applied, as a whole.
    """

    @rule(how=st.sampled_from(["join", "leave", "reopen"]), number=_clients)
    @in_trio
    async def come_and_go(self, how: str, number: int) -> None:
        """A client opens the store, or closes it and is fenced; or all do, and one opens it."""
        if how == "join" and len(self._clients) < _MOST_CLIENTS:
            await self._join()
        elif how == "leave" and len(self._clients) > 1:
            await self._leave(self._one(number))
        else:
            for client in list(self._clients):
                await self._leave(client)
            await self._join()
        await self._check(f"clients of the store came and went ({how})")

    @_can("kill")
    @rule()
    @in_trio
    async def crash(self) -> None:
        """All clients are killed, and one opens the store again."""
        self._place = await self.kill(self._place, [c.executor_id for c in self._clients])
        for client in list(self._clients):
            await self._leave(client, dead=True)
        await self._join()
        await self._check("all who used the store were killed")

    @_can("corrupt")
    @rule(number=st.integers(0, 5))
    @in_trio
    async def damage(self, number: int) -> None:
        """A record cannot be read any more: it is called corrupt, and nothing else suffers."""
        task_id, record = self._scene(0).task(number)
        if record is not None:
            await self.corrupt(self._place, task_id)
            self._model.corrupt |= {task_id}
            await self._check(f"the record of {task_id!r} was damaged")

    # ---- calls --------------------------------------------------------------------------------

    @rule(requests=st.lists(_requests, min_size=1, max_size=4))
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
        steps=st.integers(0, 3) | st.integers(0, 30),
    )
    @in_trio
    async def cancel_callers(self, start: wish.Start, wishes: list[Wish], steps: int) -> None:
        """Some callers go away before they are answered: nothing is done by half."""
        new = attrs.evolve(start, again=None)
        await self._together(
            [
                self._made(Request(wish, number, "cancelled", steps))
                for number, wish in enumerate([new, *wishes])
            ]
        )

    @rule(wish=wish.events, clients=st.lists(_clients, min_size=2, max_size=4))
    @in_trio
    async def race(self, wish: Wish, clients: list[int]) -> None:
        """Several clients want the same: of what excludes itself exactly one wins."""
        await self._together([self._made(Request(wish, client)) for client in clients])

    @rule(
        wishes=st.lists(st.tuples(wish.resumes | wish.cancels, _clients), min_size=1, max_size=4),
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
        if record is not None and record.executor_id is not None:
            stop = Finished(self._now_ms(), record.executor_id, record.attempt, Stopped())
            await self._together([Made(self._one(0), Apply(task_id, stop))])
        await self._together(
            [self._made(Request(attrs.evolve(wish, task=0), client)) for wish, client in wishes]
        )
        await self._alone(attrs.evolve(end, task=0, late=0, who="its own"))
        await self._alone(attrs.evolve(forget, owner="ann"))

    @rule(client=_clients, pieces=st.lists(wish.pieces, min_size=1, max_size=4))
    @in_trio
    async def write(self, client: int, pieces: list[wish.Write]) -> None:
        """A running task says more and more."""
        _, record = self._scene(client).task(0)
        if record is None or record.status is not TaskStatus.RUNNING:
            await self._alone(wish.PLAIN, client)
        for piece in pieces:
            await self._alone(piece, client)

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
        for task_id, event in bad:
            try:
                answer = await client.store.apply(task_id, event)
            except InvalidValue:
                continue
            raise broken(view.VALUES, f"apply({task_id!r}, {brief(event)})\n  -> {brief(answer)}")
        await self._check("values that are not JSON were refused")

    # ---- sweeps -------------------------------------------------------------------------------

    @rule(
        sweepers=st.lists(_clients, min_size=1, max_size=2),
        suspect=st.none() | st.integers(0, 3),
        again=st.booleans(),
    )
    @in_trio
    async def sweep(self, sweepers: list[int], suspect: int | None, *, again: bool) -> None:
        """Sweep, also several at once; a sweep after that finds nothing more."""
        if len(self._clients) == 1:
            await self._join()  # one that must be left alone
        await self._pass_time()
        names = list(self._model.executors)
        name = None if suspect is None else names[-1 - suspect % len(names)]
        at_ms = self._now_ms()
        fenced, ended, damaged = self._sweep_model(name, at_ms)
        by_client = await self._sweep_at_once({self._one(n) for n in sweepers}, at_ms, name)
        reports = list(by_client.values())
        what = f"sweep(suspect={name!r})\n" + "\n".join(f"  -> {report}" for report in reports)
        note(what)
        if again:
            second = await self._one(0).store.sweep(self._one(0).executor_id, at_ms, suspect=name)
            if second.fenced or second.ended:
                raise broken(view.SWEEP, f"{what}\na second one ended more: {second}")
        for title, expected, found in (
            ("fenced", fenced, [name for report in reports for name in report.fenced]),
            ("ended", ended, [task for report in reports for task in report.ended]),
        ):
            if sorted(found) != sorted(expected):
                raise broken(
                    view.SWEEP, f"{title} should be {sorted(expected)}, each once\nafter {what}"
                )
        called = {error.task_id for report in reports for error in report.corrupt}
        if called != damaged:
            raise broken(view.CORRUPT, f"{sorted(damaged)} should be reported\nafter {what}")
        for client, report in by_client.items():
            self._check_own_running(client, report, name)
        await self._check(what)

    async def _sweep_at_once(
        self, clients: set[Client], at_ms: int, suspect: str | None
    ) -> dict[Client, SweepReport]:
        reports: dict[Client, SweepReport] = {}
        failures: list[Exception] = []

        async def one(client: Client) -> None:
            await trio.lowlevel.checkpoint()
            try:
                reports[client] = await client.store.sweep(
                    client.executor_id, at_ms, suspect=suspect
                )
            except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(one, client)
        for failure in failures:
            raise broken(view.SWEEP, f"sweep(suspect={suspect!r}) raised {failure!r}") from failure
        return reports

    def _sweep_model(
        self, suspect: str | None, at_ms: int
    ) -> tuple[set[str], set[tuple[str, str]], set[str]]:
        """Do to the model what a sweep does; return who is fenced, what ended, what is corrupt."""
        model = self._model
        fenced, ended, damaged = model.fence(suspect), set[tuple[str, str]](), set[str]()
        for record in model.orphans(suspect):
            if record.task_id in model.corrupt:
                damaged.add(record.task_id)
                continue
            model.apply(record.task_id, Orphaned(at_ms, record.executor_id or "", record.attempt))
            ended.add((record.task_id, record.owner_thread_id))
        return fenced, ended, damaged

    def _check_own_running(self, client: Client, report: SweepReport, name: str | None) -> None:
        expected = {
            (record.task_id, record.attempt)
            for record in self._model.records.values()
            if record.executor_id == client.executor_id and name is None
        }
        wrong = {task_id for task_id, _ in expected ^ set(report.own_running)}
        if not wrong <= self._model.corrupt:
            raise broken(
                view.SWEEP, f"own_running should be {sorted(expected)}, but: {report.own_running}"
            )

    # ---- reading ------------------------------------------------------------------------------

    @rule()
    @in_trio
    async def spoil(self) -> None:
        """Everything that the store has handed out is changed: the store is not."""
        spoil(await self._check("nothing"))
        seen = await self._look([self._model], list(self._model.records))
        if wrong := view.complaint(self._model, seen):
            raise broken(view.OWN, f"{wrong[1]}\nafter what it had handed out was changed")

    @rule(
        limit=st.integers(1, 3),
        parent=st.sampled_from([None, None, 0, 1, 2, 3]),
        status=st.none() | st.sampled_from(TaskStatus),
        starts=st.lists(wish.starts, min_size=2, max_size=6),
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
        for start in mine[:2]:
            await self._alone(start)
        before = self._listed(parent, status)
        wishes: list[Wish] = [*mine[2:], *([] if clear is None else [clear])]
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
        whole = await view.read_through(store, task_id)
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
