"""The model that a configuration is of."""

from dss_jax.core.config import T5Config
from dss_jax.model.t5 import T5


def model_of(config: T5Config) -> T5:
    """T5; or, where `config.gemma` says so, T5Gemma, which is asked in the same way."""
    if config.gemma is None:
        return T5(config)
    from dss_jax.model.t5gemma import T5Gemma

    return T5Gemma(config)
