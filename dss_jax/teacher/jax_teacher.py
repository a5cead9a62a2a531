"""A T5-family teacher, for example Flan-T5: answers the same requests as a server, on our devices.

Prompts are sent in the completion form. T5's vocabulary has no line break (SentencePiece makes it
a space), so the teacher reads and writes everything in one line; the task's answer pattern is found
all the same, and what runs on is cut where the answer is read.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dss_jax.core import config
from dss_jax.core.decode_config import Sample
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import EOS_ID
from dss_jax.data.store import Ragged
from dss_jax.data.vocabulary import T5_PUBLIC, SentencePiece, resolve
from dss_jax.evaluate.engine import Engine
from dss_jax.interop.formats import read_weights
from dss_jax.interop.model_files import vocabulary_size
from dss_jax.interop.weights import flat, nested
from dss_jax.model.sampling import SampleSearch
from dss_jax.model.t5 import T5
from dss_jax.records.records import Reply
from dss_jax.teacher.extract import CHUNK, HOPELESS, Summary
from dss_jax.teacher.jobs import Job
from dss_jax.teacher.journal import GIVEN_UP, Journal
from dss_jax.train.compile import keep_compiled_code
from dss_jax.train.sharding import make_mesh, param_shardings

PREFIX = "jax:"
"""What a model's name begins with, where the rest is the path of a checkpoint."""

BATCHES_AT_ONCE = 8
"""Batches of requests between two writes to the journal; they are sorted by length together."""


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """How the teacher runs.

    Attributes:
      batch_size: prompts decoded at once, over all devices.
      input_length: longest prompt, in tokens; T5's relative positions set no limit of their own.
      dtype: of the activations.
      fsdp: devices over which the parameters are shared out; the others share the batch.
      vocabulary: SentencePiece file, where the checkpoint has none; None: the checkpoint's.
    """

    batch_size: int = 32
    input_length: int = 2048
    dtype: str = "float32"
    fsdp: int = 1
    vocabulary: str | None = None


