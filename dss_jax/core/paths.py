"""Where files are that come with the package, and where it keeps its own. Standard library only."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped(name: str) -> Path:
    """A folder that comes with the package, for example "tasks" or "gin_configs".

    In an installed wheel it is inside the package, in a checkout beside it.
    """
    inside = PACKAGE / "_share" / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def write_whole(file: Path, text: str) -> None:
    """Writes a file that appears whole or not at all, and its folder where there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(file.suffix + ".new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, file)


def cache_folder() -> Path:
    """Folder of what can be made or fetched again: DSS_CACHE_DIR, else in the user's cache."""
    if own := os.environ.get("DSS_CACHE_DIR"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dss-jax"
