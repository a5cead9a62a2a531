"""The vocabulary, the token store and the batches. Standard library only."""

from dataclasses import dataclass

from dss_jax.core.checks import among, at_least, free

LAYOUTS = ("auto", "padded", "flat", "packed")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The SentencePiece vocabulary.

    Attributes:
      path: the `.model` file: a local path, https://, or gs:// of a public bucket (fetched once
        into the cache); None: the task's own where it ships one, else T5's public vocabulary.
      extra_ids: sentinel ids above the model's pieces (T5: 100).
    """

    path: str | None = free(None)  # What is in the file decides, and the token store has that.
    extra_ids: int = 100

    def __post_init__(self) -> None:
        at_least("Vocabulary.extra_ids", self.extra_ids, 0)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Token store and batches.

    Attributes:
      batch_size: examples a step, global; each is trained on in both roles.
      input_length: longest input in tokens, EOS included; longer ones are cut and counted.
      target_length: longest label or rationale in tokens, EOS included.
      layout: how a batch is laid out: "padded" (rows as long as the longest), "flat" (a stream of
        tokens a device), "packed" (several examples a row), or "auto": packed on TPU, flat
        elsewhere. The loss is the same.
      length_multiple: padded lengths are rounded up to a multiple of this, in tokens.
      seed: seed of the order of the training examples.
      store_dir: folder of all token stores; None: the environment's DSS_STORE_DIR, or the
        user's cache folder.
      store: one store to use as it is, for example copied from a machine with TensorFlow.
    """

    batch_size: int = 64
    input_length: int = 1024
    target_length: int = 256
    layout: str = free("auto")
    length_multiple: int = 8
    seed: int = 0
    store_dir: str | None = free(None)
    store: str | None = free(None)

    def __post_init__(self) -> None:
        at_least("Data.batch_size", self.batch_size, 1)
        at_least("Data.input_length", self.input_length, 2)
        at_least("Data.target_length", self.target_length, 2)
        at_least("Data.length_multiple", self.length_multiple, 1)
        at_least("Data.seed", self.seed, 0)
        among("Data.layout", self.layout, LAYOUTS)
