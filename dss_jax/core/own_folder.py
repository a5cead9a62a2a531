"""A folder that is one user's alone, for what could run code. Standard library only."""

import logging
import os
import stat
from pathlib import Path

log = logging.getLogger(__name__)


def own_folder(folder: Path, instead: str) -> Path | None:
    """The folder, made if it is not there, with mode 0700; files of others are removed from one
    that they could write to. None where it cannot be made; and, with a line that says so, where it
    is another user's or a link.

    Args:
      instead: environment variable that names another place.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            log.warning(
                "%s is not a folder of this user's, so nothing is taken from it or kept there: it "
                "could run code. Remove it, or set %s to a folder of yours.",
                *(folder, instead),
            )
            return None
        if stat.S_IMODE(found.st_mode) != 0o700:
            folder.chmod(0o700)
        for file in folder.iterdir() if found.st_mode & 0o022 else ():
            if file.lstat().st_uid != found.st_uid and not file.is_dir():
                file.unlink()
    except OSError:
        return None
    return folder
