"""Distilling step-by-step in JAX: see README.md.

`dss_jax.load("runs/cqa")` opens a student; docs/predict.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dss_jax.student.load import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load`, which is imported when it is first asked for: it needs NumPy."""
    if name != "load":
        raise AttributeError(f"module 'dss_jax' has no attribute {name!r}")
    from dss_jax.student.load import load

    return load
