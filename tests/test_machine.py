"""What a process asks of the machine."""

import os
import subprocess
import sys

import pytest

from dss_jax.core import machine

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
