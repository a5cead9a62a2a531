"""Steps compiled ahead of time, and the folder of compiled code."""

import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from jax.experimental.compilation_cache import compilation_cache

from dss_jax.core import processes
from dss_jax.core.errors import UsageError
from dss_jax.core.flops import work_of_rows
from dss_jax.core.own_folder import own_folder
from dss_jax.core.startup import StartClock, process_start
from dss_jax.layouts.batches import TrainBatches
from dss_jax.layouts.blocks import Block
from dss_jax.train import compile as compiling
from dss_jax.train.compile import Compiled, keep_compiled_code, shapes_of

MESH = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])


def _batch(rows: int, length: int, value: int = 1) -> tuple[Block, ...]:
    return (Block(*(np.full((rows, length), value, np.int32),) * 4),)


class TestCompiled:
    def test_each_shape_has_its_own_code_and_is_compiled_once(self) -> None:
        lowered = []

        def lower(batch: tuple[Block, ...]) -> jax.stages.Lowered:
            lowered.append(batch[0].decoder_roles.shape)
            assert isinstance(batch[0].decoder_roles, jax.ShapeDtypeStruct)
            total = jax.jit(lambda first, blocks: first + jnp.sum(blocks[0].decoder_roles))
            return total.lower(jnp.float32(0), batch)

        call = Compiled(lower, MESH)
        with ThreadPoolExecutor(2) as pool:
            call.ahead([_batch(2, 3), _batch(2, 4)], pool)
            call.ahead([_batch(2, 4)], pool)
            call.wait()
        assert sorted(lowered) == [(2, 3), (2, 4)]
        for rows, length in ((2, 4), (2, 3), (2, 4), (1, 5), (1, 5)):
            assert call(jnp.float32(0.5), _batch(rows, length, 2)) == 0.5 + 2 * rows * length
        assert sorted(lowered) == [(1, 5), (2, 3), (2, 4)], "an unknown shape is compiled when met"

    def test_what_the_compiler_raises_is_raised(self) -> None:
        def lower(_: object) -> jax.stages.Lowered:
            raise MemoryError("too large")

        call = Compiled(lower, MESH)
        with ThreadPoolExecutor(1) as pool:
            call.ahead([_batch(1, 1)], pool)
        with pytest.raises(MemoryError, match="too large"):
            call.wait()

    def test_processes_meet_between_compilation_and_first_run(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[str] = []
        monkeypatch.setattr(processes, "barrier", lambda: done.append("met"))

        class Lowered:
            def compile(self) -> Callable:
                done.append("compiled")
                return lambda *_: done.append("ran")

        call = Compiled(lambda _: Lowered(), MESH)
        for rows in (2, 2, 3, 2):
            call(None, _batch(rows, 1))
        first = ["compiled", "met", "ran"]
        assert done == [*first, "ran", *first, "ran"]

    @pytest.mark.parametrize("layout", ["padded", "flat", "packed"])
    def test_announced_shapes_are_those_of_the_global_batches(self, layout: str, toy_store) -> None:
        run = toy.make_run()
        data = dataclasses.replace(run.data, layout=layout)
        split = toy_store.split("train")
        for count in (1, 2):
            all_batches = [
                TrainBatches(
                    split, run.task, data, run.method, process_index=i, process_count=count
                )
                for i in range(count)
            ]
            announced = {shapes_of(shapes) for shapes in all_batches[0].shapes}
            assert len(announced) == all_batches[0].layout.shapes
            for step in range(3):
                parts = [batches(step) for batches in all_batches]
                whole = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
                assert shapes_of(whole) in announced


class TestUsefulWork:
    @pytest.mark.parametrize("layout", ["padded", "flat", "packed"])
    def test_it_counts_the_real_tokens_of_the_batch(self, layout: str, toy_store) -> None:
        run = toy.make_run()
        data = dataclasses.replace(run.data, layout=layout)
        split = toy_store.split("train")
        batches = TrainBatches(split, run.task, data, run.method)
        lacking = 0
        for step in range(6):
            work = batches.work_at(step)
            batch = batches(step)
            roles = [np.count_nonzero(block.decoder_roles) for block in batch]
            assert work.decoder_tokens == work.logit_tokens == sum(roles)
            if layout != "padded":
                # Rows without a rationale are in no stream and in no packed row.
                inputs = [np.count_nonzero(block.encoder_input_tokens) for block in batch]
                assert work.encoder_tokens == sum(inputs)
                continue
            rows = [
                (np.count_nonzero(inputs), np.count_nonzero(roles))
                for block in batch
                for inputs, roles in zip(
                    block.encoder_input_tokens, block.decoder_roles, strict=True
                )
            ]
            lacking += sum(t == 0 for _, t in rows)
            assert work == work_of_rows([(s, t) for s, t in rows if t])
        assert lacking or layout != "padded"


@pytest.mark.usefixtures("compile_settings")
class TestFolder:
    @pytest.fixture(autouse=True)
    def _ask_for_no_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(compiling.COMPILE_CACHE)

    def test_it_is_in_the_cache_by_default_and_can_be_moved(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DSS_CACHE_DIR", str(tmp_path / "cache"))
        folder = Path(keep_compiled_code() or "")
        assert folder.parent == tmp_path / "cache" / "compiled"
        assert folder.is_dir()
        assert jax.config.jax_compilation_cache_dir == str(folder)
        monkeypatch.setenv(compiling.COMPILE_CACHE, str(tmp_path / "mine"))
        assert keep_compiled_code() == str(tmp_path / "mine" / folder.name)
        monkeypatch.setenv(compiling.COMPILE_CACHE, "gs://bucket/compiled/")
        assert keep_compiled_code() == f"gs://bucket/compiled/{folder.name}"

    def test_a_folder_that_cannot_be_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("DSS_CACHE_DIR", str(tmp_path / "file"))
        assert keep_compiled_code() is None
        monkeypatch.setenv(compiling.COMPILE_CACHE, str(tmp_path / "file" / "x"))
        with pytest.raises(UsageError, match=r"DSS_COMPILE_CACHE: .* cannot be made.*or \"off\""):
            keep_compiled_code()

    def test_nobody_else_can_put_code_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("DSS_CACHE_DIR", str(tmp_path))
        folder = Path(keep_compiled_code() or "")
        assert folder.stat().st_mode & 0o777 == 0o700
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert keep_compiled_code() is None
        assert f"{folder} is not a folder of this user's" in caplog.text

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
    def test_what_others_could_put_there_is_removed(self, tmp_path: Path) -> None:
        folder = tmp_path / "compiled"
        folder.mkdir()
        folder.chmod(0o777)
        for name in ("mine", "theirs"):
            (folder / name).write_text("x")
        os.chown(folder / "theirs", 12345, -1)
        assert own_folder(folder, "X") == folder
        assert [file.name for file in folder.iterdir()] == ["mine"]

    def test_a_file_that_was_cut_short_does_not_end_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DSS_CACHE_DIR", str(tmp_path))
        folder = Path(keep_compiled_code() or "")
        (folder / "jit_cut-cache").write_bytes(b"cut")  # Killed before its "-atime" was written.
        keep_compiled_code()
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        compilation_cache.reset_cache()
        jax.jit(lambda x: x * 3.25).lower(np.float32(1)).compile()
        kept = [file.name for file in folder.glob("*-cache")]
        assert len(kept) == 1
        assert kept[0].startswith("jit__lambda")
        keep_compiled_code()
        assert [file.name for file in folder.glob("*-cache")] == kept

    def test_it_can_be_turned_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(compiling.COMPILE_CACHE, "off")
        assert keep_compiled_code() is None
        assert not jax.config.jax_enable_compilation_cache

    def test_jaxs_own_variable_goes_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = jax.config.jax_compilation_cache_dir
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
        monkeypatch.setenv(compiling.COMPILE_CACHE, str(tmp_path / "mine"))
        assert keep_compiled_code() == str(tmp_path)
        assert jax.config.jax_compilation_cache_dir == before


def test_the_clock_splits_all_the_time_there_was() -> None:
    clock = StartClock(began=process_start())
    clock.lap("imports")
    clock.lap("store")
    clock.lap("imports")
    assert list(clock.seconds) == ["imports", "store"]
    # This process imported JAX, so it is not new; and no test session lasts a day.
    assert 0.5 < clock.total < 86_400
    assert str(clock).startswith(f"{clock.total:.1f} s from the command to the first step: imports")
