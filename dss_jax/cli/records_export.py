"""`dss records export`: records as a TensorFlow Datasets folder, which SeqIO reads."""

import argparse
from pathlib import Path

from dss_jax.core.errors import UsageError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that only export has; the files are those of `dss records`."""
    parser.add_argument("--to", metavar="DIR", help="export: the TFDS data folder")
    parser.add_argument("--name", help="export: of the data set (default: TASK_rationales)")
    parser.add_argument("--version", default="1.0.0", help="export: of it (default: 1.0.0)")


def main(args: argparse.Namespace) -> int:
    """Exports `args.files`, one a split, and prints how SeqIO opens them."""
    if not args.files or args.to is None:
        raise UsageError(
            "dss records export takes record files, one a split, and --to DIR, the TFDS folder."
        )
    from dss_jax.data import prepare_child

    request = {
        "files": args.files, "folder": args.to, "name": args.name, "version": args.version,
    }  # fmt: skip
    path = Path(prepare_child.run(request, print, "dss_jax.data.seqio_export"))
    name, version, folder = path.parent.name, path.name, path.parents[1]
    print(f"data set: {path}")
    print(f'seqio.TfdsDataSource(tfds_name="{name}:{version}", tfds_data_dir="{folder}")')
    return 0
