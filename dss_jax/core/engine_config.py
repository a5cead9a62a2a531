"""Which runs T5X's loop can take. Standard library only."""

from dss_jax.core.config import DEFAULT_LOGICAL_AXIS_RULES, Run
from dss_jax.core.errors import UsageError

T5X_CONSTANTS = {
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "layer_norm_epsilon": 1e-6,
    "attention": "xla",
    "remat_policy": "none",
}
"""What T5X's network (`t5x.examples.t5`) has in its code: field of T5Config -> value."""


def check_for_t5x(run: Run) -> None:
    """Raises UsageError, with every setting that T5X's loop cannot take and what it can."""
    lines = [
        f"T5Config.{name} must be {value!r}, not {getattr(run.model, name)!r}: it is in T5X's code"
        for name, value in T5X_CONSTANTS.items()
        if getattr(run.model, name) != value
    ]
    if run.lora.rank:
        lines.append("Lora.rank must be 0: T5X has no LoRA")
    if run.mesh.logical_axis_rules != DEFAULT_LOGICAL_AXIS_RULES:
        lines.append("Mesh.logical_axis_rules must be the default: T5X has rules of its own")
    if run.optimizer.name == "adafactor" and run.optimizer.weight_decay:
        lines.append("Optimizer.weight_decay must be 0: T5X's Adafactor scales it otherwise")
    if run.method.form != "tasks" or run.method.only_correct or run.method.rationales != "first":
        lines.append(
            f"--method {run.method.name}: only standard, distill, dss and dss_unlabeled, without "
            "Method.only_correct and with Method.rationales = 'first'"
        )
    if run.task.extra_tasks:
        lines.append("Task.extra_tasks must be (): T5X mixes tasks in its mixtures")
    if run.loss.alpha_schedule != "constant" or run.loss.mutual_information:
        lines.append("Loss.alpha_schedule must be 'constant' and Loss.mutual_information 0")
    if lines:
        raise UsageError("--engine t5x cannot take this run:\n  " + "\n  ".join(lines))
