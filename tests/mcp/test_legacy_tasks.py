"""Tasks of 2025-11-25, as a client of that time sees them."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.mcp.conformance.server import FailingJob
from tests.mcp.wire import FORM, OWNER, Refusal, Wire, connected, hello, served
from trio_bgtasks import BackgroundExecution, BackgroundTaskManager, Stopped, background_tool
from trio_bgtasks.mcp import chosen_owner

ELICITS: dict[str, Any] = {"elicitation": {}}
RELATED = "io.modelcontextprotocol/related-task"


async def start(client: Wire, name: str, /, **arguments: Any) -> Any:
    """Call a tool as a task; return the task."""
    params = {"name": name, "arguments": arguments, "task": {"ttl": 60_000}}
    created = await client.request("tools/call", params)
    assert created.keys() == {"task"}
    return created["task"]


async def result_of(client: Wire, task_id: str) -> Any:
    """Wait for the result of a task."""
    return await client.request("tasks/result", {"taskId": task_id})


async def test_a_task_and_its_result(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A call with a task parameter is a task at once; tasks/result waits for what the call would have answered."""
    async with connected(served(runtime), modern=False) as client:
        task = await start(client, "work", seconds=5, run_in_background=True)
        assert task["status"] == "working"
        assert task["pollInterval"] == 1000
        assert task["ttl"] is None  # kept for ever
        assert (await client.get(task["taskId"]))["status"] == "working"
        result = await result_of(client, task["taskId"])
        assert result == {
            "content": [{"type": "text", "text": '{"slept": 5.0}'}],
            "structuredContent": {"slept": 5},
            "isError": False,
            "_meta": {RELATED: {"taskId": task["taskId"]}},
        }
        assert (await client.get(task["taskId"]))["status"] == "completed"
        assert await result_of(client, task["taskId"]) == result


