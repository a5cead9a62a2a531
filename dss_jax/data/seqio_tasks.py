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
    cqa_pretrain         span corruption of all inputs and rationales
    cqa_paired           both: [label] x -> gold label, and [rationale] x -> the rationale
    cqa_unlabeled_paired the same with the teacher's label

In a pair a row without a rationale stays, with empty rationale targets, which weigh nothing. Rows
whose target is empty are left out of the SeqIO task in question. Each example carries its row
number, so that the tasks can be aligned again: a plain mixture with token-summed loss is not the
method's loss (METHOD.md, Traps), which is why this package pairs rows in its token store.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import seqio
import tensorflow as tf

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.prefixes import Prefixes
from dss_jax.core.prefixes import prefixes as prefixes_of
from dss_jax.core.texts import utf8
from dss_jax.core.types import SPLITS, DistillationTask, Example
from dss_jax.data import rows, sources
from dss_jax.data.columns import permutation
from dss_jax.data.joint import ANSWER, BECAUSE, label_in
from dss_jax.data.rationales import join_records
from dss_jax.data.seqio_vocabulary import TokenizerVocabulary, seqio_vocabulary
from dss_jax.data.spans import ORDER, corrupt, longest_piece
from dss_jax.data.tokenizer import SEPARATOR

ROW = "row"
FIRST, SECOND = ("inputs", "targets"), ("rationale_inputs", "rationale_targets")
"""Features of a pair's two rows."""

PAIRED = "_paired"
PRETRAIN = "pretrain"
"""Suffix of the SeqIO task of span corruption."""

Text = Callable[[Example], str]


def _label_input(style: Prefixes, example: Example) -> str:
    return style.label + example.input


def _rationale_input(style: Prefixes, example: Example) -> str:
    return style.rationale + example.input


def _with_rationale(style: Prefixes, example: Example) -> str:
    """PINTO's input."""
    text = _label_input(style, example)
    return f"{text}{SEPARATOR}{example.rationale}" if example.rationale else text


def _joint(example: Example, form: str) -> str:
    """Label and rationale in one target; the label alone where one of them is missing."""
    label, rationale = example.label, example.rationale
    if not (label and rationale):
        return label
    label_last = form == "rationale_label"
    return f"{rationale} {ANSWER} {label}" if label_last else f"{label} {BECAUSE} {rationale}"


class Kind(NamedTuple):
    """A SeqIO task: what is read, what is written, and how a predicted text holds the label."""

    inputs: Callable[[Prefixes, Example], str]
    targets: Text
    form: str = "tasks"


def _both(form: str) -> Kind:
    return Kind(_label_input, functools.partial(_joint, form=form), form)


KINDS = {
    "label": Kind(_label_input, operator.attrgetter("label")),
    "teacher_label": Kind(_label_input, operator.attrgetter("teacher_label")),
    "rationale": Kind(_rationale_input, operator.attrgetter("rationale")),
    "single_task": _both("rationale_label"),
    "single_task_label_first": _both("label_rationale"),
    "pinto": Kind(_with_rationale, operator.attrgetter("label")),
}
"""By suffix of the SeqIO task's name."""

_MIXTURES = {"": ("label", "rationale"), "_unlabeled": ("teacher_label", "rationale")}