class JaxTeacher:
    """Opens a checkpoint of Hugging Face, Orbax or T5X, and puts it on the devices.

    Args:
      name: "jax:CHECKPOINT".
      options: how it runs.

    Raises:
      UsageError: no such checkpoint, or no vocabulary.
    """

    def __init__(self, name: str, options: TeacherOptions) -> None:
        self.options = options
        weights = read_weights(name.removeprefix(PREFIX))
        file = options.vocabulary or weights.vocabulary
        if file is None:
            raise UsageError(
                f"{weights.origin} has no SentencePiece file beside it (spiece.model). Give it "
                f"with --vocabulary FILE; T5's public one is {T5_PUBLIC}."
            )
        path = resolve(str(file))
        vocabulary_size(path, weights.extra_ids, weights.config, weights.origin)
        self.vocabulary = SentencePiece(path, weights.extra_ids)
        self.model = T5(dataclasses.replace(weights.config, dtype=options.dtype))
        keep_compiled_code()
        self.mesh = make_mesh(config.Mesh(fsdp=options.fsdp))
        one = jnp.ones((1, 2), jnp.int32)
        boxed = jax.eval_shape(lambda: self.model.init(jax.random.key(0), one, one))["params"]
        places = flat(param_shardings(boxed, self.mesh, config.DEFAULT_LOGICAL_AXIS_RULES))
        params = {}
        for parameter, leaf in weights.leaves.items():
            # Onto the devices as it is read, so that the host holds one at a time.
            value = leaf.read()
            params[parameter] = jax.make_array_from_callback(
                leaf.shape, places[parameter], value.__getitem__
            )
        self.params = nested(params)

    def replies(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Reply]]:
        """Answers requests of one sampling setting, some batches at a time, in order.

        A sample depends on the request alone, so it is the same in whatever batch and order. One
        whose prompt is too long is given up.
        """
        jobs = iter(jobs)
        engine: Engine | None = None
        while some := list(itertools.islice(jobs, BATCHES_AT_ONCE * self.options.batch_size)):
            engine = engine or self._engine(some[0])
            rows = [[*self.vocabulary.encode(job.body["prompt"]), EOS_ID] for job in some]
            fitting = [i for i, row in enumerate(rows) if len(row) <= self.options.input_length]
            column = Ragged(
                np.array(list(itertools.chain.from_iterable(rows)), np.int32),
                np.cumsum([0, *map(len, rows)], dtype=np.int64),
            )
            # Of a key's 256 bits, 31 fit an int32: two equal ones would only share their draws.
            ids = np.array([int(some[i].key[:8], 16) & 0x7FFFFFFF for i in fitting], np.int32)
            decoded = engine(self.params, column, np.array(fitting, np.int64), ids=ids)
            tokens = dict(zip(fitting, decoded.tokens, strict=True))
            for i, (job, row) in enumerate(zip(some, rows, strict=True)):
                yield job, self._reply(row, tokens[i][0]) if i in tokens else self._too_long(row)

    def _engine(self, job: Job) -> Engine:
        body = job.body
        settings = Sample(
            temperature=float(body.get("temperature", 0.0)),
            top_p=float(body.get("top_p", 1.0)),
            top_k=int(body.get("top_k", 0)),
            # The sample's index is in the key, and the key chooses the draws.
            seed=int(body.get("seed", job.sample)) - job.sample,
        )
        return Engine(
            self.model, self.mesh, config.DEFAULT_LOGICAL_AXIS_RULES, SampleSearch(settings),
            max_decode_length=_max_tokens(body), batch_size=self.options.batch_size,
            input_length=self.options.input_length,
        )  # fmt: skip

    def _reply(self, prompt: Sequence[int], tokens_T: np.ndarray) -> Reply:
        ends = np.flatnonzero(tokens_T == EOS_ID)
        return Reply(
            text=self.vocabulary.decode(tokens_T),
            finish_reason="stop" if len(ends) else "length",
            prompt_tokens=len(prompt),
            completion_tokens=int(ends[0]) + 1 if len(ends) else len(tokens_T),
        )

    def _too_long(self, prompt: Sequence[int]) -> Reply:
        return Reply(
            text="",
            finish_reason=GIVEN_UP,
            refusal=f"the prompt has {len(prompt)} tokens, more than the "
            f"{self.options.input_length} allowed. Show fewer examples (--exemplars), or raise "
            "--input_length.",
        )


def ask(
    teacher: JaxTeacher,
    jobs: Iterable[Job],
    journal: Journal,
    progress: Callable[[Summary], None] | None = None,
    *,
    only_failed: bool = False,
) -> Summary:
    """Answers every job that the journal has no reply to, and keeps each as it comes.

    Args:
      teacher: answers.
      jobs: requests of one sampling setting.
      journal: gets the replies.
      progress: called after each reply.
      only_failed: only those that were asked before and given up.

    Raises:
      UsageError: the first few prompts are all too long.
    """
    summary, started = Summary(), time.monotonic()

    def missing() -> Iterator[Job]:
        rest = iter(jobs)
        while chunk := list(itertools.islice(rest, CHUNK)):
            found = journal.missing(chunk, only_failed=only_failed)
            summary.reused += len(chunk) - len(found)
            yield from journal.claim(found)

    for job, reply in teacher.replies(missing()):
        journal.put(job, reply)
        if reply.finish_reason == GIVEN_UP:
            summary.failed += 1
            summary.reasons[reply.refusal] = summary.reasons.get(reply.refusal, 0) + 1
            if summary.failed == HOPELESS and not (summary.answered or summary.reused):
                journal.flush()
                raise UsageError(f"the first {HOPELESS} rows were given up: {reply.refusal}")
        else:
            summary.answered += 1
        summary.prompt_tokens += reply.prompt_tokens
        summary.completion_tokens += reply.completion_tokens
        summary.seconds = time.monotonic() - started
        if progress is not None:
            progress(summary)
    journal.flush()
    return summary


def _max_tokens(body: Mapping[str, Any]) -> int:
    return int(body.get("max_tokens") or body["max_completion_tokens"])
