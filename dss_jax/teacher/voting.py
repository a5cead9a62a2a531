"""The samples of a row become one record: self-consistency (Wang et al., 2023)."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from dss_jax.core.types import Example
from dss_jax.teacher.records import Record, Sample


def record_of(
    example: Example, samples: Sequence[Sample], same: Callable[[str, str], bool] = str.__eq__
) -> Record:
    """The label that most "ok" samples have; of equals, the one that came first.

    Args:
      example: the row.
      samples: at least one, in the order of their index.
      same: whether two labels are one: a task's `scorer.correct`, so that "(3 + 4)" and "(4 + 3)"
        are one vote. The first form that came is kept.
    """
    ballots: list[tuple[str, int]] = []
    for sample in samples:
        if sample.status == "ok":
            at = next((i for i, (label, _) in enumerate(ballots) if same(label, sample.label)), -1)
            if at < 0:
                ballots.append((sample.label, 1))
            else:
                ballots[at] = (ballots[at][0], ballots[at][1] + 1)
    label, votes = max(ballots, key=lambda ballot: ballot[1], default=("", 0))
    spelled = [
        replace(s, label=label) if s.status == "ok" and same(label, s.label) else s for s in samples
    ]
    return Record(
        id=example.id,
        input=example.input,
        gold=example.label,
        teacher_label=label,
        agreement=votes / len(samples),
        status="ok" if votes else samples[0].status,
        samples=tuple(spelled),
    )
