"""Vocabularies of all kinds beside transformers' recorded ids; in stores, SeqIO and conversions."""

import dataclasses
import io
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import script_texts
import sentencepiece
import tokenizers
import toy
from record_tokenizers import ADDED, FOLDER, GOLDEN, t5_folder
from sentencepiece import sentencepiece_model_pb2
from t5_weights import BASE, random_weights
from test_seqio_tokens import TRICKY, check_against_pipelines, rows_of

from dss_jax.cli import saved_run
from dss_jax.cli.main import main
from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.registry import load_task
from dss_jax.data.columns import Examples
from dss_jax.data.file_tokenizers import FastTokenizer, FileTokenizer
from dss_jax.data.joint import joint_pair
from dss_jax.data.store import TokenStore
from dss_jax.data.store_writer import SplitBuilder, write_store
from dss_jax.data.tokenizer import Tokenizer
from dss_jax.data.tokenizer_files import FAST
from dss_jax.data.vocabulary import files_of, open_vocabulary, resolve, vocabulary_digest
from dss_jax.interop import extend, hf, older_tokenizers
from dss_jax.interop.formats import read_weights, write_weights
from dss_jax.interop.model_files import ModelFiles, write_model_files
from dss_jax.interop.older_tokenizers import readable_vocabulary
from dss_jax.interop.pieces import token_names
from dss_jax.interop.tokenizer_json import added_token, tokenizer_json
from dss_jax.interop.vocabularies import vocabulary_size, with_vocabulary
from dss_jax.interop.weights import Weights

PREFIXES = [
    ("[label] ", "[rationale] "),
    ("predict: ", "two words: ", "two  gaps: ", "line:\n", "<", "tab\t ", ""),
    ("two  gaps ", "line\n one ", "x "),
    ("one ", "two  "),
    ("a", "b"),
]
NAMES = ("t5", "t5_added", "llama", "code", "byt5")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> a folder of Hugging Face's with the tokenizer, as it may come from there."""
    found = {name: FOLDER / name for name in ("llama", "code", "byt5")}
    for name in ("t5", "t5_added"):
        found[name] = tmp_path_factory.mktemp(name)
        t5_folder(found[name])
    pieces = open_vocabulary(toy.VOCABULARY, 10)
    ids = {t: i[-1] if (i := pieces.encode(f"a {t}"))[-1] != 2 else None for t in ADDED[1:3]}
    added = {"\u4e2d": 426, "foo bar": 427, **ids}
    (found["t5_added"] / "added_tokens.json").write_text(json.dumps(added))
    made = older_tokenizers._of_pieces(files_of(found["t5"]), 10)
    (found["t5"] / FAST).write_text(json.dumps(made))
    (found["t5"] / "spiece.model").unlink()
    return found


