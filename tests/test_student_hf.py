"""A student's log-probabilities of labels beside those of PyTorch's T5."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import student_maker
import toy

import dss_jax
from dss_jax.cli.main import main
from dss_jax.core.ids import EOS_ID
from dss_jax.core.student_card import StudentCard, write

torch = pytest.importorskip("torch", reason="parity with Hugging Face needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")
import record_hf_reference as hf  # noqa: E402 - it imports torch

pytestmark = pytest.mark.slow


UMT5 = dataclasses.replace(hf.V1_0, relative_attention_per_layer=True)


@pytest.mark.parametrize("config", [hf.V1_0, hf.V1_1, UMT5], ids=["v1.0", "v1.1", "umt5"])
def test_labels_over_a_trie_have_the_log_probabilities_of_pytorch(config, tmp_path: Path) -> None:
    from dss_jax.interop.hf_config import config_json

    torch.manual_seed(0)
    # transformers 5.23 sizes the decoder's cache by the encoder's layers.
    config = dataclasses.replace(config, vocab_size=512, num_decoder_layers=2)
    model = transformers.AutoModelForSeq2SeqLM.from_config(
        transformers.AutoConfig.for_model(**config_json(config, "float32"))
    ).eval()
    model.save_pretrained(tmp_path)
    shutil.copyfile(toy.VOCABULARY, tmp_path / "spiece.model")
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 0}')
    write(tmp_path, StudentCard(label_prefix="[label] "))
    student = dss_jax.load(tmp_path)
    examples = student_maker.examples(6)
    found = student.predict(
        [e.input for e in examples], labels=[e.allowed_labels for e in examples]
    )
    for example, one in zip(examples, found, strict=True):
        (inputs,) = student.encode([example.input], "[label] ")
        expected = {}
        for label in example.allowed_labels:
            targets = [*student.encode([label])[0][:-1], EOS_ID]
            with torch.no_grad():
                logits = model(
                    input_ids=torch.tensor([inputs]),
                    decoder_input_ids=torch.tensor([[0, *targets[:-1]]]),
                ).logits[0]
            each = torch.log_softmax(logits, dim=-1)[range(len(targets)), targets]
            expected[label] = float(each.sum())
        best = max(expected, key=lambda label: expected[label])
        assert one.log_prob == pytest.approx(max(expected.values()), abs=1e-4)
        assert expected[one.label] == pytest.approx(expected[best], abs=1e-4)
        shares = torch.softmax(torch.tensor([*expected.values()]), dim=0).tolist()
        assert [*one.probabilities.values()] == pytest.approx(shares, abs=1e-4)


def test_a_umt5_of_transformers_is_trained_and_goes_back(tmp_path: Path) -> None:
    """`dss train` from a folder of transformers, `dss convert` to one: both write the same."""
    torch.manual_seed(0)
    shape = {"vocab_size": 512, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4}
    made = transformers.UMT5Config(**shape, num_layers=2, dropout_rate=0.0)
    transformers.UMT5ForConditionalGeneration(made).save_pretrained(tmp_path / "umt5")
    shutil.copyfile(toy.VOCABULARY, tmp_path / "umt5" / "spiece.model")
    (tmp_path / "umt5" / "tokenizer_config.json").write_text('{"extra_ids": 0}')
    run, out = tmp_path / "run", tmp_path / "out"
    settings = ["Train.steps=20", "Data.batch_size=8", "Optimizer.learning_rate=0.01"]
    settings += ["Evaluate.every=20", "Evaluate.validation_examples=8", "Task.train_count=64"]
    train = ["train", "--task", "word_problems", "--method", "dss", "--output_dir", str(run)]
    flags = [f"--gin.{one}" for one in settings]
    assert main([*train, "--init_from", str(tmp_path / "umt5"), *flags]) == 0
    assert main(["convert", "--from", "orbax", str(run), "--to", "hf", str(out)]) == 0
    student = dss_jax.load(run)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(out).eval()
    assert type(model).__name__ == "UMT5ForConditionalGeneration"
    texts = [f"Tom has {n} apples and gets {n + 3} more. How many?" for n in range(8)]
    written = student.complete([f"[rationale] {text}" for text in texts], 16)
    assert len({round(one.log_prob, 2) for one in written}) > 4, "the input must matter"
    for ids, one in zip(student.encode(texts, "[rationale] "), written, strict=True):
        inputs = torch.tensor([ids])
        tokens = model.generate(inputs, max_new_tokens=16, do_sample=False)
        assert student._vocabulary.decode(tokens[0, 1:].tolist()) == one.text
        with torch.no_grad():
            logits = model(input_ids=inputs, decoder_input_ids=tokens[:, :-1]).logits
        each = torch.log_softmax(logits, dim=-1).gather(2, tokens[:, 1:, None])
        assert one.log_prob == pytest.approx(float(each.sum()), abs=1e-3)
