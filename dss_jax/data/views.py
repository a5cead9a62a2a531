"""A method's view of a split of a store: which columns are its inputs and targets."""

from dataclasses import replace

import numpy as np

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import LABEL, RATIONALE
from dss_jax.data.columns import Examples, only
from dss_jax.data.ragged import Slices
from dss_jax.data.store import SAMPLES, StoreSplit


def examples_of(
    split: StoreSplit, data: config.Data, method: config.Method, right: np.ndarray | None = None
) -> Examples:
    """The examples of a split.

    `right`: bool [n], rows where the teacher's label is not known to be wrong; only these have
    their rationale, and their teacher's label. None: all rows.
    """
    gold = method.label == "gold"
    labels: Slices = split.tokens("label_targets" if gold else "teacher_label_targets")
    inputs: Slices = split.tokens("label_inputs")
    if right is not None and not gold:
        labels = only(labels, right)
    if not method.uses_rationales:
        return Examples({LABEL: (inputs, labels)}, data, len(split))
    every, draws = np.arange(len(split)), None
    rationales: Slices = split.tokens("rationale_targets")
    if method.rationales == "drawn":
        if not split.has(SAMPLES):
            raise UsageError(
                f'Method.rationales = "drawn" needs several rationales of a row, but '
                f"{split.name} has at most one of each. Extract with --samples, and give the "
                "records with --rationales."
            )
        from dss_jax.data.joint import drawn

        rationales, draws = drawn(split)
        every = np.tile(every, len(rationales) // len(split))
    labels, inputs = labels.take(every), inputs.take(every)
    if right is not None:
        rationales = only(rationales, right[every])
    if method.control != "none":
        from dss_jax.data.controls import controlled

        begin = len(split.encode(""))
        rationales = controlled(method, data.seed, inputs, labels, rationales, begin)
    columns = {LABEL: (inputs, labels)}
    if method.rationale:
        columns[RATIONALE] = split.tokens("rationale_inputs").take(every), rationales
    else:
        from dss_jax.data.joint import joint_pair

        columns[LABEL] = joint_pair(split, method.form, inputs, labels, rationales)
    return Examples(columns, data, len(split), draws)


def as_scored(method: config.Method) -> config.Method:
    """The method with the gold label and every row: by it a student is judged."""
    return replace(method, label="gold", only_correct=False, rationales="first")
