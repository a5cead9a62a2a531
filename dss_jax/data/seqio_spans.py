"""The SeqIO task `<name>_pretrain`: span corruption of a task's texts. Imports TensorFlow.

The arithmetic is that of `dss_jax.data.spans`, called from the pipeline, so that T5X and our own
trainer pre-train on the same task. A piece's masks come from SeqIO's seeds here.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from dss_jax.core import config
from dss_jax.core.types import Example
from dss_jax.data.columns import permutation
from dss_jax.data.spans import ORDER, corrupt, longest_piece
from dss_jax.data.vocabulary import SEPARATOR

SUFFIX = "pretrain"


def register(
    name: str,
    vocabulary: seqio.SentencePieceVocabulary,
    read: Callable[[str], list[Example]],
    splits: Sequence[str],
) -> None:
    """Registers `<name>_pretrain`; it is trained with `sequence_length` of inputs and targets.

    The vocabulary has extra ids for the sentinels; `read` gives a split's rows.
    """

    def dataset_fn(
        split: str, shuffle_files: bool = False, seed: int | None = None
    ) -> tf.data.Dataset:
        found = [t for e in read(split) for t in (*e.input.split(SEPARATOR), e.rationale) if t]
        texts = [found[i] for i in permutation(len(found), ORDER)]
        dataset = tf.data.Dataset.from_tensor_slices({"targets": texts})
        return dataset.shuffle(max(1, len(texts)), seed=seed) if shuffle_files else dataset

    features = {n: seqio.Feature(vocabulary, add_eos=True) for n in ("inputs", "targets")}
    seqio.TaskRegistry.add(
        f"{name}_{SUFFIX}",
        source=seqio.FunctionDataSource(dataset_fn=dataset_fn, splits=splits),
        preprocessors=[_tokens, _pieces, _corrupted],
        output_features=features,
    )


def _tokens(
    dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    vocabulary = output_features["targets"].vocabulary
    return dataset.map(lambda e: vocabulary.encode_tf(e["targets"]))


def _counts(
    sequence_length: Mapping[str, int] | None, features: Mapping[str, seqio.Feature]
) -> tuple:
    lengths = sequence_length or {"inputs": 512, "targets": 114}
    data = config.Data(input_length=lengths["inputs"], target_length=lengths["targets"])
    vocabulary = features["targets"].vocabulary
    counts = longest_piece(data, config.Pretrain(), vocabulary.extra_ids)
    return counts, vocabulary.vocab_size - 1


def _pieces(
    dataset: tf.data.Dataset,
    output_features: Mapping[str, seqio.Feature],
    sequence_length: Mapping[str, int] | None = None,
) -> tf.data.Dataset:
    """All texts one after another, cut into pieces; the end that fills none is left out."""
    counts, _ = _counts(sequence_length, output_features)
    return dataset.unbatch().batch(counts.length, drop_remainder=True)


def _corrupted(
    dataset: tf.data.Dataset,
    output_features: Mapping[str, seqio.Feature],
    sequence_length: Mapping[str, int] | None = None,
) -> tf.data.Dataset:
    counts, first_sentinel = _counts(sequence_length, output_features)

    def one(piece: np.ndarray, seed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        words = np.random.Philox(key=seed.astype(np.uint64)).random_raw(counts.length)
        return corrupt(piece, counts, first_sentinel, words)

    @seqio.map_over_dataset(num_seeds=1)
    def corrupted(piece: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs, targets = tf.numpy_function(one, [piece, seed], [tf.int32, tf.int32])
        return {
            "inputs": tf.ensure_shape(inputs, [counts.input_length]),
            "targets": tf.ensure_shape(targets, [counts.target_length]),
        }

    return corrupted(dataset)
