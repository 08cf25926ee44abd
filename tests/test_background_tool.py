"""`background_tool`: a function is a tool."""

from __future__ import annotations

import datetime as dt
import enum
import functools
import math
from typing import Annotated, Any, Literal

import attrs
import msgspec
import pytest

from tests.scripted import CTX, OWNER, ended, without_id
from trio_bgtasks import (
    BackgroundCapable,
    BackgroundExecution,
    BackgroundTaskManager,
    ExternalRef,
    Failed,
    InvalidArguments,
    Stopped,
    Success,
    TaskResult,
    TaskStatus,
    ToolResult,
    background_tool,
    current_execution,
)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@attrs.frozen
class Point:
    x: int
    y: int = 0


@attrs.frozen
class Endless:
    x: float = math.inf


class Sentinel:
    """Something that is no JSON."""


NOTHING = Sentinel()


@background_tool
async def fetch(
    url: Annotated[str, msgspec.Meta(description="What to fetch.", min_length=3)],
    at: Point,
    execution: BackgroundExecution,
    *,
    tries: int = 3,
    colour: Colour = Colour.RED,
    mode: Literal["fast", "slow"] | None = None,
    tags: list[str] = ["a"],  # noqa: B006 - copied for every call
) -> dict[str, Any]:
    """Fetch something.

    With care.
    """
    tags.append("seen")
    await execution.write_output("fetched")
    assert current_execution() is execution
    return {
        "url": url,
        "at": at,
        "tries": tries,
        "colour": colour,
        "mode": mode,
        "tags": tags,
    }


# ---- the schema ----------------------------------------------------------------------------------


def test_name_description_and_schema_come_from_the_function() -> None:
    """Three lines make a tool: its name, docstring and types are all that a model needs."""
    shown = fetch.descriptor()
    assert (shown.id, shown.name) == ("fetch", "fetch")
    assert shown.description == "Fetch something.\n\nWith care."
    assert shown.parameters == {
        "type": "object",
        "properties": {
            "url": {"type": "string", "minLength": 3, "description": "What to fetch."},
            "at": {"$ref": "#/$defs/Point"},
            "tries": {"type": "integer", "default": 3},
            "colour": {"$ref": "#/$defs/Colour", "default": "red"},
            "mode": {"anyOf": [{"enum": ["fast", "slow"]}, {"type": "null"}], "default": None},
            "tags": {"type": "array", "items": {"type": "string"}, "default": ["a"]},
        },
        "required": ["url", "at"],
        "additionalProperties": False,
        "$defs": {
            "Point": {
                "title": "Point",
                "type": "object",
                "properties": {"x": {"type": "integer"}, "y": {"type": "integer", "default": 0}},
                "required": ["x"],
            },
            "Colour": {"title": "Colour", "enum": ["blue", "red"]},
        },
    }
    assert (fetch.task_type, fetch.supports_resume, repr(fetch)) == (
        "fetch",
        False,
        "<background_tool fetch>",
    )


def test_a_schema_that_is_handed_out_is_the_callers() -> None:
    """Who changes a descriptor changes no later one."""
    fetch.descriptor().parameters.clear()
    assert "properties" in fetch.descriptor().parameters


def test_a_decorator_with_arguments() -> None:
    """The decorator takes a name and whether it supports resume; the docstring may be missing."""

    @background_tool(supports_resume=True, name="go-on")
    async def go_on(n: int, undeclared: int = 5, odd: Any = NOTHING) -> int:
        return n + undeclared if odd is not None else 0

    shown = go_on.descriptor()
    assert (shown.id, shown.name, shown.description) == ("go-on", "go-on", "")
    assert (go_on.task_type, go_on.supports_resume) == ("go-on", True)
    # A default that no model could pass is not shown.
    assert shown.parameters["properties"] == {
        "n": {"type": "integer"},
        "undeclared": {"type": "integer", "default": 5},
        "odd": {},
    }


async def test_without_parameters(manager: BackgroundTaskManager) -> None:
    """A function without parameters is a tool without parameters."""

    @background_tool
    async def now() -> str:
        return current_execution().task_id

    assert now.descriptor().parameters == {
        "type": "object",
        "properties": {},
        "required": [],
        "additionalProperties": False,
    }
    result = await BackgroundCapable(now, manager).execute({}, CTX)
    (task,) = await manager.list_tasks(OWNER)
    assert result.data == task.task_id


def sync(n: int) -> int:
    """Refused."""
    return n


async def untyped(n) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    """Refused."""
    del n


