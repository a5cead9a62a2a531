"""Makes tests/fixtures/tokenizers, and records in tests/golden/tokenizers.npz what transformers
makes of `script_texts`.

  python tests/record_tokenizers.py       (transformers 5.23, tokenizers 0.23)

t5 is the toy vocabulary as transformers 5 reads it, t5_added the same with some of `ADDED`
added; llama is BPE that begins with `<s>` and falls back on bytes; code is CodeT5's kind, from
vocab.json and merges.txt; byt5 is ByT5's own.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import script_texts
import toy

FOLDER = Path(__file__).parent / "fixtures" / "tokenizers"
GOLDEN = Path(__file__).parent / "golden" / "tokenizers.npz"
ADDED = ("中", "<", "{", "foo bar")
SENTINELS = [f"<extra_id_{n}>" for n in range(10)]
SIZE = 700


def t5_folder(folder: Path) -> None:
    """The toy vocabulary as a folder of Hugging Face's."""
    shutil.copyfile(toy.VOCABULARY, folder / "spiece.model")
    own = {"tokenizer_class": "T5Tokenizer", "extra_ids": 10}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "config.json").write_text('{"model_type": "t5"}')


def make_llama(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    # No piece may hold a space inside.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    latin = [*script_texts.CODE, script_texts.SENTENCES[0]]
    tokenizer.train_from_iterator(latin, BpeTrainer(vocab_size=SIZE, special_tokens=special))
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.add_special_tokens(["<pad>", *SENTINELS])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def make_code(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.trainers import BpeTrainer

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=SIZE,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([*script_texts.CODE, *script_texts.SENTENCES], trainer)
    tokenizer.model.save(str(folder))
    own = {"tokenizer_class": "RobertaTokenizer", "additional_special_tokens": SENTINELS[::-1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "config.json").write_text('{"model_type": "t5"}')


def main() -> None:
    from transformers import AutoTokenizer, ByT5Tokenizer

    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in ("llama", "code", "byt5"):
        (FOLDER / name).mkdir(parents=True)
    make_llama(FOLDER / "llama")
    make_code(FOLDER / "code")
    ByT5Tokenizer().save_pretrained(FOLDER / "byt5")
    arrays = {}
    with tempfile.TemporaryDirectory() as temporary:
        t5_folder(Path(temporary))
        added = AutoTokenizer.from_pretrained(temporary)
        added.add_tokens([*ADDED])
        found = {
            "t5": AutoTokenizer.from_pretrained(temporary),
            "t5_added": added,
            **{p.name: AutoTokenizer.from_pretrained(p) for p in sorted(FOLDER.iterdir())},
        }
        for name, tokenizer in found.items():
            ids = [tokenizer(text).input_ids for text in script_texts.texts()]
            arrays[f"{name}.ids"] = np.concatenate(ids).astype(np.uint16)
            arrays[f"{name}.lengths"] = np.array([*map(len, ids)], np.uint16)
            print(name, type(tokenizer).__name__, len(tokenizer), sum(map(len, ids)))
    np.savez_compressed(GOLDEN, **arrays)


if __name__ == "__main__":
    main()
