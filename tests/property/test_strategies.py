"""The strategies make all that they should, and nothing that the library would not take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import attrs
import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from trio.testing import MockClock

from trio_bgtasks import (
    Event,
    ExternalRef,
    Facts,
    LeaseTerms,
    MemoryTaskStore,
    Progress,
    Question,
    Refused,
    SqliteTaskStore,
    Success,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskStore,
    TaskSummary,
    ThreadMessageRef,
    Tool,
    ToolCallContext,
    ToolDescriptor,
    ToolResult,
    apply,
    background_tool,
)
from trio_bgtasks._codec import dump_json, parse_json, record_from_json, record_to_json
from trio_bgtasks._json import check_id, copy_json
from trio_bgtasks._json_schema import schema_validator
from trio_bgtasks.testing._model import TABLE, broken_guards, event_name, state_name
from trio_bgtasks.testing.strategies import (
    STATES,
    answers,
    arguments,
    events,
    json_objects,
    json_values,
    outcomes,
    progress,
    questions,
    records,
    result_refs,
    task_ids,
)

# Enough to meet them all; how long that takes says nothing about the strategies.
surely = settings(
    derandomize=True,
    max_examples=200,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def look_for(look: Callable[[], None], *seen: tuple[Collection[Any], Collection[Any]]) -> None:
    """Look, with other examples each time, until all is seen: the first of each pair has the second.

    Hypothesis draws what it reads in modules, too: which ones are loaded decides what one look sees.
    """
    for number in range(10):
        seed(number)(look)()
        if all(set(wanted) <= set(found) for found, wanted in seen):
            return
    for found, wanted in seen:
        assert set(wanted) - set(found) == set()


# ---- values -------------------------------------------------------------------------------------


@given(task_ids())
def test_ids_are_accepted(task_id: str) -> None:
    """Every id passes the check that all ids go through, unchanged."""
    assert check_id(task_id, "task_id") == task_id
    assert ToolCallContext(thread_id=task_id).thread_id == task_id


@given(json_values(), json_objects())
def test_json_is_accepted_and_stays_as_it_is(value: Any, whole: dict[str, Any]) -> None:
    """Every value is inside the JSON profile, and comes back from its text as it was."""
    for one in (value, whole):
        assert copy_json(one) == one
        assert parse_json(dump_json(one)) == one


# ---- records ------------------------------------------------------------------------------------


def test_every_reachable_state_comes_out() -> None:
    """Any state of the table, and every attempt from the first to the third, is met."""
    seen: Counter[str] = Counter()
    attempts: set[int] = set()

    @surely
    @given(records())
    def look(record: TaskRecord) -> None:
        seen[state_name(record)] += 1
        attempts.add(record.attempt)

    look_for(look, (seen, STATES), (attempts, {1, 2, 3}))
    assert (set(seen), attempts) == (set(STATES), {1, 2, 3})


def test_records_have_questions_in_every_state_that_can() -> None:
    """Open, answered and declined ones while it runs, also cancelled; then what a resume needs."""
    seen: set[tuple[str, str]] = set()

    @surely
    @given(records())
    def look(record: TaskRecord) -> None:
        seen.update((state_name(record), question.state) for question in record.questions)
        assert record.questions_asked >= len(record.questions)

    states = ("open", "answered", "declined")
    wanted = {(name, state) for name in STATES[:2] for state in states}
    wanted |= {("stopped", state) for state in states[1:]}
    look_for(look, (seen, wanted))
    assert seen == wanted


@given(questions())
def test_an_answer_fits_its_question(question: Question) -> None:
    """An answered question has an answer that its schema allows; the others have none."""
    if question.state == "answered":
        assert schema_validator(question.schema).is_valid(question.answer)
    else:
        assert question.answer is None


@given(st.data(), st.sampled_from(STATES))
def test_the_state_can_be_chosen(data: st.DataObject, state: str) -> None:
    """A record of the wanted state comes out, and its fields go with the state."""
    record = data.draw(records(state))
    assert state_name(record) == state
    running = record.status is TaskStatus.RUNNING
    assert (record.executor_id is not None) is running
    assert (record.completed_at_ms is None) is running


def test_a_status_will_do_as_state_and_nonsense_will_not() -> None:
    """A `TaskStatus` chooses like its name; what is no state is named."""
    assert (
        records(TaskStatus.FAILED).filter(lambda record: record.status != "failed").is_empty
        is False
    )
    with pytest.raises(ValueError, match=r"state must be one of running, .*, not 'nothing'"):
        given(records("nothing"))(lambda _: None)()


@given(records())
def test_records_survive_their_json(record: TaskRecord) -> None:
    """What a store would keep of a record is read back as the same record."""
    shape = parse_json(dump_json(record_to_json(record)))
    assert isinstance(shape, dict)
    assert record_from_json(record.task_id, shape) == record


# ---- events -------------------------------------------------------------------------------------


def test_every_event_comes_out_with_one_thing_wrong_at_most() -> None:
    """Every row meets every state; each guard is broken alone; most events are right."""
    names: set[str] = set()
    states: set[str] = set()
    wrongs: Counter[str] = Counter()

    @surely
    @given(st.none() | records(), st.data())
    def look(record: TaskRecord | None, data: st.DataObject) -> None:
        for event in data.draw(st.lists(events(record), min_size=4, max_size=12)):
            names.add(event_name(event))
            states.add(state_name(record))
            wrong = broken_guards(record, event, Facts()) & _possible(event)
            if record is not None and record.executor_id is None:
                wrong -= {"another executor"}  # nobody runs it
            assert len(wrong) <= 1, (record, event)
            wrongs[min(wrong, default="nothing")] += 1

    every = {"nothing", *STATES}
    guards = {"another attempt", "another executor", "another owner", "another task type"}
    look_for(look, (names, TABLE), (states, every), (wrongs, {"nothing", *guards}))
    assert (names, states, set(wrongs)) == (set(TABLE), every, {"nothing", *guards})
    assert wrongs["nothing"] > wrongs.total() / 2


def _possible(event: Event) -> set[str]:
    """Return what could be wrong with an event by itself."""
    fields = {field.name for field in attrs.fields(type(event))}
    starts = {"owner_thread_id", "task_type"} <= fields
    found: set[str] = set()
    if "attempt" in fields:
        found |= {"another attempt", "another executor"}
    elif "expected_attempt" in fields:
        found |= {"another attempt", "another owner", "another task type"}
    elif starts:
        return found  # a start has no record to differ from
    return found


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_stores_take_what_the_lifecycle_takes(kind: str, tmp_path: Path) -> None:
    """Drawn events, one after the other: a store answers each as `apply` does, never with a fault."""
    accepted: Counter[str] = Counter()
    files = iter(range(1_000_000))

    def opened() -> AbstractAsyncContextManager[TaskStore]:
        if kind == "memory":
            return nullcontext(MemoryTaskStore())
        return SqliteTaskStore.open(tmp_path / f"{next(files)}.db", synchronous="normal")

    async def drive(data: st.DataObject) -> None:
        async with opened() as store, store.executor(LeaseTerms()) as executor:
            live = executor.executor_id
            record: TaskRecord | None = None
            task_id = data.draw(task_ids())
            for _ in range(data.draw(st.integers(5, 20))):
                event = data.draw(events(record, executors=[live]))
                about = getattr(event, "executor_id", live)
                facts = Facts(executor_fenced=about != live)
                try:
                    want = apply(task_id, record, event, facts)
                except Refused as refusal:
                    with pytest.raises(type(refusal)):
                        await store.apply(task_id, event)
                    continue
                got = await store.apply(task_id, event)
                assert attrs.evolve(got, seq=want.seq) == want
                assert await store.load(task_id) == got
                accepted[event_name(event)] += 1
                record = got

    @settings(surely, max_examples=40)
    @given(st.data())
    def look(data: st.DataObject) -> None:
        clock = MockClock(autojump_threshold=0) if kind == "memory" else None
        trio.run(drive, data, clock=clock)

    look()
    assert len(accepted) > 6


# ---- arguments ----------------------------------------------------------------------------------


@attrs.frozen
class Of(Tool):
    """A tool with this schema."""

    parameters: dict[str, Any]

    def descriptor(self) -> ToolDescriptor:
        return ToolDescriptor("t", "t", "", self.parameters)

    async def execute(self, args: Any, ctx: ToolCallContext) -> ToolResult:
        raise NotImplementedError


def properties(*required: str, **schemas: Any) -> dict[str, Any]:
    """Return the schema of an object."""
    return {"type": "object", "properties": schemas, "required": list(required)}


TREE = {
    **properties("root", root={"$ref": "#/$defs/node"}),
    "$defs": {
        "node": {
            **properties(
                "name",
                name={"type": "string"},
                children={
                    "type": "array",
                    "items": {"$ref": "#/$defs/node"},
                    "maxItems": 2,
                },
            ),
            "additionalProperties": False,
        }
    },
}
SCHEMAS: list[dict[str, Any]] = [
    {},
    properties(),
    properties("a", a={"type": "integer", "minimum": 3, "exclusiveMaximum": 6}),
    properties("a", a={"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
    properties(
        "a", a={"type": "number", "multipleOf": 0.5}, b={"type": "integer", "multipleOf": 7}
    ),
    properties("a", a={"type": "string", "minLength": 2, "maxLength": 4}),
    properties("a", a={"type": "string", "pattern": "^[a-z]+-[0-9]{2}$"}),
    properties("a", a={"enum": ["x", 1, None]}, b={"const": {"c": 1}}),
    properties("a", a={"type": ["string", "null"]}, b={"type": "boolean"}),
    properties(
        "a", a={"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3}
    ),
    properties("a", a={"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True}),
    properties("a", a={"type": "array", "prefixItems": [{"type": "string"}, True], "items": False}),
    properties("a", a={"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]}),
    properties("a", a={"oneOf": [{"type": "integer"}, {"type": "null"}], "description": "d"}),
    properties("a", a={"allOf": [{"minimum": 1}, {"type": "integer", "maximum": 2}]}),
    properties("a", a={"allOf": [{"type": "integer", "minimum": 1}, True, {"minimum": 2}]}),
    properties("a", a={"allOf": [{"maxLength": 9}, {"maxLength": 2}], "type": "string"}),
    properties("a", a={"anyOf": [False, {"type": "boolean"}]}),
    properties(
        "a",
        a={
            "allOf": [
                {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                {"anyOf": [{"type": "integer"}, {"type": "boolean"}]},
            ]
        },
    ),
    properties("a", "b", a={"minLength": 2}, b={"items": {"const": 1}, "maxItems": 2}),
    properties("a", a={"type": "integer", "multipleOf": 1.5, "minimum": 0, "maximum": 9}),
    {"additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2},
    {**properties("a", a=True), "additionalProperties": False},
    {"allOf": [properties("a", a={"type": "string"}), properties("b", b={"type": "null"})]},
    {"anyOf": [properties("a", a={"const": 1}), properties("b", b={"const": 2})]},
    {**properties("undeclared"), "unevaluatedProperties": True},
    properties("a", a={"type": "string", "pattern": r"^\d{4}-\d{2}$", "maxLength": 7}),
    properties("a", a={"type": "string", "pattern": r"^\p{L}"}),
    properties("a", a={"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}),
    {"patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": False},
    {"propertyNames": {"pattern": "^[a-z]+$"}, "minProperties": 1},
    {
        "$id": "https://example.com/s",
        **properties("a", a={"$ref": "https://example.com/s#/$defs/b"}),
        "$defs": {"b": {"type": "boolean"}},
    },
    properties("n", n={"type": "integer"}, child={"anyOf": [{"$ref": "#"}, {"type": "null"}]}),
    TREE,
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_arguments_fit_their_schema(schema: dict[str, Any]) -> None:
    """A tool with this schema takes them, and they are not all alike."""
    tool = Of({"type": "object", **schema})
    seen: set[str] = set()

    @settings(surely, max_examples=50)
    @given(arguments(schema))
    def look(args: dict[str, Any]) -> None:
        tool.validate_args(args)
        seen.add(repr(args))

    look()
    assert len(seen) > 1


@attrs.frozen
class Point:
    x: Annotated[int, msgspec.Meta(ge=0, le=9)]
    label: Literal["a", "b"] = "a"


async def draw_line(points: list[Point], name: str | None = None, *, width: float = 1.0) -> str:
    """Draw a line."""
    return f"{len(points)} points, {name}, {width}"


@pytest.mark.parametrize(
    "schema",
    [{}, {"enum": ["x", 1, None]}, {"$ref": "#/$defs/n", "$defs": {"n": {"type": "null"}}}, TREE],
    ids=str,
)
def test_answers_fit_their_schema(schema: dict[str, Any]) -> None:
    """Of whatever kind they are, also where the schema refers to itself."""

    @settings(surely, max_examples=20)
    @given(answers(schema))
    def look(answer: Any) -> None:
        assert schema_validator(schema).is_valid(answer)

    look()


def test_arguments_of_a_typed_function() -> None:
    """The schema that `background_tool` makes of types is within the subset."""
    tool = background_tool(draw_line)
    lengths: set[int] = set()

    @settings(surely, max_examples=100)
    @given(arguments(tool.descriptor().parameters))
    def look(args: dict[str, Any]) -> None:
        tool.validate_args(args)
        lengths.add(len(args["points"]))

    look()
    assert {0, 1, 2} <= lengths


def test_a_schema_that_nothing_fits_is_no_endless_search() -> None:
    """Hypothesis says that there is no such value."""
    with pytest.raises(Unsatisfiable):
        given(arguments(properties("a", a=False)))(lambda _: None)()


# ---- registered ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        (Progress, progress()),
        (Question, questions()),
        (TaskRecord, records()),
        (ExternalRef, result_refs()),
        (ThreadMessageRef, result_refs()),
    ],
)
def test_hypothesis_knows_the_types(kind: type[Any], strategy: st.SearchStrategy[Any]) -> None:
    """`st.from_type` makes what the strategy makes."""
    del strategy

    @settings(surely, max_examples=20)
    @given(st.from_type(kind))
    def look(value: Any) -> None:
        assert type(value) is kind
        assert copy_json(attrs.asdict(value)) is not None

    look()


def test_unions_and_summaries_are_known_too() -> None:
    """What a body returns, all that may happen, and what people see have strategies by type."""
    seen: set[str] = set()

    @settings(surely)
    @given(st.from_type(TaskResult), st.from_type(Event), st.from_type(TaskSummary))  # type: ignore[arg-type]
    def look(outcome: TaskResult, event: Event, summary: TaskSummary) -> None:
        seen.update((type(outcome).__name__, type(event).__name__))
        assert copy_json(summary.to_json())
        if isinstance(outcome, Success):
            assert copy_json(outcome.value) == outcome.value

    kinds = {kind.__name__ for kind in (*get_args(TaskResult), *get_args(Event))}
    look_for(look, (seen, kinds))
    assert seen == kinds


@given(outcomes())
def test_outcomes_have_a_status(outcome: TaskResult) -> None:
    """Each is one of the four, with JSON and text that can be stored."""
    assert outcome.status in set(TaskStatus) - {TaskStatus.RUNNING}
