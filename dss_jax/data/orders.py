"""Orders that depend on their key alone. NumPy only."""

import numpy as np


def permutation(n: int, *key: int) -> np.ndarray:
    """A permutation of 0 ... n-1 that depends on the key alone.

    Sorts a Philox stream (Salmon et al. 2011). NumPy guarantees that raw stream for all time,
    which it does not for `Generator.permutation`; so a run can be repeated years later.

    Args:
      n: number of items.
      *key: one or two non-negative integers, for example (seed, epoch).

    Returns:
      int64 [n].
    """
    words = np.zeros(2, np.uint64)
    words[: len(key)] = key
    return np.argsort(np.random.Philox(key=words).random_raw(n), kind="stable")
