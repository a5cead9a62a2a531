"""What a plain training run does not need, it does not load."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SELDOM = (
    "cli.tables",
    "core.cluster",
    "core.environment",
    "core.sweep_config",
    "evaluate.ranking",
    "interop.hf",
    "interop.orbax_folder",
    "interop.t5x",
    "layouts.rows",
    "model.beam",
    "model.fused",
    "run.hosts",
    "run.init_from",
    "run.pictures",
    "run.student_files",
    "student.student",
    "train.agreement",
    "train.mirror",
)
"""Other formats of checkpoints, searches and layouts than a run's own; what several
processes, sweeps and T5X need; what is shown at the end: imported where used."""

MAX_MODULES, MAX_LINES = 60, 9000
"""Of this package."""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    code = "import sys, dss_jax.run.single, dss_jax.cli.train; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", SELDOM)
def test_a_plain_run_does_not_load(name: str, loaded: set[str]) -> None:
    assert "dss_jax.evaluate.evaluator" in loaded
    assert f"dss_jax.{name}" not in loaded


def test_a_plain_run_loads_little_of_the_package(loaded: set[str]) -> None:
    specs = [find_spec(name) for name in loaded if name.startswith("dss_jax.")]
    files = [
        Path(str(spec.origin)) for spec in specs if spec and not spec.submodule_search_locations
    ]
    assert len(files) <= MAX_MODULES, sorted(file.stem for file in files)
    assert sum(len(file.read_text().splitlines()) for file in files) <= MAX_LINES
