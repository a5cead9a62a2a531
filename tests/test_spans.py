"""Span corruption: T5's published numbers, and texts that come back when the spans are put back."""

import dataclasses
import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
import toy

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.data.spans import Pieces, SpanExamples, corrupt, longest_piece, pieces_of, span_counts
from dss_jax.data.store import TokenStore
from dss_jax.layouts.batches import TrainBatches

SPANS = config.Method(name="pretrain", rationale=False, form="spans")
LENGTHS = config.Data(batch_size=8, input_length=24, target_length=12)
FIRST_SENTINEL = 515
SENTINELS = range(FIRST_SENTINEL, FIRST_SENTINEL - 100, -1)


def _pieces(count: int = 9, length: int = 20) -> Pieces:
    tokens = np.arange(10, 10 + count * length, dtype=np.int32).reshape(count, length)
    return Pieces("train", tokens, span_counts(length, config.Pretrain()), SENTINELS)


def _put_back(inputs: np.ndarray, targets: np.ndarray) -> list[int]:
    """The text: each sentinel of the input replaced by what follows it in the target."""
    spans: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token > FIRST_SENTINEL - 100 and token <= FIRST_SENTINEL:
            spans[int(token)] = current = []
        else:
            current.append(int(token))
    text = []
    for token in inputs[:-1]:
        text += spans.pop(int(token)) if int(token) in spans else [int(token)]
    assert not spans
    return text


def test_the_longest_piece_has_t5s_lengths() -> None:
    # Raffel et al. 2020 pre-trained on inputs of 512 and targets of 114 tokens; T5's own
    # `random_spans_helper` makes them of pieces of 568.
    data = config.Data(input_length=512, target_length=114)
    counts = longest_piece(data, config.Pretrain(), sentinels=100)
    assert (counts.length, counts.input_length, counts.target_length) == (568, 512, 114)
    assert (counts.noise, counts.spans) == (85, 28)


@pytest.mark.parametrize("length", [2, 3, 7, 20, 64])
def test_the_spans_put_back_are_the_text(length: int) -> None:
    counts = span_counts(length, config.Pretrain())
    piece = np.arange(10, 10 + length, dtype=np.int32)
    seen = set()
    for seed in range(200):
        words = np.random.Philox(key=seed).random_raw(length)
        inputs, targets = corrupt(piece, counts, SENTINELS, words)
        assert len(inputs) == counts.input_length
        assert len(targets) == counts.target_length
        assert inputs[-1] == targets[-1] == 1
        assert inputs[0] == piece[0], "it begins with what is kept, as T5's does"
        assert _put_back(inputs, targets) == piece.tolist()
        sentinels = inputs[inputs > FIRST_SENTINEL - 100]
        np.testing.assert_array_equal(sentinels, FIRST_SENTINEL - np.arange(counts.spans))
        seen.add(tuple(inputs))
    if counts.spans > 1:
        assert len(seen) > 20, "masks differ from draw to draw"


def test_every_cut_is_equally_likely() -> None:
    # 4 spans in 7 tokens that are masked: C(6, 3) = 20 ways.
    counts = span_counts(20, config.Pretrain(noise_density=0.35, mean_span_length=1.75))
    assert (counts.noise, counts.spans) == (7, 4)
    piece, found = np.arange(10, 30, dtype=np.int32), {}
    for seed in range(4000):
        words = np.random.Philox(key=seed).random_raw(20)
        _, targets = corrupt(piece, counts, SENTINELS, words)
        at = np.flatnonzero(targets > 400)
        lengths = tuple(np.diff([*at, len(targets) - 1]) - 1)
        found[lengths] = found.get(lengths, 0) + 1
    assert len(found) == 20
    assert min(found.values()) > 130  # 200 expected, standard deviation 14.
    assert max(found.values()) < 270


def test_an_epoch_masks_other_spans_and_a_seed_too() -> None:
    examples = SpanExamples(_pieces(length=40), LENGTHS)
    rows = np.arange(9)
    epochs = [examples.inputs(examples.items(rows, 0, epoch)) for epoch in (0, 0, 1)]
    np.testing.assert_array_equal(epochs[0], epochs[1])
    assert (epochs[0] != epochs[2]).any()
    other = SpanExamples(_pieces(length=40), dataclasses.replace(LENGTHS, seed=1))
    assert (other.inputs(rows) != epochs[0]).any()


@pytest.mark.parametrize("layout", ["padded", "flat", "packed"])
def test_batches_of_each_layout_hold_the_corrupted_pieces(layout: str) -> None:
    pieces = _pieces()
    data = dataclasses.replace(LENGTHS, layout=layout)
    make = TrainBatches(pieces, config.Task(name="toy"), data, SPANS, steps=4)
    for step in range(4):
        (block,) = make(step)
        real = block.decoder_roles > 0
        rows = make.rows_at(step)
        assert set(rows) <= set(range(9))
        targets = block.decoder_target_tokens[real]
        counts = pieces.counts
        assert real.sum() == 8 * counts.target_length
        assert (targets == 1).sum() == 8
        kept = np.concatenate([block.encoder_input_tokens.ravel(), targets])
        text = np.sort(kept[(kept >= 10) & (kept <= FIRST_SENTINEL - 100)])
        np.testing.assert_array_equal(text, np.sort(pieces.tokens[rows].ravel()))