@pytest.fixture(scope="module")
def opened(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    found = {}
    for name, folder in folders.items():
        vocabulary = readable_vocabulary(folder, 10)
        assert vocabulary is not None
        found[name] = open_vocabulary(vocabulary)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_transformers(name: str, opened: dict[str, Tokenizer]) -> None:
    """Alone, and many at once, when words are remembered."""
    recorded, texts, own = np.load(GOLDEN), script_texts.texts(), opened[name]
    ends = np.cumsum(recorded[f"{name}.lengths"], dtype=np.int64)
    rows = np.split(recorded[f"{name}.ids"].astype(int), ends[:-1])
    for _ in range(2):
        for text, ids, theirs in zip(texts, own.encode_all(texts), rows, strict=True):
            assert [*ids, own.eos_id] == theirs.tolist(), text
    assert [own.encode(text) for text in texts[::7]] == own.encode_all(texts[::7])
    found = own.arrays(texts)  # type: ignore[attr-defined]
    assert found.values.tolist() == [i for row in rows for i in row[:-1]]
    assert found.lengths().tolist() == [len(row) - 1 for row in rows]


@pytest.mark.parametrize(
    ("name", "ids", "first"),
    [
        ("t5", (0, 1, 2), 425),
        ("llama", (548, 2, 0), 549),
        ("code", (0, 2, 3), 709),
        ("byt5", (0, 1, 2), 258),
    ],
)
def test_ids_with_a_meaning(
    name: str, ids: tuple[int, ...], first: int, opened: dict[str, Tokenizer]
) -> None:
    own = opened[name]
    assert (own.pad_id, own.eos_id, own.unk_id) == ids
    assert own.sentinels[0] == first
    assert len(own.sentinels) == own.extra_ids == (100 if name == "byt5" else 10)
    begins = {"llama": [1], "code": [1]}
    assert own.encode("") == begins.get(name, [])
    names = own.names()  # type: ignore[attr-defined]
    assert len({*names}) == len(names) == own.vocab_size


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(name: str, opened: dict[str, Tokenizer]) -> None:
    own = opened[name]
    for text in ("a < b {", "sum of 12 and 7", "if x < 3 { y }"):
        back = own.decode([*own.encode(text), own.eos_id, 5])
        # T5 has no space before a token that was added, in transformers too.
        assert back == (text.replace(" <", "<").replace(" {", "{") if "added" in name else text)
    if name in ("code", "llama", "byt5"):
        for text in (*script_texts.CODE, *script_texts.SENTENCES):
            assert own.decode(own.encode(text)) == text


def test_what_is_remembered_of_texts(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No long word, nothing that has no ids; and n calls take n times as long as one."""
    path = readable_vocabulary(folders["code"], 10)
    assert path is not None
    own, fresh = (FastTokenizer(path, files_of(path)) for _ in range(2))
    encoded, long = own._encoded, "long" * 20

    def some(texts: list[str]) -> Any:
        if any("bad" in text for text in texts):
            raise UsageError("no ids")
        return encoded(texts)

    monkeypatch.setattr(own, "_encoded", some)
    for texts in (["a b", long], [f"{long} a", "c", long, f"b {long}b c"], ["", long], []):
        with pytest.raises(UsageError):
            own.arrays(["bad", "fine"])
        for _ in range(2):
            found = own.arrays(texts)
            assert [row.tolist() for row in map(found.__getitem__, range(len(texts)))] == [
                fresh.encode(text) for text in texts
            ]
    arrays = []
    for number in range(500):
        own.arrays([f"w{number} {long}{number}"])
        arrays.append(own._words.flat)
    assert len(own._words) >= 500 > 15 > len({*map(id, arrays)}), "one has room for many calls"
    assert max(map(len, own._words)) < 10


@pytest.fixture(scope="module")
def of_white_space(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """As CodeT5's, with pieces for runs of white space of several kinds."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["</s>"]
    )
    backend.train_from_iterator(["a\n \tb\n \n\n  c \t\td", "e\n\n\n\nf"] * 50, trainer)
    folder = tmp_path_factory.mktemp("white_space")
    backend.save(str(folder / FAST))
    return FastTokenizer(folder, files_of(folder))


@pytest.fixture(scope="module")
def joining(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """As T5's, with a rule of its own that joins words: a space before U+0301 becomes x."""
    folder, model = tmp_path_factory.mktemp("joining"), io.BytesIO()
    (folder / "rules.tsv").write_text("20 301\t78\n")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c x"] * 10),
        model_writer=model,
        vocab_size=20,
        hard_vocab_limit=False,
        normalization_rule_tsv=str(folder / "rules.tsv"),
    )
    rules = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue()).normalizer_spec
    pieces = [
        ("<unk>", 0.0),
        *((chr(i), -2.0 - i / 1000) for i in range(33, 127)),
        ("▁", -2.0),
        ("]x", -1.0),
    ]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    backend.normalizer = tokenizers.normalizers.Precompiled(rules.precompiled_charsmap)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.WhitespaceSplit(),
            tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always"),
        ]
    )
    backend.add_special_tokens(["</s>"])
    assert backend.encode("b \u0301a").tokens == [*"▁bxa"]
    backend.save(str(folder / FAST))
    return FastTokenizer(folder, files_of(folder))


