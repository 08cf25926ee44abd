"""What a rule of `TaskStoreMachine` is there for, it finds: each is played once, on a wrong store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeAlias

import attrs
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.property.machines import MemoryMachine
from trio_bgtasks import (
    Event,
    InvalidValue,
    JournalEntry,
    Notice,
    OutputPage,
    Registered,
    TaskRecord,
    TaskStatus,
)
from trio_bgtasks.stores import RecordPage, SweepReport
from trio_bgtasks.testing import CorruptibleStore, TaskStoreMachine
from trio_bgtasks.testing import _store_view as view
from trio_bgtasks.testing._store_clients import Request
from trio_bgtasks.testing._store_model import StoreModel
from trio_bgtasks.testing._store_reads import Read
from trio_bgtasks.testing._store_scene import Scene
from trio_bgtasks.testing._store_wishes import OUTCOMES, PLAIN, Ask, End, Write

FEW = 5  # records of a page that a rule asks for; whoever looks at everything asks for more


class Machine(MemoryMachine):
    """On a memory store that can be damaged, or on one with a bug."""

    kind: ClassVar[type[CorruptibleStore]] = CorruptibleStore

    @contextmanager
    def new_place(self) -> Iterator[CorruptibleStore]:
        yield self.kind()

    async def corrupt(self, place: CorruptibleStore, task_id: str) -> None:
        place.corrupt(task_id)


Play: TypeAlias = Callable[[Machine], None]


def play(store: type[CorruptibleStore], steps: Play) -> None:
    """Take these steps on a machine, in a test of Hypothesis, which rules need for their notes."""

    class WithBug(Machine):
        kind = store

    @settings(max_examples=1, database=None, phases=[Phase.generate], deadline=None)
    @given(st.none())
    def once(_: None) -> None:
        machine = WithBug()
        try:
            steps(machine)
        finally:
            machine.teardown()

    once()


# ---- stores with one bug each -------------------------------------------------------------------


class InventsAnOwner(CorruptibleStore):
    async def owners(self, *, after: str = "", limit: int = 200) -> list[str]:
        return [*await super().owners(after=after, limit=limit), "zoe"]


class PutsOffASweep(CorruptibleStore):
    put_off = False

    async def sweep(
        self, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        if not self.put_off:
            self.put_off = True
            return SweepReport()
        return await super().sweep(executor_id, at_ms, suspect=suspect)


class CannotSweep(CorruptibleStore):
    async def sweep(
        self, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        raise OSError("torn")


class Sweeps(CorruptibleStore):
    leaves_out: dict[str, Any]

    async def sweep(
        self, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        report = await super().sweep(executor_id, at_ms, suspect=suspect)
        return attrs.evolve(report, **self.leaves_out)


class HidesTheDamaged(Sweeps):
    leaves_out = {"corrupt": ()}  # noqa: RUF012 - nobody changes it


class HidesItsOwn(Sweeps):
    leaves_out = {"own_running": ()}  # noqa: RUF012 - nobody changes it


class HidesTheFenced(Sweeps):
    leaves_out = {"fenced": ()}  # noqa: RUF012 - nobody changes it


class Pages(CorruptibleStore):
    async def list_owner(
        self, owner_thread_id: str, *, after: int = 0, limit: int = 200, **which: Any
    ) -> RecordPage:
        page = await super().list_owner(owner_thread_id, after=after, limit=limit, **which)
        return self.changed(page, after) if limit < FEW else page

    def changed(self, page: RecordPage, after: int) -> RecordPage:
        raise NotImplementedError


class TooLongPages(CorruptibleStore):
    async def list_owner(
        self, owner_thread_id: str, *, limit: int = 200, **which: Any
    ) -> RecordPage:
        return await super().list_owner(owner_thread_id, limit=limit + 1, **which)


class FollowedByItself(Pages):
    def changed(self, page: RecordPage, after: int) -> RecordPage:
        return attrs.evolve(page, next_after=after)


class UpsideDown(Pages):
    def changed(self, page: RecordPage, after: int) -> RecordPage:
        return attrs.evolve(page, records=page.records[::-1])


class OnePage(Pages):
    def changed(self, page: RecordPage, after: int) -> RecordPage:
        return attrs.evolve(page, next_after=None)


class LastNoticesFirst(CorruptibleStore):
    async def notices(
        self, owner_thread_id: str, *, limit: int = 200, background_only: bool = False
    ) -> list[Notice]:
        every = await super().notices(owner_thread_id, background_only=background_only)
        return every[-limit:] if limit < FEW and not background_only else every[:limit]


class BeginsOwnersAgain(CorruptibleStore):
    async def owners(self, *, after: str = "", limit: int = 200) -> list[str]:
        return await super().owners(limit=limit)


class CountsFromTheStart(CorruptibleStore):
    async def read_output(self, task_id: str, *, offset: int, limit: int) -> OutputPage:
        return await super().read_output(task_id, offset=max(0, offset), limit=limit)


class TakesAnything(CorruptibleStore):
    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        try:
            return await super().apply(task_id, event)
        except InvalidValue:
            return TaskRecord(task_id, "ann", "build", "", TaskStatus.RUNNING, 1, 0, 0)


class GivesItsOwn(CorruptibleStore):
    def __init__(self) -> None:
        super().__init__()
        self._read: dict[tuple[str, int], list[JournalEntry]] = {}

    async def history(self, task_id: str) -> list[JournalEntry]:
        found = await super().history(task_id)
        return self._read.setdefault((task_id, len(found)), found)


# ---- what is played -----------------------------------------------------------------------------

STOPS = End(0, OUTCOMES[4], 0, "its own", announce=True, marked=False, skew=0)
SAYS = Write(0, "output", 0, "its own", {}, 0, 20)


def _start(machine: Machine) -> None:
    """A task of ann runs."""
    machine.call([Request(PLAIN, 0)])


def _ask_for_owners(machine: Machine) -> None:
    machine.read_beside_writes([(Ask("owners", 0, "ann", ""), "answered")], [], 0, 0)


def _sweep(machine: Machine) -> None:
    machine.sweep([(0, "answered", 0)], None, again=False)


def _sweep_again(machine: Machine) -> None:
    machine.sweep([(0, "answered", 0)], None, again=True)


def _crash_and_sweep(machine: Machine) -> None:
    machine.crash([], [], 0)
    _sweep(machine)


def _crash_and_sweep_again(machine: Machine) -> None:
    machine.crash([], [], 0)
    _sweep_again(machine)


def _damage_crash_and_sweep(machine: Machine) -> None:
    _start(machine)
    machine.damage(0)
    _crash_and_sweep(machine)


def _start_and_sweep(machine: Machine) -> None:
    _start(machine)
    _sweep(machine)


def _turn_pages(machine: Machine) -> None:
    machine.turn_pages(2, None, None, [PLAIN] * 4, None)


def _read(machine: Machine) -> None:
    machine.read("ann", 0, 1, None, None, 0)


def _start_two_and_read(machine: Machine) -> None:
    _start(machine)
    _start(machine)
    _read(machine)


def _end_two_and_read(machine: Machine) -> None:
    for _ in range(2):
        _start(machine)
        machine.call([Request(STOPS, 0)])
    machine.read("ann", 0, 1, None, None, 0)


def _write(machine: Machine) -> None:
    machine.write(0, [SAYS], -2, 30)


def _refuse(machine: Machine) -> None:
    machine.refuse(float("nan"))


def _start_and_spoil(machine: Machine) -> None:
    _start(machine)
    machine.spoil()


FINDS: list[tuple[type[CorruptibleStore], Play, str, str]] = [
    (InventsAnOwner, _ask_for_owners, view.KEPT, r"owners\(\) should be \[\]"),
    (PutsOffASweep, _crash_and_sweep_again, view.SWEEP, "one ended more after another:"),
    (CannotSweep, _sweep_again, view.SWEEP, "it failed\n.*OSError: torn"),
    (CannotSweep, _sweep, view.SWEEP, "it failed\n.*OSError: torn"),
    (HidesTheDamaged, _damage_crash_and_sweep, view.CORRUPT, r"\['t0'\] should be reported"),
    (HidesItsOwn, _start_and_sweep, view.SWEEP, r"own_running should be \[\('t0', 1\)\]"),
    (HidesTheFenced, _crash_and_sweep, view.SWEEP, "fenced should be"),
    (TooLongPages, _turn_pages, view.PAGES, "a page is too long, or followed by itself"),
    (FollowedByItself, _turn_pages, view.PAGES, "a page is too long, or followed by itself"),
    (UpsideDown, _turn_pages, view.ORDER, "pages of 2 showed"),
    (OnePage, _turn_pages, view.PAGES, r"\['t2'\] were there all the time"),
    (OnePage, _start_two_and_read, view.PAGES, r"list_owner\(.*next_after is None, 2 are left"),
    (TooLongPages, _start_two_and_read, view.PAGES, r"list_owner\(.*it should show \['t0'\]"),
    (LastNoticesFirst, _end_two_and_read, view.NOTICES, "the first 1 of 'ann' should be"),
    (BeginsOwnersAgain, _start_two_and_read, view.KEPT, r"owners after 'ann' are \[\], not"),
    (CountsFromTheStart, _write, view.OUTPUT, r"read_output\('t0', offset=-2, limit=30\)"),
    (TakesAnything, _refuse, view.VALUES, r"apply\('new', "),
    (GivesItsOwn, _start_and_spoil, view.OWN, "after what it had handed out was changed"),
]


@pytest.mark.parametrize(
    ("store", "steps", "promise", "says"),
    FINDS,
    ids=[f"{s.__name__}{p.__name__}" for s, p, *_ in FINDS],
)
def test_a_rule_finds_what_it_is_there_for(
    store: type[CorruptibleStore], steps: Play, promise: str, says: str
) -> None:
    """The promise is named; a store without that bug passes."""
    play(CorruptibleStore, steps)
    with pytest.raises(AssertionError, match=f"(?s)the store broke a promise: .*{promise}.*{says}"):
        play(store, steps)


# ---- what a subclass leaves out -----------------------------------------------------------------


@pytest.mark.parametrize("method", ["new_place", "open_store", "kill", "corrupt"])
async def test_what_a_subclass_does_not_say_is_named(method: str) -> None:
    """With what it is to return, or to do."""
    machine: Any = TaskStoreMachine()
    arguments: dict[str, tuple[Any, ...]] = {
        "new_place": (),
        "open_store": ("place",),
        "kill": ("place", []),
        "corrupt": ("place", "t0"),
    }
    with pytest.raises(NotImplementedError, match=f"TaskStoreMachine needs a method {method}: "):
        await getattr(machine, method)(*arguments[method])


def test_a_read_that_nobody_heard_of_says_nothing() -> None:
    """There is no answer to compare, and the model stays as it is."""
    assert Read("load", "t0").play(StoreModel(), None) is None


def test_of_a_damaged_task_only_the_record_is_read() -> None:
    """What else a store still shows of it is the store's to choose."""
    model = StoreModel()
    model.executors["ex"] = "alive"
    model.apply("t0", Registered(1, "ex", "ann", "build", ""))
    ask = Ask("history", 0, "ann", "")
    assert ask.call(Scene(model, "ex", 2)) == Read("history", "t0")
    model.corrupt |= {"t0"}
    assert ask.call(Scene(model, "ex", 2)) == Read("load", "t0")
