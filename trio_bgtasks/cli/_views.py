"""What the commands print: tables for people (plain, or with colour on a terminal) and JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import attrs

from .. import JournalEntry, Progress, TaskRecord, TaskStatus, TaskSummary
from .._json import JsonObject, JsonValue, shorten
from .._records import ref_to_json
from ._text import moment, one_line, size, span

if TYPE_CHECKING:
    from rich.console import Group, OverflowMethod
    from rich.table import Table

_BRIEF = 200  # characters of a cell in a table of tasks; `show` has all of them
_SHORTEST = 5  # columns of a terminal: a cell that is cut more says nothing

_STYLES: dict[str, str] = {
    TaskStatus.RUNNING: "cyan",
    TaskStatus.COMPLETED: "green",
    TaskStatus.FAILED: "red",
    TaskStatus.CANCELLED: "magenta",
    TaskStatus.STOPPED: "yellow",
}


@attrs.frozen
class Grid:
    """A table of safe text.

    Where a terminal is too narrow, ``cut`` columns are shortened and ``wrapped`` ones take several
    lines; the others, ids among them, stay whole. Where that is not enough either, each row takes
    two lines: its first cell, and as much of the others as there is room for, or with ``wrapped``
    columns all of them, over several lines.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    cut: Sequence[str] = ()
    wrapped: Sequence[str] = ()
    header: bool = True

    def _lines(self) -> Sequence[Sequence[str]]:
        return [self.columns, *self.rows] if self.header else self.rows

    def plain(self) -> str:
        """Return the lines, columns aligned, nothing shortened."""
        lines = self._lines()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def fits(self, width: int) -> bool:
        """Tell whether the columns can stand side by side in so many columns of a terminal."""
        from rich.cells import cell_len  # noqa: PLC0415 - slow to import, and for a terminal only

        needed = -2
        for name, *cells in zip(self.columns, *self._lines(), strict=True):
            widest = max(map(cell_len, cells), default=0)
            shrinks = name in self.cut or name in self.wrapped
            needed += 2 + (min(widest, _SHORTEST) if shrinks else widest)
        return needed <= width

    def rich(self, width: int) -> Table | Group:
        """Return the table for a terminal of so many columns."""
        return self._table() if self.fits(width) else self._stacked()

    def _table(self) -> Table:
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=None, pad_edge=False, show_header=self.header, header_style="bold")
        for name in self.columns:
            table.add_column(name, no_wrap=name not in self.cut and name not in self.wrapped)
        for row in self.rows:
            cells = [Text(cell, style=_STYLES.get(cell, "")) for cell in row]
            for name, cell in zip(self.columns, cells, strict=True):
                cell.no_wrap = name not in self.wrapped
                cell.overflow = "fold" if name in self.wrapped else "ellipsis"
            table.add_row(*cells)
        return table

    def _stacked(self) -> Group:
        from rich.console import Group  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        lines = self._lines()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        # What may be cut is cut first, at the end of the line.
        order = sorted(range(1, len(widths)), key=lambda n: self.columns[n] in self.cut)
        folds = bool(self.wrapped)
        overflow: OverflowMethod = "fold" if folds else "ellipsis"
        shown: list[Text] = []
        for line in lines:
            bold = "bold" if line is self.columns else ""
            rest = Text("", style=bold, no_wrap=not folds, overflow=overflow)
            for n in order:
                whole = self.columns[n] not in self.cut
                rest.append("  ")
                rest.append(line[n].ljust(widths[n] if whole else 0), _STYLES.get(line[n], ""))
            rest.rstrip()
            shown += [Text(line[0], style=bold, overflow="fold"), *([rest] if rest else [])]
        return Group(*shown)


def is_live() -> bool:
    """Tell whether a person looks at standard output, on a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def say(text: str = "") -> None:
    """Print a line of safe text, at once."""
    print(text, flush=True)  # noqa: T201 - the one door to standard output


def show(grid: Grid) -> None:
    """Print a table, with colour on a terminal."""
    if not is_live():
        say(grid.plain())
        return
    from rich.console import Console  # noqa: PLC0415 - slow to import, and for a terminal only

    console = Console(highlight=False)
    console.print(grid.rich(console.width))


def say_json(value: JsonValue) -> None:
    """Print JSON in ASCII: it steers no terminal, and every encoding has it."""
    say(json.dumps(value, indent=2))


# ---- tasks ---------------------------------------------------------------------------------------


@attrs.frozen
class OwnedTask:
    """A task as its owner sees it, who that is, and when its latest attempt began."""

    owner_thread_id: str
    summary: TaskSummary
    began_ms: int

    def to_json(self) -> JsonObject:
        """Return the summary's shape and the owner."""
        return {"owner_thread_id": self.owner_thread_id, **self.summary.to_json()}


def tasks_json(tasks: Iterable[OwnedTask]) -> JsonObject:
    """Return the JSON shape of a list of tasks."""
    return {"tasks": [task.to_json() for task in tasks]}


def tasks_grid(tasks: Sequence[OwnedTask], *, owners: bool = False) -> Grid:
    """Return the table of tasks: how each stands, its latest attempt's time, why it ended so."""
    columns = ["TASK", "STATUS", "ATTEMPT", "TIME", "DESCRIPTION", "DETAIL"]
    rows = [
        [*standing(task), _brief(task.summary.description), _brief(detail(task.summary))]
        for task in tasks
    ]
    if owners:
        columns.insert(1, "OWNER")
        for row, task in zip(rows, tasks, strict=True):
            row.insert(1, one_line(task.owner_thread_id))
    return Grid(columns, rows, cut=("OWNER", "DESCRIPTION", "DETAIL"))


