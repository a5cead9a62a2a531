"""The metric functions of a user's own SeqIO task judge its predictions."""

from pathlib import Path

import pytest
import toy

from dss_jax.core.errors import UsageError
from dss_jax.data import prepare_child

MODULE = """
import seqio
import tensorflow as tf

VOCABULARY = seqio.SentencePieceVocabulary({vocabulary!r}, extra_ids=0)

def rows(split, shuffle_files=False, seed=None):
    rows = {{"inputs": ["a", "b", "c"], "targets": ["1", "2", "3"]}}
    return tf.data.Dataset.from_tensor_slices(rows)

def overlap(targets, predictions):
    seen = len(set(targets) & set(predictions))
    return {{"seen": seen, "sum": sum(targets), "word": "no number"}}

seqio.TaskRegistry.add(
    "own_numbers",
    source=seqio.FunctionDataSource(rows, splits=["validation"]),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    postprocess_fn=lambda text, **_: 10 * int(text),
    output_features={{f: seqio.Feature(VOCABULARY) for f in ("inputs", "targets")}},
    metric_fns=[overlap],
)
"""


def test_postprocessor_and_metric_functions_are_the_tasks_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_tasks.py").write_text(MODULE.format(vocabulary=str(toy.VOCABULARY)))
    monkeypatch.chdir(tmp_path)
    request = {
        "module": "own_tasks",
        "name": "own_numbers",
        "split": "validation",
        # The second row is not judged.
        "predictions": {"own_numbers-0": "1", "own_numbers-2": "7"},
    }
    found = prepare_child.run(request, "dss_jax.data.seqio_user")
    assert found == {"own_numbers/seen": 1.0, "own_numbers/sum": 40.0}


@pytest.mark.slow
def test_an_unknown_name_is_told_to_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_tasks.py").write_text(MODULE.format(vocabulary=str(toy.VOCABULARY)))
    monkeypatch.chdir(tmp_path)
    request = {"module": "own_tasks", "name": "own_number", "split": "x", "predictions": {}}
    with pytest.raises(UsageError, match=r"registers no SeqIO task .*It has: .*own_numbers"):
        prepare_child.run(request, "dss_jax.data.seqio_user")
