"""A student in Apache Beam: predictions on many machines, by Beam's own RunInference. Imports Beam.

Each worker opens the student once, from a folder that all of them can read (gs://, s3://).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from dss_jax.data.rows import Located
from dss_jax.student.load import load
from dss_jax.student.predict import PredictJob, answers, asked
from dss_jax.student.student import Student
from dss_jax.student.tables import INPUT


class StudentModelHandler(ModelHandler):
    """Opens a student on each worker, and asks it about batches of rows.

    An element is a text, or a row (a mapping of columns to values) as `dss predict` reads it: with
    a column `input`, and `allowed_labels` where rows have their own. It gives a `PredictionResult`,
    whose `inference` is a `dss_jax.student.student.Prediction`. In a `KeyedModelHandler`, elements
    have keys.

    Args:
      folder, engine, threads, checkpoint, dtype: see `dss_jax.load`.
      explain: whether rationales are wanted.
      input_column: of rows, whose texts are read.
      batch_size: elements at once, at most; they are sorted by length together.
    """

    def __init__(
        self,
        folder: str,
        *,
        engine: str | None = None,
        threads: int | None = None,
        checkpoint: str | None = None,
        dtype: str | None = None,
        explain: bool = False,
        input_column: str | None = None,
        batch_size: int = 256,
    ) -> None:
        super().__init__(max_batch_size=batch_size)
        self._folder = folder
        self._options: dict[str, Any] = {"engine": engine, "threads": threads, "dtype": dtype}
        self._options["checkpoint"] = checkpoint
        self._job = PredictJob(input="", out="", input_column=input_column, explain=explain)

    def load_model(self) -> Student:
        """Opens the student, once a worker."""
        return load(self._folder, **self._options)

    def run_inference(
        self,
        batch: Sequence[Mapping[str, Any] | str],
        model: Student,
        inference_args: dict[str, Any] | None = None,
    ) -> list[PredictionResult]:
        """The predictions of a batch, in its order."""
        job = self._job
        rows = [{job.input_column or INPUT: one} if isinstance(one, str) else one for one in batch]
        every = [asked(Located(where="an element", row=row), job, model.card) for row in rows]
        pairs = zip(batch, answers(model, every, job.explain), strict=True)
        return [PredictionResult(element, found, model.origin) for element, found in pairs]
