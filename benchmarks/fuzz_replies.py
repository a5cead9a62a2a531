"""Feeds the parser of replies and the reader of record files with what atheris makes up.

  pip install atheris
  python benchmarks/fuzz_replies.py -max_total_time=600

Not a part of the tests. Any exception but those that the functions name, a text that cannot be
written, or more than a processor second for one input is a crash, whose input atheris keeps.
docs/extract.md has the result.
"""

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["dss_jax"]):
    from dss_jax.core.errors import UsageError
    from dss_jax.core.registry import load_task
    from dss_jax.core.types import Example
    from dss_jax.records.files import read_records, record_line
    from dss_jax.records.records import record_of
    from dss_jax.teacher.parsing import read_reply
    from dss_jax.teacher.prompting import PromptOptions
    from dss_jax.teacher.replies import Retryable, reply_of

CHOICES = ("tree", "GOLD", "sea", "sea lion", "sleeping bag")
NLI = ("entailment", "neutral", "contradiction")
ROWS = {"cqa": CHOICES, "svamp": (), "esnli": NLI, "anli1": NLI}
PIECES = (
    *("So the answer is", "The answer is", "Answer:", "### Answer\n", "\\boxed{", "}", "</answer>"),
    *("(a)", "(b)", "GOLD", "neutral", "45", "(63 - 18)", " = ", "$", "\n", ". ", "**", " "),
    *("<think>", "</think>", "[THINK]", "assistantfinal", "<|channel|>final<|message|>", "</s>"),
    *("Wait, ", "because", "however, ", '{"answer": "(b)"}', "{", "Q:", "Premise"),
)
PROMPTS: dict[str, Any] = {name: load_task(name).prompt for name in ROWS}
FILE = Path(tempfile.mkdtemp()) / "records.jsonl"
HEADER = b'{"dss_records": 1, "task": "cqa", "split": "train", "teacher": "m"}\n'


def text_of(data: atheris.FuzzedDataProvider) -> str:
    """Text in which what the parser looks for is frequent."""
    parts = []
    for _ in range(data.ConsumeIntInRange(0, 12)):
        known = data.ConsumeBool()
        parts.append(
            PIECES[data.ConsumeIntInRange(0, len(PIECES) - 1)] if known else data.ConsumeUnicode(12)
        )
    return "".join(parts)


def one(raw: bytes) -> None:
    """One input."""
    start = time.process_time()
    data = atheris.FuzzedDataProvider(raw)
    kind, text = data.ConsumeIntInRange(0, 3), text_of(data)
    if kind == 0:
        FILE.write_bytes(HEADER + data.ConsumeBytes(400))
        with contextlib.suppress(UsageError):
            list(read_records(FILE)[1])
        return
    message = {"content": text} if kind > 1 else data.ConsumeUnicode(200)
    choice = {"message": message, "finish_reason": data.PickValueInList(["stop", "length", "x"])}
    body = json.dumps({"choices": [choice], "usage": None}).encode()
    if kind == 1:
        body = data.ConsumeBytes(300)
    try:
        reply = reply_of(body, True, str, 7)
    except Retryable:
        return
    name = data.PickValueInList(list(ROWS))
    row = Example(id="1", input="x", allowed_labels=ROWS[name])
    sample = read_reply(reply, row, PROMPTS[name], PromptOptions(structured=data.ConsumeBool()))
    if sample.label and ROWS[name]:
        assert sample.label in ROWS[name]
    FILE.write_bytes(HEADER + record_line(record_of(row, [sample])))
    assert len(list(read_records(FILE)[1])) == 1
    assert time.process_time() - start < 1


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
