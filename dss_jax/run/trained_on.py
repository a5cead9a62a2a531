"""What a run was trained on: `data.json` in its folder. Digests of its rows and of the teacher's
text, and where its task file, its records and its token store were.

So a run can be scored from any folder, and what has changed since is noticed. It is data, and the
folder may come from anywhere: it names files for people and token stores, which are data too. Which
task file is executed it does not decide (`core.registry.remembered` does, or the user).
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dss_jax.core import config, registry, storage, strict_json
from dss_jax.core.digest import file_digest
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import write_whole
from dss_jax.core.scoring import EQUATION_ACCURACY, TEXT_ACCURACY
from dss_jax.core.types import Scorer
from dss_jax.data.old_records import again
from dss_jax.data.rationales import records_digest
from dss_jax.data.store import TokenStore, key_of, open_store
from dss_jax.records.files import read_records
from dss_jax.run.changes import store_keys
from dss_jax.teacher.prompting import PromptOptions, prompt_sha256

log = logging.getLogger(__name__)

FILE, FORMAT = "data.json", 1

ROWS = ("id", "input", "label", "allowed_labels")
TEACHER = ("teacher_label", "rationale")
"""Text columns of a store that make up the rows, and what a teacher said of them."""

OTHER_ROWS = "other rows"

MADE_FROM = {
    "files": "the rows",
    "records": "the records",
    "executed": "the task file or what it imports",
    "vocabulary_sha256": "the vocabulary",
    "prefixes": "the prefixes",
    "code": "another version of dss-jax",
    "seqio": "another version of SeqIO",
    "tokenizers": "another version of tokenizers",
    "bad_rows": "what is done about bad rows",
    "extra_ids": "the number of extra ids",
}
"""Of what a store is made, for people."""

SCORERS = {scorer.name: scorer for scorer in (TEXT_ACCURACY, EQUATION_ACCURACY)}
"""Which need no task file."""


def splits_of(store: TokenStore) -> dict[str, dict[str, Any]]:
    """Split -> how many rows, and digests of the rows and of the teacher's text, whatever version
    of this package made the store.
    """

    files = store.manifest["files"]

    def digest(split: str, columns: Sequence[str]) -> str:
        names = {f"{split}/{c}.{part}.npy" for c in columns for part in ("values", "offsets")}
        return key_of({name: files[name]["sha256"] for name in names & files.keys()})

    return {
        name: {
            "rows": len(store.split(name)),
            "data": digest(name, ROWS),
            "teacher": digest(name, TEACHER),
        }
        for name in store.splits
    }


def write(folder: Path, run: config.Run, store: TokenStore) -> None:
    """Writes `data.json`; the folder may be remote."""
    task = registry.loaded(run.task.name)
    local = [Path(f).expanduser().absolute() for f in run.task.record_files if "://" not in f]
    records = [
        {"path": str(f), "teacher": read_records(f)[0].teacher, "sha256": records_digest(f)}
        for f in local
        if f.is_file()
    ]
    content = {
        "format": FORMAT,
        "task": run.task.shown_name,
        "folder": str(Path.cwd()),
        "task_file": task.file if task else None,
        "task_file_sha256": file_digest(Path(task.file)) if task and task.file else None,
        # A scorer of the task file's own may have any name.
        "scorer": task.scorer.name if task and task.scorer in SCORERS.values() else None,
        "records": records,
        "store": {"path": str(store.path), "key": str(store.manifest["key"])},
        "splits": splits_of(store),
        "extra": {str(extra.manifest["name"]): splits_of(extra) for extra in store.extras},
    }
    write_whole(folder / FILE, strict_json.dumps(content, indent=1) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """What `data.json` holds; {} where a run of an older version has none. Raises UsageError: the
    file is damaged.
    """
    with storage.explained(folder):
        text = (folder / FILE).read_bytes() if (folder / FILE).is_file() else None
    if text is None:
        return {}
    try:
        found: dict[str, Any] = strict_json.loads(text)
        if found["format"] > FORMAT:
            raise ValueError("of a newer version")
        for splits in (found["splits"], *found["extra"].values()):
            for one in splits.values():
                if not (type(one["rows"]) is int and one["data"] and one["teacher"]):
                    raise TypeError("no digests of a split")
        if not (isinstance(found["folder"], str) and isinstance(found["store"], dict)):
            raise TypeError("folder or store")
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{folder / FILE} is damaged ({error}). Take a whole copy, or remove it: then nobody "
            "knows what the run was trained on."
        ) from error


def changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two contents of `data.json`, for people, of splits that both have: rows,
    and the teacher's text of those that are trained on.
    """
    parts = [("", then.get("splits", {}), now.get("splits", {}))]
    extra = then.get("extra", {})
    parts += [(f"{n} ", extra[n], x) for n, x in now.get("extra", {}).items() if n in extra]
    for name, before, after in parts:
        for split in (s for s in before if s in after):
            old, new = before[split], after[split]
            if old["data"] != new["data"]:
                yield f"{name}{split}: {OTHER_ROWS} ({old['rows']:,} and {new['rows']:,})"
            elif split == "train" and old["teacher"] != new["teacher"]:
                yield f"{name}{split}: the same rows, other teacher text"


