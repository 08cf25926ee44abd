"""What is given to a manager: each field is checked when it is given, and the error names it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
import trio.testing

from tests.support import OWNER, ended, forever, request
from trio_bgtasks import (
    LeaseTerms,
    ManagerConfig,
    MemoryTaskStore,
    SqliteTaskStore,
    TaskStatus,
    open_task_manager,
)

SECONDS = ["shutdown_grace_s", "attempt_deadline_s", "owner_idle_s", "retention_s"]
PERIODS = ["write_grace_s", "sweep_s", "poll_s"]
HUGE = 10**5000  # more than a float holds, and more digits than Python writes


def configured(field: str, value: Any) -> ManagerConfig:
    """Return a configuration with one field that is not the default."""
    fields: dict[str, Any] = {field: value}
    if field in ("lease_s", "renew_s", "stall_s"):
        fields = {"lease": LeaseTerms(**fields)}
    return ManagerConfig(**fields)


def test_a_resume_names_its_task() -> None:
    """An attempt that stopped is one of a certain task."""
    with pytest.raises(ValueError, match=r"^task_id is required with resume_attempt$"):
        request(resume_attempt=1)


@pytest.mark.parametrize("field", [*SECONDS, *PERIODS])
def test_seconds_are_what_a_clock_can_add(field: str) -> None:
    """A time that is negative, infinite or beyond a float is refused where it is given."""
    for value in (-1, -math.inf, math.inf, math.nan, HUGE, -HUGE):
        with pytest.raises(ValueError, match=f"^{field} must be finite and not negative$"):
            configured(field, value)


@pytest.mark.parametrize("field", [*SECONDS, *PERIODS, "lease_s", "renew_s", "stall_s"])
@pytest.mark.parametrize("value", ["1", True, b"", 1j, []])
def test_seconds_are_numbers(field: str, value: Any) -> None:
    """The error names the field and the kind of the value."""
    text = f"^{field} must be a number of seconds, not {type(value).__name__}$"
    with pytest.raises(TypeError, match=text):
        configured(field, value)


@pytest.mark.parametrize("field", PERIODS)
def test_what_is_waited_for_again_and_again_takes_time(field: str) -> None:
    """Without a pause a loop never ends; without time to write no end is ever stored."""
    with pytest.raises(ValueError, match=f"^{field} must be more than 0$"):
        configured(field, 0)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"lease_s": 0}, "lease_s must be more than 0"),
        ({"renew_s": 0}, "renew_s must be more than 0"),
        ({"stall_s": 0}, "stall_s must be more than 0"),
        ({"lease_s": -1}, "lease_s must be finite and not negative"),
        ({"renew_s": math.nan}, "renew_s must be finite and not negative"),
        ({"stall_s": math.inf}, "stall_s must be finite and not negative"),
        ({"lease_s": 1e10}, "lease_s must be at most 1000000000"),
        ({"renew_s": 30}, "renew_s must be less than lease_s: the lease would run out"),
        ({"lease_s": 5}, "renew_s must be less than lease_s: the lease would run out"),
    ],
)
def test_lease_terms_are_checked(fields: dict[str, Any], text: str) -> None:
    """A lease that nobody could keep is refused when it is made."""
    with pytest.raises(ValueError, match=f"^{text}$"):
        LeaseTerms(**fields)


def test_lease_terms_that_can_be_kept() -> None:
    """The longest and the shortest are taken as they are given."""
    for terms in (LeaseTerms(1e9, 9e8, 1e9), LeaseTerms(1e-3, 1e-4, 1e-5), LeaseTerms(2, 1, None)):
        assert ManagerConfig(lease=terms).lease is terms


@pytest.mark.parametrize("field", [*SECONDS, *PERIODS])
async def test_a_manager_lives_with_the_longest_times(
    field: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Whatever is taken, as a float or an integer, does not end the manager later."""
    for value in (1e308, 10**308):
        async with open_task_manager(config=configured(field, value)) as manager:
            await manager.start(request(task_id="t", deadline_s=value), forever)
            await trio.sleep(100)
            summary = await manager.cancel(OWNER, "t")
            assert (await ended(manager, summary)).status is TaskStatus.CANCELLED


@pytest.mark.parametrize("field", ["attempts_per_owner", "attempts_total", "description_chars"])
def test_counts_are_whole_and_at_least_one(field: str) -> None:
    """What is no count names the field; what is too large to write is not written."""
    with pytest.raises(TypeError, match=f"^{field} must be an integer, not float$"):
        configured(field, 1.0)
    for value in (0, -HUGE):
        with pytest.raises(ValueError, match=f"^{field} must be at least 1$"):
            configured(field, value)
    with pytest.raises(ValueError, match=f"^{field} must be within 64 bits$"):
        configured(field, HUGE)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("x", "str"),
        (5, "int"),
        (object(), "object"),
        (MemoryTaskStore, "the class MemoryTaskStore"),
        (SqliteTaskStore.open("never"), "_AsyncGeneratorContextManager"),
    ],
    ids=["text", "number", "object", "class", "not entered"],
)
def test_what_is_no_store_is_refused_at_once(value: Any, kind: str) -> None:
    """One sentence, before anything is opened."""
    with pytest.raises(TypeError, match=f"^store must be an open TaskStore, not {kind}$"):
        open_task_manager(value)
