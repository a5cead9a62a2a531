"""Runs the processes of a sweep on this machine: one a device, in order, until all have ended.

A process that fails does not stop the others. The processes are in sessions of their own, so that
Ctrl-C reaches the sweep alone, which asks each of them once to save. Each holds the locks of its
runs (`run_folder.locked`): a sweep that was killed leaves its processes at work, and the next one
waits for them.
"""

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from dss_jax.core import locks, processes, signals
from dss_jax.core.paths import make_folder
from dss_jax.run import run_folder
from dss_jax.sweep.devices import cores, on_cores
from dss_jax.sweep.plan import Job, Planned, Times, state_of

log = logging.getLogger(__name__)

LOG = "train.log"
STOPPED = {
    signals.INTERRUPTED: signal.SIGINT,
    signals.TERMINATED: signal.SIGTERM,
    signals.SAVED: signal.SIGTERM,
}
"""Statuses of a process that was asked to stop, and the signal."""

POLL_SECONDS = 0.2
SHOW_SECONDS = 1.0
LOCKED_SECONDS = 5.0
"""Between looks at runs that another process trains."""

TAIL = 12
"""Lines of the log that are shown of a run that failed."""

PROGRAM: Sequence[str] = (sys.executable, "-m", "dss_jax.cli.main", "train")


