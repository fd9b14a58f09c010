from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from vsfix.graph_passes.errors import DataError
from vsfix.pipeline.comparison.accuracy import accuracy_of, accuracy_row, right_answers
from vsfix.pipeline.data.samples import Samples


class Echo:
    """Returns its input as logits."""

    name = "echo"

    def run(self, inputs):
        return {"y": inputs["x"]}


def samples(labels: np.ndarray | None) -> Samples:
    return Samples("test", {"x": np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1, 2]]}, labels)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_accuracy_counts_right_answers_whatever_the_batch_size(batch_size):
    row = accuracy_of("m", Echo(), samples(np.array([0, 1, 2, 3, 1, 1, 3])), batch_size=batch_size)
    assert (row.score.value, row.score.count) == (pytest.approx(500 / 7), 5)
    assert row.score.low < 500 / 7 < row.score.high


def test_labels_are_needed():
    with pytest.raises(DataError, match="no labels"):
        accuracy_of("m", Echo(), samples(None), batch_size=4)


def test_logits_that_are_not_finite_are_no_right_answer():
    found = samples(np.zeros(7, dtype=np.int64))
    found.inputs["x"][0] = np.nan  # whose first maximum is class 0
    assert right_answers(Echo(), found, batch_size=3).tolist() == [False, False, False, False, True, False, False]


def test_a_repair_is_paired_with_the_model_as_trained():
    trained, repaired = np.array([True] * 5 + [False] * 25), np.array([False] + [True] * 20 + [False] * 9)
    assert accuracy_row("as trained", trained).p_value is None
    row = accuracy_row("paired", repaired, images=32, trained=trained)
    assert (row.score.count, row.p_value) == (20, pytest.approx(scipy.stats.binomtest(1, 17).pvalue, rel=1e-12))
