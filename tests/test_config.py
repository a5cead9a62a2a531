"""The configuration checks itself, and gin text gives the same configuration again."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from dss_jax.cli import gin_config
from dss_jax.core import config
from dss_jax.core.errors import UsageError

BAD = [
    ("Train.steps = 0", "at least 1, not 0"),
    ("Train.steps = 1.5", "a whole number, not 1.5"),
    ("Train.seed = 4294967296", "between 0 and 4294967295, not 4294967296"),
    ("Train.steps = True", "a whole number, not True"),
    ("Train.checkpoint_every = 0", "at least 1, not 0"),
    ("Train.output_dir = 3", "must be text, not 3"),
    ("Task.use_cached = 1", "must be True or False, not 1"),
    ("Optimizer.eps = '1e-6'", "must be a number, not '1e-6'"),
    ("Optimizer.clip_norm = -1", "at least 0, not -1"),
    ("Optimizer.eps = 1e999", "between 0 and 1, not inf"),
    ("Optimizer.b2 = 1", "b1 and b2 must be below 1"),
    ("Evaluate.decode = 'beam'\nBeam.min_decode_length = 500", "above Evaluate.max_decode_length"),
    ("Beam.early_stopping = 'always'", "must be True, False or \"never\", not 'always'"),
    ("Loss.alpha_phases = ((0.5,),)", "must be a list of 2, not (0.5,)"),
    ("Loss.alpha_schedule = 'phased'\nLoss.alpha_phases = ((1.0, 2),)", "between 0 and 1, not 2"),
    ("Lora.targets = ('querry',)", "unknown value in Lora.targets 'querry'. Did you mean 'query'?"),
    ("Lora.targets = ()", "Lora.targets is empty"),
    ("Loss.alpha = 1.5", "between 0 and 1, not 1.5"),
    ("Optimizer.name = 'adamv'", "Did you mean 'adamw'?"),
    ("Task.prefixes = 'papers'", "Did you mean 'paper'?"),
    ("Task.train_fraction = 0", "above 0"),
    ("Task.train_fraction = 0.5\nTask.train_count = 3", "not both"),
    ("Data.layout = 'flatt'", "Known: auto, flat, packed, padded"),
    ("Data.batch_size = 6\nTrain.microbatches = 4", "a multiple of"),
    ("T5Config.dtype = 'float16'", "Known: bfloat16, float32"),
    ("T5Config.mlp_activations = ()", "one activation, or two"),
    ("Mesh.data = -1\nMesh.model = -1", "at most one"),
    ("Mesh.logical_axis_rules = (('mpl', 'model'),)", "Did you mean 'mlp'?"),
    ("Mesh.logical_axis_rules = (('mlp', 'modle'),)", "Did you mean 'model'?"),
    ("Trin.steps = 3", "Did you mean 'Train'?"),
    ("Train.stepz = 3", "Did you mean 'Train.steps'?"),
    ("Task.mixture_or_task_name = 'x'", "needs Task.mixture_or_task_module"),
    ("Train.steps = = 3", "gin cannot read"),
    ("Train.steps = (3", "gin cannot read"),
    ("steps = 300", "no effect.* Did you mean Train.steps?"),
    ("learning_rate = 1e-3", "mean Lora.learning_rate or Optimizer.learning_rate?"),
    ("batch_size = 3", "Did you mean Data.batch_size or Evaluate.batch_size?"),
    ("learnin_rate = 1e-3", "mean Lora.learning_rate or Optimizer.learning_rate?"),
    ("TRAIN_STEPS = 100", "Did you mean Train.steps?"),
    ("DROPOUT_RATE = 0.1", "Did you mean T5Config.dropout_rate?"),
    ("MIXTURE_OR_TASK_NAME = 'x'", "Did you mean Task.mixture_or_task_name?"),
    ("INITIAL_CHECKPOINT_PATH = 'x'", "Did you mean Train.init_from?"),
    ("train/Train.steps = 5", "train/Train has a scope"),
    ("train/steps = 5", "no setting"),
    ("Train.steps = %steps", "unknown macro 'steps'"),
    ("steps = %steps\nTrain.steps = %steps", "stands for itself"),
    ("Train.steps = @steps()", "must be a value, not @steps()"),
    ("steps = @f\nTrain.steps = %steps", "must be a value, not @f"),
    ("T5Config.dtype = bfloat16", """--gin.T5Config.dtype='"bfloat16"'"""),
    ("Train.output_dir = runs/x", "Text needs quotes: Train.output_dir = 'runs/x'"),
    ("import os", "import nothing"),
    ("from os import path as p", "'from os import path as p' is not taken"),
]


@pytest.mark.parametrize(("binding", "says"), BAD)
def test_a_wrong_name_or_value_is_refused_with_the_fix(binding: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        gin_config.read([], binding.split("\n")).run()
    assert re.search(re.escape(says).replace(r"\.\*", ".*"), str(error.value))


def test_all_that_is_wrong_is_said_at_once() -> None:
    def said(*bindings: str) -> list[str]:
        with pytest.raises(UsageError) as raised:
            gin_config.read(bindings=bindings).run()
        first, *rest = str(raised.value).split("\n- ")
        assert first == "several things are wrong:"
        return rest

    of_fields = ("Train.steps = 0", "Train.seed = 'x'", "Data.layout = 'loose'")
    assert [line.split()[0] for line in said(*of_fields)] == [
        "unknown",  # Data.layout
        "Train.steps",
        "Train.seed",
    ]
    parts = ("Data.batch_size = 5", "Train.microbatches = 2", "Evaluate.decode = 'rank'")
    both = said(*parts, "Method.form = 'label_rationale'", "Method.rationale = False")
    assert "must be a multiple" in both[0]
    assert "compares labels" in both[1]
    names = said("Train.stepz = 1", "Tran.steps = 1", "Data.seed = %GONE")
    assert [line.split()[1] for line in names] == ["setting", "section", "macro"]


def test_gin_text_gives_the_same_configuration_again(tmp_path: Path) -> None:
    run = gin_config.read(
        ["runs/train.gin", "methods/dss_unlabeled.gin", "tasks/svamp.gin"],
        ["Train.steps = 7", "Task.data_dir = 'a b'", "T5Config.vocab_size = None"],
    ).run()
    file = tmp_path / "config.gin"
    file.write_text(config.to_gin(run))
    assert gin_config.read([file]).run() == run


def test_later_bindings_win_and_nothing_is_left_over_from_the_run_before() -> None:
    gin_config.read([], ["Train.steps = 5"]).run()
    assert gin_config.read([], ["Train.steps = 5", "Train.steps = 6"]).run().train.steps == 6
    assert gin_config.read([]).run() == config.Run()


def test_a_missing_gin_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"no gin file 'nowhere\.gin'"):
        gin_config.read(["nowhere.gin"]).run()


@pytest.mark.parametrize("name", config.SETTINGS)
def test_every_setting_refuses_a_value_of_another_kind(name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} must be .*, not \{{1: 2\}}"):
        gin_config.read([], [f"{name} = {{1: 2}}"]).run()


def test_older_names_and_forms_load_and_the_new_name_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "config.gin"
    file.write_text(
        "Task.rationales = 'a.jsonl,b.jsonl'\nTask.extra_tasks = None\n"
        "Pretrain.text_files = 'a.txt'\nTask.seqio_cache_dirs = ['c', 'd']\n"
    )
    for read in (gin_config.read, lambda files: gin_config.read_saved(files[0])):
        caplog.clear()
        run = read([file]).run()
        assert run.task.record_files == ("a.jsonl", "b.jsonl")
        assert (run.task.extra_tasks, run.pretrain.text_files) == ((), ("a.txt",))
        assert run.task.seqio_cache_dirs == ("c", "d")
        assert f"Task.rationales is called Task.record_files now ({file}:1)" in caplog.messages
    bindings = ["Evaluate.rationales = True"]
    assert gin_config.read([], bindings).run().evaluate.generate_rationales
    assert "Evaluate.generate_rationales" in caplog.text


def test_every_field_is_documented_where_it_is_defined() -> None:
    for name, section in config.SECTIONS.items():
        for field in dataclasses.fields(section):
            assert field.name in (section.__doc__ or ""), f"{name}.{field.name}"


def test_configurations_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.Run().train.steps = 3  # type: ignore[misc]


def test_macros_blocks_and_includes_are_read(tmp_path: Path) -> None:
    (tmp_path / "base.gin").write_text("STEPS = 7\nOptimizer:\n  b1 = 0.5\n  eps = 1e-6\n")
    (tmp_path / "my.gin").write_text(
        'include "base.gin"\nTrain.steps = %STEPS\nNAME = "model"\n'
        "Mesh.logical_axis_rules = (('mlp', %NAME), ('vocab', None))\n"
    )
    run = gin_config.read(["my.gin"], ["STEPS = 9"], [tmp_path]).run()
    assert run.train.steps == 9
    assert (run.optimizer.b1, run.optimizer.eps) == (0.5, 1e-6)
    assert run.mesh.logical_axis_rules == (("mlp", "model"), ("vocab", None))
    (tmp_path / "base.gin").write_text('include "my.gin"\n')
    with pytest.raises(UsageError, match=r"my\.gin includes itself"):
        gin_config.read(["my.gin"], [], [tmp_path]).run()


def test_an_error_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "my.gin"
    for line in ("Train.stepz = 3", "steps = 3", "import os", "T5Config.dtype = bfloat16"):
        file.write_text(f"# a comment\n\n{line}\n")
        with pytest.raises(UsageError, match=rf"{file}:3\b"):
            gin_config.read([file]).run()


@pytest.mark.parametrize(
    "line",
    [
        "import {}",
        "from {} import x",
        'include "other.gin"',
        "Train.steps = @{}.f()",
        "Train.steps = %STEPS",
        "STEPS = 4",
        "a/Train.steps = 4",
    ],
)
def test_the_configuration_that_a_run_has_saved_binds_and_does_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    (tmp_path / "left_here.py").write_text("raise SystemExit('executed')\n")
    (tmp_path / "other.gin").write_text("Train.steps = 4\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "config.gin"
    file.write_text(f"Train.seed = 3\n{line.format('left_here')}\n")
    with pytest.raises(UsageError, match=rf"{file}:2\b"):
        gin_config.read_saved(file)
    assert "left_here" not in sys.modules
    file.write_text("Train.seed = 3\nTrain:\n  steps = 4\n")
    run = gin_config.read_saved(file, ["Train.log_every = 2"]).run()
    assert (run.train.seed, run.train.steps, run.train.log_every) == (3, 4, 2)


def test_the_learning_rate_is_that_of_what_a_run_starts_from() -> None:
    """A default only: what is given stays, and a run's configuration always has a number."""

    def rate(*bindings: str) -> float | None:
        return gin_config.read(["runs/train.gin"], bindings).run().optimizer.learning_rate

    assert rate() == 1e-3
    assert rate("Train.init_from = 'google/flan-t5-base'") == 5e-5
    assert rate("Optimizer.learning_rate = 2e-4") == 2e-4
    assert config.Run().optimizer.learning_rate == 1e-3
    started = dataclasses.replace(config.Run(), train=config.Train(init_from="a/b"))
    assert started.optimizer.learning_rate == 5e-5
    again = dataclasses.replace(config.from_gin(config.to_gin(started)), train=config.Train())
    assert again.optimizer.learning_rate == 5e-5, "a saved run's is its own"
    unclipped = config.Run(optimizer=config.Optimizer(clip_norm=float("inf")))
    for run in (config.Run(), unclipped):
        assert config.from_gin(config.to_gin(run)) == run
