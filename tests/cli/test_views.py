"""What is printed of a task: safe, aligned, short."""

from __future__ import annotations

import io
import time
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from trio_bgtasks import Progress, Question, TaskStatus, TaskSummary
from trio_bgtasks.cli._text import last_line, moment, one_line, size, span
from trio_bgtasks.cli._views import Grid, OwnedTask, detail, live_grid, tasks_grid


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines\tand  blanks ", "two lines and blanks"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("\x1bcreset", "reset"),
        ("\x1b(Bcharset", "charset"),
        ("cut off \x1b[3", "cut off \ufffd[3"),
        ("\x9b31mC1", "\ufffd31mC1"),
        ("bell\x07 back\x08 del\x7f", "bell\ufffd back\ufffd del\ufffd"),
        ("turned \u202eback", "turned \ufffdback"),
        ("lone \ud800", "lone \ufffd"),
        ("[red]markup[/red]", "[red]markup[/red]"),
        ("\u65e5\u672c \U0001f600 caf\u00e9", "\u65e5\u672c \U0001f600 caf\u00e9"),
    ],
)
def test_text_is_made_harmless(text: str, shown: str) -> None:
    """Escape sequences go, other control characters are replaced, letters stay."""
    assert one_line(text) == shown


@given(st.text(st.characters(), max_size=60))
def test_nothing_steers_a_terminal(text: str) -> None:
    """Whatever the text, what is shown has one line and no control character."""
    shown = one_line(text)
    assert "\n" not in shown
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    shown.encode()


def test_the_last_line_is_what_a_terminal_would_show_last() -> None:
    """Blank lines are passed over; a carriage return begins the line again."""
    assert last_line("one\ntwo\n\n") == "two"
    assert last_line("10%\r20%\r") == "20%"
    assert last_line("\x1b[2K\n") == ""
    assert last_line("") == ""


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0.0s"), (0.44, "0.4s"), (9.94, "9.9s"), (9.96, "10s"), (59.6, "1m00s"), (185, "3m05s"),
     (7800, "2h10m"), (90000, "1d01h")],
)  # fmt: skip
def test_spans(seconds: float, shown: str) -> None:
    """A length of time is short, in two units at most."""
    assert span(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 30, "3.0 GiB"),
     (2 << 40, "2.0 TiB")],
)  # fmt: skip
def test_sizes(count: int, shown: str) -> None:
    """A number of bytes is in the unit that keeps it short."""
    assert size(count) == shown


def test_moments() -> None:
    """Times are local; an absent one is blank."""
    now = int(time.time())
    assert moment(now * 1000) == time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    assert moment(None) == ""


def test_a_plain_table_is_aligned() -> None:
    """Columns are as wide as their longest cell; no blanks at the end of a line."""
    grid = Grid(("A", "LONG"), [("12345", "x"), ("1", "yy")])
    assert grid.plain() == "A      LONG\n12345  x\n1      yy"
    assert attrs.evolve(grid, header=False).plain() == "12345  x\n1      yy"


@pytest.mark.parametrize("width", [30, 12, 5])
def test_what_is_wrapped_is_never_cut(width: int) -> None:
    """A narrow terminal shows all of it, over as many lines as that takes, none too long."""
    value = f"one two {'x' * 40}"
    grid = Grid(("field", "value"), [("corrupt", value)], wrapped=("value",), header=False)
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(grid.rich(width))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    shown = "".join("".join(lines).split())
    assert shown.startswith("corrupt"[:width])
    assert shown.count("x") == 40
    assert shown.replace("corrupt", "").startswith("onetwo")


def _task(name: str, status: TaskStatus = TaskStatus.RUNNING, **more: Any) -> OwnedTask:
    summary = TaskSummary(name, "shell", "d", status, 1000, **more)
    return OwnedTask("me", summary, 1000)


def test_the_detail_of_a_task() -> None:
    """What is not stored comes first, then the queue, the error, the questions, the progress."""
    asked = tuple(Question(f"q{n}", f"Sure\n{n}?", {}, 0) for n in (1, 2))
    every: dict[str, Any] = {
        "persistence_error": "not stored",
        "queued": True,
        "error": "broke",
        "questions": asked,
        "progress": Progress(1, 4, "going"),
    }
    shown: list[str] = []
    for name in every:
        shown.append(detail(_task("t", **every).summary))
        every = {**every, name: None}
    asks = "asks: Sure 1? (and 1 more)"
    assert shown == ["not stored", "queued", "broke", asks, "1/4 going"]
    assert detail(_task("t", questions=asked[:1]).summary) == "asks: Sure 1?"
    assert detail(_task("t").summary) == ""
    assert detail(_task("t", progress=Progress(2.5)).summary) == "2.5"


def test_a_task_takes_from_its_attempts_begin_to_its_end() -> None:
    """The time of an ended task does not go on."""
    ended = _task("t", TaskStatus.COMPLETED, completed_at_ms=6500)
    assert tasks_grid([ended]).rows[0][3] == "5.5s"


def test_the_live_table_fits_the_terminal() -> None:
    """Where there is no room for all, those that run are shown, in order, and the rest counted."""
    tasks = [
        (_task(str(n), TaskStatus.COMPLETED if n < 5 else TaskStatus.RUNNING), f"line {n}")
        for n in range(10)
    ]
    assert len(live_grid(tasks, 80, 20).rows) == 10
    rows = live_grid(tasks, 80, 10).rows
    assert [row[0] for row in rows] == ["0", "1", "5", "6", "7", "8", "9", "and 3 more"]
    assert rows[2][-1] == "line 5"
    assert len(live_grid(tasks, 80, 1).rows) == 2
    narrow = live_grid(tasks, 20, 10)
    assert [row[0] for row in narrow.rows] == ["5", "6", "7", "and 7 more"]
    console = Console(width=20, file=io.StringIO())
    with console.capture() as capture:
        console.print(narrow.rich(20))
    assert len(capture.get().splitlines()) == 9  # two a task and for the header
