"""Every check of what a store shows finds what it is there for: a true view, changed in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import attrs
import pytest

from trio_bgtasks import (
    CancelRequested,
    CorruptRecord,
    Event,
    Finished,
    LeaseTerms,
    OutputAppended,
    OutputPage,
    Registered,
    Stopped,
    Success,
    TaskExists,
    TaskRecord,
    TaskStore,
)
from trio_bgtasks.testing import CorruptibleStore
from trio_bgtasks.testing import _store_view as view
from trio_bgtasks.testing._store_calls import KEEP_BYTES
from trio_bgtasks.testing._store_model import StoreModel
from trio_bgtasks.testing._store_reads import Read, look, read_through
from trio_bgtasks.testing._store_view import View, complaint, difference

TEXT = "0123456789" * 4


@attrs.frozen
class Seen:
    """What a real store shows, and the model of all that was done to it."""

    model: StoreModel
    view: View

    def record(self, task_id: str) -> TaskRecord:
        """Return a record that the view shows."""
        record = self.view.records[task_id]
        assert isinstance(record, TaskRecord)
        return record

    def page(self, **changes: Any) -> None:
        """Change the first page of ann's list."""
        self.view.of_owner["ann"] = attrs.evolve(self.view.of_owner["ann"], **changes)

    def log(self, **changes: Any) -> None:
        """Change the last page of the log of ``b``."""
        self.view.output["b"][-1] = attrs.evolve(self.view.output["b"][-1], **changes)

    def first_page(self, **changes: Any) -> None:
        """Change what was read of the log of ``b`` at once."""
        self.view.pages["b"] = attrs.evolve(self.view.pages["b"], **changes)

    def notice(self, **changes: Any) -> None:
        """Change ann's second notice."""
        first, second = self.view.notices["ann"]
        self.view.notices["ann"] = [first, attrs.evolve(second, **changes)]


async def seen() -> Seen:
    """Three tasks of ann: ``a`` has ended, its child ``b`` is to be cancelled, ``c`` is damaged.

    A fourth one, ``d``, stopped.
    """
    store, model = CorruptibleStore(), StoreModel()
    async with store.executor(LeaseTerms()) as executor:
        ex = executor.executor_id
        model.executors[ex] = "alive"
        done: list[tuple[str, Event]] = [
            ("a", Registered(1, ex, "ann", "build", "", idempotency_key="key")),
            ("b", Registered(2, ex, "ann", "build", "", parent_task_id="a")),
            ("c", Registered(3, ex, "ann", "build", "")),
            ("d", Registered(4, ex, "ann", "build", "")),
            ("b", OutputAppended(5, ex, 1, 0, TEXT, keep_bytes=KEEP_BYTES)),
            ("a", Finished(6, ex, 1, Success([1]))),
            ("b", CancelRequested(7)),
            ("d", Finished(8, ex, 1, Stopped())),
        ]
        for task_id, event in done:
            model.step += 1
            model.apply(task_id, event)
            await store.apply(task_id, event)
        store.corrupt("c")
        model.corrupt |= {"c"}
        shown = await look(store, [model], ["a", "b", "c", "d", "nobody"])
        await Read("read_output", "b").show(store, shown)
    return Seen(model, shown)


async def test_what_is_true_is_no_complaint() -> None:
    """Also when it is looked at again: the model has learned the store's own numbers.

    That of a damaged record nobody can see.
    """
    all_of_it = await seen()
    assert complaint(all_of_it.model, all_of_it.view) is None
    assert complaint(all_of_it.model, all_of_it.view) is None
    assert [record.seq for record in all_of_it.model.records.values()] == [1, 2, 0, 4]
    assert all_of_it.model.notice_ids == {1, 2}


async def test_a_damaged_record_excuses_no_wrong_cancel_mark_but_its_own() -> None:
    """Whether the mark of a corrupt record is told is the store's; that of another is not."""
    all_of_it = await seen()
    (marks,) = all_of_it.view.marks.values()
    marks.append("c")
    assert complaint(all_of_it.model, all_of_it.view) is None
    marks.append("nobody's")
    assert complaint(all_of_it.model, all_of_it.view) is not None


# ---- lies ---------------------------------------------------------------------------------------

Lie = Callable[[Seen], object]
LIES: list[tuple[Lie, str, str]] = []


def lie(promise: str, says: str) -> Callable[[Lie], Lie]:
    """Put a lie into the table, with the promise that it breaks, and what is said of it."""

    def add(function: Lie) -> Lie:
        LIES.append((function, promise, says))
        return function

    return add


