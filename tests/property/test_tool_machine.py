"""The machine for tools: right ones pass it, and what it says of others can be acted on.

That it finds every planted fault is in ``test_planted.py``.
"""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Generator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import attrs
import hypothesis.strategies as st
import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.property.depth import deep
from tests.property.planted import tools
from tests.property.planted.tools import (
    BlocksTheLoop,
    Count,
    IgnoresItsCheckpoint,
    machine_for,
)
from tests.support import OWNER
from trio_bgtasks import (
    BackgroundExecutable,
    BackgroundExecution,
    Cancelled,
    ExternalRef,
    Failed,
    Finished,
    InvalidAnswer,
    InvalidArguments,
    LeaseTerms,
    MemoryTaskStore,
    Question,
    Registered,
    Rejected,
    Stopped,
    Success,
    TaskResult,
    ToolCallContext,
    ToolDescriptor,
    ToolResult,
    background_tool,
)
from trio_bgtasks.testing import (
    BackgroundToolMachine,
    _tool_machine,
    _tool_watch,
    _trio_run,
    strategies,
)
from trio_bgtasks.testing._tool_calls import outcome_of
from trio_bgtasks.tools import ShellTool

QUICK = settings(
    derandomize=True,
    database=None,
    max_examples=200,  # nearly all in a few; Hypothesis draws what it reads in modules, too
    stateful_step_count=12,
    phases=[Phase.generate],
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_what_is_said_names_the_tool_and_what_it_was_given() -> None:
    """A wrong tool is named, with the arguments and what came of each attempt."""
    with pytest.raises(AssertionError) as found:
        run_state_machine_as_test(machine_for(IgnoresItsCheckpoint), settings=QUICK)
    said = str(found.value)
    assert said.startswith("IgnoresItsCheckpoint ignores its checkpoint: ")
    assert "\n  arguments: {'limit': " in said
    assert "\n  attempt 1: " in said


def test_the_planted_tools_and_their_machine_know_public_names_only() -> None:
    """What finds them here finds such a tool of anybody's."""
    for node in ast.walk(ast.parse(inspect.getsource(tools))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trio_bgtasks"):
            assert node.module in ("trio_bgtasks", "trio_bgtasks.testing")
            assert not [name for name in node.names if name.name.startswith("_")]


def test_a_tool_that_blocks_the_loop_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be interrupted while it works without an await."""
    monkeypatch.setattr(_tool_machine, "BLOCKS_S", 0.5)
    text = r"BlocksTheLoop is not cancellable: it blocks the loop: for 0.\d s"
    with pytest.raises(AssertionError, match=text):
        run_state_machine_as_test(machine_for(BlocksTheLoop), settings=QUICK)


@background_tool(supports_resume=True)
async def count_steps(limit: int) -> int:
    """Count, and let others run."""
    for _ in range(limit):
        await trio.lowlevel.checkpoint()
    return limit


class CountStepsMachine(BackgroundToolMachine):
    arguments = st.just({"limit": 100})

    def make_tool(self) -> BackgroundExecutable[Any]:
        return count_steps


def test_many_short_runs_are_no_livelock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that never waits for time may be interrupted at all its steps."""
    monkeypatch.setattr(_trio_run, "TURNS", 1000)  # more than one run of it takes
    how = settings(QUICK, max_examples=4, stateful_step_count=6)
    run_state_machine_as_test(CountStepsMachine, settings=how)


def test_a_tool_is_interrupted_at_each_await_in_each_way() -> None:
    """Every await of the body, and of the tasks that it starts, receives each kind of Cancelled."""
    heard: set[tuple[str, str | None]] = set()

    @background_tool(supports_resume=True)
    async def listen(execution: BackgroundExecution) -> str:
        async def wait(name: str) -> None:
            try:
                if name == "sleep":
                    await trio.sleep(1)
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as cancelled:
                why = (cancelled.reason or "").removeprefix("trio_bgtasks: ").partition(" ")[0]
                heard.add((name, why if execution.stopping else "at once"))
                raise

        await wait("first")
        await wait("sleep")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, "child")
            await wait("parent")
        await wait("last")
        return "heard"

    class Machine(BackgroundToolMachine):
        arguments = st.just({})

        def make_tool(self) -> BackgroundExecutable[Any]:
            return listen

    run_state_machine_as_test(Machine, settings=settings(QUICK, max_examples=10))
    names = ("first", "sleep", "child", "parent", "last")
    ways = ("cancel", "shutdown", "at once")
    assert heard >= {(name, way) for name in names for way in ways}


class InvoiceMachine(BackgroundToolMachine):
    arguments = st.fixed_dictionaries(
        {"first": st.integers(0, 3), "last": st.integers(0, 5)}, optional={"pause_s": st.just(2.5)}
    )

    def make_tool(self) -> BackgroundExecutable[Any]:
        return send_invoices


class NurseryMachine(BackgroundToolMachine):
    arguments = st.fixed_dictionaries({"urls": st.lists(st.sampled_from("abc"), max_size=4)})
    may_raise = (KeyError,)

    def make_tool(self) -> BackgroundExecutable[Any]:
        return crawl

    def same_result(self, expected: TaskResult, seen: TaskResult) -> bool:
        return shuffled(expected) == shuffled(seen)


class ShellMachine(BackgroundToolMachine):
    """Real processes on the real clock: one that ends, one that fails, two of which one hides."""

    virtual_time = False
    bound_s = 30.0
    arguments = st.fixed_dictionaries(
        {"command": st.sampled_from(["echo $((6 * 7))", "exit 3", "setsid sleep 0.02 & echo out"])}
    )

    def make_tool(self) -> BackgroundExecutable[Any]:
        return ShellTool(supports_resume=True, grace_s=1.0)

    def same_result(self, expected: TaskResult, seen: TaskResult) -> bool:
        return without_duration(expected) == without_duration(seen)


@background_tool(supports_resume=True)
async def send_invoices(
    first: int, last: int, execution: BackgroundExecution, pause_s: float = 0.0
) -> TaskResult:
    """Send a range of invoices; stops itself once."""
    done = (execution.checkpoint or {}).get("sent_until", first - 1)
    for number in range(done + 1, last + 1):
        if number == 3 and not execution.is_resume:
            return Stopped("later")
        await trio.sleep(pause_s)
        await execution.report_progress(number, last)
        await execution.save_checkpoint({"sent_until": number})
    return Success({"sent_until": last})


@background_tool
async def crawl(urls: list[str]) -> list[str]:
    """Fetch several pages at once, in tasks of its own; b takes time to say goodbye, c fails."""
    found: list[str] = []

    async def fetch(url: str) -> None:
        try:
            await trio.sleep(len(found))
            await trio.lowlevel.checkpoint()
        finally:
            with trio.move_on_after(4, shield=True):
                await trio.sleep(3 if url == "b" else 0)
        if url == "c":
            raise KeyError(url)
        found.append(url)

    async with trio.open_nursery() as nursery:
        for url in urls:
            nursery.start_soon(fetch, url)
    return found


def shuffled(outcome: TaskResult) -> TaskResult:
    """Return an outcome without the order in which the pages came."""
    return Success(sorted(outcome.value)) if isinstance(outcome, Success) else outcome


def without_duration(outcome: TaskResult) -> TaskResult:
    """Return the outcome of a command without the time that it took."""
    assert isinstance(outcome, Success | Failed)
    return attrs.evolve(outcome, value={**outcome.value, "duration_s": 0})


class FinishingMachine(BackgroundToolMachine):
    """A tool that keeps its arguments to itself, has another name for the id, and must finish."""

    arguments = st.fixed_dictionaries({"secret": strategies.texts()})
    finishes_when_cancelled = True

    def make_tool(self) -> BackgroundExecutable[Any]:
        return Finishing()

    def resume_arguments(self, arguments: dict[str, Any], task_id: str) -> dict[str, Any]:
        return {**arguments, "ticket": task_id}


class Finishing(BackgroundExecutable[None]):
    task_type = "finishing"
    supports_resume = True

    def descriptor(self) -> ToolDescriptor:
        properties: dict[str, Any] = {"secret": {"type": "string"}, "ticket": {"type": "string"}}
        schema: dict[str, Any] = {"properties": properties, "required": ["secret"]}
        return ToolDescriptor("finishing", "finishing", "", {"type": "object", **schema})

    def task_id_from_args(self, args: dict[str, Any], /) -> str | None:
        return args.get("ticket")

    def stored_args(self, args: dict[str, Any], /) -> dict[str, Any]:
        return {}

    async def execute_background(
        self,
        task_id: str,
        args: dict[str, Any],
        prepared: None,
        execution: BackgroundExecution,
        cancel_scope: trio.CancelScope,
        /,
    ) -> TaskResult:
        await trio.lowlevel.checkpoint()
        try:
            await trio.sleep(10)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
        return Success(args["secret"])


@background_tool(supports_resume=True)
async def buy(items: list[str], execution: BackgroundExecution) -> TaskResult:
    """Ask before each item how many, save what was said, and ask once more at the end."""
    bought: dict[str, int] = execution.checkpoint or {}
    for item in items:
        if item not in bought:
            bought[item] = await execution.ask(f"How many of {item}?", {"type": "integer"})
            await trio.sleep(1)
            await execution.save_checkpoint(bought)
    sure = await execution.ask("Sure?", {"type": "boolean"})
    await trio.sleep(1)
    return Success({"bought": bought, "sure": sure})


class BuyMachine(BackgroundToolMachine):
    """A tool that asks: whoever interrupts it, nobody is asked otherwise, or answered otherwise."""

    arguments = st.fixed_dictionaries({"items": st.lists(st.sampled_from("abc"), max_size=3)})

    def make_tool(self) -> BackgroundExecutable[Any]:
        return buy


class OneOfEach(BuyMachine):
    def answer(self, question: Question) -> Any:
        return question.message == "Sure?" or 1

    def same_result(self, expected: TaskResult, seen: TaskResult) -> bool:
        assert isinstance(expected, Success)
        assert expected.value["sure"] is True
        assert set(expected.value["bought"].values()) <= {1}
        return super().same_result(expected, seen)


class AnswersNonsense(BuyMachine):
    def answer(self, question: Question) -> Any:
        return "nonsense"


class Refused(FinishingMachine):
    arguments = st.just({"secret": 7})


class Unfinished(FinishingMachine):
    finishes_when_cancelled = False


class Forgetful(FinishingMachine):
    def resume_arguments(self, arguments: dict[str, Any], task_id: str) -> dict[str, Any]:
        return {"ticket": task_id}


class WithoutTool(BackgroundToolMachine):
    """Somebody forgot it."""


@pytest.mark.parametrize(
    ("machine", "error", "text"),
    [
        (Refused, AssertionError, "finishing refuses a call with the arguments drawn: Invalid"),
        (Unfinished, AssertionError, "swallows trio.Cancelled"),
        (Forgetful, AssertionError, 'refuses .*"secret" is a required property'),
        (WithoutTool, NotImplementedError, "WithoutTool needs a method make_tool"),
        (AnswersNonsense, InvalidAnswer, "the answer to question 'q1' does not fit"),
    ],
)
def test_a_machine_that_was_set_up_wrong_says_so(
    machine: type[BackgroundToolMachine], error: type[Exception], text: str
) -> None:
    """What its author left out, or does not hold for the tool, is named."""
    with pytest.raises(error, match=text):
        run_state_machine_as_test(machine, settings=QUICK)


def test_arguments_are_drawn_by_the_schema_of_the_tool() -> None:
    """Nobody has to say them; what its check or a hook of it refuses is no finding, but drawn anew."""
    seen: set[int] = set()

    class Few(Count):
        def descriptor(self) -> ToolDescriptor:
            limit: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 5}
            properties = {"limit": limit, "task_id": {"type": "string"}}
            schema: dict[str, Any] = {"type": "object", "properties": properties}
            return ToolDescriptor("few", "few", "", {**schema, "required": ["limit"]})

        def validate_args(self, args: Any) -> None:
            super().validate_args(args)
            if args["limit"] == 5:
                raise InvalidArguments("5 is too much")

        def prepare_background(
            self, args: dict[str, Any], ctx: ToolCallContext, /, *, is_resume: bool
        ) -> None:
            if args["limit"] == 4:
                raise Rejected(ToolResult.error("few", "4 is too much"))

        async def count(self, args: dict[str, Any], execution: BackgroundExecution) -> Any:
            seen.add(args["limit"])
            return await super().count(args, execution)

    class Machine(BackgroundToolMachine):
        def make_tool(self) -> BackgroundExecutable[Any]:
            return Few()

    run_state_machine_as_test(Machine, settings=settings(QUICK, max_examples=20))
    assert 1 < len(seen & {0, 1, 2, 3}) == len(seen)


