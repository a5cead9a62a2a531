"""The same faults at Orbax, T5X, Hugging Face's Trainer and here: what each of them does.

  python benchmarks/faults_peers.py --only orbax,t5x,trainer,ours

Each library trains a few steps, saves, and goes on (`peers.py`). Its checkpoints are damaged, its
process is killed, its disk is full; then the same code is run again. Every try is a child process,
and its outcome one of: right (ends with the very arrays of the run that nothing happened to),
refused (an error of at most 600 characters that names the checkpoint, the file or the folder),
traceback (any other error), wrong (ends without an error, and with other arrays), crashed, hung.

Installs nothing, and passes over a library that is not there; T5X and `accelerate` are in none of
our requirements. The full disk is a small tmpfs, which root may mount. Writes a JSON file and the
table of docs/reliability.md.
"""

import argparse
import datetime
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peers import EVERY, PEERS, STEPS, STOPPED, Arrays, Peer, Told
from reporting import RESULTS, command, processor, write_report

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- peers -->", "<!-- /peers -->"
SECONDS = 180
"""After so many a try counts as hung."""

LONGEST = 600
"""Characters of an error that is read as a message: about five lines of a terminal."""

Result = dict[str, str]
"""`outcome`, and what was `said`."""


class Tries:
    """All tries of one library."""

    def __init__(self, peer: Peer, folder: Path, scale: float) -> None:
        self.peer, self.folder, self._scale = peer, folder, scale
        self._log = folder / "said.log"
        self.results: dict[str, list[Result]] = {}

    def tries(self, many: int) -> range:
        return range(max(1, round(many * self._scale)))

    def run(self, work: Callable[[], Any], *named: object) -> Result:
        """The outcome of some work in a child; `named`: what a clear error says one of."""
        return self.end(self.start(work, *named))

    def start(self, work: Callable[[], Any], *named: object) -> tuple[int, Path]:
        """Begins it: the child's process id, and the file of its result."""
        file = Path(tempfile.mkstemp(dir=self.folder)[1])
        if pid := os.fork():
            return pid, file
        try:
            out = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            try:
                result = work()
            except Exception as error:
                traceback.print_exc()
                text = str(error).strip()
                clear = len(text) <= LONGEST and any(str(name) in text for name in named)
                result = {"outcome": "refused" if clear else "traceback"}
                said = f"{type(error).__name__}: {text}".replace(str(self.folder), "DIR")
                result["said"] = said[:300]
            file.write_text(json.dumps(result))
        finally:
            os._exit(0)

    def end(self, child: tuple[int, Path], seconds: float = SECONDS) -> Result:
        """Waits for it."""
        pid, file = child
        deadline, status = time.monotonic() + seconds, None
        while status is None and time.monotonic() < deadline:
            done, code = os.waitpid(pid, os.WNOHANG)
            status = code if done else None
            time.sleep(0.01)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        text = file.read_text()
        file.unlink()
        if status is None:
            return {"outcome": "hung", "said": f"after {seconds:.0f} s"}
        if os.WIFSIGNALED(status) or not text:
            return {"outcome": "crashed", "said": f"status {status}"}
        found: Result = json.loads(text)
        return found

    def train(self, folder: Path, told: Told = lambda: None) -> Callable[[], Result]:
        """A run to the end in a folder, or what is left of it: right or wrong."""
        return lambda: judged(self.peer.train(folder, STEPS, told), self._expected())

    def read(self, folder: Path) -> Result:
        """What a finished run has saved."""
        return judged(self.peer.read(folder), self._expected())

    def _expected(self) -> Arrays:
        with np.load(self.folder / "expected.npz") as arrays:
            return dict(arrays)

    def begin(self) -> None:
        """The run that nothing happens to, twice, and one that was stopped."""
        peer = self.peer

        def whole() -> Result:
            told: list[float] = []
            arrays = peer.train(self.folder / "whole", STEPS, lambda: told.append(time.monotonic()))
            np.savez(self.folder / "expected.npz", **arrays)  # type: ignore[arg-type]
            between = np.diff(told)
            (self.folder / "seconds").write_text(f"{float(np.median(between))}")
            return {"outcome": "right", "said": ""}

        def stopped() -> Result:
            peer.train(self.folder / "stopped", STOPPED, lambda: None)
            return {"outcome": "right", "said": ""}

        for work in (whole, stopped):
            if (result := self.run(work))["outcome"] != "right":
                raise SystemExit(f"{peer.name} failed with no fault: {result} {self._log}")
        for stops in (False, True):
            result = self.run(self.train(self._fresh(stops)))
            if result["outcome"] != "right":
                raise SystemExit(f"{peer.name} is not the same each time: {result} {self._log}")

    def _fresh(self, stopped: bool = False) -> Path:
        """A folder's name, or a copy of the run that was stopped."""
        folder = self.folder / "try"
        shutil.rmtree(folder, ignore_errors=True)
        if stopped:
            shutil.copytree(self.folder / "stopped", folder)
        return folder

    def damage(self, fault: str, many: int, harm: Callable[[random.Random, Path], str]) -> None:
        """The newest checkpoint is harmed, and the run goes on."""
        found = self.results[fault] = []
        for seed in self.tries(many):
            folder = self._fresh(stopped=True)
            newest = max(self.peer.checkpoints(folder).items())[1]
            name = harm(random.Random(seed), newest)
            result = self.run(self.train(folder), newest, name)
            found.append({"what": name.replace(str(self.folder), "DIR"), **result})

    def kills(self, fault: str, many: int) -> None:
        """SIGKILL at a random moment of a save, then the same again."""
        found = self.results[fault] = []
        chance = random.Random(0)
        longest = float((self.folder / "seconds").read_text())
        while len(found) < len(self.tries(many)):
            folder, told = self._fresh(), self.folder / "told"
            told.unlink(missing_ok=True)
            saves = chance.randint(1, STEPS // EVERY - 1)

            def tell(told: Path = told) -> None:
                with told.open("a") as file:
                    file.write(".")

            child = self.start(self.train(folder, tell))
            while not (told.exists() and told.stat().st_size >= saves):
                time.sleep(0.001)
            time.sleep(chance.uniform(0, longest))
            os.kill(child[0], signal.SIGKILL)
            if self.end(child)["outcome"] != "crashed" or STEPS in self.peer.checkpoints(folder):
                continue  # It was, or looked, done before.
            left = sorted(p.name for p in self.peer.saved_in(folder).iterdir())
            result = self.run(self.train(folder), folder)
            found.append({"what": f"in save {saves}; left: {' '.join(left)}", **result})

    def once_more(self, fault: str) -> None:
        """The run is finished, and the same code runs again; then what it has saved is read."""
        shutil.copytree(self.folder / "whole", folder := self._fresh())
        again = [self.run(self.train(folder), folder), self.run(lambda: self.read(folder))]
        self.results[fault] = [max(again, key=severity)]

    def full_disk(self, first: str, then: str) -> None:
        """The second checkpoint has no room; then there is room, and the run goes on."""
        size = sum(f.stat().st_size for f in (self.folder / "stopped").rglob("*") if f.is_file())
        checkpoints = len(self.peer.checkpoints(self.folder / "stopped"))
        place = self.folder / "disk"
        place.mkdir()
        room = int(size / checkpoints * 1.5)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            return
        try:
            folder = place / "run"
            self.results[first] = [self.run(self.train(folder), place, "No space left")]
            subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)
            self.results[then] = [self.run(self.train(folder), place)]
        finally:
            subprocess.run(["umount", str(place)], check=True)

    def two_processes(self, fault: str, many: int) -> None:
        """Both begin the same run in one folder, which holds it afterwards."""
        found = self.results[fault] = []
        chance = random.Random(0)
        for _ in self.tries(many):
            folder = self._fresh()
            first = self.start(self.train(folder), folder)
            time.sleep(chance.uniform(0, float((self.folder / "seconds").read_text())))
            both = [first, self.start(self.train(folder), folder)]
            results = [*map(self.end, both), self.run(partial(self.read, folder))]
            worst = max(results, key=severity)
            found.append({"what": ", ".join(r["outcome"] for r in results), **worst})

    def _keep(self, folder: Path, losses: list[float]) -> Result:
        lowest = 1 + min((x, i) for i, x in enumerate(losses) if x == x)[1]
        named, left = self.peer.keep_best(folder, losses)
        fine = lowest in left and named in (None, lowest)
        said = f"losses {losses}: the best is {named}, left are {sorted(left)}"
        return {"outcome": "right" if fine else "wrong", "said": said}

    def not_finite(self, best: str, batch: str, many: int) -> None:
        """Losses of checkpoints, one of them NaN; and the loss of a batch."""
        found = self.results[best] = []
        for seed in self.tries(many):
            chance = random.Random(seed)
            losses = [0.9, 0.7, 0.5, 0.3]
            chance.shuffle(losses)
            losses[chance.randrange(4)] = float("nan")
            found.append(self.run(partial(self._keep, self._fresh(), losses)))

        def train() -> Result:
            arrays = self.peer.train_on_nan(self._fresh())
            if arrays is None:
                return {"outcome": "no loop", "said": ""}
            bad = sum(not np.isfinite(x).all() for x in arrays.values())
            said = f"{bad} of {len(arrays)} arrays are not finite"
            return {"outcome": "wrong" if bad else "right", "said": said}

        if (result := self.run(train))["outcome"] != "no loop":
            self.results[batch] = [result]


