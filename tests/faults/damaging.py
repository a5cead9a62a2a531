"""Files of every kind that the project writes, damaged as disks, copies and editors do, and then
read by the command that reads them.
"""

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import children
import things
from children import FINE, LOST, REFUSED, SAID, SILENT, Ended
from results_maker import accuracy_of, write_run
from test_extract import command

from dss_jax.core.sweep_config import Cell
from dss_jax.run import run_folder
from dss_jax.train.checkpoint import LATER

Damage = Callable[[bytes, random.Random], bytes | None]
"""Content -> what is left of it; None: the file is gone."""


def _flipped(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) * 8)
    changed = bytearray(content)
    changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


def _zeros(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] + bytes(len(content[at : at + 512])) + content[at + 512 :]


def _lines(content: bytes, chance: random.Random, *, twice: bool) -> bytes:
    lines = content.splitlines(keepends=True)
    at = chance.randrange(len(lines))
    if twice:
        return b"".join([*lines[: at + 1], *lines[at:]])
    return b"".join(lines[: max(1, at)] if len(lines) > 1 else lines)


DAMAGES: dict[str, Damage] = {
    "a bit flipped": _flipped,
    "another bit flipped": _flipped,
    "cut in the middle": lambda content, _: content[: len(content) // 2],
    "the last byte missing": lambda content, _: content[:-1],
    "a block of zeros": _zeros,
    "empty": lambda content, _: b"",
    "gone": lambda content, _: None,
    "cut at a line's end": lambda content, chance: _lines(content, chance, twice=False),
    "a line twice": lambda content, chance: _lines(content, chance, twice=True),
}
TEXT = (".json", ".jsonl", ".gin", ".md", ".csv", ".partial")


@dataclass
class Kind:
    """A thing on the disk and the command that reads it.

    Attributes:
      whole: the folder that is copied and damaged.
      read: (copy, outcome=...) runs the command.
      outcome: of the copy, what must be as with the whole one.
      files: which of its files are damaged.
      lists: whether it names all files anyway.
      most: cases, at most.
    """

    whole: Callable[[], Path]
    read: Callable[..., Ended]
    outcome: Callable[[Path], dict]
    files: Callable[[Path], bool] = lambda file: True
    most: int = 12
    lists: bool = False

    def ended(self, at: Path) -> Ended:
        """The command on a copy; `made` is the outcome."""
        return self.read(at, outcome=lambda: self.outcome(at))


def cases(kinds: dict[str, Kind], seed: int) -> Iterator[tuple[str, str, str]]:
    """(kind, file, damage), in an order of the seed."""
    every = []
    for kind, one in kinds.items():
        whole, found = one.whole(), []
        for file in sorted(f for f in whole.rglob("*") if f.is_file() and one.files(f)):
            for damage in DAMAGES:
                if not damage.endswith(("line's end", "line twice")) or file.suffix in TEXT:
                    found.append((kind, file.relative_to(whole).as_posix(), damage))
        random.Random(f"{seed} {kind}").shuffle(found)
        every.append(found[: one.most])
    # One of each in turn.
    for turn in itertools.zip_longest(*every):
        yield from filter(None, turn)


def damaged(kind: Kind, file: str, damage: str, at: Path, expected: dict, seed: int) -> dict:
    """What becomes of a copy with a damaged file, and of the same copy once it is mended."""
    shutil.rmtree(at, ignore_errors=True)
    shutil.copytree(kind.whole(), at)
    content = (at / file).read_bytes()
    left = DAMAGES[damage](content, random.Random(f"{seed} {file} {damage}")) if content else None
    (at / file).unlink()
    if left is not None:
        (at / file).write_bytes(left)
    ended = kind.ended(at)
    found = {"status": ended.status, "outcome": ended.outcome, "said": ""}
    if ended.outcome == FINE and left != content and ended.made != expected:
        words = (Path(file).name, "damaged", "left out")
        said = not kind.lists and any(word in ended.said for word in words)
        found["outcome"] = SAID if said else SILENT
    elif ended.outcome == REFUSED and (at / file).parent.is_dir():
        # Nothing else is lost: with the right file again it does.
        (at / file).write_bytes(content)
        again = kind.ended(at)
        if again.made != expected:
            found |= {"outcome": LOST, "said": again.said[-1500:]}
    if found["outcome"] not in (FINE, REFUSED):
        found["said"] = found["said"] or ended.said[-1500:]
    elif found["outcome"] == REFUSED:
        found["said"] = next(
            (x for x in ended.said.splitlines() if x.startswith(("dss: ", "! "))), ""
        )
    shutil.rmtree(at)
    return found


def kinds(place: things.Place, url: str) -> dict[str, Kind]:
    """Name -> kind."""
    return _runs(place) | _students(place) | _stage_1(place, url) | _many(place)


def _runs(place: things.Place) -> dict[str, Kind]:
    def trained(at: Path) -> dict:
        found = things.run_outcome(at)
        return {k: v for k, v in found.items() if k != "checkpoints"}

    toy_store = place.store()

    def short(at: Path) -> list[str]:
        return place.train(at / "out", toy_store, Train__steps=4, Train__checkpoint_every=4)

    def of_store(at: Path, **more: Any) -> Ended:
        store = at / "store"
        words = short(at)
        words[words.index("--store") + 1] = str(store)
        return place.dss(*words, linear=True, **more)

    def store() -> Path:
        return place.once("stores", lambda at: shutil.copytree(toy_store, at / "store"))

    def compiled() -> Path:
        def make(at: Path) -> None:
            children.dss(short(at), linear=True, DSS_COMPILE_CACHE=str(at / "compiled"))
            shutil.rmtree(at / "out")

        return place.once("compiled-once", make)

    def files(*names: str) -> Callable[[Path], bool]:
        # Nothing is read from what Orbax writes last.
        out = (run_folder.LOCK, *LATER)
        return lambda file: file.name not in out and any(n in str(file) for n in names)

    def of_eval(at: Path) -> dict:
        (file,) = (at / "predictions").glob("test-[0-9]*.jsonl")
        return {"predictions": file.read_text()}

    def evaluated(at: Path, **more: Any) -> Ended:
        words = ("eval", "--output_dir", at, "--task_dir", place.tasks)
        return place.dss(*words, linear=True, **more)

    said = ("metrics", "t5_config", "spiece", "results", "-best", "checkpoints")
    return {
        "a stopped run, dss train": Kind(
            place.stopped,
            lambda at, **more: place.dss(*place.train(at), linear=True, **more),
            trained,
            most=34,
        ),
        "a finished run, dss eval": Kind(
            place.whole, evaluated, of_eval, files("checkpoints", "config", "spiece", "student")
        ),
        "a finished run, dss report": Kind(
            place.whole,
            lambda at, **more: place.dss("report", at, "--html", "--out", at / "report", **more),
            lambda at: things.texts(at / "report", ["report.md", "results.csv"]),
            files("results", "-best", "config.gin"),
            most=40,
        ),
        "a finished run, dss doctor": Kind(
            place.whole,
            lambda at, **more: place.dss("doctor", at, **more),
            lambda at: things.contents(at, files(*said)),
            files(*said),
            most=60,
            lists=True,
        ),
        "a token store, dss doctor": Kind(
            lambda: toy_store,
            lambda at, **more: place.dss("doctor", at, **more),
            lambda at: things.contents(at, lambda file: True),
            most=40,
        ),
        "a token store, dss train": Kind(store, of_store, lambda at: trained(at / "out")),
        "compiled code, dss train": Kind(
            compiled,
            lambda at, **more: place.dss(
                *short(at), linear=True, DSS_COMPILE_CACHE=str(at / "compiled"), **more
            ),
            lambda at: trained(at / "out"),
        ),
    }


def _students(place: things.Place) -> dict[str, Kind]:
    rows = place.student() / "rows.jsonl"

    def asked(folder: str) -> Callable[[Path], Ended]:
        def read(at: Path, **more: Any) -> Ended:
            (at / "out.jsonl").unlink(missing_ok=True)
            words = ["--input", rows, "--out", at / "out.jsonl"]
            return place.dss("predict", "--student", at / folder, *words, **more)

        return read

    def answers(at: Path) -> dict:
        return things.texts(at, ["out.jsonl"])

    def converted(form: str, below: str) -> Callable[[Path], Ended]:
        def read(at: Path, **more: Any) -> Ended:
            shutil.rmtree(at / "hf", ignore_errors=True)
            words = ["--from", form, at / below, "--to", "hf", at / "hf"]
            return place.dss("convert", *words, **more)

        return read

    def weights(at: Path) -> dict:
        import hashlib

        files = [at / "hf" / name for name in ("model.safetensors", "spiece.model", "config.json")]
        found = [file for file in files if file.is_file()]  # T5X has no vocabulary.
        return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in found}

    def partial() -> Path:
        def make(at: Path) -> None:
            import os
            import signal

            from dss_jax.student import predict

            predict.CHUNK, real = 16, predict._answered

            def answered(student: object, chunk: Sequence, names: object, job: object) -> list:
                if list(at.glob("*.partial.json")):
                    os.kill(os.getpid(), signal.SIGINT)
                return real(student, chunk, names, job)

            predict._answered = answered
            at.mkdir()
            words = ["predict", "--student", str(rows.parent / "run"), "--input", str(rows)]
            children.dss([*words, "--out", str(at / "out.jsonl")])

        return place.once("predicting", make, 130)

    def go_on(at: Path, **more: Any) -> Ended:
        words = ["--input", rows, "--out", at / "out.jsonl"]
        return place.dss("predict", "--student", rows.parent / "run", *words, **more)

    def own(file: Path) -> bool:
        return file.name not in ("README.md", "rows.jsonl") and "store" not in file.parts

    return {
        "a run, dss predict": Kind(place.student, asked("run"), answers, own),
        "a student in hf, dss predict": Kind(
            lambda: place.exported("hf"), asked("student"), answers, own
        ),
        "a student in ctranslate2, dss predict": Kind(
            lambda: place.exported("ctranslate2"), asked("student"), answers, own, most=30
        ),
        "a student in orbax, dss convert": Kind(
            lambda: place.exported("orbax"), converted("orbax", "student"), weights, own
        ),
        "a student in t5x, dss convert": Kind(
            lambda: place.exported("t5x"), converted("t5x", "checkpoint_0"), weights, own
        ),
        "a table half answered, dss predict": Kind(partial, go_on, answers, most=16),
    }


