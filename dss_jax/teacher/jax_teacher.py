"""A T5-family teacher, for example Flan-T5: answers the same requests as a server, on our devices.

Prompts are sent in the completion form. T5's vocabulary has no line break (SentencePiece makes it
a space), so the teacher reads and writes everything in one line; the task's answer pattern is found
all the same, and what runs on is cut where the answer is read.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.t5_config import Sample
from dss_jax.data.ragged import Ragged
from dss_jax.evaluate.engine import Engine
from dss_jax.interop.open_model import open_model
from dss_jax.model.sampling import SampleSearch
from dss_jax.records.records import Reply
from dss_jax.teacher.asking import HOPELESS, ExtractionProgress, ExtractionRun
from dss_jax.teacher.journal import Request

PREFIX = "jax:"  # What a model's name begins with, where the rest is the path of a checkpoint.
BATCHES_AT_ONCE = 8  # Between two writes to the journal; they are sorted by length together.


class JaxTeacher:
    """Opens a checkpoint of Hugging Face, Orbax or T5X, and puts it on the devices.

    Args:
      name: "jax:CHECKPOINT".
      batch_size: prompts decoded at once, over all devices.
      input_length: longest prompt, in tokens; T5's relative positions set no limit of their own.
      dtype: of the activations.
      fsdp: devices over which the parameters are shared out; the others share the batch.
      vocabulary: SentencePiece file or tokenizer; None: the checkpoint's.

    Raises:
      UsageError: no such checkpoint, or no vocabulary.
    """

    def __init__(
        self,
        name: str,
        *,
        batch_size: int = 32,
        input_length: int = 2048,
        dtype: str = "float32",
        fsdp: int = 1,
        vocabulary: str | None = None,
    ) -> None:
        self.batch_size, self.input_length = batch_size, input_length
        opened = open_model(
            name.removeprefix(PREFIX),
            dtype=dtype,
            mesh=config.Mesh(fsdp=fsdp),
            vocabulary=vocabulary,
        )
        self.model, self.params, self.mesh, self.vocabulary, _ = opened

    def ask(self, requests: Iterable[Request], run: ExtractionRun) -> ExtractionProgress:
        """As `Teacher.ask`.

        Raises:
          UsageError: the first few prompts are all too long.
        """
        chunks = map(run.journal.claim, run.missing(requests))
        for request, reply in self.replies(itertools.chain.from_iterable(chunks)):
            run.keep(request, reply)
            done = run.progress
            if done.failed == HOPELESS and not (done.answered or done.reused):
                run.journal.flush()
                raise UsageError(f"the first {HOPELESS} rows were given up: {reply.refusal}")
        run.journal.flush()
        return run.progress

    def replies(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Reply]]:
        """Answers requests of one sampling setting, some batches at a time, in order.

        A sample depends on the request alone, so it is the same in whatever batch and order. One
        whose prompt is too long is given up.
        """
        requests = iter(requests)
        engine: Engine | None = None
        at_once = BATCHES_AT_ONCE * self.batch_size
        while some := list(itertools.islice(requests, at_once)):
            engine, end = engine or self._engine(some[0]), self.vocabulary.eos_id
            rows = [[*self.vocabulary.encode(r.body["prompt"]), end] for r in some]
            fitting = [i for i, row in enumerate(rows) if len(row) <= self.input_length]
            column = Ragged(
                np.array(list(itertools.chain.from_iterable(rows)), np.int32),
                np.cumsum([0, *map(len, rows)], dtype=np.int64),
            )
            # Of a key's 256 bits, 31 fit an int32: two equal ones would only share their draws.
            ids = np.array([int(some[i].key[:8], 16) & 0x7FFFFFFF for i in fitting], np.int32)
            decoded = engine(self.params, column, np.array(fitting, np.int64), ids=ids)
            tokens = dict(zip(fitting, decoded.tokens, strict=True))
            for i, (request, row) in enumerate(zip(some, rows, strict=True)):
                taken = tokens.get(i)
                yield request, self._too_long(row) if taken is None else self._reply(row, taken[0])

    def _engine(self, request: Request) -> Engine:
        body = request.body
        settings = Sample(
            temperature=float(body.get("temperature", 0.0)),
            top_p=float(body.get("top_p", 1.0)),
            top_k=int(body.get("top_k", 0)),
            # The sample's index is in the key, and the key chooses the draws.
            seed=int(body.get("seed", request.sample)) - request.sample,
        )
        return Engine(
            self.model,
            self.mesh,
            config.DEFAULT_LOGICAL_AXIS_RULES,
            SampleSearch(settings),
            max_decode_length=int(body.get("max_tokens") or body["max_completion_tokens"]),
            batch_size=self.batch_size,
            input_length=self.input_length,
        )

    def _reply(self, prompt: Sequence[int], tokens_T: np.ndarray) -> Reply:
        ends = np.flatnonzero(tokens_T == self.vocabulary.eos_id)
        return Reply(
            text=self.vocabulary.decode(tokens_T),
            finish_reason="stop" if len(ends) else "length",
            prompt_tokens=len(prompt),
            completion_tokens=int(ends[0]) + 1 if len(ends) else len(tokens_T),
        )

    def _too_long(self, prompt: Sequence[int]) -> Reply:
        return Reply.failure(
            f"the prompt has {len(prompt)} tokens, more than the {self.input_length} "
            "allowed. Show fewer examples (--exemplars), or raise --input_length."
        )
