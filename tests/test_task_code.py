"""What a task file executes: it is run once, noted, and part of the store's key."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_architecture import ROOMS

from dss_jax.core import config, digest
from dss_jax.core.paths import shipped
from dss_jax.core.registry import load_task, load_task_file
from dss_jax.data import prepare
from dss_jax.train import compile as compiling

MODEL = shipped("tasks") / "vocabularies" / "word_problems.model"

TASK = """
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Example, Jsonl
{imports}

def to_example(row, completion):
    {late}
    return Example(id="", input=row["input"], label=WORD)

TASK = DistillationTask(
    name="{name}", description="d", licence="l", sources=(Jsonl(files={{"train": "t.jsonl"}}),),
    to_example=to_example, scorer=TEXT_ACCURACY)
"""

IMPORTS = {
    "from": "from dss_helper import WORD",
    "import": "import dss_helper\nWORD = dss_helper.WORD",
    "module of a package": "from dss_package.words import WORD",
    "name of a package": "from dss_package import words\nWORD = words.WORD",
    "by name": "import importlib\nWORD = importlib.import_module('dss_helper').WORD",
    "by path": (
        "import importlib.util\nfrom pathlib import Path\n"
        "SPEC = importlib.util.spec_from_file_location("
        "'beside', Path(__file__).with_name('_beside.py'))\n"
        "BESIDE = importlib.util.module_from_spec(SPEC)\nSPEC.loader.exec_module(BESIDE)\n"
        "WORD = BESIDE.WORD"
    ),
    "another task": (
        "from dss_jax.core.registry import load_task\nWORD = load_task('other').description"
    ),
}


class Folder:
    """Task files and modules that they import."""

    def __init__(self, path: Path) -> None:
        self.tasks, self.lib = path / "tasks", path / "lib"
        for folder in (self.tasks, self.lib / "dss_package"):
            folder.mkdir(parents=True)
        (self.tasks / "t.jsonl").write_text(json.dumps({"input": "x"}))
        (self.lib / "dss_package" / "__init__.py").write_text("")
        (self.lib / "dss_helper.py").write_text("from dss_deeper import WORD\n")
        (self.lib / "dss_package" / "words.py").write_text("from dss_package.deep import WORD\n")
        (self.lib / "dss_package" / "deep.py").write_text(
            "from . import deeper\nWORD = deeper.WORD\n"
        )
        self.say("one")

    def say(self, word: str) -> None:
        """Changes the word, at the end of every chain of imports; all files keep their sizes."""
        text = f"WORD = {word!r}\n"
        (self.lib / "dss_deeper.py").write_text(text)
        (self.lib / "dss_package" / "deeper.py").write_text(text)
        (self.tasks / "_beside.py").write_text(text)
        self.task("other", f"WORD = {word!r}", description=word)

    def task(self, name: str, imports: str = "", late: str = "", description: str = "d") -> None:
        text = TASK.format(name=name, imports=imports, late=late)
        text = text.replace('description="d"', f"description={description!r}")
        (self.tasks / f"{name}.py").write_text(text)

    def key(self, name: str = "mine") -> str:
        task, vocabulary = config.Task(name=name), config.Vocabulary(path=str(MODEL))
        return str(prepare.make_request(task, vocabulary, [self.tasks])["key"])

    def label(self, name: str = "mine") -> str:
        return load_task(name, [self.tasks]).to_example({"input": "x"}, None).label


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    for name in ("dss_helper", "dss_deeper", "dss_package"):
        for module in [m for m in sys.modules if m.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
    made = Folder(tmp_path)
    monkeypatch.syspath_prepend(str(made.lib))
    monkeypatch.setenv("DSS_TASK_PATH", str(made.tasks))
    return made


@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS)
def test_what_a_task_imports_is_part_of_the_key(folder: Folder, imports: str) -> None:
    folder.task("mine", imports)
    before = folder.key()
    assert folder.key() == before
    assert folder.label() == "one"
    folder.say("two")
    assert folder.key() != before
    assert folder.label() == "two"
    folder.say("one")
    assert folder.key() == before


@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS)
def test_also_what_another_task_had_imported_before(folder: Folder, imports: str) -> None:
    """The module is in sys.modules by then, and is not executed again."""
    folder.task("first", imports)
    folder.task("mine", imports)
    folder.key("first")
    before = folder.key()
    folder.say("two")
    assert folder.key() != before
    assert folder.label() == "two"


def test_also_what_is_imported_when_a_row_is_read(folder: Folder) -> None:
    folder.task("mine", late="from dss_helper import WORD")
    before = folder.key()
    folder.say("two")
    assert folder.key() != before


def test_the_key_is_the_same_in_every_process(folder: Folder) -> None:
    """Whatever other tasks a process has loaded before, and from whatever folder it is started."""
    for name, imports in IMPORTS.items():
        folder.task(f"a_{name.replace(' ', '_')}", imports)
    names = [f"a_{name.replace(' ', '_')}" for name in IMPORTS]
    here = [folder.key(name) for name in names]
    code = (
        "import sys\nfrom dss_jax.core import config\nfrom dss_jax.data import prepare\n"
        "vocabulary = config.Vocabulary(path=sys.argv[1])\n"
        "for name in sys.argv[2:]:\n"
        "    print(prepare.make_request(config.Task(name=name), vocabulary)['key'])"
    )
    command = [sys.executable, "-c", code, str(MODEL), *reversed(names)]
    env = {
        "PYTHONPATH": f"{folder.lib}:{digest.PACKAGE.parent}",
        "DSS_TASK_PATH": str(folder.tasks),
    }
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd="/")
    assert done.stdout.split() == here[::-1]


def test_what_is_installed_is_no_part_of_it(folder: Folder) -> None:
    folder.task("mine", "import json\nimport numpy\nimport dss_jax.core.arithmetic\nWORD = 'one'")
    own = [str(folder.tasks.resolve() / "mine.py")]
    assert list(load_task("mine", [folder.tasks]).files) == own
    assert {Path(f).name for f in load_task("asdiv").files} == {"asdiv.py", "svamp.py"}


def test_moved_tasks_have_the_same_key(folder: Folder, tmp_path: Path) -> None:
    folder.task("mine", IMPORTS["by path"])
    before = folder.key()
    folder.tasks = shutil.copytree(folder.tasks, tmp_path / "moved")
    assert folder.key() == before


def test_a_task_file_runs_once_a_process(folder: Folder, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    count = f"open({str(runs)!r}, 'a').write('x')\nWORD = 'one'"
    folder.task("other", count)
    folder.task("mine", f"{count}\n{IMPORTS['another task']}")
    for _ in range(2):
        folder.key()
        load_task("mine", [folder.tasks])
        load_task_file(folder.tasks / "mine.py")
        load_task("other", [folder.tasks])
    assert runs.read_text() == "xx", "each of the two once"
    folder.task("mine", f"{count}\n{IMPORTS['another task']}\n")
    load_task("mine", [folder.tasks])
    assert runs.read_text() == "xxx"


def test_source_files_are_read_once_a_process(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.task("mine", IMPORTS["from"])
    read: list[str] = []
    real = digest.hashlib.file_digest

    def file_digest(file, name):
        read.append(Path(file.name).name)
        return real(file, name)

    monkeypatch.setattr(digest.hashlib, "file_digest", file_digest)
    before = folder.key()
    assert folder.key() == before
    assert len(read) == len(set(read))
    # The same size, at once: only the content tells.
    (folder.tasks / "t.jsonl").write_text(json.dumps({"input": "y"}))
    assert folder.key() != before
    assert sorted(read).count("t.jsonl") == 2


def test_a_seqio_modules_imports_are_part_of_the_key(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not imported here: that takes TensorFlow."""
    before = set(sys.modules)  # Tests before this one may have imported SeqIO.
    monkeypatch.chdir(folder.tasks)
    task = config.Task(mixture_or_task_name="a", mixture_or_task_module="dss_seqio.tasks")
    (folder.tasks / "dss_seqio").mkdir()
    (folder.tasks / "dss_seqio" / "tasks.py").write_text("import seqio\nfrom . import near\n")
    (folder.tasks / "dss_seqio" / "near.py").write_text("import dss_helper\n")

    def key() -> str:
        return str(prepare.make_request(task, config.Vocabulary())["key"])

    before = set(sys.modules)
    keys = [key()]
    assert key() == keys[0]
    folder.say("two")
    keys.append(key())
    (folder.tasks / "dss_seqio" / "near.py").write_text("import dss_helper as h\n")
    keys.append(key())
    assert len(set(keys)) == 3
    assert not {"dss_seqio", "dss_helper", "seqio"} & (set(sys.modules) - before)


