"""Students of other vocabularies: trained from a folder of Hugging Face's, exported, and asked by
transformers.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import script_texts
from record_tokenizers import FOLDER

import dss_jax
from dss_jax.cli.main import main
from dss_jax.data.vocabulary import files_of
from dss_jax.interop.older_tokenizers import readable_vocabulary

torch = pytest.importorskip("torch", reason="parity with Hugging Face needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")
pytest.importorskip("seqio")

pytestmark = pytest.mark.slow

IDS = {
    "byt5": {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    "code": {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0},
    "llama": {"pad_token_id": 548, "eos_token_id": 2, "decoder_start_token_id": 548},
    "gemma": {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 2},
}
LONGEST = 40


def gemma_tokenizer(folder: Path) -> None:
    """Gemma's kind: `<bos>` before a text, nothing after it, spaces as "▁", bytes to fall back."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    tokenizer: Any = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    names = {f"{role}_token": f"<{role}>" for role in ("pad", "eos", "bos", "unk")}
    special = [*names.values(), *(f"<0x{byte:02X}>" for byte in range(256))]
    texts = [*script_texts.CODE, *script_texts.SENTENCES]
    tokenizer.train_from_iterator(texts, BpeTrainer(vocab_size=700, special_tokens=special))
    spaces = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.save_pretrained(folder)


def t5gemma() -> Any:
    both: dict[str, Any] = {"vocab_size": 768, "head_dim": 8, "num_key_value_heads": 2}
    both |= {"num_hidden_layers": 2, "query_pre_attn_scalar": 8, "sliding_window": 16}
    both |= {"initializer_range": 0.3}  # So that they say something after 30 steps.
    encoder, decoder = (
        both | {"hidden_size": size, "intermediate_size": 2 * size, "num_attention_heads": 4}
        for size in (40, 32)
    )
    own = transformers.T5GemmaConfig(encoder=encoder, decoder=decoder, vocab_size=768)
    return transformers.T5GemmaForConditionalGeneration(own)


def base_model(name: str, folder: Path) -> dict[str, bytes]:
    """A toy of random weights, as transformers saves it; its tokenizer's files by name."""
    torch.manual_seed(0)
    if name == "gemma":
        t5gemma().save_pretrained(folder)
        gemma_tokenizer(folder)
        return {file: path.read_bytes() for file, path in files_of(folder).items()}
    own = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    kind = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    of = "UMT5" if name == "llama" else "T5"  # Pile-T5 is a umT5 with Llama's tokenizer.
    settings = getattr(transformers, f"{of}Config")(vocab_size=768, **own, **kind, **IDS[name])
    model = getattr(transformers, f"{of}ForConditionalGeneration")(settings)
    model.save_pretrained(folder)
    vocabulary = readable_vocabulary(FOLDER / name, 10)
    assert vocabulary is not None
    for file, path in files_of(vocabulary).items():
        shutil.copyfile(path, folder / file)
    return {file: path.read_bytes() for file, path in files_of(vocabulary).items()}


@pytest.mark.parametrize("name", IDS)
def test_it_answers_the_same_in_transformers(name: str, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    files = base_model(name, tmp_path / "base")
    settings: dict[str, Any] = {
        "Train.steps": 30,
        "Data.batch_size": 8,
        "Data.store_dir": repr(str(tmp_path / "stores")),
        "Task.train_count": 200,
        "Evaluate.every": 30,
        "Evaluate.validation_examples": 8,
        "Evaluate.max_decode_length": LONGEST,
        "Optimizer.learning_rate": 0.01,
    }
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    asked = ["train", "--task", "word_problems", "--method", "dss", "--output_dir", run]
    flags = [f"--gin.{key}={value}" for key, value in settings.items()]
    assert main([*asked, "--init_from", str(tmp_path / "base"), *flags]) == 0
    assert main(["convert", "--from", "orbax", run, "--to", "hf", out]) == 0
    for file, content in files.items():
        assert (tmp_path / "out" / file).read_bytes() == content
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["model_type"] == {"llama": "umt5", "gemma": "t5gemma"}.get(name, "t5")
    student = dss_jax.load(out)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    prefix, end = student.card.label_prefix, IDS[name]["eos_token_id"]
    texts = [str(one["input"]) for one in student.card.examples[:8]]
    # Gemma's template ends no text, and its end has another name.
    close = "<eos>" if name == "gemma" else ""
    texts += ["h\u00e9llo \u4e2d\u6587"] if close else ["a </s> b < c {", "h\u00e9llo \u4e2d\u6587"]
    ids = student.encode(texts, prefix)
    found = student._engine.generate(ids, 24)
    answers = []
    for text, own, one in zip(texts, ids, found, strict=True):
        inputs = tokenizer(prefix + text + close, return_tensors="pt")
        assert inputs.input_ids[0].tolist() == own
        with torch.no_grad():
            theirs = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0].tolist()[1:]
        theirs = theirs[: theirs.index(end)] if end in theirs else theirs
        assert theirs == [*one.ids]
        answers.append(theirs)
    assert len(np.unique(np.concatenate(answers))) > 1, "they say something"
    assert [one.label for one in student.predict(texts)]
