"""Tries of labels: what is shared, what sees what, sums along labels, and rows in few shapes."""

import numpy as np
import pytest

from dss_jax.core.config import T5Config
from dss_jax.evaluate.ranking import LOGITS_BYTES, fitting_rows, rank_batches
from dss_jax.evaluate.trie import trie_of, trie_stream


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
    arrays = trie_stream([long, None, short], 8, 8)
    seen = [set(np.flatnonzero(row)) for row in arrays.sees_RxMxM[0]]
    assert seen[:5] == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 3}, {0, 4}]
    assert seen[5:] == [{5}, {6}, {7}], "where there is no node, itself"
    assert arrays.positions_RxM[0, :5].tolist() == [0, 1, 2, 2, 1]
    assert arrays.tokens_Q.tolist() == [0, 5, 6, 7, 8, 0, 9, 0]
    assert arrays.rows.take[2].tolist() == [5, 6, *[7] * 6], "row 1 has none"
    edges = [*zip(arrays.nodes_N.tolist(), arrays.next_N.tolist(), strict=True)]
    assert edges[: len(long.edges)] == [*long.edges]
    assert edges[len(long.edges) :][:2] == [(5, 9), (6, 1)], "after the nodes of the first row"


def test_rows_with_one_trie_have_the_same_arrays() -> None:
    one, other = trie_of([[5, 6], [5, 7]]), trie_of([[8], [9]])
    arrays, alone = trie_stream([one, other, one, other], 16, 8), trie_stream([one], 5, 8)
    for array, expected in zip(arrays[2:4], alone[2:4], strict=True):
        np.testing.assert_array_equal(array[2], expected[0])
        np.testing.assert_array_equal(array[1], array[3])
    assert arrays.tokens_Q.tolist() == [0, 5, 6, 7, 0, 8, 9, 0, 5, 6, 7, 0, 8, 9, 0, 0]


@pytest.mark.parametrize(("count", "most", "streams"), [(700, 64, 1), (700, 64, 4), (5, 64, 2)])
def test_all_rows_are_in_batches_of_few_shapes_with_little_padding(
    count: int, most: int, streams: int
) -> None:
    rng = np.random.default_rng(0)
    lengths, nodes = rng.integers(30, 100, count), rng.integers(5, 25, count)
    batches = [*rank_batches(lengths, nodes, most, streams)]
    places = np.concatenate([batch.ravel() for batch, _ in batches])
    assert sorted(places[places >= 0]) == [*range(count)]
    for batch, shape in batches:
        assert batch.shape == (streams, shape.rows)
        for stream in batch:
            own = stream[stream >= 0]
            assert lengths[own].sum() < shape.tokens
            assert lengths[own].max(initial=0) < shape.length
            assert nodes[own].sum() < shape.nodes
            assert nodes[own].max(initial=0) < shape.nodes_of_row
    assert len({shape for _, shape in batches}) <= 2
    if count > most:
        assert streams * sum(shape.tokens for _, shape in batches) < 1.1 * lengths.sum()
        assert streams * sum(shape.nodes for _, shape in batches) < 1.1 * nodes.sum()


def test_one_large_trie_leaves_room_for_few_others() -> None:
    model, nodes = T5Config(vocab_size=32_128, num_heads=12), np.full(64, 20)
    assert fitting_rows(model, nodes) > 64
    nodes[3] = 1024
    assert fitting_rows(model, nodes) * 4 * 12 * 1024**2 <= LOGITS_BYTES
    assert fitting_rows(model, np.full(64, 10**6)) == 1


def test_no_rows_are_no_batches() -> None:
    assert [*rank_batches(np.zeros(0, int), np.zeros(0, int), 64, 1)] == []
