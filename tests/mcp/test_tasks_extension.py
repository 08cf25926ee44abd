"""The extension of 2026-07-28, as a client sees it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.mcp.conformance.server import FailingJob
from tests.mcp.wire import (
    EXTENSION,
    FORM,
    OWNER,
    SILENT,
    TASKS,
    Function,
    Refusal,
    ask,
    connected,
    give_up,
    hello,
    served,
)
from trio_bgtasks import (
    BackgroundCapable,
    BackgroundExecution,
    BackgroundTaskManager,
    Rejected,
    Stopped,
    TaskStatus,
    ToolCallContext,
    ToolResult,
)
from trio_bgtasks.mcp import chosen_owner

METHODS: list[tuple[str, dict[str, Any]]] = [
    *(("get", {}), ("cancel", {}), ("update", {"inputResponses": {}})),
]


async def test_a_call_that_lasts_becomes_a_task(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A call that does not end within a moment is answered as a task; its end has the result that the call would have had."""
    async with connected(served(runtime), TASKS) as client:
        created = await client.call("work", seconds=5, output="some\n")
        assert created["resultType"] == "task"
        assert created["status"] == "working"
        assert not {"result", "error", "inputRequests", "task"} & created.keys()
        working = await client.get(created["taskId"])
        assert (working["status"], working["resultType"]) == ("working", "complete")
        await runtime.wait(OWNER, created["taskId"])
        ended = await client.get(created["taskId"])
        assert ended["status"] == "completed"
        assert [block["text"] for block in ended["result"]["content"]] == [
            "some\n",
            '{"slept": 5.0}',
        ]
        assert ended["result"]["structuredContent"] == {"slept": 5}
        assert ended["result"]["isError"] is False


