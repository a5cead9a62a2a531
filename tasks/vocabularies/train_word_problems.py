"""Trains the SentencePiece vocabulary of the data set `word_problems`, and writes it beside this
file.

    pip install sentencepiece
    python tasks/vocabularies/train_word_problems.py

Needed again only when the words of `tasks/word_problems.py` change. The text is that of the train
split, each role with both styles of prefix. Ids are T5's: padding 0, end 1, unknown 2, no start;
sentinels are added by the reader (`seqio.SentencePieceVocabulary(path, extra_ids=...)`).

Each of 0 to 99 with the space before it is one piece, so that copying a number is copying one
token; every printable ASCII character is a piece, so that other English text can be read too,
slowly. Training is on one thread, so that the same version writes the same file.
"""

import io
import re
import string
import sys
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = Path(__file__).with_name("word_problems.model")
PIECES = 416
"""Enough for all words of the data set, 100 numbers and 94 characters, and little more."""

PREFIXES = (("[label] ", "[rationale] "), ("predict: ", "explain: "))


def sentences() -> Iterator[str]:
    """The text to train on. Lines of an input become sentences of their own."""
    sys.path.insert(0, str(ROOT))
    from tasks.word_problems import generate

    words: set[str] = set()
    for number, row in enumerate(generate("train")):
        story, question = row["input"].split("\n")
        lines = [f"{prefix}{story}" for prefix in PREFIXES[number % 2]]
        lines += [question, row["rationale"], row["label"]]
        yield from lines
        words.update(re.findall("[A-Za-z]+|[-+*/()]", " ".join(lines)))
    # SentencePiece proposes as pieces only strings that two different words share, which "has" and
    # "(" would never be. Together with "hashas" and "((" they are.
    yield from (word * 2 for word in sorted(words))


def main() -> None:
    """Trains and writes `OUTPUT`."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences(),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        character_coverage=1.0,
        required_chars="".join(c for c in string.printable if not c.isspace()),
        # U+2581 is how SentencePiece writes a space.
        user_defined_symbols=[f"\u2581{number}" for number in range(100)],
        num_threads=1,
        minloglevel=1,
    )
    OUTPUT.write_bytes(model.getvalue())
    print(f"{OUTPUT}: {PIECES} pieces, {OUTPUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