async def variadic(*n: int) -> None:
    """Refused."""
    del n


async def keywords(**n: int) -> None:
    """Refused."""
    del n


async def positional(n: int, /) -> None:
    """Refused."""
    del n


async def not_json(n: int, odd: Sentinel) -> None:
    """Refused."""
    del n, odd


async def two(a: BackgroundExecution, b: BackgroundExecution) -> None:
    """Refused."""
    del a, b


async def unresolved(n: Missing) -> None:  # type: ignore[name-defined] # noqa: F821
    """Refused."""
    del n


async def misspelt(n: dt.dat) -> None:  # type: ignore[name-defined]
    """Refused."""
    del n


async def takes_id(task_id: str) -> None:
    """Refused."""
    del task_id


async def mangled(__n: int) -> None:  # noqa: PYI063 - which is the point
    """Refused."""
    del __n


async def infinite(n: int, odd: Endless) -> None:
    """Refused."""
    del n, odd


async def foreign(odd: Annotated[str, msgspec.Meta(pattern=r"^\d+\Z")]) -> None:
    """Refused."""
    del odd


async def generator(n: int) -> Any:
    """Refused."""
    yield n


NO_TOOLS: list[tuple[Any, str]] = [
    (sync, "background_tool needs an async function, not function sync"),
    (generator, "background_tool needs an async function, not function generator"),
    (5, "background_tool needs an async function, not int"),
    (functools.partial(takes_id), "background_tool needs an async function, not partial"),
    (untyped, "untyped: parameter 'n' needs a type annotation"),
    (variadic, r"variadic: parameter '\*n: 'int'' is variadic positional; the arguments of a"),
    (keywords, r"keywords: parameter '\*\*n: 'int'' is variadic keyword; the arguments of a"),
    (positional, "positional: parameter 'n: 'int'' is positional-only; the arguments of a"),
    (not_json, "not_json: the type of parameter 'odd' has no JSON schema: type <class .*Sent"),
    (two, "two: one parameter may be the BackgroundExecution"),
    (misspelt, "misspelt: an annotation cannot be resolved: module 'datetime' has no attr"),
    (unresolved, "unresolved: an annotation cannot be resolved: name 'Missing' is not defin"),
    (mangled, "mangled: the name of parameter '__n' begins with two underscores; rename it"),
    (infinite, "infinite: the type of parameter 'odd' has no JSON schema: Out of range float"),
    (foreign, r"foreign: the type of parameter 'odd' has no JSON schema: .* is not a \"regex\""),
    (takes_id, "takes_id: with supports_resume the parameter 'task_id' carries the id of th"),
]


@pytest.mark.parametrize(("fn", "error"), NO_TOOLS)
def test_a_function_that_cannot_be_a_tool_is_refused_when_decorated(fn: Any, error: str) -> None:
    """What is wrong with a function is said when it is decorated, and which parameter it is."""
    with pytest.raises(TypeError, match=f"^{error}"):
        background_tool(fn, supports_resume=True)


def test_resume_is_supported_or_not() -> None:
    """A word instead of a boolean is refused when the function is decorated."""
    with pytest.raises(TypeError, match=r"^supports_resume must be a boolean, not str$"):
        background_tool(takes_id, supports_resume="no")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("name", "error"), [("", "name cannot be empty"), ("a\nb", "name contains a control char")]
)
def test_a_bad_name_is_refused(name: str, error: str) -> None:
    """A name that could not be stored is refused when the function is decorated."""
    with pytest.raises(ValueError, match=f"^{error}"):
        background_tool(takes_id, name=name)


async def test_a_method_is_a_function_too(manager: BackgroundTaskManager) -> None:
    """A bound method is a tool of the object that it belongs to."""

    class Counter:
        def __init__(self) -> None:
            self.total = 0

        async def add(self, n: int) -> int:
            """Add."""
            self.total += n
            return self.total

    counter = Counter()
    tool = background_tool(counter.add)
    assert tool.descriptor().parameters["required"] == ["n"]
    assert (await BackgroundCapable(tool, manager).execute({"n": 5}, CTX)).data == 5
    assert counter.total == 5


# ---- calls ---------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"url": "abc", "at": {"x": 1}}
ANSWER: dict[str, Any] = {
    "url": "abc",
    "at": {"x": 1, "y": 0},
    "tries": 3,
    "colour": "red",
    "mode": None,
    "tags": ["a", "seen"],
}


