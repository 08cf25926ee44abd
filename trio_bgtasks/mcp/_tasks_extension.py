"""The extension ``io.modelcontextprotocol/tasks`` of 2026-07-28: get, update, cancel, push."""

from __future__ import annotations

import json
from collections import Counter
from hashlib import sha256
from typing import Any

import trio
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import SUBSCRIPTION_ID_META_KEY
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    SubscriptionFilter,
    SubscriptionsAcknowledgedNotification,
    SubscriptionsAcknowledgedNotificationParams,
    SubscriptionsListenRequestParams,
    SubscriptionsListenResult,
)

from .._json import JsonObject
from ._answers import Answers, WrongAnswer
from ._protocol import (
    Context,
    TaskParams,
    TaskPush,
    UpdateParams,
    check_name_header,
    require_extension,
    task_errors,
)
from ._view import View

_MOST_LISTENERS = 1024
"""Subscriptions of one owner: another's are not its to use up."""
_MOST_TASKS = 1000


class TasksExtension:
    """Answers requests of clients that declared the extension; others are refused."""

    def __init__(self, view: View, answers: Answers) -> None:
        self._view = view
        self._answers = answers
        self._listeners = Counter[str]()

    async def get(self, ctx: Context, params: TaskParams) -> JsonObject:
        """Answer ``tasks/get``: the whole task."""
        self._check(ctx, params)
        return (await self._view.known(ctx, params.task_id)).modern()

    async def cancel(self, ctx: Context, params: TaskParams) -> JsonObject:
        """Answer ``tasks/cancel``: accepted, or too late; the same answer."""
        self._check(ctx, params)
        await self._view.cancel(ctx, params.task_id)
        return {}

    async def update(self, ctx: Context, params: UpdateParams) -> JsonObject:
        """Answer ``tasks/update``: every response that fits is passed on, others are named."""
        self._check(ctx, params)
        record = (await self._view.known(ctx, params.task_id)).record
        wrong: list[str] = []
        with task_errors():
            for key, response in params.input_responses.items():
                try:
                    await self._answers.give(record, key, response)
                except WrongAnswer as error:
                    wrong.append(error.message)
        if wrong:
            raise MCPError(INVALID_PARAMS, "; ".join(wrong))
        return {}

    def _check(self, ctx: Context, params: TaskParams) -> None:
        require_extension(ctx)
        check_name_header(ctx, params.task_id)

    # ---- push ---------------------------------------------------------------------------------

    async def listen(
        self, ctx: Context, params: SubscriptionsListenRequestParams
    ) -> SubscriptionsListenResult:
        """Answer ``subscriptions/listen``: tell of these tasks until the client leaves.

        Each is told of at once, and then whenever it looks different. A client that reads slowly
        gets the latest state only; nobody waits for it.
        """
        asked: Any = (params.notifications.model_extra or {}).get("taskIds")
        if asked is not None:
            require_extension(ctx)
        task_ids = _checked_ids(asked)
        owner = self._view.owner(ctx)
        if self._listeners[owner] >= _MOST_LISTENERS:
            raise MCPError(INTERNAL_ERROR, "Too many subscriptions")
        self._listeners[owner] += 1
        try:
            await self._listen(ctx, owner, task_ids)
        finally:
            self._listeners[owner] -= 1
            self._listeners += Counter()  # without those that are zero
        raise AssertionError  # pragma: no cover - it ends by cancellation only

    async def _listen(self, ctx: Context, owner: str, task_ids: list[str]) -> None:
        assert ctx.request_id is not None
        meta = {SUBSCRIPTION_ID_META_KEY: ctx.request_id}
        known = [i for i in task_ids if await self._view.find(ctx, owner, i) is not None]
        honored = SubscriptionFilter.model_validate({"taskIds": known} if known else {})
        acknowledged = SubscriptionsAcknowledgedNotificationParams(
            notifications=honored, _meta=meta
        )
        await ctx.session.send_notification(
            SubscriptionsAcknowledgedNotification(params=acknowledged),
            related_request_id=ctx.request_id,
        )
        if not known:
            await trio.sleep_forever()
        told: dict[str, bytes] = {}
        async with ctx.lifespan_context.watch(owner, known) as news:
            changed = news.watched
            while True:
                for task_id in changed:
                    await self._tell(ctx, owner, task_id, told, meta)
                changed = await news.next()

    async def _tell(
        self,
        ctx: Context,
        owner: str,
        task_id: str,
        told: dict[str, bytes],
        meta: dict[str, Any],
    ) -> None:
        try:
            seen = await self._view.find(ctx, owner, task_id)
        except MCPError:
            return  # the store failed, and that was logged; there will be other news
        if seen is None:
            return  # collected
        task = seen.modern()
        digest = sha256(json.dumps(task).encode()).digest()  # results may be large
        if told.get(task_id) != digest:
            told[task_id] = digest
            push = TaskPush(params={**task, "_meta": meta})
            await ctx.session.send_notification(push, related_request_id=ctx.request_id)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] - open to extensions


def _checked_ids(asked: object) -> list[str]:
    """Return the ids that a client asked for, each once."""
    if asked is None:
        return []
    found: list[Any] = asked if isinstance(asked, list) else [None]  # pyright: ignore[reportUnknownVariableType]
    if not all(isinstance(task_id, str) for task_id in found):
        raise MCPError(INVALID_PARAMS, "taskIds must be a list of strings")
    task_ids: list[str] = list(dict.fromkeys(found))
    if len(task_ids) > _MOST_TASKS:
        raise MCPError(INVALID_PARAMS, f"taskIds must be at most {_MOST_TASKS}")
    return task_ids
