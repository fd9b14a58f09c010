from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError
from vsfix.pipeline.accuracy import accuracy_of
from vsfix.pipeline.calibration import Samples


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
    assert row.accuracy == 5 / 7
    assert row.low < 5 / 7 < row.high


def test_labels_are_needed():
    with pytest.raises(DataError, match="no labels"):
        accuracy_of("m", Echo(), samples(None), batch_size=4)