def duration(seconds: float) -> str:
    """ "2 h 05 min", "12 min", "40 s"."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if seconds >= 90 else f"{round(seconds)} s"


@dataclass
class _Child:
    """A process at work.

    Attributes:
      before: work that was done when it began: FLOPs.
      told: how often it was asked to stop.
    """

    job: Job
    process: "subprocess.Popen[bytes]"
    slot: int
    log: Path
    log_start: int
    before: float
    began: float = field(default_factory=time.monotonic)
    told: int = 0


@dataclass
class Outcome:
    """How a sweep has ended: (job, status, log, its last lines) of each process that failed, and
    where the sweep was asked to stop, or one of its processes was, the signal's number; else 0.
    `late`: the time was up.
    """

    failed: list[tuple[Job, int, Path, list[str]]] = field(default_factory=list)
    stopped: int = 0
    late: bool = False


class Runner:
    """Runs jobs of a sweep's folder.

    Args:
      slots: what the environment of each run that is at work at the same time has of its own.
      show: is told how far it is, a few times a second.
    """

    def __init__(
        self, folder: Path, slots: Sequence[Mapping[str, str]], show: Callable[[str], None]
    ) -> None:
        self._folder, self._slots, self._show = folder, slots, show
        self._times, self._outcome = Times(folder), Outcome()
        self._children: list[_Child] = []
        self._elsewhere: list[tuple[Job, locks.Owner]] = []
        self._asked = 0

    def run(self, jobs: Sequence[Job], done: int = 0, until: float = math.inf) -> Outcome:
        """Runs the jobs in order, and returns when none is left or at work; `done` runs of the
        sweep are finished already. Those at work at the time `until`, of `time.monotonic`, save and
        stop.
        """
        self._jobs, self._done, self._until = list(jobs), done, until
        # Read once: what waits does not change.
        self._begun = {job.flags: self._work_done(job) for job in jobs}
        with self._signals():
            try:
                self._loop()
            finally:
                # There are children here only after an error of the sweep's own.
                for child in self._children:
                    child.process.terminate()
        return self._outcome

    def _loop(self) -> None:
        looked = shown = 0.0
        while self._left():
            for child in [c for c in self._children if c.process.poll() is not None]:
                self._children.remove(child)
                self._ended(child)
            now = time.monotonic()
            if now > self._until and not self._asked and self._left():
                self._asked, self._outcome.late = 1, True
            if self._asked:
                self._jobs, self._elsewhere = [], []
                # Each process is told what the sweep was told, once each time.
                for child in (c for c in self._children if c.told < self._asked):
                    child.told = self._asked
                    child.process.kill() if self._asked > 2 else child.process.terminate()
            else:
                if now - looked > LOCKED_SECONDS:
                    looked = now
                    # Runs that another process trained: finished, or free to go on with here.
                    seen = [(job, self._owner(job)) for job, _ in self._elsewhere]
                    self._jobs[:0] = [job for job, owner in seen if owner is None]
                    self._elsewhere = [(job, owner) for job, owner in seen if owner is not None]
                self._start()
            if now - shown > SHOW_SECONDS:
                shown = now
                self._show(self._status())
            time.sleep(POLL_SECONDS)
        self._show(self._status())

    def _left(self) -> bool:
        return bool(self._jobs or self._children or self._elsewhere)

    def _free_slot(self) -> int | None:
        taken = {child.slot for child in self._children}
        for _, owner in self._elsewhere:
            # What a sweep that was killed has left at work on this machine keeps its device.
            if owner.get("host") == socket.gethostname():
                devices = [{**os.environ, **slot}.get(locks.DEVICES) for slot in self._slots]
                own = (i for i, d in enumerate(devices) if d == owner.get("devices"))
                taken.add(next((i for i in own if i not in taken), -1))
        return next((i for i in range(len(self._slots)) if i not in taken), None)

    def _start(self) -> None:
        while self._jobs and (slot := self._free_slot()) is not None:
            job = self._jobs.pop(0)
            if len(self._finished(job)) == len(job.planned):
                self._done += len(job.planned)
            elif (owner := self._owner(job)) is not None:
                self._wait_for(job, owner)
            else:
                self._children.append(self._spawn(job, slot))

    def _spawn(self, job: Job, slot: int) -> _Child:
        for one in job.planned:
            one.hand_over()
        log_file = self._folder / job.folder / LOG
        make_folder(log_file.parent)
        before = self._work_done(job)
        own = set[int]() if any(self._slots) else cores(len(self._slots))[slot]
        with log_file.open("ab") as out, on_cores(own):
            start = out.tell()
            process = subprocess.Popen(
                [*PROGRAM, *job.flags],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._slots[slot]},
                start_new_session=True,
            )
        return _Child(job, process, slot, log_file, start, before)

    def _owner(self, job: Job) -> locks.Owner | None:
        """Who has the lock of one of a job's runs; None: they are free."""
        files = (self._folder / one.cell.folder / run_folder.LOCK for one in job.planned)
        return next((o for o in map(locks.owner_of, files) if o is not None), None)

    def _wait_for(self, job: Job, owner: locks.Owner) -> None:
        log.info("%s: %s trains it; waiting for that", job.folder, locks.shown(owner))
        self._elsewhere.append((job, owner))

    def _ended(self, child: _Child) -> None:
        job, status = child.job, int(child.process.returncode)
        if status == locks.Taken.status:
            # Somebody was there between the question and the run's own lock.
            self._wait_for(job, self._owner(job) or {})
            return
        seconds = time.monotonic() - child.began
        finished = self._finished(job)
        self._done += len(finished)
        worked = max(0.0, self._work_done(job) - child.before)
        if status == 0 and len(finished) == len(job.planned):
            self._times.add(job, "done", seconds, worked)
            log.info("%s: done in %s%s", job.folder, duration(seconds), self._scores(job))
        elif status in STOPPED or self._asked > self._outcome.late:  # Asked by somebody.
            if worked:
                self._times.add(job, "stopped", seconds, worked)
            if not self._outcome.late:
                self._outcome.stopped = self._outcome.stopped or STOPPED[status]
            log.info("%s: stopped; it goes on from its last checkpoint", job.folder)
        else:
            lines = _tail(child.log, child.log_start)
            self._outcome.failed.append((job, status, child.log, lines))
            said = f"{job.folder}: failed with status {status}; {child.log} ends with"
            log.info("\n  | ".join([said, *lines]))

    def _scores(self, job: Job) -> str:
        found = []
        for one in job.planned:
            results = run_folder.read_results(self._folder / one.cell.folder) or {}
            split = "test" if "test" in results else "validation"
            if split in results:
                found.append(f"{results[split][results['metric']]:.2f}")
        return f"; {split} {', '.join(found)}" if found else ""

    def _finished(self, job: Job) -> list[Planned]:
        return [one for one in job.planned if state_of(self._folder / one.cell.folder).done]

    def _work_done(self, job: Job) -> float:
        """FLOPs done of a job, from the steps that its runs have logged."""
        work = 0.0
        for one in job.planned:
            state = state_of(self._folder / one.cell.folder)
            work += one.work * (state.done or min(1.0, state.step / one.run.train.steps))
        return work

    def _status(self) -> str:
        """How far the sweep is, in runs: "3 done, 1 running, 0 failed, 5 left; about ..."."""
        now = time.monotonic()
        left = sum(job.work - self._begun[job.flags] for job in self._jobs)
        running = []
        for child in self._children:
            done = self._work_done(child.job)
            running.append((now - child.began, max(0.0, done - child.before)))
            left += max(0.0, child.job.work - done)
        groups = {
            "running": [child.job for child in self._children],
            "running elsewhere": [job for job, _ in self._elsewhere],
            "failed": [job for job, *_ in self._outcome.failed],
            "left": self._jobs,
        }
        counts = {name: sum(len(job.planned) for job in jobs) for name, jobs in groups.items()}
        counts = {"done": self._done, **counts}
        shown = (f"{n} {name}" for name, n in counts.items() if n or name != "running elsewhere")
        seconds = self._times.to_the_end(running, left, len(self._slots))
        when = "" if seconds is None else f"; about {duration(seconds)} to the end"
        return ", ".join(shown) + when

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM and a closed terminal: each process is asked to save; asked again, to
        stop at once; and the third time it is killed.
        """

        def handle(number: int, _: FrameType | None) -> None:
            self._asked += 1
            self._outcome.stopped = number
            if self._asked == 1:
                name = signal.Signals(number).name
                log.info("%s: the runs at work save and stop; again to stop them at once", name)

        taken = [signal.SIGINT, signal.SIGTERM]
        # nohup has it ignored.
        taken += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
        with processes.handled(taken, handle):
            yield


def _tail(log: Path, start: int) -> list[str]:
    """The last lines that a process has written; progress bars give their last state."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 16_384))
        text = file.read().decode(errors="replace")
    lines = [line.rpartition("\r")[2].rstrip() for line in text.splitlines()]
    return [line for line in lines if line][-TAIL:]