@lie(view.CORRUPT, r"load\('c'\) should raise CorruptRecord for it")
def _read_although_damaged(seen: Seen) -> None:
    seen.view.records["c"] = seen.record("a")


@lie(view.CORRUPT, r"load\('a'\) raised .*, but nobody damaged that record")
def _called_corrupt(seen: Seen) -> None:
    seen.view.records["a"] = CorruptRecord("a", "not JSON")


@lie(view.KEPT, r"load\('a'\): description should be '', but: 'another'")
def _another_description(seen: Seen) -> None:
    seen.view.records["a"] = attrs.evolve(seen.record("a"), description="another")


@lie(view.KEPT, r"load\('a'\): it should be a: completed, attempt 1, but: None")
def _forgotten(seen: Seen) -> None:
    seen.view.records["a"] = None


@lie(view.ORDER, "the new task 'b' got number 1 after 1")
def _a_number_used_twice(seen: Seen) -> None:
    seen.view.records["b"] = attrs.evolve(seen.record("b"), seq=1)


@lie(view.KEPT, r"load_by_key\('ann', 'key'\) should find a, but: None")
def _a_lost_key(seen: Seen) -> None:
    seen.view.by_key["ann", "key"] = None


@lie(view.KEPT, r"owners\(\) should be \['ann'\], but: \['ann', 'bob'\]")
def _an_owner_of_nothing(seen: Seen) -> None:
    seen.view.owners = ["ann", "bob"]


@lie(view.PAGES, r"list_owner\('ann'\): it should show \['a', 'b', 'd'\], but: \['a', 'b'\]")
def _too_short_a_page(seen: Seen) -> None:
    seen.page(records=seen.view.of_owner["ann"].records[:-1])


@lie(view.PAGES, r"list_owner\('ann'\): it should show .*, but: \['a', 'a', 'd'\]")
def _the_same_twice(seen: Seen) -> None:
    one, _, last = seen.view.of_owner["ann"].records
    seen.page(records=[one, one, last])


@lie(view.ORDER, r"list_owner\('ann'\): it should show .*, but: \['d', 'b', 'a'\]")
def _upside_down(seen: Seen) -> None:
    seen.page(records=seen.view.of_owner["ann"].records[::-1])


@lie(view.KEPT, r"list_owner\('ann'\): 'a': description should be")
def _another_description_in_the_list(seen: Seen) -> None:
    one, *others = seen.view.of_owner["ann"].records
    seen.page(records=[attrs.evolve(one, description="another"), *others])


@lie(view.CORRUPT, r"list_owner\('ann'\): \['c'\] should be called corrupt, but: \[\]")
def _damaged_and_passed_over(seen: Seen) -> None:
    seen.page(corrupt=())


@lie(view.PAGES, r"children\('a'\): it should show \['b'\], but: \[\]")
def _no_children(seen: Seen) -> None:
    seen.view.of_parent["a"] = attrs.evolve(seen.view.of_parent["a"], records=())


@lie(view.KEPT, r"cancel_marks\('.*'\) should be \['b'\], but: \[\]")
def _no_mark(seen: Seen) -> None:
    next(iter(seen.view.marks.values())).clear()


@lie(view.KEPT, r"cancel_marks\('.*'\) should be \['b'\], but: \['b', 'b'\]")
def _a_mark_told_twice(seen: Seen) -> None:
    next(iter(seen.view.marks.values())).append("b")


@lie(view.JOURNAL, r"history\('a'\) should be")
def _no_end_in_the_journal(seen: Seen) -> None:
    seen.view.history["a"].pop()


@lie(view.OUTPUT, r"read_output\('b'\): 40 bytes were written, it counts 39")
def _miscounted(seen: Seen) -> None:
    seen.first_page(total_bytes=39)


@lie(view.OUTPUT, r"read_output\('b'\): a page of 40 bytes says 0 to 39")
def _a_page_that_ends_too_early(seen: Seen) -> None:
    seen.first_page(next_offset=39)


@lie(view.OUTPUT, r"read_output\('b'\): what arrived is ")
def _another_text(seen: Seen) -> None:
    seen.first_page(text="x" * 40)


@lie(view.OUTPUT, r"read_output\('b'\): what arrived is ")
def _nothing_at_all(seen: Seen) -> None:
    seen.first_page(text="", next_offset=0)


