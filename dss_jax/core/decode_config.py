"""How outputs are decoded. Standard library only."""

from dataclasses import dataclass

from dss_jax.core.checks import Section, setting
from dss_jax.core.errors import UsageError

DECODE_METHODS = ("greedy", "beam", "sample", "rank")


@dataclass(frozen=True, kw_only=True)
class Beam(Section):
    """Beam search.

    Attributes:
      num_beams: beginnings that are kept, and sequences that come out.
      rule: "hf", as Hugging Face's `generate`: a score is log-probability /
        length^length_penalty; at the longest length all beams count as ended. "t5x", as T5X:
        log-probability / ((5 + length) / 6)^length_penalty (Wu et al. 2016, arXiv 1609.08144);
        beams that have not ended count only where none has.
      length_penalty: above 0 favours long sequences (Hugging Face's default 1.0, T5X's 0.6).
      early_stopping: of rule "hf". True: stop when `num_beams` sequences have ended. False: when
        the best live beam, at its present length, is no better than the worst of them. "never":
        the same, at the longest length where that is better.
      min_decode_length: tokens before the end is allowed.
    """

    num_beams: int = setting(4, low=1)
    rule: str = setting("hf", among=("hf", "t5x"))
    length_penalty: float = setting(1.0, low=-100, high=100)
    early_stopping: bool | str = False
    min_decode_length: int = setting(0, low=0)

    def check(self) -> None:
        if self.early_stopping not in (True, False, "never"):
            raise UsageError(
                f'Beam.early_stopping must be True, False or "never", not {self.early_stopping!r}.'
            )


@dataclass(frozen=True, kw_only=True)
class Sample(Section):
    """Sampling. Temperature, top-k and top-p apply in this order, as in Hugging Face's `generate`.

    Attributes:
      num_samples: sequences an input.
      temperature: the logits are divided by it; 0 takes the most likely token.
      top_k: only the k most likely tokens are drawn from; 0: all.
      top_p: only the most likely tokens that together have this probability; 1: all
        (Holtzman et al. 2020, arXiv 1904.09751).
      min_decode_length: tokens before the end is allowed.
      seed: of the draws. A sequence depends on it, on its input's number and on its own number
        alone, so it is the same in whatever batch it is decoded.
    """

    num_samples: int = setting(1, low=1)
    temperature: float = setting(1.0, low=0, high=1000)
    top_k: int = setting(0, low=0)
    top_p: float = setting(1.0, low=0, high=1)
    min_decode_length: int = setting(0, low=0)
    seed: int = setting(0, low=0)


GREEDY = Sample(temperature=0.0)
"""The most likely token at each position."""
