"""Writes the data of docs/miniature.md's second task.

    python benchmarks/miniature/make_esnli.py --data_dir RELEASE --completions FILE --out DIR

`RELEASE` is a folder in the layout of the authors' release, with e-SNLI's validation split;
`FILE` has PaLM's raw completions for e-SNLI's training rows, a JSON string a line (.xz or .gz too).
Writes

    train.jsonl, validation.jsonl, test.jsonl   the validation rows, cut by premise, so that no
                                                premise is in two of them
    text.jsonl                                  rationales of the training rows, for pre-training
    vocabulary.model                            a SentencePiece vocabulary of that text
"""

import argparse
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import sentencepiece

from dss_jax.core.completions import parse_completion
from dss_jax.core.registry import load_task
from dss_jax.core.types import Example
from dss_jax.data.rows import examples

PIECES = 2000
VOCABULARY_LINES = 200_000
LABELS = ("entailment", "neutral", "contradiction")
HELD_OUT = {"validation": range(10), "test": range(10, 20)}
"""Split -> the hundredths of premises, by checksum, that it gets; train gets the others."""


def split_of(example: Example) -> str:
    """By the premise's checksum: the same on each machine."""
    premise = example.input.partition("</s>")[0]
    at = zlib.crc32(premise.encode()) % 100
    return next((name for name, own in HELD_OUT.items() if at in own), "train")


def rationales(file: Path) -> Iterator[str]:
    """What PaLM wrote before its answer, for each training row."""
    import importlib

    form = importlib.import_module("tasks.esnli").ANSWER
    opener = lzma.open if file.suffix == ".xz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            text = parse_completion(json.loads(line), form).rationale
            if text:
                yield text


def write_lines(file: Path, values: Iterator) -> int:
    """JSON lines; how many."""
    count = 0
    with file.open("w", encoding="utf-8") as out:
        for value in values:
            out.write(json.dumps(value, ensure_ascii=False) + "\n")
            count += 1
    return count


def train_vocabulary(file: Path, sentences: Iterator[str]) -> None:
    """Ids are T5's: padding 0, end 1, unknown 2; each label is one piece."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        character_coverage=1.0,
        num_threads=1,
        user_defined_symbols=[f"\u2581{label}" for label in LABELS],
        minloglevel=1,
    )
    file.write_bytes(model.getvalue())


def main() -> None:
    """Writes everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--completions", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = examples(load_task("esnli"), "validation", args.data_dir)
    fields = ("id", "input", "label", "teacher_label", "rationale")
    for name in ("train", *HELD_OUT):
        own = [{f: getattr(e, f) for f in fields} for e in rows if split_of(e) == name]
        print(f"{name}: {write_lines(args.out / f'{name}.jsonl', iter(own)):,} rows")
    count = write_lines(args.out / "text.jsonl", rationales(args.completions))
    print(f"text.jsonl: {count:,} rationales")

    def sentences() -> Iterator[str]:
        for example in rows:
            if split_of(example) == "train":
                for prefix in ("[label] ", "[rationale] "):
                    yield prefix + example.input.replace("</s>", " ")
        with (args.out / "text.jsonl").open(encoding="utf-8") as lines:
            yield from map(json.loads, islice(lines, VOCABULARY_LINES))

    train_vocabulary(args.out / "vocabulary.model", sentences())
    print(f"vocabulary.model: {PIECES} pieces")


if __name__ == "__main__":
    main()
