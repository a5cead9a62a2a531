"""The texts before an input that tell the two tasks apart. Standard library only."""

from typing import NamedTuple

from dss_jax.core.checks import among


class Prefixes(NamedTuple):
    """What comes before an input, for each task."""

    label: str
    rationale: str

    @property
    def of_columns(self) -> dict[str, str]:
        """Column of inputs in the token store -> its prefix."""
        return {"label_inputs": self.label, "rationale_inputs": self.rationale}


PREFIXES = {
    "paper": Prefixes("[label] ", "[rationale] "),
    "released_code": Prefixes("predict: ", "explain: "),
}
"""Style -> prefixes. PERFORMANCE.md's token lengths were measured with `released_code`."""


def prefixes(style: str) -> Prefixes:
    """The prefixes of a style; `UsageError` if there is none of that name."""
    among("prefix style", style, PREFIXES)
    return PREFIXES[style]
