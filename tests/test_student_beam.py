"""A student in Apache Beam's RunInference; runs where Beam is installed."""

from pathlib import Path

import pytest
import student_maker

beam = pytest.importorskip("apache_beam", reason="Apache Beam is an extra of its own")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_run_inference_gives_what_the_student_gives(tmp_path: Path) -> None:
    from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
    from apache_beam.testing.util import assert_that, equal_to

    from dss_jax.student.load import load
    from dss_jax.student.run_inference import StudentModelHandler

    store = student_maker.make_store(tmp_path / "store")
    student_maker.make_student(tmp_path / "run", store)
    rows = [
        {"input": e.input, "allowed_labels": list(e.allowed_labels)}
        for e in student_maker.examples(20)
    ]
    handler = StudentModelHandler(str(tmp_path / "run"), batch_size=7)
    found = load(tmp_path / "run").predict(
        [row["input"] for row in rows], labels=[row["allowed_labels"] for row in rows]
    )
    assert len({one.label for one in found}) > 5, "it answers alike, so this test tells nothing"
    expected = [one.log_prob for one in found]
    with beam.Pipeline(runner="DirectRunner") as pipeline:
        results = (
            pipeline | beam.Create([*enumerate(rows)]) | RunInference(KeyedModelHandler(handler))
        )
        labels = results | beam.MapTuple(lambda key, x: (key, x.inference.label))
        near = results | "Near" >> beam.MapTuple(
            lambda key, x: abs(x.inference.log_prob - expected[key]) < 1e-3
        )
        assert_that(labels, equal_to([(n, one.label) for n, one in enumerate(found)]))
        assert_that(near, equal_to([True] * len(rows)), label="near")
