"""Fixtures: where the clients are installed, and a server for them."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.clients.server import Server
from tests.processes import Marked, marked

__all__ = ["marked"]

HOME = "TRIO_BGTASKS_CLIENTS"
"""The variable that names the folder in which ``nox -s clients`` installs the clients."""


@pytest.fixture
def installed() -> Path:
    """Return the folder of the clients; without it the test is skipped."""
    home = os.environ.get(HOME)
    if home is None:
        pytest.skip(f"no clients are installed ({HOME} is not set); run: nox -s clients")
    return Path(home)


@pytest.fixture
def sdk_1(installed: Path) -> Path:
    """Return the Python that has the SDK 1.30."""
    return client(installed / "sdk-1/bin/python")


@pytest.fixture
def fastmcp(installed: Path) -> Path:
    """Return the Python that has FastMCP."""
    return client(installed / "fastmcp/bin/python")


@pytest.fixture
def inspector(installed: Path) -> Path:
    """Return the folder of the programs of the MCP Inspector."""
    return client(installed / "node_modules/@modelcontextprotocol/inspector/clients")


def client(path: Path) -> Path:
    """Return a path in the folder of the clients; that something moved there is no reason to skip."""
    assert path.exists(), f"{path} is not installed; run: nox -s clients"
    return path


@pytest.fixture
def folder(installed: Path, tmp_path: Path, marked: Marked) -> Path:
    """Return an empty folder, of which no process is left at the end of the test."""
    return tmp_path


@pytest.fixture
async def server(folder: Path) -> AsyncGenerator[Server, None]:
    """Serve over HTTP."""
    server = Server(folder)
    try:
        await server.start()
        yield server
    finally:
        await server.kill()
