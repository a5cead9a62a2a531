"""The processes of a sweep as jobs of a cluster: a Slurm array, or managed jobs of SkyPilot.

Only what is left is submitted. Where a run goes on is in its folder, so the same sweep may be
submitted again when its jobs have ended.
"""

import hashlib
import logging
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from dss_jax.core import storage
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import write_whole
from dss_jax.sweep.plan import Job

log = logging.getLogger(__name__)

SBATCH, SKY = Path("launch/slurm.sbatch"), Path("launch/sky.yaml")
"""Relative to the project's folder, from which both are submitted."""

MOST_IN_ARRAY = 1000
"""Slurm's MaxArraySize is 1001 unless a site says otherwise, and our arrays begin at 1."""


def slurm(
    folder: Path, jobs: Sequence[Job], flags: Sequence[str], at_once: int | None
) -> list[list[str]]:
    """The sbatch commands for the jobs that are left, as arrays; writes the files that they read,
    with a line of flags a job. The sweep's folder is on a file system that the nodes share; `flags`
    are of sbatch: partition, account, time ...; `at_once` jobs of an array run at the same time
    (None: Slurm decides).
    """
    _need(SBATCH)
    limit = "" if at_once is None else f"%{at_once}"
    commands = []
    for start in range(0, len(jobs), MOST_IN_ARRAY):
        part = jobs[start : start + MOST_IN_ARRAY]
        text = "".join(shlex.join(job.flags) + "\n" for job in part)
        # Jobs of an earlier array may still read theirs.
        file = folder / f"slurm_{hashlib.sha256(text.encode()).hexdigest()[:8]}.txt"
        write_whole(file, text)
        array = f"--array=1-{len(part)}{limit}"
        commands.append(["sbatch", array, *flags, str(SBATCH), "--sweep", str(file)])
    return commands


def sky(
    jobs: Sequence[Job], flags: Sequence[str], stores: Mapping[str, Path], store_dir: str | None
) -> list[list[str]]:
    """What submits each job that is left as a managed job of SkyPilot.

    Args:
      jobs: their configurations name only what the machines have, for these come and go: buckets,
        and files in the project's folder, which is copied.
      flags: of `sky jobs launch`, from the user: GPUs, cloud ...
      stores: task -> its token store on this machine.
      store_dir: as given: where it is a bucket, the jobs read the stores from it.

    Raises:
      UsageError: a store is where the jobs cannot have it.
    """
    _need(SKY)
    launch = ["sky", "jobs", "launch", "--yes", "--detach-run"]
    places = {task: _shared(path, store_dir) for task, path in stores.items()}
    commands = []
    for job in jobs:
        name = "".join(c if c.isalnum() else "-" for c in job.folder).lower()
        words = shlex.join([*job.flags, "--store", places[job.planned[0].cell.task]])
        commands.append([*launch, "--name", name, *flags, str(SKY), "--env", f"FLAGS={words}"])
    return commands


def _shared(store: Path, store_dir: str | None) -> str:
    """A store as a machine of SkyPilot finds it: in the bucket, or in the copied folder."""
    if store_dir is not None and storage.is_remote(store_dir):
        return f"{store_dir.rstrip('/')}/{store.name}"
    try:
        return str(store.resolve().relative_to(Path.cwd().resolve()))
    except ValueError:
        raise UsageError(
            f"the token store {store} is not in the project's folder, which is what the jobs get a "
            "copy of. Give --store_dir stores, or a bucket."
        ) from None


def _need(file: Path) -> None:
    if not file.exists():
        raise UsageError(
            f"{file} is not here. Give the command in the project's folder: the jobs use it, too."
        )


def submit(commands: Sequence[list[str]]) -> None:
    """Runs the commands, one after the other; they say what they have submitted. Raises UsageError
    where one cannot; what was submitted before stays so.
    """
    for i, command in enumerate(commands):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            raise UsageError(
                f"{command[0]} is not installed here. --print shows the commands for a machine "
                "that has it."
            ) from None
        for line in done.stdout.splitlines():
            log.info(line)
        if done.returncode:
            raise UsageError(
                f"{command[0]} ended with status {done.returncode} ({i} of {len(commands)} "
                f"commands were submitted): {done.stderr.strip()}"
            )
