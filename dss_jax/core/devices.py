"""Accelerators and their memory. Standard library only."""

from dataclasses import dataclass

from dss_jax.core.errors import unknown_name

GB = 10**9
GIB = 2**30

USABLE = 0.90
"""Share of a device's memory that a step may take. JAX takes 75 % of a GPU unless
XLA_PYTHON_CLIENT_MEM_FRACTION says more (0.92 is meant here); the rest is for the driver, compiled
code, collectives and fragmentation."""


@dataclass(frozen=True)
class Device:
    """One device as JAX sees it (a chip; of TPU v4 and v5p, both cores together).

    Attributes:
      title: for people.
      memory: bytes, as the maker gives it.
    """

    title: str
    memory: int

    @property
    def usable(self) -> int:
        """Bytes that a step may take."""
        return int(USABLE * self.memory)


DEVICES = {
    "h100": Device("NVIDIA H100 80 GB", 80 * GB),
    "h200": Device("NVIDIA H200 141 GB", 141 * GB),
    "a100": Device("NVIDIA A100 80 GB", 80 * GB),
    "a100_40": Device("NVIDIA A100 40 GB", 40 * GB),
    "l4": Device("NVIDIA L4 24 GB", 24 * GB),
    "rtx4090": Device("NVIDIA RTX 4090 24 GB", 24 * GB),
    "v4": Device("TPU v4 32 GiB", 32 * GIB),
    "v5e": Device("TPU v5e 16 GiB", 16 * GIB),
    "v5p": Device("TPU v5p 95 GiB", 95 * GIB),
    "v6e": Device("TPU v6e 32 GiB", 32 * GIB),
}
"""Name on the command line -> device."""


def device(name: str) -> Device:
    """The device of a name.

    Raises:
      UsageError: there is none; the message lists the known.
    """
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES)
    return DEVICES[name]
