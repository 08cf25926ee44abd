"""`WireStage`: a store, our server on it, clients of both eras; all that comes from it is checked.

A rule lets tools do something, or a client ask for something; then everything comes to rest. What
the tools did says what is true of each task (`Job`), and every message about it must fit that.
"""

from __future__ import annotations

import itertools
import json
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import attrs
import trio
from hypothesis.stateful import invariant
from trio.testing import wait_all_tasks_blocked

from trio_bgtasks import ManagerConfig, MemoryTaskStore
from trio_bgtasks.mcp import build_server, client_owner
from trio_bgtasks.testing import TrioStateMachine, in_trio
from trio_bgtasks.testing._simulated import SimulatedExecutor, virtual_clock_ms

from .wire_jobs import Job, Truth, tools_for
from .wire_lines import SUBSCRIPTION, Client, Line, Message, Request
from .wire_looks import PAYLOADS, TERMINAL, fits, foreground_fits, status_of

RETENTION_S = 60.0
SWEPT_S = RETENTION_S + 40  # sweeps are every 15 s, a little more or less
BEGIN_S = 1_800_000_000
ORPHANED_S = 60.0  # a lease is 30 s
RELATED_TASK = "io.modelcontextprotocol/related-task"
UNKNOWN = "task_" + "0" * 32

CLIENTS: dict[str, Client] = {
    "ann": Client("ann"),
    "ann silent": Client("ann", answers=False),
    "ann plain": Client("ann", takes_tasks=False),
    "ann 2025": Client("ann", modern=False),
    "bob": Client("bob"),
    "bob 2025": Client("bob", modern=False, answers=False),
}


@attrs.frozen
class Form:
    """What a client is asked within its request; ``key`` is that of the question to resume."""

    job: Job
    words: str
    key: str | None = None

    @property
    def is_open(self) -> bool:
        """May it still be answered?"""
        return any(
            self.words in truth.asks
            or (truth.kind == "stopped" and self.key == f"resume-{truth.attempt}")
            for truth in self.job.now
        )


@attrs.define(eq=False)
class Subscription:
    """Who listens to what; ``told`` is the moment of what was told last of each."""

    line: Line
    request: Request
    jobs: list[Job]
    number: Any = None
    told: dict[str, int] = attrs.field(factory=dict[str, int])
    last: dict[str, Message] = attrs.field(factory=dict[str, Message])


