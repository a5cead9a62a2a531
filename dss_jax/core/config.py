"""The configuration of a run: frozen dataclasses that check themselves. Standard library only.

gin fills them (`dss_jax.cli.gin_config`); nothing else in the package knows gin. A name here is
the name in a gin file: `Train.steps = 300`. Fields marked `free` may change when a run continues
in the same output folder, all others may not: they would make it another experiment.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from dss_jax.core.checks import among, at_least, between, flag, free, number
from dss_jax.core.data_config import Data, Vocabulary
from dss_jax.core.decode_config import DECODE_METHODS, Beam, Sample
from dss_jax.core.errors import UsageError
from dss_jax.core.lora_config import Lora
from dss_jax.core.method_config import Loss, Method, Pretrain
from dss_jax.core.t5_config import T5Config
from dss_jax.core.train_config import Train

AxisRules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

MESH_AXES = ("data", "fsdp", "model")
LOGICAL_AXES = (
    "batch", "length", "vocab", "embed", "joined_kv", "mlp", "layers", "heads", "kv",
    "relpos_buckets", "activation_embed", "lora",
)  # fmt: skip

DEFAULT_LOGICAL_AXIS_RULES: AxisRules = (
    ("batch", ("data", "fsdp")),
    ("vocab", "model"),
    ("mlp", "model"),
    ("heads", "model"),
    ("joined_kv", "model"),
    ("embed", "fsdp"),
    ("length", None),
    ("kv", None),
    ("layers", None),
    ("relpos_buckets", None),
    ("activation_embed", None),
    ("lora", None),
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Which data set, and how much of it.

    Attributes:
      name: a task file's name ("cqa"); None where `mixture_or_task_name` is used.
      data_dir: folder of the data (for the benchmarks, the authors' release layout); None: the
        environment's DSS_DATA_DIR.
      rationales: record files of `dss extract`, separated by commas, each of one split; their
        labels and rationales take the place of the teacher text in the data. None: that text.
      extra_tasks: task files' names, separated by commas, whose training rows are trained on too,
        as unlabelled: with the teacher's label. All of them are used, whatever `train_fraction`.
      prefixes: "paper" ("[label] ", "[rationale] ") or "released_code" ("predict: ", "explain: ").
      train_fraction: share of the training split that is used, in (0, 1]; smaller shares are
        inside larger ones.
      train_count: number of training examples instead; None: use the fraction.
      subset_seed: which subset.
      mixture_or_task_name: a SeqIO task or mixture of the user's with `inputs` and `targets`.
      mixture_or_task_module: the Python module that registers it.
      use_cached: whether its rows are read from the cache of `seqio_cache_tasks`, as in T5X.
      seqio_cache_dirs: folders of such caches, separated by commas, beside those that the module
        names itself.
    """

    name: str | None = None
    data_dir: str | None = free(None)
    rationales: str | None = free(None)  # What is in the files decides; the token store has that.
    extra_tasks: str | None = None
    prefixes: str = "paper"
    train_fraction: float = 1.0
    train_count: int | None = None
    subset_seed: int = 0
    mixture_or_task_name: str | None = None
    mixture_or_task_module: str | None = None
    use_cached: bool = False
    seqio_cache_dirs: str | None = free(None)  # What is in the cache decides; the store has that.

    def __post_init__(self) -> None:
        among("Task.prefixes", self.prefixes, ("paper", "released_code"))
        between("Task.train_fraction", self.train_fraction, 0, 1)
        if self.train_fraction == 0:
            raise UsageError("Task.train_fraction must be above 0.")
        if self.train_count is not None:
            at_least("Task.train_count", self.train_count, 1)
            if self.train_fraction != 1.0:
                raise UsageError("give Task.train_fraction or Task.train_count, not both.")
        at_least("Task.subset_seed", self.subset_seed, 0)
        if self.name is not None and self.mixture_or_task_name is not None:
            raise UsageError(
                f"give Task.name ({self.name!r}) or Task.mixture_or_task_name "
                f"({self.mixture_or_task_name!r}), not both."
            )
        if self.mixture_or_task_name is not None and self.mixture_or_task_module is None:
            raise UsageError(
                "Task.mixture_or_task_name needs Task.mixture_or_task_module, the Python module "
                "that registers it."
            )
        flag("Task.use_cached", self.use_cached)
        if self.use_cached and self.mixture_or_task_name is None:
            raise UsageError(
                "Task.use_cached is for a SeqIO task or mixture of yours: give "
                "--mixture_or_task_name. A task file's rows are not in SeqIO's cache."
            )
        if self.mixture_or_task_name is not None and self.extra_tasks is not None:
            raise UsageError(
                "Task.extra_tasks (--extra_task) are task files beside a task file: give --task, "
                "not --mixture_or_task_name."
            )
        if self.mixture_or_task_name is not None and self.rationales is not None:
            raise UsageError(
                "Task.rationales is for task files: a SeqIO task has inputs and targets only. "
                "docs/add_a_task.md shows a task file."
            )

    @property
    def rationale_files(self) -> tuple[str, ...]:
        """The record files, one by one."""
        return tuple(f for f in (self.rationales or "").split(",") if f)

    @property
    def extra_names(self) -> tuple[str, ...]:
        """The extra tasks, one by one."""
        return tuple(n.strip() for n in (self.extra_tasks or "").split(",") if n.strip())

    @property
    def shown_name(self) -> str:
        """Name for people: of the task file, or of the user's SeqIO task; "" where none is set."""
        return self.name or self.mixture_or_task_name or ""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimiser. The defaults are the authors' released code.

    Attributes:
      name: "adamw" or "adafactor" (as T5X uses it: factored, scaled by the parameters' RMS).
      learning_rate: peak.
      schedule: "linear" (to 0 at Train.steps) or "constant".
      warmup_steps: linear warm-up, optimiser updates.
      b1, b2, eps, weight_decay: of AdamW.
      decay_rate: of Adafactor's second moment: 1 - (t + 1)^-decay_rate.
      clip_norm: gradients are clipped to this global norm; 0 is off.
    """

    name: str = "adamw"
    learning_rate: float = 5e-5
    schedule: str = "linear"
    warmup_steps: int = 0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_rate: float = 0.8
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        among("Optimizer.name", self.name, ("adamw", "adafactor"))
        among("Optimizer.schedule", self.schedule, ("linear", "constant"))
        between("Optimizer.learning_rate", self.learning_rate, 0, 10)
        at_least("Optimizer.warmup_steps", self.warmup_steps, 0)
        for name in ("b1", "b2", "decay_rate"):
            between(f"Optimizer.{name}", getattr(self, name), 0, 1)
        for name in ("eps", "weight_decay", "clip_norm"):
            between(f"Optimizer.{name}", getattr(self, name), 0, float("inf"))


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """The device mesh and what is sharded over it.

    Attributes:
      data, fsdp, model: devices along each axis; one of them may be -1: all that are left.
      logical_axis_rules: (logical axis, mesh axis or axes or None), as in T5X.
    """

    data: int = free(-1)
    fsdp: int = free(1)
    model: int = free(1)
    logical_axis_rules: AxisRules = free(DEFAULT_LOGICAL_AXIS_RULES)

    def __post_init__(self) -> None:
        for axis in MESH_AXES:
            size = getattr(self, axis)
            number(f"Mesh.{axis}", size, int)
            if size != -1 and size < 1:
                raise UsageError(f"Mesh.{axis} must be at least 1, or -1 (the rest), not {size}.")
        if [self.data, self.fsdp, self.model].count(-1) > 1:
            raise UsageError("at most one of Mesh.data, Mesh.fsdp and Mesh.model may be -1.")
        for logical, mesh_axes in self.logical_axis_rules:
            among("logical axis in Mesh.logical_axis_rules", logical, LOGICAL_AXES)
            for axis in (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ():
                among("mesh axis in Mesh.logical_axis_rules", axis, MESH_AXES)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Scoring by decoding.

    Attributes:
      decode: "greedy"; "beam" (see `Beam`); "sample" (see `Sample`): the most frequent of several
        outputs (self-consistency, Wang et al. 2022, arXiv 2203.11171); "rank": the most probable
        of the row's allowed labels (rationales are then decoded greedily).
      every: optimiser updates between evaluations on the validation split.
      batch_size: examples decoded at once, global.
      max_decode_length: longest prediction of a label, in tokens.
      max_rationale_length: longest generated rationale, in tokens.
      validation_examples: how many validation rows are scored each time (the first ones); None:
        all.
      rationales: whether the written predictions carry a generated rationale.
    """

    decode: str = "greedy"
    every: int = 250
    batch_size: int = 256
    max_decode_length: int = 64
    max_rationale_length: int = 128
    validation_examples: int | None = None
    rationales: bool = free(False)

    def __post_init__(self) -> None:
        among("Evaluate.decode", self.decode, DECODE_METHODS)
        for name in ("every", "batch_size", "max_decode_length", "max_rationale_length"):
            at_least(f"Evaluate.{name}", getattr(self, name), 1)
        if self.validation_examples is not None:
            at_least("Evaluate.validation_examples", self.validation_examples, 1)
        flag("Evaluate.rationales", self.rationales)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that decides the result of a run."""

    task: Task = Task()
    vocabulary: Vocabulary = Vocabulary()
    data: Data = Data()
    method: Method = Method()
    pretrain: Pretrain = Pretrain()
    model: T5Config = T5Config()
    lora: Lora = Lora()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    mesh: Mesh = Mesh()
    evaluate: Evaluate = Evaluate()
    beam: Beam = Beam()
    sample: Sample = Sample()
    train: Train = Train()

    def __post_init__(self) -> None:
        if self.data.batch_size % self.train.microbatches:
            raise UsageError(
                f"Data.batch_size ({self.data.batch_size}) must be a multiple of "
                f"Train.microbatches ({self.train.microbatches})."
            )
        if self.model.attention == "cudnn" and self.data.layout == "packed":
            raise UsageError(
                'T5Config.attention = "cudnn" does not work with Data.layout = "packed": it takes '
                'lengths, not segment ids. Take "flat" or "padded".'
            )
        method = self.method
        if self.loss.mutual_information and not method.rationale:
            raise UsageError(
                "Loss.mutual_information joins the label and the rationale task, but --method "
                f"{method.name} has one task. Take dss or dss_unlabeled, or set it to 0."
            )
        if self.evaluate.decode == "rank" and method.joint:
            raise UsageError(
                f'Evaluate.decode = "rank" compares labels, but --method {method.name} predicts '
                "label and rationale in one text. Take greedy, beam or sample."
            )
        if self.task.mixture_or_task_name is not None and (
            method.uses_rationales or method.label != "gold" or not method.trains
        ):
            raise UsageError(
                f"the SeqIO task {self.task.mixture_or_task_name!r} has inputs and targets only, "
                f"so --method must be standard, not {self.method.name!r}. For rationales, write "
                "a task file: docs/add_a_task.md."
            )


SECTIONS: dict[str, type] = {
    "Task": Task,
    "Vocabulary": Vocabulary,
    "Data": Data,
    "Method": Method,
    "Pretrain": Pretrain,
    "T5Config": T5Config,
    "Lora": Lora,
    "Loss": Loss,
    "Optimizer": Optimizer,
    "Mesh": Mesh,
    "Evaluate": Evaluate,
    "Beam": Beam,
    "Sample": Sample,
    "Train": Train,
}
"""Name in gin files -> class, in the order in which they are printed."""


def sections(run: Run) -> dict[str, Any]:
    """Name in gin files -> the run's value of it."""
    values = [getattr(run, f.name) for f in dataclasses.fields(run)]
    by_name = {type(v).__name__: v for v in values}
    return {name: by_name[name] for name in SECTIONS}


def to_gin(run: Run) -> str:
    """The resolved configuration as gin text, which gives the same `Run` again."""
    lines = []
    for name, value in sections(run).items():
        lines.append(f"# {name}")
        for f in dataclasses.fields(value):
            lines.append(f"{name}.{f.name} = {getattr(value, f.name)!r}")
        lines.append("")
    return "\n".join(lines)
