"""`dss doctor` and the pins of T5X, against stand-in environments: folders of `dist-info`."""

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import hub_server
import pytest

from dss_jax.cli import doctor
from dss_jax.cli.main import main
from dss_jax.core import environment, road
from dss_jax.core.environment import Check
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import shipped

COMMITS = {"t5x": "cc342d4", "airio": "69897df", "jestimator": "326824a"}
BROKEN = "from jax.experimental.pjit import PartitionSpec\n"
KEY = "sk-not-to-be-shown"


def install(folder: Path, name: str, version: str = "1.0", commit: str | None = None) -> None:
    """What pip leaves of a distribution: its metadata, and where it came from."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if commit:
        url = {"url": f"https://github.com/x/{name}", "vcs_info": {"commit_id": commit}}
        (info / "direct_url.json").write_text(json.dumps(url))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """An environment in which T5X is installed as the pins say."""
    folder = tmp_path / "site"
    for name, commit in environment.git_pins().items():
        install(folder, name, "0.3.3", commit)
    for name, version in environment.pypi_pins().items():
        install(folder, name, version)
    (folder / "jestimator").mkdir()
    (folder / "jestimator" / "amos_helper.py").write_text("from jax.sharding import P\n")
    return folder


def problems(folder: Path) -> dict[str, str]:
    return {c.name: c.problem for c in environment.t5x_checks([str(folder)]) if c.problem}


def test_pins_are_full_commits_and_exact_versions() -> None:
    pins = environment.git_pins()
    assert {name: pin[:7] for name, pin in pins.items()} == COMMITS
    assert all(re.fullmatch(r"[\d.]+", version) for version in environment.pypi_pins().values())
    assert "tensorboard" in environment.pypi_pins()
    # Nothing that the lock file pins is pinned a second time.
    lock = (Path(__file__).parents[1] / "requirements.lock").read_text().lower()
    for name in environment.pypi_pins():
        assert not re.search(rf"^{name}==", lock, re.M)


def test_the_lock_with_hashes_is_the_lock() -> None:
    root = Path(__file__).parents[1]
    hashed = (root / "requirements-hashes.lock").read_text()
    kept = [line for line in hashed.splitlines() if "--hash=" not in line]
    plain = (root / "requirements.lock").read_text().splitlines()
    assert [line.removesuffix(" \\") for line in kept] == plain, "make lock writes both"
    entries = re.split(r"\n(?=\w)", hashed)[1:]
    assert len(entries) > 100
    assert all("--hash=sha256:" in entry for entry in entries)


def test_make_installs_the_git_pins_without_dependencies() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    recipe = makefile.partition("\nt5x:")[2].partition("\n\n")[0].replace("\\\n", " ")
    [git] = [line for line in recipe.splitlines() if environment.GIT_FILE in line]
    assert "--no-deps" in git
    assert "--force-reinstall" in git
    [pypi] = [line for line in recipe.splitlines() if environment.PYPI_FILE in line]
    assert "--no-deps" not in pypi
    assert "-c requirements.lock" in pypi


def test_a_whole_t5x_is_fine(whole: Path) -> None:
    assert problems(whole) == {}
    environment.require_t5x([str(whole)])


def test_everything_missing_is_named(tmp_path: Path) -> None:
    assert problems(tmp_path).keys() == {*COMMITS, *environment.pypi_pins()}
    with pytest.raises(UsageError, match=r"(?s)t5x: not installed.*tensorboard.*make t5x"):
        environment.require_t5x([str(tmp_path)])


def test_what_the_metadata_of_t5x_breaks_is_named(whole: Path) -> None:
    install(whole, "tfds-nightly", "4.9.2.dev202308090034")
    install(whole, "tensorflow-cpu", "2.21.0")
    found = problems(whole)
    assert "airio" in found["tfds-nightly"]
    assert "tensorflow-datasets" in found["tfds-nightly"]
    assert "overwrites tensorflow:" in found["tensorflow-cpu"]
    assert found.keys() == {"tfds-nightly", "tensorflow-cpu"}


def test_the_broken_release_of_jestimator_is_told_from_the_commit(whole: Path) -> None:
    (whole / "jestimator" / "amos_helper.py").write_text(BROKEN)
    assert "fails at import" in problems(whole)["jestimator"]


def test_another_commit_is_named(tmp_path: Path, whole: Path) -> None:
    [info] = whole.glob("t5x-*")
    file = info / "direct_url.json"
    file.write_text(file.read_text().replace(environment.git_pins()["t5x"], "f" * 40))
    assert problems(whole) == {"t5x": "tried is git cc342d4"}
    # A local checkout has no commit in its metadata; it is taken as it is.
    file.write_text('{"url": "file:///src/t5x", "dir_info": {}}')
    assert problems(whole) == {}


@pytest.mark.parametrize(
    ("version", "allowed", "is_outside"),
    [
        ("0.10.2", ">=0.10,<0.11", False),
        ("0.9.9", ">=0.10,<0.11", True),
        ("0.11.0", "<0.11,>=0.10", True),
        ("2.21.0", "", False),
        ("2.0.0rc1", ">=2", False),
    ],
)
def test_ranges(version: str, allowed: str, is_outside: bool) -> None:
    assert environment.outside(version, allowed) is is_outside


def test_ranges_are_those_of_the_package() -> None:
    assert environment.supported()["jax"] == "<0.11,>=0.10"
    assert environment.python_check((3, 14, 0)).problem
    assert not environment.python_check((3, 12, 1)).problem


def test_a_library_out_of_range_is_named(tmp_path: Path) -> None:
    install(tmp_path, "jax", "0.4.30")
    found = {c.name: c for c in environment.package_checks([str(tmp_path)])}
    assert found["jax"] == Check("jax", "0.4.30", "<0.11,>=0.10 is needed")
    assert found["flax"].problem.startswith("install flax")


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(doctor, "device_check", lambda _: Check("devices", "8 x TPU v4 (tpu)"))
    monkeypatch.setattr(doctor, "work_checks", lambda _: [])
    monkeypatch.setattr(road, "SERVERS", {})
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    missing = [Check("t5x", "not installed", "git cc342d4 is needed")]
    monkeypatch.setattr(environment, "t5x_checks", lambda: missing)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"jax +0\.10", out)
    assert "8 x TPU v4" in out
    assert "make t5x" in out
    assert re.search(r"OPENAI_API_KEY +set\n", out)
    assert re.search(r"Hugging Face hub +not reached: .*refused", out)
    assert re.search(r"memory +[\d.]+ GB, [\d.]+ GB free|not known", out)
    assert re.search(r"extras +\S.*; not installed: ", out)
    assert str(Path.home()) not in out
    assert KEY not in out
    assert main(["doctor", "--engine", "t5x"]) == doctor.FOUND_WRONG
    assert "! t5x" in capsys.readouterr().out
    assert main(["doctor", "--engine", "pytorch"]) == 2


def test_devices_are_looked_for_with_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_DEVICES", "import time; time.sleep(60)")
    assert "within 1 s" in doctor.device_check(1).problem
    monkeypatch.setattr(doctor, "_DEVICES", "raise RuntimeError('no TPU here')")
    assert "no TPU here" in doctor.device_check(60).problem
    monkeypatch.setattr(doctor, "_DEVICES", 'print(\'[4, "gpu", ["H100"], 2]\')')
    assert doctor.device_check(60).found == "4 x H100 (gpu), 2 processes"


def test_folders_and_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSS_STORE_DIR", str(tmp_path / "stores"))
    monkeypatch.setenv("DSS_DATA_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("DSS_VOCABULARY", str(tmp_path / "no.model"))
    found = {c.name: c for c in environment.folder_checks()}
    assert found["token stores"].found.endswith("stores (not there yet)")
    assert found["data"].problem
    assert environment.vocabulary_check().problem
    monkeypatch.setenv("DSS_VOCABULARY", str(shipped(environment.GIT_FILE)))
    assert not environment.vocabulary_check().problem


def test_doctor_imports_no_library() -> None:
    code = (
        "import sys\nfrom dss_jax.cli import doctor\n"
        "print(sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jax", "numpy", "flax", "tensorflow", "rich"} & set(
        re.findall(r"'([^']+)'", done.stdout)
    )


def test_no_names_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/jane"))
    text = "/home/jane/.cache, /scratch/jane/x, /scratch/janet/x, jane.txt"
    shown = road.without_names(text, {"USER": "jane"})
    assert shown == "~/.cache, /scratch/USER/x, /scratch/janet/x, jane.txt"


def test_a_server_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(road, "SECONDS", 0.3)
    monkeypatch.setattr(road, "SERVERS", {"nobody": "http://127.0.0.1:9"})
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        found = {check.name: check.found for check in road.server_checks()}
        assert time.monotonic() - began < 3
    assert found.keys() == {"Hugging Face hub", "nobody"}
    assert all(said.startswith("not reached: ") for said in found.values())
    missing = environment.vocabulary_check(found["nobody"]).found
    assert missing.startswith("none here: --init_from brings one")
    with hub_server.running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        assert road.server_checks()[0].found == "reached"
    monkeypatch.setenv("HF_ENDPOINT", "hub")
    assert "unknown url type: 'hub'" in road.server_checks()[0].found


def test_extras_are_found_by_what_they_bring(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = ["jax>=0.10", "gcsfs>=2; extra == 'gcs'", "jax[cuda12]>=0.10; extra == 'cuda'"]
    lines += ["ruff; extra == 'dev'", "fastapi; extra == 'serve'", "uvicorn; extra == 'serve'"]
    there = {"gcsfs", "jax", "ruff", "uvicorn"}

    class Own:
        requires = lines

    monkeypatch.setattr(
        road, "distribution", lambda name: Own() if name in {*there, "dss-jax"} else None
    )
    assert road.extras_check().found == "gcs; not installed: cuda, serve"


@pytest.mark.slow
def test_a_step_is_made_on_the_devices() -> None:
    product, step = doctor.work_checks(300)
    assert re.fullmatch(r"[\d,]+ GFLOP/s \(float32, 1,536 x 1,536\)", product.found)
    assert re.fullmatch(r"[\d.]+ s with compilation, then [\d.]+ ms .*", step.found)
    assert not step.problem


def test_a_step_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.run

    def run(command: list[str], **given: object) -> subprocess.CompletedProcess:
        assert command[1:] == ["-m", "dss_jax.run.probe"]
        return real([sys.executable, "-c", code], **given)

    monkeypatch.setattr(doctor.subprocess, "run", run)
    code = "raise RuntimeError('out of memory')"
    assert doctor.work_checks(60)[-1].problem == "it fails: RuntimeError: out of memory"
    code = "import time; time.sleep(60)"
    assert "within 1 s" in doctor.work_checks(1)[-1].problem
