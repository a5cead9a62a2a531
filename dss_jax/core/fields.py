"""Fields of rows: their names, and their values as text. Standard library only."""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from dss_jax.core.errors import UsageError, nearest

FIELDS = ("id", "input", "label", "teacher_label", "rationale")
"""Of a row that `types.plain_example` reads."""

NEAR = 0.85
"""How like a known field an unknown one must be to be a slip of the pen; "idx" is none of "id"."""


def text_of(row: Mapping[str, Any], name: str) -> str:
    """A field of a row as text; a number as its digits, null as "".

    Raises:
      KeyError: the row has no such field.
      UsageError: NaN, true or false, a list or an object, of which text would be made in silence.
    """
    value = row[name]
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    finite = isinstance(value, float) and math.isfinite(value)
    if finite or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise UsageError(f"{name} must be text, not {value!r:.60}. Put it in quotes, or leave it out.")


@functools.lru_cache(maxsize=64)
def check_names(names: tuple[str, ...]) -> None:
    """Raises UsageError for fields that are like a known one which the row has not."""
    free = [field for field in FIELDS if field not in names]
    slips = []
    for name in names:
        plain = name.strip().casefold().replace("-", "_").replace(" ", "_")
        if name not in FIELDS and (near := nearest(plain, free, NEAR)):
            slips.append(f"unknown field {name!r}, did you mean {near!r}?")
    if slips:
        raise UsageError(f"{' '.join(slips)} Rename or remove it.")


def first_twice(names: Iterable[str]) -> str | None:
    """The first name that was there before; None: all differ."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
