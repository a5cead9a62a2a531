"""Vocabularies without TensorFlow: finding one, encoding, decoding.

A vocabulary is a SentencePiece file, or a folder with the files of a Hugging Face tokenizer, of
which `dss_jax.data.tokenizer_files` knows. Libraries are imported when one is opened.
"""

import hashlib
import os
import shutil
from pathlib import Path

from dss_jax.core.digest import file_digest
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import T5_PUBLIC
from dss_jax.core.types import DistillationTask
from dss_jax.data.tokenizer import SentencePiece, Tokenizer

BYTES = "bytes"
"""In place of a file: the bytes of UTF-8, as ByT5 has them."""


def wanted(path: str | None, task: DistillationTask | None) -> str:
    """Path or address of the vocabulary: the argument, the task's own, DSS_VOCABULARY, T5's."""
    if path:
        return path
    if task is not None and task.default_vocabulary and task.file:
        own = task.default_vocabulary
        return own if own == BYTES else str(Path(task.file).parent / own)
    return os.environ.get("DSS_VOCABULARY") or T5_PUBLIC


def resolve(path: str | None, task: DistillationTask | None = None) -> Path:
    """The vocabulary that is `wanted`, on this machine: "bytes", a local path, or an address
    (`https://`, `s3://`, `gs://`, where a public bucket needs no extra), which is fetched into the
    cache. UsageError: there is none, or it cannot be fetched.
    """
    name = wanted(path, task)
    if name == BYTES:
        from dss_jax.data.tokenizer_files import byte_folder

        return byte_folder()
    if "://" in name:
        from dss_jax.data.download import fetched

        return fetched(name)
    file = Path(name).expanduser()
    if not file.exists():
        raise UsageError(
            f"the vocabulary {name!r} does not exist. Give a SentencePiece .model file with "
            '--vocabulary FILE, a folder with a tokenizer.json, or "bytes", or set DSS_VOCABULARY.'
        )
    if file.is_dir():
        from dss_jax.data.tokenizer_files import vocabulary_in

        file = vocabulary_in(file) or file
    return file.resolve()


def is_tokenizer(path: Path) -> bool:
    """Whether a vocabulary is a folder with the files of a tokenizer, or one `tokenizer.json`."""
    return path.suffix == ".json" or path.is_dir()


def vocabulary_digest(path: Path) -> str:
    """SHA-256 of what a vocabulary is made of, in hex, wherever it lies: of a SentencePiece file,
    or of all files of a tokenizer; of bytes, of their names, for ByT5's files come in many forms.
    """
    if not is_tokenizer(path):
        return file_digest(path)
    from dss_jax.data.tokenizer_files import is_bytes

    if is_bytes(files := files_of(path)):
        from dss_jax.data.file_tokenizers import ByteTokenizer

        found = ByteTokenizer(path, files).identity()
    else:
        found = "".join(f"{name} {file_digest(file)}\n" for name, file in files.items())
    return hashlib.sha256(found.encode()).hexdigest()


def files_of(path: Path) -> dict[str, Path]:
    """A vocabulary's files by the names that they have in folders of Hugging Face's."""
    if not is_tokenizer(path):
        return {"spiece.model": path}
    from dss_jax.data import tokenizer_files

    return tokenizer_files.files_of(path)


def copy_vocabulary(path: Path, target: Path) -> None:
    """Copies a SentencePiece file to `target`, or the files of a tokenizer into that new folder."""
    if not is_tokenizer(path):
        shutil.copyfile(path, target)
        return
    target.mkdir()
    for name, file in files_of(path).items():
        shutil.copyfile(file, target / name)


def open_vocabulary(path: str | os.PathLike[str], extra_ids: int = 100) -> Tokenizer:
    """Opens a vocabulary. `extra_ids`: sentinels above the pieces of a SentencePiece file; other
    vocabularies tell their own. UsageError: it cannot be read, or lacks an id that is needed.
    """
    if not is_tokenizer(Path(path)):
        return SentencePiece(path, extra_ids)
    from dss_jax.data.file_tokenizers import open_tokenizer

    return open_tokenizer(Path(path))
