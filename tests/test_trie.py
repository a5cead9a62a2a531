"""Tries of labels: what is shared, what sees what, and sums along labels."""

import numpy as np

from dss_jax.evaluate.trie import stacked, trie_of


def test_labels_share_what_they_begin_with() -> None:
    trie = trie_of([[5, 6], [5, 7], [5], [8], [5, 6]])
    # The empty beginning, 5, 5 6, 5 7, 8.
    assert trie.tokens == [0, 5, 6, 7, 8]
    assert trie.parents == [0, 0, 1, 1, 0]
    assert len(trie.edges) == 8, "four tokens, and an end for each of four labels"
    assert trie.paths[0] == trie.paths[4]
    log_probs = np.arange(8, dtype=np.float32)
    by_edge = {edge: log_probs[n] for edge, n in trie.edges.items()}
    expected = [
        by_edge[0, 5] + by_edge[1, 6] + by_edge[2, 1],
        by_edge[0, 5] + by_edge[1, 7] + by_edge[3, 1],
        by_edge[0, 5] + by_edge[1, 1],
        by_edge[0, 8] + by_edge[4, 1],
    ]
    np.testing.assert_array_equal(trie.scores(log_probs)[:4], expected)


def test_a_node_sees_what_it_goes_on_from() -> None:
    long, short = trie_of([[5, 6], [5, 7], [8]]), trie_of([[9]])
    arrays = stacked([long, short], 8, 8)
    seen = [set(np.flatnonzero(row)) for row in arrays.sees_BxMxM[0]]
    assert seen[:5] == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 3}, {0, 4}]
    assert seen[5:] == [{5}, {6}, {7}], "where there is no node, itself"
    assert arrays.positions_BxM[0, :5].tolist() == [0, 1, 2, 2, 1]
    assert arrays.tokens_BxM[1].tolist() == [0, 9, 0, 0, 0, 0, 0, 0]
    assert [*zip(arrays.nodes_BxN[1], arrays.next_BxN[1], strict=True)][:2] == [(0, 9), (1, 1)]


def test_rows_with_one_trie_have_the_same_arrays() -> None:
    one, other = trie_of([[5, 6], [5, 7]]), trie_of([[8], [9]])
    arrays = stacked([one, other, one, other], 4, 16)
    alone = stacked([one], 4, 16)
    for array, expected in zip(arrays, alone, strict=True):
        np.testing.assert_array_equal(array[2], expected[0])
        np.testing.assert_array_equal(array[1], array[3])
