"""What a compiled program does, read from its text (`jax.stages.Compiled.as_text()`): what its
devices send each other, and for TPUs the cycles that the compiler estimates.

The estimates are the compiler's model, not a measurement: copies that overlap with computing count
as well, and what is sent has none. Good for the ratio of two programs for the same chip.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_OPERATION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CALLED = re.compile(r" (?:call|async-start|fusion)\(.*(?:to_apply|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(r" conditional\(.*branch_computations=\{([^}]*)\}")
_EITHER = re.compile(
    r" conditional\(.*true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+)"
)
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"s32\[\]\S* constant\((\d+)\)")
_CYCLES = re.compile(r'estimated_cycles":"(\d+)"')
_NAME = re.compile(r'op_name="(p?jit\([^"]*)"')
_OPERANDS = re.compile(r"%([\w.\-]+)")
_COLLECTIVE = re.compile(
    r"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all"
    r"|ragged-all-to-all|collective-permute|collective-broadcast)(?:-done)?\("
)
_SCATTER = re.compile(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) fusion\(.*calls=%?all-reduce-scatter")
_ARRAY = re.compile(r"(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")

LAYERS = "loops over layers"

PARTS = (
    ("optimizer", r"^(?!.*jvp)"),
    (LAYERS, r"/while$|while/body/(?:closed_call/)?(?:jit\()?dynamic_(?:update_)?(?:index|slice)"),
    ("dropout", r"[dD]ropout"),
    ("norms", r"norm"),
    ("attention", r"attention|relpos_bias"),
    ("feed-forward", r"mlp"),
    ("logits and loss", r"logits/|logits_dense|jvp\(\)"),
    ("embedding", r"_embedder"),
)
"""Part of a training step -> how the names of its operations look; the first that fits counts.
"loops over layers" is what they keep for the backward pass, written and read."""


class Operation(NamedTuple):
    """One line of a program.

    Attributes:
      times: how often it runs.
      name: JAX's ("jit(train_step)/..."). What the compiler has made itself has that of the first
        operation after it that reads it, "" where none has a name.
      path: the computations that it is in, the entry first, loops and calls below it.
    """

    line: str
    times: int
    name: str
    path: tuple[str, ...]


class Collective(NamedTuple):
    """What devices send each other.

    Attributes:
      kind: "all-reduce", "all-gather", "reduce-scatter" and the rarer ones.
      times: how often it runs in a step.
      size: bytes of its result on each device, one time.
      arrays: the result's arrays: "bf16[7,512]".
      name: of the operation.
      loop: whether it is in a loop.
    """

    kind: str
    times: int
    size: int
    arrays: tuple[str, ...]
    name: str
    loop: bool


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Name -> lines, and the name of the entry."""
    found: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[2]
            found[current] = []
            entry = current if head[1] else entry
        elif line.startswith(" ") and current:
            found[current].append(line)
    return found, entry


def _names(lines: list[str]) -> list[str]:
    """See `Operation.name`."""
    names: list[str] = []
    reader: dict[str, str] = {}
    for line in reversed(lines):
        own, rest = match.groups() if (match := _OPERATION.match(line)) else ("", line)
        name = named[1] if (named := _NAME.search(rest)) else reader.get(own, "")
        names.append(name)
        if name:
            # Lines are in an order that runs, so the reader that is seen last is the first to run.
            call = rest.split(", metadata=")[0]
            reader.update(dict.fromkeys(_OPERANDS.findall(call), name))
    return names[::-1]


def operations(text: str, *, fused: bool = False) -> Iterator[Operation]:
    """All that a program runs: what is in a loop's body as often as the loop turns, which is what
    XLA knows or the bound of `i < n` that `jax.lax.scan` makes, else once.

    Args:
      fused: whether to look into fusions, too; what is in one comes after its line.
    """
    computations, entry = _computations(text)

    def trips(line: str, condition: str) -> int:
        if known := _TRIPS.search(line):
            return int(known[1])
        bounds = [int(n) for x in computations[condition] for n in _CONSTANT.findall(x)]
        return max(bounds, default=1)

    def visit(path: tuple[str, ...], times: int) -> Iterator[Operation]:
        lines = computations.get(path[-1], [])
        for line, name in zip(lines, _names(lines), strict=True):
            yield Operation(line, times, name, path)
            if loop := _WHILE.search(line):
                yield from visit((*path, loop[2]), times * trips(line, loop[1]))
            elif branches := _BRANCHES.search(line) or _EITHER.search(line):
                for branch in ",".join(branches.groups()).split(","):
                    yield from visit((*path, branch.strip().lstrip("%")), times)
            elif (called := _CALLED.search(line)) and (fused or " fusion(" not in line):
                yield from visit((*path, called[1]), times)

    yield from visit((entry,), 1)


def _bytes(bits: str | None, sizes: str) -> int:
    return math.prod(int(n) for n in sizes.split(",") if n) * max(1, int(bits or 8) // 8)


def _kind(line: str, path: tuple[str, ...], ends: set[str]) -> tuple[str, str] | None:
    """The kind of a collective and its result's type, if the line is one.

    One that runs beside others is told by its end, which has the result's type: "-done", and on a
    TPU the last of several fusions that hold it. A TPU's reduce-scatter is a fusion, too.
    """
    if scattered := _SCATTER.match(line):
        return "reduce-scatter", scattered[1]
    found = _COLLECTIVE.match(line)
    begun = "async_collective_fusion_config" in line and path[-1] not in ends
    if found is None or begun or path[-1].startswith("all-reduce-scatter"):
        return None
    return found[2], found[1]


def collectives(text: str) -> list[Collective]:
    """What is sent, in the order of the program."""
    loops = {loop[2] for line in text.splitlines() if (loop := _WHILE.search(line))}
    ran = list(operations(text, fused=True))
    ends = {path[-1] for line, _, _, path in ran if "AsyncCollectiveDone" in line}
    found = []
    for line, times, name, path in ran:
        if (kind := _kind(line, path, ends)) is not None:
            arrays = list(_ARRAY.finditer(kind[1]))
            size = sum(_bytes(*array.groups()) for array in arrays)
            shapes = tuple(array[0] for array in arrays)
            in_loop = bool(loops.intersection(path))
            found.append(Collective(kind[0], times, size, shapes, name, in_loop))
    return found


def sent(text: str) -> dict[str, tuple[int, int]]:
    """Kind of collective -> how many run in a step, and the bytes of all their results on each
    device.
    """
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for found in collectives(text):
        counts[found.kind] += found.times
        sizes[found.kind] += found.times * found.size
    return {kind: (counts[kind], sizes[kind]) for kind in sorted(counts)}


def part_of(name: str) -> str:
    """The part of a training step (`PARTS`, else "other") that an operation's name tells."""
    return next((p for p, look in PARTS if name and re.search(look, name)), "other")


def cycles_by_name(text: str) -> Counter[str]:
    """Operation's name -> estimated cycles of all its turns. Empty but for TPUs."""
    found: Counter[str] = Counter()
    for operation in operations(text):
        if estimated := _CYCLES.search(operation.line):
            found[operation.name] += operation.times * int(estimated[1])
    return found


def cycles(text: str) -> dict[str, int]:
    """Part of the step -> estimated cycles, the most first. Empty but for TPUs."""
    found: Counter[str] = Counter()
    for name, count in cycles_by_name(text).items():
        found[part_of(name)] += count
    return dict(found.most_common())
