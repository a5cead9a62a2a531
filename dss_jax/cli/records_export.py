"""Write records as a TensorFlow Datasets folder, which SeqIO's `TfdsDataSource` reads.

dss records export cqa_train.jsonl cqa_test.jsonl --to ~/tensorflow_datasets
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dss_jax.cli import options


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="record files, one a split")
    parser.add_argument("--to", required=True, metavar="DIR", help="the TFDS data folder")
    parser.add_argument("--name", help="of the data set (default: TASK_rationales)")
    parser.add_argument("--version", default="1.0.0", help="of the data set (default: 1.0.0)")


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    options.gin_bindings(rest, parser)
    from dss_jax.data import prepare_child

    request = {
        "files": args.files, "folder": args.to, "name": args.name, "version": args.version,
    }  # fmt: skip
    path = Path(prepare_child.run(request, print, "dss_jax.data.seqio_export"))
    name, version, folder = path.parent.name, path.name, path.parents[1]
    print(f"data set: {path}")
    print(f'seqio.TfdsDataSource(tfds_name="{name}:{version}", tfds_data_dir="{folder}")')
    return 0