@pytest.mark.parametrize("name", [*NAMES, "white_space", "joining"])
def test_texts_cut_into_words_are_those_whole(
    name: str, opened: dict[str, Tokenizer], of_white_space: Tokenizer, joining: Tokenizer
) -> None:
    own = {"white_space": of_white_space, "joining": joining}.get(name) or opened[name]
    bits = [
        "a",
        "fish",
        "don't",
        "\0",
        "\x1c",
        "▁",
        "Ġ",
        "\u0301",
        "½",
        "好",
        "<",
        "{",
        "</s>",
        40 * "x",
    ]
    spaces, rng = [*"    \n\n\t\r\xa0\u3000", ""], np.random.default_rng(0)
    lines = rng.choice(bits, (3000, 4)), rng.choice(spaces, (3000, 4, 3))
    few = (
        rng.choice(["a", "fish.", "</s>"], (300, 4)),
        rng.choice([" ", *"\n" * 3, ""], (300, 4, 4)),
    )
    texts = [
        "".join(word + "".join(gap) for word, gap in zip(*row, strict=True))
        for words, gaps in (lines, few)
        for row in zip(words.tolist(), gaps.tolist(), strict=True)
    ]
    assert own.encode_all(texts) == [*map(own.encode, texts)]
    assert isinstance(own, FileTokenizer)
    texts = texts[-500:]
    for prefixes in PREFIXES:
        for prefix, found in zip(prefixes, own.behind(prefixes, texts), strict=True):
            rows = [found[row].tolist() for row in range(len(found))]
            assert rows == [own.encode(prefix + text) for text in texts], prefix
        assert [len(one) for one in own.behind(prefixes, [])] == [0] * len(prefixes)


def test_any_ids_are_a_text(opened: dict[str, Tokenizer]) -> None:
    rng = np.random.default_rng(0)
    for own in opened.values():
        for _ in range(200):
            own.decode(rng.integers(3, 800, rng.integers(0, 30))).encode()


def test_bytes_that_are_no_utf8_are_left_out(opened: dict[str, Tokenizer]) -> None:
    own = opened["byt5"]
    assert own.decode([0xE2 + 3, ord("a") + 3, 0xC3 + 3, 0xA9 + 3, 2, 0, 900, 1, 100]) == "a\u00e9"


def test_a_folder_of_before_is_kept_whole(folders: dict[str, Path]) -> None:
    for name in ("code", "t5_added"):
        made = readable_vocabulary(folders[name], 10)
        assert made is not None
        own = files_of(made)
        assert own.keys() == {*files_of(folders[name]), FAST}
        for file, path in files_of(folders[name]).items():
            assert own[file].read_bytes() == path.read_bytes()


def test_a_copy_that_was_broken_off_is_made_whole(folders: dict[str, Path]) -> None:
    made = readable_vocabulary(folders["code"], 10)
    assert made is not None
    before = {name: file.read_bytes() for name, file in files_of(made).items()}
    for name in (FAST, "vocab.json"):
        (made / name).unlink()
    assert readable_vocabulary(folders["code"], 10) == made
    assert {name: file.read_bytes() for name, file in files_of(made).items()} == before
    of_others = readable_vocabulary(folders["t5_added"], 9)
    assert of_others != readable_vocabulary(folders["t5_added"], 10)


def test_a_run_is_opened_with_its_own_extra_ids(tmp_path: Path) -> None:
    """mT5's sentinels are pieces: what is above these was added."""
    t5_folder(tmp_path)
    made = tokenizer_json(tmp_path / "spiece.model", 0)
    assert made is not None
    made["added_tokens"].append(added_token(416, "<new>", special=False))
    (tmp_path / FAST).write_text(json.dumps(made))
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 0}')
    assert resolve(str(tmp_path)) == tmp_path
    (tmp_path / "tokenizer_config.json").write_text("{}")
    run = tmp_path / "run"
    run.mkdir()
    write_model_files(run, ModelFiles(BASE, tmp_path, 0))
    (run / "config.gin").write_text("Task.name = 'word_problems'\n")
    path = saved_run.resolve(run, None, []).vocabulary.path
    assert open_vocabulary(path or "", 0).encode("<new>") == [416]


def test_a_space_that_is_written_out(tmp_path: Path, opened: dict[str, Tokenizer]) -> None:
    """U+2581 in a text, and added tokens with white space in them."""
    spec = json.loads((FOLDER / "llama" / FAST).read_text())
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first"}
    spec |= {"normalizer": None, "pre_tokenizer": {**space, "split": False}}
    (tmp_path / FAST).write_text(json.dumps(spec))
    t5 = json.loads((opened["t5_added"].path / FAST).read_text())
    t5["added_tokens"].append(added_token(428, "x\u3000y", {"normalized": True}, special=False))
    (tmp_path / "t5.json").write_text(json.dumps(t5))
    for own in (open_vocabulary(tmp_path), open_vocabulary(tmp_path / "t5.json")):
        for text in ("a \u2581", "\u2581 a b", "x\u3000y z", "a x\u3000y"):
            assert own.encode_all([text]) == [own.encode(text)]


