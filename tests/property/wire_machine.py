"""`WireMachine`: what happens at the same time, in a row, and while the store fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from trio_bgtasks.testing import in_trio

from .wire_changes import open_keys
from .wire_jobs import ENDS, ORDERS, What
from .wire_looks import INTERNAL_ERROR
from .wire_rules import (
    ANSWERS,
    MOST_JOBS,
    Call,
    WireRules,
    askers,
    eras,
    modern,
    numbers,
    orders,
)
from .wire_stage import may_be_gone

IN_VAIN = ["answer", "cancel", *sorted(ENDS)]
EVERY_CALL = ["apply", "load", "list_owner", "children", "history", "read_output"]
broken = st.sampled_from([["apply"], ["load"], ["read_output"], ["children"], EVERY_CALL])


class WireMachine(WireRules):
    """Every way of a task on the wire."""

    # ---- at the same time ----------------------------------------------------------------------

    @precondition(lambda self: any(job.live for job in self.jobs))
    @rule(eras=st.lists(eras, min_size=2, max_size=2), number=numbers, what=orders)
    @in_trio
    async def cancel_and_go_on(self, eras: list[str], number: int, what: What) -> None:
        """While the tool does something, two clients cancel its task and ask how it stands."""
        job = self.live(number)
        lines = [await self.line(job.client.owner + era) for era in eras]
        self.tell(job, ORDERS[what](job))
        looks = lines[0].post("tasks/get", {"taskId": job.task_id})
        request = self.post_cancel(lines[1], job)
        await looks.result()
        await self.cancelled(lines[1], job, request)
        self.happened("a race with a cancel")

    @precondition(lambda self: any(open_keys(job) for job in self.jobs))
    @rule(number=numbers, whats=st.lists(st.sampled_from(sorted(ANSWERS)), min_size=2, max_size=2))
    @in_trio
    async def answer_twice(self, number: int, whats: list[str]) -> None:
        """Two clients answer the same question; one of the answers is given, once."""
        asking = [job for job in self.jobs if open_keys(job)]
        job = asking[number % len(asking)]
        owner = job.client.owner
        lines = [
            await self.line(name) for name in (owner, "ann silent" if owner == "ann" else owner)
        ]
        key = open_keys(job)[0]
        if key.startswith("resume-"):
            whats = whats[:1] * 2  # a yes and a no: what was resumed may be cancelled
        requests = [
            self.post_answer(line, job, key, ANSWERS[what])
            for line, what in zip(lines, whats, strict=True)
        ]
        for request in requests:
            await request.result()
        await self.answered(job, key, "close" if "close" in whats else "accept")
        self.happened("two answers")

    @precondition(lambda self: len(self.jobs) < MOST_JOBS)
    @rule(name=modern, tool=st.sampled_from(["work", "again"]), first=st.sampled_from(sorted(ENDS)))
    @in_trio
    async def call_for_a_moment(self, name: str, tool: str, first: str) -> None:
        """What ends within a moment is answered so, and is a task all the same."""
        await self.called(await self.line(name), Call(tool, first))

    # ---- one after another, which chance alone seldom does -------------------------------------

    @precondition(lambda self: any(job.live for job in self.jobs))
    @rule(number=numbers, what=st.sampled_from(sorted(ANSWERS)))
    @in_trio
    async def question_after_question(self, number: int, what: str) -> None:
        """A tool asks, is answered, and asks something else, under other keys."""
        job = self.live(number)
        line = await self.line(job.client.owner)
        await self.subscribe(line, [job])
        asked: list[What] = ["ask", "ask", "checkpoint", "ask"]
        for order in asked:
            if order == "checkpoint":
                for key in open_keys(job):
                    await self.post_answer(line, job, key, ANSWERS[what]).result()
                    await self.answered(job, key, what)
            if job.live is not None:  # else it was cancelled at the same time
                self.tell(job, ORDERS[order](job))
            await self.rest()

    @precondition(lambda self: any(job.live and job.resumable for job in self.jobs))
    @rule(number=numbers, late=st.sampled_from(sorted(ANSWERS)))
    @in_trio
    async def stop_after_stop(self, number: int, late: str) -> None:
        """A task stops, goes on and stops; an answer that is for the first time comes too late."""
        live = [job for job in self.jobs if job.live and job.resumable]
        job = live[number % len(live)]
        line = await self.line(job.client.owner)
        keys: list[str] = []
        for what in ("accept", late):
            if job.live is None:
                return  # it was cancelled at the same time
            self.tell(job, ORDERS["stop"](job))
            await self.rest()
            await self.look(job.client.owner, job)
            keys += open_keys(job)
            if not keys:
                return
            await self.post_answer(line, job, keys[0], ANSWERS[what]).result()
            await self.answered(job, keys[0], what)
        self.happened("a late answer")

    @precondition(lambda self: any(job.live and job.client.owner == "ann" for job in self.jobs))
    @rule(number=numbers, what=st.sampled_from(IN_VAIN))
    @in_trio
    async def asked_in_vain(self, number: int, what: str) -> None:
        """Somebody waits for a result, and is asked what is answered elsewhere, or not at all."""
        live = [job for job in self.jobs if job.live and job.client.owner == "ann"]
        job = live[number % len(live)]
        line, old = [await self.line(f"{job.client.owner}{era}") for era in ("", " 2025")]
        self.tell(job, ORDERS["ask"](job))
        await self.rest()
        await self.look_in_both_eras(job)
        old.post("tasks/result", {"taskId": job.task_id})
        await self.rest()
        if what == "cancel":
            await self.cancelled(line, job, self.post_cancel(line, job))
        elif what != "answer":
            self.tell(job, ORDERS[cast("What", what)](job))
        elif open_keys(job):
            key = open_keys(job)[0]
            await self.post_answer(line, job, key, ANSWERS["accept"]).result()
            await self.answered(job, key, "accept")
        await self.rest()
        await self.look_in_both_eras(job)

    # ---- the store -----------------------------------------------------------------------------

    @asynccontextmanager
    async def store_down(self, calls: list[str]) -> AsyncGenerator[None, None]:
        """Let some calls of the store fail within the block; what is owed to it is stored after."""
        self.machine.store.break_down(*calls)
        self.down = True
        try:
            yield
        finally:
            self.machine.store.repair()
            self.down = False
        await self.sleep(30)

    @precondition(lambda self: len(self.jobs) < MOST_JOBS)
    @rule(calls=broken, name=askers)
    @in_trio
    async def call_without_the_store(self, calls: list[str], name: str) -> None:
        """A task whose id is handed out is there, whatever fails."""
        line = await self.line(name)
        async with self.store_down(calls):
            job, request = self.post_call(line, Call("work", as_task=True))
            answer = await request.answered()
            self.machine.store.repair()
            told = answer.get("result", {})
            task_id = told.get("taskId") or told.get("task", {}).get("taskId")
            if task_id is not None:
                await line.post("tasks/get", {"taskId": task_id}).result()
            if not job.attempts:
                assert "error" in answer or told["isError"], f"it did not run: {answer}"
                self.jobs.pop()
                self.happened("a call is not stored")

    @precondition(lambda self: any(job.live for job in self.jobs))
    @rule(calls=broken, number=numbers, what=st.sampled_from(["output", "progress", *ENDS]))
    @in_trio
    async def go_on_without_the_store(self, calls: list[str], number: int, what: What) -> None:
        """What a tool did meanwhile, and how it ended, is told once that is stored."""
        job, before = self.live(number), self.live(number).now
        async with self.store_down(calls):
            self.tell(job, ORDERS[what](job))
            await self.rest()
            ended = job.now
            job.push(*before, *ended)
        job.push(*ended)
        self.happened("an end is not stored")

    @rule(calls=broken, number=numbers, what=st.sampled_from(["cancel", "answer", "look", "list"]))
    @in_trio
    async def ask_without_the_store(self, calls: list[str], number: int, what: str) -> None:
        """While the store fails, nothing is said that is not so; what was refused is not done."""
        job = self.job(number)
        line = await self.line(job.client.owner)
        async with self.store_down(calls):
            if what == "cancel":
                request = self.post_cancel(line, job)
            elif what == "list":
                request = line.post("tools/call", {"name": "task_status", "arguments": {}})
            elif what == "answer" and open_keys(job):
                request = self.post_answer(line, job, open_keys(job)[0], ANSWERS["accept"])
            else:
                request = line.post("tasks/get", {"taskId": job.task_id})
            answer = await request.answered()
            if "error" in answer:
                self.happened(f"the store is down: {what}")
                code = answer["error"]["code"]
                known = code == INTERNAL_ERROR or may_be_gone(job)
                assert known or (code == -32602 and what == "answer"), answer
        if job.live is not None and job.live.doomed is not None:
            job.live.doomed = None  # the cancel was refused
            job.change(lambda t: [t] if t.kind == "running" else [])
