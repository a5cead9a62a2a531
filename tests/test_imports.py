"""What a plain training run does not need, it does not load."""

import subprocess
import sys

import pytest

SELDOM = (
    "evaluate.ranking",
    "interop.hf",
    "interop.orbax_folder",
    "interop.t5x",
    "layouts.rows",
    "model.beam",
    "train.agreement",
    "train.mirror",
)
"""Other formats of checkpoints, searches and layouts than a run's own: imported where used."""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    code = "import sys, dss_jax.run.single, dss_jax.cli.train; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", SELDOM)
def test_a_plain_run_does_not_load(name: str, loaded: set[str]) -> None:
    assert "dss_jax.evaluate.evaluator" in loaded
    assert f"dss_jax.{name}" not in loaded
