"""Records of completions that exist already, as the authors' release has them. No request."""

from collections.abc import Iterable, Iterator

from dss_jax.core.errors import UsageError
from dss_jax.core.prompt import Prompt
from dss_jax.core.types import DistillationTask, Example
from dss_jax.records.records import Record, Reply
from dss_jax.records.voting import record_of
from dss_jax.teacher.parsing import read_reply
from dss_jax.teacher.prompting import PromptOptions

MISSING = "there is no completion for this row"


def from_release(
    task: DistillationTask, rows: Iterable[tuple[Example, str | None]]
) -> Iterator[Record]:
    """One record a row, with one sample.

    Args:
      task: its prompt says how a completion is read.
      rows: each row with its raw completion, None where there is none (status "error").

    Raises:
      UsageError: the task has no prompt.
    """
    prompt = prompt_of(task)
    options = PromptOptions(form="completion")
    for example, completion in rows:
        reply = Reply(text=completion or "")
        if completion is None:
            reply = Reply(text="", finish_reason="error", refusal=MISSING)
        yield record_of(example, [read_reply(reply, example, prompt, options)])


def prompt_of(task: DistillationTask) -> Prompt:
    """The task's prompt; a `UsageError` where it has none."""
    if task.prompt is None:
        raise UsageError(
            f"task {task.name!r} has no prompt, so no teacher can be asked. Give its TASK a "
            "`prompt`, a dss_jax.core.prompt.Prompt; docs/add_a_task.md shows one."
        )
    return task.prompt