async def test_it_runs_in_both_ways(manager: BackgroundTaskManager) -> None:
    """The function runs in the foreground and in the background, with converted arguments."""
    wrapped = BackgroundCapable(fetch, manager)
    args: dict[str, Any] = {**GOOD, "tries": 1, "colour": "blue", "mode": "slow", "tags": []}
    changed = {"tries": 1, "colour": "blue", "mode": "slow", "tags": ["seen"]}
    wrapped.validate_args(args)
    result = await wrapped.execute(args, CTX)
    assert without_id(result) == ToolResult.success("fetch", ANSWER | changed)
    for _ in range(2):  # defaults are not shared between calls
        result = await wrapped.execute({**GOOD, "run_in_background": True}, CTX)
        record = await ended(manager, result.data["task_id"], TaskStatus.COMPLETED)
        assert (record.result, record.args) == (ANSWER, GOOD)
        page = await manager.output(OWNER, record.task_id)
        assert page.text == "fetched"


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(
    ("args", "error"),
    [
        ({"url": "abc"}, "required"),
        ({**GOOD, "tries": "3"}, "tries"),
        ({**GOOD, "tries": True}, "tries"),
        ({**GOOD, "at": {"x": 1.5}}, "x"),
        ({**GOOD, "colour": "green"}, "colour"),
        ({**GOOD, "url": "a"}, "url"),
        ({**GOOD, "execution": {}}, "execution"),
    ],
)
async def test_arguments_are_converted_strictly(
    args: dict[str, Any],
    error: str,
    background: bool,  # noqa: FBT001
    manager: BackgroundTaskManager,
) -> None:
    """No argument is bent to fit; neither validation nor execution takes it, nothing is stored."""
    wrapped = BackgroundCapable(fetch, manager)
    with pytest.raises(InvalidArguments, match=error):
        wrapped.validate_args(args)
    with pytest.raises(InvalidArguments, match=error):
        await wrapped.execute({**args, "run_in_background": background}, CTX)
    assert await manager.list_tasks(OWNER) == []


def test_what_the_schema_lets_through_the_conversion_may_refuse() -> None:
    """JSON Schema takes 5.0 for an integer, and knows no dates; the types are stricter."""

    @background_tool
    async def typed(n: int = 1, at: dt.date = dt.date(2026, 1, 1), x: float = 0) -> None:
        del n, at, x

    assert typed.descriptor().parameters["properties"]["at"]["default"] == "2026-01-01"  # type: ignore[index,call-overload]
    # The other way round, msgspec takes what is no JSON.
    for args in ({"n": 5.0}, {"at": "tomorrow"}, {"x": float("nan")}):
        with pytest.raises(InvalidArguments):
            typed.validate_args(args)
    typed.validate_args({"n": 5, "at": "2026-08-01"})


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (None, None),
        ({"a": [1, 2.5, "x", True]}, {"a": [1, 2.5, "x", True]}),
        (Point(1, 2), {"x": 1, "y": 2}),
        ({"when": dt.date(2026, 8, 1), 5: {3}}, {"when": "2026-08-01", "5": [3]}),
        (b"ab", "YWI="),
        (Colour.BLUE, "blue"),
    ],
)
async def test_what_it_returns_is_the_result(
    value: Any, stored: Any, manager: BackgroundTaskManager
) -> None:
    """JSON is the result as it is; dates, classes and the like become JSON."""

    @background_tool
    async def give() -> Any:
        return value

    result = await BackgroundCapable(give, manager).execute({}, CTX)
    assert without_id(result) == ToolResult.success("give", stored)


