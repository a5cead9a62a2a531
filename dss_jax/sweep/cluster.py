"""The processes of a sweep as jobs of a cluster: a Slurm array, or managed jobs of SkyPilot.

Only what is left is submitted. Where a run goes on is in its folder, so the same sweep may be
submitted again when its jobs have ended.
"""

import hashlib
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dss_jax.core import storage
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import write_whole
from dss_jax.sweep.plan import Job

SBATCH, SKY = Path("launch/slurm.sbatch"), Path("launch/sky.yaml")
"""Relative to the project's folder, from which both are submitted."""

MOST_IN_ARRAY = 1000
"""Slurm's MaxArraySize is 1001 unless a site says otherwise, and our arrays begin at 1."""

Command = list[str]


def slurm(
    folder: Path, jobs: Sequence[Job], flags: Sequence[str], at_once: int | None
) -> list[Command]:
    """What submits the jobs as an array; writes the file that it reads: a line of flags a job.

    Args:
      folder: of the sweep, on a file system that the nodes share.
      jobs: what is left.
      flags: of sbatch, from the user: partition, account, time ...
      at_once: jobs of the array that may run at the same time; None: Slurm decides.

    Returns:
      sbatch commands: more than one where the array would be too long.
    """
    _need(SBATCH)
    commands = []
    for start in range(0, len(jobs), MOST_IN_ARRAY):
        part = jobs[start : start + MOST_IN_ARRAY]
        text = "".join(shlex.join(job.flags) + "\n" for job in part)
        # Jobs of an earlier array may still read theirs.
        name = hashlib.sha256(text.encode()).hexdigest()[:8]
        file = folder / f"slurm_{name}.txt"
        write_whole(file, text)
        limit = "" if at_once is None else f"%{at_once}"
        commands.append(
            ["sbatch", f"--array=1-{len(part)}{limit}", *flags, str(SBATCH), "--sweep", str(file)]
        )
    return commands


def sky(
    jobs: Sequence[Job], flags: Sequence[str], stores: Mapping[str, Path], store_dir: str | None
) -> list[Command]:
    """What submits each job as a managed job of SkyPilot.

    Args:
      jobs: what is left, in a folder of a bucket, for machines come and go. Their flags name only
        what the machines have: buckets, and files in the project's folder, which is copied.
      flags: of `sky jobs launch`, from the user: GPUs, cloud ...
      stores: task -> its token store on this machine.
      store_dir: as given: where it is a bucket, the jobs read the stores from it.

    Raises:
      UsageError: a store is where the jobs cannot have it.
    """
    _need(SKY)
    places = {task: _shared(path, store_dir) for task, path in stores.items()}
    return [
        [
            "sky", "jobs", "launch", "--yes", "--detach-run", "--name", _name(job), *flags,
            str(SKY), "--env", f"FLAGS={shlex.join([*job.flags, '--store', places[task_of(job)]])}",
        ]
        for job in jobs
    ]  # fmt: skip


def task_of(job: Job) -> str:
    """The task that a job trains on."""
    return job.planned[0].cell.task


def _shared(store: Path, store_dir: str | None) -> str:
    """A store as a machine of SkyPilot finds it: in the bucket, or in the project's folder that is
    copied.
    """
    if store_dir is not None and storage.is_remote(store_dir):
        return f"{store_dir.rstrip('/')}/{store.name}"
    try:
        return str(store.resolve().relative_to(Path.cwd().resolve()))
    except ValueError:
        raise UsageError(
            f"the token store {store} is not in the project's folder, which is what the jobs get a "
            "copy of. Give --store_dir stores, or a bucket."
        ) from None


def _name(job: Job) -> str:
    """Name of a job: letters, digits and dashes."""
    return "".join(c if c.isalnum() else "-" for c in job.folder).lower()


def _need(file: Path) -> None:
    if not file.exists():
        raise UsageError(
            f"{file} is not here. Give the command in the project's folder: the jobs use it, too."
        )


def submit(commands: Sequence[Command], say: Callable[[str], None]) -> None:
    """Runs the commands, one after the other; they say what they have submitted.

    Raises:
      UsageError: the program is not installed, or refuses; what was submitted before stays so.
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
            say(line)
        if done.returncode:
            raise UsageError(
                f"{command[0]} ended with status {done.returncode} ({i} of {len(commands)} "
                f"commands were submitted): {done.stderr.strip()}"
            )
