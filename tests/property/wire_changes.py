"""What becomes of what is true of a task when a client answers, or cancels."""

from __future__ import annotations

from typing import Any

import attrs

from .wire_jobs import Job, Truth


def open_keys(job: Job) -> list[str]:
    """Return the keys of questions that are open, for sure, as far as they were shown."""
    if len(job.now) > 1:
        return []
    (truth,) = job.now
    if resumable(job, truth):
        return [key for key in job.keys if key == f"resume-{truth.attempt}"]
    return [key for key, words in job.keys.items() if words in truth.asks]


def resumable(job: Job, truth: Truth) -> bool:
    """Is it stopped, and may it go on?"""
    return truth.kind == "stopped" and job.resumable


def closed(truth: Truth, words: str) -> list[Truth]:
    """Return what becomes of it when a question is answered: at some moment it is."""
    return [truth, attrs.evolve(truth, asks=truth.asks - {words})]


def resumed(job: Job, truth: Truth, key: str, response: Any) -> list[Truth]:
    """Return what becomes of a task that is asked whether to go on, when that is answered."""
    if not resumable(job, truth) or key != f"resume-{truth.attempt}":
        return [truth]
    if response["action"] == "cancel":
        return [truth]
    if response["action"] == "accept" and response["content"]["resume"]:
        return [truth, Truth("running", truth.attempt + 1)]
    return [truth, Truth("cancelled", truth.attempt)]


def cancelling(job: Job, truth: Truth) -> list[Truth]:
    """Return what becomes of a task when it is cancelled."""
    if truth.kind == "running":
        return [truth, Truth("cancelling", truth.attempt)]
    return [truth, Truth("cancelled", truth.attempt)] if resumable(job, truth) else [truth]
