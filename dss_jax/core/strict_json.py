"""JSON that every reader takes: numbers that are not finite become null. Standard library only.

`json.dumps` writes them as bare NaN and Infinity, which JavaScript refuses and jq reads as null.
"""

import json
import math
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """`json.dumps` with null for NaN and infinity."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:  # Seldom, so that the usual case costs nothing.
        return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
