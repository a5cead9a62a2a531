"""launch/local.sh, and what holds for all launchers: shellcheck, quoting, secrets."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launching import LAUNCH, ROOT, TRAIN, Machine, machine

from dss_jax.core.devices import USABLE

SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
GPUS = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\nGPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)"


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    made = machine(tmp_path)
    made.program("nvidia-smi", "#!/bin/sh\nexit 9\n")
    made.recorder("make")
    return made


def gpus(here: Machine, listing: str = GPUS) -> None:
    here.program("nvidia-smi", f"#!/bin/sh\ncat <<'E'\n{listing}\nE\n")


def environment_of(out: str) -> dict[str, str]:
    """The settings in the command that a dry run shows."""
    line = next(line for line in out.splitlines() if line.startswith("env "))
    words = shlex.split(line)[1:]
    return dict(w.split("=", 1) for w in words[: words.index("train") - 1])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [shellcheck if shellcheck.exists() else shutil.which("shellcheck"), "-x", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert script.stat().st_mode & 0o111 or script.name == "common.sh"


def test_a_dry_run_shows_commands_and_configuration_and_starts_nothing(here: Machine) -> None:
    done = here.launch("local.sh", *TRAIN, "--dry_run", "--output_dir", "runs/a b", DSS="")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["# dry run: nothing is started", "make -C . install EXTRAS=dev"]
    assert lines[2].endswith(
        "train --task word_problems --model t5_1_1_tiny '--gin.T5Config.dtype=\"bfloat16\"' "
        "--gin.Evaluate.every=5 --output_dir 'runs/a b'"
    )
    assert "T5Config.dtype = 'bfloat16'" in lines
    assert "Train.output_dir = 'runs/a b'" in lines
    assert not here.calls()


def test_a_mistake_is_named_before_anything_is_installed(here: Machine) -> None:
    done = here.launch("local.sh", "--dry_run", "--task", "cqa", "--model", "t5_1_1_bass")
    assert done.returncode == 2
    assert "Did you mean 't5_1_1_base'?" in done.stderr
    done = here.launch("local.sh", "--devices", "gpus", *TRAIN)
    assert done.returncode == 2
    assert "--devices must be cpu, gpu, all or tpu, not 'gpus'" in done.stderr
    done = here.launch("local.sh", "--devices", "--dry_run")
    assert done.returncode == 2
    assert "--devices needs a value" in done.stderr
    assert not here.calls()


@pytest.mark.parametrize(
    ("devices", "extra"), [("cpu", "dev"), ("gpu", "cuda"), ("all", "cuda"), ("tpu", "tpu")]
)
def test_each_device_has_its_extra(here: Machine, devices: str, extra: str) -> None:
    gpus(here)
    done = here.launch("local.sh", *TRAIN, "--dry_run", f"--devices={devices}", DSS="")
    assert f"make -C . install EXTRAS={extra}" in done.stdout
    platform = environment_of(done.stdout)["JAX_PLATFORMS"]
    assert platform.split(",")[0] == {"dev": "cpu", "cuda": "cuda", "tpu": "tpu"}[extra]


def test_gpus_are_found_and_chosen(here: Machine) -> None:
    def shown(*flags: str, **env: str) -> dict[str, str]:
        return environment_of(here.launch("local.sh", *TRAIN, "--dry_run", *flags, **env).stdout)

    assert shown()["JAX_PLATFORMS"] == "cpu"
    gpus(here)
    every = shown()
    assert every["JAX_PLATFORMS"] == "cuda,cpu"
    assert "CUDA_VISIBLE_DEVICES" not in every
    assert shown("--devices", "gpu")["CUDA_VISIBLE_DEVICES"] == "0"
    one = shown("--devices", "gpu", CUDA_VISIBLE_DEVICES="3,1")
    assert one["CUDA_VISIBLE_DEVICES"] == "3"
    assert "XLA_FLAGS" not in one
    # Several processes with one GPU each talk to each other as well.
    gpus(here, GPUS.splitlines()[0])
    assert "XLA_FLAGS" not in shown()
    assert "XLA_FLAGS" in shown(SLURM_NTASKS="4")


def test_without_a_gpu_a_run_for_gpus_does_not_fall_back(here: Machine) -> None:
    done = here.launch("local.sh", *TRAIN, "--devices", "gpu", "--output_dir", "out")
    assert done.returncode == 2
    assert "nvidia-smi finds no GPU" in done.stderr
    assert not here.calls()


def test_settings_of_the_user_win(here: Machine) -> None:
    gpus(here)
    own = {
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5",
        "JAX_COMPILATION_CACHE_DIR": "/c",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_gpu_autotune_level=0",
    }
    done = here.launch("local.sh", *TRAIN, "--dry_run", **own)
    shown = environment_of(done.stdout)
    assert shown.pop("XLA_FLAGS").endswith(" --xla_gpu_autotune_level=0")
    assert not shown
    done = here.launch("local.sh", *TRAIN, "--dry_run", DSS_CACHE_DIR="/big/cache")
    assert environment_of(done.stdout)["DSS_COMPILE_CACHE"] == "/big/cache/compiled"


def test_the_share_of_memory_leaves_room_for_what_fit_counts_on(here: Machine) -> None:
    gpus(here)
    shown = environment_of(here.launch("local.sh", *TRAIN, "--dry_run").stdout)
    assert USABLE < float(shown["XLA_PYTHON_CLIENT_MEM_FRACTION"]) <= USABLE + 0.03


def test_the_xla_of_the_lock_file_knows_the_flags(here: Machine) -> None:
    gpus(here)
    flags = environment_of(here.launch("local.sh", *TRAIN, "--dry_run").stdout)["XLA_FLAGS"]
    program = "import jax; print(jax.numpy.ones(3).sum())"
    env = {**here.environment, "JAX_PLATFORMS": "cpu"}

    def computes(flags: str) -> bool:
        run = [sys.executable, "-c", program]
        return not subprocess.run(
            run, env={**env, "XLA_FLAGS": flags}, capture_output=True
        ).returncode

    assert computes(flags)
    assert not computes(flags + " --xla_gpu_no_such_flag=true"), "an unknown one is not noticed"


def test_a_run_is_installed_started_and_gone_on_with(here: Machine) -> None:
    here.program("dss-of-venv", (here.folder / "bin" / "dss").read_text())
    venv = here.folder / "own env"
    (venv / "bin").mkdir(parents=True)
    shutil.copy(here.folder / "bin" / "dss", venv / "bin" / "dss")
    out = str(here.folder / "out put")
    for said in ("starts from random parameters", "going on from step 5"):
        done = here.launch("local.sh", *TRAIN, "--output_dir", out, DSS="", VENV=str(venv))
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
    install, train = here.calls()[:2]
    assert install == ["make", "-C", ".", "install", "EXTRAS=dev"]
    assert train == ["dss", "train", *TRAIN, "--output_dir", out]
    assert here.calls()[2:] == [install, train]


def test_its_exit_status_is_that_of_the_run(here: Machine) -> None:
    here.train(error="no memory", status=7)
    done = here.launch("local.sh", *TRAIN, "--output_dir", str(here.folder / "out"))
    assert done.returncode == 7


def test_sigterm_reaches_the_run(here: Machine) -> None:
    here.train(steps=3000)
    process = here.start("local.sh", *TRAIN, "--output_dir", str(here.folder / "out"))
    assert process.stdout
    process.stdout.readline()
    process.terminate()
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 185
    assert "interrupted after" in out


def test_from_another_folder_with_spaces(here: Machine, tmp_path: Path) -> None:
    elsewhere = tmp_path / "my project's copy"
    (elsewhere / "launch").mkdir(parents=True)
    for file in ("common.sh", "local.sh"):
        shutil.copy(LAUNCH / file, elsewhere / "launch" / file)
    done = subprocess.run(
        [elsewhere / "launch" / "local.sh", *TRAIN, "--dry_run"],
        cwd=tmp_path,
        env={**here.environment, "DSS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "T5Config.dtype = 'bfloat16'" in done.stdout


SPLIT = [
    ("--task cqa  --gin.Train.steps=3", ["--task", "cqa", "--gin.Train.steps=3"]),
    ("""--gin.T5Config.dtype='"bfloat16"'""", ['--gin.T5Config.dtype="bfloat16"']),
    ("--output_dir 'runs/a b' --x=$(date);`id`", ["--output_dir", "runs/a b", "--x=$(date);`id`"]),
    ("", []),
    ("  \t ", []),
]


@pytest.mark.parametrize(("text", "words"), SPLIT)
def test_words_are_split_as_in_a_shell_and_nothing_is_run(text: str, words: list[str]) -> None:
    program = (
        'source launch/common.sh; split_words "$1"; '
        '[[ ${#words[@]} -eq 0 ]] || printf "%s\\n" "${words[@]}"'
    )
    done = subprocess.run(
        ["bash", "-euc", program, "bash", text], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == words, done.stderr


def test_quotes_that_do_not_match_are_an_error() -> None:
    program = 'source launch/common.sh; split_words "--a=\'b"; echo went on'
    done = subprocess.run(["bash", "-euc", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "quotes do not match" in done.stderr
    assert not done.stdout
