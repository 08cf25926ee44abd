"""Hypothesis profiles: ``pytest --hypothesis-profile=nightly``; fixtures of several rooms."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

from tests.scripted import manager, store

__all__ = ["manager", "store"]

# No deadlines: they measure the machine.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile(  # ten times the others, and new examples every time
    "nightly", deadline=None, max_examples=1000, derandomize=False, print_blob=True
)
settings.load_profile("ci" if "CI" in os.environ else "default")


def pytest_collection_finish() -> None:
    """Leave what was imported out of every collection to come: tests that look for leaks collect."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Captured text may hold lone surrogates, on purpose; a worker's report cannot be sent then."""
    report = yield
    report.sections = [
        (name, text.encode(errors="replace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts() -> Iterator[None]:
    """SIGINT raises `KeyboardInterrupt`, also where a shell started us with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
