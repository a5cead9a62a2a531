"""Whether the folder of a run at work is still there."""

from pathlib import Path

from dss_jax.core import storage
from dss_jax.core.errors import UsageError


def check_there(place: Path) -> None:
    """Raises UsageError where a file or folder of a run at work was taken away by others."""
    if not storage.exists(place):
        raise UsageError(
            f"{place} is gone: the run's folder was moved away or removed while it was trained in. "
            "Nothing is written in its place. Move it back and give the same command again to go "
            "on from its last checkpoint."
        )
