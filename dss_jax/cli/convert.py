"""Convert a checkpoint between Hugging Face's, our own, T5X's and CTranslate2's format.

  dss convert --from hf google/flan-t5-base --to orbax models/flan_t5_base
  dss convert --from orbax runs/cqa --to hf students/cqa
  dss convert --from orbax runs/cqa --to ctranslate2 students/cqa-ct2 --quantization int8

A run folder is converted at its best checkpoint on validation; --checkpoint names another.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dss_jax.cli.tables import print_table, say
from dss_jax.core import storage
from dss_jax.core.checks import among
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import check_new_folder
from dss_jax.core.types import CHECKPOINT_FORMATS
from dss_jax.interop.ct2_files import QUANTIZATIONS

if TYPE_CHECKING:
    from dss_jax.interop.ctranslate2 import Comparison
    from dss_jax.interop.weights import Weights

CT2 = "ctranslate2"


def add_flags(parser: argparse.ArgumentParser) -> None:
    form: dict[str, Any] = {"nargs": 2, "metavar": ("FORMAT", "DIR"), "required": True}
    add = parser.add_argument
    text = f"format ({', '.join(CHECKPOINT_FORMATS)}) and folder (gs://, s3:// too), or OWNER/NAME"
    add("--from", dest="from_", help=text, **form)
    text = (
        f"format ({', '.join((*CHECKPOINT_FORMATS, CT2))}) and folder to write, which must be new"
    )
    add("--to", help=text, **form)
    add("--checkpoint", help="of a run folder: best (default), latest or a step")
    add("--vocabulary", help="SentencePiece model or tokenizer, where the source has none")
    text = "of the tensors for hf: float32 (default), bfloat16"
    add("--dtype", default="float32", help=text)
    text = f"of the tensors for {CT2}: {', '.join(QUANTIZATIONS)}; the first is the default"
    add("--quantization", help=text)
    text = (
        f"for {CT2}: rows (.jsonl, .csv, .parquet: input; label or target) on which labels are "
        "compared with those before the conversion; default: the examples of the student's card"
    )
    add("--compare_on", metavar="FILE", help=text)


def main(args: argparse.Namespace) -> None:
    (source_format, source), (target_format, target) = args.from_, args.to
    among("format of a checkpoint", source_format, CHECKPOINT_FORMATS)
    among("format of a checkpoint", target_format, (*CHECKPOINT_FORMATS, CT2))
    among("--dtype", args.dtype, ("float32", "bfloat16"))
    quantization = args.quantization or QUANTIZATIONS[0]
    among("--quantization", quantization, QUANTIZATIONS)
    tensors = quantization if target_format == CT2 else args.dtype
    if target_format == CT2 and args.dtype != "float32":
        raise UsageError(f"--dtype is for --to hf. For --to {CT2} give --quantization.")
    if target_format != CT2 and (args.quantization or args.compare_on):
        raise UsageError(f"--quantization and --compare_on are for --to {CT2}.")
    if args.vocabulary and args.compare_on:
        raise UsageError(
            f"--compare_on asks {source} itself, which needs its vocabulary beside it."
        )
    if not storage.is_remote(target):
        check_new_folder(Path(target))

    from dss_jax.data.vocabulary import open_vocabulary
    from dss_jax.interop.formats import read_weights, write_weights
    from dss_jax.interop.vocabularies import vocabulary_size, with_vocabulary

    rows_given = _rows(args.compare_on)
    weights = read_weights(source, source_format, args.checkpoint)
    weights = with_vocabulary(weights, args.vocabulary)
    shown = "none: give --vocabulary FILE if it has one"
    if weights.vocabulary is not None:
        ids = vocabulary_size(weights.vocabulary, weights.extra_ids, weights.config, weights.origin)
        extra = open_vocabulary(weights.vocabulary, weights.extra_ids).extra_ids
        shown = f"{weights.vocabulary} ({ids:,} ids, {extra} of them extra)"
    readme = None
    if source_format == "orbax":
        weights, readme = _described(weights, source, target_format, tensors)
    elif source_format == "hf" and target_format in ("hf", CT2):
        readme = _carried_over(source, target_format, tensors)
    compared = None
    if target_format == CT2:
        from dss_jax.interop.ctranslate2 import write_ct2

        compared = write_ct2(weights, target, tensors, readme)
    else:
        write_weights(weights, target, target_format, tensors, readme)
    written = f"{target} ({tensors})"
    _print_written(weights, shown, f"{source_format} to {target_format}", written, compared)
    shown_on = rows_given or (weights.card.examples if weights.card else ())
    asked = rows_given or (quantization != QUANTIZATIONS[0] and not args.vocabulary)
    if compared is not None and shown_on and asked:
        _print_cost(source, args.checkpoint, target, shown_on)


def _print_written(
    weights: "Weights", vocabulary: str, title: str, written: str, compared: "Comparison | None"
) -> None:
    """Shows what was read, and where it is now."""
    from dss_jax.interop.weights import count_parameters

    m = weights.config
    logits = "also gives the logits" if m.logits_via_embedding else "logits of their own"
    rows = {
        "read": weights.origin,
        "parameters": count_parameters(dict(weights.leaves)),
        "shape": f"{m.num_encoder_layers} + {m.num_decoder_layers} layers, width {m.emb_dim}, "
        f"{m.num_heads} heads of {m.head_dim}, feed-forward {m.mlp_dim} "
        f"({' x '.join(m.mlp_activations)})"
        + (", a position bias in each layer" if m.relative_attention_per_layer else "")
        + (", T5Gemma's decoder" if m.gemma is not None else ""),
        "embedding": f"{m.vocab_size:,} rows, {logits}",
        "vocabulary": vocabulary,
        "written": written,
    }
    if compared is not None:
        rows["compared with ours"] = (
            f"log-probabilities of {compared.tokens} tokens differ by {compared.mean:.2g} on "
            f"average, {compared.largest:.2g} at most"
        )
    print_table(title, ("", "value"), list(rows.items()), texts=True)
    for note in weights.notes:
        say(note)


def _described(
    weights: "Weights", source: str, target_format: str, tensors: str
) -> tuple["Weights", str | None]:
    """The weights with the student's card, and its model card; None where there is no run."""
    from dss_jax.interop.model_files import CHECKPOINTS
    from dss_jax.interop.weights import count_parameters
    from dss_jax.run import model_card, run_folder
    from dss_jax.student import card

    place = storage.place(source)
    folder = place.parents[1] if place.parent.name == CHECKPOINTS else place
    if not storage.exists(folder / run_folder.CONFIG):
        return weights, None
    if weights.card is None:
        try:
            weights = dataclasses.replace(weights, card=card.read(folder))
        except UsageError:  # What was pre-trained is no student yet.
            return weights, None
    assert weights.card is not None
    assert weights.step is not None
    count, step = count_parameters(dict(weights.leaves)), weights.step
    return weights, model_card.of_run(folder, weights.card, count, step, target_format, tensors)


