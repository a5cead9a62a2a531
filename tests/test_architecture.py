"""Rooms, sizes, import budgets and the list of commands (docs/architecture.md)."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import dss_jax
from dss_jax.cli.main import COMMANDS
from dss_jax.core.paths import shipped

PACKAGE = Path(dss_jax.__file__).parent
ROOMS = (
    "core",
    "records",
    "data",
    "layouts",
    "model",
    "train",
    "evaluate",
    "interop",
    "teacher",
    "run",
    "student",
    "serve",
    "sweep",
    "report",
    "cli",
)
"""In order: a room imports from itself and from those before it."""

FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_LOOP_LINES = 400, 60, 120

OF_CORE = {
    "core/storage.py": {"etils", "fsspec"},
    "core/processes.py": {"jax"},
    "core/locks.py": {"filelock"},
}
"""Files of `core` that import more than the standard library, where a path is remote, where there
are several processes and where a lock is taken: every room reads and writes files, and may not be
alone."""

TENSORFLOW = ("tensorflow", "seqio", "tensorflow_datasets")
SERVER = ("fastapi", "fastapi_offline", "prometheus_client", "pydantic", "starlette", "uvicorn")
T5X = ("t5x", "clu", "airio")
T5X_ROOMS = ("train", "run")
"""Where files named t5x_* run T5X; those of `interop` read its checkpoints without it."""


def _imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _room(file: Path) -> str:
    """The package's own `__init__.py` is a front door, as the commands are."""
    parts = file.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ROOMS[-1]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_one_way(file: Path) -> None:
    for name in _imports(file):
        parts = name.split(".")
        if parts[0] == "dss_jax" and len(parts) > 1 and parts[1] in ROOMS:
            assert ROOMS.index(parts[1]) <= ROOMS.index(_room(file)), f"{file} imports {name}"


def _modules() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, anywhere in it and for types too."""
    names = {".".join(f.relative_to(PACKAGE.parent).with_suffix("").parts): f for f in FILES}
    return {name: (_imports(file) & names.keys()) - {name} for name, file in names.items()}


def test_no_modules_import_each_other() -> None:
    imported = _modules()
    while free := [name for name, needs in imported.items() if not needs & imported.keys()]:
        for name in free:
            del imported[name]
    assert not imported, "these are in a circle, or import one"


def _foreign(file: Path) -> set[str]:
    return {name.split(".")[0] for name in _imports(file)} - {"dss_jax"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_each_library_stays_in_its_rooms(file: Path) -> None:
    foreign = _foreign(file) - set(sys.stdlib_module_names)
    if file.relative_to(PACKAGE).as_posix() in OF_CORE:
        assert foreign == OF_CORE[file.relative_to(PACKAGE).as_posix()]
    elif _room(file) == "core":
        assert not foreign, "core is the standard library only"
    runs_t5x = file.name.startswith("t5x_") and _room(file) in T5X_ROOMS
    if not runs_t5x:
        assert not foreign & set(T5X)
    if not (runs_t5x or file.name.startswith("seqio_")):
        assert not foreign & set(TENSORFLOW)
    if _room(file) != "serve":
        assert not foreign & set(SERVER)
    if file.name not in ("beam_pipeline.py", "seqio_beam.py", "run_inference.py"):
        assert "apache_beam" not in foreign
    if file.name != "gin_config.py":
        assert "gin" not in foreign
    if _room(file) == "data" and not file.name.startswith("seqio_"):
        own = {
            "parquet.py": {"pyarrow"},
            "text_rows.py": {"pyarrow"},
            "word_cuts.py": {"pyarrow"},
            "file_tokenizers.py": {"tokenizers"},
        }
        assert foreign <= {"numpy", "sentencepiece"} | own.get(file.name, set())


@pytest.mark.parametrize("file", sorted(shipped("tasks").glob("*.py")), ids=lambda f: f.stem)
def test_task_files_need_the_standard_library_only(file: Path) -> None:
    assert not _foreign(file) - set(sys.stdlib_module_names)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    if file.name == "__init__.py" and file.parent != PACKAGE:
        assert not text, "packages import nothing of their own accord"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            limit = MAX_LOOP_LINES if file.name == "loop.py" else MAX_FUNCTION_LINES
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= limit, f"{node.name} has {length} lines"


def test_a_class_has_its_name_alone() -> None:
    classes = [
        node.name
        for file in FILES
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
    ]
    assert not [name for name, times in Counter(classes).items() if times > 1]


def test_commands_are_these() -> None:
    assert list(COMMANDS) == [
        "init",
        "train",
        "eval",
        "predict",
        "serve",
        "prepare",
        "extract",
        "tasks",
        "config",
        "sweep",
        "frontier",
        "ask",
        "report",
        "replay",
        "fit",
        "compile",
        "convert",
        "vocabulary",
        "push",
        "records",
        "doctor",
        "demo",
    ]
    for name in COMMANDS:
        assert (PACKAGE / "cli" / f"{name}.py").exists()


def _modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_configuration_and_tasks_load_without_numerical_libraries() -> None:
    loaded = _modules_after(
        "from dss_jax.cli import main, options, gin_config\n"
        "from dss_jax.core import registry\n"
        "gin_config.read(['runs/train.gin']).run()\n"
        "[registry.load_task(n) for n in registry.task_names()]"
    )
    assert not loaded & {"jax", "flax", "numpy", *TENSORFLOW}


def test_the_package_itself_loads_nothing() -> None:
    loaded = _modules_after("import dss_jax; assert dss_jax.__version__")
    assert loaded <= {*sys.stdlib_module_names, "dss_jax"} | _modules_after("pass")


def test_the_trainer_never_loads_tensorflow() -> None:
    loaded = _modules_after("import dss_jax.run.single, dss_jax.cli.train")
    assert {"jax", "flax", "optax", "orbax"} <= loaded
    assert not loaded & set(TENSORFLOW)
    # They cost more than all the others together; a thread loads tensorboardX, which loads torch.
    assert not loaded & {"tensorboardX", "torch", "boto3", "matplotlib", "scipy", "pandas"}


def test_the_loop_knows_nothing_of_scoring_and_logging() -> None:
    imported = _imports(PACKAGE / "train" / "loop.py")
    assert not any("evaluate" in n or "tensorboard" in n or "metric_log" in n for n in imported)
