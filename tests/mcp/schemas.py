"""The JSON schema of the extension, by the names of its definitions."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs

_SCHEMA = json.loads((Path(__file__).parent / "data" / "schema.json").read_text("utf-8"))


def check(name: str, value: Any) -> None:
    """Raise unless a value fits a definition of the extension's schema."""
    validator(name).validate(value)


@cache
def validator(name: str) -> Any:
    """Return the validator of a definition."""
    schema = {"$ref": f"#/$defs/{name}", "$defs": _SCHEMA["$defs"]}
    return jsonschema_rs.validator_for(schema)
