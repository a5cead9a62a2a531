"""The texts before an input that tell the two tasks apart. Standard library only."""

from dataclasses import dataclass

from dss_jax.core.errors import unknown_name


@dataclass(frozen=True, kw_only=True)
class Prefixes:
    """What comes before an input, for each task."""

    label: str
    rationale: str

    @property
    def of_columns(self) -> dict[str, str]:
        """Column of inputs in the token store -> its prefix."""
        return {"label_inputs": self.label, "rationale_inputs": self.rationale}


PREFIXES = {
    "paper": Prefixes(label="[label] ", rationale="[rationale] "),
    "released_code": Prefixes(label="predict: ", rationale="explain: "),
}
"""Style -> prefixes. PERFORMANCE.md's token lengths were measured with `released_code`."""


def prefixes(style: str) -> Prefixes:
    """The prefixes of a style; `UsageError` if there is none of that name."""
    if style not in PREFIXES:
        raise unknown_name("prefix style", style, PREFIXES)
    return PREFIXES[style]
