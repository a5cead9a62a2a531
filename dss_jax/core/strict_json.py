"""JSON that every reader takes, and JSON that says one thing. Standard library only.

`json.dumps` writes numbers that are not finite as bare NaN and Infinity, which JavaScript refuses
and jq reads as null; here they become null. `json.loads` takes the last of two fields of one name
and says nothing; here they are an error.
"""

import json
from pathlib import Path
from typing import Any

from dss_jax.core.errors import UsageError


class DuplicateKeyError(ValueError):
    """An object of JSON has two fields of one name."""


def dumps(value: Any, **options: Any) -> str:
    """`json.dumps` with null for NaN and infinity."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:  # Seldom, so that the usual case costs nothing.
        finite = json.loads(json.dumps(value, **options), parse_constant=lambda _: None)
        return json.dumps(finite, allow_nan=False, **options)


def loads(text: str | bytes, **options: Any) -> Any:
    """`json.loads`; ValueError: it is no JSON, is nested too deeply, or see `DuplicateKeyError`."""
    try:
        return json.loads(text, object_pairs_hook=_object, **options)
    except RecursionError as error:
        raise ValueError("too many brackets") from error


def read(file: Path, fix: str) -> dict[str, Any]:
    """The object in a file of ours; UsageError: it is damaged, and `fix`, what to do then."""
    try:
        found = loads(file.read_bytes())
        if isinstance(found, dict):
            return found
        error = ValueError("it holds no object")
    except ValueError as wrong:
        error = wrong
    raise UsageError(f"{file} is damaged: {error}. {fix}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        from dss_jax.core.fields import first_twice  # Seldom.

        raise DuplicateKeyError(f"two fields are called {first_twice(n for n, _ in pairs)!r}")
    return found
