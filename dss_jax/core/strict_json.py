"""JSON that every reader takes: numbers that are not finite become null. Standard library only.

`json.dumps` writes them as bare NaN and Infinity, which JavaScript refuses and jq reads as null.
"""

import json
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """`json.dumps` with null for NaN and infinity."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:  # Seldom, so that the usual case costs nothing.
        finite = json.loads(json.dumps(value, **options), parse_constant=lambda _: None)
        return json.dumps(finite, allow_nan=False, **options)
