"""What of a run's folder or of a token store is whole: `dss doctor DIR`."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dss_jax.core import sums
from dss_jax.core.environment import Check
from dss_jax.core.errors import UsageError
from dss_jax.data.store import MANIFEST, open_store
from dss_jax.data.vocabulary import open_vocabulary
from dss_jax.interop.model_files import (
    CHECKPOINTS,
    T5_CONFIG,
    VOCABULARY,
    read_model_files,
    read_t5_config,
)
from dss_jax.run import run_folder
from dss_jax.train.broken import BROKEN
from dss_jax.train.checkpoint import PARAMS, damage_of


def checks_of(folder: Path) -> list[Check]:
    """Looks at each of its files; changes nothing. Raises UsageError where it is neither."""
    if (folder / MANIFEST).is_file():
        return [_store(folder)]
    if any((path / sums.FILE).is_file() for path in (folder, folder / PARAMS)):
        return _student(folder)
    if not (folder / run_folder.CONFIG).is_file():
        raise UsageError(
            f"{folder} is neither a run's folder, which has a {run_folder.CONFIG}, nor a token "
            f"store, which has a {MANIFEST}, nor a student of dss convert with a {sums.FILE}."
        )
    return [check for check in _run(folder) if check.found]


def _run(folder: Path) -> Iterator[Check]:
    yield _read(folder / T5_CONFIG, lambda _: _model(folder))

    def ids(_: Path) -> str:
        files = read_model_files(folder)
        return f"{open_vocabulary(files.vocabulary or '', files.extra_ids).vocab_size:,} ids"

    for name in (VOCABULARY, "tokenizer.json"):
        yield _read(folder / name, ids)
    steps = (folder / CHECKPOINTS).glob("*") if (folder / CHECKPOINTS).is_dir() else ()
    for checkpoint in sorted((s for s in steps if s.name.isdigit()), key=lambda s: int(s.name)):
        wrong = damage_of(checkpoint)
        yield Check(
            f"{CHECKPOINTS}/{checkpoint.name}", "damaged" if wrong else "whole", wrong or ""
        )
    for left in sorted((folder / BROKEN).glob("*")):
        yield Check(f"{BROKEN}/{left.name}", "was set aside; remove it when it is not needed")
    least = int((folder / run_folder.RESULTS).is_file())
    yield _read(folder / run_folder.METRICS, partial(_lines, least=least))
    results: dict[str, Any] = {}

    def finished(_: Path) -> str:
        results.update(run_folder.read_results(folder) or {})
        return f"finished, {results['metric']} of step {results['best_step']}"

    yield _read(folder / run_folder.RESULTS, finished)
    for file in sorted((folder / run_folder.PREDICTIONS).glob("*.jsonl")):
        split, _, which = file.stem.partition("-")
        scored = results.get(split)
        rows = scored.get("examples") if which == "best" and isinstance(scored, dict) else None
        yield _read(file, partial(_lines, rows=rows))


def _store(folder: Path) -> Check:
    try:
        store = open_store(folder)
    except UsageError as error:
        return Check("token store", "damaged", f"{error} Make it again: dss prepare.")
    return Check("token store", f"whole: {', '.join(store.splits)}")


def _student(folder: Path) -> list[Check]:
    """One that was converted; others may have saved into its folder since, which is no damage."""
    wrong = [*sums.faults(folder), *sums.faults(folder / PARAMS)]
    return [Check("student", "damaged, or changed since", line) for line in wrong] or [
        Check("student", "whole")
    ]


def _read(file: Path, found: Callable[[Path], str]) -> Check:
    """What `found` says of a file; nothing where there is none yet."""
    name = file.name if file.suffix != ".jsonl" else f"{file.parent.name}/{file.name}"
    if not file.is_file():
        return Check(name, "")
    try:
        return Check(name, found(file))
    except (UsageError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return Check(name, "damaged", str(error))


def _model(folder: Path) -> str:
    config, *_ = read_t5_config(folder)
    return f"width {config.emb_dim}, {config.num_encoder_layers}+{config.num_decoder_layers} layers"


def _lines(file: Path, rows: int | None = None, least: int = 0) -> str:
    """How many lines of JSON; ValueError: one is none, or there are not `rows`, or `least`."""
    count = 0
    with file.open(encoding="utf-8") as lines:
        for count, line in enumerate(lines, 1):
            try:
                json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {count} is no JSON: {error}") from error
    if count < least:
        raise ValueError("it is empty, and the run is finished")
    if rows is not None and rows != count:
        raise ValueError(f"{count} lines, but {run_folder.RESULTS} counts {rows} rows")
    return f"{count} lines"
