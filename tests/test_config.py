"""The configuration checks itself, and gin text gives the same configuration again."""

import dataclasses
from pathlib import Path

import pytest

from dss_jax.cli import gin_config
from dss_jax.core import config
from dss_jax.core.errors import UsageError

BAD = [
    ("Train.steps = 0", "at least 1, not 0"),
    ("Train.steps = 1.5", "a whole number, not 1.5"),
    ("Train.steps = True", "a whole number, not True"),
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
]


@pytest.mark.parametrize(("binding", "says"), BAD)
def test_a_wrong_name_or_value_is_refused_with_the_fix(binding: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        gin_config.load_run([], binding.split("\n"))
    assert says in str(error.value)


def test_gin_text_gives_the_same_configuration_again(tmp_path: Path) -> None:
    run = gin_config.load_run(
        ["runs/train.gin", "methods/dss_unlabeled.gin", "tasks/svamp.gin"],
        ["Train.steps = 7", "Task.data_dir = 'a b'", "T5Config.vocab_size = None"],
    )
    file = tmp_path / "config.gin"
    file.write_text(config.to_gin(run))
    assert gin_config.load_run([file]) == run


def test_later_bindings_win_and_nothing_is_left_over_from_the_run_before() -> None:
    gin_config.load_run([], ["Train.steps = 5"])
    assert gin_config.load_run([], ["Train.steps = 5", "Train.steps = 6"]).train.steps == 6
    assert gin_config.load_run([]) == config.Run()


def test_a_missing_gin_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"no gin file 'nowhere\.gin'"):
        gin_config.load_run(["nowhere.gin"])


def test_every_field_is_documented_where_it_is_defined() -> None:
    for name, section in config.SECTIONS.items():
        for field in dataclasses.fields(section):
            assert field.name in (section.__doc__ or ""), f"{name}.{field.name}"


def test_configurations_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.Run().train.steps = 3  # type: ignore[misc]
