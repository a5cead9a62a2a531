"""Registers real SeqIO tasks and mixtures for a `DistillationTask`. Imports TensorFlow.

For a task "cqa" there are then

    cqa_label            [label] x -> gold label
    cqa_teacher_label    [label] x -> the teacher's label
    cqa_rationale        [rationale] x -> the teacher's rationale
    cqa                  mixture of cqa_label and cqa_rationale, one to one
    cqa_unlabeled        mixture of cqa_teacher_label and cqa_rationale, one to one
    cqa_single_task      [label] x -> rationale and gold label in one target
    cqa_single_task_label_first
                         the same the other way round
    cqa_pinto            [label] x and rationale -> gold label
    cqa_pretrain         span corruption of all inputs and rationales: `seqio_spans`

Rows whose target is empty are left out of the SeqIO task in question. Each example carries its row
number, so that the tasks can be aligned again: a plain mixture with token-summed loss is not the
method's loss (METHOD.md, Traps), which is why this package pairs rows in its token store.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import seqio
import tensorflow as tf

from dss_jax.core.errors import UsageError
from dss_jax.core.prefixes import prefixes as prefixes_of
from dss_jax.core.types import SPLITS, DistillationTask, Example
from dss_jax.data import rows, seqio_spans
from dss_jax.data.columns import ANSWER, BECAUSE, label_in
from dss_jax.data.rationales import join_records
from dss_jax.data.vocabulary import SEPARATOR

ROW = "row"

_TARGETS: Mapping[str, tuple[str, str]] = {
    "label": ("label", "label"),
    "teacher_label": ("label", "teacher_label"),
    "rationale": ("rationale", "rationale"),
}
"""Suffix of the SeqIO task -> (its prefix, the field of `Example` that is its target)."""


def _input_alone(text: str, example: Example) -> str:
    return text


def _with_rationale(text: str, example: Example) -> str:
    """PINTO's input."""
    return f"{text}{SEPARATOR}{example.rationale}" if example.rationale else text


def _rationale_first(example: Example) -> str:
    if not (example.label and example.rationale):
        return example.label
    return f"{example.rationale} {ANSWER} {example.label}"


def _label_first(example: Example) -> str:
    if not (example.label and example.rationale):
        return example.label
    return f"{example.label} {BECAUSE} {example.rationale}"


Make = tuple[Callable[[Example], str], Callable[[Example], str]]
"""Example -> input, and target."""

_JOINT: Mapping[str, tuple[Callable[[str, Example], str], Callable[[Example], str]]] = {
    "single_task": (_input_alone, _rationale_first),
    "single_task_label_first": (_input_alone, _label_first),
    "pinto": (_with_rationale, lambda example: example.label),
}
"""Suffix of the SeqIO task -> (prefix and input, example) -> input; example -> target."""

_MIXTURES = {"": ("label", "rationale"), "_unlabeled": ("teacher_label", "rationale")}


def register(
    task: DistillationTask,
    *,
    vocabulary_path: str | Path,
    extra_ids: int = 100,
    data_dir: str | Path | None = None,
    prefixes: str = "paper",
    rationales: Sequence[str | Path] = (),
    examples: Mapping[str, list[Example]] | None = None,
) -> dict[str, seqio.Task]:
    """Registers the SeqIO tasks and mixtures of a task, instead of those registered before.

    Data and vocabulary are first read when a data set is asked for.

    Args:
      task: the task.
      vocabulary_path: the SentencePiece model; anything that `tf.io.gfile` opens.
      extra_ids: sentinel ids above the model's pieces.
      data_dir: folder of the data; None: DSS_DATA_DIR.
      prefixes: "paper" or "released_code".
      rationales: record files that take the place of the teacher text in the data.
      examples: split -> rows, where they are read already; None: they are read from the task's
        sources.

    Returns:
      Suffix ("label", "teacher_label", "rationale", "single_task", ...) -> SeqIO task.
    """
    vocabulary = seqio.SentencePieceVocabulary(str(vocabulary_path), extra_ids=extra_ids)
    features = {n: seqio.Feature(vocabulary, add_eos=True) for n in ("inputs", "targets")}
    style = prefixes_of(prefixes)
    read, splits = _reader(task, data_dir, rationales, examples)
    names = [task.name + suffix for suffix in _MIXTURES]
    _forget(seqio.MixtureRegistry, names)
    suffixes = [*_TARGETS, *_JOINT, seqio_spans.SUFFIX]
    _forget(seqio.TaskRegistry, [f"{task.name}_{suffix}" for suffix in suffixes])
    tasks = {}

    def add(suffix: str, inputs: Make, postprocess: Callable[..., str]) -> None:
        tasks[suffix] = seqio.TaskRegistry.add(
            f"{task.name}_{suffix}",
            source=seqio.FunctionDataSource(dataset_fn=_dataset_fn(read, *inputs), splits=splits),
            preprocessors=[tokenize, seqio.preprocessors.append_eos_after_trim],
            output_features=features,
            postprocess_fn=postprocess,
            metric_fns=[] if suffix == "rationale" else [task.scorer],
        )

    for suffix, (prefix, field) in _TARGETS.items():
        made = _prefixed(getattr(style, prefix), _input_alone), operator.attrgetter(field)
        add(suffix, made, stripped_text)
    for suffix, (inputs, targets) in _JOINT.items():
        add(suffix, (_prefixed(style.label, inputs), targets), _label_of(suffix))
    seqio_spans.register(task.name, vocabulary, read, splits)
    for suffix, parts in _MIXTURES.items():
        seqio.MixtureRegistry.add(
            task.name + suffix, [(f"{task.name}_{part}", 1.0) for part in parts]
        )
    return tasks


