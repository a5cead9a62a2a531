"""Accelerators: their memory and their peak. Standard library only."""

from dataclasses import dataclass

from dss_jax.core.checks import among

GB = 10**9
GIB = 2**30
TERA = 1e12

USABLE = 0.90
"""Share of a device's memory that a step may take. JAX takes 75 % of a GPU unless
XLA_PYTHON_CLIENT_MEM_FRACTION says more (0.92 is meant here); the rest is for the driver, compiled
code, collectives and fragmentation."""


@dataclass(frozen=True)
class Device:
    """One device as JAX sees it (a chip; of TPU v4 and v5p, both cores together), as its maker
    gives it: `memory` in bytes; `peak_flops`: bfloat16 operations a second of dense matrix
    products accumulated in float32.
    """

    title: str
    memory: int
    peak_flops: float

    @property
    def usable(self) -> int:
        """Bytes that a step may take."""
        return int(USABLE * self.memory)


DEVICES = {
    "h100": Device("NVIDIA H100 80 GB", 80 * GB, 989.4 * TERA),
    "h200": Device("NVIDIA H200 141 GB", 141 * GB, 989.4 * TERA),
    "a100": Device("NVIDIA A100 80 GB", 80 * GB, 312.0 * TERA),
    "a100_40": Device("NVIDIA A100 40 GB", 40 * GB, 312.0 * TERA),
    "l4": Device("NVIDIA L4 24 GB", 24 * GB, 121.0 * TERA),
    "rtx4090": Device("NVIDIA RTX 4090 24 GB", 24 * GB, 165.2 * TERA),
    "v4": Device("TPU v4 32 GiB", 32 * GIB, 275.0 * TERA),
    "v5e": Device("TPU v5e 16 GiB", 16 * GIB, 197.0 * TERA),
    "v5p": Device("TPU v5p 95 GiB", 95 * GIB, 459.0 * TERA),
    "v6e": Device("TPU v6e 32 GiB", 32 * GIB, 918.0 * TERA),
}
"""Name on the command line -> device."""


def device(name: str) -> Device:
    """The device of a name; UsageError: there is none."""
    among("device", name, tuple(DEVICES))
    return DEVICES[name]


_PEAKS = (
    # Beginnings of JAX's `device_kind`, longer ones first: variants with fewer or slower cores.
    ("NVIDIA H100 PCIe", 756.0 * TERA),
    ("NVIDIA H100 NVL", 835.5 * TERA),
    ("NVIDIA H200 NVL", 835.5 * TERA),
    ("NVIDIA H100 80GB", DEVICES["h100"].peak_flops),
    ("NVIDIA H200", DEVICES["h200"].peak_flops),
    ("NVIDIA A100", DEVICES["a100"].peak_flops),
    ("NVIDIA L40", None),
    ("NVIDIA L4", DEVICES["l4"].peak_flops),
    ("NVIDIA GeForce RTX 4090", DEVICES["rtx4090"].peak_flops),
    ("TPU v4 lite", None),
    ("TPU v4", DEVICES["v4"].peak_flops),
    ("TPU v5 lite", DEVICES["v5e"].peak_flops),
    ("TPU v5e", DEVICES["v5e"].peak_flops),
    ("TPU v5", DEVICES["v5p"].peak_flops),
    ("TPU v6", DEVICES["v6e"].peak_flops),
)


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 operations a second at the peak of a `jax.Device`'s kind ("NVIDIA H200", "TPU v5
    lite"); None where it is not known, as for a CPU, whose peak depends on more than its name.
    """
    return next((peak for beginning, peak in _PEAKS if device_kind.startswith(beginning)), None)
