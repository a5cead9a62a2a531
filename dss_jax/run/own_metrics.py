"""The metrics of a user's own SeqIO task."""

from typing import Any

from dss_jax.core import config
from dss_jax.data import prepare_child


def own_metrics(
    task: config.Task, split_name: str, predictions: list[dict[str, Any]]
) -> dict[str, float]:
    """What the metric functions of a user's own SeqIO task say of a split's predictions.

    They may need TensorFlow, so they run in a child process.
    """
    request = {
        "module": task.mixture_or_task_module,
        "name": task.mixture_or_task_name,
        "split": split_name,
        "predictions": {p["id"]: p["prediction"] for p in predictions},
    }
    numbers: dict[str, float] = prepare_child.run(request, "dss_jax.data.seqio_user")
    return numbers
