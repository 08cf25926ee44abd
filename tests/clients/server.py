"""`Server`: the real `trio-bgtasks serve` over HTTP, which can be killed and started again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import attrs
import trio

from tests.cli.command import environment
from tests.processes import until
from trio_bgtasks.testing._processes import MARK

TOKEN = "a-token-of-the-tests-only"
SERVE = (
    *("-P", "-m", "trio_bgtasks.cli", "serve"),
    *("--env", MARK, "--tools", "tests.clients.tools:deploy"),
)


def variables(folder: Path) -> dict[str, str]:
    """The environment of servers and clients: all that they keep is in this folder."""
    own = {"TRIO_BGTASKS_DB": str(folder / "tasks.db"), "HOME": str(folder)}
    return environment() | own


@attrs.define
class Server:
    """A server over HTTP, with all that it knows in ``folder``."""

    folder: Path
    address: str = "127.0.0.1:0"
    process: trio.Process | None = None

    async def start(self) -> None:
        """Start it; again at the same address."""
        tokens, log = self.folder / "tokens", self.folder / "server.log"
        tokens.touch(0o600)
        tokens.write_text(f"ann {TOKEN}\n")
        with log.open("wb") as file:
            self.process = await trio.lowlevel.open_process(
                [sys.executable, *SERVE, "--http", self.address, "--tokens", str(tokens)],
                stderr=file,
                cwd=self.folder,
                env=variables(self.folder),
            )
        process = self.process
        await until(lambda: "/mcp" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        self.address = log.read_text().split("serving at http://")[1].partition("/")[0]

    async def kill(self) -> None:
        """End it by kill -9."""
        if self.process is not None:
            with trio.CancelScope(shield=True):
                self.process.kill()
                await self.process.wait()

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"http://{self.address}/mcp"

    @property
    def target(self) -> dict[str, Any]:
        """What a client's script is told of it."""
        return {"url": self.url, "token": TOKEN}
