"""Runs of 2 and 4 real processes: one killed, late, or with something else than the others."""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import test_multi_host as hosts
import things
from children import FINE, HUNG, REFUSED, SILENT, TRACEBACK

PATIENCE = 200.0
"""Seconds in which the others of a process that was killed must have ended."""

OTHER_CODE = """
import sys
from dss_jax.core import digest
digest.code_digest = lambda: "another"
from dss_jax.run import hosts
hosts.code_digest = digest.code_digest
from dss_jax.cli.main import main
sys.exit(main())
"""

LATE = "import time; time.sleep(15)\n" + hosts.SLOW.replace("0.1", "0.0")
PLAIN = hosts.SLOW.replace("0.1", "0.0")

Started = list[subprocess.Popen]


class Several:
    """The runs, in a folder."""

    def __init__(self, place: things.Place) -> None:
        self.folder = place.folder / "hosts"
        self.folder.mkdir(exist_ok=True)
        shutil.copytree(place.tasks, self.folder / "tasks", dirs_exist_ok=True)
        self.place = hosts.Place(self.folder, place.store())
        self.log = place.log
        self.store = place.store()

    def start(self, name: str, programs: Sequence[str], **settings: object) -> Started:
        """A process for each program."""
        started: Started = []
        words = self.place.arguments("train", name, **settings)
        # One by one: each has a program of its own.
        for own in hosts._start(len(programs), [words] * len(programs), PLAIN):
            started.append(own)
        return started

    def alone(self) -> Path:
        at = self.folder / "alone"
        if not (at / "results.json").is_file():
            hosts._run(1, self.place.arguments("train", "alone"))
        return at

    def same(self, name: str) -> bool:
        """Whether a run is that of one process."""

        def compare() -> None:
            hosts._assert_same_run(self.alone(), self.folder / name, 60)

        import children

        self.log.unlink(missing_ok=True)
        return children.wait(children.child(compare, self.log), self.log).status == 0

    def logged(self, name: str, started: Started) -> None:
        """Returns when some steps are logged."""
        log = self.folder / name / "metrics.jsonl"
        while not (log.exists() and len(hosts.read_metrics(log)) > 35):
            if any(process.poll() is not None for process in started):
                return
            time.sleep(0.05)


def ended(started: Started, seconds: float = PATIENCE) -> list[tuple[int | None, str]]:
    """(status, what it said) of each; None: it had to be killed."""
    found, until = [], time.monotonic() + seconds
    for process in started:
        try:
            out, err = process.communicate(timeout=max(1.0, until - time.monotonic()))
            found.append((process.returncode, out + err))
        except subprocess.TimeoutExpired:
            process.kill()
            found.append((None, "".join(map(str, process.communicate()))))
    return found


def _went_on(one: Several, name: str, count: int, **settings: object) -> tuple[str, str]:
    """The same command with so many processes: whether it ends as one process."""
    said = ended(one.start(name, [PLAIN] * count, **settings))
    if any(status is None for status, _ in said):
        return HUNG, said[0][1]
    if any(status != 0 for status, _ in said):
        return TRACEBACK, said[0][1]
    return (FINE, "") if one.same(name) else (SILENT, said[0][1])


def _refused(said: list[tuple[int | None, str]], status: int, text: str) -> tuple[str, str]:
    """All end with this status and say this."""
    for code, words in said:
        if code is None:
            return HUNG, words
        if "Traceback" in words:
            return TRACEBACK, words
        if code != status or not re.search(text, words):
            return SILENT, f"{code}: {words}"
    return REFUSED, said[0][1]


