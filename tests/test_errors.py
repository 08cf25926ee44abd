"""Errors cross processes: whoever gets one by pickle, or a copy of it, gets all of it."""

from __future__ import annotations

import copy
import pickle

import pytest

from trio_bgtasks._errors import (
    CorruptRecord,
    IdempotencyKeyUsed,
    StaleAttempt,
    StoreBusy,
    TaskError,
    TaskExists,
    UnknownTask,
)


@pytest.mark.parametrize(
    "error",
    [
        UnknownTask("t"),
        TaskExists("t", "running"),
        IdempotencyKeyUsed("t", "key"),
        StaleAttempt("t", 1, 2, "running"),
        CorruptRecord("t", "cut off"),
        StoreBusy("later"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling_and_copying(error: TaskError, protocol: int) -> None:
    """Its type, its text and its fields are those of the original, and no text is said twice."""
    error.add_note("seen by a test")
    for same in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(same) is type(error)
        assert (str(same), vars(same)) == (str(error), vars(error))
