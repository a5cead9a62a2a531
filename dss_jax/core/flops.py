"""Floating-point operations of T5, from the lengths of its rows, and the accelerators that do them.

Standard library only.

Counted are matrix products, two operations for each multiply-add, as is usual for a utilisation
(Chowdhery et al. 2022, PaLM, appendix B); norms, softmax, dropout and the optimiser are left out.
With d = emb_dim, hk = num_heads * head_dim, f = mlp_dim, m = 3 products with a gate and 2 without,
a row of S input and T target tokens takes in the forward pass

  S * 2 L_e (4 d hk + m d f)     encoder: query, key, value, out, feed-forward
  S * S * 4 L_e hk               encoder: scores and their product with the values
  S * 4 L_d d hk                 keys and values of the encoder for each decoder layer
  T * 2 L_d (6 d hk + m d f)     decoder: self-attention's four, cross-attention's two, feed-forward
  T * (T + S) * 4 L_d hk         decoder: scores, of both attentions
  T * 2 d V                      logits

The causal half of T * T is not taken off: the products are computed whole. The backward pass takes
twice the forward pass. `tests/test_flops.py` holds all this against XLA's own count.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from dss_jax.core.checks import among
from dss_jax.core.t5_config import T5Config

TRAINING = 3
"""Forward and backward pass, in forward passes."""


class Work(NamedTuple):
    """What decides the operations: sums over rows. Real tokens give the useful work; the slots of
    a static shape, padding included, give the executed work.
    """

    encoder_tokens: int = 0  # Sum of S.
    decoder_tokens: int = 0  # Sum of T.
    # Target tokens whose logits are computed; sum of T unless padding is left out.
    logit_tokens: int = 0
    # Sums of S * S, T * T and T * S.
    encoder_pairs: int = 0
    decoder_pairs: int = 0
    cross_pairs: int = 0

    def plus(self, other: "Work") -> "Work":
        """Both together."""
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


def work_of_rows(lengths: Iterable[tuple[int, int]]) -> Work:
    """The work of rows, given (input length, target length) of each."""
    rows = [(s, t, t, s * s, t * t, s * t) for s, t in lengths]
    return Work(*map(sum, zip(*rows, strict=True))) if rows else Work()


def work_of_shape(rows: int, input_length: int, target_length: int) -> Work:
    """The work of `rows` rows that are all padded to the same lengths."""
    return Work(*(rows * n for n in work_of_rows([(input_length, target_length)])))


def forward_flops(model: T5Config, work: Work) -> int:
    """Operations of a forward pass of a model whose `vocab_size` is a number."""
    assert model.vocab_size is not None
    d, hk = model.emb_dim, model.num_heads * model.head_dim
    feed_forward = (len(model.mlp_activations) + 1) * d * model.mlp_dim
    encoders, decoders = model.num_encoder_layers, model.num_decoder_layers
    return (
        work.encoder_tokens * 2 * encoders * (4 * d * hk + feed_forward)
        + work.encoder_pairs * 4 * encoders * hk
        + work.encoder_tokens * 4 * decoders * d * hk
        + work.decoder_tokens * 2 * decoders * (6 * d * hk + feed_forward)
        + (work.decoder_pairs + work.cross_pairs) * 4 * decoders * hk
        + work.logit_tokens * 2 * d * model.vocab_size
    )


def training_flops(model: T5Config, work: Work) -> int:
    """Operations of a training step: the forward pass and twice as much for the backward pass.

    What `T5Config.remat_policy` computes again is not counted: it is not useful work.
    """
    return TRAINING * forward_flops(model, work)


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