def _run(**pretrain: object) -> config.Run:
    data = config.Data(batch_size=4, input_length=24, target_length=12)
    return toy.make_run(data=data, method=SPANS, pretrain=config.Pretrain(**pretrain))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """The toy store with sentinels."""
    from dss_jax.data.store import open_store
    from dss_jax.data.store_writer import write_store

    rng = np.random.default_rng(0)
    made = toy.make_store(tmp_path_factory.mktemp("spans") / "toy", rng)
    splits = {s: toy.copied(made.split(s)) for s in made.splits}
    path = tmp_path_factory.mktemp("spans") / "with_sentinels"
    description = {"name": "toy", "kind": "task", "key": "toy", "prefixes": "paper"}
    write_store(path, splits, toy.VOCABULARY, 10, description)
    return open_store(path)


def test_the_text_is_that_of_inputs_and_rationales(store: TokenStore) -> None:
    split, pieces = store.split("train"), pieces_of(store, "train", _run())
    prefix = len(store.vocabulary.encode("[label] "))
    whole = sum(len(split.tokens("label_inputs")[row][prefix:-1]) for row in range(37))
    whole += sum(max(0, len(split.tokens("rationale_targets")[row]) - 1) for row in range(37))
    assert len(pieces) == whole // pieces.counts.length
    assert pieces.sentinels[0] == store.vocabulary.vocab_size - 1
    assert store.vocabulary.decode([pieces.sentinels[0]]).strip() == "<extra_id_0>"


def test_a_rationale_does_not_follow_its_input(store: TokenStore) -> None:
    split, pieces = store.split("train"), pieces_of(store, "train", _run())
    text = " ".join(map(str, pieces.tokens.ravel()))
    prefix = len(store.vocabulary.encode("[label] "))
    together = 0
    for row in range(37):
        rationale = split.tokens("rationale_targets")[row][:-1]
        joined = [*split.tokens("label_inputs")[row][prefix:-1], *rationale]
        together += len(rationale) > 0 and " ".join(map(str, joined)) in text
    assert together <= 3


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".jsonl.gz", ".txt.xz"])
def test_more_text_comes_from_files(store: TokenStore, tmp_path: Path, ending: str) -> None:
    before = len(pieces_of(store, "train", _run()))
    line = '"{}"\n{{"text": "{}"}}\n' if ".jsonl" in ending else "{}\n\n{}\n"
    text = line.format("Faye had 12 marbles. " * 40, "How many marbles does Faye have? " * 40)
    file = tmp_path / f"more{ending}"
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(file.suffix, open)
    with opener(file, "wt", encoding="utf-8") as out:
        out.write(text)
    assert len(pieces_of(store, "train", _run(text_files=str(file)))) > before + 10
    validation = _run(text_files=str(file))
    assert len(pieces_of(store, "validation", validation)) < before, "training only"


class TestMistakes:
    def test_a_file_that_is_not_there(self, store: TokenStore) -> None:
        with pytest.raises(UsageError, match=r"Pretrain.text_files: there is no file 'gone.txt'"):
            pieces_of(store, "train", _run(text_files="gone.txt"))

    @pytest.mark.parametrize(
        ("line", "message"), [("{", "not JSON"), ('{"txt": 1}', "an object with a string")]
    )
    def test_a_line_that_is_no_text(
        self, store: TokenStore, tmp_path: Path, line: str, message: str
    ) -> None:
        file = tmp_path / "bad.jsonl"
        file.write_text(f'"good"\n{line}\n')
        with pytest.raises(UsageError, match=f"bad.jsonl:2: .*{message}"):
            pieces_of(store, "train", _run(text_files=str(file)))

    def test_a_byte_that_is_no_utf8(self, store: TokenStore, tmp_path: Path) -> None:
        file = tmp_path / "bad.txt"
        file.write_bytes(b"good\n" * 5000 + b"\xff\n")
        with pytest.raises(UsageError, match=r"bad\.txt:5001: not UTF-8"):
            pieces_of(store, "train", _run(text_files=str(file)))

    def test_too_few_sentinels(self, toy_store: TokenStore) -> None:
        with pytest.raises(UsageError, match=r"has 0 extra ids .*Vocabulary.extra_ids=100"):
            pieces_of(toy_store, "train", _run())

    def test_less_text_than_a_piece(self, store: TokenStore) -> None:
        run = dataclasses.replace(_run(), data=config.Data(input_length=120, target_length=60))
        with pytest.raises(UsageError, match=r"less than a piece of \d+"):
            pieces_of(store, "test", run)

    def test_lengths_that_hold_nothing(self) -> None:
        with pytest.raises(UsageError, match="too short for span corruption"):
            longest_piece(config.Data(input_length=2, target_length=2), config.Pretrain(), 100)
