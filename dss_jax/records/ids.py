"""Files that name rows: record files, predictions, what `dss records select` has chosen."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from dss_jax.core import strict_json
from dss_jax.core.errors import UsageError
from dss_jax.records.files import refused


def lines_with_ids(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file that have an `id`; of a record file, all but its header.
    UsageError: it cannot be read, or a line has none; says file and line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        content = None
        with suppress(ValueError):
            content = strict_json.loads(line, parse_constant=refused)
        named = content if isinstance(content, dict) else {}
        if isinstance(named.get("id"), str):
            yield named
        elif number > 1 or "dss_records" not in named:
            raise UsageError(
                f'{path}:{number}: no line of JSON with an "id", such as {{"id": "train-7"}}. '
                "Give a record file, a student's predictions, or what dss records select wrote."
            )


def ids_in(path: Path) -> frozenset[str]:
    """The ids of `lines_with_ids`."""
    return frozenset(line["id"] for line in lines_with_ids(path))
