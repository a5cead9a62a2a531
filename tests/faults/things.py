"""Small whole things of every kind that the project writes, made once in a folder, and what must be
equal in two of them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import children
import numpy as np
import student_maker
import test_extract
import test_multi_host
import toy
from test_record_files import HEADER, record

from dss_jax.records.files import write_records
from dss_jax.run import run_folder
from dss_jax.train.metric_log import read_metrics

TIMES = ("examples_per_second", "tokens_per_second", "useful_tflops_per_second")
STEPS, EVERY = 20, 4
ROWS = 60
"""Of the tables that a student reads, and of records."""


class Place:
    """A folder with all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "said.log"
        os.environ["DSS_COMPILE_CACHE"] = str(self.folder / "compiled")
        os.environ["DSS_CACHE_DIR"] = str(self.folder / "cache")
        self.tasks = self.folder / "tasks"
        if not self.tasks.is_dir():
            self.tasks.mkdir()
            (self.tasks / "toy.py").write_text(test_multi_host.TASK)
            (self.tasks / "choices.py").write_text(student_maker.TASK)
            (self.tasks / "rows.py").write_text(test_extract.TASK)
            lines = [json.dumps({"id": f"r{i}", "input": f"row {i}"}) for i in range(ROWS)]
            (self.tasks / "rows.jsonl").write_text("\n".join(lines))

    def once(self, name: str, make: Callable[[Path], object], status: int = 0) -> Path:
        """A thing that is made in a child, which ends so, where it is not there yet."""
        if not (at := self.folder / name).exists():
            part = self.folder / "part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            children.made(lambda: make(part / name), self.log, status)
            (part / name).rename(at)
        return at

    def dss(self, *arguments: object, **options: Any) -> children.Ended:
        """See `children.command`."""
        return children.command(list(map(str, arguments)), self.log, **options)

    def train(self, out: Path, store: Path | None = None, **settings: object) -> list[str]:
        """The arguments of a run over the toy store."""
        more = {"Train__steps": STEPS, "Train__checkpoint_every": 3, "Evaluate__every": EVERY}
        place = test_multi_host.Place(self.folder, store or self.store())
        # An absolute path stays what it is.
        return place.arguments("train", str(out), **{**more, **settings})

    def store(self) -> Path:
        return self.once("store", lambda at: toy.make_store(at, np.random.default_rng(0)))

    def whole(self) -> Path:
        """A finished run that nobody has disturbed."""
        at = self.folder / "whole"
        if not (at / run_folder.RESULTS).is_file():
            ended = self.dss(*self.train(at), linear=True)
            assert ended.status == 0, ended.said
        return at

    def stopped(self) -> Path:
        """The same run, stopped half-way, and asked to keep some checkpoints."""

        store = self.store()

        def stop(at: Path) -> None:
            import pytest

            toy.interrupt_before(pytest.MonkeyPatch(), STEPS // 2)
            children.dss(self.train(at, store, Train__keep_checkpoints=2), linear=True)

        return self.once("stopped", stop, 130)

    def student(self) -> Path:
        """A run's folder with a T5 of random weights, and rows for it."""

        def make(at: Path) -> None:
            store = student_maker.make_store(at / "store", count=10)
            student_maker.make_student(at / "run", store)
            with (at / "rows.jsonl").open("w") as file:
                for row in student_maker.raw_rows(ROWS):
                    line = {"input": row["question"], "allowed_labels": row["choices"]}
                    file.write(json.dumps(line | {"id": row["number"]}) + "\n")

        return self.once("student", make)

    def exported(self, form: str) -> Path:
        run = self.student() / "run"
        words = ["convert", "--from", "orbax", str(run), "--to", form]
        # By this name T5X finds a checkpoint.
        below = "checkpoint_0" if form == "t5x" else "student"
        return self.once(f"{form}-form", lambda at: check(children.dss([*words, str(at / below)])))

    def records(self) -> Path:
        def make(at: Path) -> None:
            write_records(at / "r.jsonl", HEADER, [record(f"row-{i}") for i in range(ROWS)])

        return self.once("records", make)


def check(status: int) -> None:
    assert status == 0, status


def run_outcome(folder: Path, read: bool = True) -> dict:
    """What two runs must have in common: parameters, optimiser (not without `read`), results,
    numbers, predictions.
    """
    import orbax.checkpoint as ocp

    arrays, steps = {}, sorted(int(p.name) for p in (folder / "checkpoints").iterdir())
    with ocp.PyTreeCheckpointer() as reader:
        for item in ("params", "optimizer") if read else ():
            tree = reader.restore((folder / "checkpoints" / str(steps[-1]) / item).absolute())
            for name, array in ocp.tree.to_flat_dict(tree, sep="/").items():
                digest = hashlib.sha256(np.asarray(array).tobytes()).hexdigest()
                arrays[f"{item}/{name}"] = digest
    metrics = read_metrics(folder / run_folder.METRICS)
    files = sorted((folder / run_folder.PREDICTIONS).glob("*-best.jsonl"))
    return {
        "arrays": arrays,
        "metrics": [{k: v for k, v in line.items() if k not in TIMES} for line in metrics],
        "results": run_folder.read_results(folder),
        "predictions": {file.name: file.read_text() for file in files},
        "checkpoints": steps,
    }


def texts(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The content of some files."""
    return {name: (folder / name).read_text(errors="replace") for name in names}


def contents(folder: Path, of: Callable[[Path], bool]) -> dict[str, str]:
    """Digests of files."""
    files = (f for f in sorted(folder.rglob("*")) if f.is_file() and of(f))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def of(outcome: Callable[[Path], dict], folder: Path, log: Path) -> dict:
    """What a function says of a folder, from a child; {}: it fails."""
    answer = folder.parent / f"{folder.name}.outcome"
    answer.unlink(missing_ok=True)

    def write() -> None:
        answer.write_text(json.dumps(outcome(folder)))

    log.unlink(missing_ok=True)
    if children.wait(children.child(write, log), log).status != 0:
        return {}
    found: dict = json.loads(answer.read_text())
    answer.unlink()
    return found