def _brief(text: str) -> str:
    return shorten(one_line(text), _BRIEF)


def live_grid(tasks: Sequence[tuple[OwnedTask, str]], width: int, height: int) -> Grid:
    """Return the table of tasks under way, each with the last line of its output.

    Where there are more than ``height`` lines show, those that run come first.
    """
    columns = ("TASK", "STATUS", "ATTEMPT", "TIME", "DESCRIPTION", "LAST LINE")
    rows = [
        [*standing(task), _brief(task.summary.description), _brief(line)] for task, line in tasks
    ]
    grid = Grid(columns, rows, cut=("DESCRIPTION", "LAST LINE"))
    lines = 1 if grid.fits(width) else 2  # of a task, and of the header
    room = max(1, (height - 2 - lines) // lines)
    if len(tasks) <= room:
        return grid
    runs = [task.summary.status is TaskStatus.RUNNING for task, _ in tasks]
    order = sorted(range(len(tasks)), key=lambda n: (not runs[n], n))
    shown = [rows[n] for n in sorted(order[:room])]
    shown.append([f"and {len(tasks) - room} more", *[""] * (len(columns) - 1)])
    return attrs.evolve(grid, rows=shown)


def standing(task: OwnedTask) -> list[str]:
    """Return the first cells of a task's row: id, status, attempt, time."""
    summary = task.summary
    until_ms = summary.completed_at_ms
    until_s = time.time() if until_ms is None else until_ms / 1000
    return [
        one_line(summary.task_id),
        summary.status.value,
        str(summary.attempt),
        span(until_s - task.began_ms / 1000),
    ]


def detail(summary: TaskSummary) -> str:
    """Return what to say beside the status: why it ended so, what it asks, how far it is."""
    if summary.persistence_error is not None:
        return one_line(summary.persistence_error)
    if summary.queued:
        return "queued"
    if summary.error is not None:
        return one_line(summary.error)
    if summary.questions:
        more = len(summary.questions) - 1
        first = one_line(summary.questions[0].message)
        return f"asks: {first}" + (f" (and {more} more)" if more else "")
    return "" if summary.progress is None else _progress(summary.progress)


def _progress(progress: Progress) -> str:
    parts = [f"{progress.done:g}" if progress.total is None else _of(progress.done, progress.total)]
    if progress.message is not None:
        parts.append(progress.message)
    return one_line(" ".join(parts))


def _of(done: float, total: float) -> str:
    return f"{done:g}/{total:g}"


# ---- one task ------------------------------------------------------------------------------------


def record_json(record: TaskRecord, journal: Sequence[JournalEntry]) -> JsonObject:
    """Return everything that is stored of a task but its output."""
    task: JsonObject = {
        "owner_thread_id": record.owner_thread_id,
        **record.summary().to_json(),
        "args": record.args,
        "background": record.background,
        "checkpoint": record.checkpoint,
        "cancel_requested_at_ms": record.cancel_requested_at_ms,
        "executor_id": record.executor_id,
        "idempotency_key": record.idempotency_key,
        "output_bytes": record.output_bytes,
        "updated_at_ms": record.updated_at_ms,
    }
    return {"task": task, "journal": [_entry_json(entry) for entry in journal]}


def _entry_json(entry: JournalEntry) -> JsonObject:
    return attrs.asdict(entry)


def record_grid(record: TaskRecord) -> Grid:
    """Return the fields of a task that say something, one a row."""
    ref = None if record.result_ref is None else ref_to_json(record.result_ref)
    fields: list[tuple[str, str]] = [
        ("task", record.task_id),
        ("owner", record.owner_thread_id),
        ("type", record.task_type),
        ("description", record.description),
        ("status", record.status.value),
        ("attempt", str(record.attempt)),
        ("resumable", "yes" if record.supports_resume else "no"),
        ("parent", record.parent_task_id or ""),
        ("created", moment(record.created_at_ms)),
        ("cancel requested", moment(record.cancel_requested_at_ms)),
        ("ended", moment(record.completed_at_ms)),
        ("executor", record.executor_id or ""),
        ("progress", "" if record.progress is None else _progress(record.progress)),
        *(
            (f"asks ({question.question_id})", f"{question.message} {_compact(question.schema)}")
            for question in record.open_questions
        ),
        ("error", record.error or ""),
        ("arguments", _compact(record.args or None)),
        ("metadata", _compact(record.metadata or None)),
        ("result", _compact(record.result)),
        ("result is at", _compact(ref)),
        ("checkpoint", _compact(record.checkpoint)),
        ("output", size(record.output_bytes)),
    ]
    rows = [(name, one_line(text)) for name, text in fields if text]
    return Grid(("field", "value"), rows, wrapped=("value",), header=False)


def journal_grid(journal: Iterable[JournalEntry]) -> Grid:
    """Return the history of a task, oldest first."""
    return Grid(
        ("WHEN", "WHAT", "ATTEMPT", "STATUS", "EXECUTOR", "DETAIL"),
        [
            (
                moment(entry.at_ms),
                entry.kind.replace("_", " "),
                str(entry.attempt),
                entry.status.value,
                one_line(entry.executor_id or ""),
                one_line(entry.detail or ""),
            )
            for entry in journal
        ],
        cut=("EXECUTOR", "DETAIL"),
    )


def _compact(value: JsonValue) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)