def _stage_1(place: things.Place, url: str) -> dict[str, Kind]:
    def asked(at: Path, **more: Any) -> Ended:
        (at / "out.jsonl").unlink(missing_ok=True)
        return place.dss(*command(place.tasks, url, at / "out.jsonl"), **more)

    def journal() -> Path:
        def make(at: Path) -> None:
            at.mkdir()
            things.check(children.dss(command(place.tasks, url, at / "out.jsonl")))
            (at / "out.jsonl").unlink()

        return place.once("journal", make)

    def answers(at: Path) -> dict:
        header, *lines = (at / "out.jsonl").read_text().splitlines()
        return {"header": json.loads(header)["totals"]["statuses"], "lines": lines}

    def filtered(at: Path, **more: Any) -> Ended:
        (at / "out.jsonl").unlink(missing_ok=True)
        words = ["--out", at / "out.jsonl", "--only", "ok"]
        return place.dss("records", "filter", at / "r.jsonl", *words, **more)

    return {
        "a journal, dss extract": Kind(journal, asked, answers, most=20),
        "records, dss records": Kind(
            place.records, filtered, lambda at: things.texts(at, ["out.jsonl"]), most=20
        ),
    }


def _many(place: things.Place) -> dict[str, Kind]:
    store = place.store()

    def seeds(at: Path) -> list[str]:
        run = place.train(at / "run", store, Train__steps=4, Train__checkpoint_every=4)
        return [*run, "--seeds", "0,1"]

    def trained() -> Path:
        return place.once("seeds", lambda at: things.check(children.dss(seeds(at), linear=True)))

    def several(at: Path) -> dict:
        return {"summary": json.loads((at / "run" / "seeds.json").read_text())}

    def sweep() -> Path:
        def make(at: Path) -> None:
            cells = []
            for seed in (0, 1):
                cell = {"task": "toy", "model": "tiny", "method": "dss", "seed": seed}
                cell |= {"train_fraction": 1.0, "train_count": None}
                cell["folder"] = Cell(**cell).folder
                write_run(at / cell["folder"], accuracy_of(50 + seed), seed=seed)
                cells.append(cell)
            grid = {"format": 1, "cells": cells, "gin_files": [], "bindings": []}
            (at / "sweep.json").write_text(json.dumps(grid, indent=1))

        return place.once("sweep", make)

    return {
        "several seeds, dss train": Kind(
            trained,
            lambda at, **more: place.dss(*seeds(at), linear=True, **more),
            several,
            lambda file: "checkpoints" not in file.parts and file.name != run_folder.LOCK,
        ),
        "a sweep, dss report": Kind(
            sweep,
            lambda at, **more: place.dss("report", at, "--out", at / "report", **more),
            lambda at: things.texts(at / "report", ["report.md", "results.csv"]),
            most=30,
        ),
    }
