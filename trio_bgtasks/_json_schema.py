"""JSON Schema: compiled validators, and what they find in one clear text. Nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import NoReturn

import jsonschema_rs

from ._json import JsonObject, JsonValue, shorten

_MAX_VIOLATIONS = 20
_MAX_VIOLATION = 500


def schema_validator(schema: JsonObject) -> jsonschema_rs.Validator:
    """Return the compiled validator of a schema; ValueError: it is no JSON Schema."""
    try:
        return _validator(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(getattr(error, "message", None) or str(error)) from None


def violations(validator: jsonschema_rs.Validator, value: JsonValue) -> str:
    """Return what of ``value`` does not fit, each with its path, joined by ``"; "``; shortened."""
    found = [
        shorten(f"{_path(error.instance_path)}: {error.message}", _MAX_VIOLATION)
        for error in validator.iter_errors(value)
    ]
    more = len(found) - _MAX_VIOLATIONS
    return "; ".join(found[:_MAX_VIOLATIONS] + ([f"and {more} more"] if more > 0 else []))


@lru_cache(maxsize=256)
def _validator(schema: str) -> jsonschema_rs.Validator:
    """Return the compiled validator. Keyed by text: descriptors are made anew each time."""
    return jsonschema_rs.validator_for(schema, retriever=_refuse_to_fetch)


def _refuse_to_fetch(uri: str) -> NoReturn:
    raise ValueError(f"{uri} is outside the schema")


def _path(steps: Sequence[str | int]) -> str:
    """Return a path in the notation of `NotJson`: ``$.items[0].name``."""
    parts = [
        f"[{step}]"
        if isinstance(step, int)
        else f".{step[:80]}"
        if step.isidentifier()
        else f"[{step[:80]!a}]"
        for step in steps
    ]
    return "$" + "".join(parts)
