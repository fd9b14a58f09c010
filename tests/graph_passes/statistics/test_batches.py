from __future__ import annotations

import numpy as np

from vsfix.graph_passes.statistics.batches import count_samples, cut_batches, first_samples, samples_in

SET = [{"x": np.arange(3), "flag": np.array(True)}, {"x": np.arange(3, 7), "flag": np.array(True)}]


def values(batches) -> list[list[int]]:
    return [batch["x"].tolist() for batch in batches]


def test_samples_are_counted_along_the_batch_axis():
    assert samples_in({"flag": np.array(True), "x": np.zeros((5, 2))}) == 5
    assert count_samples(SET) == 7


def test_the_first_samples_are_cut_across_batches():
    assert values(first_samples(SET, 5)) == [[0, 1, 2], [3, 4]]
    assert values(first_samples(SET, 3)) == [[0, 1, 2]]
    assert values(first_samples(SET, 70)) == values(SET)


def test_cut_batches_hold_the_same_samples_and_whole_flags():
    cut = list(cut_batches(SET, 2))
    assert values(cut) == [[0, 1], [2], [3, 4], [5, 6]]
    assert all(batch["flag"] for batch in cut)


def test_whole_batches_are_taken_where_the_graph_prescribes_its_batch():
    assert values(first_samples(SET, 4, whole=True)) == values(SET)
    assert values(first_samples(SET, 2, whole=True)) == [[0, 1, 2]]