def register(
    task: DistillationTask,
    *,
    vocabulary_path: str | Path,
    extra_ids: int = 100,
    data_dir: str | Path | None = None,
    prefixes: str = "paper",
    rationales: Sequence[str | Path] = (),
) -> dict[str, seqio.Task]:
    """Registers the SeqIO tasks and mixtures of a task, instead of those registered before; gives
    suffix ("label", "rationale", "single_task", ...) -> SeqIO task.

    Data and vocabulary, anything that `tf.io.gfile` opens, are first read when a data set is asked
    for. `rationales`: record files that take the place of the teacher text in the data.
    """
    vocabulary = seqio_vocabulary(vocabulary_path, extra_ids)
    features = {n: seqio.Feature(vocabulary, add_eos=True) for n in ("inputs", "targets")}
    style, (read, splits) = prefixes_of(prefixes), _reader(task, data_dir, rationales)
    scorer = task.scorer.as_spelt(lambda text: vocabulary.decode(vocabulary.encode(text)))
    mixtures = [task.name + suffix for suffix in _MIXTURES]
    _forget(seqio.MixtureRegistry, mixtures)
    _forget(seqio.TaskRegistry, [f"{task.name}_{s}" for s in (*KINDS, PRETRAIN)])
    _forget(seqio.TaskRegistry, [mixture + PAIRED for mixture in mixtures])
    tasks = {}
    for suffix, kind in KINDS.items():
        inputs: Text = functools.partial(kind.inputs, style)
        texts = {"inputs": inputs, "targets": kind.targets}
        tasks[suffix] = seqio.TaskRegistry.add(
            f"{task.name}_{suffix}",
            source=_source(read, splits, texts, kind.targets),
            preprocessors=[tokenize, seqio.preprocessors.append_eos_after_trim],
            output_features=features,
            postprocess_fn=functools.partial(_label, form=kind.form),
            metric_fns=[] if suffix == "rationale" else [scorer],
        )
    seqio.TaskRegistry.add(
        f"{task.name}_{PRETRAIN}",
        source=_in_memory(functools.partial(_documents, read), splits),
        preprocessors=[corrupt_spans],
        output_features=features,
    )
    for suffix, parts in _MIXTURES.items():
        rates = [(f"{task.name}_{part}", 1.0) for part in parts]
        seqio.MixtureRegistry.add(task.name + suffix, rates)
        pair: dict[str, Text] = {}
        for (first, second), part in zip((FIRST, SECOND), parts, strict=True):
            kind = KINDS[part]
            pair |= {first: functools.partial(kind.inputs, style), second: kind.targets}
        seqio.TaskRegistry.add(
            task.name + suffix + PAIRED,
            source=_source(read, splits, pair, pair[FIRST[1]]),
            preprocessors=[tokenize_pair],
            output_features={n: seqio.Feature(vocabulary) for n in pair},
        )
    return tasks


def _source(
    read: Callable[[str], list[Example]],
    splits: Sequence[str],
    texts: Mapping[str, Text],
    target: Text,
) -> seqio.FunctionDataSource:
    """Rows as `texts` by feature, beside their row numbers; rows whose `target` is empty are left
    out.
    """

    def columns(split: str) -> dict[str, tf.Tensor]:
        kept = [(row, e) for row, e in enumerate(read(split)) if target(e)]
        found = {
            name: tf.constant([utf8(text(e)) for _, e in kept], tf.string, [len(kept)])
            for name, text in texts.items()
        }
        return {**found, ROW: tf.constant([row for row, _ in kept], tf.int32, [len(kept)])}

    return _in_memory(columns, splits)


def _documents(read: Callable[[str], list[Example]], split: str) -> dict[str, tf.Tensor]:
    found = [t for e in read(split) for t in (*e.input.split(SEPARATOR), e.rationale) if t]
    texts = [found[i] for i in permutation(len(found), ORDER)]
    return {"targets": tf.constant([*map(utf8, texts)], tf.string)}


