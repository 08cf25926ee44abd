"""What happens to the clients of a store and to its records; and the sweeps that find the dead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
import hypothesis.strategies as st
from hypothesis import note
from hypothesis.stateful import rule

from trio_bgtasks import Orphaned
from trio_bgtasks.stores import SweepReport

from . import _store_view as view
from . import _store_wishes as wish
from ._store_calls import Sweep, Unsaid
from ._store_clients import (
    CLIENTS,
    LOST,
    MOST_CLIENTS,
    REQUESTS,
    STEPS,
    Client,
    Made,
    Request,
    StoreClients,
    can,
)
from ._store_view import broken
from ._store_wishes import Fate
from ._trio_machine import in_trio


class StoreDisasters(StoreClients):
    """The rules of a `TaskStoreMachine` that are about the life of its clients and records."""

    @rule(how=st.sampled_from(["join", "leave"]), number=CLIENTS)
    @in_trio
    async def come_and_go(self, how: str, number: int) -> None:
        """A client opens the store, or closes it and is fenced."""
        there = len(self._clients)
        if there == 1 or (how == "join" and there < MOST_CLIENTS):
            await self._join()
        else:
            await self._leave(self._one(number))
        await self._check("a client of the store came, or went")

    @rule(client=CLIENTS, pieces=st.lists(wish.pieces, max_size=2))
    @in_trio
    async def reopen(self, client: int, pieces: list[wish.Write]) -> None:
        """All clients close the store, and one opens it: what was written last is there."""
        await self._write(client, pieces)
        for one in list(self._clients):
            await self._leave(one)
        await self._join()
        await self._check("all clients closed the store, and one opened it again")

    @rule(fate=st.sampled_from(["fails before", "answer lost", "cancelled"]), steps=STEPS)
    @in_trio
    async def register_in_vain(self, fate: Fate, steps: int) -> None:
        """An executor is registered and nobody hears of it: there is none that a sweep finds."""
        if len(self._clients) == MOST_CLIENTS:  # it may be too late to cancel that
            await self._leave(self._one(0))
        await self._join_in_vain(fate, steps)
        await self._check(f"a client tried to register an executor ({fate})")

    @can("corrupt")
    @rule(number=st.integers(0, 5))
    @in_trio
    async def damage(self, number: int) -> None:
        """A record cannot be read any more: it is called corrupt, and nothing else suffers."""
        task_id, record = self._scene(0).task(number)
        if record is not None:
            await self.corrupt(self._place, task_id)
            self._model.corrupt |= {task_id}
            await self._check(f"the record of {task_id!r} was damaged")

    # ---- kills --------------------------------------------------------------------------------

    @can("kill")
    @rule(
        pieces=st.lists(wish.pieces, max_size=1),
        requests=st.lists(REQUESTS, min_size=1, max_size=4),
        steps=STEPS,
    )
    @in_trio
    async def crash(self, pieces: list[wish.Write], requests: list[Request], steps: int) -> None:
        """All clients are killed in the middle of their calls: nothing was done by half.

        What was answered before that is there.
        """
        await self._write(0, pieces)
        made = [self._made(attrs.evolve(request, fate="killed")) for request in requests]
        await self._pass_time()
        await self._kill_all(made, steps)
        await self._settle(made)
        await self._check("all who used the store were killed")

    @can("kill")
    @rule(number=CLIENTS, steps=STEPS)
    @in_trio
    async def crash_in_a_sweep(self, number: int, steps: int) -> None:
        """Who sweeps is killed meanwhile: the next sweep does what is left to do, once."""
        await self._pass_time()
        model, client, at_ms = self._model, self._one(number), self._now_ms()
        killed = Made(client, Sweep(client.executor_id, at_ms, None), "killed")
        begun: SweepReport = killed.call.play(model.copy(), None)
        await self._kill_all([killed], steps)
        last = await self._sweep_again(None, self._now_ms())
        seen: SweepReport = last.answer
        # What the next one did not find to do, the killed one has done.
        model.executors.update(dict.fromkeys(begun.fenced, "fenced"))
        for task_id, _ in set(begun.ended) - set(seen.ended):
            record = model.records[task_id]
            model.apply(task_id, Orphaned(at_ms, record.executor_id or "", record.attempt))
        left: SweepReport = last.call.play(model, None)
        all_of_it = attrs.evolve(
            left,
            fenced=[*begun.fenced, *left.fenced],
            ended=[*{*begun.ended, *left.ended}],
        )
        heard = not isinstance(killed.answer, Unsaid)
        self._judge_sweeps(all_of_it, all_of_it if heard else left, [killed, last])
        await self._check(_told([killed, last]))

    # ---- sweeps -------------------------------------------------------------------------------

    @rule(
        sweepers=st.lists(st.tuples(CLIENTS, wish.fates, STEPS), min_size=1, max_size=2),
        suspect=st.none() | st.integers(0, 3),
        again=st.booleans(),
    )
    @in_trio
    async def sweep(
        self, sweepers: list[tuple[int, Fate, int]], suspect: int | None, *, again: bool
    ) -> None:
        """Sweep, also several at once; a sweep after that finds nothing more."""
        if len(self._clients) == 1:
            await self._join()  # one that must be left alone
        await self._pass_time()
        names, at_ms = list(self._model.executors), self._now_ms()
        name = None if suspect is None else names[-1 - suspect % len(names)]
        by_client: dict[Client, tuple[Fate, int]] = {
            self._one(number): (fate, steps) for number, fate, steps in sweepers
        }
        made = [
            Made(client, Sweep(client.executor_id, at_ms, name), fate, steps)
            for client, (fate, steps) in by_client.items()
        ]
        all_of_it: SweepReport = made[0].call.play(self._model, None)
        await self._at_once(made)
        done = any(one.answer is LOST or not isinstance(one.answer, Unsaid) for one in made)
        if again or not done:
            made.append(last := await self._sweep_again(name, at_ms))
            if done and (last.answer.fenced or last.answer.ended):
                raise broken(view.SWEEP, f"one ended more after another:\n{_told(made)}")
        unheard = [m for m in made if isinstance(m.answer, Unsaid) and m.fate != "fails before"]
        at_least = attrs.evolve(all_of_it, fenced=(), ended=()) if unheard else all_of_it
        self._judge_sweeps(all_of_it, at_least, made)
        await self._check(_told(made))

    async def _sweep_again(self, suspect: str | None, at_ms: int) -> Made:
        client = self._one(0)
        made = Made(client, Sweep(client.executor_id, at_ms, suspect))
        await self._make(made)
        if not isinstance(made.answer, SweepReport):
            raise broken(view.SWEEP, f"it failed\n{made}")
        return made

    def _judge_sweeps(self, may: SweepReport, must: SweepReport, made: Sequence[Made]) -> None:
        """Compare what the sweeps report together with the most and the least there was to do."""
        what = _told(made)
        note(what)
        for one in made:
            if isinstance(one.answer, Exception):
                raise broken(view.SWEEP, f"it failed\n{what}") from one.answer
        reports = [(one, one.answer) for one in made if isinstance(one.answer, SweepReport)]
        for title in ("fenced", "ended"):
            found = Counter[Any](item for _, report in reports for item in getattr(report, title))
            most, least = Counter[Any](getattr(may, title)), Counter[Any](getattr(must, title))
            if not least <= found <= most:
                raise broken(view.SWEEP, f"{title} should be {sorted(most)}, each once\n{what}")
        damaged = {error.task_id for error in may.corrupt}
        reported = {error.task_id for _, report in reports for error in report.corrupt}
        if reports and reported != damaged:
            raise broken(view.CORRUPT, f"{sorted(damaged)} should be reported\n{what}")
        for one, report in reports:
            if one.client.dead:
                continue  # what was its own was so at that time
            expected: SweepReport = one.call.play(self._model.copy(), None)
            own = sorted(expected.own_running)
            wrong = {task_id for task_id, _ in set(own) ^ set(report.own_running)}
            if not wrong <= self._model.corrupt:
                raise broken(view.SWEEP, f"own_running should be {own}\n{what}")


def _told(made: Sequence[Made]) -> str:
    return "\n".join(map(str, made))
