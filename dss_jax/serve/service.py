"""One student, the thread that asks it, and what the routes need of both."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from starlette.requests import Request

from dss_jax.core.errors import UsageError
from dss_jax.core.method_config import JOINT
from dss_jax.core.student_card import StudentCard
from dss_jax.serve.batching import Batcher, NotServing, QueueFull
from dss_jax.serve.door import GONE
from dss_jax.serve.errors import ApiError
from dss_jax.serve.limits import ServeLimits
from dss_jax.serve.metrics import Meters
from dss_jax.student.student import WARM_UP, Completion, Prediction, Student


class Predicting(NamedTuple):
    """What rows of a batch of `Student.predict` have in common; a row is (input, labels)."""

    explain: bool


class Completing(NamedTuple):
    """The same of `Student.complete`; a row is a prompt."""

    max_tokens: int


@dataclass(frozen=True)
class Served:
    """What a server has been given.

    Attributes:
      name: of the model, for clients.
      token: what clients must show; "": nothing.
      hosts: see `door.Door`.
      warm_batches: whether the student is asked for batches of every size before it is ready.
    """

    student: Student
    name: str
    token: str = field(repr=False)
    hosts: tuple[str, ...]
    limits: ServeLimits
    warm_batches: bool = False


def shown_card(served: Served) -> StudentCard:
    """The student's card for clients: one that writes label and rationale in one text ranks no
    labels, so none are asked of it.
    """
    card = served.student.card
    if card.form not in JOINT:
        return card
    examples = tuple({**one, "allowed_labels": []} for one in card.examples)
    return replace(card, labels=(), row_labels=False, examples=examples)


class Service:
    """Asks the student for many requests at once."""

    def __init__(self, served: Served) -> None:
        self.served, self.card, self.limits = served, shown_card(served), served.limits
        self.meters = Meters()
        self.batcher = Batcher(
            self._answer,
            rows_at_once=served.limits.batch_size,
            max_waiting=served.limits.max_waiting,
            on_batch=self._counted,
        )
        self.meters.watch(lambda: self.batcher.waiting, lambda: self.ready)
        self.stopping = False
        """Whether new requests should go elsewhere."""
        self.taken = self.answered = self.withdrawn = 0
        """Requests for the student, those that were answered, and those whose clients have gone."""

    @property
    def ready(self) -> bool:
        return self.batcher.ready and not self.stopping

    def warm_up(self) -> None:
        """Loads and compiles what answers need."""
        counts = {*WARM_UP}
        if self.served.warm_batches:
            # An engine's shapes grow with a batch by powers of two.
            counts |= {2**k for k in range(self.limits.batch_size.bit_length())}
        self.served.student.warm_up(sorted(counts))

    def _answer(
        self, key: Predicting | Completing, rows: list[Any]
    ) -> Sequence[Prediction | Completion]:
        student = self.served.student
        if isinstance(key, Predicting):
            texts, labels = [text for text, _ in rows], [labels for _, labels in rows]
            self._check_labels(labels)
            return student.predict(texts, explain=key.explain, labels=labels)
        longest, prompts = self.card.input_length, student.encode(rows, cut=False)
        for ids in prompts:
            if len(ids) > longest:
                raise ApiError(
                    f"a prompt has {len(ids)} tokens, and the student reads {longest}",
                    param="prompt",
                    code="context_length_exceeded",
                )
        return student.complete_ids(prompts, key.max_tokens)

    def _check_labels(self, rows: Sequence[Sequence[str]]) -> None:
        """ApiError: those of a request are too long together, for what they take grows with the
        square of that. The student's own are not looked at.
        """
        most, own = self.limits.max_tokens, {*map(tuple, rows)} - {self.card.labels}
        distinct = [*dict.fromkeys(itertools.chain.from_iterable(own))]
        ids = dict(zip(distinct, self.served.student.label_ids(distinct), strict=True))
        for labels in own:
            count = sum(len(ids[label]) for label in labels)
            if count > most:
                text = f"the labels of an input have {count:,} tokens together; {most:,}"
                raise ApiError(f"{text} are allowed", param="labels", code="too_long")

    def _counted(self, key: Predicting | Completing, rows: int, seconds: float) -> None:
        kind = "complete" if isinstance(key, Completing) else "explain" if key.explain else "label"
        self.meters.batch(kind, rows, seconds)

    async def ask(
        self, request: Request, key: Predicting | Completing, rows: Sequence[Any]
    ) -> list[Any]:
        """The student's answers to rows; nothing is asked for a client that hangs up before.

        Raises:
          ApiError: there are too many, the student has failed, or the client has gone.
          QueueFull, NotServing, UsageError: as `Batcher.ask`.
        """
        if len(rows) > self.limits.max_waiting:
            text = f"at most {self.limits.max_waiting} rows can wait, not {len(rows)}"
            raise ApiError(text, status=413, code="too_many")
        self.taken += 1
        asked = asyncio.ensure_future(self.batcher.ask(key, rows))
        gone = asyncio.ensure_future(_hung_up(request))
        try:
            await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                self.withdrawn += 1
                raise ApiError("the client has gone", status=GONE)
            found = asked.result()
        except (UsageError, QueueFull, NotServing):
            raise
        except Exception as error:
            text = "the student has failed; the server's log says why"
            raise ApiError(text, status=500, code="failed") from error
        finally:
            self.answered += asked.done()
            for task in (asked, gone):
                task.cancel()
        return found


async def _hung_up(request: Request) -> None:
    """Returns when a client has gone; its body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
