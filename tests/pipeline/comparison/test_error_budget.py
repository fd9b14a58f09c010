from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError
from vsfix.pipeline.comparison.error_budget import StageOutputs, error_budget, holds_logits, pair_outputs
from vsfix.pipeline.comparison.tensor_comparison import compare_tensors


def chain(*factors):
    logits = np.random.default_rng(0).normal(size=(30, 5))
    image = np.random.default_rng(1).normal(size=(30, 2, 3))
    return [StageOutputs(f"step {i}", f"stage {i}", {"y": logits * f, "z": image}) for i, f in enumerate(factors)]


def test_each_step_is_held_against_the_one_before_and_not_against_the_first():
    stages = chain(1, 1.1, 1.1, 1.1 * 1.001)
    steps = error_budget(stages, None, decide=True)
    assert [step.step for step in steps] == ["step 1", "step 2", "step 3"]
    for step, (before, after) in zip(steps, pairwise(stages), strict=True):
        wanted = compare_tensors(before.outputs["y"], after.outputs["y"])
        assert (step.snr_db, step.max_rel) == (wanted.snr_db, wanted.max_rel)
        assert (step.source, step.target) == (before.name, after.name)


def test_the_accuracy_is_that_behind_the_step():
    stages = chain(1, -1)
    labels = stages[0].outputs["y"].argmax(axis=1)
    (step,) = error_budget(stages, labels, decide=True)
    assert (step.agreement, step.accuracy) == (0, 0)
    (step,) = error_budget(stages[::-1], labels, decide=True)
    assert step.accuracy == 1


def test_where_nothing_is_decided_there_are_numbers_only():
    (step,) = error_budget(chain(1, 2), None, decide=False)
    assert (step.agreement, step.accuracy) == (None, None)


def test_stages_with_other_outputs_are_refused():
    stages = [*chain(1), StageOutputs("cast", "other", {"y": np.ones((30, 5))})]
    with pytest.raises(DataError, match="other: has the outputs y, the reference y, z"):
        error_budget(stages, None, decide=False)


def test_nan_counts_in_the_step_in_which_it_appears_or_goes():
    y = np.array([[1.0, 2.0], [3.0, 4.0]])
    broken = np.where(y == 2, np.nan, y)
    stages = [StageOutputs("", str(index), {"y": found}) for index, found in enumerate((y, broken, broken, y))]
    steps = error_budget(stages, np.array([1, 1]), decide=True)
    assert [step.snr_db for step in steps] == [-math.inf, math.inf, -math.inf]
    assert [step.agreement for step in steps] == [0.5, None, None]


def test_whole_numbers_are_no_logits():
    assert holds_logits(np.zeros((3, 5), np.float16))
    assert not holds_logits(np.zeros((3, 5), np.int64))


@pytest.mark.parametrize("shape", [(3, 1), (3,), (3, 5, 2)])
def test_one_value_for_each_sample_and_maps_are_no_logits(shape):
    assert not holds_logits(np.zeros(shape, np.float32))


def test_outputs_are_paired_by_name_whatever_their_order_and_else_by_position():
    a, b, c, d = (np.full(2, value) for value in (1.0, 2.0, 3.0, 4.0))
    by_name = pair_outputs({"y": a, "z": b}, {"z": d, "y": c}, "other")
    by_position = pair_outputs({"y": a, "z": b}, {"p": c, "y": d}, "other")
    assert {name: (left[0], right[0]) for name, (left, right) in by_name.items()} == {"z": (2, 4), "y": (1, 3)}
    assert {name: (left[0], right[0]) for name, (left, right) in by_position.items()} == {"p": (1, 3), "y": (2, 4)}
