"""Convert a checkpoint between Hugging Face's, our own and T5X's format.

  dss convert --from hf flan-t5-base --to orbax models/flan_t5_base
  dss convert --from orbax runs/cqa --to hf students/cqa

A run folder is converted at its best checkpoint on validation; --checkpoint names another.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from dss_jax.cli.tables import print_table
from dss_jax.core import storage
from dss_jax.core.checks import among
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import check_new_folder
from dss_jax.core.types import CHECKPOINT_FORMATS


def add_flags(parser: argparse.ArgumentParser) -> None:
    form: dict[str, Any] = {"nargs": 2, "metavar": ("FORMAT", "DIR"), "required": True}
    add = parser.add_argument
    text = f"format ({', '.join(CHECKPOINT_FORMATS)}) and folder to read, local, gs:// or s3://"
    add("--from", dest="from_", help=text, **form)
    text = "format and folder to write, which must be new"
    add("--to", help=text, **form)
    add("--checkpoint", help="of a run folder: best (default), latest or a step")
    add("--vocabulary", help="SentencePiece model, where the source has none")
    text = "of the tensors for hf: float32 (default), bfloat16"
    add("--dtype", default="float32", help=text)


def main(args: argparse.Namespace) -> None:
    (source_format, source), (target_format, target) = args.from_, args.to
    for format in (source_format, target_format):
        among("format of a checkpoint", format, CHECKPOINT_FORMATS)
    among("--dtype", args.dtype, ("float32", "bfloat16"))
    if not storage.is_remote(target):
        check_new_folder(Path(target))

    from dss_jax.core.digest import file_digest
    from dss_jax.data.vocabulary import resolve
    from dss_jax.interop.formats import read_weights, write_weights
    from dss_jax.interop.model_files import vocabulary_size
    from dss_jax.model.t5 import count_parameters

    weights = read_weights(source, source_format, args.checkpoint)
    if args.vocabulary is not None:
        given = resolve(args.vocabulary)
        if weights.vocabulary and file_digest(given) != file_digest(weights.vocabulary):
            raise UsageError(
                f"{weights.origin} has a vocabulary, {weights.vocabulary}, and {given} is another. "
                "Leave --vocabulary out."
            )
        weights = dataclasses.replace(weights, vocabulary=given)
    shown = "none: give --vocabulary FILE if it has one"
    if weights.vocabulary is not None:
        ids = vocabulary_size(weights.vocabulary, weights.extra_ids, weights.config, weights.origin)
        shown = f"{weights.vocabulary} ({ids:,} ids, {weights.extra_ids} of them extra)"
    write_weights(weights, target, target_format, args.dtype)
    m = weights.config
    logits = "also gives the logits" if m.logits_via_embedding else "logits of their own"
    rows = {
        "read": weights.origin,
        "parameters": count_parameters(dict(weights.leaves)),
        "shape": f"{m.num_encoder_layers} + {m.num_decoder_layers} layers, width {m.emb_dim}, "
        f"{m.num_heads} heads of {m.head_dim}, feed-forward {m.mlp_dim} "
        f"({' x '.join(m.mlp_activations)})",
        "embedding": f"{m.vocab_size:,} rows, {logits}",
        "vocabulary": shown,
        "written": f"{target} ({args.dtype})",
    }
    title = f"{source_format} to {target_format}"
    print_table(title, ("", "value"), list(rows.items()), texts=True)
    for note in weights.notes:
        print(note)