def _disturbed(
    number: signal.Signals, count: int, after: int, **settings: object
) -> Callable[[Several, str], tuple[str, str]]:
    """One of several gets a signal; the same command goes on with another number of processes."""

    def case(one: Several, name: str) -> tuple[str, str]:
        words = one.place.arguments("train", name, **settings)
        started = hosts._start(count, [words] * count, program=hosts.SLOW)
        one.logged(name, started)
        started[-1].send_signal(number)
        began = time.monotonic()
        said = ended(started)
        seconds = time.monotonic() - began
        told = {signal.SIGTERM: {185}, signal.SIGINT: {130, 185}}.get(number)
        for code, text in said[: None if told else -1]:
            if code is None:
                return HUNG, text
            if told and code not in told:
                return TRACEBACK, f"{code}: {text}"
            if not told and (code == 0 or "Traceback" in text):
                return TRACEBACK, f"{code} after {seconds:.0f} s: {text}"
        outcome, text = _went_on(one, name, after)
        return outcome, text or f"the others ended after {seconds:.0f} s"

    return case


def _same(count: int, **settings: object) -> Callable[[Several, str], tuple[str, str]]:
    return lambda one, name: _went_on(one, name, count, **settings)


def _mixed(programs: Sequence[str]) -> Callable[[Several, str], Started]:
    def start(one: Several, name: str) -> Started:
        words = one.place.arguments("train", name)
        count, started = len(programs), []
        real = subprocess.Popen
        left = list(programs)

        def own(command: list[str], **options: object) -> subprocess.Popen:
            return real([*command[:2], left.pop(0), *command[3:]], **options)

        hosts.subprocess.Popen = own
        try:
            started = hosts._start(count, [words] * count)
        finally:
            hosts.subprocess.Popen = real
        return started

    return start


def _late(one: Several, name: str) -> tuple[str, str]:
    said = ended(_mixed([PLAIN, LATE])(one, name))
    wrong = [text for code, text in said if code != 0]
    return (TRACEBACK, wrong[0]) if wrong else ((FINE, "") if one.same(name) else (SILENT, ""))


def _other_code(one: Several, name: str) -> tuple[str, str]:
    return _refused(ended(_mixed([PLAIN, OTHER_CODE])(one, name)), 2, "not the same code of dss")


def _other_settings(one: Several, name: str) -> tuple[str, str]:
    words = [one.place.arguments("train", name, Train__steps=n) for n in (60, 61)]
    return _refused(ended(hosts._start(2, words)), 2, "not the same configuration")


def _other_data(one: Several, name: str) -> tuple[str, str]:
    other = one.folder / "other-store"
    if not other.exists():
        import children
        import numpy as np
        import toy

        children.made(lambda: toy.make_store(other, np.random.default_rng(1)), one.log)
    words = [hosts.Place(one.folder, s).arguments("train", name) for s in (one.store, other)]
    return _refused(ended(hosts._start(2, words)), 2, "not the same token store")


CASES: dict[str, Callable[[Several, str], tuple[str, str]]] = {
    "two, nothing wrong": _same(2),
    "four, another mesh": _same(4, Mesh__data=2, Mesh__model=2),
    "two, one killed, then one": _disturbed(signal.SIGKILL, 2, 1),
    "two, one killed, then four": _disturbed(signal.SIGKILL, 2, 4),
    "four, one killed, then two": _disturbed(signal.SIGKILL, 4, 2, Mesh__data=2, Mesh__model=2),
    "two, SIGTERM to one, then four": _disturbed(signal.SIGTERM, 2, 4),
    "four, SIGTERM to one, then two": _disturbed(signal.SIGTERM, 4, 2, Mesh__model=2, Mesh__data=2),
    "two, Ctrl-C to one, then two": _disturbed(signal.SIGINT, 2, 2),
    "two, one 15 s late": _late,
    "two, one with other settings": _other_settings,
    "two, one with other data": _other_data,
    "two, one with other code": _other_code,
}


def tried(place: things.Place, name: str) -> dict:
    """What becomes of a case."""
    one = Several(place)
    folder = re.sub(r"\W+", "-", name)
    shutil.rmtree(one.folder / folder, ignore_errors=True)
    one.alone()
    outcome, said = CASES[name](one, folder)
    shutil.rmtree(one.folder / folder, ignore_errors=True)
    return {"outcome": outcome, "said": said[-1500:]}