def test_the_answers_can_be_chosen() -> None:
    """What `answer` returns is what the tool is given."""
    run_state_machine_as_test(OneOfEach, settings=settings(QUICK, max_examples=3))


RightMachine = machine_for(Count)  # the tool from which the wrong ones differ
TestRight = deep(RightMachine, share=0.15, steps=12)
TestInvoices = deep(InvoiceMachine, share=0.15, steps=12)
TestFinishing = deep(FinishingMachine, share=0.15, steps=12)
TestNursery = deep(NurseryMachine, share=0.15, steps=12)
TestBuy = deep(BuyMachine, share=0.1, steps=12)
TestShell = deep(ShellMachine, share=0.02, steps=6)


# ---- what the machine is made of ----------------------------------------------------------------


class AlsoInForeground(Count):
    """Counts only in the background."""

    async def execute_foreground(self, *_: Any, is_resume: bool) -> ToolResult:
        return ToolResult.success("count", "in the background only")


@pytest.mark.parametrize("same", [True, False])
def test_a_foreground_of_its_own_has_to_be_declared(same: bool) -> None:  # noqa: FBT001
    """Unless its machine says so, a tool that does something else there is wrong."""

    class Machine(machine_for(AlsoInForeground)):  # type: ignore[misc]  # made by a function
        same_in_foreground = same

    how = settings(QUICK, max_examples=2, stateful_step_count=2)
    said = pytest.raises(AssertionError, match="does something else in the foreground")
    with nullcontext() if same is False else said:
        run_state_machine_as_test(Machine, settings=how)


