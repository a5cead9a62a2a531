"""The configuration of a run: frozen dataclasses that check themselves. Standard library only.

gin fills them (`dss_jax.cli.gin_config`); nothing else in the package knows gin. A name here is
the name in a gin file: `Train.steps = 300`. Fields marked `free` may change when a run continues
in the same output folder, all others may not: they would make it another experiment.
"""

import ast
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from dss_jax.core.checks import Derived, Section, among, rule_of, setting
from dss_jax.core.errors import Mistakes, UsageError
from dss_jax.core.method_config import Loss, Method, Pretrain
from dss_jax.core.t5_config import DECODE_METHODS, Beam, Lora, Sample, T5Config
from dss_jax.core.types import ENGINES

AxisRules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

LAYOUTS = ("auto", "padded", "flat", "packed")
MESH_AXES = ("data", "fsdp", "model")

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

LOGICAL_AXES = tuple(axis for axis, _ in DEFAULT_LOGICAL_AXIS_RULES)


@dataclass(frozen=True, kw_only=True)
class Task(Section):
    """Which data set, and how much of it.

    Attributes:
      name: a task file's name ("cqa"); None where `mixture_or_task_name` is used.
      data_dir: folder of the data (of the benchmarks: the authors' release); None: DSS_DATA_DIR.
      record_files: record files of `dss extract`, each of one split; their labels and rationales
        take the place of the teacher text in the data. (): that text.
      bad_rows: what is done about rows that cannot be used (no input, NaN for a text, a field whose
        name is a slip of the pen): "error", or "skip", which leaves them out and counts them.
      extra_tasks: task files' names whose training rows are trained on too, as unlabelled: with the
        teacher's label. All of them are used, whatever `train_fraction`.
      prefixes: "paper" ("[label] ", "[rationale] ") or "released_code" ("predict: ", "explain: ").
      train_fraction: share of the training split, in (0, 1]; smaller ones are inside larger ones.
      train_count: number of training examples instead; None: use the fraction.
      subset_seed, fresh_subsets: which subset; whether it is `Train.seed`, each seed's own.
      mixture_or_task_name: a SeqIO task or mixture of the user's with `inputs` and `targets`.
      mixture_or_task_module: the Python module that registers it.
      use_cached: whether its rows are read from the cache of `seqio_cache_tasks`, as in T5X.
      seqio_cache_dirs: folders of such caches, beside those that the module names itself.
    """

    name: str | None = None
    data_dir: str | None = setting(None, free=True)
    # What is in the files and in the cache decides; the token store has that.
    record_files: tuple[str, ...] = setting((), commas=True, free=True)
    bad_rows: str = setting("error", among=("error", "skip"), free=True)
    extra_tasks: tuple[str, ...] = setting((), commas=True)
    prefixes: str = setting("paper", among=("paper", "released_code"))
    train_fraction: float = setting(1.0, low=0, high=1, positive=True)
    train_count: int | None = setting(None, low=1)
    subset_seed: int = setting(0, low=0)
    fresh_subsets: bool = False
    mixture_or_task_name: str | None = None
    mixture_or_task_module: str | None = None
    use_cached: bool = False
    seqio_cache_dirs: tuple[str, ...] = setting((), commas=True, free=True)

    def check(self) -> None:
        if self.train_count is not None and self.train_fraction != 1.0:
            raise UsageError("give Task.train_fraction or Task.train_count, not both.")
        if self.mixture_or_task_name is not None:
            self._check_mixture()
        elif self.use_cached:
            raise UsageError(
                "Task.use_cached is for a SeqIO task or mixture of yours: give "
                "--mixture_or_task_name. A task file's rows are not in SeqIO's cache."
            )

    def _check_mixture(self) -> None:
        if self.name is not None:
            raise UsageError(
                f"give Task.name ({self.name!r}) or Task.mixture_or_task_name "
                f"({self.mixture_or_task_name!r}), not both."
            )
        if self.mixture_or_task_module is None:
            raise UsageError(
                "Task.mixture_or_task_name needs Task.mixture_or_task_module, the Python module "
                "that registers it."
            )
        if self.extra_tasks:
            raise UsageError(
                "Task.extra_tasks (--extra_task) are task files beside a task file: give --task, "
                "not --mixture_or_task_name."
            )
        if self.record_files:
            raise UsageError(
                "Task.record_files is for task files: a SeqIO task has inputs and targets only. "
                "docs/add_a_task.md shows a task file."
            )

    @property
    def shown_name(self) -> str:
        """Name for people: of the task file, or of the user's SeqIO task; "" where none is set."""
        return self.name or self.mixture_or_task_name or ""


