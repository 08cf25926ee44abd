"""Every planted bug is found by its machine, for its reason; the page of the docs has them all."""

from __future__ import annotations

import re

import pytest
from hypothesis import Phase

from tests.property.planted.bugs import BUGS, Machine, PlantedBug, first_line
from tests.property.planted.shrinking import PAGE
from trio_bgtasks.testing import RuntimeMachine, TaskStoreMachine

# Which of the promises that a bug breaks is met first goes by what is drawn, and so by every module
# that Hypothesis reads. On the page, at the end of the shortest way, it is the one that is wanted.
A_PROMISE: dict[Machine, str] = {
    RuntimeMachine: r"^promise \d+: ",
    TaskStoreMachine: "^the store broke a promise: ",
}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: PlantedBug) -> None:
    """It is found without shrinking, and the first line that is said names what it breaks."""
    failure = bug.failure(Phase.generate)
    assert failure is not None
    said, wanted = first_line(failure), A_PROMISE.get(bug.machine, bug.report)
    assert re.search(wanted, said), f"{wanted!r} is not in: {said}"


def test_the_page_has_every_bug() -> None:
    """The page lists the bugs that there are, what is wrong, and a way that shows just that."""
    cells = re.findall(
        r"^\| `(.+?)` \| (.+?) \| `(\w+)` \| (\d+) \| `(.*)` \|$",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    told = [(name, wrong, machine) for name, wrong, machine, _, _ in cells]
    assert told == [(bug.name, bug.wrong, bug.machine.__name__) for bug in BUGS]
    for bug, (*_, said) in zip(BUGS, cells, strict=True):
        assert re.search(bug.report, said), f"{bug.name}: {bug.report!r} is not in: {said}"
