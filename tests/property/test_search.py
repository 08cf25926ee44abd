"""The exhaustive search: what it goes through, and how short its counter-examples are."""

from __future__ import annotations

import re
import runpy

import pytest

from tests.property.planted import applies as broken
from trio_bgtasks import TaskRecord, UnknownTask
from trio_bgtasks.testing import LifecycleSearch, _search, search_lifecycle
from trio_bgtasks.testing._lifecycle_stage import Apply


def test_no_interleaving_breaks_a_promise() -> None:
    """Every state that two executors and their world can reach keeps every promise."""
    search = search_lifecycle()
    print(search)
    assert search.states > 50_000
    assert search.steps > 10 * search.states
    assert search.depth > 15
    assert str(search).startswith(f"no promise is broken in {search.states:,} states, ")


def test_who_refuses_everything_breaks_no_promise() -> None:
    """Nothing begins, so there is little to go through; the command says how much that was."""

    def refuse(task_id: str, *_: object) -> TaskRecord:
        raise UnknownTask(task_id)

    search = search_lifecycle(refuse)
    assert 1 < search.states < 200
    assert search.depth < 10


def test_the_command_says_how_much_it_went_through(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, of the whole search; a shorter one does here."""
    found = LifecycleSearch(states=1234, steps=56789, depth=12)
    monkeypatch.setattr(_search, "search_lifecycle", lambda: found)
    runpy.run_module("trio_bgtasks.testing", run_name="__main__")
    said = (
        "no promise is broken in 1,234 states, 56,789 steps between them, at most 12 from the start"
    )
    assert capsys.readouterr().out == f"{said}\n"


@pytest.mark.parametrize(
    ("bug", "promise", "length"),
    [
        (broken.executor_stays_named, 6, 2),
        (broken.failure_is_a_stop, 2, 2),
        (broken.late_cancel_is_accepted, 3, 3),
        (broken.late_cancel_tells_nothing, 5, 3),
        (broken.late_success_beats_a_cancel, 5, 3),
        (broken.live_task_is_reaped, 6, 3),
        (broken.loser_is_told_a_wrong_status, 7, 3),
        (broken.running_task_is_resumed, 1, 3),
        (broken.stopped_task_cannot_be_cancelled, 5, 3),
        (broken.collected_id_is_used_again, 3, 4),
        (broken.ended_task_is_resumed, 3, 4),
        (broken.fence_is_ignored, 4, 4),
        (broken.resume_keeps_the_number, 3, 4),
        (broken.checkpoint_is_lost_in_a_resume, 2, 5),
        (broken.late_end_is_taken, 4, 5),
        (broken.cancel_is_lost_in_a_crash, 5, 6),
        (broken.marked_orphan_is_lost, 6, 6),
        (broken.resume_is_not_compared, 7, 7),
    ],
)
def test_a_shortest_way_to_a_planted_bug_is_told(bug: Apply, promise: int, length: int) -> None:
    """A broken `apply` is found, with the promise, and with no step that it could do without."""
    with pytest.raises(AssertionError) as found:
        search_lifecycle(bug)
    first, *steps = str(found.value).splitlines()
    assert re.match(rf"promise {promise} \(.*\) is broken:$", first)
    assert [int(step.split(".")[0]) for step in steps] == list(range(1, length + 1))


def test_the_steps_can_be_read() -> None:
    """A counter-example tells who did what, and what came of it."""
    with pytest.raises(AssertionError) as found:
        search_lifecycle(broken.resume_is_not_compared)
    assert (
        str(found.value)
        == """\
promise 7 (exactly one of several concurrent resumes wins) is broken:
  1. ex_1 starts the task -> running, attempt 1 under ex_1
  2. ex_1, about to resume, reads: running, attempt 1 under ex_1
  3. attempt 1 of ex_1 tells that it has stopped -> stopped, attempt 1
  4. ex_2, about to resume, reads: stopped, attempt 1
  5. ex_1 resumes the task after attempt 1 -> running, attempt 2 under ex_1
  6. attempt 2 of ex_1 tells that it has stopped -> stopped, attempt 2
  7. ex_2 resumes the task after attempt 1 -> running, attempt 3 under ex_2"""
    )
