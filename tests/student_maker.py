"""Students in folders, without training: random weights, and stores made of real texts."""

import dataclasses
import json
from contextlib import closing
from pathlib import Path

import jax
import toy

from dss_jax.core import config, student_card
from dss_jax.core.ids import EOS_ID
from dss_jax.core.prefixes import PREFIXES
from dss_jax.core.types import Example
from dss_jax.data.store import TEXT_COLUMNS, TOKEN_COLUMNS, TokenStore
from dss_jax.data.store_writer import SplitBuilder, write_store
from dss_jax.data.vocabulary import SentencePiece
from dss_jax.run import run_folder
from dss_jax.run.session import with_vocab_size
from dss_jax.run.student_files import write_student_files
from dss_jax.train.checkpoint import Checkpoints
from dss_jax.train.sharding import make_mesh
from dss_jax.train.step import Program

TASK = """
from dss_jax.core.example import Example
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Jsonl


def to_example(row, completion):
    return Example(
        id=str(row["number"]),
        input=f"{row['question']} choices: {' or '.join(row['choices'])}",
        label=row.get("answer", ""),
        rationale=row.get("why", ""),
        allowed_labels=tuple(row["choices"]),
    )


TASK = DistillationTask(
    name="choices",
    description="Which number it is.",
    licence="none",
    sources=(Jsonl(files={"train": "x.jsonl"}),),
    to_example=to_example,
    scorer=TEXT_ACCURACY,
)
"""
"""The file of a task with choices of its own in each row."""

WORDS = "How many apples are left when Tom gives Ann some of them after lunch ?"


def raw_rows(count: int) -> list[dict]:
    """Rows as the task's source would have them."""
    return [
        {
            "number": n,
            "question": f"{WORDS[: 8 + 4 * n % len(WORDS)]} {n}",
            "choices": [str(n), f"{n} + {n + 1}", *(["none"] if n % 3 else ["12", "( 3 - 1 )"])],
            "answer": str(n),
            "why": f"because {n} is {n}",
        }
        for n in range(count)
    ]


def examples(count: int) -> list[Example]:
    names: dict = {}
    exec(compile(TASK, "choices.py", "exec"), names)
    return [names["to_example"](row, None) for row in raw_rows(count)]


def make_store(path: Path, labels: tuple[str, ...] | None = None, count: int = 30) -> TokenStore:
    """A store of these examples; `labels`: the allowed ones of every row, in place of its own."""
    vocabulary, style = SentencePiece(toy.VOCABULARY, 0), PREFIXES["paper"]

    def target(text: str) -> list[int]:
        return [*vocabulary.encode(text), EOS_ID]

    splits = {}
    for name in ("train", "validation", "test"):
        split = SplitBuilder(TOKEN_COLUMNS, TEXT_COLUMNS)
        for one in examples(count):
            tokens = {
                c: toy.input_ids(vocabulary, p + one.input) for c, p in style.of_columns.items()
            }
            tokens |= {"label_targets": target(one.label), "teacher_label_targets": []}
            tokens["rationale_targets"] = target(one.rationale)
            texts = {c: getattr(one, c) for c in TEXT_COLUMNS}
            allowed = one.allowed_labels if labels is None else labels
            split.append(tokens, texts | {"allowed_labels": json.dumps(allowed)})
        splits[name] = split
    description = {"name": "choices", "kind": "task", "key": path.name, "prefixes": "paper"}
    description["description"] = "Which number it is."
    return write_store(path, splits, toy.VOCABULARY, 0, description)


def make_student(folder: Path, store: TokenStore, **sections: object) -> config.Run:
    """A run's folder with a checkpoint of random weights, as `dss train` leaves it."""
    run = toy.make_run(
        task=config.Task(name="choices"),
        data=config.Data(batch_size=8, store=str(store.path), input_length=40),
        vocabulary=config.Vocabulary(extra_ids=0),
        evaluate=config.Evaluate(batch_size=4, max_decode_length=5, max_rationale_length=12),
        train=config.Train(output_dir=str(folder)),
        **sections,
    )
    run_folder.open_run_folder(run, store.key)
    run = with_vocab_size(run, store)
    program = Program(run, make_mesh(run.mesh, jax.devices()[:1]))
    # Larger than they are drawn, so that the inputs matter to the choice.
    params = jax.tree.map(lambda x: 2 * x, program.init().params)
    with closing(Checkpoints(folder / run_folder.CHECKPOINTS)) as checkpoints:
        checkpoints.save_params(params, 1, 1.0)
        checkpoints.wait()
    write_student_files(run, folder, store, "text_accuracy")
    return run


def with_card(folder: Path, **changes: object) -> None:
    """Changes the card in a folder."""
    card = student_card.read(folder)
    assert card is not None
    student_card.write(folder, dataclasses.replace(card, **changes))