def _carried_over(source: str, target_format: str, tensors: str) -> str | None:
    """The model card of a folder in Hugging Face's form, for the new one; None where there is
    none.
    """
    from dss_jax.interop.hub import local
    from dss_jax.interop.model_files import README
    from dss_jax.run import model_card

    with storage.explained(source):
        file = storage.place(local(source)) / README
        found = file.is_file()
    return model_card.carried_over(file, target_format, tensors) if found else None


def _rows(file: str | None) -> list[dict[str, Any]]:
    """Inputs and labels of a table, such as the predictions of `dss eval`."""
    if file is None:
        return []
    from dss_jax.student.tables import open_table

    found = []
    for one in open_table(file).rows:
        row, label = one.row, one.row.get("target", one.row.get("label"))
        if row.get("input") is None or label is None:
            raise UsageError(f"--compare_on: {one.where} has no input, or no label or target.")
        found.append({"input": row["input"], "label": label})
    return found


def _print_cost(
    source: str, checkpoint: str | None, target: str, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Shows what the conversion costs: labels of the same rows before it and after."""
    from dss_jax.core.scoring import EQUATION_ACCURACY, TEXT_ACCURACY
    from dss_jax.student.load import load

    inputs = [str(row["input"]) for row in rows]
    labels = [row.get("allowed_labels") or () for row in rows]
    before = load(source, engine="jax", checkpoint=checkpoint)
    after = load(target, engine=CT2)
    allowed = labels if before.card.row_labels and all(labels) else None
    ours, theirs = (one.predict(inputs, labels=allowed) for one in (before, after))
    same = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.label == b.label]
    scorer = EQUATION_ACCURACY if before.card.metric == EQUATION_ACCURACY.name else TEXT_ACCURACY
    gold = [str(row["label"]) for row in rows]
    shown: dict[str, Any] = {"rows": len(rows), "the same label": len(same)}
    if all(gold):
        for name, found in (("before", ours), ("after", theirs)):
            score = scorer(gold, [one.label for one in found])[scorer.name]
            shown[f"{scorer.name}, %, {name}"] = score
    if same:
        differences = [abs(a.log_prob - b.log_prob) for a, b in same]
        shown["log-probability of the same labels, difference"] = sum(differences) / len(same)
    print_table("cost of the conversion", ("", "value"), list(shown.items()))