class TurnsInCircles(Count):
    """Takes its time, in a shield, and no time passes."""

    async def work(self, number: int, execution: BackgroundExecution) -> None:
        for _ in range(200):
            await trio.lowlevel.cancel_shielded_checkpoint()


def test_a_tool_that_turns_in_circles_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it swallows nothing, because no Cancelled ever reaches it."""
    for module in (_tool_machine, _tool_watch):
        monkeypatch.setattr(module, "SPINS", 50)
    with pytest.raises(AssertionError, match=r"it turns in circles, 50 steps so far in no time\n"):
        run_state_machine_as_test(machine_for(TurnsInCircles), settings=QUICK)


@pytest.mark.parametrize(
    "outcome",
    [Success([1], ExternalRef("file:///x")), Failed("no", [1]), Cancelled(), Stopped("later")],
)
async def test_an_outcome_is_read_back_from_its_record(outcome: TaskResult) -> None:
    """Whatever a tool ends with can be compared with what it ended with before."""
    store = MemoryTaskStore()
    async with store.executor(LeaseTerms()) as executor:
        await store.apply("t", Registered(1, executor.executor_id, OWNER, "work", ""))
        record = await store.apply("t", Finished(2, executor.executor_id, 1, outcome))
    assert outcome_of(record) == outcome


def executing() -> BackgroundExecution:
    """All that is asked of an execution by what watches it."""
    return cast("BackgroundExecution", SimpleNamespace(checkpoint=None))


async def test_a_body_within_a_body_is_watched_as_one() -> None:
    """A foreground that calls the background is one attempt."""
    attempt = _tool_watch.Attempt()

    async def inner() -> int:
        await trio.lowlevel.checkpoint()
        return 7

    async def outer() -> int:
        return await attempt.body(inner, {}, executing())

    with attempt.watching():
        assert await attempt.body(outer, {}, executing()) == 7
    assert attempt.returned == 7
    assert attempt.steps == 1


async def test_a_body_that_awaits_what_is_not_trios_is_told_so() -> None:
    """As it would be if nobody watched: the error is raised where it awaits."""
    told: list[str] = []

    @types.coroutine
    def foreign() -> Generator[Any, Any, None]:
        yield "another library's"

    async def body() -> None:
        try:
            await foreign()
        except TypeError as error:
            told.append(str(error))

    await _tool_watch.Attempt().body(body, {}, executing())
    assert len(told) == 1
    assert "another library's" in told[0]
