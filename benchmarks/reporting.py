"""What the benchmarks share: numbers, the command line as published, the processor's name."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"


def spread(values: np.ndarray) -> dict[str, float]:
    """Median, 10th and 90th percentile, to 4 digits."""
    levels = {"median": 50, "p10": 10, "p90": 90}
    return {name: digits(np.percentile(values, level)) for name, level in levels.items()}


def digits(value: float) -> float:
    """To 4 digits."""
    return float(f"{value:.4g}")


def public_path(text: str) -> str:
    """A path as it may be published: relative, and its name alone if it is far from here."""
    if not text.startswith(("/", "~")):
        return text
    path = Path(text).expanduser().resolve()
    if path.is_relative_to(Path.cwd().parent):
        return Path(os.path.relpath(path)).as_posix()
    return f"PATH/{path.name}"


def command(arguments: list[str], script: str) -> str:
    """The command line, without paths of this machine."""

    def shown(argument: str) -> str:
        flag, equals, value = argument.rpartition("=")
        quote = value[:1] if value[:1] in ("'", '"') else ""
        return f"{flag}{equals}{quote}{public_path(value.strip(quote or None))}{quote}"

    data_dir = os.environ.get("DSS_DATA_DIR")
    setting = f"DSS_DATA_DIR={shlex.quote(public_path(data_dir))} " if data_dir else ""
    words = ["python", f"benchmarks/{script}", *map(shown, arguments)]
    return setting + shlex.join(words)


def processor() -> str:
    """Name of the CPU where Linux tells it, and how many cores this process may use."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return f"{names[0] if names else 'CPU'}, {cores} cores"


def in_file_name(device: str) -> str:
    """A device's name as a part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def write_report(report: dict[str, Any], file: Path) -> None:
    """Writes the readings where the documentation looks for them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
