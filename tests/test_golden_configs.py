"""The resolved configuration of every shipped gin file is a file in tests/golden/configs.

Those in gin_configs/t5x are for T5X's own programs: tests/test_t5x_gin.py.

UPDATE_GOLDEN=1 rewrites them; the difference then shows in git.
"""

import os
from pathlib import Path

import pytest

from dss_jax.cli import gin_config
from dss_jax.core import config
from dss_jax.core.paths import shipped

GOLDEN = Path(__file__).parent / "golden" / "configs"
GIN_FILES = sorted(
    str(f.relative_to(shipped("gin_configs")))
    for f in shipped("gin_configs").rglob("*.gin")
    if f.parent.name != "t5x"
)


@pytest.mark.parametrize("name", GIN_FILES)
def test_resolved_configuration_is_as_recorded(name: str) -> None:
    text = config.to_gin(gin_config.read(["runs/train.gin", name]).run())
    file = GOLDEN / name.replace("/", "-")
    if os.environ.get("UPDATE_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert file.exists(), f"{file} is missing: UPDATE_GOLDEN=1 writes it"
    assert text == file.read_text()


def test_nothing_is_recorded_that_is_not_shipped() -> None:
    assert {f.name for f in GOLDEN.iterdir()} == {n.replace("/", "-") for n in GIN_FILES}
