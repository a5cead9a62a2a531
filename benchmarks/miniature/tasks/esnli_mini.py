"""e-SNLI in miniature: the rows of the validation split, cut into three by premise.

`benchmarks/miniature/make_esnli.py` writes the files. Rationales and labels are PaLM 540B's, as
the authors released them.
"""

from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Jsonl, plain_example

TASK = DistillationTask(
    name="esnli_mini",
    description="e-SNLI's 9,842 validation rows, cut into train, validation and test by premise.",
    licence="MIT",
    sources=(
        Jsonl(
            files={"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}
        ),
    ),
    to_example=plain_example,
    scorer=TEXT_ACCURACY,
    labels=("contradiction", "entailment", "neutral"),
)
