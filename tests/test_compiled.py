"""Compiled steps on the disk: found again, the same results, made anew when anything differs."""

import dataclasses
import os
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import toy
from jax.experimental.compilation_cache import compilation_cache

from dss_jax.core import config
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.data.store import TokenStore
from dss_jax.layouts.batches import TrainBatches
from dss_jax.run import run_folder, seeds, single
from dss_jax.run.session import with_vocab_size
from dss_jax.train import compile as compiling
from dss_jax.train import loss
from dss_jax.train import step as steps
from dss_jax.train.compile import Compiled, cache_counts, fingerprint
from dss_jax.train.metric_log import read_metrics
from dss_jax.train.sharding import make_mesh, put_batch

pytestmark = pytest.mark.usefixtures("linear_programs")

KEY = "what a step is made from"


def _never(batch: object) -> jax.stages.Lowered:
    raise AssertionError("it was traced")


def _step(program: steps.Program, folder: Path, key: str = KEY) -> Compiled:
    return Compiled(program.train_step.lower, program.mesh, folder, key)


def _untraced(program: steps.Program, folder: Path) -> Compiled:
    return Compiled(_never, program.mesh, folder, KEY)


@pytest.fixture(scope="module", params=[1, 2], ids="{} devices".format)
def program(request, toy_store) -> tuple[steps.Program, TrainBatches]:
    """There are four devices, of which the mesh has one or two."""
    run = with_vocab_size(toy.make_run(mesh=config.Mesh(data=request.param)), toy_store)
    batches = TrainBatches(toy_store.split("train"), run.task, run.data, run.method, steps=6)
    return steps.Program(run, make_mesh(run.mesh, jax.devices()[: request.param])), batches


@pytest.fixture(scope="module")
def compiled(program) -> jax.stages.Compiled:
    program, batches = program
    return program.train_step.lower(batches.shapes[0]).compile()


@pytest.fixture
def jax_cache(tmp_path: Path, compile_settings: None) -> Path:
    """JAX keeps all compiled code here."""
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    return tmp_path / "jax"


def _train(program: steps.Program, batches: TrainBatches, train_step: Compiled) -> list:
    state, found = program.init(), []
    for step in range(3):
        state, metrics = train_step(state, put_batch(batches(step), program.mesh))
        found.append(metrics)
    return jax.tree.map(np.asarray, [state, found])


@pytest.mark.usefixtures("jax_cache")
def test_a_saved_step_gives_the_same_and_is_not_traced(program, tmp_path: Path) -> None:
    program, batches = program
    jax.clear_caches()  # Or nothing is compiled.
    folder = tmp_path / "steps"
    expected = _train(program, batches, _step(program, folder))
    assert len(list(folder.iterdir())) == 1
    before = cache_counts().found
    got = _train(program, batches, _untraced(program, folder))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert cache_counts().found == before + 1
    # The old state's memory is given up, as it is by the step that was compiled here.
    state = program.init()
    _untraced(program, folder)(state, put_batch(batches(0), program.mesh))
    assert jax.tree.leaves(state.params)[0].is_deleted()


def test_another_shape_or_another_function_is_not_found(program, compiled, tmp_path: Path) -> None:
    program, batches = program
    saved = _step(program, tmp_path)
    shapes = batches.shapes[0]
    saved.keep(shapes, compiled)
    assert saved._load(shapes) is not None
    longer = jax.tree.map(lambda x: np.broadcast_to(x[..., :1], (*x.shape[:-1], 99)), shapes)
    assert saved._load(longer) is None
    assert _step(program, tmp_path, "another")._load(shapes) is None


def test_code_that_jax_has_read_from_the_disk_is_not_written_again(
    program, tmp_path: Path, jax_cache: Path
) -> None:
    program, batches = program
    folder = tmp_path / "steps"
    jax.clear_caches()  # Or nothing is compiled.
    expected = _train(program, batches, _step(program, folder))
    assert any(jax_cache.iterdir())
    (file,) = folder.iterdir()
    file.unlink()
    jax.clear_caches()
    for _ in range(2):
        got = _train(program, batches, _step(program, folder))
        jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert not any(folder.iterdir())


@pytest.mark.parametrize("damage", [b"", b"x" * 99, None])
def test_a_damaged_file_is_replaced(
    program, compiled, tmp_path: Path, damage: bytes | None
) -> None:
    program, batches = program
    saved, shapes = _step(program, tmp_path), batches.shapes[0]
    saved.keep(shapes, compiled)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    assert saved._load(shapes) is None
    assert not file.exists()
    saved.keep(shapes, compiled)
    assert saved._load(shapes) is not None


def test_what_cannot_be_kept_does_no_harm(program, compiled, tmp_path: Path) -> None:
    program, batches = program
    (tmp_path / "file").write_text("")
    folder, shapes = tmp_path / "file" / "steps", batches.shapes[0]
    saved = _step(program, folder, "x")
    saved.keep(shapes, compiled)
    assert saved._load(shapes) is None


