from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from vsfix.graph_passes.errors import DataError
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.repair.label_judge import LabelJudge, cross_fitted

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


@pytest.fixture
def model(parse):
    return parse("(float[N, 3] x) => (float[N, 3] y) { y = MatMul (x, w) }", {"w": np.eye(3, dtype=np.float32)})


def judge_of(labels, open_model) -> LabelJudge:
    return LabelJudge(Samples("labelled", {"x": X}, labels), open_model, batch_size=16)


def test_whole_numbers_are_classes(model, open_model):
    labels = X.argmax(axis=1)
    labels[:4] = (labels[:4] + 1) % 3
    judge = judge_of(labels, open_model)
    assert judge.metric == "top-1"
    np.testing.assert_array_equal(judge.scores(model), np.arange(40) >= 4)


def test_numbers_are_targets_of_the_shape_of_the_output(model, open_model):
    targets = X + np.linspace(0, 1, 40, dtype=np.float32)[:, None]
    judge = judge_of(targets, open_model)
    assert judge.metric == "squared error"
    np.testing.assert_allclose(judge.scores(model), -(np.linspace(0, 1, 40) ** 2), atol=1e-6)
    with pytest.raises(DataError, match="do not fit the first output"):
        judge_of(targets[:, :2], open_model).scores(model)


def test_without_labels_nothing_is_scored(model, open_model):
    with pytest.raises(DataError, match="labelled: has no labels"):
        judge_of(None, open_model).scores(model)


def test_the_tests_are_mcnemar_and_that_of_the_mean_difference(open_model):
    before, after = np.zeros(40), np.zeros(40)
    before[:2], after[2:14] = 1, 1
    classes = judge_of(X.argmax(axis=1), open_model)
    assert classes.p_value(before, after) == pytest.approx(scipy.stats.binomtest(2, 14).pvalue)
    assert classes.is_better(before, after)
    assert not classes.is_worse(before, after)
    rng = np.random.default_rng(1)
    errors, found = -rng.random(400), -rng.random(400) - 0.1
    moved = found - errors
    z = abs(moved.mean()) / (moved.std(ddof=1) / np.sqrt(400))
    numbers = judge_of(X, open_model)
    assert numbers.p_value(errors, found) == pytest.approx(2 * scipy.stats.norm.sf(z))
    assert numbers.is_worse(errors, found)
    assert numbers.p_value(errors, errors) == 1.0


def test_each_half_is_scored_by_the_choice_of_the_other():
    scores = {"a": np.array([1.0, 0, 1, 0]), "b": np.array([0.0, 1, 0, 0])}
    # The even samples prefer a, which has 0 and 0 on the odd ones; the odd ones prefer b, with 0 and 0 on the even ones.
    np.testing.assert_array_equal(cross_fitted(scores), np.zeros(4))
    np.testing.assert_array_equal(cross_fitted({"a": scores["a"]}), scores["a"])


def test_a_handful_of_labels_tells_nothing(open_model):
    numbers = judge_of(X, open_model)
    for count in (1, 2, 7):
        assert numbers.p_value(np.zeros(count), np.ones(count)) == 1.0
    assert numbers.p_value(np.zeros(8), np.ones(8)) == pytest.approx(2 / 2**8)
    rng = np.random.default_rng(3)  # under the hypothesis it is uniform
    found = [numbers.p_value(np.zeros(20), rng.normal(size=20)) for _ in range(300)]
    assert np.mean(np.less(found, 0.05)) == pytest.approx(0.05, abs=0.04)


def test_labels_that_are_not_finite_are_refused(model, open_model):
    targets = X.copy()
    targets[3, 1] = np.nan
    with pytest.raises(DataError, match="labels that are not finite"):
        judge_of(targets, open_model).scores(model)


def test_one_hot_labels_are_no_targets(model, open_model):
    one_hot = np.eye(3, dtype=np.float32)[X.argmax(axis=1)]
    with pytest.raises(DataError, match="labels are one-hot; give the number of each class"):
        judge_of(one_hot, open_model).scores(model)
    assert np.isfinite(judge_of(0.9 * one_hot, open_model).scores(model)).all()
