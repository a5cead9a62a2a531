"""What tells a run that is scored, or asked for, from the one that was trained in its folder."""

from dataclasses import replace
from pathlib import Path

from dss_jax.core import config
from dss_jax.run.run_folder import (
    STORE_LINE,
    another,
    check_output_dir,
    difference,
    has_trained,
    saved_text,
)

NO_OTHER = (
    "Evaluate.decode",  # The file's name has it.
    "T5Config.vocab_size",  # The vocabulary fills it in, and these:
    "T5Config.pad_token_id",
    "T5Config.eos_token_id",
    "T5Config.decoder_start_token_id",
    "Evaluate.batch_size",
    "Data.batch_size",
    "Train.steps",  # A checkpoint's step is in the name, and `Method.equal_compute` draws it out:
    "Evaluate.every",
)
"""Settings that may differ from the run's in a file of predictions that has its own name."""


def changes(run: config.Run, folder: Path, key: str) -> list[str]:
    """The settings, as gin has them, in which a run with a store of that key differs from the run
    that a folder holds, and the line of its data where these are others; `NO_OTHER` left out.
    """
    if STORE_LINE not in (saved := saved_text(folder)):
        return []
    # Scoring opens no stores of extra tasks, whose keys come after the first.
    own = [x.split("+")[0] if x.startswith(STORE_LINE) else x for x in saved.splitlines()]
    text = f"{STORE_LINE}{key.split('+')[0]}\n{config.to_gin(run)}"
    lines = difference("\n".join(own), text, folder).splitlines()
    found = [line[1:] for line in lines if line[0] == "+" and not line.startswith("+++ ")]
    return [line for line in found if line.split(" = ")[0] not in NO_OTHER]


def with_seed(run: config.Run, seed: int, output_dir: str, same_order: bool) -> config.Run:
    """The run with another seed, in a folder of its own; it sees the training examples in the order
    of its seed, or in the `same_order` as all.
    """
    data = run.data if same_order else replace(run.data, seed=seed)
    return replace(run, data=data, train=replace(run.train, seed=seed, output_dir=output_dir))


def other_settings(run: config.Run, folder: Path) -> str:
    """How the run in a folder differs from this one, its data left out; "" where it does not, or
    where the folder holds none that has trained.
    """
    saved = saved_text(folder)
    fixed = STORE_LINE in saved and has_trained(folder)
    return difference(saved, config.to_gin(run), folder) if fixed else ""


def check_settings(run: config.Run) -> None:
    """Raises UsageError where the run's folder holds a trained run with other settings; its data
    are left out.
    """
    folder = check_output_dir(str(run.train.output_dir))
    if diff := other_settings(run, folder):
        raise another(folder, diff)


def store_keys(folder: Path) -> list[str]:
    """Of what the run in a folder was trained on; []: it holds none that has trained."""
    lines = [x for x in saved_text(folder).splitlines() if x.startswith(STORE_LINE)]
    return lines[0].removeprefix(STORE_LINE).split("+") if lines and has_trained(folder) else []