@lie(view.OUTPUT, r"read_output\('b'\): a page of 15 bytes says 25 to 39")
def _a_last_page_that_ends_too_early(seen: Seen) -> None:
    seen.log(next_offset=39)


@lie(view.OUTPUT, r"read_output\('b'\): 40 bytes were written, it ends at 25")
def _a_log_without_its_end(seen: Seen) -> None:
    seen.view.output["b"].pop()


@lie(view.OUTPUT, r"read_output\('b'\): what arrived is .*, it shows ")
def _another_end(seen: Seen) -> None:
    seen.log(text="x" * 15)


@lie(view.OUTPUT, r"read_output\('b'\): of 40 bytes the newest 64 are to be kept, it shows 4")
def _too_much_dropped(seen: Seen) -> None:
    seen.view.output["b"] = [OutputPage(TEXT[-4:], 36, 40, 40, 36)]


@lie(view.OUTPUT, r"read_output\('b'\): it shows 40 of 40 bytes, 7 are called dropped")
def _called_dropped(seen: Seen) -> None:
    seen.log(dropped_bytes=7)


@lie(view.NOTICES, "the first two of 'ann' in the background should be")
def _no_notice_of_the_background(seen: Seen) -> None:
    seen.view.background["ann"].pop()


@lie(view.NOTICES, "the notices of 'ann' should be")
def _no_notice(seen: Seen) -> None:
    seen.view.notices["ann"].pop(0)
    seen.view.background["ann"].pop(0)


@lie(view.NOTICES, "the notices of 'ann' should be")
def _another_notice(seen: Seen) -> None:
    seen.notice(summary=attrs.evolve(seen.record("d"), error="another").summary())
    seen.view.background["ann"] = seen.view.notices["ann"]


@lie(view.NOTICES, "number 1 is given a second time; those of 'ann' should be")
def _a_notice_number_used_twice(seen: Seen) -> None:
    seen.notice(notice_id=1)
    seen.view.background["ann"] = seen.view.notices["ann"]


@pytest.mark.parametrize(
    ("lie", "promise", "says"), LIES, ids=[function.__name__.strip("_") for function, *_ in LIES]
)
async def test_a_lie_is_found_and_named(lie: Lie, promise: str, says: str) -> None:
    """Each breaks one promise, and that is the one named."""
    all_of_it = await seen()
    lie(all_of_it)
    found = complaint(all_of_it.model, all_of_it.view)
    assert found is not None
    assert found[0] == promise
    with pytest.raises(AssertionError, match=f"(?s)broke a promise.*\n{says}"):
        raise view.broken(*found)


# ---- small things -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "got", "says"),
    [
        (["a"], ["a"], None),
        (["a"], ["b"], "it should be ['a'], but: ['b']"),
        (["a"], None, "it should be ['a'], but: None"),
        (CorruptRecord("a", "x"), CorruptRecord("a", "y"), None),
        (CorruptRecord("a", "x"), CorruptRecord("b", "x"), "it should be about a"),
        (TaskExists("a"), TaskExists("a"), None),
        (ValueError("a"), ValueError("b"), "it should say a, but: b"),
        (Success([1]), Success([1]), None),
        (Success([1]), Success([True]), "value should be [1], but: [True]"),
        (Success(1), Success(1.0), "value should be 1, but: 1.0"),
        (Success({"a": 1, "b": 2}), Success({"b": 2, "a": 1}), None),
        (Success(0.0), Success(-0.0), "value should be 0.0, but: -0.0"),
    ],
)
def test_differences_are_those_of_json(expected: Any, got: Any, says: str | None) -> None:
    """Numbers and booleans are kept apart, the order of keys means nothing, errors are told apart."""
    assert difference(expected, got) == says


def test_a_read_is_told_as_it_is_written() -> None:
    """With what it is about, if it is about anything."""
    assert str(Read("owners")) == "owners()"
    assert str(Read("load_by_key", "ann", "key")) == "load_by_key('ann', 'key')"


async def test_a_log_that_gets_no_further_is_no_endless_loop() -> None:
    """A page that ends where it began, before the end of the log, breaks a promise."""

    class Stuck:
        async def read_output(self, task_id: str, *, offset: int, limit: int) -> OutputPage:
            return OutputPage("", offset, offset, 7, 0)

    with pytest.raises(AssertionError, match=r"read_output\('t', offset=0\) gets no further"):
        await read_through(cast("TaskStore", Stuck()), "t")
