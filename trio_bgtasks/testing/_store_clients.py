"""The clients of one store: they come and go, make calls, and find what explains the answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack
from typing import Any, ClassVar

import attrs
import trio
from hypothesis import note

from trio_bgtasks import LeaseTerms, TaskStore, TaskStoreError

from . import _store_view as view
from ._faulty import Fault, FaultyStore
from ._store_calls import MANY, Apply, Call, Collect, Unsaid, brief, spoil
from ._store_model import StoreModel
from ._store_view import broken
from ._store_wishes import Fate, Scene, Wish
from ._trio_machine import TrioStateMachine

_UNKNOWN: Any = Unsaid("none: it may have been applied")
_NOT_APPLIED: Any = Unsaid("none: it was not applied")


class _Down(TaskStoreError):
    """What a call raises whose answer is lost."""


@attrs.define(eq=False)
class Client:
    """One opened store and one executor of it."""

    name: str
    store: TaskStore
    executor_id: str
    leave: trio.Event = attrs.field(factory=trio.Event)
    gone: trio.Event = attrs.field(factory=trio.Event)


@attrs.define(eq=False)
class Made:
    """A call that a client made, and its answer: a value, an exception, or one of the above."""

    client: Client
    call: Call
    fate: Fate = "answered"
    steps: int = 0  # before it is cancelled
    answer: Any = _NOT_APPLIED

    def __str__(self) -> str:
        how = "" if self.fate == "answered" else f" ({self.fate})"
        return f"  {self.client.name}: {self.call}{how}\n    -> {brief(self.answer)}"


@attrs.frozen
class Request:
    wish: Wish
    client: int
    fate: Fate = "answered"
    steps: int = 0


class StoreClients(TrioStateMachine):
    """What a `TaskStoreMachine` does, without its rules."""

    cancelled_is_not_applied: ClassVar[bool] = False

    # ---- what a subclass says -----------------------------------------------------------------

    def new_place(self) -> AbstractContextManager[Any]:
        """Return a context manager of a fresh place for one example: a path, a database, a store.

        It is open until the example has ended.
        """
        raise NotImplementedError

    def open_store(self, place: Any) -> AbstractAsyncContextManager[TaskStore]:
        """Return an async context manager of a store at ``place``, new or not.

        Several are open at once; each is used by one executor, as if by a process of its own.
        """
        raise NotImplementedError

    async def kill(self, place: Any, executor_ids: Sequence[str]) -> Any:
        """Leave behind what is there when all processes that use ``place`` are killed now.

        Return the place where others go on, perhaps a copy: from now on a sweep there must find
        these executors dead. The stores at ``place`` are closed afterwards.
        """
        raise NotImplementedError

    async def corrupt(self, place: Any, task_id: str) -> None:
        """Damage the stored record of ``task_id`` so that it cannot be read."""
        raise NotImplementedError

    # ---- coming and going ---------------------------------------------------------------------

    def __init__(self) -> None:
        super().__init__()
        self._places = ExitStack()
        self._clients: list[Client] = []
        self._joined = 0
        self._model = StoreModel()

    async def set_up(self) -> None:
        """Open the store."""
        self._clock = trio.lowlevel.current_clock()
        self._place = self._places.enter_context(self.new_place())
        await self._join()

    def teardown(self) -> None:
        """End the run, then leave the place."""
        try:
            super().teardown()
        finally:
            self._places.close()

    def _now_ms(self) -> int:
        return 1_000_000 + int(self._clock.current_time() * 1000)  # also in a store's thread

    async def _be_a_client(self, name: str, task_status: trio.TaskStatus[Client]) -> None:
        async with (
            self.open_store(self._place) as store,
            store.executor(LeaseTerms(), self._now_ms) as executor,
        ):
            client = Client(name, store, executor.executor_id)
            task_status.started(client)
            await client.leave.wait()
        client.gone.set()

    async def _join(self) -> None:
        name = f"client {self._joined}"
        self._joined += 1
        client: Client = await self.run.nursery.start(self._be_a_client, name, name=name)
        self._clients.append(client)
        self._model.executors[client.executor_id] = "alive"

    async def _leave(self, client: Client, *, dead: bool = False) -> None:
        self._clients.remove(client)
        client.leave.set()
        await client.gone.wait()
        self._model.executors[client.executor_id] = "dead" if dead else "fenced"

    def _one(self, number: int) -> Client:
        return self._clients[number % len(self._clients)]

    def _scene(self, number: int) -> Scene:
        return Scene(self._model, self._one(number).executor_id, self._now_ms())

    def _made(self, request: Request) -> Made:
        call = request.wish.call(self._scene(request.client))
        if isinstance(call, Collect) and request.fate != "answered":
            call = attrs.evolve(call, limit=MANY)  # or nobody knows which ones went
        return Made(self._one(request.client), call, request.fate, request.steps)

    async def _alone(self, wish: Wish, client: int = 0) -> None:
        await self._together([self._made(Request(wish, client))])

    async def _together(self, made: list[Made]) -> None:
        """Make the calls at the same time, and find the order that explains what they did."""
        await self._pass_time()
        async with trio.open_nursery() as nursery:
            for one in made:
                nursery.start_soon(self._make, one)
        await self._settle(made)

    async def _pass_time(self) -> None:
        await trio.sleep(0.001)  # so that not everything ends at the same millisecond
        self._model.step += 1

    async def _make(self, made: Made) -> None:
        store = FaultyStore(made.client.store)
        if made.fate in ("fails before", "answer lost"):
            fault: Fault = "before" if made.fate == "fails before" else "after"
            store.break_down(made.call.method, fault=fault, error=_Down)
        async with trio.open_nursery() as nursery:
            if made.fate == "cancelled":
                nursery.start_soon(_cancel_after, made.steps, nursery.cancel_scope)
            await trio.lowlevel.checkpoint()
            made.answer = _NOT_APPLIED if self.cancelled_is_not_applied else _UNKNOWN
            try:
                made.answer = await made.call.make(store)
            except _Down:
                made.answer = _NOT_APPLIED if made.fate == "fails before" else _UNKNOWN
            except Exception as error:  # noqa: BLE001 - it is compared with what is expected
                made.answer = error
            nursery.cancel_scope.cancel()

    async def _settle(self, made: list[Made]) -> None:
        """Look at the store; the model becomes what the calls have made of it."""
        what = "these calls were made at the same time:\n" if len(made) > 1 else ""
        what += "\n".join(map(str, made))
        note(what)
        orders = list(_orders(self._model, made))
        if not orders:
            promise = view.ATOMIC if len(made) > 1 else view.ANSWERED
            raise broken(promise, f"{what}\n{self._explanation(made)}")
        touched = {one.call.task_id for one in made if isinstance(one.call, Apply)}
        for model in orders:
            touched |= model.records.keys() ^ self._model.records.keys()
        seen = await self._look(orders, touched)
        wrong: tuple[str, str] | None = None
        for model in orders:
            found = view.complaint(model, seen)
            if found is None:
                self._model = model
                break
            wrong = wrong or found
        else:
            assert wrong is not None
            promise, why = wrong
            if any(one.fate == "cancelled" and one.answer is _NOT_APPLIED for one in made):
                promise = f"{promise}; {view.CANCELLED}"
            raise broken(promise, f"{why}\nafter this:\n{what}")
        for one in made:
            spoil(one.answer)

    def _explanation(self, made: list[Made]) -> str:
        """Say what would have been answered in the order in which the calls are listed."""
        model = self._model.copy()
        lines = ["no order of them explains the answers; in this one they would be:"]
        for one in made:
            if one.answer is not _NOT_APPLIED:
                expected = _play(model, one)
                wrong = view.difference(expected, one.answer) if one.answer is not _UNKNOWN else ""
                lines.append(f"  {one.client.name}: {wrong or 'as it was'}")
        return "\n".join(lines)

    async def _look(self, models: Sequence[StoreModel], touched: Iterable[str]) -> view.View:
        return await view.look(self._one(self._model.step).store, models, touched)

    async def _check(self, after: str) -> view.View:
        """Look at everything in the store; it must be as the model says."""
        everything = [*self._model.records, *self._model.collected, "nobody"]
        seen = await self._look([self._model], everything)
        wrong = view.complaint(self._model, seen)
        if wrong is not None:
            raise broken(wrong[0], f"{wrong[1]}\nafter this: {after}")
        return seen


# ---- small things -------------------------------------------------------------------------------


async def _cancel_after(steps: int, scope: trio.CancelScope) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


def _orders(model: StoreModel, made: Sequence[Made]) -> Iterator[StoreModel]:
    """Yield what the model becomes in every order of the calls that explains their answers."""
    done = [one for one in made if one.answer is not _NOT_APPLIED]
    if all(one.answer is _UNKNOWN for one in done):
        yield model.copy()  # none of them was applied
    for one in done:
        tried = model.copy()
        expected = _play(tried, one)
        if one.answer is _UNKNOWN:
            explained = not isinstance(expected, Exception)  # a refusal changes nothing
        else:
            explained = view.difference(expected, one.answer) is None
        if explained:
            yield from _orders(tried, [other for other in done if other is not one])


def _play(model: StoreModel, made: Made) -> Any:
    try:
        return made.call.play(model, None if made.answer is _UNKNOWN else made.answer)
    except Exception as error:  # noqa: BLE001 - it is compared with what was raised
        return error
