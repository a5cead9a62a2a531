"""Checks of configured values, and what a group of settings is: fields that say what is allowed.

Each check raises UsageError with the value and what is allowed.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from dss_jax.core.errors import Mistakes, UsageError, unknown_name

_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    dict: "a table",
}


def among(what: str, value: str, allowed: Iterable[str]) -> None:
    """`value` is one of `allowed`."""
    if value not in allowed:
        raise unknown_name(what, str(value), allowed)


def at_least(what: str, value: Any, least: int) -> None:
    """`value` is a whole number, at least `least`."""
    Rule(low=least).check(what, value, int)


def between(what: str, value: Any, low: float, high: float) -> None:
    """`value` is a number in [low, high]."""
    Rule(low=low, high=high).check(what, value, float)


@dataclass(frozen=True)
class Rule:
    """What is allowed for a setting, beside its type; of a tuple, for each value in it."""

    low: float = -inf
    high: float = inf
    positive: bool = False  # Whether a number must be above 0.
    among: tuple[str, ...] = ()  # The texts that are known; (): any.
    distinct: bool = False  # Whether the values in a tuple must differ.
    # Whether a tuple is also taken as text with commas between, and as None for ().
    commas: bool = False
    free: bool = False  # Whether the setting may change when a run is continued.

    def tidy(self, value: Any) -> Any:
        """The value in the form in which it is kept: lists become tuples."""
        if self.commas and value is None:
            return ()
        if self.commas and isinstance(value, str):
            return tuple(word.strip() for word in value.split(",") if word.strip())
        return _tuples(value)

    def check(self, what: str, value: Any, kind: Any) -> None:
        """Raises UsageError where a value is not of its annotated kind, or not allowed."""
        kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        if value is None and NoneType in kinds:
            return
        inside = next((get_args(k) for k in kinds if get_origin(k) is tuple), None)
        if inside and isinstance(value, tuple):
            self._check_each(what, value, inside)
        elif not any(_is_plain(value, k) for k in kinds if not get_origin(k)):
            wanted = f"a list such as ({value!r},)" if inside else _KINDS[kinds[0]]
            raise UsageError(f"{what} must be {wanted}, not {value!r}.")
        elif self.among:
            among(what, value, self.among)
        elif isinstance(value, int | float):
            low, high = self.low, self.high
            if not low <= value <= high:
                allowed = f"at least {low:g}" if high == inf else f"between {low:g} and {high:.10g}"
                raise UsageError(f"{what} must be {allowed}, not {value}.")
            if self.positive and not value > 0:
                raise UsageError(f"{what} must be above 0.")

    def _check_each(self, what: str, values: tuple[Any, ...], kinds: tuple[Any, ...]) -> None:
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(values)
        if len(values) != len(kinds):
            raise UsageError(f"{what} must be a list of {len(kinds)}, not {values!r}.")
        for value, kind in zip(values, kinds, strict=True):
            self.check(what if what.startswith("value in") else f"value in {what}", value, kind)
        twice = [v for i, v in enumerate(values) if self.distinct and v in values[:i]]
        if twice:
            raise UsageError(f"{what} has {twice[0]!r} twice.")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _is_plain(value: Any, kind: Any) -> bool:
    """Whether a value is of a class; a whole number is a float too, True and False are neither."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def setting(default: Any, **rule: Any) -> Any:
    """A field of a `Section` with its default, and a `Rule`."""
    return dataclasses.field(default=default, metadata={"rule": Rule(**rule)})


def rule_of(field: "dataclasses.Field[Any]") -> Rule:
    """What is allowed for a field; its type is in the annotation."""
    return field.metadata.get("rule") or Rule()


class Derived(float):
    """A default that follows other settings, also where `dataclasses.replace` changes these."""


class Section:
    """Settings that belong together: a frozen dataclass that checks itself when it is made, and
    says all that is wrong with its fields at once.
    """

    def __post_init__(self) -> None:
        mistakes = Mistakes()
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            rule = rule_of(field)
            value = rule.tidy(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            with mistakes:
                rule.check(f"{type(self).__name__}.{field.name}", value, field.type)
        mistakes.done()
        self.check()

    def check(self) -> None:
        """Raises UsageError where settings do not go together."""
