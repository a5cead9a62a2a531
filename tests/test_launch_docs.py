"""docs/run_on_*.md: every launcher's command is accepted, and what they print is what is shown."""

import re
import shlex
from pathlib import Path

import pytest
from launching import ROOT, Machine, machine

PAGES = sorted((ROOT / "docs").glob("run_on_*.md"))
STORE = "stores/cqa-1e5b1ec7d2e8c751"
HOME = "/home/me/dss-jax"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def dry_run(line: str) -> list[str] | None:
    """A line of a page -> the launcher's dry run of it; None: it calls no launcher."""
    words = shlex.split(line.removeprefix("$ "), comments=True)
    if "launch/sky.yaml" in words:
        flags = next((w for w in words if w.startswith("FLAGS=")), None)
        return flags and ["local.sh", "--dry_run", *shlex.split(flags.removeprefix("FLAGS="))]
    if words[:2] == ["docker", "run"]:
        return ["local.sh", "--dry_run", *words[words.index("dss-jax:cuda") + 1 :]]
    if "launch/slurm.sbatch" in words:
        return ["slurm.sbatch", "--dry_run", *words[words.index("launch/slurm.sbatch") + 1 :]]
    if words[:1] and words[0].startswith("launch/"):
        return [words[0].removeprefix("launch/"), "--dry_run", *words[1:]]
    return None


def lines(page: Path) -> list[str]:
    console = [b.partition("\n")[0] for b in blocks(page, "console")]
    return [line for text in [*blocks(page, "bash"), *console] for line in text.splitlines()]


LINES = sorted({line for page in PAGES for line in lines(page) if dry_run(line)})


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    made = machine(tmp_path)
    made.program("nvidia-smi", "#!/bin/sh\nprintf 'GPU 0: H100\\nGPU 1: H100\\n'\n")
    # The launchers' own folder, as of a project of the reader's.
    project = tmp_path / "project"
    (project / STORE).mkdir(parents=True)
    (project / "launch").symlink_to(ROOT / "launch")
    (project / "sweep.txt").write_text("--method standard\n")
    return made


def shown(here: Machine, line: str) -> str:
    call = dry_run(line)
    assert call
    if call[0] not in ("local.sh", "slurm.sbatch"):
        # The flag comes after the command and the name.
        call = [call[0], *call[2:4], "--dry_run", *call[4:]]
    project = here.folder / "project"
    array = {"SLURM_ARRAY_TASK_ID": "1"} if "--array" in line else {}
    done = here.launch(*call, cwd=project, DSS="", HOME="/home/me", **array)
    assert done.returncode == 0, done.stderr
    assert not here.calls()
    text = done.stdout.replace(str(project), HOME)
    text = re.sub(r"/[\w./-]+/dss-my-slice\.\w+/", "/tmp/dss-my-slice.Ab12Cd/", text)
    return text.replace(f"make -C {ROOT} ", "make -C . ").replace(f"{ROOT}/", "./")


@pytest.mark.parametrize("line", LINES)
def test_commands_are_accepted(here: Machine, line: str) -> None:
    assert shown(here, line)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_what_is_shown_is_what_is_printed(here: Machine, page: Path) -> None:
    (block,) = blocks(page, "console")
    line, _, expected = block.partition("\n")
    text = shown(here, line)
    # "..." stands for any lines.
    position = 0
    for part in re.split(r"^\.\.\.\n", expected, flags=re.M):
        found = text.find(part, position)
        assert found >= 0, f"not printed:\n{part}\nbut:\n{text[position:]}"
        position = found + len(part)
    assert text.startswith(expected.splitlines()[0])


def test_there_is_something_to_check() -> None:
    assert len(PAGES) == 3
    assert len(LINES) > 15
