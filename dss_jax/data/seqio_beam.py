"""Makes a token store with Apache Beam: as `seqio_prepare` makes it, on many machines.

Runs in a child process: it imports TensorFlow. The parts' rows go to the workers through files, and
their columns come back through files; then one machine puts them together. Rows are pickled, so the
pipeline itself tells the workers their digests: who can write to the files can run no code.
"""

import hashlib
import io
import logging
import pickle
import tempfile
from collections.abc import Mapping
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from dss_jax.data import seqio_prepare
from dss_jax.data.ragged import Ragged

log = logging.getLogger(__name__)

# The bytes are not to be compressed, whatever a runner makes of a name's end.
_PLAIN = CompressionTypes.UNCOMPRESSED


def answer(request: Mapping[str, Any]) -> None:
    """Makes the store that a request describes: as for `seqio_prepare.make`, and in `beam` its
    `pipeline_options` (one a string), `temp_dir` (that all workers can write to; None: a local
    one) and `rows` (of a part).
    """
    wanted = request["beam"]

    def run(
        tokenise: seqio_prepare.Tokenise, parts: seqio_prepare.Parts
    ) -> dict[str, list[_Written]]:
        written: dict[str, list[_Written]] = {split: [] for split in parts}
        every = []
        for split, own in parts.items():
            for number, part in enumerate(own):
                name = FileSystems.join(folder, f"{split}-{number:06}")
                _write(f"{name}.rows", content := pickle.dumps(part))
                every.append((name, hashlib.sha256(content).hexdigest()))
                written[split].append(_Written(name))
        log.info(f"  Apache Beam: {len(every)} parts")
        with beam.Pipeline(options=PipelineOptions(wanted["pipeline_options"])) as pipeline:
            # Without a reshuffle all of them would be done where they were made.
            names = pipeline | beam.Create(every) | beam.Reshuffle()
            names | beam.ParDo(_Tokenise(tokenise))
        return written

    with tempfile.TemporaryDirectory(prefix="dss-beam-") as local:
        folder = FileSystems.join(wanted["temp_dir"] or local, f"dss-{request['key'][:16]}")
        if not FileSystems.exists(folder):
            FileSystems.mkdirs(folder)
        try:
            seqio_prepare.make(request, run, wanted["rows"])
        finally:
            FileSystems.delete([folder])


class _Tokenise(beam.DoFn):
    """Reads a part's rows, and writes its columns as one file."""

    def __init__(self, tokenise: seqio_prepare.Tokenise) -> None:
        self._tokenise = tokenise

    def process(self, part: tuple[str, str]) -> None:
        """Writes the file; a part that Beam repeats writes the same again. RuntimeError: its rows
        are not those that were written.
        """
        name, digest = part
        content = _read(f"{name}.rows")
        if hashlib.sha256(content).hexdigest() != digest:
            raise RuntimeError(f"{name}.rows was changed by others: it is not unpickled.")
        arrays: dict[str, Any] = {}
        for column, ragged in self._tokenise(pickle.loads(content)).items():
            arrays |= {f"{column}.values": ragged.values, f"{column}.offsets": ragged.offsets}
        columns = io.BytesIO()
        np.savez(columns, **arrays)
        _write(f"{name}.npz", columns.getvalue())


class _Written:
    """A part's columns in their file, of which only what is asked for is read."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, column: str) -> Ragged:
        with FileSystems.open(f"{self.name}.npz", compression_type=_PLAIN) as file:
            arrays = np.load(file)
            return Ragged(arrays[f"{column}.values"], arrays[f"{column}.offsets"])


def _read(name: str) -> bytes:
    with FileSystems.open(name, compression_type=_PLAIN) as file:
        content: bytes = file.read()
    return content


def _write(name: str, content: bytes) -> None:
    with FileSystems.create(name, compression_type=_PLAIN) as file:
        file.write(content)
