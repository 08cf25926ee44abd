"""What a store shows of itself, and whether that is what the model says."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TypeAlias

import attrs

from trio_bgtasks import (
    CorruptRecord,
    JournalEntry,
    Notice,
    OutputPage,
    TaskRecord,
)
from trio_bgtasks.stores import RecordPage

from ._store_calls import KEEP_BYTES, brief, fields, lines
from ._store_model import ExpectedNotice, ExpectedOutput, StoreModel

# What a `TaskStore` promises, as it is said when the promise was broken.
ATOMIC = "every call is one transaction: of several at once, each sees what another has done"
ANSWERED = "a call is answered as the lifecycle says, from what is stored"
KEPT = "what was answered is stored, and nothing else is"
OWN = "what a store hands out can be changed without changing the store"
ORDER = "sequence numbers grow with every record, and lists are in their order"
PAGES = "pages show every record once, also while others are created"
JOURNAL = "the journal has every change of status and every accepted cancel, once, in order"
OUTPUT = "the output log shows what was written, and counts what was dropped"
NOTICES = "every ended attempt is announced, to its owner, until it is acknowledged"
SWEEP = "a sweep ends the tasks of the dead, and leaves the living alone"
CORRUPT = "one corrupt record hides nothing else, and is called corrupt"
CANCELLED = "a call that was cancelled was not applied"
VALUES = "a value that is not JSON is refused, and changes nothing"


def broken(promise: str, seen: str) -> AssertionError:
    """Return the failure of a store."""
    return AssertionError(f"the store broke a promise: {promise}\n{seen}")


Record: TypeAlias = TaskRecord | CorruptRecord | None


@attrs.define
class View:
    """What a store shows of itself, or of a part."""

    records: dict[str, Record] = attrs.field(factory=dict[str, Record])
    by_key: dict[tuple[str, str], str | None] = attrs.field(
        factory=dict[tuple[str, str], str | None]
    )
    of_owner: dict[str, RecordPage] = attrs.field(factory=dict[str, RecordPage])
    of_parent: dict[str, RecordPage] = attrs.field(factory=dict[str, RecordPage])
    history: dict[str, list[JournalEntry]] = attrs.field(factory=dict[str, list[JournalEntry]])
    pages: dict[str, OutputPage] = attrs.field(factory=dict[str, OutputPage])
    output: dict[str, list[OutputPage]] = attrs.field(factory=dict[str, list[OutputPage]])
    notices: dict[str, list[Notice]] = attrs.field(factory=dict[str, list[Notice]])
    # The first two notices of background attempts.
    background: dict[str, list[Notice]] = attrs.field(factory=dict[str, list[Notice]])
    owners: list[str] | None = None
    marks: dict[str, list[str]] = attrs.field(factory=dict[str, list[str]])


def complaint(model: StoreModel, view: View) -> tuple[str, str] | None:
    """Return (promise, what is wrong) about the first thing that is not as the model says.

    Otherwise the model learns from the view the numbers that are the store's to choose.
    """
    return (
        _complaint_of_records(model, view)
        or _complaint_of_lists(model, view)
        or _complaint_of_histories(model, view)
        or _complaint_of_output(model, view)
        or _complaint_of_notices(model, view)
    )


def _complaint_of_records(model: StoreModel, view: View) -> tuple[str, str] | None:
    for task_id, seen in view.records.items():
        expected = model.records.get(task_id)
        asked = f"load({task_id!r})"
        if task_id in model.corrupt:
            if not isinstance(seen, CorruptRecord) or seen.task_id != task_id:
                return CORRUPT, f"{asked} should raise CorruptRecord for it, but: {seen!r}"
        elif isinstance(seen, CorruptRecord):
            return CORRUPT, f"{asked} raised {seen!r}, but nobody damaged that record"
        elif (wrong := difference(expected, seen)) is not None:
            return KEPT, f"{asked}: {wrong}"
    for task_id, expected in model.records.items():  # in order of creation
        seen = view.records.get(task_id)
        if expected.seq == 0 and isinstance(seen, TaskRecord):
            if seen.seq <= model.highest_seq:
                return ORDER, f"the new task {task_id!r} got number {seen.seq} after " + str(
                    model.highest_seq
                )
            model.highest_seq = seen.seq
            model.records[task_id] = attrs.evolve(expected, seq=seen.seq)
    return None


def _complaint_of_lists(model: StoreModel, view: View) -> tuple[str, str] | None:
    for (owner, key), found in view.by_key.items():
        there = model.keys.get((owner, key))
        expected = there if there in model.records else None
        if found != expected:
            return KEPT, f"load_by_key({owner!r}, {key!r}) should find {expected}, but: {found}"
    if view.owners not in (None, model.owners()):
        return KEPT, f"owners() should be {model.owners()}, but: {view.owners}"
    for owner, page in view.of_owner.items():
        wrong = page_complaint(model, model.of_owner(owner), page)
        if wrong is not None:
            return wrong[0], f"list_owner({owner!r}): {wrong[1]}"
    for parent, page in view.of_parent.items():
        wrong = page_complaint(model, model.of_parent(parent), page)
        if wrong is not None:
            return wrong[0], f"children({parent!r}): {wrong[1]}"
    for executor_id, marks in view.marks.items():
        wrong_ones = set(marks) ^ model.marks(executor_id)
        if len(marks) != len(set(marks)) or not wrong_ones <= model.corrupt:
            return KEPT, (
                f"cancel_marks({executor_id!r}) should be {sorted(model.marks(executor_id))}, "
                f"but: {marks}"
            )
    return None


def page_complaint(
    model: StoreModel, expected: Iterable[TaskRecord], page: RecordPage
) -> tuple[str, str] | None:
    """Return what is wrong with a page that should show all of ``expected``."""
    there = list(expected)
    wanted = [record for record in there if record.task_id not in model.corrupt]
    seen = [record.task_id for record in page.records]
    if seen != [record.task_id for record in wanted]:
        promise = PAGES if len(seen) != len(wanted) or len(set(seen)) != len(seen) else ORDER
        return promise, f"it should show {[r.task_id for r in wanted]}, but: {seen}"
    for record, shown in zip(wanted, page.records, strict=True):
        wrong = None if record == shown else difference(record, shown)
        if wrong is not None:
            return KEPT, f"{record.task_id!r}: {wrong}"
    damaged = {record.task_id for record in there} & model.corrupt
    called = {error.task_id for error in page.corrupt}
    if called != damaged:
        return CORRUPT, f"{sorted(damaged)} should be called corrupt, but: {sorted(called)}"
    return None


def _complaint_of_histories(model: StoreModel, view: View) -> tuple[str, str] | None:
    for task_id, seen in view.history.items():
        expected = list(model.journal.get(task_id, ()))
        if seen != expected:
            return JOURNAL, (
                f"history({task_id!r}) should be\n{lines(expected)}\nbut:\n{lines(seen)}"
            )
    return None


def _complaint_of_output(model: StoreModel, view: View) -> tuple[str, str] | None:
    for task_id, page in view.pages.items():
        wrong = _log_page_complaint(model.output.get(task_id, ExpectedOutput()), page)
        if wrong is not None:
            return OUTPUT, f"read_output({task_id!r}): {wrong}\n  {page}"
    for task_id, pages in view.output.items():
        wrong = _log_complaint(model.output.get(task_id, ExpectedOutput()), pages)
        if wrong is not None:
            return OUTPUT, f"read_output({task_id!r}): {wrong}\n{lines(pages)}"
    return None


def _log_page_complaint(log: ExpectedOutput, page: OutputPage) -> str | None:
    """Return what is wrong with the first page of a log, of which the oldest may be gone."""
    data = page.text.encode()
    if page.total_bytes != log.total:
        return f"{log.total} bytes were written, it counts {page.total_bytes}"
    if page.next_offset - page.offset != len(data):
        return f"a page of {len(data)} bytes says {page.offset} to {page.next_offset}"
    at, arrived = next(iter(log.since(page.offset)), (log.total, b""))
    if (data or log.pieces) and not (data and at == page.offset and arrived.startswith(data)):
        return f"what arrived is {log.since(0)}"
    return None


def _log_complaint(log: ExpectedOutput, pages: list[OutputPage]) -> str | None:
    shown: list[tuple[int, bytes]] = []
    for page in pages:
        data = page.text.encode()
        if page.next_offset - page.offset != len(data):
            return f"a page of {len(data)} bytes says {page.offset} to {page.next_offset}"
        if shown and sum((shown[-1][0], len(shown[-1][1]))) == page.offset:
            shown[-1] = shown[-1][0], shown[-1][1] + data
        elif data:
            shown.append((page.offset, data))
    last = pages[-1]
    kept = sum(len(data) for _, data in shown)
    arrived = sum(len(data) for _, data in log.pieces)
    if last.total_bytes != log.total or last.next_offset != log.total:
        return f"{log.total} bytes were written, it ends at {last.next_offset}"
    if shown != log.since(shown[0][0] if shown else log.total):
        return f"what arrived is {log.since(0)}, it shows {shown}"
    if kept > KEEP_BYTES or kept < min(arrived, KEEP_BYTES // 2):
        return f"of {arrived} bytes the newest {KEEP_BYTES} are to be kept, it shows {kept}"
    if last.dropped_bytes != log.total - kept:
        return f"it shows {kept} of {log.total} bytes, {last.dropped_bytes} are called dropped"
    return None


def _complaint_of_notices(model: StoreModel, view: View) -> tuple[str, str] | None:
    learned: list[ExpectedNotice] = []
    for owner, seen in view.notices.items():
        waiting = [notice for notice in model.notices if notice.owner == owner]
        text = (
            f"of {owner!r} should be\n{lines([notice.summary for notice in waiting])}\n"
            f"but:\n{lines(seen)}"
        )
        background = [notice for notice in seen if notice.background][:2]
        if view.background.get(owner, background) != background:
            return NOTICES, (
                f"the first two of {owner!r} in the background should be\n{lines(background)}\n"
                f"but:\n{lines(view.background[owner])}"
            )
        if len(seen) != len(waiting):
            return NOTICES, f"the notices {text}"
        for notice in seen:
            step = waiting[0].step  # what ended at the same time is in any order
            match = next((n for n in waiting if n.step == step and _is(n, notice)), None)
            if match is None:
                return NOTICES, f"the notices {text}"
            if match.notice_id == 0 and notice.notice_id in model.notice_ids:
                return NOTICES, f"number {notice.notice_id} is given a second time; those {text}"
            model.notice_ids |= {notice.notice_id}
            waiting.remove(match)
            learned.append(attrs.evolve(match, notice_id=notice.notice_id))
    model.notices = tuple(sorted(learned, key=lambda notice: notice.step))
    return None


def _is(expected: ExpectedNotice, seen: Notice) -> bool:
    return (
        expected.notice_id in (0, seen.notice_id)
        and expected.background == seen.background
        and difference(expected.summary, seen.summary) is None
    )


# ---- one record ---------------------------------------------------------------------------------


def difference(expected: Any, seen: Any) -> str | None:
    """Return how ``seen``, a record or an error, differs from what was expected; None: it does not.

    Numbers that are the store's to choose are passed over while they are not known.
    """
    if expected is seen:
        return None
    if type(expected) is not type(seen):
        return f"it should be {brief(expected)}, but: {brief(seen)}"
    if isinstance(expected, CorruptRecord):
        return (
            None if expected.task_id == seen.task_id else f"it should be about {expected.task_id}"
        )
    if isinstance(expected, BaseException):
        return None if str(expected) == str(seen) else f"it should say {expected}, but: {seen}"
    if not fields(expected):
        return None if expected == seen else f"it should be {expected!r}, but: {seen!r}"
    wrong = [
        f"{field.name} should be {mine!r}, but: {theirs!r}"
        for field in fields(expected)
        if not _same(mine := getattr(expected, field.name), theirs := getattr(seen, field.name))
        and not (field.name == "seq" and mine == 0)
    ]
    return "; ".join(wrong) or None


def _same(mine: Any, theirs: Any) -> bool:
    """Compare JSON as JSON: 1 is not 1.0 or true, and the order of keys means nothing."""
    if mine != theirs or type(mine) is not type(theirs):
        return False
    parts: Any = mine
    if isinstance(mine, tuple):  # of questions, with JSON in them
        return not any(map(difference, parts, theirs))
    if not isinstance(mine, dict | list | float):
        return True
    return json.dumps(mine, sort_keys=True) == json.dumps(theirs, sort_keys=True)