SEVERITY = ("right", "refused", "traceback", "crashed", "hung", "wrong")


def severity(result: Result) -> int:
    return SEVERITY.index(result["outcome"])


def judged(found: Arrays, expected: Arrays) -> Result:
    """Right where all arrays are the same bit for bit."""
    if found.keys() != expected.keys():
        return {"outcome": "wrong", "said": "other arrays"}
    apart = [name for name, x in found.items() if not np.array_equal(x, expected[name], True)]
    if not apart:
        return {"outcome": "right", "said": ""}
    with np.errstate(all="ignore"):
        most = max(float(np.nanmax(np.abs(found[n] - expected[n]))) for n in apart)
    return {"outcome": "wrong", "said": f"{len(apart)} of {len(found)} arrays, by up to {most:.3g}"}


def _files(checkpoint: Path) -> list[Path]:
    return sorted(f for f in checkpoint.rglob("*") if f.is_file() and f.stat().st_size)


def _by_size(chance: random.Random, checkpoint: Path) -> Path:
    files = _files(checkpoint)
    return chance.choices(files, [f.stat().st_size for f in files])[0]


def flip(chance: random.Random, checkpoint: Path) -> str:
    """One bit of the checkpoint's bytes."""
    file = _by_size(chance, checkpoint)
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return str(file)


