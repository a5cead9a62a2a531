"""Checks of configured values. Each raises UsageError with the value and what is allowed."""

from dataclasses import field
from typing import Any

from dss_jax.core.errors import UsageError, unknown_name


def free(default: Any) -> Any:
    """A dataclass field that may change when a run is continued."""
    return field(default=default, metadata={"free": True})


def among(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """`value` is one of `allowed`."""
    if value not in allowed:
        raise unknown_name(what, str(value), allowed)


def number(what: str, value: Any, kinds: type | tuple[type, ...]) -> None:
    """`value` is a number of these kinds; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, kinds):
        wanted = "a whole number" if kinds is int else "a number"
        raise UsageError(f"{what} must be {wanted}, not {value!r}.")


def at_least(what: str, value: Any, least: int) -> None:
    """`value` is a whole number, at least `least`."""
    number(what, value, int)
    if value < least:
        raise UsageError(f"{what} must be at least {least}, not {value}.")


def between(what: str, value: Any, low: float, high: float) -> None:
    """`value` is a number in [low, high]."""
    number(what, value, (int, float))
    if not low <= value <= high:
        raise UsageError(f"{what} must be between {low:g} and {high:g}, not {value}.")


def flag(what: str, value: Any) -> None:
    """`value` is True or False."""
    if not isinstance(value, bool):
        raise UsageError(f"{what} must be True or False, not {value!r}.")


def whole_on_one_device(mesh: Any) -> None:
    """A mesh (`config.Mesh`) that cuts up no parameters, as seeds that train at once need it."""
    for axis in ("fsdp", "model"):
        size = getattr(mesh, axis)
        if size not in (1, -1):
            raise UsageError(
                f"Mesh.{axis} is {size}, but with --seeds each seed's parameters are whole on one "
                f"device. Leave --seeds out, or Mesh.{axis} at 1."
            )
