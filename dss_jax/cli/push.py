"""Upload a student to the Hugging Face hub, with its model card.

  dss convert --from orbax runs/cqa --to hf students/cqa
  HF_TOKEN=... dss push students/cqa NAME/cqa-student --private

The token is taken from the environment only. HF_ENDPOINT names another server.
"""

import argparse
from pathlib import Path

from dss_jax.cli.tables import say
from dss_jax.core.student_card import read


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("student", metavar="STUDENT", help="a folder that dss convert wrote (hf or ctranslate2)")
    add("repo", metavar="REPO", help="OWNER/NAME of the model repository; made where there is none")
    add("--private", action="store_true", help="a new repository is private")
    add("--message", default="Upload a student of dss-jax", help="of the commit")


def main(args: argparse.Namespace) -> None:
    from dss_jax.interop.hub import push

    folder = Path(args.student).expanduser()
    where = push(folder, args.repo, private=args.private, message=args.message)
    say(f"pushed to {where}")
    card = read(folder)
    if card is not None and card.examples:
        say(f"student.json there shows {len(card.examples)} rows of the data of {card.task}")