def cut(chance: random.Random, checkpoint: Path) -> str:
    """One file ends too early."""
    file = _by_size(chance, checkpoint)
    os.truncate(file, chance.randrange(file.stat().st_size))
    return str(file)


def remove(chance: random.Random, checkpoint: Path) -> str:
    """One file is missing."""
    file = chance.choice(_files(checkpoint))
    file.unlink()
    return str(file)


def copied_in_part(chance: random.Random, checkpoint: Path) -> str:
    """The copy ended after some of its files, in any order."""
    files = _files(checkpoint)
    for file in chance.sample(files, chance.randrange(1, len(files))):
        file.unlink()
    return str(checkpoint)


def empty(chance: random.Random, checkpoint: Path) -> str:
    """A copy that has only begun."""
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    return str(checkpoint)


ROWS = {
    "flip": "one flipped bit in the newest checkpoint",
    "cut": "a file of it cut short",
    "missing": "a file of it missing",
    "part": "it was copied in part",
    "empty": "its folder is empty",
    "kill": "kill -9 during a save",
    "full": "the disk is full at the second save",
    "room": "... then there is room",
    "two": "two processes in one folder",
    "again": "the same command after the end",
    "best": "keep the best: one loss is NaN",
    "nan": "a batch's loss is NaN",
}


def all_faults(peer: Peer, folder: Path, scale: float) -> Iterator[dict[str, list[Result]]]:
    """What has been found so far, after each kind of fault."""
    tries = Tries(peer, folder, scale)
    tries.begin()
    for kind, many, harm in (
        ("flip", 20, flip),
        ("cut", 10, cut),
        ("missing", 10, remove),
        ("part", 6, copied_in_part),
        ("empty", 1, empty),
    ):
        tries.damage(kind, many, harm)
        yield tries.results
    tries.kills("kill", 10)
    yield tries.results
    tries.full_disk("full", "room")
    yield tries.results
    tries.two_processes("two", 4)
    tries.once_more("again")
    yield tries.results
    tries.not_finite("best", "nan", 10)
    yield tries.results


def counted(results: list[Result] | None) -> str:
    if not results:
        return "-"
    counts = Counter(result["outcome"] for result in results)
    return ", ".join(f"{counts[o]} {o}" for o in SEVERITY if counts[o])


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line a fault."""
    names = [f"{one['name']} {next(iter(one['versions'].values()))}" for one in found.values()]
    lines = ["| fault | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for kind, title in ROWS.items():
        cells = [counted(one["results"].get(kind)) for one in found.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Tries, writes and prints."""
    parser = argparse.ArgumentParser(prog="faults_peers.py", description=__doc__)
    parser.add_argument("--only", default=",".join(PEERS), help="some of them")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of tries")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    file = args.out / "faults-peers.json"
    found = json.loads(file.read_text())["libraries"] if file.exists() else {}
    for key in args.only.split(","):
        peer = PEERS[key]()
        if missing := peer.missing():
            print(f"{peer.name} is left out: {', '.join(missing)} is not installed here")
            continue
        folder = Path(tempfile.mkdtemp(prefix=f"faults-{key}-"))
        # Each library in a process of its own, from which its tries are forked.
        if not (pid := os.fork()):
            _try_all(peer, folder, args.scale)
        os.waitpid(pid, 0)
        one = json.loads((folder / "found.json").read_text())
        found[key] = {"name": peer.name, **one, "date": datetime.date.today().isoformat()}
        shutil.rmtree(folder)
        found = {key: found[key] for key in PEERS if key in found}
        report = {"command": command(arguments, "faults_peers.py"), "device": processor()}
        write_report({**report, "libraries": found}, file)
    page = table(found)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{page}\n{END}{rest.partition(END)[2]}")
    print(f"{page}\n{file}")


def _try_all(peer: Peer, folder: Path, scale: float) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        peer.prepare(folder)
        start = time.monotonic()
        for results in all_faults(peer, folder, scale):
            kinds = {kind: counted(found) for kind, found in results.items()}
            print(f"{peer.name} {time.monotonic() - start:4.0f} s {kinds}", flush=True)
            one = {"versions": peer.versions(), "results": results}
            (folder / "found.json").write_text(json.dumps(one))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
