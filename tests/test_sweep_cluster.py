"""dss sweep --submit: what it gives to Slurm and SkyPilot, through the launchers; stand-ins."""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_gcs import FakeGcs
from launching import LAUNCH, ROOT, Machine, machine

from dss_jax.cli import gin_config, sweep_options
from dss_jax.cli.main import main
from dss_jax.sweep import cluster as sweep_cluster
from dss_jax.sweep.plan import state_of

GRID = shlex.split(
    "sweep --tasks word_problems --methods standard,dss --models t5_1_1_tiny --fractions 0.25,1 "
    "--gin.T5Config.dtype='\"bfloat16\"' --gin.Train.steps=5"
)


class Store:
    """As much of a token store as is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = machine(tmp_path)
    made.python("srun", "srun.py")
    made.program("nvidia-smi", "#!/bin/sh\necho 'GPU 0: H100'\n")
    made.recorder("scontrol")
    made.train(peers=2)
    made.recorder("sbatch", "echo Submitted batch job 41")
    made.recorder("sky")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    monkeypatch.chdir(ROOT)
    store = Store(ROOT / "stores" / "words-1")
    monkeypatch.setattr(sweep_options, "make_stores", lambda *_: {"word_problems": store})
    monkeypatch.setattr(
        sweep_options, "without_teachers", lambda p, _: [x for x in p if x.cell.model]
    )
    return made


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGcs]:
    server = FakeGcs()
    for name in ("TENSORSTORE_GCS_HTTP_URL", "STORAGE_EMULATOR_HOST"):
        monkeypatch.setenv(name, server.url)
    # Nor is Google's metadata server looked for.
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    yield server
    server.close()


def array_job(cluster: Machine, sbatch: list[str], number: int) -> None:
    """What Slurm does with one job of an array."""
    script = sbatch.index("launch/slurm.sbatch")
    done = cluster.launch(
        "slurm.sbatch", *sbatch[script + 1 :], SLURM_JOB_ID="41", SLURM_ARRAY_TASK_ID=str(number)
    )
    assert done.returncode == 0, done.stderr


def test_a_slurm_array_trains_every_cell(cluster: Machine, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "my runs"
    words = [*GRID, "--output_dir", str(folder)]
    flags = ["--submit", "slurm", "--launch_flags=--partition=gpu --time=4:00:00", "--jobs", "2"]
    assert main([*words, *flags]) == 0
    assert "Submitted batch job 41" in capsys.readouterr().out
    ((_, *sbatch),) = cluster.calls("sbatch")
    assert sbatch[:3] == ["--array=1-4%2", "--partition=gpu", "--time=4:00:00"]
    for number in (1, 2, 3, 4):
        array_job(cluster, sbatch, number)
    cells = json.loads((folder / "sweep.json").read_text())["cells"]
    trained = {c[c.index("--gin_file") + 1] for c in cluster.calls("dss")}
    assert trained == {str(folder / cell["folder"] / "config.gin") for cell in cells}
    for cell in cells:
        run = gin_config.read([folder / cell["folder"] / "config.gin"]).run()
        assert run.train.output_dir == str(folder / cell["folder"])
        assert run.model.dtype == "bfloat16"
        assert (folder / cell["folder"] / "step-0").exists(), "it was trained there"


def test_only_what_is_left_is_submitted(cluster: Machine, tmp_path: Path, capsys) -> None:
    words = [*GRID, "--output_dir", str(tmp_path / "s")]
    done = tmp_path / "s/word_problems/t5_1_1_tiny/dss/frac_1/seed_0"
    done.mkdir(parents=True)
    (done / "results.json").write_text("{}")
    assert state_of(done).done
    assert main([*words, "--print", "slurm"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    sbatch = shlex.split(line)
    assert sbatch[:2] == ["sbatch", "--array=1-3"]
    assert "dss/frac_1/" not in Path(sbatch[-1]).read_text()
    assert not cluster.calls()
    for cell in json.loads((tmp_path / "s/sweep.json").read_text())["cells"]:
        place = tmp_path / "s" / cell["folder"]
        place.mkdir(parents=True, exist_ok=True)
        (place / "results.json").write_text("{}")
    assert main([*words, "--submit", "slurm"]) == 0
    assert "all 4 runs are done" in capsys.readouterr().out
    assert not cluster.calls()


def test_a_long_array_is_cut(cluster: Machine, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sweep_cluster, "MOST_IN_ARRAY", 3)
    words = [*GRID, "--output_dir", str(tmp_path / "s"), "--submit", "slurm"]
    assert main(words) == 0
    calls = cluster.calls("sbatch")
    assert [c[1] for c in calls] == ["--array=1-3", "--array=1-1"]
    assert len({c[-1] for c in calls}) == 2


def test_skypilot_gets_a_job_for_each_run_that_is_left(
    cluster: Machine, gcs: FakeGcs, capsys
) -> None:
    bucket = "gs://bucket/runs"
    finished = f"{bucket}/word_problems/t5_1_1_tiny/standard/frac_1/seed_0"
    gcs.objects[f"{finished.removeprefix('gs://')}/results.json"] = b"{}"
    words = [*GRID, "--output_dir", bucket, "--launch_flags=--gpus L4:1"]
    assert main([*words, "--submit", "sky"]) == 0
    capsys.readouterr()
    calls = cluster.calls("sky")
    assert len(calls) == 3
    assert len(json.loads(gcs.objects["bucket/runs/sweep.json"])["cells"]) == 4
    for call in calls:
        assert call[1:5] == ["jobs", "launch", "--yes", "--detach-run"]
        assert call[call.index("--gpus") + 1] == "L4:1"
        assert "launch/sky.yaml" in call
        (flags,) = (w.removeprefix("FLAGS=") for w in call if w.startswith("FLAGS="))
        # As launch/sky.yaml reads them.
        code = f'source {LAUNCH}/common.sh; split_words "$FLAGS"; printf "%s\\n" "${{words[@]}}"'
        done = subprocess.run(
            ["bash", "-c", code], env={**os.environ, "FLAGS": flags}, capture_output=True, text=True
        )
        seen = done.stdout.splitlines()
        assert seen[-2:] == ["--store", "stores/words-1"]
        # As `dss train` on the machine reads them.
        assert main(["config", *seen]) == 0
        text = capsys.readouterr().out
        assert "T5Config.dtype = 'bfloat16'" in text
        assert "Data.store = 'stores/words-1'" in text
        place = seen[seen.index("--gin_file") + 1].removesuffix("/config.gin")
        assert place.startswith(f"{bucket}/word_problems/")
        assert f"Train.output_dir = '{place}'" in text
    assert len({call[call.index("--name") + 1] for call in calls}) == 3
    assert not any(finished in word for call in calls for word in call)


WRONG = [
    (["--print", "sky"], "must be on gs://"),
    (["--submit", "slurm", "--output_dir", "gs://b/r"], "share a file system"),
    (["--output_dir", "gs://b/r"], "or --submit sky"),
]


@pytest.mark.parametrize(("flags", "says"), WRONG)
def test_a_mistake_submits_nothing(
    cluster: Machine, tmp_path: Path, capsys, flags: list[str], says: str
) -> None:
    assert main([*GRID, "--output_dir", str(tmp_path / "s"), *flags]) == 2
    assert says in capsys.readouterr().err
    assert not cluster.calls()


def test_a_store_out_of_reach_is_named(tmp_path: Path, cluster: Machine) -> None:
    with pytest.raises(Exception, match="--store_dir stores"):
        sweep_cluster.sky([], [], {"word_problems": tmp_path / "x"}, None)


def test_a_refusal_is_passed_on(cluster: Machine, tmp_path: Path, capsys) -> None:
    cluster.recorder("sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    assert main([*GRID, "--output_dir", str(tmp_path / "s"), "--submit", "slurm"]) == 2
    assert "invalid partition" in capsys.readouterr().err
    (cluster.folder / "bin" / "sbatch").unlink()
    assert main([*GRID, "--output_dir", str(tmp_path / "s"), "--submit", "slurm"]) == 2
    assert "not installed here" in capsys.readouterr().err


def test_outside_of_the_project_it_says_where_to_go(
    cluster: Machine, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*GRID, "--output_dir", str(tmp_path / "s"), "--print", "slurm"]) == 2
    assert "in the project's folder" in capsys.readouterr().err