@pytest.mark.parametrize("background", [True, False])
async def test_keys_that_are_no_strings_are_converted(
    background: bool,  # noqa: FBT001
    manager: BackgroundTaskManager,
) -> None:
    """JSON has string keys only: those of a typed dict become what its type says."""

    @background_tool
    async def total(
        prices: dict[int, int], days: dict[dt.date, int], colours: dict[Colour, int]
    ) -> Any:
        assert list(days) == [dt.date(2026, 8, 1)]
        assert list(colours) == [Colour.RED]
        return sum(key * value for key, value in prices.items())

    wrapped = BackgroundCapable(total, manager)
    args = {"prices": {"2": 3, "10": 1}, "days": {"2026-08-01": 1}, "colours": {"red": 1}}
    wrapped.validate_args(args)
    await wrapped.execute({**args, "run_in_background": background}, CTX)
    (task,) = await manager.list_tasks(OWNER)
    assert (await ended(manager, task.task_id, TaskStatus.COMPLETED)).result == 16
    with pytest.raises(InvalidArguments, match="prices"):
        wrapped.validate_args({**args, "prices": {"two": 3}})


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(
    ("result", "status", "error", "stored"),
    [
        (ToolResult.success("x", Point(1)), "completed", None, {"x": 1, "y": 0}),
        (ToolResult.warning("x", [1], "but"), "completed", None, [1]),
        (ToolResult.pending("x", "asks"), "stopped", "asks", None),
        (
            ToolResult.error("x", "no", "gone"),
            "failed",
            "[gone] no",
            {"error": {"code": "gone", "message": "no"}},
        ),
    ],
)
async def test_a_tool_result_ends_the_task_as_it_says(
    result: ToolResult,
    status: str,
    error: str | None,
    stored: Any,
    background: bool,  # noqa: FBT001
    manager: BackgroundTaskManager,
) -> None:
    """A function that answers an error did not complete, wherever it runs."""

    @background_tool
    async def give() -> ToolResult:
        return result

    answer = await BackgroundCapable(give, manager).execute({"run_in_background": background}, CTX)
    (task,) = await manager.list_tasks(OWNER)
    record = await ended(manager, task.task_id, TaskStatus(status))
    assert (record.error, record.result) == (error, stored)
    if not background:
        assert (answer.is_error, answer.is_pending) == (result.is_error, result.is_pending)
        assert answer.data == stored


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Sentinel(), "$: Sentinel"),
        ({"a": [Sentinel()]}, "$.a[0]: Sentinel"),
        (float("nan"), "$: float nan is not finite"),
        ("\ud800", "$: character U+D800 in a string"),
        (1 << 64, "$: integer beyond 64 bits"),
    ],
)
async def test_what_cannot_be_json_fails_the_task(
    value: Any, kind: str, manager: BackgroundTaskManager
) -> None:
    """What no conversion makes JSON fails the task, which says where it is not JSON."""

    @background_tool
    async def give() -> Any:
        return value

    result = await BackgroundCapable(give, manager).execute({"run_in_background": True}, CTX)
    record = await ended(manager, result.data["task_id"], TaskStatus.FAILED)
    assert record.error == f"result is not JSON: {kind}"


async def test_a_result_that_contains_itself_fails_the_task(
    manager: BackgroundTaskManager,
) -> None:
    """A cycle has no end, and is refused like all that is too deep."""

    @background_tool
    async def give() -> Any:
        loop: list[Any] = []
        loop.append(loop)
        return loop

    result = await BackgroundCapable(give, manager).execute({"run_in_background": True}, CTX)
    record = await ended(manager, result.data["task_id"], TaskStatus.FAILED)
    assert str(record.error).endswith("nested deeper than 64")


@pytest.mark.parametrize("outcome", [Success(1, ExternalRef("file:x")), Failed("no", 2), Stopped()])
async def test_an_outcome_passes_as_it_is(
    outcome: TaskResult, manager: BackgroundTaskManager
) -> None:
    """A function may return an outcome instead of a value."""

    @background_tool
    async def give() -> TaskResult:
        return outcome

    result = await BackgroundCapable(give, manager).execute({"run_in_background": True}, CTX)
    record = await ended(manager, result.data["task_id"], outcome.status)
    assert record.result == getattr(outcome, "value", None)
    assert record.result_ref == getattr(outcome, "ref", None)


async def test_it_resumes_from_its_checkpoint(manager: BackgroundTaskManager) -> None:
    """C13: a resumed function begins again with its arguments and its checkpoint."""

    @background_tool(supports_resume=True)
    async def count(to: int, progress: BackgroundExecution) -> TaskResult | int:
        at = progress.checkpoint or 0
        await progress.save_checkpoint(at + 1)
        return Stopped() if at + 1 < to else at + 1

    wrapped = BackgroundCapable(count, manager)
    assert set(wrapped.descriptor().parameters["properties"]) == {  # type: ignore[arg-type]
        "to",
        "run_in_background",
        "task_id",
    }
    started = await wrapped.execute({"to": 2, "run_in_background": True}, CTX)
    task_id = started.data["task_id"]
    await ended(manager, task_id, TaskStatus.STOPPED)
    wrapped.validate_args({"task_id": task_id})
    result = await wrapped.execute({"task_id": task_id}, CTX)
    assert without_id(result) == ToolResult.success("count", 2)
    with pytest.raises(InvalidArguments, match="to"):
        await wrapped.execute({"to": "2"}, CTX)