@dataclass(frozen=True, kw_only=True)
class Vocabulary(Section):
    """The vocabulary.

    Attributes:
      path: a SentencePiece `.model` file, a folder with a `tokenizer.json`, or "bytes" (ByT5's);
        also https:// or public gs://, fetched once; None: the task's own, else T5's public one.
      extra_ids: sentinel ids above a SentencePiece model's pieces (T5: 100); others tell their own.
    """

    path: str | None = setting(None, free=True)  # What is in the file decides: as for records.
    extra_ids: int = setting(100, low=0)


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """Token store and batches.

    Attributes:
      batch_size: examples a step, global; each is trained on in both roles.
      input_length: longest input in tokens, EOS included; longer ones are cut and counted.
      target_length: longest label or rationale in tokens, EOS included.
      layout: how a batch is laid out: "padded" (rows as long as the longest), "flat" (a stream of
        tokens a device), "packed" (several examples a row), or "auto": packed on TPU, flat
        elsewhere. The loss is the same.
      length_multiple: padded lengths are rounded up to a multiple of this, in tokens.
      max_shapes: of batches; each is compiled before the first step, and more of them pad less.
      seed: seed of the order of the training examples.
      store_dir: folder of all token stores; None: DSS_STORE_DIR, or the user's cache folder.
      store: one store to use as it is, for example copied from a machine with TensorFlow.
    """

    batch_size: int = setting(64, low=1)
    input_length: int = setting(1024, low=2)
    target_length: int = setting(256, low=2)
    layout: str = setting("auto", among=LAYOUTS, free=True)
    length_multiple: int = setting(8, low=1)
    max_shapes: int = setting(3, low=1, free=True)
    seed: int = setting(0, low=0)
    store_dir: str | None = setting(None, free=True)
    store: str | None = setting(None, free=True)


LEARNING_RATES = {"checkpoint": 5e-5, "nothing": 1e-3}
"""The default, by what a run starts from: the authors' for pre-trained T5, with which a model from
nothing learns next to nothing."""


@dataclass(frozen=True, kw_only=True)
class Optimizer(Section):
    """The optimiser. The defaults are the authors' released code.

    Attributes:
      name: "adamw" or "adafactor" (as T5X uses it: factored, scaled by the parameters' RMS).
      learning_rate: peak; None: 5e-5 from a checkpoint, 1e-3 from nothing (`LEARNING_RATES`).
      schedule: "linear" (to 0 at Train.steps) or "constant".
      warmup_steps: linear warm-up, optimiser updates.
      b1, b2, eps, weight_decay: of AdamW.
      decay_rate: of Adafactor's second moment: 1 - (t + 1)^-decay_rate.
      clip_norm: gradients are clipped to this global norm; 0 is off.
    """

    name: str = setting("adamw", among=("adamw", "adafactor"))
    learning_rate: float | None = setting(None, low=0, high=10)
    schedule: str = setting("linear", among=("linear", "constant"))
    warmup_steps: int = setting(0, low=0)
    b1: float = setting(0.9, low=0, high=1)
    b2: float = setting(0.999, low=0, high=1)
    eps: float = setting(1e-8, low=0, high=1)
    weight_decay: float = setting(0.0, low=0)
    decay_rate: float = setting(0.8, low=0, high=1)
    clip_norm: float = setting(1.0, low=0)

    def check(self) -> None:
        if self.name == "adamw" and 1 in (self.b1, self.b2):
            raise UsageError("Optimizer.b1 and b2 must be below 1: 1 takes no gradient in.")


