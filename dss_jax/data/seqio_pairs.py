"""Pairs for T5X: the converter that makes two rows of an example that holds both roles. Imports
TensorFlow.

A batch of R rows then holds R / 2 examples, each in both roles. A mixture of the two tasks with a
token-summed loss would be something else (METHOD.md, Traps).
"""

from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf

from dss_jax.core.errors import UsageError
from dss_jax.core.ids import LABEL, RATIONALE
from dss_jax.data.seqio_tasks import FIRST, PAIRED, SECOND

ROLE, WEIGHT = "role", "weight"


class PairedFeatureConverter(seqio.EncDecFeatureConverter):
    """`seqio.EncDecFeatureConverter` with the weights of the method's loss.

    An example of a paired task becomes two rows, one after the other: label, then rationale. Real
    target tokens have `decoder_loss_weights` alpha or 1 - alpha, and `decoder_roles` 1 or 2;
    padding has 0. Rows of any other task have weight 1 and role 1, so that their loss is the mean
    over their tokens; it may be packed.

    Attributes of a row: those of EncDecFeatureConverter, and
      decoder_loss_weights: float32 [T].
      decoder_roles: int32 [T].
    """

    MODEL_FEATURES = {
        **seqio.EncDecFeatureConverter.MODEL_FEATURES,
        "decoder_loss_weights": seqio.FeatureConverter.FeatureSpec(dtype=tf.float32),
        "decoder_roles": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
    }

    def __init__(self, *, alpha: float = 0.5, **options: Any) -> None:
        """Takes `alpha`, the weight of the label task in [0, 1], beside SeqIO's arguments."""
        if not 0 <= alpha <= 1:
            raise UsageError(f"PairedFeatureConverter.alpha must be between 0 and 1, not {alpha}.")
        self._alpha = alpha
        super().__init__(**options)

    def __call__(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        """Rows of model features; see the class."""
        if SECOND[0] in ds.element_spec:
            if self.pack:
                raise UsageError(
                    "pairs cannot be packed: a label and its rationale would fall into different "
                    "steps. Set train/utils.DatasetConfig.pack = False."
                )
            ds = ds.flat_map(self._rows_of_pair)
            task_feature_lengths = {n: task_feature_lengths[n] for n in FIRST}
        return super().__call__(ds, task_feature_lengths)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        """As SeqIO's, with `decoder_roles`."""
        lengths = super().get_model_feature_lengths(task_feature_lengths)
        return {**lengths, "decoder_roles": task_feature_lengths["targets"]}

    def _rows_of_pair(self, pair: dict[str, tf.Tensor]) -> tf.data.Dataset:
        def row(names: tuple[str, str], role: int, weight: float) -> tf.data.Dataset:
            fields = {"inputs": pair[names[0]], "targets": pair[names[1]]}
            fields |= {ROLE: tf.constant(role), WEIGHT: tf.constant(weight, tf.float32)}
            return tf.data.Dataset.from_tensors(fields)

        second = row(SECOND, RATIONALE, 1 - self._alpha)
        return row(FIRST, LABEL, self._alpha).concatenate(second)

    def _convert_example(self, features: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        row = dict(super()._convert_example(features))
        real = tf.not_equal(row["decoder_target_tokens"], 0)
        role, weight = features.get(ROLE, LABEL), features.get(WEIGHT, 1.0)
        row["decoder_roles"] = tf.cast(real, tf.int32) * role
        row["decoder_loss_weights"] = tf.cast(real, tf.float32) * weight
        return row


def paired(mixture_or_task_name: str) -> str:
    """The task to train on for a name that gin files are given.

    "cqa" and "cqa_unlabeled", which are mixtures, have their pairs; any other task is its own.
    """
    name = mixture_or_task_name + PAIRED
    return name if name in seqio.TaskRegistry.names() else mixture_or_task_name


def task_vocabulary(mixture_or_task_name: str) -> seqio.Vocabulary:
    """The vocabulary of a task or mixture, which the model's must be."""
    provider = seqio.get_mixture_or_task(mixture_or_task_name)
    return provider.output_features["targets"].vocabulary
