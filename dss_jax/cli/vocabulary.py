"""Add tokens to a student's vocabulary.

  dss vocabulary extend google/flan-t5-base --tokens tokens.txt --out models/flan_t5_base_code
  dss train --task mine --init_from models/flan_t5_base_code

The new folder is in Hugging Face's form. T5's vocabulary has no `{ } < ~ ^` and no Chinese;
a token that it lacks is added with rows of the embedding that are the mean of those of the pieces
it was written with before.
"""

import argparse
from pathlib import Path

from dss_jax.cli.tables import say
from dss_jax.core import storage
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import check_new_folder


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("action", choices=("extend",), help="extend: add tokens")
    add("folder", metavar="DIR", help="a checkpoint of any format, or OWNER/NAME of the hub")
    add("--tokens", required=True, metavar="FILE", help="text file (UTF-8): a token a line")
    add(
        "--out",
        metavar="DIR",
        help="folder to write, which must be new; default: DIR-extended, NAME-extended",
    )
    add("--vocabulary", help="SentencePiece model or tokenizer, where the checkpoint has none")


def main(args: argparse.Namespace) -> None:
    from dss_jax.interop.hub import hub_name

    name = hub_name(args.folder)
    # Not in a folder OWNER, which would hide the hub's models of that owner.
    source = args.folder.rstrip("/") if name is None else name.repo.rpartition("/")[2]
    target = args.out or f"{source}-extended"
    if not storage.is_remote(target):
        check_new_folder(Path(target))
    tokens = _lines(args.tokens)

    from dss_jax.interop.extend import extended
    from dss_jax.interop.formats import read_weights, write_weights
    from dss_jax.interop.vocabularies import with_vocabulary

    weights = with_vocabulary(read_weights(args.folder), args.vocabulary)
    rows, found = weights.config.vocab_size, extended(weights, tokens)
    write_weights(found, target, "hf")
    say(f"{target}: {found.config.vocab_size:,} rows of the embedding, {rows:,} before")
    say(f"train it: dss train --task NAME --init_from {target}")


def _lines(file: str) -> list[str]:
    try:
        text = storage.local_file(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--tokens {file} cannot be read as UTF-8 text: {error}.") from error
    if not (tokens := [line for line in text.splitlines() if line.strip()]):
        raise UsageError(f"--tokens {file} has no tokens: write one a line.")
    return tokens
