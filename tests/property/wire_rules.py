"""`WireRules`: what clients and tools do, and what happens to the server, one thing at a time."""

from __future__ import annotations

import json
from typing import Any

import attrs
import trio
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from trio_bgtasks.testing import in_trio, strategies

from .wire_changes import cancelling, closed, open_keys, resumable, resumed
from .wire_jobs import ORDERS, Job, Order, Truth, What
from .wire_lines import Line, Message, Request
from .wire_looks import TERMINAL, answer_fits, status_of
from .wire_stage import (
    CLIENTS,
    UNKNOWN,
    Subscription,
    WireStage,
    may_be_gone,
    may_be_there,
)

MOST_JOBS = 8

names = st.sampled_from(sorted(CLIENTS))
askers = st.sampled_from([name for name, one in CLIENTS.items() if one.takes_tasks])
modern = st.sampled_from([n for n, one in CLIENTS.items() if one.takes_tasks and one.modern])
eras = st.sampled_from(["", " 2025"])
legacy = st.sampled_from([name for name, one in CLIENTS.items() if not one.modern])
numbers = st.integers(0, MOST_JOBS - 1)
orders = st.sampled_from(sorted(ORDERS))
firsts = st.sampled_from(["", "", "", "ask", *ORDERS])

WRONG: list[Any] = [
    None,
    {"action": "perhaps"},
    {"action": "accept"},
    {"action": "accept", "content": {"ok": "yes", "resume": "yes"}},
    {"action": "accept", "content": [1]},
]
ACCEPT = {"action": "accept", "content": {"ok": True, "resume": True}}
ANSWERS: dict[str, Any] = {
    "accept": ACCEPT,
    "no": {"action": "accept", "content": {"ok": False, "resume": False}},
    "decline": {"action": "decline"},
    "close": {"action": "cancel"},
}


@attrs.frozen
class Call:
    """How a tool is called."""

    tool: str
    first: str = ""
    clean_up_s: float = 0
    as_task: bool = False
    in_background: bool = False


