"""Arrays by their Hugging Face names <-> our parameter tree."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dss_jax.core.config import T5Config
from dss_jax.interop.hf import parameters
from dss_jax.interop.weights import flat, nested


def from_hf(state: Mapping[str, np.ndarray], config: T5Config) -> dict[str, Any]:
    """Our tree in float32; KeyError where a name is missing."""
    found = {p.path: p.to_ours(state[n] for n in p.names) for p in parameters(config)}
    return nested(found)


def to_hf(params: Mapping[str, Any], config: T5Config) -> dict[str, np.ndarray]:
    """Arrays by their names, without aliases."""
    arrays, state = flat(params), {}
    for p in parameters(config):
        state |= p.to_theirs(np.asarray(arrays[p.path]))
    return state
