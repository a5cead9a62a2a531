"""Scores predictions with the metric functions of a user's SeqIO task. Run as a child process."""

from collections.abc import Mapping
from numbers import Number
from typing import Any

from dss_jax.data.seqio_user import find_provider, ints_and_texts


def answer(request: Mapping[str, Any]) -> dict[str, float]:
    """Runs `postprocess_fn` and the `metric_fns` over predictions, as SeqIO's evaluator does.

    Args:
      request: `module` and `name` of the task or mixture, `split`, and `predictions`: id of the
        row in the token store -> predicted text.

    Returns:
      `<task>/<metric>` -> value; metrics that are no numbers are left out.
    """
    import seqio

    provider = find_provider(request["module"], request["name"])
    predictions, found = request["predictions"], {}
    for task in seqio.get_subtasks(provider):
        if request["split"] not in task.splits or not task.predict_metric_fns:
            continue
        decode = task.output_features["targets"].vocabulary.decode
        targets, predicted = [], []
        dataset = task.get_dataset(sequence_length=None, split=request["split"], shuffle=False)
        for number, row in enumerate(ints_and_texts(dataset)):
            text = predictions.get(f"{task.name}-{number}")
            if text is None:
                continue
            target = row.get("targets_pretokenized")
            target = decode([int(i) for i in row["targets"]]) if target is None else target
            targets.append(task.postprocess_fn(target, example=row, is_target=True))
            predicted.append(task.postprocess_fn(text, example=row, is_target=False))
        for metric_fn in task.predict_metric_fns:
            for name, value in metric_fn(targets, predicted).items():
                value = getattr(value, "value", value)
                if isinstance(value, Number):
                    found[f"{task.name}/{name}"] = float(value)  # type: ignore[arg-type]
    return found
