"""Tries of labels: what labels begin with alike is decoded once. NumPy only.

The nodes of a trie are the beginnings of its labels, the empty one first; a node's token is the
last of the beginning, and an edge goes from a node to the token that comes next, end-of-sequence
too. A label's log-probability is the sum over its edges.

Shape letters: R rows of a stream, Q nodes of a stream, M nodes of a row, N edges of a stream; a
batch has G streams, and B = G * R rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dss_jax.core.ids import EOS_ID, PAD_ID
from dss_jax.layouts.blocks import StreamRows
from dss_jax.layouts.flat import stream_rows

Ids = Sequence[int]


class TrieArrays(NamedTuple):
    """The tries of a stream's rows, one after another, as the decoder takes them: NumPy arrays. Of
    a batch they have an axis of streams before; but positions and `sees` have B for R.

    Attributes:
      tokens_Q: int32, the decoder's inputs; its start at the first node of a row, 0 where none is.
      rows: where the nodes lie in the rows of attention.
      positions_RxM: int32, tokens before the node.
      sees_RxMxM: bool, whether a node, axis 1, goes on from another, or is it.
      nodes_N, next_N: int32, of each edge: the node that it begins at, and its token.
    """

    tokens_Q: Any
    rows: StreamRows
    positions_RxM: Any
    sees_RxMxM: Any
    nodes_N: Any
    next_N: Any


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


def trie_stream(tries: Sequence[Trie | None], nodes: int, length: int) -> TrieArrays:
    """The tries of a stream's rows, None for a row without, filled up to Q `nodes`, of M = `length`
    a row. There are fewer edges than twice the nodes.
    """
    counts = np.array([len(trie.tokens) if trie else 0 for trie in tries])
    tokens, positions = np.zeros(nodes, np.int32), np.zeros((len(tries), length), np.int32)
    at, following = np.zeros((2, 2 * nodes), np.int32)
    # Also where there is no node, so that no query is without a key.
    sees = np.repeat(np.eye(length, dtype=bool)[None], len(tries), axis=0)
    first = edges = 0
    like: dict[int, int] = {}
    for row, trie in enumerate(tries):
        if trie is None:
            continue
        tokens[first : first + counts[row]] = trie.tokens
        own = np.array([*trie.edges], np.int32)
        at[edges : edges + len(own)] = first + own[:, 0]
        following[edges : edges + len(own)] = own[:, 1]
        first, edges = first + counts[row], edges + len(own)
        if (same := like.setdefault(id(trie), row)) != row:
            sees[row], positions[row] = sees[same], positions[same]
            continue
        # A parent comes before its children.
        for node, parent in enumerate(trie.parents[1:], 1):
            sees[row, node] |= sees[row, parent]
            positions[row, node] = positions[row, parent] + 1
    rows = stream_rows(counts, nodes, length)
    return TrieArrays(tokens, rows, positions, sees, at, following)
