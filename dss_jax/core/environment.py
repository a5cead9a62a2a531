"""What is installed here, and what is wrong with it. Standard library only, and nothing imported:
distributions are looked up by their metadata, so that a broken one is found before it breaks a run.
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from dss_jax.core.config import DEFAULT_LOGICAL_AXIS_RULES, Run
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import cache_folder, shipped

PYPI_FILE, GIT_FILE = "requirements-t5x.txt", "requirements-t5x-git.txt"
"""What `make t5x` installs: the first with dependencies, the second without."""

PYTHONS = ((3, 11), (3, 13))
"""Oldest and newest Python that the package is made for."""

_TRAINER = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")
_DATA = ("gin-config", "seqio", "tensorflow", "tensorflow-datasets", "sentencepiece", "safetensors")

INSTALL_T5X = (
    "make t5x, or: pip install -c requirements.lock -r requirements-t5x.txt && "
    "pip install --no-deps --force-reinstall -r requirements-t5x-git.txt"
)

T5X_CONSTANTS = {
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "layer_norm_epsilon": 1e-6,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
    "attention": "xla",
    "remat_policy": "none",
    "gemma": None,
}
"""What T5X's network (`t5x.examples.t5`) has in its code: field of T5Config -> value."""

SearchPath = Sequence[str] | None
"""Folders that are searched for distributions; None: sys.path."""


class Check(NamedTuple):
    """One thing that was looked at, what there is, and what is wrong with it ("": nothing)."""

    name: str
    found: str
    problem: str = ""


def distribution(name: str, path: SearchPath = None) -> metadata.Distribution | None:
    """An installed distribution, by its name on PyPI."""
    folders = sys.path if path is None else list(path)
    return next(iter(metadata.distributions(name=name, path=folders)), None)


def requirement_lines(file: str) -> list[str]:
    """The lines of one of the requirement files that come with the package."""
    lines = [line.strip() for line in shipped(file).read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def git_pins() -> dict[str, str]:
    """Distribution -> full commit, of `GIT_FILE`."""
    form = re.compile(r"(\S+) @ git\+https://\S+@([0-9a-f]{40})")
    matches = [form.fullmatch(line) for line in requirement_lines(GIT_FILE)]
    assert all(matches)
    return {match[1]: match[2] for match in matches if match}


def pypi_pins() -> dict[str, str]:
    """Distribution -> version, of `PYPI_FILE`."""
    return dict(line.split("==") for line in requirement_lines(PYPI_FILE))


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(n) for n in match[0].split(".")) if match else ()


def outside(version: str, allowed: str) -> bool:
    """Whether a version is outside a range like ">=0.10,<0.11". Only >= and < are known."""
    bounds = re.findall(r"(>=|<)([\d.]+)", allowed.replace(" ", ""))
    return any((_numbers(version) < _numbers(n)) == (sign == ">=") for sign, n in bounds)


def supported(path: SearchPath = None) -> dict[str, str]:
    """Distribution -> range of versions, as this package's own metadata has them."""
    own = distribution("dss-jax", path) or distribution("dss-jax")
    lines = (own and own.requires) or []
    matches = (re.fullmatch(r"([\w.-]+)\s*([^;]*)", line) for line in lines)
    return {match[1].lower(): match[2].strip() for match in matches if match}


def python_check(version: tuple[int, int, int] = sys.version_info[:3]) -> Check:
    """Python's version."""
    shown = ".".join(map(str, version))
    fits = PYTHONS[0] <= version[:2] <= PYTHONS[1]
    allowed = " to ".join(".".join(map(str, v)) for v in PYTHONS)
    return Check("Python", shown, "" if fits else f"{allowed} is needed")


def package_checks(path: SearchPath = None) -> list[Check]:
    """The libraries that decide what runs, against the ranges of this package's metadata."""
    ranges = supported(path)
    checks = []
    for name in (*_TRAINER, *_DATA):
        found, allowed = distribution(name, path), ranges.get(name, "")
        if found is None:
            checks.append(Check(name, "not installed", f"install {name}{allowed}"))
        else:
            wrong = f"{allowed} is needed" if outside(found.version, allowed) else ""
            checks.append(Check(name, found.version, wrong))
    return checks


def _git_check(name: str, pin: str, path: SearchPath) -> Check:
    found = distribution(name, path)
    if found is None:
        return Check(name, "not installed", f"git {pin[:7]} is needed")
    url = json.loads(found.read_text("direct_url.json") or '{"url": "an index"}')
    commit = url.get("vcs_info", {}).get("commit_id")
    shown = f"git {commit[:7]}" if commit else f"{found.version} from {url.get('url')}"
    if name == "jestimator":
        helper = Path(str(found.locate_file("jestimator/amos_helper.py")))
        if helper.is_file() and "jax.experimental.pjit" in helper.read_text():
            needed = f"git {pin[:7]} is needed, which has the same version number"
            return Check(name, shown, f"this release fails at import; {needed}")
    wrong = commit is not None and commit != pin
    return Check(name, shown, f"tried is git {pin[:7]}" if wrong else "")


