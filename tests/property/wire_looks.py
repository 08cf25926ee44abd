"""Does what the wire shows fit what is true? The table of statuses, written a second time."""

from __future__ import annotations

import json
from typing import Any

from .wire_jobs import Job, Truth
from .wire_lines import Client, Message

TERMINAL = {"completed", "failed", "cancelled"}
PAYLOADS = {"completed": "result", "failed": "error", "input_required": "inputRequests"}
INTERNAL_ERROR = -32603


def status_of(job: Job, truth: Truth, client: Client) -> str:
    """Return which status a client has to be shown."""
    match truth.kind:
        case "running":
            return "input_required" if truth.asks and client.answers else "working"
        case "cancelling":
            return "working"
        case "stopped" if job.resumable:
            return "input_required" if client.answers else "working"
        case "failed":
            return "completed" if client.modern else "failed"
        case "broken" | "stopped":
            return "failed"
        case kind:
            return kind


def fits(job: Job, truth: Truth, client: Client, task: Message, *, detailed: bool) -> bool:
    """Tell whether a task on the wire shows this truth."""
    if task["status"] != status_of(job, truth, client):
        return False
    if not message_fits(job, truth, task.get("statusMessage", "")):
        return False
    return not (client.modern and detailed) or payload_fits(job, truth, task)


def message_fits(job: Job, truth: Truth, said: str) -> bool:
    """Tell whether that is what is said of it beside its status."""
    match truth.kind:
        case "cancelling":
            return said == "Cancelling"
        case "running" if truth.asks:
            return all(words in said for words in truth.asks)
        case "running":
            return not said or any(words in said for words in job.said)
        case "stopped":
            return (truth.said or "") in said
        case _:
            return True


def payload_fits(job: Job, truth: Truth, task: Message) -> bool:
    """Tell whether what goes with its status is what came of it, or what it asks."""
    match task["status"]:
        case "completed":
            return result_fits(job, truth, task["result"])
        case "failed":
            return error_fits(truth, task["error"])
        case "input_required":
            return questions_fit(truth, task["inputRequests"])
        case _:
            return True


def questions_fit(truth: Truth, requests: Message) -> bool:
    """Tell whether these are the questions that are open."""
    if truth.kind == "stopped":
        return [*requests] == [f"resume-{truth.attempt}"]
    return sorted(one["params"]["message"] for one in requests.values()) == sorted(truth.asks)


def result_fits(job: Job, truth: Truth, result: Message) -> bool:
    """Tell whether it is the ``CallToolResult`` of what the tool returned, or raised, and wrote."""
    texts: list[str] = [block["text"] for block in result["content"]]
    if job.output and not job.crashed and truth.kind in ("completed", "failed"):
        if not texts or texts.pop(0) != job.output:
            return False
    elif job.crashed and len(texts) > 1:
        texts.pop(0)  # who knows what was stored of it
    if result["isError"] != (truth.kind != "completed"):
        return False
    if truth.kind != "completed":
        return truth.said is None or any(truth.said in text for text in texts)
    assert truth.said is not None
    value: Any = json.loads(truth.said)
    shown = result.get("structuredContent")
    if _json(shown) != (truth.said if isinstance(value, dict) else "null"):
        return False
    if isinstance(value, str):
        return texts == [value]
    return len(texts) == 1 and _json(json.loads(texts[0])) == truth.said


def error_fits(truth: Truth, error: Message) -> bool:
    """Tell whether it is the error that the task ended with."""
    if error["code"] != INTERNAL_ERROR:
        return False
    match truth.kind:
        case "broken":
            return (truth.said or "") in error["message"] and "data" not in error
        case "stopped":
            data = error.get("data", {})
            return data.get("status") == "stopped" and truth.said in (None, data.get("reason"))
        case _:
            return False


def answer_fits(job: Job, truth: Truth, client: Client, answer: Message) -> bool:
    """Tell whether it is the answer of ``tasks/result``, or of a call that became a task too late."""
    if "error" in answer:
        error = answer["error"]
        if truth.kind == "cancelled":
            data = {"status": "cancelled"}
            return not client.modern and (error["code"], error.get("data")) == (
                INTERNAL_ERROR,
                data,
            )
        return error_fits(truth, error)
    if truth.kind == "cancelled":
        texts = [block["text"] for block in answer["result"]["content"]]
        return client.modern and texts == ["The call was cancelled"]
    return truth.kind in ("completed", "failed") and result_fits(job, truth, answer["result"])


def foreground_fits(job: Job, truth: Truth, answer: Message) -> bool:
    """Tell whether it is the answer of a call that was no task."""
    if "error" in answer:
        return truth.kind == "broken" and error_fits(truth, answer["error"])
    if truth.kind in ("completed", "failed"):
        return result_fits(job, truth, answer["result"])
    texts = "".join(block["text"] for block in answer["result"]["content"])
    if truth.kind == "stopped" and truth.said is not None:  # by the tool itself
        return texts.endswith(truth.said) and not answer["result"]["isError"]
    ended = truth.kind in ("stopped", "cancelled") and f"ended as {truth.kind}" in texts
    return ended and bool(answer["result"]["isError"])


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
