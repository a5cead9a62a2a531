"""Times how `dss prepare` tokenises, beside plain SeqIO, on the same rows in the same run.

  python benchmarks/prepare.py --data_dir ../release --vocabulary FILE
  python benchmarks/prepare.py --data_dir ../release --vocabulary FILE --texts FILE.jsonl.xz
  python benchmarks/prepare.py ... --tokenizer t5_fast=FOLDER --tokenizer byt5=bytes

Plain SeqIO is `seqio.preprocessors.tokenize` and `append_eos`, row by row, as a SeqIO user has it.
Both give the tokens of the same strings, and the same tokens, which is checked. Takes cqa's
training rows; with --texts, rows made of these texts (a JSON string a line) too; with --tokenizer,
`dss prepare` with other vocabularies beside that of --vocabulary, each opened anew in each round.
Writes a JSON file.
"""

import argparse
import datetime
import gc
import json
import lzma
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from reporting import RESULTS, command, processor, write_report

from dss_jax import __version__
from dss_jax.core.machine import processors
from dss_jax.core.prefixes import prefixes
from dss_jax.core.registry import load_task
from dss_jax.core.types import Example
from dss_jax.data import rows
from dss_jax.data.seqio_prepare import PART, TaskRows, content_of, here
from dss_jax.data.seqio_tokens import encoder
from dss_jax.data.sources import data_folder
from dss_jax.data.store import TARGETS, TEXT_COLUMNS, TOKEN_COLUMNS
from dss_jax.data.store_writer import Columns, Joined
from dss_jax.data.tokenizer import Tokenizer
from dss_jax.data.vocabulary import SentencePiece, open_vocabulary, resolve

STYLE = "paper"
COLUMNS = (*TOKEN_COLUMNS, *TEXT_COLUMNS)


def text_rows(file: Path, count: int) -> list[Example]:
    """Rows of real text: each text is the input of one row and the rationale of another."""
    opened = lzma.open if file.suffix == ".xz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line) for line in islice(lines, count)]
    return [
        Example(
            id=str(i),
            input=text,
            label="neutral",
            teacher_label="entailment",
            rationale=texts[i - 1],
        )
        for i, text in enumerate(texts)
    ]


def pairs(examples: list[Example]) -> list[tuple[str, str]]:
    """(input, target) of every row of every SeqIO task of these examples."""
    chosen = prefixes(STYLE)
    return [
        ((chosen.rationale if field == "rationale" else chosen.label) + e.input, getattr(e, field))
        for field in TARGETS.values()
        for e in examples
        if getattr(e, field)
    ]


def plain_seqio(strings: list[tuple[str, str]], vocabulary: SentencePiece) -> list[tuple]:
    """Tokens by SeqIO's own preprocessors, one row after another."""
    import seqio
    import tensorflow as tf

    model = seqio.SentencePieceVocabulary(str(vocabulary.path), vocabulary.extra_ids)
    inputs, targets = (tf.constant(list(column)) for column in zip(*strings, strict=True))

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
        del split, shuffle_files, seed
        return tf.data.Dataset.from_tensor_slices({"inputs": inputs, "targets": targets})

    task = seqio.Task(
        "plain",
        source=seqio.FunctionDataSource(dataset, splits=["train"]),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={n: seqio.Feature(model) for n in ("inputs", "targets")},
    )
    found = task.get_dataset(sequence_length=None, split="train", shuffle=False)
    return [(row["inputs"], row["targets"]) for row in found.as_numpy_iterator()]


def ours(examples: list[Example], vocabulary: Tokenizer) -> Columns:
    """Columns as `dss prepare` makes them."""
    tokenise = TaskRows(content_of(vocabulary.path), vocabulary.extra_ids, STYLE)
    parts = [examples[start : start + PART] for start in range(0, len(examples), PART)]
    made = Joined([], here(tokenise, {"train": parts})["train"])
    return {column: made[column] for column in COLUMNS}