async def test_a_call_without_a_task(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A call without the parameter is answered with its result, however long that takes."""
    async with connected(served(runtime), modern=False) as client:
        assert (await client.call("work", seconds=50))["structuredContent"] == {"slept": 50}


@pytest.mark.parametrize("kind", ["value", "internal"])
async def test_failures(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, kind: str
) -> None:
    """A tool's own error is a failed task with a result, a broken tool's one with an error."""
    async with connected(served(runtime), modern=False) as client:
        task_id = (await start(client, "fail", kind=kind))["taskId"]
        await runtime.wait(OWNER, task_id)
        assert (await client.get(task_id))["status"] == "failed"
        if kind == "value":
            assert (await result_of(client, task_id))["isError"] is True
        else:
            with pytest.raises(Refusal, match="broken") as refusal:
                await result_of(client, task_id)
            assert refusal.value.code == -32603


async def test_cancel(autojump_clock: MockClock, runtime: BackgroundTaskManager) -> None:
    """tasks/cancel answers with the cancelled task; what has ended cannot be cancelled."""
    async with connected(served(runtime), modern=False) as client:
        task_id = (await start(client, "patient"))["taskId"]
        answer = await client.request("tasks/cancel", {"taskId": task_id})
        assert (answer["taskId"], answer["status"]) == (task_id, "cancelled")
        with pytest.raises(Refusal, match="has ended") as refusal:
            await client.request("tasks/cancel", {"taskId": task_id})
        assert refusal.value.code == -32602
        with pytest.raises(Refusal, match="The task was cancelled"):
            await result_of(client, task_id)


@background_tool
async def slow_to_end() -> None:
    """Take three seconds to clean up."""
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(3)


async def test_cancel_waits_for_the_end(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """tasks/cancel answers when the task has ended, which may take it a while."""
    async with connected(served(runtime, slow_to_end), modern=False) as client:
        task_id = (await start(client, "slow_to_end"))["taskId"]
        await wait_all_tasks_blocked()
        answer = await client.request("tasks/cancel", {"taskId": task_id})
        assert answer["status"] == "cancelled"
        assert trio.current_time() >= 3


async def test_list(autojump_clock: MockClock, runtime: BackgroundTaskManager) -> None:
    """tasks/list has the requester's tasks in order of creation, in pages; not others'."""
    async with (
        connected(served(runtime), modern=False) as client,
        connected(served(runtime, owner_of=chosen_owner("other")), modern=False) as other,
    ):
        started = [(await start(client, "work"))["taskId"] for _ in range(51)]
        first = await client.request("tasks/list")
        assert [task["taskId"] for task in first["tasks"]] == started[:50]
        rest = await client.request("tasks/list", {"cursor": first["nextCursor"]})
        assert [task["taskId"] for task in rest["tasks"]] == started[50:]
        assert "nextCursor" not in rest
        assert await other.request("tasks/list") == {"tasks": []}
        for asked in (started[0], "unknown"):
            with pytest.raises(Refusal, match="Invalid cursor"):
                await other.request("tasks/list", {"cursor": asked})
            with pytest.raises(Refusal, match="Task not found"):
                await other.get(asked)


async def test_status_is_pushed(autojump_clock: MockClock, runtime: BackgroundTaskManager) -> None:
    """The client that started a task is told of each change of its status, to the end."""
    async with connected(served(runtime), ELICITS, modern=False) as client:
        task_id = (await start(client, "ask"))["taskId"]
        await wait_all_tasks_blocked()
        record = await runtime.record(OWNER, task_id)
        assert record is not None
        await runtime.decline(OWNER, task_id, record.open_questions[0].question_id)
        await client.until(
            lambda: client.told[-1:] and client.told[-1]["params"]["status"] == "failed"
        )
        assert {message["method"] for message in client.told} == {"notifications/tasks/status"}
        assert client.told[-1]["params"] == await client.get(task_id)
        await wait_all_tasks_blocked()
        assert runtime.statistics().subscribers == 0


async def test_a_push_ends_with_its_task(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """Nobody is told of a task that was collected, and the server goes on."""
    async with connected(served(runtime), modern=False) as client:
        task_id = (await start(client, "work", seconds=1))["taskId"]
        await runtime.wait(OWNER, task_id)
        await runtime.gc_terminal(OWNER)
        await trio.sleep(20)
        assert runtime.statistics().subscribers == 0
        await client.request("ping")


@background_tool(supports_resume=True)
async def confirm(execution: BackgroundExecution) -> Any:
    """Stop; then report progress, work and ask."""
    if execution.attempt == 1:
        return Stopped("paused")
    await execution.report_progress(1)
    await trio.sleep(60)
    return await execution.ask("Sure?", FORM)


async def test_a_push_ends_when_its_task_stops(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """It may never go on, and nothing would tell that the client has gone."""
    async with connected(served(runtime, confirm), modern=False) as client:
        task_id = (await start(client, "confirm"))["taskId"]
        await runtime.wait(OWNER, task_id)
        await wait_all_tasks_blocked()
        assert runtime.statistics().subscribers == 0


# ---- questions -----------------------------------------------------------------------------------


async def test_the_result_asks(autojump_clock: MockClock, runtime: BackgroundTaskManager) -> None:
    """Who waits for the result is asked what the task asks, each question once."""
    async with connected(served(runtime), ELICITS, modern=False) as client:
        task_id = (await start(client, "ask", questions=2))["taskId"]
        number = await client.post("tasks/result", {"taskId": task_id})
        for count, response in ((1, {"ok": True}), (2, {"ok": False})):
            await client.until(lambda count=count: len(client.asked) == count)
            asked = client.asked[-1]
            assert asked["method"] == "elicitation/create"
            assert asked["params"]["_meta"] == {RELATED: {"taskId": task_id}}
            assert asked["params"]["requestedSchema"] == FORM
            assert (await client.get(task_id))["status"] == "input_required"
            answer = {"action": "accept", "content": response}
            await client.send({"id": asked["id"], "result": answer})
        result = await client.answer_to(number)
        assert sorted(map(str, result["structuredContent"].values())) == [
            "{'ok': False}",
            "{'ok': True}",
        ]


async def test_wrong_answers_and_errors_are_not_fatal(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """An answer that does not fit, or an error, leaves the question open, for whoever answers next."""
    async with connected(served(runtime), ELICITS, modern=False) as client:
        for wrong in (
            {"result": {"action": "accept", "content": {"ok": "yes"}}},
            {"result": {"action": "perhaps"}},
            {"error": {"code": -1, "message": "no"}},
        ):
            task_id = (await start(client, "ask"))["taskId"]
            client.asked.clear()
            number = await client.post("tasks/result", {"taskId": task_id})
            await client.until(lambda: client.asked)
            await client.send({"id": client.asked[-1]["id"], **wrong})
            await wait_all_tasks_blocked()
            assert (await client.get(task_id))["status"] == "input_required"
            record = await runtime.record(OWNER, task_id)
            assert record is not None
            question = record.open_questions[0].question_id
            await runtime.answer(OWNER, task_id, question, {"ok": True})
            assert (await client.answer_to(number))["structuredContent"] == {"0": {"ok": True}}


async def test_a_form_does_not_hold_up_the_result(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A form that nobody fills in is withdrawn when its question is answered elsewhere, and when the task ends."""
    async with connected(served(runtime), ELICITS, modern=False) as client:
        task_id = (await start(client, "ask", questions=2))["taskId"]
        number = await client.post("tasks/result", {"taskId": task_id})
        await client.until(lambda: client.asked)
        record = await runtime.record(OWNER, task_id)
        assert record is not None
        first = record.open_questions[0].question_id
        await runtime.answer(OWNER, task_id, first, {"ok": True})
        await client.until(lambda: len(client.asked) == 2)
        await runtime.cancel(OWNER, task_id)
        with pytest.raises(Refusal, match="The task was cancelled"):
            await client.answer_to(number)
        withdrawn = [m["params"] for m in client.told if m["method"] == "notifications/cancelled"]
        assert [one["requestId"] for one in withdrawn] == [asked["id"] for asked in client.asked]


async def test_the_result_of_a_stopped_task_asks_whether_to_resume(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A stopped task is resumed by who waits for its result, if the user wants that."""
    async with connected(served(runtime), ELICITS, modern=False) as client:
        task_id = (await start(client, "pause"))["taskId"]
        number = await client.post("tasks/result", {"taskId": task_id})
        await client.until(lambda: client.asked)
        answer = {"action": "accept", "content": {"resume": True}}
        await client.send({"id": client.asked[-1]["id"], "result": answer})
        assert (await client.answer_to(number))["content"][0]["text"] == "went on"


async def test_a_call_is_asked_and_told_of_progress(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A call that is no task passes on what its tool asks, and its progress to who wants that."""
    async with connected(served(runtime), ELICITS, modern=False) as client:
        number = await client.post("tools/call", {"name": "ask", "arguments": {}})
        await client.until(lambda: client.asked)
        answer = {"action": "accept", "content": {"ok": True}}
        await client.send({"id": client.asked[-1]["id"], "result": answer})
        assert (await client.answer_to(number))["structuredContent"] == {"0": {"ok": True}}
        params = {"name": "patient", "arguments": {}, "_meta": {"progressToken": "mine"}}
        number = await client.post("tools/call", params)
        await client.until(lambda: client.told)
        assert client.told[0] == {
            "jsonrpc": "2.0",
            "method": "notifications/progress",
            "params": {
                "progressToken": "mine",
                "progress": 1,
                "total": 4,
                "message": "a quarter",
            },
        }
        await client.send({"method": "notifications/cancelled", "params": {"requestId": number}})
        await wait_all_tasks_blocked()
        (_, task) = await runtime.list_tasks(OWNER)
        assert task.error == "The caller of the foreground run is gone"
        assert runtime.statistics().subscribers == 0


async def test_a_call_that_resumes_is_asked_and_told_too(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """Its task is the one that it names."""
    async with connected(served(runtime, confirm), ELICITS, modern=False) as client:
        await client.request("tools/call", {"name": "confirm", "arguments": {}})
        (task,) = await runtime.list_tasks(OWNER)
        arguments = {"task_id": task.task_id}
        params = {"name": "confirm", "arguments": arguments, "_meta": {"progressToken": "mine"}}
        number = await client.post("tools/call", params)
        await client.until(lambda: client.asked)
        assert [message["method"] for message in client.told] == ["notifications/progress"]
        answer = {"action": "accept", "content": {"ok": True}}
        await client.send({"id": client.asked[-1]["id"], "result": answer})
        assert (await client.answer_to(number))["structuredContent"] == {"ok": True}


async def test_a_client_that_cannot_be_asked(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A call of a client without forms waits for whoever else answers."""
    async with connected(served(runtime), modern=False) as client:
        params = {"name": "ask", "arguments": {}, "_meta": {"progressToken": 1}}
        number = await client.post("tools/call", params)
        await trio.sleep(1)
        (task,) = await runtime.list_tasks(OWNER)
        await runtime.answer(OWNER, task.task_id, task.questions[0].question_id, {"ok": True})
        assert (await client.answer_to(number))["structuredContent"] == {"0": {"ok": True}}
        assert client.asked == []


# ---- who and what is served ----------------------------------------------------------------------


async def test_what_cannot_be_a_task(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A tool that only runs in the foreground, or refuses the call, is no task; one for tasks only is no call."""
    async with connected(served(runtime, FailingJob()), modern=False) as client:
        for method in ({"name": "task_status", "task": {}}, {"name": "failing_job"}):
            with pytest.raises(Refusal) as refusal:
                await client.request("tools/call", {"arguments": {}, **method})
            assert refusal.value.code == -32601
        tools = {t["name"]: t for t in (await client.request("tools/list"))["tools"]}
        assert tools["failing_job"]["execution"] == {"taskSupport": "required"}
    async with connected(served(runtime), modern=False) as client:
        with pytest.raises(Refusal, match="not today") as refusal:
            await start(client, "picky")
        assert refusal.value.code == -32602
        with pytest.raises(Refusal, match="run_in_background must be a boolean"):
            await start(client, "work", run_in_background=None)
        with pytest.raises(Refusal, match="Unknown tool"):
            await start(client, "unknown")
        with pytest.raises(Refusal) as refusal:
            await client.request("tools/call", {"name": 1, "task": {}})
        assert refusal.value.code == -32602


async def test_still_older_clients(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """For versions before tasks the parameter means nothing, and there are no such methods."""
    async with connected(served(runtime), modern=False) as client:
        await client.request("initialize", hello(client, "2025-06-18"))
        params = {"name": "work", "arguments": {}, "task": {"ttl": 1}}
        assert (await client.request("tools/call", params))["structuredContent"] == {"slept": 0}
        for method in ("get", "cancel", "result", "list", "update"):
            with pytest.raises(Refusal) as refusal:
                params = {"taskId": "x", "inputResponses": {}}
                await client.request(f"tasks/{method}", params)
            assert refusal.value.code == -32601


async def test_before_the_handshake(runtime: BackgroundTaskManager) -> None:
    """Nothing is started for a client that has not said who it is."""
    async with connected(served(runtime)) as raw:
        raw.modern = False
        with pytest.raises(Refusal) as refusal:
            await raw.request("tools/call", {"name": "work", "arguments": {}, "task": {}})
        assert refusal.value.code == -32602
    assert await runtime.list_tasks(OWNER) == []