class TestPackage:
    @pytest.fixture
    def copy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        copy = shutil.copytree(
            digest.PACKAGE, tmp_path / "dss_jax", ignore=shutil.ignore_patterns("__pycache__")
        )
        monkeypatch.setattr(digest, "PACKAGE", copy)
        yield copy
        digest.package_digest.cache_clear()  # Or tests after this one take the copy's.

    def digests(self) -> tuple[str, str, str]:
        """Of what makes stores, of what makes steps, and of everything."""
        digest.package_digest.cache_clear()
        rooms = prepare.ROOMS, compiling.ROOMS, ()
        return tuple(digest.package_digest(*own) for own in rooms)  # type: ignore[return-value]

    def test_it_is_that_of_the_rooms_which_make_stores_and_steps(self, copy: Path) -> None:
        stores, steps, everything = self.digests()
        assert self.digests() == (stores, steps, everything)
        for room, name in (("report", "tables.py"), ("serve", "app.py"), ("run", "single.py")):
            (copy / room / name).write_text("")
            assert self.digests()[:2] == (stores, steps)
            assert self.digests()[2] != everything
        for room in ("model", "layouts", "train", "evaluate"):
            before = self.digests()
            (copy / room / "new.py").write_text("")
            assert self.digests()[0] == stores
            assert self.digests()[1] != before[1]
        for name in ("core/completions.py", "records/files.py", "data/seqio_tokens.py"):
            before = self.digests()
            (copy / name).write_text("")
            assert all(now != then for now, then in zip(self.digests(), before, strict=True))

    def test_steps_are_made_in_these_rooms_alone_and_of_no_others(self) -> None:
        rooms = ROOMS[: ROOMS.index("evaluate") + 1]
        assert rooms == compiling.ROOMS
        makers = [f for f in digest.PACKAGE.rglob("*.py") if "Compiled.kept(" in f.read_text()]
        assert {f.relative_to(digest.PACKAGE).parts[0] for f in makers} == {"train", "evaluate"}

    def test_what_makes_stores_imports_no_other_room(self) -> None:
        code = (
            "import sys\nfrom dss_jax.data import seqio_prepare, seqio_tokens, seqio_user\n"
            "print(*{m.split('.')[1] for m in sys.modules if m.startswith('dss_jax.')})"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) <= set(prepare.ROOMS)
