"""The commands of docs/index.md run, one after another: with two steps of a tiny model, and but for
those that tests/test_cli.py (`make demo`) and tests/test_serve_docs.py (`dss serve`) run.
"""

import json

import pytest
from test_docs import DOCS, blocks
from test_docs_predict import run

pytestmark = pytest.mark.slow

SHORT = (
    " --gin.Train.steps=2 --gin.Evaluate.validation_examples=4 --gin.Task.train_count=64"
    " --gin.T5Config.emb_dim=16 --gin.T5Config.head_dim=4 --gin.T5Config.mlp_dim=16"
)


def test_the_road_of_the_quick_start(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("quick_start"))
    texts = [text for language, text in blocks((DOCS / "index.md").read_text())]
    lines = [line for text in texts for line in text.replace("\\\n", "").splitlines()]
    ours = [" ".join(x.split()) for x in lines if "dss " in x and not x.startswith("dss serve")]
    assert [line.split()[1] for line in ours[:4]] == ["tasks", "tasks", "train", "eval"]
    for line in ours:
        capsys.readouterr()
        run(line + SHORT * line.startswith("dss train"), monkeypatch)
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"input", "label", "probability", "rationale"}