@dataclass(frozen=True, kw_only=True)
class Mesh(Section):
    """The device mesh and what is sharded over it.

    Attributes:
      data, fsdp, model: devices along each axis; one of them may be -1: all that are left.
      logical_axis_rules: (logical axis, mesh axis or axes or None), as in T5X.
    """

    data: int = setting(-1, free=True)
    fsdp: int = setting(1, free=True)
    model: int = setting(1, free=True)
    logical_axis_rules: AxisRules = setting(DEFAULT_LOGICAL_AXIS_RULES, free=True)

    def check(self) -> None:
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        for axis, size in sizes.items():
            if size != -1 and size < 1:
                raise UsageError(f"Mesh.{axis} must be at least 1, or -1 (the rest), not {size}.")
        if list(sizes.values()).count(-1) > 1:
            raise UsageError("at most one of Mesh.data, Mesh.fsdp and Mesh.model may be -1.")
        for logical, mesh_axes in self.logical_axis_rules:
            among("logical axis in Mesh.logical_axis_rules", logical, LOGICAL_AXES)
            for axis in (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ():
                among("mesh axis in Mesh.logical_axis_rules", axis, MESH_AXES)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Section):
    """Scoring by decoding.

    Attributes:
      decode: "greedy"; "beam" (see `Beam`); "sample" (see `Sample`): the most frequent of several
        outputs (self-consistency, Wang et al. 2022, arXiv 2203.11171); "rank": the most probable
        of the row's allowed labels (rationales are then decoded greedily).
      every: optimiser updates between evaluations on the validation split.
      batch_size: examples decoded at once, global.
      max_decode_length: longest prediction of a label, in tokens.
      max_rationale_length: longest generated rationale, in tokens.
      validation_examples: how many validation rows, the first, are scored each time; None: all.
      generate_rationales: whether the written predictions carry a generated rationale.
    """

    decode: str = setting("greedy", among=DECODE_METHODS)
    every: int = setting(250, low=1)
    batch_size: int = setting(256, low=1)
    max_decode_length: int = setting(64, low=1)
    max_rationale_length: int = setting(128, low=1)
    validation_examples: int | None = setting(None, low=1)
    generate_rationales: bool = setting(False, free=True)


