"""A trained student as Python sees it: texts in, labels with probabilities and rationales out.

Neither JAX nor TensorFlow is imported here: an engine of `dss_jax.student` does the arithmetic.
"""

import html
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from dss_jax.core.errors import Diverged, UsageError
from dss_jax.core.method_config import JOINT
from dss_jax.core.scoring import normal_text
from dss_jax.core.student_card import StudentCard
from dss_jax.data.joint import label_in, rationale_in
from dss_jax.data.tokenizer import Tokenizer

Ids = Sequence[int]

WARM_UP = (1, 4, 16, 64)
"""Inputs of a warm-up: the sizes of batches that engines compile for."""


class GeneratedIds(NamedTuple):
    """What an engine wrote for an input.

    Attributes:
      ids: without `</s>`.
      log_prob: the model's, of the ids, and of `</s>` where it ended.
      ended: whether `</s>` came within the longest output.
    """

    ids: list[int]
    log_prob: float
    ended: bool


class StudentEngine(Protocol):
    """What does a student's arithmetic. Inputs are ids that end with `</s>`, of any number, in any
    order of lengths; results are in their order. Calls come from one thread at a time.
    """

    name: str

    def generate(self, inputs: Sequence[Ids], longest: int) -> list[GeneratedIds]:
        """The most likely token at each position, at most `longest`, `</s>` included."""

    def rank(self, inputs: Sequence[Ids], labels: Sequence[Sequence[Ids]]) -> list[np.ndarray]:
        """Of each input, the log-probability of each of its labels and `</s>` after it: float32
        [labels of the row]. Labels are given without `</s>`; no row is without labels.
        """


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A student's answer to an input.

    Attributes:
      label: the most probable of the allowed labels; where any text may be, what was written.
      probability: of the label, over the allowed ones; None where any text may be.
      log_prob: the model's, of the label as a text.
      probabilities: of each allowed label, in the order in which they were given; {} where any text
        may be.
      rationale: None where it was not asked for.
    """

    input: str
    label: str
    probability: float | None
    log_prob: float
    probabilities: Mapping[str, float] = field(default_factory=dict)
    rationale: str | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Text that a student wrote after a prompt, without its prefix; `finish_reason` is "stop" or
    "length", and `log_prob` that of all its tokens.
    """

    text: str
    log_prob: float
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str


class Predictions(list[Prediction]):
    """Predictions in the order of the inputs; a notebook shows them as a table."""

    def _repr_html_(self) -> str:
        explained = any(one.rationale is not None for one in self)
        names = ["input", "label", "probability", *(["rationale"] if explained else [])]
        rows = ["".join(f"<th>{name}</th>" for name in names)]
        for one in self:
            sure = "" if one.probability is None else f"{one.probability:.3f}"
            cells = [one.input, one.label, sure, *([one.rationale or ""] if explained else [])]
            style = "text-align:left;white-space:pre-wrap"
            rows.append("".join(f'<td style="{style}">{html.escape(c)}</td>' for c in cells))
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


