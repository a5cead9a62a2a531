"""The gin files for T5X's own programs, read as text. tests/test_t5x_live_gin.py runs them."""

import ast
import re
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from gin import config_parser

from dss_jax.cli import gin_config
from dss_jax.core.paths import PACKAGE, shipped

FOLDER = shipped("gin_configs") / "t5x"
FILES = sorted(FOLDER.glob("*.gin"))
PROGRAMS = {"finetune": "train", "eval": "eval", "infer": "infer"}
"""Gin file -> the module of T5X that it is for."""

each_file = pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)


class Names(config_parser.ParserDelegate):
    """References as text, so that nothing is imported."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:
        return f"@{scoped_configurable_name}{'()' if evaluate else ''}"

    def macro(self, macro_name: str) -> Any:
        return f"%{macro_name}"


def statements(file: Path) -> list[Any]:
    return list(config_parser.ConfigParser(file.read_text(), Names()))


def of_kind(file: Path, kind: type) -> Iterator[Any]:
    return (s for s in statements(file) if isinstance(s, kind))


def parameters(module: str, name: str) -> set[str]:
    """Arguments of a function or class of this package, from its source."""
    tree = ast.parse((PACKAGE.parent / f"{module.replace('.', '/')}.py").read_text())
    [found] = [n for n in tree.body if getattr(n, "name", None) == name]
    if isinstance(found, ast.ClassDef):
        inits = [n for n in found.body if getattr(n, "name", None) == "__init__"]
        if not inits or inits[0].args.vararg or inits[0].args.kwarg:
            return set()
        found = inits[0]
    return {a.arg for a in (*found.args.args, *found.args.kwonlyargs)}


def bindings(file: Path) -> dict[str, Any]:
    found = {}
    for s in of_kind(file, config_parser.BindingStatement):
        scope = f"{s.scope}/" if s.scope else ""
        found[scope + s.selector + (f".{s.arg_name}" if s.arg_name else "")] = s.value
    return found


def test_files() -> None:
    assert {f.stem for f in FILES} == {*PROGRAMS, "adamw"}
    # The gin files of our own programs are another language.
    assert not set(gin_config.gin_names("models")) & {f.stem for f in FILES}


@each_file
def test_opens_with_what_is_required_and_what_is_often_changed(file: Path) -> None:
    head = file.read_text().partition("\nfrom __gin__")[0]
    assert all(line.startswith("#") for line in head.strip().splitlines())
    assert head.index("Required to be set") < head.index("Commonly overridden options")
    if file.stem in PROGRAMS:
        assert f"python -m t5x.{PROGRAMS[file.stem]}" in head
        [include] = of_kind(file, config_parser.IncludeStatement)
        assert include.filename == f"t5x/configs/runs/{file.stem}.gin"


@each_file
def test_names_of_this_package_are_there(file: Path) -> None:
    imported = {}
    for statement in of_kind(file, config_parser.ImportStatement):
        if statement.module.startswith("dss_jax"):
            assert util.find_spec(statement.module.rpartition(".")[0])
            assert (PACKAGE.parent / f"{statement.module.replace('.', '/')}.py").is_file()
            imported[statement.bound_name()] = statement.module
    for statement in of_kind(file, config_parser.BindingStatement):
        module = imported.get(statement.selector.rpartition(".")[0])
        if module and statement.arg_name:
            known = parameters(module, statement.selector.rpartition(".")[2])
            assert not known or statement.arg_name in known, statement.selector
    for module, name in re.findall(r"@(seqio_pairs|t5x_model)\.(\w+)", file.read_text()):
        parameters(imported[module], name)


def test_finetune_trains_on_pairs_and_saves_the_data() -> None:
    found = bindings(FOLDER / "finetune.gin")
    assert found["train/utils.DatasetConfig.mixture_or_task_name"] == "@seqio_pairs.paired()"
    assert found["train/utils.DatasetConfig.pack"] is False
    assert found["utils.SaveCheckpointConfig.save_dataset"] is True
    assert "@seqio.JSONLogger" in found["seqio.Evaluator.logger_cls"]
    assert found["train_script.train.trainer_cls"] == "@t5x_model.DistillationTrainer"
    assert found["MODEL"] == "@t5x_model.DistillationModel()"
    assert found["seqio_pairs.PairedFeatureConverter.alpha"] == "%ALPHA"
    assert found["ALPHA"] == 0.5