class WireRules(WireStage):
    """Each thing by itself."""

    async def set_up(self) -> None:
        """Begin with a task of each owner, one in each era, one that can be resumed."""
        await super().set_up()
        for name, tool in (("ann", "work"), ("bob 2025", "again")):
            await self.called(await self.line(name), Call(tool, as_task=True))

    # ---- calls ---------------------------------------------------------------------------------

    @precondition(lambda self: len(self.jobs) < MOST_JOBS)
    @rule(
        name=names,
        call=st.builds(
            Call,
            tool=st.sampled_from(["work", "again"]),
            first=firsts,
            clean_up_s=st.sampled_from([0, 3]),
            as_task=st.booleans(),
            in_background=st.booleans(),
        ),
    )
    @in_trio
    async def call(self, name: str, call: Call) -> None:
        """Call a tool: the server decides whether it becomes a task, or the client, or the model."""
        await self.called(await self.line(name), call)

    def post_call(self, line: Line, call: Call) -> tuple[Job, Request]:
        """Make the call; note first what it is going to be."""
        client = line.client
        job = Job(len(self.jobs), client, call.tool == "again", self.count, self.failures)
        self.jobs.append(job)
        job.push(Truth("running"))
        arguments: Message = {"job": job.number, "first": call.first, "clean_up_s": call.clean_up_s}
        params: Message = {"name": call.tool, "arguments": arguments}
        becomes_a_task = client.takes_tasks if client.modern else call.as_task
        if not client.modern and call.as_task:
            params["task"] = {"ttl": 1000}
        elif call.in_background:
            arguments["run_in_background"] = True
        if not client.modern:
            params["_meta"] = {"progressToken": job.number}
        job.background = becomes_a_task or call.in_background
        job.request = line.post("tools/call", params)
        return job, job.request

    async def called(self, line: Line, call: Call) -> None:
        """Call, and look at what comes: a task's id can be asked for at once."""
        job, request = self.post_call(line, call)
        if not job.background:
            await self.rest()
            return
        answer = await request.answered()
        assert job.attempts, f"answered is {answer}, and nothing runs: {job}"
        result = answer.get("result", {})
        task_id: str | None = result.get("taskId") or result.get("task", {}).get("taskId")
        if "run_in_background" in request.params["arguments"]:
            task_id = result["structuredContent"]["task_id"]
            self.happened("the model decides for the background")
        if task_id is None:
            self.at_once(job, answer)
            return
        assert task_id == job.task_id, f"{task_id} is not that of {job}"
        owner = line if line.client.takes_tasks else await self.line(line.client.owner)
        await owner.post("tasks/get", {"taskId": task_id}).result()

    def at_once(self, job: Job, answer: Message) -> None:
        """A call that ended within a moment is answered with what came of it."""
        fit = any(answer_fits(job, truth, job.client, answer) for truth in job.now)
        assert fit, f"answered is {answer}, but: {job}"
        self.happened("a call is answered at once")

    @rule(number=numbers)
    @in_trio
    async def give_up(self, number: int) -> None:
        """The client cancels an ordinary call: its task is stopped."""
        job = self.job(number)
        for line in self.lines.values():
            if job.request is not None and job.request in line.requests.values():
                line.give_up(job.request)
                self.caller_gone(job.request)
                self.happened("a call is given up")
        await trio.sleep(4)

    # ---- tools ---------------------------------------------------------------------------------

    def job(self, number: int) -> Job:
        """Return one of the jobs."""
        return self.jobs[number % len(self.jobs)]

    @precondition(lambda self: any(job.live for job in self.jobs))
    @rule(number=numbers, what=orders, value=strategies.json_values(), often=st.booleans())
    @in_trio
    async def do(self, number: int, what: What, value: Any, *, often: bool) -> None:
        """A tool goes on, or ends."""
        job = self.live(number)
        order = ORDERS[what](job)
        if what == "finish" and often:
            order = Order(what, value)
        self.tell(job, order)
        await self.rest()

    def live(self, number: int) -> Job:
        """Return one of those that take orders."""
        live = [job for job in self.jobs if job.live]
        return live[number % len(live)]

    def tell(self, job: Job, order: Order) -> None:
        """Give an order to the body that runs."""
        assert job.live is not None
        job.live.orders[0].send_nowait(order)

    # ---- looking -------------------------------------------------------------------------------

    @rule(name=names, number=numbers)
    @in_trio
    async def ask_for_others(self, name: str, number: int) -> None:
        """Somebody else's task, whatever is asked, is one that nobody has; what an era lacks is no method."""
        line, job = await self.line(name), self.job(number)
        for method in ("get", "cancel", "update", "result"):
            params: Message = {"inputResponses": {"q1": ACCEPT}} if method == "update" else {}
            there, lacks = await self.both(line, f"tasks/{method}", params, job)
            code = -32602
            if method == ("result" if line.client.modern else "update"):
                code = -32601  # of the other era
            elif not line.client.takes_tasks:
                code = -32021
            assert lacks["code"] == code, f"{method} of an unknown task: {lacks}, not {code}"
            if there is not None:
                alike = json.dumps(there) == json.dumps(lacks)
                assert alike, f"foreign is told from unknown: {there}, {lacks}"
                self.happened(f"foreign and unknown are alike: {method}")

    async def both(
        self, line: Line, method: str, params: Message, job: Job
    ) -> tuple[Message | None, Message]:
        """Ask for what nobody has, and, if it is a stranger's, for a task."""
        lacks = (await line.post(method, {"taskId": UNKNOWN, **params}).answered())["error"]
        if job.client.owner == line.client.owner or job.task_id is None:
            return None, lacks
        answer = await line.post(method, {"taskId": job.task_id, **params}).answered()
        assert "error" in answer, f"{line.client} is told of {job}: {answer}"
        return answer["error"], lacks

    @rule(name=legacy)
    @in_trio
    async def list_all(self, name: str) -> None:
        """The list has the tasks of its owner, all of them and no others, in order."""
        line = await self.line(name)
        listed = (await line.post("tasks/list", {}).result())["tasks"]
        ids = [task["taskId"] for task in listed]
        own = [j for j in self.jobs if j.client.owner == line.client.owner and j.task_id]
        may = [job.task_id for job in own if may_be_there(job)]
        must = [job.task_id for job in own if job.background and not may_be_gone(job)]
        assert [i for i in may if i in ids] == ids, f"listed are {ids}, there are {may}"
        assert set(must) <= set(ids), f"listed are {ids}, there are {must}"
        self.happened(f"listed: {min(len(ids), 2)}")

    @rule(number=numbers)
    @in_trio
    async def ask_for_result(self, number: int) -> None:
        """Wait for the result of a task; nobody is made to wait for it here."""
        job = self.job(number)
        line = await self.line(f"{job.client.owner} 2025")
        line.post("tasks/result", {"taskId": job.task_id})
        await self.rest()

    @rule(name=names, number=numbers, tool=st.sampled_from(["task_status", "task_output"]))
    @in_trio
    async def look_as_a_model(self, name: str, number: int, tool: str) -> None:
        """The task tools know the owner's tasks, and no others."""
        line, job = await self.line(name), self.job(number)
        if job.task_id is None:
            return
        told = await self.use(line, tool, {"task_id": job.task_id})
        mine = job.client.owner == line.client.owner
        if mine and not may_be_gone(job):
            assert told["isError"] is False, f"{told}: {job}"
        elif not mine:
            unknown = await self.use(line, tool, {"task_id": UNKNOWN})
            text = told["content"][0]["text"].replace(job.task_id, UNKNOWN)
            assert text == unknown["content"][0]["text"], f"foreign is told from unknown: {text}"
        listed = (await self.use(line, "task_status", {}))["structuredContent"]["tasks"]
        ids = {task["task_id"] for task in listed}
        own = {j.task_id for j in self.jobs if j.client.owner == line.client.owner}
        assert ids <= own, f"{line.client.owner} is told of {ids - own}"

    async def use(self, line: Line, tool: str, arguments: Message) -> Message:
        """Call a task tool."""
        request = line.post("tools/call", {"name": tool, "arguments": arguments})
        return await request.result()

    # ---- answering -----------------------------------------------------------------------------

    @rule(number=numbers, what=st.sampled_from(sorted(ANSWERS)), which=numbers)
    @in_trio
    async def answer(self, number: int, what: str, which: int) -> None:
        """Answer whatever was asked, open or not."""
        job = self.job(number)
        line = await self.line(job.client.owner)
        keys = sorted(job.keys)
        if not keys or may_be_gone(job):
            return
        key = keys[which % len(keys)]
        await self.post_answer(line, job, key, ANSWERS[what]).result()
        await self.answered(job, key, what)

    @precondition(lambda self: any(open_keys(job) for job in self.jobs))
    @rule(number=numbers, what=st.sampled_from([*[""] * 2, *ANSWERS]), wrong=st.sampled_from(WRONG))
    @in_trio
    async def answer_what_is_open(self, number: int, what: str, wrong: Any) -> None:
        """Answer a question that is open; with what does not fit, it stays so."""
        asking = [job for job in self.jobs if open_keys(job)]
        job = asking[number % len(asking)]
        line = await self.line(job.client.owner)
        key = open_keys(job)[0]
        if what:
            await self.post_answer(line, job, key, ANSWERS[what]).result()
            await self.answered(job, key, what)
            return
        answer = await self.post_answer(line, job, key, wrong).answered()
        assert answer.get("error", {}).get("code") == -32602, f"{wrong} was taken: {answer}"
        assert key in answer["error"]["message"], f"{key} is not named: {answer}"
        self.happened("a wrong answer is refused")

    def post_answer(self, line: Line, job: Job, key: str, response: Any) -> Request:
        """Answer; note first what may come of it."""
        words = job.keys[key]
        if response in ANSWERS.values():
            if key.startswith("resume-"):
                job.change(lambda t: resumed(job, t, key, response))
            else:
                job.sent.setdefault(words, []).append(response.get("content"))
                job.change(lambda t: closed(t, words))
        params = {"taskId": job.task_id, "inputResponses": {key: response}}
        return line.post("tasks/update", params)

    async def answered(self, job: Job, key: str, what: str) -> None:
        """What was open is answered now, and given to the tool that asked."""
        await self.rest()
        words = job.keys[key]
        self.happened(f"answered: {'resume' if key.startswith('resume-') else 'question'}: {what}")
        if key.startswith("resume-"):
            begun = len(job.attempts)
            job.change(lambda t: [] if t.attempt > begun else [t])
            if what != "close" and not any(t.kind == "running" for t in job.now):
                job.change(
                    lambda t: [] if key == f"resume-{t.attempt}" and resumable(job, t) else [t]
                )
        else:
            job.change(lambda t: [] if words in t.asks else [t])
        assert job.now, f"{key} is answered, and open: {job.history}"

    @precondition(lambda self: any(line.forms for line in self.lines.values()))
    @rule(what=st.sampled_from(["", *ANSWERS]), wrong=st.sampled_from(WRONG))
    @in_trio
    async def fill_in(self, what: str, wrong: Any) -> None:
        """The user fills in a form that was shown within a request of the older era."""
        line = next(line for line in self.lines.values() if line.forms)
        number, form = line.forms.popitem()
        response = ANSWERS[what] if what else wrong
        job, words = form.job, form.words
        if what and form.key is not None:
            job.change(lambda t: resumed(job, t, form.key, response))
        elif what:
            job.sent.setdefault(words, []).append(response.get("content"))
            job.change(lambda t: closed(t, words))
        line.send({"id": number, "result": response if isinstance(response, dict) else {}})
        self.happened(f"a form: {what}")
        await self.rest()

    # ---- cancelling ----------------------------------------------------------------------------

    @rule(era=eras, number=numbers)
    @in_trio
    async def cancel(self, era: str, number: int) -> None:
        """Cancel a task, also one that has ended; and once more, which changes nothing."""
        job = self.job(number)
        line = await self.line(job.client.owner + era)
        for _ in range(2):
            if not may_be_gone(job):
                await self.cancelled(line, job, self.post_cancel(line, job))

    def post_cancel(self, line: Line, job: Job) -> Request:
        """Cancel; note first what may come of it."""
        if job.attempts and not job.attempts[-1].over and not job.attempts[-1].lost:
            self.doom(job, Truth("cancelled", job.attempts[-1].number))
        job.change(lambda t: cancelling(job, t))
        return line.post("tasks/cancel", {"taskId": job.task_id})

    async def cancelled(self, line: Line, job: Job, request: Request) -> None:
        """Look at the answer: it is accepted, or it was too late."""
        answer = await request.answered()
        truths = frozenset[Truth]().union(*job.since(request.stamp))
        late = [status_of(job, truth, line.client) in TERMINAL for truth in truths]
        if "error" in answer:
            assert not line.client.modern, f"{answer}: {job}"
            assert answer["error"]["code"] == -32602, answer
            assert any(late), f"it is not too late for a cancel: {answer}: {job}"
            self.happened("a cancel is too late")
            return
        self.happened(f"a cancel is accepted: {'2026' if line.client.modern else '2025'}")
        await self.rest()
        job.change(lambda t: [] if t.kind == "running" or resumable(job, t) else [t])
        assert job.now, f"a cancel is accepted, and it is as before: {job.history}"

    # ---- listening -----------------------------------------------------------------------------

    @rule(name=modern, which=st.lists(numbers, min_size=1, max_size=4))
    @in_trio
    async def listen(self, name: str, which: list[int]) -> None:
        """Subscribe to some tasks, own and others', and to what nobody has."""
        line = await self.line(name)
        jobs = [self.job(number) for number in which]
        await self.subscribe(line, jobs)

    async def subscribe(self, line: Line, jobs: list[Job]) -> None:
        """Subscribe, also to what nobody has."""
        ids = [UNKNOWN, *(job.task_id for job in jobs if job.task_id)]
        own = [job for job in dict.fromkeys(jobs) if job.client.owner == line.client.owner]
        request = line.post("subscriptions/listen", {"notifications": {"taskIds": ids}})
        subscription = Subscription(line, request, [job for job in own if job.task_id])
        self.subscriptions.append(subscription)
        await self.rest()
        assert subscription.number is not None, f"not acknowledged: {request.answer}"

    @precondition(lambda self: bool(self.subscriptions))
    @rule(number=numbers)
    @in_trio
    async def leave(self, number: int) -> None:
        """End a subscription: nothing more is told."""
        subscription = self.subscriptions[number % len(self.subscriptions)]
        subscription.line.give_up(subscription.request)
        await self.rest()
        self.subscriptions.remove(subscription)

    # ---- what happens to clients and server ----------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 1, 6, 40, 100]))
    @in_trio
    async def pass_time(self, seconds: float) -> None:
        """Let time pass: orphans are found, what has ended is discarded."""
        await self.sleep(seconds)

    async def sleep(self, seconds: float) -> None:
        """Let time pass in parts, so that what it does is noted before it is told."""
        while seconds > 0:
            part = min(seconds, 5)
            await trio.sleep(part)
            await self.rest()
            seconds -= part

    @rule(name=names, what=st.sampled_from(["disconnect", "restart", "end", "crash"]))
    @in_trio
    async def outage(self, name: str, what: str) -> None:
        """A client goes away, or the server ends, in order or not; everybody comes again."""
        if what == "disconnect":
            self.drop(name)
            await trio.sleep(4)  # what was stopped cleans up
        elif what == "crash":
            await self.crash()
        else:
            await self.restart(clients_first=what == "end")
        self.happened(what)

    async def restart(self, *, clients_first: bool) -> None:
        """The server ends in order, and begins anew."""
        if clients_first:
            self.drop(*self.lines)
        await self.shut_down()
        await self.rest()
        self.drop(*self.lines)
        await self.reopen()

    async def crash(self) -> None:
        """The server is killed, and begins anew."""
        self.crashed_at = trio.current_time()
        for job in self.jobs:
            if job.attempts and not job.attempts[-1].over:
                job.attempts[-1].lost = job.crashed = True
                job.push(*job.now)
        self.machine.crash()
        self.drop(*self.lines)
        while not self.machine.is_gone:  # clean-up that was under way takes a moment
            await trio.sleep(1)
        await self.reopen()
