"""The configuration of the loop. Standard library only."""

from dataclasses import dataclass

from dss_jax.core.checks import among, at_least, free
from dss_jax.core.types import ENGINES


@dataclass(frozen=True, kw_only=True)
class Train:
    """The loop.

    Attributes:
      steps: optimiser updates.
      seed: of the parameters and of dropout.
      microbatches: the batch is split into this many parts whose gradients are added up; the
        result is that of the whole batch.
      checkpoint_every: optimiser updates between checkpoints; None: at each evaluation.
      keep_checkpoints: how many of the latest are kept, beside the best on validation.
      max_bad_steps: batches in a row whose loss or gradient is not finite; each is skipped, and
        after so many the run stops.
      log_every: optimiser updates between lines of `metrics.jsonl`.
      output_dir: where everything that the run makes goes.
      init_from: checkpoint whose parameters the run starts from: a Hugging Face folder, an Orbax
        model folder or run folder, or a T5X checkpoint; None: random parameters.
      engine: what runs the loop: "jax", this package, or "t5x", T5X's own `train`.
    """

    steps: int = 10_000
    seed: int = 0
    microbatches: int = 1
    checkpoint_every: int | None = free(None)
    keep_checkpoints: int = free(1)
    max_bad_steps: int = free(3)
    log_every: int = free(10)
    output_dir: str | None = free(None)
    init_from: str | None = None
    engine: str = "jax"

    def __post_init__(self) -> None:
        among("Train.engine", self.engine, ENGINES)
        at_least("Train.steps", self.steps, 1)
        at_least("Train.seed", self.seed, 0)
        at_least("Train.microbatches", self.microbatches, 1)
        at_least("Train.keep_checkpoints", self.keep_checkpoints, 1)
        at_least("Train.max_bad_steps", self.max_bad_steps, 1)
        at_least("Train.log_every", self.log_every, 1)
        if self.checkpoint_every is not None:
            at_least("Train.checkpoint_every", self.checkpoint_every, 1)
