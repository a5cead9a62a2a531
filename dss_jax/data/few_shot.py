"""Rows of the training split in front of an input, as exemplars (`Method.exemplars`). NumPy only.

An exemplar is the input and the gold label of a row, each with its end-of-sequence. Which ones, and
in which order, is a function of the seed and the number of the row that is asked about.

Shape letters: n rows of a split, K exemplars.
"""

import logging

import numpy as np

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.data.beside import side_by_side
from dss_jax.data.columns import only, permutation
from dss_jax.data.controls import DRAW
from dss_jax.data.store import StoreSplit, TokenStore

log = logging.getLogger(__name__)


class FewShotSplit(StoreSplit):
    """A split whose `label_inputs` have exemplars in front of them, as many of those that are drawn
    as `Data.input_length` has room for.

    Attributes:
      counts: how many: int64 [n].
    """

    def __init__(self, split: StoreSplit, train: StoreSplit, run: config.Run) -> None:
        self.__dict__ |= split.__dict__
        own = split.tokens("label_inputs")
        columns = train.tokens("label_inputs"), train.tokens("label_targets")
        rows_nxK = _drawn(np.flatnonzero(columns[1].lengths()), len(own), run)
        taken_nxK = np.cumsum(sum(c.lengths()[rows_nxK] for c in columns), axis=1)
        fits_nxK = taken_nxK <= run.data.input_length - own.lengths()[:, None]
        self.counts = fits_nxK.sum(axis=1)
        pairs = zip(rows_nxK.T, fits_nxK.T, strict=True)
        parts = [only(c.take(rows), fits) for rows, fits in pairs for c in columns]
        self._columns = self._columns | {"label_inputs": side_by_side([*parts, own])}


def _drawn(labelled: np.ndarray, n: int, run: config.Run) -> np.ndarray:
    """The exemplars of n rows, each once in a row: int64 [n, K]; K is at most as many as have a
    label.
    """
    count = min(run.method.exemplars, len(labelled))
    key = run.data.seed + DRAW
    order = labelled[permutation(len(labelled), key)]
    # Each row's are neighbours in one order of all.
    first = np.random.Philox(key=np.array([key, 1], np.uint64)).random_raw(n)
    first = (first % max(1, len(labelled))).astype(np.int64)
    return order[(first[:, None] + np.arange(count)) % max(1, len(labelled))]


class FewShotStore(TokenStore):
    """A store whose rows, but for those of the training split, have exemplars in front of them.

    Attributes:
      mean: how many, over all rows.
    """

    def __init__(self, store: TokenStore, run: config.Run) -> None:
        self.__dict__ |= store.__dict__
        train = store.split("train")
        made = {s: FewShotSplit(store.split(s), train, run) for s in store.splits if s != "train"}
        self._splits = {"train": train, **made}
        counts = np.concatenate([np.zeros(0, int), *(split.counts for split in made.values())])
        self.mean = float(counts.mean()) if len(counts) else 0.0


def few_shot(store: TokenStore, run: config.Run) -> FewShotStore:
    """The store of a run with exemplars; says how many fit. Raises UsageError: none does, or
    no row has a label.
    """
    made, limit = FewShotStore(store, run), run.data.input_length
    if not made.mean and not store.split("train").tokens("label_targets").lengths().any():
        raise UsageError(f"--method {run.method.name}: no training row has a gold label to show.")
    if not made.mean:
        raise UsageError(
            f"--method {run.method.name}: no training row with its label fits into "
            f"Data.input_length ({limit}) in front of an input. Give a larger one, or --method "
            "undistilled, which is asked without exemplars."
        )
    log.info("%.1f exemplars in front of an input, of %d", made.mean, run.method.exemplars)
    return made