def _reader(
    task: DistillationTask,
    data_dir: str | Path | None,
    rationales: Sequence[str | Path],
    examples: Mapping[str, list[Example]] | None,
) -> tuple[Callable[[str], list[Example]], tuple[str, ...]]:
    """Split -> rows, read once; and the splits on offer."""
    if examples is not None:
        return examples.__getitem__, tuple(examples)
    read = functools.cache(lambda split: read_examples(task, split, data_dir, rationales))
    return read, offered_splits(task, data_dir)


def tokenize(
    dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """SeqIO preprocessor: texts become ids, as `seqio.preprocessors.tokenize` with one addition.

    "</s>" in an input becomes the end-of-sequence id, and the parts are tokenised on their own, as
    Hugging Face's tokenizer does; SentencePiece alone would spell it as unknown pieces. The authors
    join premise and hypothesis so. The texts are kept as `inputs_pretokenized` and
    `targets_pretokenized`.
    """

    def one(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs, targets = output_features["inputs"], output_features["targets"]
        return {
            **{f"{name}_pretokenized": example[name] for name in ("inputs", "targets")},
            "inputs": encode_input(example["inputs"], inputs.vocabulary),
            "targets": targets.vocabulary.encode_tf(example["targets"]),
            ROW: example[ROW],
        }

    return dataset.map(one, num_parallel_calls=tf.data.AUTOTUNE)


def encode_input(text: tf.Tensor, vocabulary: seqio.Vocabulary) -> tf.Tensor:
    """Ids of one input, int32 [S], without the last end-of-sequence; see `tokenize`."""
    parts = tf.strings.split(text, SEPARATOR)
    ends = tf.fill([tf.shape(parts)[0], 1], vocabulary.eos_id)
    joined = tf.concat([vocabulary.encode_tf(parts), tf.RaggedTensor.from_tensor(ends)], axis=1)
    return tf.cast(joined.flat_values[:-1], tf.int32)


def stripped_text(text: str | bytes, example: object = None, is_target: bool = False) -> str:
    """SeqIO postprocessor: the text without white space around it."""
    del example, is_target
    return (text.decode("utf-8") if isinstance(text, bytes) else str(text)).strip()


def _prefixed(prefix: str, make: Callable[[str, Example], str]) -> Callable[[Example], str]:
    return lambda example: make(prefix + example.input, example)


def _label_of(suffix: str) -> Callable[..., str]:
    """Postprocessor of a predicted text, which may hold both: its label."""
    forms = {"single_task": "rationale_label", "single_task_label_first": "label_rationale"}
    form = forms.get(suffix, "tasks")

    def label(text: str | bytes, example: object = None, is_target: bool = False) -> str:
        return label_in(stripped_text(text, example, is_target), form)

    return label


def _dataset_fn(
    read: Callable[[str], list[Example]],
    inputs: Callable[[Example], str],
    targets: Callable[[Example], str],
) -> Callable[..., tf.data.Dataset]:
    def dataset_fn(
        split: str, shuffle_files: bool = False, seed: int | None = None
    ) -> tf.data.Dataset:
        kept = [(row, e) for row, e in enumerate(read(split)) if targets(e)]
        columns = {
            "inputs": tf.constant([inputs(e) for _, e in kept], tf.string, [len(kept)]),
            "targets": tf.constant([targets(e) for _, e in kept], tf.string, [len(kept)]),
            ROW: tf.constant([row for row, _ in kept], tf.int32, [len(kept)]),
        }
        dataset = tf.data.Dataset.from_tensor_slices(columns)
        # The source is one in-memory "file", so shuffling files means shuffling rows.
        return dataset.shuffle(max(1, len(kept)), seed=seed) if shuffle_files else dataset

    return dataset_fn


def read_examples(
    task: DistillationTask,
    split: str,
    data_dir: str | Path | None,
    rationales: Sequence[str | Path],
) -> list[Example]:
    """The rows of a split, joined with record files."""
    found = {split: rows.examples(task, split, data_dir)}
    return join_records(task, found, rationales, data_dir)[0][split]


def offered_splits(task: DistillationTask, data_dir: str | Path | None) -> tuple[str, ...]:
    """The splits to offer; all, where the data is not there (yet): reading it then explains."""
    try:
        return rows.available_splits(task, data_dir) or SPLITS
    except UsageError:
        return SPLITS


def _forget(registry: type[seqio.DatasetProviderRegistry], names: list[str]) -> None:
    for name in names:
        if name in registry.names():
            registry.remove(name)
