from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import Cli
from tests.processes import Marked, marked

__all__ = ["marked"]


@pytest.fixture
def cli(tmp_path: Path, marked: Marked, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command, on a database of the test's own; no process of it outlives the test."""
    monkeypatch.setenv("TRIO_BGTASKS_DB", str(tmp_path / "state" / "tasks.db"))
    return Cli(tmp_path / "state" / "tasks.db", marked)
