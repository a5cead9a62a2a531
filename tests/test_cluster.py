"""How a process finds out that it is one of several; and what several must agree on."""

import json
import subprocess
import sys

import numpy as np
import pytest
import toy
from jax.sharding import Mesh

from dss_jax.core import processes
from dss_jax.core.cluster import Processes, find, tpu_workers
from dss_jax.core.errors import UsageError
from dss_jax.run import hosts
from dss_jax.train import sharding

SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
MPIRUN = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def _find(environ: dict[str, str], tpu: int = 0, **flags: object) -> Processes | None:
    return find(environ=environ, tpu=lambda _: tpu, **flags)


ALONE = {
    "a laptop": {},
    "one task of srun": SRUN | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
    "a shell inside an allocation of eight": SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
    "an sbatch script without srun": {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
    "one process of mpirun": MPIRUN | {"OMPI_COMM_WORLD_SIZE": "1"},
    "a pod": POD,
    "told so": SRUN | {"JAX_PROCESS_COUNT": "1"},
}


@pytest.mark.parametrize("environ", ALONE.values(), ids=ALONE)
def test_one_process_is_alone(environ: dict[str, str]) -> None:
    assert _find(environ, tpu=1) is None


def test_clusters_are_found() -> None:
    assert _find(SRUN) == Processes("Slurm")
    assert _find({}, tpu=4) == Processes("TPU")
    assert _find(MPIRUN | {"OMPI_MCA_orte_hnp_uri": "x"}) == Processes("Open MPI")
    given = _find(MPIRUN, coordinator_address="a:1")
    assert given == Processes("Open MPI", "a:1", 4, 3)


def test_flags_come_before_the_environment() -> None:
    environ = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert _find(environ) == Processes("flags", "a:1", 4, 3)
    assert _find(environ, process_index=0) == Processes("flags", "a:1", 4, 0)
    assert _find(SRUN, coordinator_address="b:2") == Processes("Slurm", "b:2")
    assert _find(SRUN, process_count=1) is None


def test_gpus_of_a_slurm_task() -> None:
    def devices(visible: str, tasks: str) -> tuple[int, ...] | None:
        own = {"CUDA_VISIBLE_DEVICES": visible, "SLURM_STEP_TASKS_PER_NODE": tasks}
        found = _find(SRUN | own)
        assert found is not None
        return found.local_device_ids

    # One task a GPU: JAX takes number SLURM_LOCALID, unless the task sees no other.
    assert devices("0,1,2,3", "4(x2)") is None
    assert devices("2", "4(x2)") == (0,)
    assert devices("0,1,2,3", "1(x2)") == (0, 1, 2, 3)
    assert devices("", "1(x2)") is None


WRONG = [
    ({}, {"process_count": 2, "process_index": 0}, "need --coordinator_address too"),
    ({}, {"coordinator_address": "a:1"}, "need --process_count and --process_index too"),
    (MPIRUN, {}, "need --coordinator_address too"),
    ({"JAX_PROCESS_COUNT": "two"}, {}, "must be a whole number, not 'two'"),
    ({}, {"process_count": 0}, "at least 1, not 0"),
    ({}, {"coordinator_address": "a", "process_count": 2, "process_index": 0}, "HOST:PORT"),
    ({}, {"coordinator_address": "a:1", "process_count": 2, "process_index": 2}, "from 0 to 1"),
    ({}, {"required": True}, "nothing says which processes there are"),
]


@pytest.mark.parametrize(("environ", "flags", "says"), WRONG)
def test_what_is_missing_is_named(environ, flags, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        _find(environ, **flags)


def test_a_machine_without_a_tpu_is_not_asked_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(name: str) -> str:
        raise AssertionError(name)

    monkeypatch.setattr("dss_jax.core.cluster._metadata", ask)
    assert tpu_workers({}) == 0


def test_a_tpu_vm_counts_the_hosts_of_its_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/accel0"])
    monkeypatch.setattr("dss_jax.core.cluster._metadata", lambda name: "a:0:10.0.0.2,b:1:10.0.0.3")
    assert tpu_workers({}) == 2
    assert tpu_workers({"MEGASCALE_NUM_SLICES": "2"}) == 4
    assert tpu_workers({"TPU_WORKER_HOSTNAMES": "x,y,z"}) == 3
    assert tpu_workers({"JAX_PLATFORMS": "cpu"}) == 0
    monkeypatch.setattr("dss_jax.core.cluster._metadata", lambda name: None)
    assert tpu_workers({}) == 1


def test_a_single_process_imports_no_jax_to_know_it() -> None:
    code = (
        "import sys\nfrom dss_jax.core import cluster, processes\n"
        "processes.start(cluster.find(environ={}))\n"
        "assert processes.all_or_raise(lambda: 3) == 3 and processes.is_first()\n"
        "assert processes.gather('x') == ['x']\n"
        "with processes.sync_stops() as agreed:\n    assert agreed is None\n"
        "print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


class _Device:
    """What a mesh asks of a device."""

    def __init__(self, number: int, process: int) -> None:
        self.id, self.process_index = number, process
        self.platform = self.device_kind = "cpu"


def _mesh(owners: list[int], *sizes: int) -> Mesh:
    devices = [_Device(i, p) for i, p in enumerate(owners)]
    grid = np.empty(len(devices), object)
    grid[:] = devices
    return Mesh(grid.reshape(sizes), ("data", "fsdp", "model"))


def _slices(mesh: Mesh, count: int) -> list[tuple[int, int]]:
    found = []
    for process in range(count):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("jax.process_index", lambda process=process: process)
            found.append(sharding.data_slice(mesh))
    return found


def test_each_process_makes_the_rows_that_its_devices_take() -> None:
    owners = [0, 0, 1, 1, 2, 2, 3, 3]
    assert _slices(_mesh(owners, 4, 2, 1), 4) == [(i, 4) for i in range(4)]
    assert _slices(_mesh(owners, 4, 1, 2), 4) == [(i, 4) for i in range(4)]
    # Two processes share a part of the batch where the model's axis spans them.
    assert _slices(_mesh(owners, 2, 1, 4), 4) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert _slices(_mesh(owners, 1, 1, 8), 4) == [(0, 1)] * 4
    with pytest.raises(UsageError, match=r"Mesh.model = 3 cuts through the processes"):
        _slices(_mesh([0, 0, 1, 1, 2, 2], 2, 1, 3), 3)


def test_the_hosts_with_another_store_are_named(
    monkeypatch: pytest.MonkeyPatch, toy_store, tmp_path
) -> None:
    other = toy.make_store(tmp_path / "other", np.random.default_rng(1))
    assert hosts.store_digest(other) != hosts.store_digest(toy_store)
    again = toy.make_store(tmp_path / "again", np.random.default_rng(0))
    assert hosts.store_digest(again) == hosts.store_digest(toy_store)

    def gather(text: str) -> list[str]:
        if text.startswith("{"):
            return [text, json.dumps({"token store": hosts.store_digest(other)}), text]
        return ["red", "green", "blue"]

    monkeypatch.setattr(processes, "count", lambda: 3)
    monkeypatch.setattr(processes, "gather", gather)
    with pytest.raises(UsageError) as error:
        hosts.check_store(toy_store)
    ours, theirs = map(hosts.store_digest, (toy_store, other))
    assert "not the same token store" in str(error.value)
    assert f"process 0 (red), process 2 (blue): {ours}" in str(error.value)
    assert f"process 1 (green): {theirs}" in str(error.value)
