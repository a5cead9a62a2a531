"""Asks the student in a folder with `transformers` alone: neither SentencePiece nor protobuf.

  python bare_transformers.py FOLDER TEXTS.json   -> a JSON line a text

Run by `test_hand_over.py`, and by any Python that has torch and transformers.
"""

import json
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

ABSENT = ("sentencepiece", "tiktoken", "google")


class Finder(PathFinder):
    """Finds everything but these."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.split(".")[0] in ABSENT else super().find_spec(name, path, target)


def main(folder: str, texts: list[str]) -> None:
    sys.meta_path[:] = [Finder if found is PathFinder else found for found in sys.meta_path]
    import torch
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = T5ForConditionalGeneration.from_pretrained(folder).eval()
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            done = model.generate(**inputs, output_scores=True, return_dict_in_generate=True)
        ids = done.sequences[0, 1:].tolist()
        log_probs = [
            torch.log_softmax(scores[0], -1)[i].item()
            for scores, i in zip(done.scores, ids, strict=True)
        ]
        found = {"inputs": inputs.input_ids[0].tolist(), "ids": ids, "log_prob": sum(log_probs)}
        print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