def test_steps_are_in_a_folder_that_nobody_else_can_write_to(
    jax_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps_folder = jax_cache / "steps"
    assert compiling._folder() == steps_folder
    assert steps_folder.stat().st_mode & 0o777 == 0o700
    steps_folder.chmod(0o777)
    assert compiling._folder() == steps_folder
    assert steps_folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert compiling._folder() is None
    assert f"{steps_folder} is not a folder of this user's" in caplog.text
    monkeypatch.undo()
    steps_folder.rmdir()
    steps_folder.symlink_to(jax_cache)
    assert compiling._folder() is None


def test_a_file_of_somebody_elses_is_not_unpickled(
    program, compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, batches = program
    batch = batches.shapes[0]
    _step(program, tmp_path).keep(batch, compiled)
    assert _untraced(program, tmp_path)._load(batch) is not None
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert _untraced(program, tmp_path)._load(batch) is None


def test_the_oldest_are_removed(
    program, compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, batches = program
    shapes = batches.shapes[0]
    saved = [_step(program, tmp_path, str(i)) for i in range(3)]
    for one in saved[:2]:
        one.keep(shapes, compiled)
    size = max(file.stat().st_size for file in tmp_path.iterdir())
    monkeypatch.setattr(compiling, "MAX_BYTES", 2.5 * size)
    assert saved[0]._load(shapes) is not None  # Used later than the second.
    saved[2].keep(shapes, compiled)
    assert [one._load(shapes) is not None for one in saved] == [True, False, True]


def _mesh(devices: int = 1, **mesh: int) -> jax.sharding.Mesh:
    return make_mesh(config.Mesh(**mesh), jax.devices()[:devices])


def _key(run: config.Run, devices: int = 1, **mesh: int) -> str:
    return fingerprint(run, _mesh(devices, **mesh), ())


@pytest.mark.parametrize(
    "section",
    [
        {"loss": config.Loss(alpha=0.25)},
        {"optimizer": config.Optimizer(learning_rate=2e-2)},
        {"model": dataclasses.replace(toy.MODEL, dtype="bfloat16")},
        {"method": config.Method(name="standard", label="gold", rationale=False)},
        {"data": config.Data(batch_size=4, layout="padded")},
        {"train": config.Train(steps=7, log_every=1)},
        {"train": config.Train(steps=6, microbatches=2)},
        {"train": config.Train(steps=6, max_bad_steps=2)},
        {"lora": config.Lora(rank=2)},
    ],
)
def test_another_configuration_is_another_step(section: dict) -> None:
    assert _key(toy.make_run()) == _key(toy.make_run())
    assert _key(toy.make_run(**section)) != _key(toy.make_run())


def test_other_devices_settings_or_code_are_another_step(monkeypatch: pytest.MonkeyPatch) -> None:
    run = toy.make_run()
    here = _key(run)
    assert _key(run, devices=2, data=2) != here
    assert _key(run, devices=2, data=2) != _key(run, devices=2, data=1, fsdp=2)
    with jax.default_matmul_precision("highest"):
        assert _key(run) != here
    with monkeypatch.context() as changed:
        changed.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        assert _key(run) != here
    monkeypatch.setattr(compiling, "code_digest", lambda *rooms: f"another of {rooms}")
    assert _key(run) != here


def test_seeds_data_and_places_do_not_matter() -> None:
    run = toy.make_run()
    moved = dataclasses.replace(
        run,
        task=config.Task(name="other", train_fraction=0.5),
        data=dataclasses.replace(run.data, store_dir="elsewhere", seed=3, input_length=99),
        evaluate=config.Evaluate(every=7),
        train=dataclasses.replace(run.train, output_dir="elsewhere", seed=3, log_every=7),
    )
    assert _key(moved) == _key(run)


def test_nothing_is_kept_where_compiled_code_is_not(
    jax_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder() -> Path | None:
        return Compiled.kept("a", toy.make_run(), _mesh(), None, ()).folder

    assert folder() == jax_cache / "steps"
    with monkeypatch.context() as several:
        several.setattr(jax, "process_count", lambda: 2)
        assert folder() is None
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/compiled")
    assert folder() is None
    jax.config.update("jax_compilation_cache_dir", str(jax_cache))
    jax.config.update("jax_enable_compilation_cache", False)
    assert folder() is None


def _traced(*_: object) -> None:
    raise AssertionError("it was traced")


def _of_seed(run: config.Run, seed: int) -> config.Run:
    data, train = replace(run.data, seed=seed), replace(run.train, seed=seed)
    return replace(run, data=data, train=train)


def _losses(folder: Path, values: tuple[int, ...], store: TokenStore) -> list[float]:
    """Trains two steps of these seeds, at once where there are several; the losses of all."""
    run = toy.make_run(train=config.Train(steps=2, log_every=1, output_dir=str(folder)))
    if len(values) == 1:
        runs = [run := _of_seed(run, values[0])]
        single.train(run, store, TEXT_ACCURACY)
    else:
        runs = seeds.seed_runs(run, list(values))
        seeds.train(runs, store, TEXT_ACCURACY)
    files = [Path(str(run.train.output_dir)) / run_folder.METRICS for run in runs]
    return [
        value
        for file in files
        for line in read_metrics(file)
        for name, value in line.items()
        if name.endswith("loss")
    ]


@pytest.mark.parametrize("values", [(0,), (0, 3)], ids=["alone", "at once"])
def test_a_second_start_traces_no_step(
    values: tuple[int, ...],
    tmp_path: Path,
    toy_store: TokenStore,
    monkeypatch: pytest.MonkeyPatch,
    jax_cache: Path,
) -> None:
    monkeypatch.setenv("DSS_COMPILE_CACHE", str(jax_cache))
    jax.clear_caches()  # Or nothing is compiled.
    first = _losses(tmp_path / "first", values, toy_store)
    jax.clear_caches()
    monkeypatch.setattr(loss, "task_sums", _traced)
    assert _losses(tmp_path / "second", values, toy_store) == first
    # Each has the losses of two steps and of the validation split.
    assert len(first) >= 4 * len(values)
    # Nor does another seed, of the parameters, of dropout and of the order.
    other = _losses(tmp_path / "third", tuple(value + 5 for value in values), toy_store)
    assert len(other) == len(first)
    assert all(x != y for x, y in zip(other, first, strict=True))
