"""Greedy and beam decodes equal those of Hugging Face's `generate`, token for token (recorded)."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_arrays import from_hf

from dss_jax.core.config import T5Config
from dss_jax.core.t5_config import Beam, Sample
from dss_jax.model.beam import BeamSearch
from dss_jax.model.decoding import Search, decode
from dss_jax.model.sampling import SampleSearch
from dss_jax.model.t5 import T5

GOLDEN = Path(__file__).parent / "golden"
MODELS = {"v1_0": 3, "umt5": 4, "v1_1": 1, "silu": 1}
"""Case -> of how many settings one is taken: compiling one takes a second."""
jit_decode = jax.jit(decode, static_argnames=("model", "search", "max_decode_length"))


def search_of(settings: dict[str, Any], eos_id: int) -> Search:
    least, beams = settings["min_new_tokens"], settings["num_beams"]
    if beams == 1:
        return SampleSearch(Sample(temperature=0.0, min_decode_length=least), eos_id)
    beam = Beam(
        num_beams=beams,
        length_penalty=settings["length_penalty"],
        early_stopping=settings["early_stopping"],
        min_decode_length=least,
    )
    return BeamSearch(beam, eos_id)


def load(name: str) -> tuple[T5, Any, dict[str, np.ndarray], dict[str, Any]]:
    parity = np.load(GOLDEN / f"t5_hf_{name}.npz")
    config = json.loads(str(parity["meta"]))["config"]
    config = T5Config(**config | {"mlp_activations": tuple(config["mlp_activations"])})
    state = {k.removeprefix("param/"): parity[k] for k in parity if k.startswith("param/")}
    recorded = dict(np.load(GOLDEN / f"t5_hf_decodes_{name}.npz"))
    meta = json.loads(str(recorded["meta"]))
    return T5(config), jax.tree.map(jnp.asarray, from_hf(state, config)), recorded, meta


@pytest.mark.parametrize(
    "name", [pytest.param(m, marks=[pytest.mark.slow] * (n == 1)) for m, n in MODELS.items()]
)
def test_decodes_equal_generate(name: str) -> None:
    model, params, recorded, meta = load(name)
    inputs, eos_id = jnp.asarray(recorded["encoder_input_tokens"]), meta["eos_id"]
    lengths = [int((row != 0).sum()) for row in recorded["tokens/0"][:, 0]]
    assert len(set(lengths)) >= 4, "the rows must end at different steps"
    cases = 0
    for number, settings in list(enumerate(meta["settings"]))[:: MODELS[name]]:
        expected, scores = recorded[f"tokens/{number}"], recorded[f"scores/{number}"]
        decoded = jit_decode(
            model, params, inputs, search_of(settings, eos_id), max_decode_length=expected.shape[-1]
        )
        np.testing.assert_array_equal(decoded.tokens, expected, err_msg=str(settings))
        if settings["num_beams"] > 1:
            np.testing.assert_allclose(decoded.scores, scores, rtol=1e-4, err_msg=str(settings))
        cases += len(expected)
    assert cases >= 140