def same(quick: Columns, slow: list[tuple], examples: list[Example]) -> bool:
    """Whether both gave the same tokens for every string."""
    at = iter(slow)
    for column, field in TARGETS.items():
        inputs = quick["rationale_inputs" if field == "rationale" else "label_inputs"]
        for row, example in enumerate(examples):
            if getattr(example, field):
                theirs = [list(ids) for ids in next(at)]
                if [inputs[row].tolist(), quick[column][row].tolist()] != theirs:
                    return False
    return True


def timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, wall seconds, seconds of all threads."""
    gc.collect()
    gc.freeze()  # The rows, and what other ways made, are not looked through in this one's time.
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def compare(
    examples: list[Example], vocabulary: SentencePiece, rounds: int, others: dict[str, Tokenizer]
) -> dict[str, Any]:
    """All ways, one after the other, several times."""
    strings = pairs(examples)
    arms: dict[str, Callable[[], Any]] = {
        "plain_seqio": lambda: plain_seqio(strings, vocabulary),
        "dss_prepare": lambda: ours(examples, vocabulary),
        **{name: partial(ours, examples, other) for name, other in others.items()},
    }
    ours(examples[:10], vocabulary)  # TensorFlow's import and first graph are in no reading.
    plain_seqio(strings[:10], vocabulary)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    results = dict[str, Any]()
    for number in range(rounds):
        for name, arm in arms.items():
            # As long as it is kept, the next of this way would get memory that nobody has touched.
            results.pop(name, None)
            encoder.cache_clear()  # No word is remembered, and no tokenizer open.
            results[name], wall, cpu = timed(arm)
            seconds[name].append((wall, cpu))
            print(
                f"round {number + 1}: {name} {2 * len(strings) / wall:,.0f} strings/s", flush=True
            )
    report: dict[str, Any] = {
        "rows": len(examples),
        "strings": 2 * len(strings),
        "same_tokens": same(results["dss_prepare"], results["plain_seqio"], examples),
    }
    for name, readings in seconds.items():
        wall, cpu = (statistics.median(column) for column in zip(*readings, strict=True))
        report[name] = {
            "strings_per_second": round(2 * len(strings) / wall),
            "strings_per_processor_second": round(2 * len(strings) / cpu),
            "raw_wall_and_processor_seconds": [[round(x, 3) for x in r] for r in readings],
        }
    ratio = (
        report["dss_prepare"]["strings_per_second"] / report["plain_seqio"]["strings_per_second"]
    )
    report["ratio_to_plain_seqio"] = round(ratio, 2)
    base = [wall for wall, _ in seconds["dss_prepare"]]
    report["ratio_to_dss_prepare"] = {
        name: round(
            statistics.median(b / o for b, (o, _) in zip(base, seconds[name], strict=True)), 2
        )
        for name in others
    }
    return report


def main(arguments: list[str]) -> int:
    """Measures and writes."""
    parser = argparse.ArgumentParser(prog="prepare.py", description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--vocabulary", required=True)
    parser.add_argument("--texts", type=Path)
    text = "NAME=FOLDER of a Hugging Face tokenizer, or NAME=bytes; several times"
    parser.add_argument("--tokenizer", action="append", default=[], help=text)
    parser.add_argument("--count", type=int, default=30_000, help="texts (default 30,000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    vocabulary = SentencePiece(args.vocabulary, 100)
    pairs_given = (one.partition("=") for one in args.tokenizer)
    others = {name: open_vocabulary(resolve(path)) for name, _, path in pairs_given}
    before = os.getloadavg()[0]
    sets = {"cqa train": rows.examples(load_task("cqa"), "train", data_folder(args.data_dir))}
    if args.texts is not None:
        sets[f"{args.count} texts"] = text_rows(args.texts, args.count)
    report: dict[str, Any] = {
        "command": command(arguments, "prepare.py"),
        "processor": processor(),
        "threads": processors(),
        "load_average_1_min": {"before": before},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "dss_jax": __version__,
        "strings_are": "inputs and targets of all rows of the three SeqIO tasks",
        "sets": {
            name: compare(found, vocabulary, args.rounds, others) for name, found in sets.items()
        },
    }
    report["load_average_1_min"]["after"] = os.getloadavg()[0]
    file = args.out / "prepare-cpu.json"
    write_report(report, file)
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
