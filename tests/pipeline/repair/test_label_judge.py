"""The judge of labelled data on small models of every kind: what is judged, by which metric, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

import vsfix
from vsfix.graph_passes.errors import DataError, InputError
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.repair.label_judge import LabelJudge, LabelScores, cross_fitted, has_targets

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype(np.float32)


@pytest.fixture
def model(parse):
    return parse("(float[N, 3] x) => (float[N, 3] y) { y = MatMul (x, w) }", {"w": np.eye(3, dtype=np.float32)})


@pytest.fixture
def judged(open_model):
    """The judge of a model on these labels, and the mean score of that model as a person reads it."""

    def judge(model, labels=None, x=X, targets=None, batch_size=16, **options):
        samples = Samples("labelled", {"x": x}, labels, targets=targets or {})
        judge = LabelJudge.of(model, samples, open_model, batch_size, **options)
        return judge, judge.metric.shown(float(judge.scores(model).mean()))

    return judge


def test_whole_numbers_are_classes(model, judged):
    labels = X.argmax(axis=1)
    labels[:4] = (labels[:4] + 1) % 3
    judge, _ = judged(model, labels)
    assert (judge.metric.key, judge.metric.output) == ("top1", "y")
    np.testing.assert_array_equal(judge.scores(model), np.arange(40) >= 4)


@pytest.mark.parametrize("samples", [5, 16, 37])
def test_a_model_of_one_batch_size_is_judged_on_any_number_of_samples(parse, judged, samples):
    body = "(float[16, 3] x) => (float[16, 3] y) { y = MatMul (x, w) }"
    fixed, targets = parse(body, {"w": np.eye(3, dtype=np.float32)}), X[::-1][:samples]
    judge, _ = judged(fixed, targets, X[:samples])
    np.testing.assert_allclose(judge.scores(fixed), -((X[:samples] - targets) ** 2).mean(axis=1), rtol=1e-5)


def test_numbers_are_targets_of_the_shape_of_the_output(model, judged):
    targets = X + np.linspace(0, 1, 40, dtype=np.float32)[:, None]
    judge, _ = judged(model, targets)
    assert judge.metric.key == "mse"
    np.testing.assert_allclose(judge.scores(model), -(np.linspace(0, 1, 40) ** 2), atol=1e-6)
    with pytest.raises(DataError, match="'labels' of shape 2 a sample does not fit output 'y', 3"):
        judged(model, targets[:, :2])


def test_a_regressor_is_judged_by_r2(model, judged):
    targets = X + RNG.normal(0, 0.3, X.shape)
    _, score = judged(model, targets, metric="r2")
    assert score == pytest.approx(sklearn_metrics.r2_score(targets, X), abs=1e-6)


@pytest.mark.parametrize("end", ["Identity", "Sigmoid"])
def test_one_number_is_a_decision_between_two_classes(parse, judged, end):
    one = parse(f"(float[N, 3] x) => (float[N, 1] y) {{ z = MatMul (x, w) y = {end} (z) }}", {"w": WEIGHT})
    labels = (X @ WEIGHT + RNG.normal(0, 1, (40, 1)) > 0).astype(np.int64)
    for shaped in (labels, labels[:, 0]):
        _, score = judged(one, shaped)
        assert score == pytest.approx(100 * np.mean((X @ WEIGHT > 0) == labels))


def test_a_probability_decides_at_one_half_and_a_logit_at_zero(parse, judged):
    body = "(float[N, 3] x) => (float[N, 1] y, float[N, 1] p) { y = MatMul (x, w) p = Sigmoid (y) }"
    two = parse(body, {"w": WEIGHT})
    judge, _ = judged(two, targets={"p": (X @ WEIGHT > 0).astype(np.int64)})
    assert (judge.metric.output, judge.metric.threshold) == ("p", 0.5)
    judge, _ = judged(two, targets={"y": (X @ WEIGHT > 0).astype(np.int64)})
    assert (judge.metric.output, judge.metric.threshold) == ("y", 0.0)


WEIGHT = np.array([[1.0], [-2.0], [0.5]], np.float32)


def test_the_target_with_the_name_of_an_output_says_which_is_judged(parse, judged):
    two = parse("(float[N, 3] x) => (float[N, 3] y, float[N, 3] z) { y = Identity (x) z = Neg (x) }", {})
    judge, score = judged(two, targets={"z": -X, "image_id": np.arange(40)})
    assert (judge.metric.output, judge.metric.target, score) == ("z", "z", 0)
    judge, score = judged(two, labels=-X, output="z")
    assert (judge.metric.output, judge.metric.target, score) == ("z", "labels", 0)
    found = judge.compare(judge.scores(two), judge.scores(two))
    assert found.sentence == "mean squared error of 'z' 0 -> 0"
    with pytest.raises(InputError, match="--metric-output w: the model has y, z"):
        judged(two, labels=X, output="w")


def test_a_map_of_classes_is_judged_by_its_overlap(parse, judged):
    x = RNG.normal(size=(20, 3, 5, 4)).astype(np.float32)
    maps = parse("(float[N, 3, 5, 4] x) => (float[N, 3, 5, 4] y) { y = Identity (x) }", {})
    decided, labels = x.argmax(axis=1), RNG.integers(0, 3, (20, 5, 4))
    wanted = [
        sklearn_metrics.jaccard_score(mask.ravel(), found.ravel(), labels=np.union1d(mask, found), average="macro")
        for mask, found in zip(labels, decided, strict=True)
    ]
    _, score = judged(maps, labels, x, metric="iou")
    assert score == pytest.approx(np.mean(wanted))
    _, score = judged(maps, labels, x)
    assert score == pytest.approx(100 * (decided == labels).mean())


def test_an_embedding_is_judged_by_its_direction_and_never_by_its_largest_value(parse, judged):
    unit = parse("(float[N, 3] x) => (float[N, 3] y) { y = LpNormalization <axis = 1> (x) }", {})
    targets = X + RNG.normal(0, 0.3, X.shape).astype(np.float32)
    _, score = judged(unit, targets, metric="cosine")
    assert score == pytest.approx(np.diag(sklearn_metrics.pairwise.cosine_similarity(X, targets)).mean(), abs=1e-6)
    with pytest.raises(InputError, match=r"'y' is an embedding.*give --metric module:function, or cosine"):
        judged(unit, X.argmax(axis=1))


E2E = {
    "one logit": ("=> (float[N, 1] y) { y = MatMul (x, w) }", {"labels": "binary"}, {}, ("top-1", "y", 100)),
    "two outputs": (
        "=> (float[N, 3] z, float[N, 1] y) { z = Identity (x) y = MatMul (x, w) }",
        {"y": "values"},
        {"metric": "mae"},
        ("mean absolute error", "y", 0),
    ),
    "named output": (
        "=> (float[N, 3] z, float[N, 1] y) { z = Identity (x) y = MatMul (x, w) }",
        {"labels": "classes"},
        {"metric_output": "z"},
        ("top-1", "z", 100),
    ),
    "map": (
        "=> (float[N, 3, 2] y) { s = Concat <axis = 1> (x, x) y = Reshape (s, shape) }",
        {"labels": "map"},
        {"metric": "iou"},
        ("IoU", "y", 1),
    ),
    "embedding": (
        "=> (float[N, 3] y) { y = LpNormalization <axis = 1> (x) }",
        {"y": "x"},
        {"metric": "cosine"},
        ("cosine", "y", 1),
    ),
}


@pytest.mark.parametrize("case", E2E)
def test_every_kind_of_model_is_judged_by_what_it_gives(parse, case):
    """The right answers are those of the model, computed in numpy: the score is that of no error."""
    body, arrays, options, (metric, output, score) = E2E[case]
    answers = {
        "binary": (X @ WEIGHT > 0).astype(np.int64),
        "values": X @ WEIGHT,
        "classes": X.argmax(axis=1),
        "map": np.concatenate([X, X], axis=1).reshape(40, 3, 2).argmax(axis=1),
        "x": X,
    }
    model = parse(f"(float[N, 3] x) {body}", {"w": WEIGHT, "shape": np.array([-1, 3, 2])})
    data = {"x": X} | {name: answers[kind] for name, kind in arrays.items()}
    result = vsfix.optimize(model, X, method="none", eval_data=data, **options)
    found = result.scores
    assert (found.metric, found.output) == (metric, output)
    assert (found.before, found.after) == pytest.approx((score, score), abs=1e-5)
    assert f"On labelled data: {metric} of output '{output}'" in str(result)


def test_a_function_sees_the_whole_set_at_once(model, judged):
    seen = []

    def rank(outputs, targets):
        seen.append({name: array.shape for name, array in (outputs | targets).items()})
        return -np.abs(outputs["y"] - targets["box"]).max(axis=1)

    judge, score = judged(model, targets={"box": X + 1}, metric=rank)
    assert seen == [{"y": (40, 3), "box": (40, 3)}]
    assert (judge.metric.name, score) == ("rank", pytest.approx(-1))


def test_the_size_of_the_runs_changes_no_score(model, judged):
    labels = X.argmax(axis=1)
    np.testing.assert_array_equal(
        judged(model, labels, batch_size=7)[0].scores(model), judged(model, labels, batch_size=40)[0].scores(model)
    )


def test_a_set_is_looked_at_from_end_to_end(parse, judged):
    """Ordered by class, its head shows logits between 0 and 1 alone: they are no probabilities."""
    x = np.concatenate([np.full((500, 1), 0.4), np.full((500, 1), -3)]).astype(np.float32)
    judge, score = judged(
        parse("(float[N, 1] x) => (float[N, 1] y) { y = Identity (x) }", {}), (x > 0).astype(np.int64), x
    )
    assert (judge.metric.threshold, score) == (0, 100)


def test_without_targets_nothing_is_judged(model, judged):
    with pytest.raises(DataError, match="labelled: no array 'labels' and none with the name of an output"):
        judged(model, targets={"label": X})
    assert not has_targets(model, Samples("s", {"x": X}, targets={"label": X}))
    assert has_targets(model, Samples("s", {"x": X}, targets={"y": X}))


def test_a_limit_is_in_the_unit_of_the_metric():
    scores = LabelScores("R2", "y", 0.9, 0.85, -0.05, (-0.06, -0.04), 1e-9, 500, max_loss=0.05)
    scores.require_no_loss("data", "")
    assert scores.is_worse


def test_each_half_is_scored_by_the_choice_of_the_other():
    scores = {"a": np.array([1.0, 0, 1, 0]), "b": np.array([0.0, 1, 0, 0])}
    # The even samples prefer a, which has 0 and 0 on the odd ones; the odd ones prefer b, with 0 and 0 on the even ones.
    np.testing.assert_array_equal(cross_fitted(scores), np.zeros(4))
    np.testing.assert_array_equal(cross_fitted({"a": scores["a"]}), scores["a"])


def test_labels_that_are_not_finite_are_refused(model, judged):
    targets = X.copy()
    targets[3, 1] = np.nan
    with pytest.raises(DataError, match="labels that are not finite"):
        judged(model, targets)


def test_one_hot_labels_are_no_targets(model, judged):
    one_hot = np.eye(3, dtype=np.float32)[X.argmax(axis=1)]
    with pytest.raises(DataError, match="labels are one-hot; give the number of each class"):
        judged(model, one_hot)
    judged(model, 0.9 * one_hot)
