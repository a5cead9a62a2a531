"""What a process asks of the machine."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dss_jax.core import machine, sums

FAULTS = """
import ctypes, resource, sys

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "mesh":
    from dss_jax.core import config
    from dss_jax.train.sharding import make_mesh

    make_mesh(config.Mesh())
def step():
    array = ctypes.c_void_p(libc.malloc(2**26))
    libc.memset(array, 1, 2**26)
    libc.free(array)

step()
before = faults()
for _ in range(20):
    step()
print((faults() - before) * resource.getpagesize() / 2**26)
"""


ARENAS = """
import os, sys
from pathlib import Path
from dss_jax.cli import main, train

def computes(args):
    import ctypes, threading
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    threads = [threading.Thread(target=libc.malloc, args=(100_000,)) for _ in range(4)]
    for thread in threads:
        thread.start()
        thread.join()
    file = ctypes.c_void_p(libc.fopen(info.encode(), b"w"))
    libc.malloc_info(0, file)
    libc.fclose(file)

info, train.main = sys.argv[1], computes
sys.argv[1:] = ["train", "--task", "any"]
main.main()
print(Path(info).read_text().count("<heap nr="))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
@pytest.mark.parametrize("accelerator", [False, True])
def test_on_a_cpu_the_threads_of_a_training_have_one_arena(
    accelerator: bool, tmp_path: Path
) -> None:
    # An arena of a thread's gives its heap back when it is empty, whatever malloc was told.
    found = (os.devnull,) if accelerator else ()
    code = f"from dss_jax.core import machine\nmachine.ACCELERATORS = {found}\n{ARENAS}"
    environment = {name: v for name, v in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "info.xml")],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert (int(done.stdout) == 1) is not accelerator


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_on_a_cpu_what_a_step_frees_is_kept_for_the_next() -> None:
    def arrays_from_the_system(*words: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, *words], capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    assert arrays_from_the_system("mesh") < 2
    assert arrays_from_the_system("no mesh") > 15


def test_a_process_of_another_container_is_not_taken_for_a_dead_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "here", machine.here.__wrapped__)
    theirs = machine.here()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert machine.is_gone(theirs, gone.pid)
    assert not machine.is_gone(theirs, os.getpid())
    monkeypatch.setattr(os, "readlink", lambda path: f"{path}:[1]")
    assert machine.here() != theirs
    assert not machine.is_gone(theirs, gone.pid)


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, 6),
        ({"cpu.max": "max 100000\n"}, 6),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    ],
)
def test_a_containers_share_of_the_processors(
    files: dict[str, str], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(6)}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.processors() == count


def test_sums_take_no_more_threads_than_there_are_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, most, lock = 0, 0, threading.Lock()
    plain = sums._crc32

    def slowly(path: Path) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.01)
        with lock:
            at_once -= 1
        return plain(path)

    monkeypatch.setattr(machine, "processors", lambda: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(sums, "_crc32", slowly)
    for n in range(20):
        (tmp_path / f"{n}").write_text(f"{n}")
    sums.write_sums(tmp_path)
    assert most == 3
    assert sums.damage(tmp_path) is None
