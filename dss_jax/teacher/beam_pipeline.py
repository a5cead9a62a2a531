"""Stage 1 as an Apache Beam pipeline, for many machines: the same requests, the same records.

Beam spreads batches of rows over workers; each goes through a `ServerTeacher` with a journal on the
worker's own disk. A batch that Beam repeats on that machine asks only for what is missing; one that
moves to another machine is asked again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam

from dss_jax.core.types import Example
from dss_jax.records.files import header_line, record_line
from dss_jax.records.records import Header, Record
from dss_jax.teacher.asking import ExtractionRun, SendOptions, ServerTeacher
from dss_jax.teacher.client import Client
from dss_jax.teacher.extraction import Extraction, answered
from dss_jax.teacher.journal import Journal


@beam.ptransform_fn
def AskTeacher(  # noqa: N802
    rows: beam.PCollection,
    make_extraction: Callable[[], Extraction],
    make_client: Callable[[], Client],
    journal: str,
    options: SendOptions | None = None,
    batch_size: int = 512,
) -> beam.PCollection:
    """Rows (`Example`) -> records (`Record`), in no order.

    Args:
      rows: are spread over the workers.
      make_extraction, make_client: are called on each worker, which needs a task file of the user's
        and the key in its environment: neither a task nor a key is sent to a worker.
      journal: path of the SQLite file, on the local disk of a worker.
      options: how to send, of one worker; `concurrency` holds for each batch under way.
      batch_size: rows a batch. Connections are opened once a batch, so some hundreds.
    """
    return (
        rows
        # Else the rows would be asked about where they were read, which is one machine.
        | "Spread" >> beam.Reshuffle()
        | "Batch" >> beam.BatchElements(min_batch_size=batch_size, max_batch_size=batch_size)
        | "Ask" >> beam.ParDo(_Ask(make_extraction, make_client, journal, options or SendOptions()))
    )


@dataclass(eq=False)
class _Ask(beam.DoFn):
    make_extraction: Callable[[], Extraction]
    make_client: Callable[[], Client]
    journal: str
    options: SendOptions

    def setup(self) -> None:
        """Loads the task, once a worker."""
        self.extraction = self.make_extraction()
        self.reached = False

    def process(self, batch: Sequence[Example]) -> Iterator[Record]:
        """Asks about the rows of a batch; a `TeacherUnavailable` ends the pipeline."""
        # Opened here: Beam may call `setup` and `process` in threads of their own, and neither an
        # SQLite connection nor an event loop may change threads.
        with Journal(self.journal) as journal:
            teacher = ServerTeacher(self.make_client(), self.options)
            teacher.reached = self.reached
            teacher.ask(self.extraction.requests(batch), ExtractionRun(journal))
            self.reached = True
            yield from (record for record, _ in answered(self.extraction, batch, journal))


@beam.ptransform_fn
def WriteRecords(  # noqa: N802
    records: beam.PCollection, prefix: str, header: Header, shards: int = 0
) -> beam.PCollection:
    """Records -> record files `PREFIX-00000-of-0000N.jsonl`, for `dss records merge`.

    Args:
      records: one line each.
      prefix: path, with Beam's file systems (gs://, s3://, hdfs://) where they are installed.
      header: of each file; without totals, which are known only at the end. Merging counts rows.
      shards: number of files; 0: as many as Beam likes, which on one machine may be one.
    """
    write = beam.io.WriteToText(
        prefix,
        file_name_suffix=".jsonl",
        num_shards=shards,
        append_trailing_newlines=False,
        coder=beam.coders.BytesCoder(),
        header=header_line(header).decode(),
    )
    return records | "Line" >> beam.Map(record_line) | "Write" >> write
