"""What is produced fits the types of the real SDKs, and their objects are understood."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest

from tests.model_apis.schemas import (
    CTX,
    Asked,
    Schema,
    anthropic_call,
    chat_call,
    responses_call,
)
from trio_bgtasks import Denied
from trio_bgtasks.model_apis import dispatch, to_anthropic, to_openai_chat, to_openai_responses

NUMBER: Schema = {"type": "object", "properties": {"n": {"type": "integer"}}}


def checked(shape: Any, value: Any) -> None:
    """Check a dict by a TypedDict of an SDK, as pydantic reads it; no key is unknown to it."""
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")
    pydantic.TypeAdapter(shape).validate_python(value)
    assert value.keys() <= get_type_hints(shape).keys()


async def answers(call: Any) -> list[Any]:
    """Return an answer and that of an error."""
    return [await dispatch([Asked(NUMBER, answer=a)], call, CTX) for a in (None, Denied("no"))]


async def test_anthropic() -> None:
    """Its ToolParam, ToolUseBlock and ToolResultBlockParam."""
    types = pytest.importorskip("anthropic.types", reason="anthropic is not installed")
    checked(types.ToolParam, to_anthropic([Asked(NUMBER)])[0])
    call = types.ToolUseBlock.model_validate(anthropic_call("asked", {"n": 1}))
    for answer in await answers(call):
        checked(types.ToolResultBlockParam, answer)
        assert answer["tool_use_id"] == call.id


@pytest.mark.parametrize("strict", [False, True])
async def test_openai_responses(strict: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Its FunctionToolParam, ResponseFunctionToolCall and FunctionCallOutput."""
    types = pytest.importorskip("openai.types.responses", reason="openai is not installed")
    inputs = pytest.importorskip("openai.types.responses.response_input_param")
    checked(types.FunctionToolParam, to_openai_responses([Asked(NUMBER)], strict=strict)[0])
    call = types.ResponseFunctionToolCall.model_validate(responses_call("asked", {"n": 1}))
    for answer in await answers(call):
        checked(inputs.FunctionCallOutput, answer)
        assert answer["call_id"] == call.call_id


@pytest.mark.parametrize("strict", [False, True])
async def test_openai_chat(strict: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Its ChatCompletionFunctionToolParam, its tool call and its tool message."""
    types = pytest.importorskip("openai.types.chat", reason="openai is not installed")
    (shown,) = to_openai_chat([Asked(NUMBER)], strict=strict)
    checked(types.ChatCompletionFunctionToolParam, shown)
    shared = pytest.importorskip("openai.types.shared_params")
    checked(shared.FunctionDefinition, shown["function"])
    call = types.ChatCompletionMessageFunctionToolCall.model_validate(chat_call("asked", {"n": 1}))
    for answer in await answers(call):
        checked(types.ChatCompletionToolMessageParam, answer)
        assert answer["tool_call_id"] == call.id