class Student:
    """A student that can be asked. `dss_jax.load` opens one.

    Attributes:
      card: what it was trained for.
      folder: where it was read from.
      engine: name of what does the arithmetic: "jax" or "ctranslate2".
      origin: which parameters these are.
    """

    def __init__(
        self, card: StudentCard, engine: StudentEngine, vocabulary: Tokenizer, folder: Path
    ) -> None:
        self.card, self.folder = card, folder
        # An engine says which of several checkpoints it has.
        self.engine, self.origin = engine.name, str(getattr(engine, "origin", folder))
        self._engine, self._vocabulary = engine, vocabulary
        self._known_labels: dict[str, list[int]] = {}

    def __repr__(self) -> str:
        return f"Student({self.card.task!r}, {str(self.folder)!r}, engine={self.engine!r})"

    def predict(
        self,
        inputs: Sequence[str] | str,
        *,
        explain: bool = False,
        labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
    ) -> Predictions:
        """Labels of inputs, in their order.

        Args:
          inputs: texts as the task file's `Example.input` has them, without a prefix; one text is a
            list of one. For method `rationale_input`, "INPUT</s>RATIONALE".
          explain: whether the student shall give its rationales too.
          labels: the allowed labels: of all inputs (["yes", "no"]), or of each ([["a", "b"], ...]);
            () for a row is any text. None: the card's.

        Raises:
          UsageError: there is no rationale to give, or the labels do not go with inputs, student
            or vocabulary.
          Diverged: what it gives is no number.
        """
        card = self.card
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        if explain and not card.explains:
            raise UsageError(
                f"{self.folder}: this student (method {card.method or 'unknown'}) was not trained "
                "to give rationales. Leave --explain (explain=True) out, or train one with "
                "--method dss."
            )
        allowed = self._allowed(labels, len(texts))
        ids = self.encode(texts, card.label_prefix)
        if card.form in JOINT:
            return Predictions(self._joint(texts, ids, explain))
        found = self._labels(texts, ids, allowed)
        if explain:
            assert card.rationale_prefix is not None
            asked = self.encode(texts, card.rationale_prefix)
            written = self._write(asked, card.max_rationale_length)
            rationales = [self._vocabulary.decode(one.ids) for one in written]
            found = [replace(one, rationale=r) for one, r in zip(found, rationales, strict=True)]
        return Predictions(found)

    def complete(self, prompts: Sequence[str], max_tokens: int) -> list[Completion]:
        """Goes on after each prompt as it stands, token by token the most likely one.

        Args:
          prompts: whole texts, prefix included; `</s>` in one is the end-of-sequence id, and one
            longer than the card's `input_length` is cut.
          max_tokens: of an answer, end-of-sequence included.
        """
        return self.complete_ids(self.encode(prompts), max_tokens)

    def complete_ids(self, ids: Sequence[Ids], max_tokens: int) -> list[Completion]:
        """The same of prompts that `encode` has made."""
        written = self._write(ids, max_tokens)
        return [
            Completion(
                text=self._vocabulary.decode(one.ids),
                log_prob=one.log_prob,
                prompt_tokens=len(prompt),
                completion_tokens=len(one.ids) + one.ended,
                finish_reason="stop" if one.ended else "length",
            )
            for prompt, one in zip(ids, written, strict=True)
        ]

    def encode(
        self, texts: Sequence[str], prefix: str = "", *, cut: bool = True
    ) -> list[list[int]]:
        """Ids of inputs after a prefix, as the student was trained on them: `</s>` inside is the
        end-of-sequence id, and one more is at the end. Where they are `cut`, to the card's
        `input_length`, they end with it too.
        """
        parts, end = [self._vocabulary.parts(prefix + t) for t in texts], self._vocabulary.eos_id
        encoded = iter(self._vocabulary.encode_all([one for row in parts for one in row]))
        rows = [[i for _ in row for i in (*next(encoded), end)] for row in parts]
        longest = self.card.input_length
        if not cut:
            return rows
        return [row if len(row) <= longest else [*row[: longest - 1], end] for row in rows]

    def label_ids(self, labels: Sequence[str]) -> list[list[int]]:
        """Ids of labels, without `</s>`. Those of the last call are known: a server bounds labels
        before they are ranked, and the card's are the same at each call.
        """
        known = self._known_labels
        if new := [label for label in dict.fromkeys(labels) if label not in known]:
            known = known | dict(zip(new, self._vocabulary.encode_all(new), strict=True))
            self._known_labels = {label: known[label] for label in labels}
        return [known[label] for label in labels]

    def warm_up(self, counts: Iterable[int] = WARM_UP) -> None:
        """Loads and compiles what `predict` needs for inputs like the card's examples, of each of
        these counts, so that the first answer waits for nothing.
        """
        examples = self.card.examples or ({"input": "?"},)
        for count in counts:
            some = [*itertools.islice(itertools.cycle(examples), count)]
            labels = [self.card.labels or one.get("allowed_labels", ()) for one in some]
            self.predict(
                [one["input"] for one in some],
                explain=self.card.explains,
                labels=None if self.card.form in JOINT else labels,
            )

    def _allowed(
        self, labels: Sequence[str] | Sequence[Sequence[str]] | None, count: int
    ) -> list[tuple[str, ...]]:
        """The distinct allowed labels of each of `count` inputs."""
        joint = self.card.form in JOINT
        given = () if joint and labels is None else self.card.labels if labels is None else labels
        if isinstance(given, str):
            raise UsageError(f"labels must be a list of texts, not the text {given!r}.")
        rows = [given] * count if all(isinstance(one, str) for one in given) else [*given]
        if len(rows) != count:
            raise UsageError(
                f"labels are {len(rows)} lists for {count} inputs. Give one list of texts for all, "
                "or a list for each."
            )
        for number, row in enumerate(rows):
            if isinstance(row, str) or not all(isinstance(one, str) and one for one in row):
                raise UsageError(
                    f"the labels of input {number} must be a list of texts, none of them empty, "
                    f"not {row!r}."
                )
            if joint and row:
                raise UsageError(
                    f"{self.folder}: this student writes label and rationale in one text (method "
                    f"{self.card.method}), so its labels cannot be ranked. Leave them out."
                )
        return [tuple(dict.fromkeys(row)) for row in rows]  # type: ignore[arg-type]

    def _labels(
        self, texts: Sequence[str], ids: Sequence[Ids], allowed: Sequence[tuple[str, ...]]
    ) -> list[Prediction]:
        closed = [n for n, labels in enumerate(allowed) if labels]
        found: dict[int, Prediction] = {}
        if closed:
            distinct = [*dict.fromkeys(label for n in closed for label in allowed[n])]
            of = dict(zip(distinct, self.label_ids(distinct), strict=True))
            for row in dict.fromkeys(allowed[n] for n in closed):
                self._check_apart({label: of[label] for label in row})
            labels = [[of[label] for label in allowed[n]] for n in closed]
            scores = self._engine.rank([ids[n] for n in closed], labels)
            for n, log_probs in zip(closed, scores, strict=True):
                found[n] = _ranked(texts[n], allowed[n], np.asarray(log_probs, np.float64))
            self._check_numbers(one.log_prob for one in found.values())
        free = [n for n, labels in enumerate(allowed) if not labels]
        if free:
            longest = self.card.max_decode_length
            written = self._write([ids[n] for n in free], longest)
            for n, one in zip(free, written, strict=True):
                label = self._vocabulary.decode(one.ids)
                found[n] = Prediction(
                    input=texts[n], label=label, probability=None, log_prob=one.log_prob
                )
        return [found[n] for n in range(len(texts))]

    def _write(self, ids: Sequence[Ids], longest: int) -> list[GeneratedIds]:
        written = self._engine.generate(ids, longest)
        self._check_numbers(one.log_prob for one in written)
        return written

    def _check_numbers(self, log_probs: Iterable[float]) -> None:
        if any(one != one for one in log_probs):
            raise Diverged(
                f"{self.folder}: what this student gives is no number (NaN): its parameters are "
                "damaged. Convert or train it again."
            )

    def _check_apart(self, labels: Mapping[str, Ids]) -> None:
        """Raises UsageError where two labels of a row have the same ids, as where the vocabulary
        lacks their characters: the first would always be the more probable.
        """
        seen: dict[Ids, str] = {}
        for label, ids in labels.items():
            other = seen.setdefault(tuple(ids), label)
            if other is not label and normal_text(other) != normal_text(label):
                raise UsageError(
                    f"the labels {other!r} and {label!r} are one to this student, whose vocabulary "
                    f"writes both {self._vocabulary.decode(ids)!r}. Give other labels, or ask a "
                    "student whose vocabulary has their characters."
                )

    def _joint(
        self, texts: Sequence[str], ids: Sequence[Ids], explain: bool
    ) -> Iterator[Prediction]:
        form, longest = self.card.form, self.card.max_decode_length + self.card.max_rationale_length
        written = self._write(ids, longest)
        for text, one in zip(texts, written, strict=True):
            whole = self._vocabulary.decode(one.ids)
            yield Prediction(
                input=text,
                label=label_in(whole, form),
                probability=None,
                log_prob=one.log_prob,
                rationale=rationale_in(whole, form) if explain else None,
            )


def _ranked(text: str, labels: Sequence[str], log_probs: np.ndarray) -> Prediction:
    best = int(np.argmax(log_probs))
    shares = np.exp(log_probs - log_probs[best])
    probabilities = dict(zip(labels, map(float, shares / shares.sum()), strict=True))
    return Prediction(
        input=text,
        label=labels[best],
        probability=probabilities[labels[best]],
        log_prob=float(log_probs[best]),
        probabilities=probabilities,
    )
