"""The plan of `dss ask`: which runs fit a budget of minutes, and how much of the level of error
each look at the results may spend.

A round is one seed: all runs of the design with it. The cost of a run is what runs of its method
have taken here.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

BASELINE, METHOD = "standard", "dss"
SHUFFLED, OTHER = "control_shuffled", "control_other"

MIN_ROUNDS = 4
"""Rounds that a design should get, and before the first look where the budget has so many: the
variance of fewer seeds is hardly known.
"""

FIRST_PLAN = 0.8
"""Share of the level of error that the first budget of an experiment may spend. A second one has
the same share of what is left, and so on.
"""


class Part(NamedTuple):
    """A method and the share of the training data that it gets."""

    method: str
    fraction: float


Design = tuple[Part, ...]


def designs(fractions: Sequence[float]) -> list[Design]:
    """Designs from the largest: the curves of both methods and two controls on all of the data;
    then without the smallest fractions; then without the controls. The last one is in all others.
    """
    shares = sorted(fractions)
    most = shares[-1]
    whole = (Part(BASELINE, most), Part(METHOD, most))
    controls = (Part(SHUFFLED, most), Part(OTHER, most))
    made = []
    for i in range(len(shares)):
        curve = (Part(m, f) for f in reversed(shares[i:-1]) for m in (BASELINE, METHOD))
        made.append((*whole, *controls, *curve))
    return [*made, whole]


def choose(
    options: Sequence[Design], minutes: Callable[[Design, int], float], rounds: int, left: float
) -> Design:
    """The first design of which so many rounds, and at least `MIN_ROUNDS`, fit into the minutes
    that are left; else the last.

    Args:
      minutes: (design, rounds) -> what is left of these takes.
    """
    most = max(rounds, MIN_ROUNDS)
    return next((d for d in options if minutes(d, most) <= left), options[-1])


def spent(level: float, plan: int, share: float) -> float:
    """How much of a level of error may be spent up to a look: that of all looks before it, too.

    It is level * share^2 of a plan's part (Kim and DeMets 1987), after a share of the plan's
    minutes (Lan and DeMets 1989: calendar time), which do not depend on the results. A look spends
    what the ones before it have left of that, and tests at that level by itself: by the union
    bound all intervals of all looks hold together, whatever their dependence.

    Args:
      level: of all looks of all plans: 0.05.
      plan: how many budgets were used up before.
      share: of the plan's minutes, in [0, 1].
    """
    rest = (1 - FIRST_PLAN) ** plan
    return level * (1 - rest + FIRST_PLAN * rest * min(1.0, share) ** 2)