def t5x_checks(path: SearchPath = None) -> list[Check]:
    """Everything that the second engine needs beyond this package's own requirements."""
    checks = [_git_check(name, pin, path) for name, pin in git_pins().items()]
    for name, pin in pypi_pins().items():
        found = distribution(name, path)
        missing = "" if found else f"{name}=={pin} is needed"
        checks.append(Check(name, found.version if found else "not installed", missing))
    # These put their files over those of another distribution.
    for name, other, brought_by in (
        ("tfds-nightly", "tensorflow-datasets", "airio"),
        ("tensorflow-cpu", "tensorflow", "t5x"),
    ):
        why = f"{brought_by}'s dependencies brought it and it overwrites {other}"
        fix = f"pip install --force-reinstall --no-deps {other} in the locked version"
        if found := distribution(name, path):
            checks.append(Check(name, found.version, f"{why}: pip uninstall {name}, then {fix}"))
    return checks


def require_t5x(path: SearchPath = None, processes: int = 1) -> None:
    """Raises UsageError, with everything that is missing or wrong, where T5X cannot run."""
    if processes > 1:
        raise UsageError(
            "--engine t5x runs in one process. On several hosts run python -m t5x.train with "
            "gin_configs/t5x/finetune.gin: docs/t5x.md."
        )
    lines = [f"  {c.name}: {c.found}; {c.problem}" for c in t5x_checks(path) if c.problem]
    if lines:
        raise UsageError(
            "T5X cannot run here:\n" + "\n".join(lines) + f"\nTo install it: {INSTALL_T5X}\n"
            "(needs the network and git; docs/t5x.md). `dss doctor --engine t5x` looks again."
        )


def check_for_t5x(run: Run) -> None:
    """Raises UsageError, with every setting that T5X's loop cannot take and what it can."""
    lines = [
        f"T5Config.{name} must be {value!r}, not {getattr(run.model, name)!r}: it is in T5X's code"
        for name, value in T5X_CONSTANTS.items()
        if getattr(run.model, name) != value
    ]
    if run.lora.rank:
        lines.append("Lora.rank must be 0: T5X has no LoRA")
    if run.mesh.logical_axis_rules != DEFAULT_LOGICAL_AXIS_RULES:
        lines.append("Mesh.logical_axis_rules must be the default: T5X has rules of its own")
    if run.optimizer.name == "adafactor" and run.optimizer.weight_decay:
        lines.append("Optimizer.weight_decay must be 0: T5X's Adafactor scales it otherwise")
    method = run.method
    plain = method.form == "tasks" and not (method.only_correct or method.equal_compute)
    if not plain or method.rationales != "first":
        lines.append(
            f"--method {run.method.name}: only standard, distill, dss and dss_unlabeled, without "
            "Method.only_correct and with Method.rationales = 'first'"
        )
    if run.task.extra_tasks:
        lines.append("Task.extra_tasks must be (): T5X mixes tasks in its mixtures")
    if run.loss.alpha_schedule != "constant" or run.loss.mutual_information:
        lines.append("Loss.alpha_schedule must be 'constant' and Loss.mutual_information 0")
    if lines:
        raise UsageError("--engine t5x cannot take this run:\n  " + "\n  ".join(lines))


def folder_check(name: str, path: str | Path) -> Check:
    if "://" in str(path):
        return Check(name, str(path))
    folder = Path(path).expanduser()
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    wrong = "" if os.access(nearest, os.W_OK) else f"{nearest} cannot be written to"
    return Check(name, f"{folder}{'' if folder.is_dir() else ' (not there yet)'}", wrong)


def folder_checks() -> list[Check]:
    """Cache, token stores and JAX's compilation cache."""
    stores = os.environ.get("DSS_STORE_DIR") or cache_folder() / "stores"
    checks = [folder_check("cache", cache_folder()), folder_check("token stores", stores)]
    if compiled := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        checks.append(folder_check("compilation cache", compiled))
    if data := os.environ.get("DSS_DATA_DIR"):
        wrong = "" if Path(data).expanduser().is_dir() else "there is no such folder"
        checks.append(Check("data", data, wrong))
    return checks


def vocabulary_check(server: str | None = None) -> Check:
    """The vocabulary of tasks that ship none: DSS_VOCABULARY, or T5's public one in the cache;
    `server`: what was found out about the one that it is fetched from.
    """
    if own := os.environ.get("DSS_VOCABULARY"):
        is_file = "://" in own or Path(own).expanduser().is_file()
        return Check("vocabulary", own, "" if is_file else "there is no such file")
    cached = sorted((cache_folder() / "vocabularies").glob("*.model"))
    shown = f"in the cache: {cached[0].name}" if cached else "T5's is fetched when it is needed"
    if not cached and server and server != "reached":
        shown = "none here: --init_from brings one, else give --vocabulary FILE or DSS_VOCABULARY"
    return Check("vocabulary", shown)


def key_check(variable: str) -> Check:
    """Whether a variable with a key is set. Its value is not shown."""
    return Check(variable, "set" if os.environ.get(variable, "").strip() else "not set")
