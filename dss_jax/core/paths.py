"""Where files are that come with the package, and where it keeps its own. Standard library only."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dss_jax.core.errors import UsageError

PACKAGE = Path(__file__).resolve().parents[1]


def shipped(name: str) -> Path:
    """A folder or file that comes with the package, for example "tasks" or "gin_configs".

    In an installed wheel it is inside the package, in a checkout beside it.
    """
    inside = PACKAGE / "_share" / name
    return inside if inside.exists() else PACKAGE.parent / name


def write_whole(file: Path, content: str | bytes) -> None:
    """Writes a file that appears whole or not at all, and its folder where there is none.

    Args:
      file: a path, also a remote one of `dss_jax.core.storage.place`.
      content: of the file.
    """
    if not isinstance(file, Path):
        # An object of a bucket appears when its upload has ended.
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(file.suffix + ".new")
    with fresh.open("wb") as out:
        out.write(content.encode() if isinstance(content, str) else content)
        out.flush()
        # Without it a power cut after the rename could leave an empty file under this name.
        os.fsync(out.fileno())
    os.replace(fresh, file)


def check_new_folder(path: Path) -> None:
    """Raises UsageError where `path` is a file or a folder with something in it."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(
            f"{path} is there already and is not empty. Give the name of a new folder, or remove "
            "it first."
        )


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that becomes `path` at the end, and is removed after an error.

    Raises:
      UsageError: see `check_new_folder`.
    """
    check_new_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".partial-{path.name}-", dir=path.parent))
    partial.chmod(0o755)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def cache_folder() -> Path:
    """Folder of what can be made or fetched again: DSS_CACHE_DIR, else in the user's cache."""
    if own := os.environ.get("DSS_CACHE_DIR"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dss-jax"
