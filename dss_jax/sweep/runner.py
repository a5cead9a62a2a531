"""Runs the processes of a sweep on this machine: one a device, in order, until all have ended.

A process that fails does not stop the others. The processes are in sessions of their own, so that
Ctrl-C reaches the sweep alone, which asks each of them once to save. Each holds the locks of its
runs (`sweep_lock`): a sweep that was killed leaves its processes at work, and the next one waits
for them.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from dss_jax.run import run_folder
from dss_jax.sweep import lock as sweep_lock
from dss_jax.sweep.lock import Lock
from dss_jax.sweep.plan import Job, Planned, State, Times, seconds_left, state_of

LOG = "train.log"
INTERRUPTED = 130
"""Status of a run that was asked to stop, and saved."""

POLL_SECONDS = 0.2
SHOW_SECONDS = 1.0
LOCKED_SECONDS = 5.0
"""Between looks at runs that another process trains."""

TAIL = 12
"""Lines of the log that are shown of a run that failed."""

PROGRAM = (sys.executable, "-m", "dss_jax.cli.main", "train")

Say = Callable[[str], None]


class Status(NamedTuple):
    """How far a sweep is, in runs."""

    done: int
    running: int
    elsewhere: int
    failed: int
    left: int
    seconds: float | None
    """To the end; None: not known yet."""

    def __str__(self) -> str:
        parts = [f"{self.done} done", f"{self.running} running"]
        parts += [f"{self.elsewhere} running elsewhere"] if self.elsewhere else []
        parts += [f"{self.failed} failed", f"{self.left} left"]
        when = "" if self.seconds is None else f"; about {duration(self.seconds)} to the end"
        return ", ".join(parts) + when


def duration(seconds: float) -> str:
    """ "2 h 05 min", "12 min", "40 s"."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if seconds >= 90 else f"{round(seconds)} s"


@dataclass
class _Child:
    """A process at work."""

    job: Job
    process: subprocess.Popen
    slot: int
    locks: list[Lock]
    log: Path
    log_start: int
    before: float
    """Work that was done when it began: FLOPs."""
    began: float = field(default_factory=time.monotonic)
    told: int = 0
    """How often it was asked to stop."""


@dataclass
class Outcome:
    """How a sweep has ended.

    Attributes:
      failed: (job, status, log, its last lines) of each process that failed.
      stopped: whether the sweep was asked to stop.
    """

    failed: list[tuple[Job, int, Path, list[str]]] = field(default_factory=list)
    stopped: bool = False


