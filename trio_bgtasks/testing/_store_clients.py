"""The clients of one store: they come and go, make calls, and find what explains the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack
from typing import Any, ClassVar, NoReturn, TypeVar

import attrs
import hypothesis.strategies as st
import trio
from hypothesis import note
from hypothesis.stateful import precondition

from trio_bgtasks import LeaseTerms, TaskStore, TaskStoreError

from . import _store_view as view
from ._faulty import Fault, FaultyStore
from ._store_calls import MANY, Apply, Call, Collect, Unsaid, brief, spoil
from ._store_model import StoreModel
from ._store_reads import Disagreement, Read, look
from ._store_scene import Scene, Wish
from ._store_view import broken
from ._store_wishes import PLAIN, Fate, fates, wishes
from ._trio_machine import TrioStateMachine

F = TypeVar("F", bound=Callable[..., Any])

MOST_CLIENTS = 3
_UNTIL_MADE = 2  # turns of the loop: calls are under way then

UNKNOWN: Any = Unsaid("none: it may have been applied")
LOST: Any = Unsaid("lost: it was applied")
NOT_APPLIED: Any = Unsaid("none: it was not applied")


class Down(TaskStoreError):
    """What a call raises whose answer is lost."""


@attrs.define(eq=False)
class Client:
    """One opened store and one executor of it."""

    name: str
    store: TaskStore
    executor_id: str
    gone: trio.Event  # it has closed the store
    leave: trio.Event = attrs.field(factory=trio.Event)
    dead: bool = False  # it hears no answer any more


@attrs.define(eq=False)
class Made:
    """A call that a client made, and its answer: a value, an exception, or one of the above."""

    client: Client
    call: Call
    fate: Fate = "answered"
    steps: int = 0  # before it is cancelled
    late: int = 0  # steps before it is made
    answer: Any = NOT_APPLIED

    def __str__(self) -> str:
        how = "" if self.fate == "answered" else f" ({self.fate})"
        return f"  {self.client.name}: {self.call}{how}\n    -> {brief(self.answer)}"


@attrs.frozen
class Request:
    wish: Wish
    client: int
    fate: Fate = "answered"
    steps: int = 0
    late: int = 0


CLIENTS = st.integers(0, MOST_CLIENTS - 1)
STEPS = st.integers(0, 3) | st.integers(0, 30)
REQUESTS = st.builds(Request, wish=wishes, client=CLIENTS, fate=fates, steps=STEPS)


class StoreClients(TrioStateMachine):
    """What a `TaskStoreMachine` does, without its rules."""

    cancelled_is_not_applied: ClassVar[bool] = False

    # ---- what a subclass says -----------------------------------------------------------------

    def new_place(self) -> AbstractContextManager[Any]:
        """Return a context manager of a fresh place for one example: a path, a database, a store.

        It is open until the example has ended.
        """
        self._miss("new_place", "a context manager of a fresh path, database or store")

    def open_store(self, place: Any) -> AbstractAsyncContextManager[TaskStore]:
        """Return an async context manager of a store at ``place``, new or not.

        Several are open at once; each is used by one executor, as if by a process of its own.
        """
        self._miss("open_store", f"an async context manager of a store at the place {place!r}")

    async def kill(self, place: Any, executor_ids: Sequence[str]) -> Any:
        """Leave behind what is there when all processes that use ``place`` are killed now.

        Return the place where others go on, perhaps a copy: from now on a sweep there must find
        these executors dead. Calls may be under way: whatever they do after that must not be seen
        there. All must be killed at one moment (stop each process, then kill them): a sweep
        under way must not find one dead and end its tasks while it is being killed itself. They
        are cancelled, and the stores at ``place`` closed, when this returns.
        """
        del executor_ids
        self._miss("kill", f"what is left at {place!r} when its processes are killed")

    async def corrupt(self, place: Any, task_id: str) -> None:
        """Damage the stored record of ``task_id`` so that it cannot be read."""
        self._miss("corrupt", f"to damage the record of {task_id!r} at {place!r}")

    def _miss(self, method: str, what: str) -> NoReturn:
        raise NotImplementedError(f"{type(self).__name__} needs a method {method}: {what}")

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

    async def _be_a_client(
        self, name: str, fate: Fate, task_status: trio.TaskStatus[Client | None]
    ) -> None:
        gone = trio.Event()
        async with self.open_store(self._place) as store:
            faulty = _with_fate(store, fate, "executor")
            try:
                async with faulty.executor(LeaseTerms(), self._now_ms) as executor:
                    client = Client(name, store, executor.executor_id, gone)
                    task_status.started(client)
                    await client.leave.wait()
            except* Down:  # a nursery of the store may have wrapped it
                task_status.started(None)
        gone.set()

    async def _join(self, fate: Fate = "answered") -> None:
        name = f"client {self._joined}"
        self._joined += 1
        client: Client | None = await self.run.nursery.start(
            self._be_a_client, name, fate, name=name
        )
        if client is not None:
            self._clients.append(client)
            self._model.executors[client.executor_id] = "alive"

    async def _join_in_vain(self, fate: Fate, steps: int) -> None:
        """Register an executor that nobody hears of: it is none, or has said goodbye."""
        async with trio.open_nursery() as nursery:
            if fate == "cancelled":
                nursery.start_soon(_cancel_after, steps, nursery.cancel_scope)
            await self._join(fate)
            nursery.cancel_scope.cancel()

    async def _leave(self, client: Client) -> None:
        self._clients.remove(client)
        client.leave.set()
        await client.gone.wait()
        self._model.executors[client.executor_id] = "dead" if client.dead else "fenced"

    async def _kill_all(self, under_way: Sequence[Made], steps: int) -> None:
        """Kill all clients in the middle of these calls; one opens the store again."""
        victims = list(self._clients)
        async with trio.open_nursery() as nursery:
            for one in under_way:
                nursery.start_soon(self._make, one)
            for _ in range(_UNTIL_MADE + steps):
                await trio.lowlevel.checkpoint()
            for client in victims:
                client.dead = True
            self._place = await self.kill(self._place, [one.executor_id for one in victims])
            nursery.cancel_scope.cancel()
        for client in victims:
            await self._leave(client)
        await self._join()

    def _one(self, number: int) -> Client:
        return self._clients[number % len(self._clients)]

    def _scene(self, number: int) -> Scene:
        return Scene(self._model, self._one(number).executor_id, self._now_ms())

    def _made(self, request: Request) -> Made:
        call = request.wish.call(self._scene(request.client))
        if isinstance(call, Collect) and request.fate != "answered":
            # Or nobody knows which ones went.
            before_ms = 0 if self._model.corrupt else call.before_ms
            call = attrs.evolve(call, limit=MANY, before_ms=before_ms)
        return Made(self._one(request.client), call, request.fate, request.steps, request.late)

    async def _alone(self, wish: Wish, client: int = 0) -> None:
        await self._together([self._made(Request(wish, client))])

    async def _write(self, client: int, pieces: Iterable[Wish]) -> None:
        """Write pieces of the newest task; of a new one if that does not run any more."""
        _, record = self._scene(client).task(0)
        executor_id = "" if record is None else record.executor_id or ""
        if self._model.executors.get(executor_id) != "alive":
            await self._alone(PLAIN, client)
        for piece in pieces:
            await self._alone(piece, client)

    async def _together(self, made: list[Made]) -> None:
        """Make the calls at the same time, and find the order that explains what they did."""
        await self._pass_time()
        await self._at_once(made)
        await self._settle(made)

    async def _at_once(self, made: Iterable[Made]) -> None:
        async with trio.open_nursery() as nursery:
            for one in made:
                nursery.start_soon(self._make, one)

    async def _pass_time(self) -> None:
        await trio.sleep(0.001)  # so that not everything ends at the same millisecond
        self._model.step += 1

    async def _make(self, made: Made) -> None:
        store = _with_fate(made.client.store, made.fate, made.call.method)
        async with trio.open_nursery() as nursery:
            if made.fate == "cancelled":
                nursery.start_soon(_cancel_after, made.steps, nursery.cancel_scope)
            for _ in range(1 + made.late):
                await trio.lowlevel.checkpoint()
            promised = self.cancelled_is_not_applied and made.fate == "cancelled"
            made.answer = NOT_APPLIED if promised else UNKNOWN
            try:
                answer = await made.call.make(store)
            except Down:
                answer = NOT_APPLIED if made.fate == "fails before" else LOST
            except Exception as error:  # noqa: BLE001 - it is compared with what is expected
                answer = error
            if not made.client.dead:
                made.answer = answer
            nursery.cancel_scope.cancel()

    async def _settle(self, made: list[Made]) -> None:
        """Look at the store; the model becomes what the calls have made of it."""
        what = "these calls were made at the same time:\n" if len(made) > 1 else ""
        what += "\n".join(map(str, made))
        note(what)
        orders = list(_orders(self._model, made))
        if not orders:
            raise broken(*self._explanation(what, made))
        touched = {one.call.task_id for one in made if isinstance(one.call, Apply)}
        touched |= {one.call.about for one in made if isinstance(one.call, Read)} & {
            *self._model.records
        }
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
            if any(one.fate == "cancelled" and one.answer is NOT_APPLIED for one in made):
                promise = f"{promise}; {view.CANCELLED}"
            raise broken(promise, f"{why}\nafter this:\n{what}")
        for one in made:
            spoil(one.answer)

    def _explanation(self, what: str, made: list[Made]) -> tuple[str, str]:
        """Say what would have been answered in the order in which the calls are listed."""
        promise = view.ATOMIC if len(made) > 1 else view.ANSWERED
        model = self._model.copy()
        lines = [what, "no order of them explains the answers; in this one they would be:"]
        for one in made:
            if one.answer is not NOT_APPLIED:
                expected = _play(model, one)
                wrong = None if _is_unsaid(one) else view.difference(expected, one.answer)
                lines.append(f"  {one.client.name}: {wrong or 'as it was'}")
                if len(made) == 1 and isinstance(expected, Disagreement):
                    promise = expected.promise
        return promise, "\n".join(lines)

    async def _look(self, models: Sequence[StoreModel], touched: Iterable[str]) -> view.View:
        return await look(self._one(self._model.step).store, models, touched)

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


def can(name: str) -> Callable[[F], F]:
    """Let a rule be used where a subclass says how."""

    def overridden(self: StoreClients) -> bool:
        return getattr(type(self), name) is not getattr(StoreClients, name)

    return precondition(overridden)


def _with_fate(store: TaskStore, fate: Fate, method: str) -> TaskStore:
    faulty = FaultyStore(store)
    if fate in ("fails before", "answer lost"):
        fault: Fault = "before" if fate == "fails before" else "after"
        faulty.break_down(method, fault=fault, error=Down)
    return faulty


def _orders(model: StoreModel, made: Sequence[Made]) -> Iterator[StoreModel]:
    """Yield what the model becomes in every order of the calls that explains their answers."""
    done = [one for one in made if one.answer is not NOT_APPLIED]
    done = [one for one in done if not (_is_unsaid(one) and isinstance(one.call, Read))]
    if all(one.answer is UNKNOWN for one in done):
        yield model.copy()  # none of them was applied
    for one in done:
        tried = model.copy()
        expected = _play(tried, one)
        if _is_unsaid(one):
            explained = not isinstance(expected, Exception)  # a refusal changes nothing
        else:
            explained = view.difference(expected, one.answer) is None
        if explained:
            yield from _orders(tried, [other for other in done if other is not one])


def _play(model: StoreModel, made: Made) -> Any:
    try:
        return made.call.play(model, None if _is_unsaid(made) else made.answer)
    except Exception as error:  # noqa: BLE001 - it is compared with what was raised
        return error


def _is_unsaid(made: Made) -> bool:
    return isinstance(made.answer, Unsaid)
