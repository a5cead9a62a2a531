"""What a run meets on its way, besides libraries: the machine, extras, caches, servers. Standard
library only, and nothing imported; no names of users or hosts, so that it can be shown to others.
"""

import getpass
import os
import platform
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from dss_jax.core.environment import Check, distribution, folder_check
from dss_jax.core.ids import GCS, T5_PUBLIC
from dss_jax.core.machine import processors
from dss_jax.core.paths import cache_folder

HUB = "https://huggingface.co"

RELEASE = "https://github.com/google-research/distilling-step-by-step"

SERVERS = {
    "T5's vocabulary": T5_PUBLIC.replace("gs://", GCS),
    "TFDS": f"{GCS}tfds-data/",
    "the authors' release": RELEASE,
}
"""What is fetched -> an address of the server that has it."""

SECONDS = 3.0
"""That a server may take."""

OF_JAX = {"jax[cuda12]": "jax-cuda12-plugin", "jax[tpu]": "libtpu"}
"""Extras of JAX -> what they bring."""

NOT_FOR_USERS = ("dev", "parity")
"""Extras that work on this package needs."""


def machine_checks() -> list[Check]:
    """The system, processors, and memory (of the container, where that has less)."""
    shown = f"{platform.system()} {platform.release()} {platform.machine()}"
    return [Check("system", f"{shown}, {processors()} processors"), Check("memory", _memory())]


def _memory() -> str:
    fields: dict[str, float] = {}
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, amount = line.partition(":")
            fields[name] = int(amount.split()[0]) / 1e6
    if not fields:
        return "not known"
    shown = f"{fields['MemTotal']:.1f} GB, {fields['MemAvailable']:.1f} GB free"
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            limit = int(Path("/sys/fs/cgroup", file).read_text()) / 1e9
            if limit < fields["MemTotal"]:
                return f"{shown}; this container may use {limit:.1f} GB"
    return shown


def extras_check() -> Check:
    """Which extras of this package are installed."""
    own = distribution("dss-jax")
    needs: dict[str, list[str]] = {}
    for line in (own and own.requires) or ():
        if found := re.fullmatch(r"([\w.-]+(?:\[\w+\])?)[^;]*;.*extra == ['\"]([\w-]+)['\"]", line):
            needs.setdefault(found[2], []).append(OF_JAX.get(found[1], found[1]))
    has = {extra: all(map(distribution, names)) for extra, names in needs.items()}
    names = sorted(has.keys() - {*NOT_FOR_USERS})
    there = ", ".join(n for n in names if has[n]) or "none"
    return Check("extras", f"{there}; not installed: {', '.join(n for n in names if not has[n])}")


def cache_checks() -> list[Check]:
    """The folders of compiled code and of the Hugging Face hub."""
    checks = []
    compiled = os.environ.get("DSS_COMPILE_CACHE") or str(cache_folder() / "compiled")
    if compiled != "off" and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        checks.append(folder_check("compilation cache", compiled))
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME") or f"{base}/huggingface"
    hub = os.environ.get("HF_HUB_CACHE") or f"{home}/hub"
    return [*checks, folder_check("hub's cache", hub)]


def server_checks() -> list[Check]:
    """Which servers can be reached, all asked at once; that one cannot is not wrong."""
    asked = {"Hugging Face hub": os.environ.get("HF_ENDPOINT") or HUB, **SERVERS}
    said: dict[str, str] = {}

    def ask(name: str, url: str) -> None:
        said[name] = _reached(url)

    threads = [threading.Thread(target=ask, args=one, daemon=True) for one in asked.items()]
    for thread in threads:
        thread.start()
    ends = time.monotonic() + SECONDS + 1
    for thread in threads:
        # No limit of a connection holds for the look-up of its server's name.
        thread.join(max(0.0, ends - time.monotonic()))
    silent = f"not reached: no answer in {SECONDS:g} s"
    return [Check(name, said.get(name, silent)) for name in asked]


def _reached(url: str) -> str:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # It answers; what it has there does not matter.
    except (OSError, HTTPException, ValueError) as error:  # ValueError: of HF_ENDPOINT.
        return f"not reached: {getattr(error, 'reason', None) or error}"
    return "reached"


def without_names(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """A text without the home folder's path and the user's name."""
    home = str(Path.home())
    if home not in ("/", ""):
        text = text.replace(home, "~")
    user = environment.get("USER") or ""
    with suppress(OSError, KeyError, ImportError):
        user = user or getpass.getuser()
    return re.sub(rf"(?<![\w.-]){re.escape(user)}(?![\w.-])", "USER", text) if user else text