@dataclass(frozen=True, kw_only=True)
class Train(Section):
    """The loop.

    Attributes:
      steps: optimiser updates.
      seed: of the parameters and of dropout; JAX cuts what has more than 32 bits.
      microbatches: parts of a batch whose gradients are added up to those of the whole batch.
      checkpoint_every: optimiser updates between checkpoints; None: at each evaluation.
      keep_checkpoints: how many of the latest are kept, beside the best on validation.
      max_bad_steps: batches in a row, not finite and so skipped, after which the run stops.
      log_every: optimiser updates between lines of `metrics.jsonl`.
      output_dir: where everything that the run makes goes.
      init_from: checkpoint whose parameters the run starts from: Hugging Face's (a folder or a name
        of the hub), an Orbax model or run folder, or T5X's; None: random parameters.
      engine: what runs the loop: "jax", this package, or "t5x", T5X's own `train`.
    """

    steps: int = setting(10_000, low=1)
    seed: int = setting(0, low=0, high=2**32 - 1)
    microbatches: int = setting(1, low=1)
    checkpoint_every: int | None = setting(None, low=1, free=True)
    keep_checkpoints: int = setting(1, low=1, free=True)
    max_bad_steps: int = setting(3, low=1, free=True)
    log_every: int = setting(10, low=1, free=True)
    output_dir: str | None = setting(None, free=True)
    init_from: str | None = None
    engine: str = setting("jax", among=ENGINES)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that decides the result of a run. A section's name in gin files is its class's."""

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
        if isinstance(self.optimizer.learning_rate, Derived | None):
            rate = Derived(LEARNING_RATES["checkpoint" if self.train.init_from else "nothing"])
            object.__setattr__(self, "optimizer", replace(self.optimizer, learning_rate=rate))
        if self.task.fresh_subsets:
            object.__setattr__(self, "task", replace(self.task, subset_seed=self.train.seed))
        mistakes = Mistakes()
        mistakes.found += self._wrong()
        mistakes.done()

    def _wrong(self) -> Iterator[str]:
        """What does not go together, of several sections."""
        if self.data.batch_size % self.train.microbatches:
            yield (
                f"Data.batch_size ({self.data.batch_size}) must be a multiple of "
                f"Train.microbatches ({self.train.microbatches})."
            )
        if self.model.attention == "cudnn" and self.data.layout == "packed":
            yield (
                'T5Config.attention = "cudnn" does not work with Data.layout = "packed": it takes '
                'lengths, not segment ids. Take "flat" or "padded".'
            )
        longest = self.evaluate.max_decode_length
        for name, search in (("beam", self.beam), ("sample", self.sample)):
            if self.evaluate.decode == name and search.min_decode_length > longest:
                yield (
                    f"{type(search).__name__}.min_decode_length ({search.min_decode_length}) is "
                    f"above Evaluate.max_decode_length ({longest})."
                )
        method = self.method
        if self.loss.mutual_information and method.trains and not method.rationale:
            yield (
                "Loss.mutual_information joins the label and the rationale task, but --method "
                f"{method.name} has one task. Take dss or dss_unlabeled, or set it to 0."
            )
        if self.evaluate.decode == "rank" and method.joint:
            yield (
                f'Evaluate.decode = "rank" compares labels, but --method {method.name} predicts '
                "label and rationale in one text. Take greedy, beam or sample."
            )
        if self.task.mixture_or_task_name is not None and (
            method.uses_rationales or method.label != "gold" or not method.trains
        ):
            yield (
                f"the SeqIO task {self.task.mixture_or_task_name!r} has inputs and targets only, "
                f"so --method must be standard, not {self.method.name!r}. For rationales, write "
                "a task file: docs/add_a_task.md."
            )


SECTIONS: dict[str, Any] = {f.type.__name__: f.type for f in fields(Run)}  # type: ignore[union-attr]
"""Name in gin files -> class, in the order in which they are printed."""

SETTINGS = {f"{name}.{f.name}": f for name, section in SECTIONS.items() for f in fields(section)}
"""Everything that can be bound -> its field."""

RENAMED = {
    "Task.rationales": "Task.record_files",
    "Evaluate.rationales": "Evaluate.generate_rationales",
}
"""Settings of older gin files -> what they are called now."""


def values_of(run: Run) -> dict[str, Any]:
    """Name of each setting -> the run's value."""
    sections = [getattr(run, f.name) for f in fields(run)]
    return {f"{type(s).__name__}.{f.name}": getattr(s, f.name) for s in sections for f in fields(s)}


def to_gin(run: Run) -> str:
    """The resolved configuration as gin text, which gives the same `Run` again."""
    lines, values = [], values_of(run)
    for section in SECTIONS:
        bound = (f"{n} = {v!r}" for n, v in values.items() if n.startswith(f"{section}."))
        lines += [f"# {section}", *bound, ""]
    return "\n".join(lines)


def from_gin(text: str) -> Run:
    """The `Run` of what `to_gin` gave, perhaps in an older version; settings that this one does not
    know are passed over. Raises UsageError where a value is not allowed.
    """
    known: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for name, value in map(binding, text.splitlines()):
        with contextlib.suppress(ValueError, SyntaxError):
            section, _, setting_name = name.partition(".")
            if name in SETTINGS:
                infinite = value == "inf"  # No literal.
                known[section][setting_name] = float(value) if infinite else ast.literal_eval(value)
    made = {f.name: s(**known[n]) for f, (n, s) in zip(fields(Run), SECTIONS.items(), strict=True)}
    return Run(**made)


def binding(line: str) -> tuple[str, str]:
    """A line of `to_gin`, perhaps of an older version, as today's name and text of the value."""
    name, _, text = line.partition(" = ")
    name = RENAMED.get(name, name)
    if name in SETTINGS:
        with contextlib.suppress(ValueError, SyntaxError):  # inf is no literal.
            text = repr(rule_of(SETTINGS[name]).tidy(ast.literal_eval(text)))
    return name, text