class WireStage(TrioStateMachine):
    """The server, the clients, and what is true of each task."""

    seen: ClassVar[set[str]] = set()
    """What happened on the wire, in whatever example."""

    # ---- the server ------------------------------------------------------------------------------

    async def set_up(self) -> None:
        """Open a server on an empty store."""
        self.count = itertools.count()
        self.jobs: list[Job] = []
        self.by_id: dict[str, Job] = {}
        self.lines: dict[str, Line] = {}
        self.shown: dict[tuple[int, bool], str] = {}  # the first terminal look, by era
        self.ended: dict[int, int] = {}  # when it was shown first, in whatever era
        self.statuses: dict[tuple[int, bool], str] = {}
        self.subscriptions: list[Subscription] = []
        self.failures: list[Exception] = []
        self.down = False
        self.crashed_at = -1e9
        self.turn = 0
        self.tools = tools_for(self.jobs)
        self.store = MemoryTaskStore()
        config = ManagerConfig(clock_ms=clock_ms, retention_s=RETENTION_S)
        self.machine = await SimulatedExecutor.open(self.run.nursery, self.store, config=config)
        self.server = self.new_server()

    def new_server(self) -> Any:
        """Build the server anew, on the manager that is open."""
        return build_server(self.machine.manager, self.tools, owner_of=client_owner(Path("/here")))

    async def line(self, name: str) -> Line:
        """Return a client's connection; it is made if there is none."""
        line = self.lines.get(name)
        if line is None:
            line = Line(CLIENTS[name], self.take, lambda: next(self.count), self.failures)
            await self.run.nursery.start(line.serve, self.server)
            if not line.client.modern:
                await line.shake_hands()
            self.lines[name] = line
        return line

    def drop(self, *names: str) -> None:
        """Let clients go away, whatever they wait for."""
        for name in names:
            line = self.lines.pop(name, None)
            if line is not None:
                line.scope.cancel()
                self.subscriptions = [s for s in self.subscriptions if s.line is not line]
                for request in line.requests.values():
                    self.caller_gone(request)

    def caller_gone(self, request: Request) -> None:
        """An ordinary call ends with whoever made it."""
        for job in self.jobs:
            if job.request is request and not job.background and job.live is not None:
                self.doom(job, Truth("stopped", job.live.number))

    def doom(self, job: Job, truth: Truth) -> None:
        """Note what a cancellation of the body that runs will make of its task."""
        attempt = job.attempts[-1]
        if not attempt.over and attempt.doomed is None:
            attempt.doomed = truth

    def happened(self, what: str) -> None:
        """Note something that has to be seen now and then."""
        self.seen.add(what)

    async def rest(self) -> None:
        """Let everything happen that needs no time."""
        await wait_all_tasks_blocked()
        for failure in self.failures:
            raise failure
        self.passed()
        for subscription in self.subscriptions if not self.down else ():
            for job in subscription.jobs if not subscription.request.given_up else ():
                self.check_told(subscription, job)

    # ---- what comes --------------------------------------------------------------------------

    def take(self, line: Line, request: Request | None, message: Message) -> None:
        """Look at one message of the server; its form was checked already."""
        if request is not None:
            self.take_answer(line, request, message)
            return
        params = message["params"]
        match message["method"]:
            case "notifications/tasks":
                self.take_push(line, params)
            case "notifications/subscriptions/acknowledged":
                self.acknowledged(line, params)
            case "notifications/tasks/status":
                told = line.told.get(params["taskId"], 0)
                line.told[params["taskId"]] = self.see(line, params, told, detailed=False)
                self.happened("status is pushed")
            case "notifications/progress":
                self.happened("progress is passed on")
            case _:
                line.forms[message["id"]] = self.form(params)

    def take_answer(self, line: Line, request: Request, message: Message) -> None:
        """Look at the answer to a request."""
        result, params = message.get("result"), request.params
        assert request.method != "subscriptions/listen", f"the subscription ended: {message}"
        if result is None:
            self.happened(f"{request.method}: {message['error']['code']}")
            return
        match request.method:
            case "tasks/get":
                assert result["taskId"] == params["taskId"], f"another task than asked: {result}"
                self.see(line, result, request.stamp)
            case "tasks/cancel" if not line.client.modern:
                self.see(line, result, request.stamp)
            case "tools/call" if result.get("resultType") == "task":
                self.see(line, result, request.stamp, detailed=False)
                self.happened("the server decides for a task")
            case "tools/call" if "task" in params:
                self.see(line, result["task"], request.stamp, detailed=False)
                self.happened("the client decides for a task")
            case "tasks/list":
                for task in result["tasks"]:
                    self.see(line, task, request.stamp)
            case _:
                pass

    def form(self, params: Message) -> Form:
        """A question that is asked of a client within its request is one of its owner's task."""
        job = self.job_of(params["_meta"][RELATED_TASK]["taskId"])
        assert job is not None, f"nobody started it: {params}"
        words: str = params["message"]
        self.happened("the client is asked")
        for _, truths in reversed(job.history):
            for truth in truths:
                if words in truth.asks:
                    return Form(job, words)
                if truth.kind == "stopped" and words.endswith("Resume it?"):
                    return Form(job, words, f"resume-{truth.attempt}")
        raise AssertionError(f"nobody asks {words!r}: {job}")

    # ---- tasks ---------------------------------------------------------------------------------

    def see(self, line: Line, task: Message, stamp: int, *, detailed: bool = True) -> int:
        """Check one look at a task, made since a moment; return the moment of which it tells."""
        client, job = line.client, self.job_of(task["taskId"])
        assert job is not None, f"nobody started it: {task}"
        assert job.client.owner == client.owner, f"{client.owner} is shown {job}"
        era = job.number, client.modern
        self.check_payload(client, task, detailed=detailed)
        self.check_keys(job, task)
        found = [
            (at, [t for t in truths if fits(job, t, client, task, detailed=detailed)])
            for at, truths in job.history[self.first_since(job, stamp) :]
        ]
        fitting = [(at, truths) for at, truths in found if truths]
        assert fitting, f"shown is {task}, but true is {job}, since then {job.since(stamp)}"
        if not self.down and job.history[-1][0] < stamp:
            job.push(*fitting[-1][1])  # it was at rest: now it is known
        ends = task["status"] in TERMINAL
        first = self.ended.get(job.number)
        assert ends or first is None or stamp < first, f"it had ended on the wire: {task}: {job}"
        self.check_kept(job, task)
        if ends:
            self.ended.setdefault(job.number, next(self.count))
            self.check_unchanged(era, task, detailed=detailed)
        before = self.statuses.get(era, "nothing")
        if before != task["status"]:
            self.happened(f"{'2026' if client.modern else '2025'}: {before} -> {task['status']}")
            self.statuses[era] = task["status"]
        return fitting[0][0]

    def first_since(self, job: Job, stamp: int) -> int:
        """Return the place in the history of what was true at a moment."""
        return max((i for i, (at, _) in enumerate(job.history) if at <= stamp), default=0)

    def job_of(self, task_id: str) -> Job | None:
        """Return whose task that is."""
        found = self.by_id.get(task_id)
        if found is None:
            for job in self.jobs:
                if job.task_id == task_id:
                    self.by_id[task_id] = found = job
        return found

    def check_payload(self, client: Client, task: Message, *, detailed: bool) -> None:
        """Exactly one of result, error and inputRequests, as the status says; or none at all."""
        has = set(PAYLOADS.values()) & task.keys()
        wanted = {PAYLOADS.get(task["status"])} - {None} if client.modern and detailed else set()
        assert has == wanted, f"with status {task['status']} goes {wanted}, not {has}: {task}"

    def check_kept(self, job: Job, task: Message) -> None:
        """Once a task has ended it is said until when it is kept, and that is true."""
        ttl: int | None = task["ttlMs"] if "ttlMs" in task else task["ttl"]
        if task["status"] not in TERMINAL:
            assert ttl is None, f"it has not ended: {task}: {job}"
            return
        assert ttl is not None, f"until when is not said: {task}: {job}"
        created = datetime.fromisoformat(task["createdAt"]).timestamp()
        ended = created + ttl / 1000 - RETENTION_S - BEGIN_S
        assert job.ended_from is not None
        right = job.ended_from - 0.002 <= ended <= trio.current_time() + 0.002
        assert right, f"kept from {ended}, it ended at {job.ended_from}: {task}"

    def check_keys(self, job: Job, task: Message) -> None:
        """A key is one question's for the task's whole life."""
        for key, request in task.get("inputRequests", {}).items():
            words: str = request["params"]["message"]
            asked = job.keys.setdefault(key, words)
            assert asked == words, (
                f"the key {key} was that of {asked!r}, is that of {words!r}: {job}"
            )
        words_of = [words for key, words in job.keys.items() if not key.startswith("resume-")]
        assert len(words_of) == len(set(words_of)), f"a question has two keys: {job.keys}: {job}"

    def check_unchanged(self, era: tuple[int, bool], task: Message, *, detailed: bool) -> None:
        """What has ended is shown the same for ever, byte for byte."""
        kept = {k: v for k, v in task.items() if k not in ("_meta", "resultType")}
        if era[1] and not detailed:
            return  # without its payload
        text = json.dumps(kept)
        first = self.shown.setdefault(era, text)
        assert text == first, f"it has changed after its end: {first}, then {text}"

    # ---- subscriptions -------------------------------------------------------------------------

    def acknowledged(self, line: Line, params: Message) -> None:
        """A subscription is to those tasks of the owner that were asked for, and are there."""
        number = params["_meta"][SUBSCRIPTION]
        (subscription,) = (s for s in self.subscriptions if s.request is line.requests.get(number))
        subscription.number = number
        honored = params["notifications"].get("taskIds", [])
        there = [job.task_id for job in subscription.jobs if may_be_there(job)]
        sure = [job.task_id for job in subscription.jobs if is_there(job)]
        asked = subscription.request.params["notifications"]["taskIds"]
        assert set(sure) <= set(honored) <= set(there), f"{honored} is honored of {asked}: {there}"
        subscription.jobs = [job for job in subscription.jobs if job.task_id in honored]

    def take_push(self, line: Line, params: Message) -> None:
        """What is pushed tells the truth, in its order."""
        number = params["_meta"][SUBSCRIPTION]
        for subscription in self.subscriptions:
            if subscription.line is line and subscription.number == number:
                break
        else:
            raise AssertionError(f"nobody listens: {params}")
        task_id: str = params["taskId"]
        assert task_id in {job.task_id for job in subscription.jobs}, f"not asked for: {params}"
        since = subscription.told.get(task_id, subscription.request.stamp)
        subscription.told[task_id] = self.see(line, params, since)
        subscription.last[task_id] = params
        self.happened(f"{params['status']} is pushed")

    # ---- at rest -------------------------------------------------------------------------------

    @invariant()
    @in_trio
    async def all_is_told(self) -> None:
        """At rest every answer is there that has to be, and every subscriber knows how it stands."""
        await self.rest()
        assert self.machine.state == "open", f"the server ended: {self.machine}"
        for job in self.jobs:
            self.check_call(job)
            attempt = job.attempts[-1] if job.attempts else None
            if attempt is not None and all(t.kind in ("cancelling", "cancelled") for t in job.now):
                told = attempt.over or attempt.cancelled or attempt.lost
                assert told, f"it is cancelled, and its body runs: {job}"
        for line in self.lines.values():
            for request in line.requests.values():
                self.check_open(line, request)
            for form in line.forms.values():
                assert form.is_open, f"{form.words!r} is asked in vain: {form.job}"
        await self.look_again()

    async def look_again(self) -> None:
        """Look at one task, in both eras: what is not asked for, nobody sees."""
        job = self.jobs[self.turn % len(self.jobs)]
        names = [job.client.owner, f"{job.client.owner} 2025"]
        await self.look(names[self.turn // len(self.jobs) % 2], job)
        self.turn += 1

    async def look_in_both_eras(self, job: Job) -> None:
        """Ask for a task as each era does."""
        for era in ("", " 2025"):
            await self.look(job.client.owner + era, job)

    async def look(self, name: str, job: Job) -> Message:
        """Ask for a task; it has to be there if it is known to be."""
        line = await self.line(name)
        request = line.post("tasks/get", {"taskId": job.task_id})
        answer = await request.answered()
        if "error" in answer and not self.down:
            gone = may_be_gone(job) or line.client.owner != job.client.owner
            assert gone, f"it is called unknown: {answer}: {job}"
            if line.client.owner == job.client.owner:
                job.push(Truth("gone"))
                self.happened("it is discarded")
        return answer

    def check_call(self, job: Job) -> None:
        """An ordinary call is answered when its body is over, with what came of it."""
        request = job.request
        if request is None or job.background or request.given_up:
            return
        if not any(
            request in line.requests.values() or request.answer for line in self.lines.values()
        ):
            return  # whoever made it is gone
        over = bool(job.attempts) and job.attempts[0].over
        assert over == (request.answer is not None), f"answered: {request.answer}, but: {job}"
        if request.answer is not None:
            truths = [t for _, ts in job.history for t in ts if t.attempt == 1]
            told = any(foreground_fits(job, truth, request.answer) for truth in truths)
            assert told, f"answered was {request.answer}, but: {job.history}"

    def check_open(self, line: Line, request: Request) -> None:
        """What has no answer yet has to wait for something."""
        if request.method == "subscriptions/listen" or request.given_up:
            return
        if request.method == "tools/call":
            return  # see `check_call`
        assert request.method == "tasks/result", f"no answer to {request}"
        job = self.job_of(request.params["taskId"])
        assert job is not None, f"no answer to {request}"
        waits = [status_of(job, t, line.client) not in TERMINAL | {"gone"} for t in job.now]
        assert any(waits), f"nobody tells how it ended: {request.params}: {job}"

    def check_told(self, subscription: Subscription, job: Job) -> None:
        """Whoever listens was told of what is true now."""
        last = subscription.last.get(job.task_id or "")
        assert last is not None, f"nothing was told of {job}"
        client = subscription.line.client
        now = any(fits(job, truth, client, last, detailed=True) for truth in job.now)
        gone = may_be_gone(job)
        assert now or gone or self.unsure(job), f"told last was {last}, but: {job}"

    def unsure(self, job: Job) -> bool:
        """May it look different at the next look, without anybody doing anything?"""
        return len(job.now) > 1

    async def clean_up(self) -> None:
        """Whatever is left ends with the server, and is seen once more in both eras."""
        self.drop(*self.lines)
        await self.shut_down()
        await self.rest()
        await self.reopen()
        for job in self.jobs:
            await self.look_in_both_eras(job)
        self.drop(*self.lines)
        await self.machine.shut_down()

    async def shut_down(self) -> None:
        """End the server in order: what runs is stopped."""
        for job in self.jobs:
            if job.live is not None:
                self.doom(job, Truth("stopped", job.live.number))
        await self.machine.shut_down()

    async def reopen(self) -> None:
        """Open the next server on the same store."""
        self.machine = await self.machine.restart()
        self.server = self.new_server()

    def passed(self) -> None:
        """Note what time has made of tasks: orphans are found, what has ended is discarded."""
        now = trio.current_time()
        for job in self.jobs:
            for attempt in job.attempts:
                if attempt.lost and not attempt.found and now >= self.crashed_at + ORPHANED_S:
                    attempt.found = True
                    job.change(attempt.orphaned)
            if job.ended_from is not None and now >= job.ended_from + RETENTION_S:
                sure = job.ended_by is not None and now >= job.ended_by + SWEPT_S
                job.push(*([] if sure else job.now), Truth("gone"))


def clock_ms() -> int:
    """Return the time of day: it begins when the clock does, not in 1970."""
    return virtual_clock_ms() + BEGIN_S * 1000


def may_be_gone(job: Job) -> bool:
    """May it have been discarded?"""
    kept = job.ended_from is None or trio.current_time() < job.ended_from + RETENTION_S
    return not kept or any(truth.kind == "gone" for truth in job.now)


def may_be_there(job: Job) -> bool:
    """May it be there still?"""
    return any(truth.kind != "gone" for truth in job.now)


def is_there(job: Job) -> bool:
    """Is it there, for sure?"""
    return not may_be_gone(job) and may_be_there(job)