def test_a_vocabulary_of_a_name(tmp_path: Path, folders: dict[str, Path]) -> None:
    assert open_vocabulary(resolve("bytes")).encode("hi") == [107, 108]
    of_bytes = dataclasses.replace(load_task("word_problems"), default_vocabulary="bytes")
    assert resolve(None, of_bytes) == resolve("bytes")
    assert resolve(str(folders["llama"])) == folders["llama"]
    t5_folder(tmp_path)
    assert resolve(str(tmp_path)) == (tmp_path / "spiece.model").resolve()
    (tmp_path / "spiece.model").unlink()
    with pytest.raises(UsageError, match="holds no vocabulary"):
        open_vocabulary(resolve(str(tmp_path)))
    alone = tmp_path / "mine.json"
    shutil.copy(folders["llama"] / FAST, alone)
    assert open_vocabulary(alone).encode("a b") == open_vocabulary(folders["llama"]).encode("a b")


def _template(folder: Path, single: str) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / FAST))
    tokens = [(name, backend.token_to_id(name)) for name in ("<unk>", "</s>")]
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=single, special_tokens=tokens
    )
    backend.save(str(folder / FAST))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda f: _template(f, "$A <unk>"),
            r"\[\] before a text and \['<unk>'\] behind it.*'</s>'",
        ),
        (lambda f: _template(f, "</s> $A </s>"), r"\['</s>'\] before a text"),
        (lambda f: (f / FAST).write_text("{"), "cannot be read as a tokenizer"),
        (
            lambda f: (f / "tokenizer_config.json").write_text('{"eos_token": "<end>"}'),
            "no end-of-sequence '<end>'",
        ),
        (
            lambda f: (f / "added_tokens.json").write_text('{"new": 7}'),
            "the added token 'new' has the id 7",
        ),
    ],
    ids=["end not named", "end in front", "damaged", "no end", "another id"],
)
def test_what_cannot_be_read(change: Any, said: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "llama", tmp_path / "own")
    change(tmp_path / "own")
    with pytest.raises(UsageError, match=said):
        open_vocabulary(tmp_path / "own")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("vocab.json", b'{"a": "x"}', r"vocab.json: 'x' is no id"),
        ("vocab.json", b'{"a": null}', r"vocab.json: None is no id"),
        ("vocab.json", b"{}", r"merges.txt cannot be read as a tokenizer"),
        ("merges.txt", b"a \xff", r"merges.txt cannot be read: 'utf-8'"),
        ("merges.txt", b"ab", r"merges.txt cannot be read as a tokenizer"),
        ("merges.txt", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_words_and_merges_that_are_none(
    file: str, content: bytes, said: str, tmp_path: Path
) -> None:
    shutil.copytree(FOLDER / "code", tmp_path / "own")
    (tmp_path / "own" / file).write_bytes(content)
    with pytest.raises(UsageError, match=said):
        readable_vocabulary(tmp_path / "own", 10)


def test_tokenizers_of_another_kind(tmp_path: Path, folders: dict[str, Path]) -> None:
    """Nothing is made of files that other ids would come of."""
    for name in ("code", "t5_added"):
        shutil.copytree(folders[name], tmp_path / name)
    settings = tmp_path / "code" / "tokenizer_config.json"
    settings.write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(UsageError, match=r"files of a GPT2Tokenizer.*save_pretrained"):
        readable_vocabulary(tmp_path / "code", 10)
    with pytest.raises(UsageError, match=r"added to spiece.model \('<'\), and no "):
        resolve(str(tmp_path / "t5_added"))
    model = sentencepiece_model_pb2.ModelProto.FromString(toy.VOCABULARY.read_bytes())
    for change, said in (
        ({"model_type": 2}, "T5's kind"),
        ({"pad_piece": model.pieces[5].piece}, "have the ids"),
    ):
        for field, value in change.items():
            setattr(model.trainer_spec, field, value)
        model.pieces[5].type = 3
        (tmp_path / "t5_added" / "spiece.model").write_bytes(model.SerializeToString())
        with pytest.raises(UsageError, match=f"(?s){said}.*save_pretrained"):
            readable_vocabulary(tmp_path / "t5_added", 10)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"500": {}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"500": {"content": ""}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9": {"content": "a", "lstrip": "x"}}}),
        ("tokenizer_config.json", {"eos_token": {"x": 1}}),
        ("tokenizer_config.json", {"extra_ids": 10**12}),
        ("tokenizer_config.json", {"extra_ids": "many"}),
        ("special_tokens_map.json", {"additional_special_tokens": [{}]}),
        ("added_tokens.json", {"<new>": "zz"}),
        ("added_tokens.json", {"<new>": None}),
        ("added_tokens.json", {"<new>": 10**12}),
        ("added_tokens.json", {"<new>": 7.5}),
        ("tokenizer_config.json", {"additional_special_tokens": "<new>"}),
        ("tokenizer_config.json", {"eos_token": {"content": "</s>", "lstrip": "yes"}}),
        ("tokenizer_config.json", {"extra_ids": True}),
    ],
)
def test_files_of_another_form_are_named(file: str, content: dict, tmp_path: Path) -> None:
    for name in ("byt5", "code", "llama"):
        own = shutil.copytree(FOLDER / name, tmp_path / name)
        kept = json.loads((own / file).read_text()) if (own / file).is_file() else {}
        (own / file).write_text(json.dumps(kept | content))
        with pytest.raises(UsageError, match=f"{name}/{file}"):
            open_vocabulary(readable_vocabulary(own, 10) or "")
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": null}')
    assert hf._extra_ids(tmp_path, {"model_type": "t5"}) == 100


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of values in JSON, the first few of each container."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in [*items][:12]:
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _damaged(content: bytes, name: str) -> Iterator[bytes]:
    """A file with parts of it lost or changed, and, of JSON, values of other kinds."""
    for at in range(0, len(content), max(1, len(content) // 6)):
        yield content[:at]
        yield content[:at] + b"\xff" + content[at + 1 :]
        yield content[:at] + b"\0\0" + content[at:]
    if name.endswith(".json"):
        whole = json.loads(content)
        for inside, key in [*_places(whole)]:
            kept = inside[key]
            for other in (None, True, 5, -1, 2**40, 0.5, "x", "", [], [1], {}, {"x": 1}):
                inside[key] = other
                yield json.dumps(whole).encode()
            inside[key] = kept


@pytest.mark.parametrize("name", ["t5_added", "llama", "code", "byt5"])
def test_damaged_files_are_no_traceback(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Opened, or a UsageError, of every file with any part of it damaged."""
    own, dice, refused = tmp_path / name, random.Random(name), 0
    shutil.copytree(folders[name], own)
    for file in files_of(own).values():
        content = file.read_bytes()
        cases = [*_damaged(content, file.name)]
        for case in dice.sample(cases, min(len(cases), 120)):
            file.write_bytes(case)
            try:
                opened = open_vocabulary(readable_vocabulary(own, 10) or own)
                opened.decode(opened.encode("a < b \u4e2d"))
            except UsageError:
                refused += 1
        file.write_bytes(content)
    assert refused > 20


def test_bytes_are_one_vocabulary_whatever_files_say_so(tmp_path: Path) -> None:
    own, theirs = vocabulary_digest(resolve("bytes")), tmp_path / "tokenizer_config.json"
    content = {"tokenizer_class": "ByT5Tokenizer", "eos_token": "</s>"}
    theirs.write_text(json.dumps(content))
    assert vocabulary_digest(tmp_path) == own
    for added in ({"384": {"content": "<new>"}}, {"0": {"content": "<pad>", "lstrip": False}}):
        theirs.write_text(json.dumps(content | {"added_tokens_decoder": added}))
        assert vocabulary_digest(tmp_path) != own


def test_ids_that_no_token_has(tmp_path: Path) -> None:
    vocab = {"<pad>": 0, "</s>": 1, "a": 5, "[": 2, "b": 40}
    model = tokenizers.models.BPE(vocab=vocab, merges=[])
    tokenizers.Tokenizer(model).save(str(tmp_path / FAST))
    assert open_vocabulary(tmp_path).vocab_size == 41
    names = token_names(tmp_path, 100, 64)
    assert (len(names), names[40], len({*names})) == (64, "b", 64)
    old = dataclasses.replace(random_weights(BASE), vocabulary=tmp_path)
    # The library numbers added tokens on from how many there are, whatever the file says.
    with pytest.raises(UsageError, match=r"'\[\[' would have the id 5, not 41: .* leaves ids out"):
        extend.extended(old, ["[["])


class TestStores:
    """Of rows that such a vocabulary has tokenised."""

    @pytest.fixture
    def store(self, tmp_path: Path, opened: dict[str, Tokenizer]) -> TokenStore:
        own = opened["code"]
        split = SplitBuilder(
            ("label_inputs", "label_targets", "rationale_targets"), ("id", "input")
        )
        for n in range(3):
            ids = {
                "label_inputs": own.encode(f"is {n} < 2"),
                "label_targets": own.encode("yes"),
                "rationale_targets": own.encode(f"it is {n}"),
            }
            tokens = {column: [*row, own.eos_id] for column, row in ids.items()}
            split.append(tokens, {"id": f"{n}", "input": f"is {n} < 2"})
        about = {"name": "toy", "kind": "task", "key": "x", "prefixes": "paper"}
        return write_store(tmp_path / "store", {"train": split}, own.path, 0, about)

    def test_the_store_has_the_tokenizer(
        self, store: TokenStore, opened: dict[str, Tokenizer]
    ) -> None:
        own = opened["code"]
        assert store.vocabulary.encode("a < b {") == own.encode("a < b {")
        assert store.manifest["vocabulary"]["sha256"] == vocabulary_digest(own.path)
        assert store.split("train").tokens("label_inputs").values.dtype == np.uint16

    def test_a_joint_target_is_the_joined_text(self, store: TokenStore) -> None:
        split, own = store.split("train"), store.vocabulary
        columns = [split.tokens(f"{n}_targets") for n in ("label", "rationale")]
        for form, text in (
            ("rationale_label", "it is 2 Answer: yes"),
            ("label_rationale", "yes Rationale: it is 2"),
        ):
            _, targets = joint_pair(split, form, split.tokens("label_inputs"), *columns)
            ids = targets[2].tolist()
            assert own.decode(ids) == text
            assert ids.count(1) == ids.count(own.eos_id) == 1
            assert (ids[0], ids[-1]) == (1, own.eos_id)

    def test_a_cut_row_ends_as_its_own(self, store: TokenStore) -> None:
        split = store.split("train")
        pair = split.tokens("label_inputs"), split.tokens("label_targets")
        cut = Examples({1: pair}, config.Data(input_length=4), 3)
        assert cut.inputs(np.arange(3)).reshape(3, 4)[:, -1].tolist() == [2, 2, 2]


@pytest.mark.parametrize("name", ["t5_added", "code", "byt5"])
def test_a_stores_tokens_are_those_of_seqios_tasks(name: str, opened: dict[str, Tokenizer]) -> None:
    pytest.importorskip("seqio")
    check_against_pipelines("svamp", rows_of(TRICKY), opened[name].path)


class TestSeqio:
    """Vocabularies as SeqIO has them."""

    def test_equal_files_at_two_places_are_mixed(self, tmp_path: Path) -> None:
        seqio = pytest.importorskip("seqio")
        from dss_jax.data.seqio_vocabulary import seqio_vocabulary

        places = [shutil.copy(toy.VOCABULARY, tmp_path / f"{n}.model") for n in "ab"]
        folders = [shutil.copytree(FOLDER / "code", tmp_path / n) for n in "cd"]
        for a, b in ((places[0], places[1]), (FOLDER / "llama", FOLDER / "llama")):
            assert seqio_vocabulary(a) == seqio_vocabulary(b)
        made = [readable_vocabulary(folder, 10) for folder in folders]
        one, other = map(seqio_vocabulary, filter(None, made))
        assert one == other
        assert seqio_vocabulary(places[0]) != seqio_vocabulary(places[1], 7)
        assert seqio_vocabulary(places[0]) == seqio.SentencePieceVocabulary(places[1], 100)
        assert one != seqio_vocabulary(FOLDER / "llama") != seqio_vocabulary(places[0])
        tasks = []
        for n, file in enumerate(places):
            feature = seqio.Feature(seqio_vocabulary(file))
            source = seqio.FunctionDataSource(lambda split, shuffle_files: None, splits=["train"])
            features = {"inputs": feature, "targets": feature}
            tasks.append(seqio.Task(f"equal_{n}", source, features, []))
        mixture = seqio.Mixture("equal", [(task, 1.0) for task in tasks])
        assert mixture.output_features["inputs"].vocabulary == seqio_vocabulary(places[1])

    @pytest.mark.parametrize("name", ["llama", "byt5"])
    def test_its_graph_gives_the_same(self, name: str, opened: dict[str, Tokenizer]) -> None:
        pytest.importorskip("seqio")
        import tensorflow as tf

        from dss_jax.data.seqio_vocabulary import seqio_vocabulary

        own, theirs = opened[name], seqio_vocabulary(opened[name].path)
        texts = [*script_texts.SENTENCES, *script_texts.CODE]
        data = tf.data.Dataset.from_tensor_slices(texts)
        one = data.map(theirs.encode_tf).as_numpy_iterator()
        assert [ids.tolist() for ids in one] == own.encode_all(texts)
        (many,) = data.batch(99).map(theirs.encode_tf)
        assert many.to_list() == own.encode_all(texts)
        assert theirs.decode_tf(many[0]).numpy().decode() == own.decode(many[0].numpy())
        assert theirs.decode([*many[3].numpy(), theirs.eos_id, 7]) == texts[3]
        assert (theirs.vocab_size, theirs.eos_id) == (own.vocab_size, own.eos_id)


class TestConversions:
    """Folders of Hugging Face's and of ours."""

    @pytest.fixture
    def weights(self, folders: dict[str, Path]) -> Weights:
        shape = dataclasses.replace(BASE, vocab_size=720, eos_token_id=2)
        vocabulary = readable_vocabulary(folders["code"], 10)
        return dataclasses.replace(random_weights(shape), vocabulary=vocabulary)

    @pytest.fixture
    def t5(self, folders: dict[str, Path]) -> Weights:
        vocabulary = readable_vocabulary(folders["t5_added"], 10)
        return dataclasses.replace(random_weights(BASE), vocabulary=vocabulary, extra_ids=10)

    def test_the_tokenizer_comes_back_byte_for_byte(
        self, weights: Weights, t5: Weights, tmp_path: Path
    ) -> None:
        for n, own in enumerate((weights, t5)):
            path = tmp_path / str(n)
            path.mkdir()
            write_weights(own, str(path / "hf"), "hf")
            write_weights(read_weights(str(path / "hf")), str(path / "orbax"), "orbax")
            write_weights(read_weights(str(path / "orbax")), str(path / "again"), "hf")
            assert own.vocabulary is not None
            for name, file in files_of(own.vocabulary).items():
                for folder in ("hf", "orbax", "again"):
                    assert (path / folder / name).read_bytes() == file.read_bytes()
            again = read_weights(str(path / "again"))
            assert again.vocabulary == path / "again"
            assert again.config == dataclasses.replace(own.config, dropout_rate=0.1)

    def test_another_end_than_the_models(self, weights: Weights) -> None:
        assert weights.vocabulary is not None
        wrong = dataclasses.replace(weights.config, eos_token_id=1)
        with pytest.raises(UsageError, match=r"end with id 2 .*with 1"):
            vocabulary_size(weights.vocabulary, 0, wrong, "a test")

    def test_what_t5x_cannot_keep_is_named(
        self, weights: Weights, t5: Weights, tmp_path: Path
    ) -> None:
        with pytest.raises(UsageError, match=r"added .*'{', '<', '\u4e2d', 'foo bar'"):
            write_weights(t5, str(tmp_path / "checkpoint_0"), "t5x")
        assert not (tmp_path / "checkpoint_0").exists()
        write_weights(weights, str(tmp_path / "checkpoint_0"), "t5x")

    def test_ctranslate2_keeps_them(self, t5: Weights, tmp_path: Path) -> None:
        pytest.importorskip("ctranslate2")
        from dss_jax.interop.ctranslate2 import write_ct2
        from dss_jax.student import ct2

        write_ct2(t5, tmp_path / "ct2")
        engine, vocabulary = ct2.open_engine(tmp_path / "ct2")
        assert engine._tokens[426:428] == ["\u4e2d", "foo bar"]
        assert vocabulary.encode("a < b {")[-3:] == [356, *vocabulary.encode("b"), 337][-3:]


class TestExtend:
    """`dss vocabulary extend`."""

    @pytest.mark.parametrize("tied", [True, False])
    def test_new_rows_are_the_mean_of_what_they_replace(self, tied: bool, tmp_path: Path) -> None:
        shape = dataclasses.replace(BASE, logits_via_embedding=tied, vocab_size=441)
        old = dataclasses.replace(random_weights(shape), vocabulary=toy.VOCABULARY, extra_ids=10)
        many = [f"token{n}" for n in range(20)]
        new = extend.extended(old, ["\u4e2d", "apples and", "<", "\u00e9", "{}", "~~", *many])
        assert new.config.vocab_size == 512
        before = old.leaves[extend.EMBEDDINGS[0]].read()
        after = new.leaves[extend.EMBEDDINGS[0]].read()
        pieces = open_vocabulary(toy.VOCABULARY, 10)
        np.testing.assert_array_equal(after[:426], before[:426])
        np.testing.assert_allclose(after[426], before[2])
        np.testing.assert_allclose(after[427], before[pieces.encode("apples and")].mean(0), 1e-5)
        np.testing.assert_allclose(after[500], before[:426].mean(0), atol=1e-6)
        if not tied:
            head = new.leaves[extend.HEAD].read()
            np.testing.assert_allclose(head[:, 426], old.leaves[extend.HEAD].read()[:, 2])
        write_weights(new, str(tmp_path / "new"), "hf")
        again = read_weights(str(tmp_path / "new"))
        assert again.vocabulary is not None
        own = open_vocabulary(again.vocabulary)
        assert isinstance(own, FastTokenizer)
        for text in ("a \u4e2d b {} c", "x{}y", "\u4e2d", "3 apples and 4"):
            assert own.decode(own.encode(text)) == text
        plain = "sum of 12 and 7 is  19 "
        assert own.encode(plain) == pieces.encode(plain)
        further = extend.extended(again, ["\u4e2d", "\u6587"])
        assert further.vocabulary is not None
        assert open_vocabulary(further.vocabulary).encode("\u6587")[-1] == own.vocab_size

    @pytest.mark.parametrize(
        ("tokens", "said"),
        [(["<extra_id_3>"], "no token is new"), ([" x"], "white space"), ([], "no token is new")],
    )
    def test_no_tokens(self, tokens: list[str], said: str) -> None:
        own = dataclasses.replace(random_weights(BASE), vocabulary=toy.VOCABULARY, extra_ids=10)
        with pytest.raises(UsageError, match=said):
            extend.extended(own, tokens)

    def test_a_token_without_pieces_has_the_mean_of_all(self) -> None:
        own = dataclasses.replace(random_weights(BASE), vocabulary=toy.VOCABULARY, extra_ids=10)
        new = extend.extended(own, ["\u200b", "\u4e2d"]).leaves[extend.EMBEDDINGS[0]].read()
        np.testing.assert_allclose(new[426], new[:426].mean(0), atol=1e-6)
        np.testing.assert_allclose(new[427], new[2])

    def test_a_vocabulary_of_another_model(self, tmp_path: Path) -> None:
        own = dataclasses.replace(random_weights(BASE), vocabulary=toy.VOCABULARY, extra_ids=10)
        few = dataclasses.replace(own, config=dataclasses.replace(BASE, vocab_size=200))
        with pytest.raises(UsageError, match=r"426 ids .* only 200 rows"):
            extend.extended(few, ["\u4e2d"])
        with pytest.raises(UsageError, match=r"has a vocabulary, .*Leave --vocabulary out"):
            with_vocabulary(own, str(FOLDER / "llama"))
        assert with_vocabulary(own, str(toy.VOCABULARY)).vocabulary == toy.VOCABULARY

    def test_a_name_of_the_hub_becomes_no_folder_of_its_owner(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("tokens").write_text("\u4e2d", encoding="utf-8")
        own = dataclasses.replace(random_weights(BASE), vocabulary=toy.VOCABULARY, extra_ids=10)
        monkeypatch.setattr("dss_jax.interop.formats.read_weights", lambda name: own)
        for name in ("google/toy", "hf:google/toy-2@main"):
            assert main(["vocabulary", "extend", name, "--tokens", "tokens"]) == 0
        assert {p.name for p in tmp_path.iterdir()} == {"tokens", "toy-extended", "toy-2-extended"}

    def test_the_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        own = dataclasses.replace(random_weights(BASE), vocabulary=toy.VOCABULARY, extra_ids=10)
        write_weights(own, str(tmp_path / "own"), "hf")
        (tmp_path / "tokens").write_text("\u4e2d\n\n\u6587\n", encoding="utf-8-sig")
        asked = ["vocabulary", "extend", str(tmp_path / "own")]
        assert main([*asked, "--tokens", str(tmp_path / "tokens")]) == 0
        assert "448 rows of the embedding, 448 before" in capsys.readouterr().out
        made = read_weights(str(tmp_path / "own-extended"))
        made_of = open_vocabulary(made.vocabulary or "")
        assert (made_of.vocab_size, made_of.decode([426])) == (428, "\u4e2d")
        out = ["--out", str(tmp_path / "out")]
        assert main([*asked, *out, "--tokens", str(tmp_path / "none")]) == 2
        assert "cannot be read" in capsys.readouterr().err
