"""Fixtures: a manager in memory; on virtual time where the test itself asks for the clock."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from trio_bgtasks import BackgroundTaskManager, open_task_manager


@pytest.fixture
async def runtime() -> AsyncGenerator[BackgroundTaskManager, None]:
    """Open a manager in memory."""
    async with open_task_manager() as manager:
        yield manager
