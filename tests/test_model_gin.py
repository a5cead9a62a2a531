"""The model sizes that ship as gin files are the published ones."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dss_jax.cli import gin_config
from dss_jax.core.config import T5Config
from dss_jax.interop.weights import count_parameters
from dss_jax.model.build import model_of

MODELS = Path(__file__).resolve().parents[1] / "gin_configs" / "models"

# Name -> (number printed by the authors, number counted in Hugging Face's model of that size).
PUBLISHED = {
    "t5_small": (60e6, 60_506_624),
    "t5_base": (220e6, 222_903_552),
    "t5_large": (770e6, 737_668_096),
    "t5_3b": (3e9, 2_851_598_336),
    "t5_11b": (11e9, 11_307_321_344),
    "t5_1_1_small": (77e6, 76_961_152),
    "t5_1_1_base": (248e6, 247_577_856),
    "t5_1_1_large": (783e6, 783_150_080),
    "t5_1_1_xl": (2.85e9, 2_849_757_184),
    "t5_1_1_xxl": (11.1e9, 11_135_332_352),
    # Of mT5's printed ones, whose shapes these are.
    "umt5_small": (300e6, 306_601_984),
    "umt5_base": (580e6, 592_043_520),
    "umt5_xl": (3.7e9, 3_768_356_864),
    "umt5_xxl": (13e9, 12_972_531_712),
    "byt5_small": (300e6, 299_637_760),
    "byt5_base": (582e6, 581_653_248),
    "byt5_large": (1.23e9, 1_228_183_552),
    "byt5_xl": (3.74e9, 3_737_801_728),
    "byt5_xxl": (12.9e9, 12_906_899_328),
    "ul2": (20e9, 19_591_209_984),
    # As KerasHub prints them; Google has the sizes in gemma/research/t5gemma/config.py.
    "t5gemma_s_s": (312_517_632, 312_517_632),
    "t5gemma_b_b": (591_490_560, 591_490_560),
}
TINY = ("t5_tiny", "t5_1_1_tiny")


def read(name: str) -> tuple[str, dict[str, Any]]:
    """First line, and the bindings of `T5Config`."""
    file = MODELS / f"{name}.gin"
    parts = [(*key.split("."), value) for key, value in gin_config.read([file]).values.items()]
    assert {section for section, _, _ in parts} == {"T5Config"}
    return file.read_text().splitlines()[0], {field: value for _, field, value in parts}


def test_pile_t5_is_v1_1_with_a_position_bias_in_each_layer() -> None:
    """As its model card counts it (EleutherAI/pile-t5-base)."""
    _, base = read("t5_1_1_base")
    assert count({**base, "relative_attention_per_layer": True}) == 247_586_304


def count(bindings: dict[str, Any]) -> int:
    model = model_of(T5Config(**bindings))
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    return count_parameters(jax.eval_shape(model.init, jax.random.key(0), tokens, tokens))


def test_all_files_are_tested() -> None:
    assert {path.stem for path in MODELS.glob("*.gin")} == {*PUBLISHED, *TINY}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    header, bindings = read(name)
    published, exact = PUBLISHED[name]
    number = count(bindings)
    assert number == exact
    assert number == pytest.approx(published, rel=0.05)
    assert f": {number:,} parameters." in header


@pytest.mark.parametrize("name", TINY)
def test_tiny_sizes(name: str) -> None:
    header, bindings = read(name)
    assert bindings["vocab_size"] is None
    match = re.search(r": ([\d,]+) parameters and (\d+) more for each entry", header)
    assert match is not None
    fixed, each = (int(group.replace(",", "")) for group in match.groups())
    for vocab_size in (512, 32128):
        assert count({**bindings, "vocab_size": vocab_size}) == fixed + each * vocab_size
