"""What a student learns, and how it is weighed. Standard library only."""

import math
from dataclasses import dataclass

from dss_jax.core.checks import among, between, flag
from dss_jax.core.errors import UsageError

FORMS = ("tasks", "rationale_label", "label_rationale", "rationale_input", "spans", "teacher")
ALPHA_SCHEDULES = ("constant", "linear", "cosine", "phased")
RATIONALES = ("first", "drawn")


@dataclass(frozen=True, kw_only=True)
class Method:
    """What the student learns.

    Attributes:
      name: for people, and the name of the gin file that sets the rest: "dss".
      label: "gold" or "teacher": whose label is trained on.
      rationale: whether the teacher's rationale is learned as a second task (form "tasks").
      form: how inputs and targets are made of input x, label y and rationale r:
        "tasks": `[label] x -> y`, and with `rationale` `[rationale] x -> r`;
        "rationale_label", "label_rationale": `[label] x -> r y` and `-> y r`, one target
        (single-task training; the label is read from what is generated);
        "rationale_input": `[label] x r -> y`, when it is scored too (PINTO, Wang et al. 2023,
        arXiv 2211.01562);
        "spans": pre-training on the texts, see `Pretrain`;
        "teacher": nothing is trained, the teacher's own labels are scored.
      only_correct: rationales of rows where the teacher's label is not the gold one are not
        learned (Ho et al. 2023, arXiv 2212.10071); with the teacher's labels such rows are left
        out altogether. Rows without a gold label stay.
      rationales: "first": each row's one rationale; "drawn": where the records have several of a
        row, another is drawn each epoch, from the seed, the epoch and the row alone.
    """

    name: str = "dss"
    label: str = "gold"
    rationale: bool = True
    form: str = "tasks"
    only_correct: bool = False
    rationales: str = "first"

    def __post_init__(self) -> None:
        among("Method.label", self.label, ("gold", "teacher"))
        flag("Method.rationale", self.rationale)
        among("Method.form", self.form, FORMS)
        flag("Method.only_correct", self.only_correct)
        among("Method.rationales", self.rationales, RATIONALES)
        if self.rationale and self.form != "tasks":
            raise UsageError(
                f'Method.rationale is the second task of Method.form = "tasks". With '
                f"{self.form!r} set it to False."
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of what is learned, in metrics."""
        if self.form == "tasks":
            return ("label", "rationale") if self.rationale else ("label",)
        return ("spans",) if self.form == "spans" else ("label",)

    @property
    def uses_rationales(self) -> bool:
        """Whether the teacher's rationales are in inputs or targets."""
        return self.rationale or self.joint or self.form == "rationale_input"

    @property
    def joint(self) -> bool:
        """Whether a target, and so a prediction, holds label and rationale."""
        return self.form in ("rationale_label", "label_rationale")

    @property
    def trains(self) -> bool:
        """Whether there is a student."""
        return self.form != "teacher"


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Span corruption, as T5 was pre-trained (Raffel et al. 2020, arXiv 1910.10683).

    The text is that of the task's rows, inputs and rationales, one after another, cut into pieces
    of equal length.

    Attributes:
      text_files: more text, separated by commas: a line a document, or JSON strings or objects
        with "text" where the name has .jsonl; also .gz and .xz.
      noise_density: share of the tokens that are masked.
      mean_span_length: of masked spans, in tokens.
    """

    text_files: str | None = None
    noise_density: float = 0.15
    mean_span_length: float = 3.0

    def __post_init__(self) -> None:
        between("Pretrain.noise_density", self.noise_density, 0.01, 0.9)
        between("Pretrain.mean_span_length", self.mean_span_length, 1, 100)

    @property
    def files(self) -> tuple[str, ...]:
        """The text files, one by one."""
        return tuple(f for f in (self.text_files or "").split(",") if f)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """alpha * mean over label tokens + (1 - alpha) * mean over rationale tokens.

    Attributes:
      alpha: weight of the label task, in [0, 1]. 0.5 is the paper's lambda = 1: it halves the
        whole loss, which Adam ignores. Without a rationale task it is not used.
      alpha_schedule: "constant"; "linear" and "cosine": from `alpha` to `alpha_end` over the run;
        "phased": `alpha_phases`.
      alpha_end: weight of the label task at the last step.
      alpha_phases: (share of the steps, alpha), one after another; the shares add up to 1. Label
        only, then both, then rationale only: ((0.3, 1.0), (0.4, 0.5), (0.3, 0.0)).
      mutual_information: weight of the term that draws the two tasks' outputs together (Chen et
        al. 2024, arXiv 2403.03348, which takes 0.1); 0 is off. See `dss_jax.train.agreement`.
      z_loss: coefficient of log(Z)^2, as in T5X (1e-4 there for pre-training); 0 is off.
      label_smoothing: in [0, 1), as in T5X; 0 is off.
    """

    alpha: float = 0.5
    alpha_schedule: str = "constant"
    alpha_end: float = 0.5
    alpha_phases: tuple[tuple[float, float], ...] = ()
    mutual_information: float = 0.0
    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        between("Loss.alpha", self.alpha, 0, 1)
        among("Loss.alpha_schedule", self.alpha_schedule, ALPHA_SCHEDULES)
        between("Loss.alpha_end", self.alpha_end, 0, 1)
        between("Loss.mutual_information", self.mutual_information, 0, 100)
        between("Loss.z_loss", self.z_loss, 0, 1)
        between("Loss.label_smoothing", self.label_smoothing, 0, 0.999)
        self._check_phases()

    def _check_phases(self) -> None:
        phases = self.alpha_phases
        if bool(phases) != (self.alpha_schedule == "phased"):
            raise UsageError(
                'Loss.alpha_phases goes with Loss.alpha_schedule = "phased", and only with it: '
                "((0.3, 1.0), (0.4, 0.5), (0.3, 0.0)) is label only, both, rationale only."
            )
        for share, alpha in phases:
            between("share of the steps in Loss.alpha_phases", share, 0, 1)
            between("alpha in Loss.alpha_phases", alpha, 0, 1)
        if phases and not math.isclose(sum(share for share, _ in phases), 1.0, abs_tol=1e-6):
            raise UsageError(
                f"the shares of Loss.alpha_phases must add up to 1, not "
                f"{sum(share for share, _ in phases):g}."
            )
