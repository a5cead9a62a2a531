"""Where files are that come with the package, and where it keeps its own. Standard library only."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dss_jax.core.errors import UsageError
from dss_jax.core.texts import utf8

PACKAGE = Path(__file__).resolve().parents[1]

NEW = ".new"
"""Ending of a file that is not whole yet; a kill may leave one."""


def shipped(name: str) -> Path:
    """A folder or file that comes with the package, for example "tasks" or "gin_configs".

    In an installed wheel it is inside the package, in a checkout beside it.
    """
    inside = PACKAGE / "_share" / name
    return inside if inside.exists() else PACKAGE.parent / name


@contextmanager
def written(path: Path, needed: int | None = None) -> Iterator[None]:
    """Within it a file or folder is written, of so many bytes; UsageError: the disk is full, the
    folder is read-only or the like. Other errors stay what they are.
    """
    try:
        yield
    except Exception as error:
        from dss_jax.core.disk import trouble  # Seldom.

        if (said := trouble(error, path, needed)) is None:
            raise
        raise UsageError(said) from error


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it; OSError: see `core.disk.unmade`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        from dss_jax.core.disk import unmade  # Seldom.

        raise unmade(folder, error) from None


def write_whole(file: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Writes a file that appears whole or not at all, and its folder where there is none. The path
    may be a remote one of `dss_jax.core.storage.place`; `content` may come in pieces. UsageError:
    see `written`.
    """
    content = utf8(content) if isinstance(content, str) else content
    parts = [content] if isinstance(content, bytes) else content
    if not isinstance(file, Path):
        # An object of a bucket appears when its upload has ended.
        file.write_bytes(b"".join(parts))
        return
    # Several may write the same one, and those of two containers have the same pids.
    fresh = file.with_name(f"{file.name}.{os.urandom(4).hex()}{NEW}")
    with written(file, len(content) if isinstance(content, bytes) else None):
        make_folder(file.parent)
        try:
            with fresh.open("wb") as out:
                out.writelines(parts)
                out.flush()
                # Without it a power cut after the rename could leave an empty file of this name.
                os.fsync(out.fileno())
            os.replace(fresh, file)
        finally:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)


def below(folder: Path, name: str) -> Path:
    """The path of a name that somebody else wrote (a bucket, an index, a manifest) below a folder;
    UsageError: it is no plain relative path, or a link leads it out of the folder.
    """
    check_name(name, folder)
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{path} leads out of {folder} through a link: it is not touched.")
    return path


def check_name(name: str, where: object) -> None:
    """Checks that a name, found in `where`, is a plain relative path, which stays in its folder.
    UsageError: it starts or ends with "/", or a part of it is empty, "." or "..", or holds what
    is no part of a name on some system.
    """
    if any(part in ("", ".", "..") or set(part) & set("\\\0") for part in name.split("/")):
        raise UsageError(
            f"{where} names a file {name!r}, which would lie outside of its folder. Names have "
            'parts between "/", none of them empty, "." or "..". Rename or remove it there.'
        )


def check_new_folder(path: Path) -> None:
    """Raises UsageError where `path` is a file or a folder with something in it."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(
            f"{path} is there already and is not empty. Give the name of a new folder, or remove "
            "it first."
        )


def cache_folder() -> Path:
    """Folder of what can be made or fetched again: DSS_CACHE_DIR, else in the user's cache."""
    if own := os.environ.get("DSS_CACHE_DIR"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dss-jax"
