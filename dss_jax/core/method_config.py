"""What a student learns, and how it is weighed. Standard library only."""

import math
from dataclasses import dataclass

from dss_jax.core.checks import Section, setting
from dss_jax.core.errors import UsageError

UNTRAINED = ("teacher", "undistilled")
FORMS = ("tasks", "rationale_label", "label_rationale", "rationale_input", "spans", *UNTRAINED)
JOINT = ("rationale_label", "label_rationale")
"""Forms in which one text has label and rationale."""

OF_RATIONALES = ("shuffled", "same_label", "other", "truncated", "telling")
CONTROLS = ("none", *OF_RATIONALES, "input", "label", "random")

SCHEDULES = ("constant", "linear", "cosine", "phased")


@dataclass(frozen=True, kw_only=True)
class Method(Section):
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
        "teacher", "undistilled": nothing is trained, the teacher's own labels are scored, or the
        checkpoint of `Train.init_from` as it is.
      only_correct: rationales of rows where the teacher's label is not the gold one are not
        learned (Ho et al. 2023, arXiv 2212.10071); with the teacher's labels such rows are left
        out altogether. Rows without a gold label stay.
      rationales: "first": each row's one rationale; "drawn": where the records have several of a
        row, another is drawn each epoch, from the seed, the epoch and the row alone.
      control: what the rationales are spoiled by, from `Data.seed` and the row alone, to ask what
        their use is made of: "shuffled" (their tokens), "same_label" and "other" (another row's, of
        the same label or of any), "truncated" (their first `control_tokens`), "telling" (their
        `control_tokens` that tell most of the label), "input" (repeated), "label" (its
        name alone), "random" (as many tokens, drawn from all rationales); "none": they are not.
      control_tokens: of "truncated" and "telling".
      equal_compute: whether the label task alone gets the floating-point operations that `dss` has
        for both: `Train.steps` and `Evaluate.every` are those of dss, and drawn out as needed.
      exemplars: of form "undistilled": how many training rows with their labels, drawn from
        `Data.seed` and the row, stand before each input; fewer where `Data.input_length` is short.
    """

    name: str = "dss"
    label: str = setting("gold", among=("gold", "teacher"))
    rationale: bool = True
    form: str = setting("tasks", among=FORMS)
    only_correct: bool = False
    rationales: str = setting("first", among=("first", "drawn"))
    control: str = setting("none", among=CONTROLS)
    control_tokens: int = setting(8, low=1)
    equal_compute: bool = False
    exemplars: int = setting(0, low=0)

    def check(self) -> None:
        if self.exemplars and self.form != "undistilled":
            raise UsageError('Method.exemplars is for Method.form = "undistilled". Set it to 0.')
        if self.rationale and self.form != "tasks":
            raise UsageError(
                f'Method.rationale is the second task of Method.form = "tasks". With '
                f"{self.form!r} set it to False."
            )
        learned = (self.rationale or self.joint) and self.rationales == "first"
        if self.control != "none" and not learned:
            raise UsageError(
                f'Method.control = "{self.control}" is for methods that learn one rationale of a '
                'row. Set it to "none", or Method.rationales to "first".'
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
        return self.form in JOINT

    @property
    def trains(self) -> bool:
        """Whether there is a student."""
        return self.form not in UNTRAINED


@dataclass(frozen=True, kw_only=True)
class Pretrain(Section):
    """Span corruption, as T5 was pre-trained (Raffel et al. 2020, arXiv 1910.10683).

    The text is that of the task's rows, inputs and rationales, one after another, cut into pieces
    of equal length.

    Attributes:
      text_files: more text: a line a document, or JSON strings or objects with "text" where the
        name has .jsonl; also .gz and .xz.
      noise_density: share of the tokens that are masked.
      mean_span_length: of masked spans, in tokens.
    """

    text_files: tuple[str, ...] = setting((), commas=True)
    noise_density: float = setting(0.15, low=0.01, high=0.9)
    mean_span_length: float = setting(3.0, low=1, high=100)


@dataclass(frozen=True, kw_only=True)
class Loss(Section):
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

    alpha: float = setting(0.5, low=0, high=1)
    alpha_schedule: str = setting("constant", among=SCHEDULES)
    alpha_end: float = setting(0.5, low=0, high=1)
    alpha_phases: tuple[tuple[float, float], ...] = setting((), low=0, high=1)
    mutual_information: float = setting(0.0, low=0, high=100)
    z_loss: float = setting(0.0, low=0, high=1)
    label_smoothing: float = setting(0.0, low=0, high=0.999)

    def check(self) -> None:
        phases = self.alpha_phases
        if bool(phases) != (self.alpha_schedule == "phased"):
            raise UsageError(
                'Loss.alpha_phases goes with Loss.alpha_schedule = "phased", and only with it: '
                "((0.3, 1.0), (0.4, 0.5), (0.3, 0.0)) is label only, both, rationale only."
            )
        total = sum(share for share, _ in phases)
        if phases and not math.isclose(total, 1.0, abs_tol=1e-6):
            raise UsageError(f"the shares of Loss.alpha_phases must add up to 1, not {total:g}.")