def warn(folder: Path, store: TokenStore) -> None:
    """Says loudly what of a run's data is other than when it was trained."""
    if not (lines := [*changed(read(folder), {"splits": splits_of(store)})]):
        return
    log.warning(
        "the data have changed since %s was trained: %s. Scores of then and of now are of "
        "different data. To train on what is there now: dss train with another --output_dir.",
        folder,
        "; ".join(lines),
    )


def refuse_other(runs: Sequence[config.Run], request: Mapping[str, Any]) -> None:
    """Before a store is made: raises UsageError where the folder of a run has one that has trained
    on another.
    """
    for folder in (storage.place(str(run.train.output_dir)) for run in runs):
        keys = store_keys(folder)
        if not keys or request["key"] in keys:
            continue
        before, now = dict[str, Any](), request["made_from"]
        with contextlib.suppress(UsageError, KeyError):
            before = open_store(read(folder)["store"]["path"]).manifest["made_from"]
        changed = [what for name, what in MADE_FROM.items() if before.get(name) != now.get(name)]
        which = f" ({', '.join(changed)})" if before else ""
        own = f"; or its own store: --store {read(folder)['store']['path']}" if before else ""
        raise UsageError(
            f"{folder} holds a run that was trained on other data than there are now{which}. "
            "Nothing was prepared. Give another --output_dir to train on what is there now, or the "
            f"data of then to go on with that run{own}."
        )


def warn_of_prompts(task: config.Task, task_dirs: Sequence[str]) -> None:
    """Says loudly which records were asked for by another prompt than their task has now."""
    for name in task.record_files:
        header, _ = read_records(storage.local_file(name))
        if not header.prompt or header.task not in (task.name, *task.extra_tasks):
            continue
        prompt = registry.load_task(header.task, task_dirs).prompt
        try:
            same = prompt and prompt_sha256(prompt, PromptOptions(**header.prompt))
        except UsageError:  # It has fewer exemplars now.
            same = ""
        except TypeError:  # Of a newer version, which nothing can be said about.
            continue
        if same != header.prompt_sha256:
            log.warning(
                "%s was asked for by another prompt than task %s has now. To ask by that: %s",
                name,
                header.task,
                again(header, name),
            )


def without_task_file(folder: Path, name: str, given: str | None) -> tuple[Scorer, str]:
    """The scorer and the token store of a run whose task file is not found: by name, and the store
    that was `given`, else the run's own where it is still there.

    Raises:
      UsageError: there is none, or the scorer is the task file's own.
    """
    known = read(folder)
    was = f"it was {known['task_file']}" if known.get("task_file") else "its place is not known"
    scorer = SCORERS.get(str(known.get("scorer")))
    path = given or ((store := own_store(known)) and store.path)
    if scorer is None or path is None:
        lacks = "its token store is not here either (--store)"
        if scorer is None:
            lacks = "its scorer is that file's own" if known else f"{folder} has no {FILE}"
        raise UsageError(
            f"the task file of {name!r} is not found ({was}), and {lacks}. Name the folder that "
            "has the file with --task_dir. A run's folder may come from anywhere, so that no task "
            "file is executed because it says so."
        )
    log.info("the task file of %s is not found (%s): %s, by %s", name, was, path, scorer.name)
    return scorer, str(path)


def own_store(known: Mapping[str, Any]) -> TokenStore | None:
    """The store that `data.json` names, where it is on this machine and still the same."""
    path = Path(str(known.get("store", {}).get("path")))
    with contextlib.suppress(UsageError):
        if path.is_absolute() and (store := open_store(path)).key == known["store"].get("key"):
            return store
    return None
