"""What several hosts that train together must agree on, and what is printed about them."""

import dataclasses
import difflib
import hashlib
import json
import logging
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from dss_jax.core import config, processes
from dss_jax.core.devices import GB
from dss_jax.core.digest import code_digest
from dss_jax.core.errors import UsageError
from dss_jax.data.store import TokenStore

log = logging.getLogger(__name__)

OWN_PLACES = r"(Task\.(data_dir|record_files)|Vocabulary\.path|Data\.(store_dir|store))"
"""Settings that may differ between hosts: where a file lies. What is in it must not."""

SHARED_SECONDS = 60.0
"""How long a host waits until it sees a file that another one has written: NFS keeps what it knows
of a folder for so long."""


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


def store_digest(store: TokenStore) -> str:
    """Digest of a store's content; not of where and when it was made."""
    content = {k: store.manifest[k] for k in ("format", "name", "splits", "files", "vocabulary")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def same_store(run: config.Run, open_store: Callable[[], TokenStore]) -> TokenStore:
    """Opens the store on all processes. Raises UsageError where they have not the same code, JAX,
    configuration and data: which process has what.
    """
    if processes.count() == 1:
        return open_store()
    text = re.sub(rf"^{OWN_PLACES} = .*\n", "", config.to_gin(run), flags=re.MULTILINE)
    check_same(
        {"code of dss-jax": code_digest(), "version of JAX": jax.__version__, "configuration": text}
    )
    store = processes.all_or_raise(open_store)
    check_store(store)
    return store


def check_store(store: TokenStore) -> None:
    """Raises UsageError, with which process has what, where they do not have the same data."""
    check_same({"token store": store_digest(store)})


def check_shared(file: Path) -> None:
    """Raises UsageError where a process does not see a file that process 0 has written."""

    def look() -> None:
        until = time.monotonic() + SHARED_SECONDS
        while not file.exists():
            if time.monotonic() > until:
                raise UsageError(
                    f"{file.parent} is not the folder that process 0 writes to. --output_dir must "
                    "be on storage that all hosts share: gs://, s3:// or a network file system."
                )
            time.sleep(0.5)

    processes.all_or_raise(look)


def describe_hosts(run: config.Run, mesh: Any, longest: tuple[int, int]) -> None:
    """Prints the processes with their devices, and what a step takes on each device of the mesh;
    `longest` are the longest input and target, in tokens.
    """
    from dss_jax.train.memory import estimate
    from dss_jax.train.step import boxed_state

    own = jax.local_devices()
    kinds = Counter(d.device_kind for d in own)
    everybody = processes.gather(", ".join(f"{n} x {kind}" for kind, n in kinds.items()))
    for name, devices in zip(processes.process_names(), everybody, strict=True):
        log.info(f"{name}: {devices}")
    sizes = config.Mesh(**dict(mesh.shape))
    data = dataclasses.replace(run.data, input_length=longest[0], target_length=longest[1])
    run = dataclasses.replace(run, data=data, mesh=sizes)
    memory = estimate(run, boxed_state(run))
    parts = ("parameters", "gradients", "optimizer", "activations", "working", "total")
    planned = ", ".join(f"{part} {getattr(memory, part) / GB:.2f}" for part in parts)
    stats = own[0].memory_stats() or {}
    there = f" of {stats['bytes_limit'] / GB:.2f}" if "bytes_limit" in stats else ""
    log.info(f"memory of a step on each device, GB: {planned}{there}")
