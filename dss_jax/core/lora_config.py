"""The settings of LoRA. Standard library only."""

from dataclasses import dataclass

from dss_jax.core.checks import among, at_least, between
from dss_jax.core.errors import UsageError

LORA_TARGETS = ("query", "key", "value", "out", "wi", "wi_0", "wi_1", "wo")
"""Linear maps of a T5 layer: attention, and feed-forward (wi: v1.0; wi_0, wi_1: v1.1)."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): only `A B` of `W + A B` is trained.

    The paper's alpha is the rank, so that the scale alpha / rank is 1: the learning rate does its
    work.

    Attributes:
      rank: of A B; 0 is off: all parameters are trained.
      targets: names of the linear maps that get an A B, in every layer of both stacks and, for
        attention, in cross-attention too.
      learning_rate: peak; takes the place of Optimizer.learning_rate.
    """

    rank: int = 0
    targets: tuple[str, ...] = ("query", "value")
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        at_least("Lora.rank", self.rank, 0)
        if not isinstance(self.targets, tuple | list) or not self.targets:
            raise UsageError(
                "Lora.targets must be a list of names such as ('query', 'value'), not "
                f"{self.targets!r}. Known: {', '.join(LORA_TARGETS)}."
            )
        for target in self.targets:
            among("name in Lora.targets", target, LORA_TARGETS)
        between("Lora.learning_rate", self.learning_rate, 0, 10)
