"""Shrink planted bugs: ``python -m tests.property.planted``, with parts of names for some of them.

Without names, all of them; the table in ``docs/explanation/planted-bugs.md`` is written then. Each
bug has a process of its own, as many at a time as there are cores.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from inspect import getattr_static
from pathlib import Path

import attrs
from hypothesis import Phase
from hypothesis.internal.conjecture import engine
from hypothesis.stateful import RULE_MARKER

from tests.property.planted.bugs import BUGS, PlantedBug, first_line

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "planted-bugs.md"
BEGIN = "<!-- written by python -m tests.property.planted: begin -->\n"
END = "<!-- end of what was written -->"

_HEAD = """
| bug | what is wrong | machine | steps | what the machine says |
| --- | --- | --- | --- | --- |
"""
_AIM = 12  # steps
_SHRINK_S = 20  # Hypothesis' own bound is 300, which goes into values that are no steps
_MOST = 150  # characters of what a machine says
_STEP = re.compile(r"^(?:[\w, ]+ = )?state\.(\w+)\(", re.MULTILINE)


@attrs.frozen
class Shrunk:
    """What is left of the way to a bug: the rules in their order, and what was said at last."""

    rules: tuple[str, ...]
    said: str
    took_s: float


def shrink(number: int) -> Shrunk:
    """Find a bug of the table, and shrink the way to it.

    Short runs are tried first: what they find takes little time to shrink.
    """
    logging.disable()  # many stores fail on the way
    engine.MAX_SHRINKING_SECONDS = _SHRINK_S
    bug, began = BUGS[number], time.monotonic()
    for steps, examples in ((5, 200), (_AIM, 400), (bug.steps, 1000)):
        with contextlib.redirect_stdout(None):  # where Hypothesis says that it stopped shrinking
            failure = bug.failure(Phase.generate, Phase.shrink, steps=steps, examples=examples)
        if failure is not None:
            took_s = time.monotonic() - began
            return Shrunk(tuple(_rules(bug, failure)), first_line(failure), took_s)
    raise AssertionError(f"{bug.name} was not found")


def _rules(bug: PlantedBug, failure: BaseException) -> Iterator[str]:
    """Yield the rules of the example that Hypothesis replayed last, and noted on its failure.

    Not the beginning, the end and the invariants, which every example has.
    """
    for name in _STEP.findall("\n".join(failure.__notes__)):
        if hasattr(getattr_static(bug.machine, name, None), RULE_MARKER):
            yield name


def _row(bug: PlantedBug, shrunk: Shrunk) -> str:
    said = (
        re.sub(r"\b(ex|task)_[0-9a-f]{32}\b", r"\1_…", shrunk.said)
        .replace("|", "/")
        .replace("`", "'")
    )
    if len(said) > _MOST:
        said = said[: _MOST - 1] + "…"
    name, machine, steps = f"`{bug.name}`", f"`{bug.machine.__name__}`", str(len(shrunk.rules))
    return f"| {' | '.join((name, bug.wrong, machine, steps, f'`{said}`'))} |\n"


def _write(found: list[Shrunk]) -> None:
    rows = "".join(map(_row, BUGS, found))
    lengths = [len(shrunk.rules) for shrunk in found]
    longer = sum(length > _AIM for length in lengths)
    summary = f"{len(found)} bugs. The longest way has {max(lengths)} steps, {longer} have more than {_AIM}."
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n{summary}\n{_HEAD}{rows}\n{END}{tail}", encoding="utf-8")


def main(names: list[str]) -> str | None:
    """Shrink what is named, or everything; return which bugs were not found for their reason."""
    numbers = [
        number
        for number, bug in enumerate(BUGS)
        if not names or any(name in bug.name for name in names)
    ]
    found: list[Shrunk] = []
    wrong: list[str] = []
    with ProcessPoolExecutor(
        os.cpu_count(), multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as workers:
        for number, shrunk in zip(numbers, workers.map(shrink, numbers), strict=True):
            bug = BUGS[number]
            way = " -> ".join(shrunk.rules) or "(beginning and end)"
            print(f"{bug.name}: {len(shrunk.rules)} steps, {shrunk.took_s:.0f} s: {way}")
            print(f"  {shrunk.said}", flush=True)
            found.append(shrunk)
            if re.search(bug.report, shrunk.said) is None:
                wrong.append(f"{bug.name} has to be found as {bug.report!r}, not: {shrunk.said}")
    if wrong:
        return "\n".join(wrong)
    if not names:
        _write(found)
    return None
