"""What processes that run together must have the same. Standard library only."""

import difflib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping

from dss_jax.core import processes
from dss_jax.core.errors import UsageError


def check_same(texts: Mapping[str, str]) -> None:
    """Checks that all processes have the same texts: what it is ("configuration") -> its text, or a
    digest of it. UsageError: which processes have what, and the lines in which they differ.
    """
    everybody = [json.loads(t) for t in processes.gather(json.dumps(texts))]
    names = processes.process_names()
    for what in texts:
        having: dict[str, list[str]] = defaultdict(list)
        for name, own in zip(names, everybody, strict=True):
            having[own[what]].append(name)
        if len(having) > 1:
            raise UsageError(
                f"the processes have not the same {what}, so they cannot run together:\n"
                + "\n".join(_difference({text: ", ".join(who) for text, who in having.items()}))
                + "\nStart all processes from the same code, flags and data."
            )


def _difference(having: Mapping[str, str]) -> Iterator[str]:
    """The lines in which texts differ: text -> who has it."""
    (first, who), *others = having.items()
    if "\n" not in first:
        yield from (f"  {names}: {text}" for text, names in having.items())
        return
    for text, names in others:
        lines = first.splitlines(), text.splitlines()
        diff = difflib.unified_diff(*lines, who, names, n=0, lineterm="")
        yield from (line for line in diff if not line.startswith("@@"))
