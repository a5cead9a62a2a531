"""Distilling step-by-step in JAX: see README.md."""

__version__ = "0.1.0"