def _in_memory(
    columns: Callable[[str], dict[str, tf.Tensor]], splits: Sequence[str]
) -> seqio.FunctionDataSource:
    def dataset_fn(
        split: str, shuffle_files: bool = False, seed: int | None = None
    ) -> tf.data.Dataset:
        dataset = tf.data.Dataset.from_tensor_slices(columns(split))
        # The source is one in-memory "file", so shuffling files means shuffling rows.
        rows = max(1, int(dataset.cardinality()))
        return dataset.shuffle(rows, seed=seed) if shuffle_files else dataset

    return seqio.FunctionDataSource(dataset_fn=dataset_fn, splits=splits)


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
            "inputs": _encode_input(example["inputs"], inputs.vocabulary),
            "targets": targets.vocabulary.encode_tf(example["targets"]),
            ROW: example[ROW],
        }

    return dataset.map(one, num_parallel_calls=tf.data.AUTOTUNE)


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
        # White space has no ids, but is a target all the same, as in the other tasks.
        return tf.cond(tf.equal(text, ""), lambda: ids, lambda: tf.concat([cut, end], 0))

    def one(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        found = {ROW: example[ROW]}
        for inputs, targets in (FIRST, SECOND):
            ids = _encode_input(example[inputs], vocabulary)
            found[inputs] = ended(example[inputs], ids, "inputs")
            ids = vocabulary.encode_tf(example[targets])
            found[targets] = ended(example[targets], ids, "targets")
        return found

    return dataset.map(one, num_parallel_calls=tf.data.AUTOTUNE)


def corrupt_spans(
    dataset: tf.data.Dataset,
    output_features: Mapping[str, seqio.Feature],
    sequence_length: Mapping[str, int] | None = None,
) -> tf.data.Dataset:
    """SeqIO preprocessor: all texts one after another, cut into pieces whose spans are masked; the
    end that fills none is left out.

    The arithmetic is that of `dss_jax.data.spans`, called from the pipeline, so that T5X and our
    own trainer pre-train on the same task. A piece's masks come from SeqIO's seeds here.
    """
    vocabulary = output_features["targets"].vocabulary
    lengths = sequence_length or {"inputs": 512, "targets": 114}
    data = config.Data(input_length=lengths["inputs"], target_length=lengths["targets"])
    counts = longest_piece(data, config.Pretrain(), vocabulary.extra_ids)
    first = vocabulary.vocab_size - 1
    sentinels: Sequence[int] = range(first, first - vocabulary.extra_ids, -1)
    begin = 0
    if isinstance(vocabulary, TokenizerVocabulary):
        sentinels, begin = vocabulary.own.sentinels, len(vocabulary.own.encode(""))
    tokens = dataset.map(lambda e: vocabulary.encode_tf(e["targets"])[begin:]).unbatch()

    def one(piece: np.ndarray, seed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        words = np.random.Philox(key=seed.astype(np.uint64)).random_raw(counts.length)
        return corrupt(piece, counts, sentinels, words, vocabulary.eos_id)

    @seqio.map_over_dataset(num_seeds=1)
    def corrupted(piece: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs, targets = tf.numpy_function(one, [piece, seed], [tf.int32, tf.int32])
        return {
            "inputs": tf.ensure_shape(inputs, [counts.input_length]),
            "targets": tf.ensure_shape(targets, [counts.target_length]),
        }

    return corrupted(tokens.batch(counts.length, drop_remainder=True))


def _encode_input(text: tf.Tensor, vocabulary: seqio.Vocabulary) -> tf.Tensor:
    """Ids of one input, int32 [S], without the last end-of-sequence; see `tokenize`."""
    if isinstance(vocabulary, TokenizerVocabulary):
        parts = tf.numpy_function(_parts(vocabulary), [text], tf.string)
        parts = tf.ensure_shape(parts, [None])
    else:
        parts = tf.strings.split(text, SEPARATOR)
    ends = tf.fill([tf.shape(parts)[0], 1], vocabulary.eos_id)
    joined = tf.concat([vocabulary.encode_tf(parts), tf.RaggedTensor.from_tensor(ends)], axis=1)
    return tf.cast(joined.flat_values[:-1], tf.int32)


def _parts(vocabulary: TokenizerVocabulary) -> Callable[[bytes], np.ndarray]:
    def parts(text: bytes) -> np.ndarray:
        return np.array([utf8(part) for part in vocabulary.own.parts(text.decode())], object)

    return parts


def _label(text: str | bytes, *, form: str, **_: object) -> str:
    """SeqIO postprocessor of a text, which may hold both: its label, without white space around."""
    return label_in((text.decode("utf-8") if isinstance(text, bytes) else str(text)).strip(), form)


def _reader(
    task: DistillationTask, data_dir: str | Path | None, rationales: Sequence[str | Path]
) -> tuple[Callable[[str], list[Example]], tuple[str, ...]]:
    """Split -> rows, joined with record files and read once; and the splits to offer: all, where
    the data is not there (yet), for reading it then explains.
    """

    @functools.cache
    def read(split: str) -> list[Example]:
        found = {split: rows.examples(task, split, data_dir)}
        return join_records(task, found, rationales, data_dir)[0][split]

    try:
        return read, sources.available_splits(task, data_dir) or SPLITS
    except UsageError:
        return read, SPLITS


def _forget(registry: type[seqio.DatasetProviderRegistry], names: Sequence[str]) -> None:
    """Removes what is registered under these names."""
    for name in names:
        if name in registry.names():
            registry.remove(name)