async def test_a_call_that_ends_in_a_moment_is_answered(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A call that ends within a moment is answered with its result; no task is left to ask for."""
    async with connected(served(runtime), TASKS) as client:
        answer = await client.call("work", seconds=0.1)
        assert answer["resultType"] == "complete"
        assert answer["structuredContent"] == {"slept": 0.1}
        assert "taskId" not in answer


async def test_ids_cannot_be_guessed(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A task's id has 128 random bits, and each task another one."""
    async with connected(served(runtime), TASKS) as client:
        ids = {(await client.call("work", seconds=9))["taskId"] for _ in range(20)}
        assert len(ids) == 20
        assert all(re.fullmatch("task_[0-9a-f]{32}", task_id) for task_id in ids)
        bits = [int(task_id[5:], 16) for task_id in ids]
        assert all(any(n >> bit & 1 for n in bits) for bit in range(128))


async def test_created_is_stored(autojump_clock: MockClock, runtime: BackgroundTaskManager) -> None:
    """What is answered as created is in the store already: a get right after it resolves."""
    async with connected(served(runtime), TASKS) as client:
        created = await client.call("work", seconds=9)
        record = await runtime.find(created["taskId"])
        assert record is not None
        assert record.owner_thread_id == OWNER


async def test_the_model_decides_for_the_background(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A call with run_in_background is answered with an id for the model, also to a client that takes tasks."""
    async with connected(served(runtime), TASKS) as client:
        answer = await client.call("work", seconds=9, run_in_background=True)
        assert answer["resultType"] == "complete"
        task_id = answer["structuredContent"]["task_id"]
        assert (await client.call("task_status", task_id=task_id))["structuredContent"][
            "status"
        ] == "running"
        assert (await client.get(task_id))["status"] == "working"  # it is one all the same


async def test_other_clients_get_no_tasks(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """Who did not declare the extension gets the result itself, and may not ask for tasks."""
    async with connected(served(runtime)) as client:
        assert (await client.call("work", seconds=9))["structuredContent"] == {"slept": 9}
        for method, more in METHODS:
            with pytest.raises(Refusal) as refusal:
                await client.request(f"tasks/{method}", {"taskId": "x", **more})
            assert refusal.value.code == -32021
            required = refusal.value.error["data"]["requiredCapabilities"]
            assert required == {"extensions": {EXTENSION: {}}}
        with pytest.raises(Refusal) as refusal:
            await client.request("subscriptions/listen", {"notifications": {"taskIds": ["x"]}})
        assert refusal.value.code == -32021
    async with connected(served(runtime, FailingJob())) as client:
        with pytest.raises(Refusal) as refusal:
            await client.call("failing_job")
        assert refusal.value.code == -32021


async def test_what_2025_had_is_gone(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """tasks/result and tasks/list are no methods of this era."""
    async with connected(served(runtime), TASKS) as client:
        for method in ("tasks/result", "tasks/list"):
            with pytest.raises(Refusal) as refusal:
                await client.request(method, {"taskId": "x"})
            assert refusal.value.code == -32601


# ---- whose tasks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", ["task_0", "", " ", "x" * 300, "a\nb"])
async def test_foreign_and_unknown_are_alike(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, task_id: str
) -> None:
    """For somebody else's task the answer is, byte for byte, that for an id that nobody has."""
    async with (
        connected(served(runtime), TASKS) as owner,
        connected(served(runtime, owner_of=chosen_owner("other")), TASKS) as other,
    ):
        foreign = (await owner.call("work", seconds=9))["taskId"]
        for method, more in METHODS:
            errors: list[Any] = []
            for asked in (foreign, task_id):
                with pytest.raises(Refusal) as refusal:
                    await other.request(f"tasks/{method}", {"taskId": asked, **more})
                errors.append(refusal.value.error)
            assert errors[0] == errors[1]
            assert errors[0]["code"] == -32602
        assert (await owner.get(foreign))["status"] == "working"


async def test_tasks_outlive_connection_and_server(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A client that connects again, to another server of the same runtime, finds its task."""
    async with connected(served(runtime), TASKS) as client:
        task_id = (await client.call("work", seconds=9))["taskId"]
    async with connected(served(runtime), TASKS) as client:
        assert (await client.get(task_id))["status"] == "working"
        await runtime.wait(OWNER, task_id)
        assert (await client.get(task_id))["status"] == "completed"


# ---- ends ----------------------------------------------------------------------------------------


async def test_a_tools_own_error_is_a_result(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """What a tool raises is a result that is an error, whether its call became a task or not."""
    async with connected(served(runtime), TASKS) as client:
        answer = await client.call("fail")
        assert answer["isError"] is True
        assert answer["content"][0]["text"] == "ValueError: wrong"
        (task,) = await runtime.list_tasks(OWNER)
        ended = await client.get(task.task_id)
        assert ended["status"] == "completed"
        assert ended["result"] == {k: answer[k] for k in ("content", "isError")}


async def test_a_broken_tool_is_an_error_of_the_protocol(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """What a tool raises as InternalError is a JSON-RPC error, of the call and of its task."""
    async with connected(served(runtime), TASKS) as client:
        with pytest.raises(Refusal) as refusal:
            await client.call("fail", kind="internal")
        assert refusal.value.code == -32603
        (task,) = await runtime.list_tasks(OWNER)
        ended = await client.get(task.task_id)
        assert ended["status"] == "failed"
        assert ended["error"] == refusal.value.error
        assert "result" not in ended


async def test_errors_of_answered_calls(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """What a tool raises in a call that is no task is told in the same way."""
    async with connected(served(runtime)) as client:
        assert (await client.call("fail"))["content"][0]["text"] == "ValueError: wrong"
        with pytest.raises(Refusal, match="broken") as refusal:
            await client.call("fail", kind="internal")
        assert refusal.value.code == -32603
        shown = await client.call("work", output="said\n")
        assert shown["content"][0]["text"] == "said\n"
        shown = await client.call("fail", output="said\n")
        assert [block["text"] for block in shown["content"]] == ["said\n", "ValueError: wrong"]
        assert shown["isError"] is True


async def test_a_task_that_stopped_for_good_has_failed(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """What stopped and cannot be resumed has failed; cancelled later, it is shown as before."""
    async with connected(served(runtime), TASKS) as client:
        with pytest.raises(Refusal) as refusal:
            await client.call("give_up")
        assert refusal.value.error["data"] == {"status": "stopped", "reason": "gave up"}
        (task,) = await runtime.list_tasks(OWNER)
        before = await client.get(task.task_id)
        assert before["status"] == "failed"
        assert await client.request("tasks/cancel", {"taskId": task.task_id}) == {
            "resultType": "complete",
            "_meta": before["_meta"],
        }
        assert (await client.get(task.task_id)) == before
        await runtime.cancel(OWNER, task.task_id)  # from the command line, for instance
        assert (await client.get(task.task_id)) == before


async def test_cancel(autojump_clock: MockClock, runtime: BackgroundTaskManager) -> None:
    """A cancel is acknowledged, takes effect with all below the task, and again changes nothing."""
    async with connected(served(runtime), TASKS) as client:
        task_id = (await client.call("patient"))["taskId"]
        for _ in range(2):
            answer = await client.request("tasks/cancel", {"taskId": task_id})
            assert answer.keys() == {"resultType", "_meta"}
            await runtime.wait(OWNER, task_id)
        assert (await client.get(task_id))["status"] == "cancelled"


async def test_cancelled_within_the_moment(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A call whose task is cancelled before it was answered says so."""
    async with connected(served(runtime), TASKS) as client:
        number = await client.post("tools/call", {"name": "patient", "arguments": {}})
        await trio.sleep(0.1)
        (task,) = await runtime.list_tasks(OWNER)
        await runtime.cancel(OWNER, task.task_id)
        answer = await client.answer_to(number)
        assert answer["isError"] is True
        assert answer["content"][0]["text"] == "The call was cancelled"


async def test_refused_calls(autojump_clock: MockClock, runtime: BackgroundTaskManager) -> None:
    """A call that its tool refuses, or whose arguments do not fit, starts nothing."""
    async with connected(served(runtime), TASKS) as client:
        refused = await client.call("picky")
        assert (refused["isError"], refused["content"][0]["text"]) == (True, "not today")
        wrong = await client.call("work", seconds="long")
        assert wrong["content"][0]["text"].startswith("Invalid arguments: $.seconds")
        with pytest.raises(Refusal) as refusal:
            await client.call("unknown")
        assert (refusal.value.code, str(refusal.value)) == (-32602, "Unknown tool: unknown")
        assert await runtime.list_tasks(OWNER) == []


# ---- questions -----------------------------------------------------------------------------------


async def answer(
    client: Any, task_id: str, key: str, /, action: str = "accept", **content: Any
) -> Any:
    """Answer a question of a task."""
    response: dict[str, Any] = {"action": action}
    if content:
        response["content"] = content
    params = {"taskId": task_id, "inputResponses": {key: response}}
    return await client.request("tasks/update", params)


async def test_questions_are_input_required(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A question makes the call a task at once; what is not answered yet stays open, and no key comes twice."""
    async with connected(served(runtime), TASKS) as client:
        began = trio.current_time()
        created = await client.call("ask", questions=2)
        assert trio.current_time() - began < 0.5
        assert created["status"] == "input_required"
        asked = (await client.get(created["taskId"]))["inputRequests"]
        while len(asked) < 2:
            asked = (await client.get(created["taskId"]))["inputRequests"]
        first, second = sorted(asked, key=lambda key: asked[key]["params"]["message"])
        assert asked[first] == {
            "method": "elicitation/create",
            "params": {"mode": "form", "message": "Question 0?", "requestedSchema": FORM},
        }
        await answer(client, created["taskId"], first, ok=True)
        left = (await client.get(created["taskId"]))["inputRequests"]
        assert left == {second: asked[second]}
        await answer(client, created["taskId"], first, ok=False)  # too late: ignored
        await answer(client, created["taskId"], "nobody asked", "what")  # ignored, whatever it is
        await answer(client, created["taskId"], second, ok=False)
        await runtime.wait(OWNER, created["taskId"])
        ended = await client.get(created["taskId"])
        assert ended["result"]["structuredContent"] == {"0": {"ok": True}, "1": {"ok": False}}


@pytest.mark.parametrize(
    "response",
    [
        *(None, [], {}, {"action": "perhaps"}, {"action": "accept", "content": 1}),
        *({"action": "accept"}, {"action": "accept", "content": {"ok": "yes"}}),
    ],
)
async def test_wrong_answers(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, response: Any
) -> None:
    """A response that is none, or does not fit, is named; the question stays open."""
    async with connected(served(runtime), TASKS) as client:
        task_id = (await client.call("ask"))["taskId"]
        (key,) = (await client.get(task_id))["inputRequests"]
        with pytest.raises(Refusal, match=key) as refusal:
            params = {"taskId": task_id, "inputResponses": {key: response}}
            await client.request("tasks/update", params)
        assert refusal.value.code == -32602
        assert (await client.get(task_id))["status"] == "input_required"


async def test_declined(autojump_clock: MockClock, runtime: BackgroundTaskManager) -> None:
    """A question that is declined, or whose form is closed, is answered so."""
    async with connected(served(runtime), TASKS) as client:
        for action in ("decline", "cancel"):
            task_id = (await client.call("ask"))["taskId"]
            (key,) = (await client.get(task_id))["inputRequests"]
            await answer(client, task_id, key, action)
            await runtime.wait(OWNER, task_id)
            ended = await client.get(task_id)
            assert "QuestionDeclined" in ended["result"]["content"][0]["text"]


async def test_a_client_without_forms(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A client that cannot ask its user sees that the task waits; whoever else answers, may."""
    async with connected(served(runtime), SILENT) as client:
        created = await client.call("ask")
        assert created["status"] == "working"
        assert created["statusMessage"] == "Waiting for an answer: Question 0?"
        record = await runtime.record(OWNER, created["taskId"])
        assert record is not None
        (question,) = record.open_questions
        await runtime.answer(OWNER, created["taskId"], question.question_id, {"ok": True})
        await runtime.wait(OWNER, created["taskId"])
        assert (await client.get(created["taskId"]))["status"] == "completed"


# ---- resuming ------------------------------------------------------------------------------------


async def test_resume(autojump_clock: MockClock, runtime: BackgroundTaskManager) -> None:
    """A stopped task asks whether to go on, with a new key for each attempt; accepted, it goes on."""
    async with connected(served(runtime), TASKS) as client:
        created = await client.call("pause", until=3)
        assert created["status"] == "input_required"
        for attempt in (1, 2):
            (key,) = (await client.get(created["taskId"]))["inputRequests"]
            assert key == f"resume-{attempt}"
            await answer(client, created["taskId"], key, resume=True)
            await runtime.wait(OWNER, created["taskId"])
        ended = await client.get(created["taskId"])
        assert ended["result"]["content"][0]["text"] == "went on"
        await answer(client, created["taskId"], "resume-1", resume=True)  # too late: ignored


async def test_not_resumed(autojump_clock: MockClock, runtime: BackgroundTaskManager) -> None:
    """A form that is closed decides nothing; a no, however said, gives the task up."""
    async with connected(served(runtime), TASKS) as client:
        for action, content in (("accept", {"resume": False}), ("decline", {})):
            task_id = (await client.call("pause"))["taskId"]
            with pytest.raises(Refusal, match="'resume' must be a boolean"):
                await answer(client, task_id, "resume-1", resume="perhaps")
            await answer(client, task_id, "resume-1", "cancel")
            assert (await client.get(task_id))["status"] == "input_required"
            await answer(client, task_id, "resume-1", action, **content)
            assert (await client.get(task_id))["status"] == "cancelled"


async def test_nobody_to_ask_or_nothing_to_resume_with(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A stopped task is working, with the reason, where nobody can be asked or its tool is not there."""
    async with (
        connected(served(runtime), SILENT) as silent,
        connected(served(runtime, ask), TASKS) as without,
    ):
        created = await silent.call("pause")
        assert (created["status"], created["statusMessage"]) == (
            "working",
            "Stopped: paused; it can be resumed",
        )
        other = await without.get(created["taskId"])
        assert other["statusMessage"] == created["statusMessage"]
        answered = await silent.call("pause", task_id=created["taskId"])
        assert answered["content"][0]["text"] == "went on"


class OwnWay(Function):  # type: ignore[misc]
    """A tool that finds the id of its task somewhere else."""

    def task_id_from_args(self, args: Any, /) -> str | None:
        found: str | None = args.get("goes_on")
        return found

    def with_task_id(self, args: Any, task_id: str, /) -> Any:
        return {**args, "goes_on": task_id}


class NoWay(OwnWay):
    """A tool that does not say how it is told which task to resume."""

    def with_task_id(self, args: Any, task_id: str, /) -> Any:
        return args


class Refuses(Function):  # type: ignore[misc]
    """A tool that refuses to go on."""

    def prepare_background(self, args: Any, ctx: Any, /, *, is_resume: bool) -> Any:
        if is_resume:
            raise Rejected(ToolResult.error("refuses", "once is enough"))
        return super().prepare_background(args, ctx, is_resume=is_resume)


async def _paused(execution: BackgroundExecution, goes_on: str = "") -> Any:
    await trio.lowlevel.checkpoint()
    return "went on" if execution.is_resume else Stopped("paused")


async def test_tools_with_their_own_ids(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A tool with another parameter for the id is resumed through that; without a way it is said."""
    kinds: list[tuple[Any, str]] = [(OwnWay, "own"), (NoWay, "no"), (Refuses, "refuses")]
    tools = [kind(_paused, supports_resume=True, name=name) for kind, name in kinds]
    async with connected(served(runtime, *tools), TASKS) as client:
        task_id = (await client.call("own"))["taskId"]
        await answer(client, task_id, "resume-1", resume=True)
        await runtime.wait(OWNER, task_id)
        assert (await client.get(task_id))["status"] == "completed"
        task_id = (await client.call("no"))["taskId"]
        with pytest.raises(Refusal, match="cannot be told which task to resume"):
            await answer(client, task_id, "resume-1", resume=True)
        task_id = (await client.call("refuses"))["taskId"]
        with pytest.raises(Refusal, match="resume-1: Invalid arguments: once is enough"):
            await answer(client, task_id, "resume-1", resume=True)
        assert (await client.get(task_id))["status"] == "input_required"


# ---- push ----------------------------------------------------------------------------------------


def pushed(client: Any, task_id: str) -> list[dict[str, Any]]:
    """Return what was pushed about a task."""
    return [
        message["params"]
        for message in client.told
        if message["method"] == "notifications/tasks" and message["params"]["taskId"] == task_id
    ]


async def test_listen(autojump_clock: MockClock, runtime: BackgroundTaskManager) -> None:
    """Who listens is told of each task at once, and then of every change, as tasks/get would tell."""
    async with connected(served(runtime), TASKS) as client:
        task_id = (await client.call("ask"))["taskId"]
        wanted = {"taskIds": [task_id, "task_0", task_id], "toolsListChanged": True}
        number = await client.post("subscriptions/listen", {"notifications": wanted})
        await client.until(lambda: pushed(client, task_id))
        acknowledged = client.told[0]
        assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
        assert acknowledged["params"]["notifications"] == {"taskIds": [task_id]}
        (key,) = pushed(client, task_id)[-1]["inputRequests"]
        await answer(client, task_id, key, ok=True)
        await client.until(lambda: pushed(client, task_id)[-1]["status"] == "completed")
        seen = await client.get(task_id)
        last = pushed(client, task_id)[-1]
        assert last.pop("_meta") == {"io.modelcontextprotocol/subscriptionId": number}
        assert last == {k: v for k, v in seen.items() if k not in ("_meta", "resultType")}
        told = len(pushed(client, task_id))
        await trio.sleep(60)
        assert len(pushed(client, task_id)) == told  # nothing new, nothing told


async def test_listen_to_nothing(autojump_clock: MockClock, runtime: BackgroundTaskManager) -> None:
    """A subscription to nothing that we have is acknowledged and stays open, silent."""
    async with connected(served(runtime)) as client:
        await client.post("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        await client.until(lambda: client.told)
        assert client.told[0]["params"]["notifications"] == {}


@pytest.mark.parametrize("wrong", ["task", [1], {"a": 1}, ["x", *map(str, range(1000))]])
async def test_listen_to_what_is_no_list(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, wrong: Any
) -> None:
    """A subscription to what is no list of ids, or too long a one, is refused."""
    async with connected(served(runtime), TASKS) as client:
        with pytest.raises(Refusal, match="taskIds must be") as refusal:
            await client.request("subscriptions/listen", {"notifications": {"taskIds": wrong}})
        assert refusal.value.code == -32602


async def test_listeners_are_bounded(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a limit to subscriptions; one that ends makes room."""
    monkeypatch.setattr("trio_bgtasks.mcp._tasks_extension._MOST_LISTENERS", 1)
    async with connected(served(runtime)) as client:
        first = await client.post("subscriptions/listen", {"notifications": {}})
        await client.until(lambda: client.told)
        with pytest.raises(Refusal, match="Too many subscriptions"):
            await client.request("subscriptions/listen", {"notifications": {}})
        await client.send({"method": "notifications/cancelled", "params": {"requestId": first}})
        await wait_all_tasks_blocked()
        await client.post("subscriptions/listen", {"notifications": {}})
        await client.until(lambda: len(client.told) == 2)


async def test_listeners_of_one_owner_leave_others_theirs(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is each owner's own."""
    monkeypatch.setattr("trio_bgtasks.mcp._tasks_extension._MOST_LISTENERS", 1)
    owners = iter(["ann", "bob", "bob"])
    async with connected(served(runtime, owner_of=lambda _: next(owners))) as client:
        for count in (1, 2):
            await client.post("subscriptions/listen", {"notifications": {}})
            await client.until(lambda count=count: len(client.told) == count)
        with pytest.raises(Refusal, match="Too many subscriptions"):
            await client.request("subscriptions/listen", {"notifications": {}})


@pytest.mark.parametrize("value", [0, "", None, [], "true"])
async def test_only_booleans_say_where_a_call_runs(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, value: object
) -> None:
    """Anything else is refused, and starts nothing."""
    async with connected(served(runtime), TASKS) as client:
        refused = await client.call("work", run_in_background=value)
        assert refused["isError"]
        assert "run_in_background must be a boolean" in refused["content"][0]["text"]
    assert await runtime.list_tasks(OWNER) == []


async def test_a_listener_survives_gc(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A task that is collected is told of no more; the subscription goes on."""
    async with connected(served(runtime), TASKS) as client:
        gone, stays = [(await client.call("work", seconds=s))["taskId"] for s in (1, 90)]
        await client.post("subscriptions/listen", {"notifications": {"taskIds": [gone, stays]}})
        await client.until(lambda: pushed(client, gone) and pushed(client, stays))
        await runtime.wait(OWNER, gone)
        await client.until(lambda: pushed(client, gone)[-1]["status"] == "completed")
        assert await runtime.gc_terminal(OWNER) == 1
        with pytest.raises(Refusal):
            await client.get(gone)
        await client.until(lambda: pushed(client, stays)[-1]["status"] == "completed")
        assert pushed(client, gone)[-1]["status"] == "completed"


# ---- others --------------------------------------------------------------------------------------


async def test_all_clients_see_the_same_tools(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """Every client is shown the same tools: those with run_in_background, and the task tools."""
    server = served(runtime)
    async with (
        connected(server, TASKS) as modern,
        connected(server) as other,
        connected(server, modern=False) as old,
    ):
        lists = [(await c.request("tools/list"))["tools"] for c in (modern, other, old)]
        names = [tool["name"] for tool in lists[0]]
        assert names[-3:] == ["task_status", "task_cancel", "task_output"]
        assert lists[0] == lists[1]
        assert [{k: v for k, v in t.items() if k != "execution"} for t in lists[2]] == lists[0]
        by_name = {tool["name"]: tool for tool in lists[2]}
        assert "run_in_background" in by_name["work"]["inputSchema"]["properties"]
        assert by_name["work"]["execution"] == {"taskSupport": "optional"}
        assert "execution" not in by_name["plain"]
        assert by_name["plain"]["title"] == "Plain tool"
        assert await other.call("plain") == {
            "content": [
                {"type": "text", "text": "careful"},
                {"type": "text", "text": f'{{"owner": "{OWNER}"}}'},
            ],
            "structuredContent": {"owner": OWNER},
            "isError": False,
            "resultType": "complete",
            "_meta": lists_meta(await other.request("tools/list")),
        }


def lists_meta(answer: Any) -> Any:
    """Return what the server says of itself in an answer."""
    return answer["_meta"]


async def test_discover_and_initialize(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """Each era is told of tasks in its own words, and not in the other's."""
    server = served(runtime, name="mine", instructions="Read me.")
    async with connected(server, TASKS) as modern, connected(server, modern=False) as old:
        found = await modern.request("server/discover")
        assert found["capabilities"]["extensions"] == {EXTENSION: {}}
        assert "tasks" not in found["capabilities"]
        assert found["instructions"] == "Read me."
        greeted = await old.request("initialize", hello(old))
        assert greeted["serverInfo"]["name"] == "mine"
        assert greeted["capabilities"]["tasks"] == {
            "list": {},
            "cancel": {},
            "requests": {"tools": {"call": {}}},
        }


async def test_what_is_no_tool(autojump_clock: MockClock, runtime: BackgroundTaskManager) -> None:
    """What is no tool, wrapped already, or of an id that is taken, is refused when the server is built."""
    with pytest.raises(TypeError, match="give the server the BackgroundExecutable itself"):
        served(runtime, BackgroundCapable(ask, runtime))
    with pytest.raises(TypeError, match="a tool must be a Tool, not str"):
        served(runtime, "ask")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two tools have the id 'ask'"):
        served(runtime, ask, ask)


async def test_the_host_chooses_an_id(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A call's context may name the id of the task that it starts; one that is taken starts nothing."""
    tool = BackgroundCapable(give_up, runtime)
    ctx = ToolCallContext(thread_id=OWNER, task_id="mine")
    started = await tool.execute({"run_in_background": True}, ctx)
    assert started.data["task_id"] == "mine"
    await runtime.wait(OWNER, "mine")
    again = await tool.execute({"run_in_background": True}, ctx)
    assert "exists already" in (again.message or "")
    (task,) = await runtime.list_tasks(OWNER)
    assert task.status is TaskStatus.STOPPED
