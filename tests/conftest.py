"""Settings and fixtures that many tests share."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

# Compiling takes much of the suite's time on a CPU. The first two flags make it 2 to 5 times
# quicker, the third the toy's step another 1.6 times, and the code slower: never for a real run.
# The last simulates devices for tests of meshes.
FAST_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_force_host_platform_device_count=4"
)
os.environ.setdefault("XLA_FLAGS", FAST_COMPILE)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's threads. Collectives that do not depend on each other start in another order on each
# simulated device; with as few threads as a small machine has, they wait for each other forever.
os.environ.setdefault("NPROC", "16")
# As `dss_jax.core.storage` has it; a test that uses epath may come before its first import.
os.environ["EPATH_USE_TF"] = "false"

# Started with nohup or "&", this process ignores Ctrl-C's signal, and so would the programs that
# tests start and stop by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def _own_settings(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config):
    """No test, and no fixture of a module, reads the user's settings or writes into their cache."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "DSS_COMPILE_CACHE",
            "DSS_DATA_DIR",
            "DSS_PREFIXES",
            "DSS_RATIONALES",
            "DSS_STORE_DIR",
            "DSS_TASK_PATH",
            "DSS_VOCABULARY",
            "JAX_COMPILATION_CACHE_DIR",
        ):
            patch.delenv(name, raising=False)
        patch.setenv("DSS_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
        # In pytest's cache folder, for both workers, both tiers and the next run: most tests
        # compile what another one has compiled already. JAX finds it by the program, so a change
        # of our code cannot meet code of before.
        patch.setenv("DSS_COMPILE_CACHE", str(pytestconfig.cache.mkdir("compiled")))
        from dss_jax.train.compile import keep_compiled_code

        keep_compiled_code()
        yield


@pytest.fixture
def compile_settings() -> Iterator[None]:
    """JAX's settings of the folder of compiled code may be changed; they are put back."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = {
        name: value
        for name, value in jax.config.values.items()
        if "compilation_cache" in name or "persistent_cache" in name
    }
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def strict() -> Iterator[None]:
    """Neither a dtype nor a rank is raised without being asked for."""
    import jax

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the package says during the test."""
    import toy

    with toy.heard() as lines:
        yield lines


@pytest.fixture(scope="module")
def linear_programs() -> Iterator[None]:
    """Runs of this module train three arrays: see `toy.Linear`."""
    import toy

    with toy.linear_programs():
        yield


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory):
    """A small sound store of random tokens: see `toy.make_store`."""
    import toy

    return toy.make_store(tmp_path_factory.mktemp("stores") / "toy", np.random.default_rng(0))
