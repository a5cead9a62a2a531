"""Files under gs:// and s3://: folders to write to, and local copies of what is read.

`etils.epath` (which Orbax uses too) gives remote paths the methods of `pathlib.Path`, through
fsspec; TensorFlow is not touched. What must be a local file (SentencePiece, memory-mapped arrays,
safetensors) is copied into the cache, once for each version that the bucket has.
Libraries are imported only for a remote path.
"""

import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dss_jax.core import paths
from dss_jax.core.errors import UsageError

# epath would take TensorFlow where it is installed, which costs 4 s and 800 MB. It asks once in a
# process, perhaps for Orbax before anybody comes here with a remote path.
os.environ.setdefault("EPATH_USE_TF", "false")

EXTRAS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
"""Scheme -> module that serves it, and the extra that installs it."""

CREDENTIALS = {
    "gs": "`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS=FILE",
    "s3": "`aws configure`, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}

AnyPath = str | os.PathLike[str]

_LIBRARIES = ("google", "gcsfs", "botocore", "aiobotocore", "aiohttp", "s3fs", "requests")


def scheme_of(path: AnyPath) -> str | None:
    """Either "gs" or "s3"; None for a local path; UsageError: another scheme."""
    scheme, separator, _ = os.fspath(path).partition("://")
    if not separator:
        return None
    if scheme not in EXTRAS:
        raise UsageError(f"{os.fspath(path)}: only local paths, gs:// and s3:// are known.")
    return scheme


def is_remote(path: AnyPath) -> bool:
    """Whether a path is under gs:// or s3://."""
    return scheme_of(path) is not None


def place(path: AnyPath) -> Path:
    """A path to read and write: `pathlib.Path`, or for gs:// and s3:// what behaves like one;
    UsageError: the extra for this scheme is not installed.
    """
    scheme = scheme_of(path)
    if scheme is None:
        return Path(path).expanduser()
    if not has_extra(path):
        module, extra = EXTRAS[scheme]
        wanted = f'{module}, which is not installed: pip install "dss-jax[{extra}]".'
        raise UsageError(f"{os.fspath(path)} needs {wanted}")
    # gcsfs would ask, with credentials only, what kind of bucket each one is.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    from etils import epath

    remote: Any = epath.Path(os.fspath(path))
    return remote  # type: ignore[no-any-return]


def absolute(path: Path) -> Path:
    """The absolute path; epath takes a remote one for a relative one."""
    return path if is_remote(path) else path.absolute()


def has_extra(path: AnyPath) -> bool:
    """Whether what serves a path is installed."""
    scheme = scheme_of(path)
    return scheme is None or importlib.util.find_spec(EXTRAS[scheme][0]) is not None


@contextlib.contextmanager
def explained(path: AnyPath) -> Iterator[None]:
    """Turns what the libraries of a bucket raise into a UsageError: no such bucket or file, no
    credentials, no permission, no answer.
    """
    try:
        yield
    except Exception as error:
        library = type(error).__module__.partition(".")[0] in _LIBRARIES
        if not (is_remote(path) and (library or isinstance(error, OSError | ImportError))):
            raise
        raise UsageError(_message(os.fspath(path), error)) from error


def _message(path: str, error: Exception) -> str:
    text = (str(error) or repr(error)).strip().splitlines()[0]
    code = getattr(error, "code", None)
    lower = f"{type(error).__name__} {text}".lower()
    if isinstance(error, FileNotFoundError) or code == 404 or "not exist" in lower:
        return f"there is no {path}: no such bucket, or nothing of that name in it ({text})."
    denied = ("credential", "forbidden", "unauthorized", "denied", "access", "anonymous", "token")
    if isinstance(error, PermissionError) or code in (401, 403) or any(w in lower for w in denied):
        return (
            f"no permission for {path} ({text}). Log in with {CREDENTIALS[str(scheme_of(path))]}, "
            "and check that the account may list, read and write objects of the bucket."
        )
    return f"cannot reach {path}: {text}"


def exists(path: AnyPath) -> bool:
    """Whether there is such a file or folder; UsageError: see `explained`."""
    with explained(path):
        return place(path).exists()


def local_file(path: AnyPath) -> Path:
    """The file itself, or a copy of a remote one in the cache, named by its content; UsageError:
    there is no such remote file, or see `explained`.
    """
    if not is_remote(path):
        return Path(path).expanduser()
    remote = place(path)
    with explained(path):
        content = remote.read_bytes()
    file = paths.below(_copy(content), remote.name)
    if not file.is_file():
        paths.write_whole(file, content)
    return file


def _copy(digested: bytes) -> Path:
    return paths.cache_folder() / "remote" / hashlib.sha256(digested).hexdigest()[:16]


def local_folder(path: AnyPath, skip: tuple[str, ...] = ()) -> Path:
    """The folder itself, or a copy of a remote one in the cache, without files that end in one of
    `skip`. Files that have changed in the bucket since are fetched again, files that are no
    longer there are removed. UsageError: there is nothing below it, an object's name would lead
    out of the copy, or see `explained`.
    """
    if not is_remote(path):
        return Path(path).expanduser()
    name = os.fspath(path).rstrip("/")
    from dss_jax.core.bucket_copy import update_copy

    with explained(path):
        return update_copy(*_file_system(name), name, _copy(name.encode()), skip)


def _file_system(name: str) -> tuple[Any, str]:
    """fsspec's file system of a remote path, and the path in it."""
    place(name)  # Raises, where its extra is missing.
    import fsspec

    found: tuple[Any, str] = fsspec.core.url_to_fs(name)
    return found


def upload_folder(folder: Path, path: AnyPath, last: str | None = None) -> None:
    """Copies a local folder's files below a remote one, many at once; `last`, which says that it is
    whole, when the others are there.
    """
    names = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
    with explained(path):
        files, root = _file_system(os.fspath(path).rstrip("/"))
        for some in ([n for n in names if n != last], [n for n in names if n == last]):
            files.put([str(folder / n) for n in some], [f"{root}/{n}" for n in some])
        files.invalidate_cache()
