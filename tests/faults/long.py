"""Tries what can go wrong, hundreds of times, and says what became of it.

  python tests/faults/long.py --out DIR [--minutes N] [--only kills,damage] [--seed N]
  python tests/faults/long.py --out DIR --table

Each case is a line of DIR/journal.jsonl; the same command goes on after the last of them, and stops
after so many minutes. What is tried follows from the seed. Needs a system with fork.
"""

import argparse
import itertools
import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import children
import damaging
import flat
import inputs
import killing
import several
import things
from test_extract import serving

KILLS = {"new process": 10, "warm": 190, "compiling": 20, "preparing": 20, "hf": 10, "orbax": 10}
"""Of runs: children that have imported all, with and without compiled code, and new processes; of
the making of a token store, and of exports in these forms.
"""

RIGHT = (children.FINE, children.REFUSED)

Found = Iterator[dict]


class Journal:
    """What was tried: a line a case, with `mode`, `case`, `outcome`. With `again`, what has not
    ended well is forgotten.
    """

    def __init__(self, file: Path, again: bool = False, part: str = "0/1") -> None:
        first, count = map(int, part.split("/"))
        self.file, self.part = file, (first, None, count)
        lines = file.read_text().splitlines() if file.exists() else []
        self.lines = [json.loads(line) for line in lines]
        if again:
            self.lines = [line for line in self.lines if line["outcome"] in RIGHT]
            file.write_text("".join(json.dumps(line) + "\n" for line in self.lines))

    def done(self, mode: str) -> set[str]:
        return {line["case"] for line in self.lines if line["mode"] == mode}

    def add(self, mode: str, case: str, **found: object) -> None:
        line = {"mode": mode, "case": case, **found}
        self.lines.append(line)
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if line["outcome"] not in RIGHT:
            print(f"{mode}, {case}: {line['outcome']}", flush=True)


def kills(place: things.Place, journal: Journal, seed: int) -> Found:
    """Runs are killed until they are done. A run that was not finished here begins anew."""
    tasks = {
        "new process": killing.program(place),
        "warm": killing.linear(place),
        "compiling": killing.linear(place, cold=True),
        "preparing": killing.preparing(place),
        "hf": killing.exporting(place, "hf"),
        "orbax": killing.exporting(place, "orbax"),
    }
    for name, task in tasks.items():
        mine = [line for line in journal.lines if line["mode"] == "kills" and line["task"] == name]
        count, run = len(mine), len({line["run"] for line in mine})
        if count < KILLS[name]:
            task.prepare(place.folder / f"undisturbed-{name.replace(' ', '-')}")
        while count < KILLS[name]:
            at = place.folder / f"killed-{name.replace(' ', '-')}"
            for left in place.folder.glob(f"{at.name}*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            *found, last = killing.killed(task, at, random.Random(f"{seed} {name} {run}"))
            if "differs" not in last:
                found.append(last)
            for number, kill in enumerate(found):
                if last.get("differs"):
                    kill |= {"outcome": children.SILENT, "said": str(last)}
                yield {
                    "case": f"{name}, run {run}, kill {number}",
                    "task": name,
                    "run": run,
                    **kill,
                }
            count, run = count + len(found), run + 1


def damage(place: things.Place, journal: Journal, seed: int) -> Found:
    done = journal.done("damage")
    with serving(place.folder / "server.log") as url:
        kinds = damaging.kinds(place, url)
        expected: dict[str, dict] = {}
        for kind, file, what in itertools.islice(damaging.cases(kinds, seed), *journal.part):
            case = f"{kind}: {file}, {what}"
            if case in done or kind not in kinds:
                continue
            at = place.folder / "case"
            if kind not in expected:
                shutil.rmtree(at, ignore_errors=True)
                shutil.copytree(kinds[kind].whole(), at)
                ended = kinds[kind].ended(at)
                if not ended.made:
                    print(f"{kind}, undisturbed: {ended.said[-3000:]}")
                    kinds.pop(kind)
                    continue
                expected[kind] = ended.made
            found = damaging.damaged(kinds[kind], file, what, at, expected[kind], seed)
            yield {"case": case, "kind": kind, "file": file, "damage": what, **found}


def rows(place: things.Place, journal: Journal, seed: int) -> Found:
    done, folder = journal.done("rows"), place.folder / "rows"
    folder.mkdir(exist_ok=True)
    for case, try_it in inputs.rows(folder):
        if case not in done:
            yield {"case": case, **try_it()}


def configurations(place: things.Place, journal: Journal, seed: int) -> Found:
    done = journal.done("configurations")
    for case, bindings in inputs.configurations():
        if case not in done:
            yield {"case": case, **inputs.configured(place, bindings)}


def processes(place: things.Place, journal: Journal, seed: int) -> Found:
    done = journal.done("processes")
    for case in several.CASES:
        if case not in done:
            yield {"case": case, **several.tried(place, case)}


def long_run(place: things.Place, journal: Journal, seed: int) -> Found:
    if not journal.done("long_run"):
        yield {"case": f"{flat.STEPS} steps", **flat.tried(place)}


MODES: dict[str, Callable[[things.Place, Journal, int], Found]] = {
    one.__name__: one for one in (kills, damage, rows, configurations, processes, long_run)
}


def table(journal: Journal) -> str:
    """As Markdown: fault, tries, outcome."""
    counts: dict[tuple[str, str], Counter] = {}
    for line in journal.lines:
        group = line.get("kind") or line.get("phase") or line.get("group") or ""
        counts.setdefault((line["mode"], group), Counter())[line["outcome"]] += 1
    shown = [
        "| | tried | " + " | ".join(children.OUTCOMES) + " |",
        "| --- |" + " --- |" * (1 + len(children.OUTCOMES)),
    ]
    for (mode, group), found in counts.items():
        name = f"{mode}: {group}" if group else mode
        cells = [str(found[o] or "") for o in children.OUTCOMES]
        shown.append(f"| {name} | {sum(found.values())} | " + " | ".join(cells) + " |")
    return "\n".join(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--only", default=",".join(MODES), help=", ".join(MODES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="what has not ended well, too")
    parser.add_argument("--part", default="0/1", help="I/N: of the damaged files every N-th")
    parser.add_argument("--table", action="store_true", help="what the journal holds")
    args = parser.parse_args()
    end, place = time.monotonic() + 60 * args.minutes, things.Place(args.out)
    journal = Journal(place.folder / "journal.jsonl", args.again, args.part)
    for mode in args.only.split(",") if not args.table else ():
        for found in MODES[mode](place, journal, args.seed):
            journal.add(mode, **found)
            if time.monotonic() > end:
                print("the time is up: the same command goes on")
                return
    print(table(journal))


if __name__ == "__main__":
    main()
