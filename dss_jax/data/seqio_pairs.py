"""Pairs for T5X: SeqIO tasks whose examples hold both roles, and the converter that makes two rows
of each. Imports TensorFlow.

For a task "cqa" `register` adds

    cqa_paired              [label] x -> gold label, and [rationale] x -> the teacher's rationale
    cqa_unlabeled_paired    [label] x -> the teacher's label, and the same rationale

A batch of R rows then holds R / 2 examples, each in both roles. A mixture of the two tasks with a
token-summed loss would be something else (METHOD.md, Traps).
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf

from dss_jax.core.errors import UsageError
from dss_jax.core.ids import LABEL, RATIONALE
from dss_jax.core.prefixes import prefixes as prefixes_of
from dss_jax.core.types import DistillationTask
from dss_jax.data.seqio_tasks import KINDS, ROW, Text, encode_input, forget, reader, source

PAIRED = "_paired"
_LABELS = {"": "label", "_unlabeled": "teacher_label"}
"""Suffix of the mixture -> the one of `KINDS` that has its label."""

_FIRST, _SECOND = ("inputs", "targets"), ("rationale_inputs", "rationale_targets")
ROLE, WEIGHT = "role", "weight"


def register(
    task: DistillationTask,
    *,
    vocabulary_path: str | Path,
    extra_ids: int = 100,
    data_dir: str | Path | None = None,
    prefixes: str = "paper",
    rationales: Sequence[str | Path] = (),
) -> None:
    """Registers the paired SeqIO tasks of a task; arguments as of `seqio_tasks.register`.

    Rows without the label are left out. A row without a rationale stays, with empty rationale
    targets, which weigh nothing.
    """
    vocabulary = seqio.SentencePieceVocabulary(str(vocabulary_path), extra_ids=extra_ids)
    style, (read, splits) = prefixes_of(prefixes), reader(task, data_dir, rationales)
    for suffix, label in _LABELS.items():
        forget(seqio.TaskRegistry, [task.name + suffix + PAIRED])
        texts: dict[str, Text] = {}
        for (inputs, targets), kind in ((_FIRST, KINDS[label]), (_SECOND, KINDS["rationale"])):
            texts |= {inputs: functools.partial(kind.inputs, style), targets: kind.targets}
        seqio.TaskRegistry.add(
            task.name + suffix + PAIRED,
            source=source(read, splits, texts, KINDS[label].targets),
            preprocessors=[tokenize_pair],
            output_features={n: seqio.Feature(vocabulary) for n in texts},
        )


def tokenize_pair(
    dataset: tf.data.Dataset,
    output_features: Mapping[str, seqio.Feature],
    sequence_length: Mapping[str, int] | None = None,
) -> tf.data.Dataset:
    """SeqIO preprocessor: the four texts become ids that end in EOS, an empty text stays empty.

    `sequence_length` has the lengths of `inputs` and `targets`, which hold for both roles. Longer
    ones are cut and end in EOS, as in `seqio.preprocessors.append_eos_after_trim`.
    """
    vocabulary = output_features["inputs"].vocabulary

    def ended(text: tf.Tensor, ids: tf.Tensor, kind: str) -> tf.Tensor:
        limit, end = (sequence_length or {}).get(kind), [vocabulary.eos_id]
        cut = ids[: limit - 1] if limit else ids
        # White space has no ids, but is a target all the same, as in `seqio_tasks`.
        return tf.cond(tf.equal(text, ""), lambda: ids, lambda: tf.concat([cut, end], 0))

    def one(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        found = {ROW: example[ROW]}
        for inputs, targets in (_FIRST, _SECOND):
            ids = encode_input(example[inputs], vocabulary)
            found[inputs] = ended(example[inputs], ids, "inputs")
            ids = vocabulary.encode_tf(example[targets])
            found[targets] = ended(example[targets], ids, "targets")
        return found

    return dataset.map(one, num_parallel_calls=tf.data.AUTOTUNE)


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
        if _SECOND[0] in ds.element_spec:
            if self.pack:
                raise UsageError(
                    "pairs cannot be packed: a label and its rationale would fall into different "
                    "steps. Set train/utils.DatasetConfig.pack = False."
                )
            ds = ds.flat_map(self._rows_of_pair)
            task_feature_lengths = {n: task_feature_lengths[n] for n in _FIRST}
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

        second = row(_SECOND, RATIONALE, 1 - self._alpha)
        return row(_FIRST, LABEL, self._alpha).concatenate(second)

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