class Runner:
    """Runs jobs; see `run`."""

    def __init__(
        self,
        folder: Path,
        slots: Sequence[Mapping[str, str]],
        say: Say = print,
        show: Callable[[Status], None] = lambda _: None,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        """Prepares for a sweep's folder.

        Args:
          folder: the sweep's.
          slots: what the environment of each run that is at work at the same time has of its own.
          say: prints a line.
          show: is told how far it is, a few times a second.
          program: takes the flags of `dss train`.
        """
        self._folder, self._slots = folder, [dict(s) for s in slots]
        self._say, self._show, self._program = say, show, list(program)
        self._times = Times(folder)
        self._children: list[_Child] = []
        self._asked = 0

    def run(self, jobs: Sequence[Job], done: int = 0) -> Outcome:
        """Runs the jobs, and returns when none is left or at work.

        Args:
          jobs: in the order in which they start.
          done: runs of the sweep that are finished already, for the status.
        """
        outcome, self._jobs, self._done = Outcome(), list(jobs), done
        self._elsewhere: list[Job] = []
        # Read once: what waits does not change.
        self._begun = {job.flags: self._work_done(job) for job in jobs}
        with self._signals():
            try:
                self._loop(outcome)
            finally:
                # There are children here only after an error of the sweep's own.
                for child in self._children:
                    child.process.terminate()
        return outcome

    def _loop(self, outcome: Outcome) -> None:
        looked = shown = 0.0
        while self._jobs or self._children or self._elsewhere:
            self._reap(outcome)
            now = time.monotonic()
            if self._asked:
                outcome.stopped = True
                self._jobs, self._elsewhere = [], []
                self._pass_on()
            else:
                if now - looked > LOCKED_SECONDS:
                    looked = now
                    self._look_elsewhere()
                self._start()
            if now - shown > SHOW_SECONDS:
                shown = now
                self._show(self._status(outcome))
            if self._jobs or self._children or self._elsewhere:
                time.sleep(POLL_SECONDS)
        self._show(self._status(outcome))

    def _pass_on(self) -> None:
        """Tells each process what the sweep was told, once each time."""
        for child in self._children:
            if child.told < self._asked:
                child.told = self._asked
                child.process.kill() if self._asked > 2 else child.process.terminate()

    def _free_slot(self) -> int | None:
        taken = {child.slot for child in self._children}
        for owner in (self._owner(job) for job in self._elsewhere):
            # What a sweep that was killed has left at work on this machine keeps its device.
            if sweep_lock.here(owner):
                own = (i for i, s in enumerate(self._slots) if s == owner["device"])
                taken |= {next((i for i in own if i not in taken), -1)}
        return next((i for i in range(len(self._slots)) if i not in taken), None)

    def _start(self) -> None:
        """Starts processes while a slot is free."""
        while self._jobs and (slot := self._free_slot()) is not None:
            job = self._jobs.pop(0)
            left = [one for one in job.planned if not self._state(one).done]
            if not left:
                self._done += len(job.planned)
                continue
            locks = self._take(job)
            if locks is None:
                owner = self._owner(job)
                who = f"process {owner['pid']} on {owner['host']}" if owner else "another process"
                self._say(f"{job.folder}: {who} trains it; waiting for that")
                self._elsewhere.append(job)
                continue
            try:
                self._children.append(self._spawn(job, slot, locks))
            except BaseException:
                for lock in locks:
                    lock.release()
                raise

    def _spawn(self, job: Job, slot: int, locks: list[Lock]) -> _Child:
        log = self._folder / job.folder / LOG
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [*self._program, *job.flags]
        before = self._work_done(job)
        with log.open("ab") as out:
            start = out.tell()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                env={**os.environ, **self._slots[slot]}, start_new_session=True,
                pass_fds=[lock.descriptor for lock in locks],
            )  # fmt: skip
        for lock in locks:
            lock.give(process.pid, self._slots[slot])
        return _Child(job, process, slot, locks, log, start, before)

    def _take(self, job: Job) -> list[Lock] | None:
        """The locks of all runs of a job; None: somebody has one of them."""
        taken: list[Lock] = []
        for one in job.planned:
            lock = sweep_lock.take(self._folder / one.cell.folder)
            if lock is None:
                for other in taken:
                    other.release()
                return None
            taken.append(lock)
        return taken

    def _owner(self, job: Job) -> dict[str, Any]:
        """What is known of the process that trains a job's runs elsewhere."""
        owners = (sweep_lock.owner_of(self._folder / one.cell.folder) for one in job.planned)
        return next((owner for owner in owners if owner), {})

    def _look_elsewhere(self) -> None:
        """Runs that another process trained: finished, or free to go on with here."""
        for job in list(self._elsewhere):
            locks = self._take(job)
            if locks is not None:
                for lock in locks:
                    lock.release()
                self._elsewhere.remove(job)
                self._jobs.insert(0, job)

    def _reap(self, outcome: Outcome) -> None:
        for child in [c for c in self._children if c.process.poll() is not None]:
            self._children.remove(child)
            for lock in child.locks:
                lock.release()
            self._ended(child, outcome)

    def _ended(self, child: _Child, outcome: Outcome) -> None:
        job, status = child.job, int(child.process.returncode)
        seconds = time.monotonic() - child.began
        finished = [one for one in job.planned if self._state(one).done]
        self._done += len(finished)
        worked = max(0.0, self._work_done(job) - child.before)
        if status == 0 and len(finished) == len(job.planned):
            self._times.add(job, "done", seconds, worked)
            self._say(f"{job.folder}: done in {duration(seconds)}{self._scores(job)}")
        elif self._asked or status == INTERRUPTED:
            if worked:
                self._times.add(job, "stopped", seconds, worked)
            outcome.stopped = True
            self._say(f"{job.folder}: stopped; it goes on from its last checkpoint")
        else:
            lines = _tail(child.log, child.log_start)
            outcome.failed.append((job, status, child.log, lines))
            self._say(f"{job.folder}: failed with status {status}; {child.log} ends with")
            for line in lines:
                self._say(f"  | {line}")

    def _scores(self, job: Job) -> str:
        """What the runs of a job have reached, for people."""
        found = []
        for one in job.planned:
            results = run_folder.read_results(self._folder / one.cell.folder) or {}
            split = "test" if "test" in results else "validation"
            if split in results:
                found.append(f"{results[split][results['metric']]:.2f}")
        return f"; {split} {', '.join(found)}" if found else ""

    def _state(self, one: Planned) -> State:
        return state_of(self._folder / one.cell.folder)

    def _work_done(self, job: Job) -> float:
        """FLOPs done of a job, from the steps that its runs have logged."""
        return sum(work_done(self._folder, one) for one in job.planned)

    def _status(self, outcome: Outcome) -> Status:
        now = time.monotonic()
        waiting = sum(len(job.planned) for job in self._jobs)
        left = sum(job.work - self._begun[job.flags] for job in self._jobs)
        running = []
        for child in self._children:
            done = self._work_done(child.job)
            running.append((now - child.began, max(0.0, done - child.before)))
            left += max(0.0, child.job.work - done)
        return Status(
            done=self._done,
            running=sum(len(child.job.planned) for child in self._children),
            elsewhere=sum(len(job.planned) for job in self._elsewhere),
            failed=sum(len(job.planned) for job, *_ in outcome.failed),
            left=waiting,
            seconds=seconds_left(self._times, running, left, len(self._slots)),
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM and a closed terminal: each process is asked to save; asked again, to
        stop at once; and the third time it is killed.
        """

        def handle(number: int, _: FrameType | None) -> None:
            self._asked += 1
            if self._asked == 1:
                name = signal.Signals(number).name
                self._say(f"{name}: the runs at work save and stop; again to stop them at once")

        taken = [signal.SIGINT, signal.SIGTERM]
        # nohup has it ignored.
        taken += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
        before = {s: signal.signal(s, handle) for s in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def work_done(folder: Path, one: Planned) -> float:
    """FLOPs done of a run, from the steps that it has logged."""
    state = state_of(folder / one.cell.folder)
    return one.work if state.done else one.work * min(1.0, state.step / one.run.train.steps)


def _tail(log: Path, start: int) -> list[str]:
    """The last lines that a process has written; progress bars give their last state."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 16_384))
        text = file.read().decode(errors="replace")
    lines = [line.rpartition("\r")[2].rstrip() for line in text.splitlines()]
    return [line for line in lines if line][-TAIL:]
