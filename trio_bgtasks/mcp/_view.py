"""The tasks of whoever makes a request: found, or unknown; cancelled."""

from __future__ import annotations

from .._errors import TaskNotRunning
from .._manager import BackgroundTaskManager
from ._look import Seen, look
from ._owners import OwnerOf
from ._protocol import Context, can_answer, task_errors, unknown_task
from ._toolbox import Toolbox


class View:
    """What both eras need of the manager."""

    def __init__(self, manager: BackgroundTaskManager, toolbox: Toolbox, owner_of: OwnerOf) -> None:
        self.manager = manager
        self.owner = owner_of
        self._toolbox = toolbox

    async def find(self, ctx: Context, owner: str, task_id: str) -> Seen | None:
        """Return how a task of the owner stands; None when it has no such task.

        Raises:
            MCPError: the store failed.
        """
        with task_errors():
            return await look(
                self.manager,
                owner,
                task_id,
                can_answer=can_answer(ctx),
                resumable=self._toolbox.resumable,
            )

    async def known(self, ctx: Context, task_id: str) -> Seen:
        """Return how a task stands.

        Raises:
            MCPError: the requester has no such task, or the store failed.
        """
        seen = await self.find(ctx, self.owner(ctx), task_id)
        if seen is None:
            raise unknown_task()
        return seen

    async def cancel(self, ctx: Context, task_id: str) -> bool:
        """Cancel a task and all below it; tell if there was anything to cancel.

        When it returns true the cancel is stored. What the wire shows as ended stays as it is.

        Raises:
            MCPError: the requester has no such task, or the store failed.
        """
        if (await self.known(ctx, task_id)).state.is_terminal:
            return False
        with task_errors():
            try:
                await self.manager.cancel_tree(self.owner(ctx), task_id)
            except TaskNotRunning:
                return False
        return True
