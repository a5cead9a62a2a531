"""Tries of labels: what labels begin with alike is decoded once. NumPy only.

The nodes of a trie are the beginnings of its labels, the empty one first; a node's token is the
last of the beginning, and an edge goes from a node to the token that comes next, end-of-sequence
too. A label's log-probability is the sum over its edges.

Shape letters: B rows of a batch, M nodes, N edges.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dss_jax.core.ids import EOS_ID, PAD_ID

Ids = Sequence[int]


class TrieArrays(NamedTuple):
    """The tries of some rows, as the decoder takes them: NumPy or JAX arrays.

    Attributes:
      tokens_BxM: int32, the decoder's inputs; 0 at the first node, and where there is none.
      positions_BxM: int32, tokens before the node.
      sees_BxMxM: bool, whether a node, axis 1, goes on from another, or is it.
      nodes_BxN, next_BxN: int32, of each edge: the node that it begins at, and its token.
    """

    tokens_BxM: Any
    positions_BxM: Any
    sees_BxMxM: Any
    nodes_BxN: Any
    next_BxN: Any


@dataclass
class Trie:
    """The trie of some labels; made by `trie_of`.

    Attributes:
      tokens, parents: of each node; the first, what the decoder begins with, is its own parent.
      edges: (node, next token), each once.
      paths: of each label, the numbers of its edges.
    """

    tokens: list[int] = field(default_factory=lambda: [PAD_ID])
    parents: list[int] = field(default_factory=lambda: [0])
    edges: dict[tuple[int, int], int] = field(default_factory=dict)
    paths: list[list[int]] = field(default_factory=list)
    eos_id: int = EOS_ID

    def add(self, label: Ids) -> None:
        """Adds a label, ids without end-of-sequence."""
        node, path = 0, []
        for token in (*label, self.eos_id):
            edge = (node, int(token))
            number = self.edges.setdefault(edge, len(self.edges))
            path.append(number)
            if token != self.eos_id:
                node = self._children.setdefault(edge, len(self.tokens))
                if node == len(self.tokens):
                    self.tokens.append(int(token))
                    self.parents.append(edge[0])
        self.paths.append(path)

    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def scores(self, log_probs_N: np.ndarray) -> np.ndarray:
        """Log-probabilities of edges, float32 [N] -> those of the labels, float32 [labels]."""
        return np.array([log_probs_N[path].sum() for path in self.paths], np.float32)


def trie_of(labels: Sequence[Ids], start_id: int = PAD_ID, eos_id: int = EOS_ID) -> Trie:
    """The trie of some labels, ids without end-of-sequence."""
    trie = Trie(tokens=[start_id], eos_id=eos_id)
    for label in labels:
        trie.add(label)
    return trie


def stacked(tries: Sequence[Trie], nodes: int, edges: int) -> TrieArrays:
    """Tries of a batch side by side, filled up to so many nodes and edges."""
    tokens, positions = np.zeros((2, len(tries), nodes), np.int32)
    at, following = np.zeros((2, len(tries), edges), np.int32)
    # Also where there is no node, so that no query is without a key.
    sees = np.repeat(np.eye(nodes, dtype=bool)[None], len(tries), axis=0)
    arrays = TrieArrays(tokens, positions, sees, at, following)
    first: dict[int, int] = {}
    for row, trie in enumerate(tries):
        if (like := first.setdefault(id(trie), row)) != row:
            for array in arrays:
                array[row] = array[like]
            continue
        tokens[row, : len(trie.tokens)] = trie.tokens
        # A parent comes before its children.
        for node, parent in enumerate(trie.parents[1:], 1):
            sees[row, node] |= sees[row, parent]
            positions[row, node] = positions[row, parent] + 1
        own = np.array([*trie.edges], np.int32)
        at[row, : len(own)], following[row, : len(own)] = own.T
    return arrays
