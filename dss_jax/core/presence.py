"""Whether the folder of a run at work is still there, and can be written in."""

import tempfile
from pathlib import Path

from dss_jax.core import storage
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import written


def check_there(place: Path) -> None:
    """Raises UsageError where a file or folder of a run at work was taken away by others."""
    if not storage.exists(place):
        raise UsageError(
            f"{place} is gone: the run's folder was moved away or removed while it was trained in. "
            "Nothing is written in its place. Move it back and give the same command again to go "
            "on from its last checkpoint."
        )


def check_writable(folder: Path) -> None:
    """Makes a folder where there is none; raises UsageError where no file can be written in it."""
    if not storage.is_remote(folder):
        with written(folder):
            folder.mkdir(exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
