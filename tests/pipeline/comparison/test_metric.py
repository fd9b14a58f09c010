from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.pipeline.comparison.decisions import class_scores
from vsfix.pipeline.comparison.metric import METRICS, choose_metric

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(60, 7)).astype(np.float32)
CLASSES = RNG.integers(0, 7, 60)
VALUES = RNG.normal(size=(60, 3)).astype(np.float32)
TARGETS = (VALUES + RNG.normal(size=(60, 3)) * [0.1, 0.5, 2]).astype(np.float32)
MASKS = RNG.integers(0, 3, (20, 5, 4))
MAPS = (np.moveaxis(np.eye(3)[MASKS], -1, 1) + RNG.normal(size=(20, 3, 5, 4))).astype(np.float32)


def mean_score(key, output, target) -> float:
    metric = choose_metric(key, {"y": output}, {"labels": target})
    return metric.shown(float(metric.scores({"y": output}, {"labels": target}).mean()))


@pytest.mark.parametrize("key", ["top1", "top5", "iou"])
def test_labels_that_are_bools_are_the_classes_0_and_1(key):
    assert mean_score(key, LOGITS, CLASSES > 3) == mean_score(key, LOGITS, (CLASSES > 3).astype(np.int64)) > 0


def test_each_metric_is_that_of_scikit_learn():
    logistic = 1 / (1 + np.exp(-VALUES.astype(np.float64)))
    binary = (TARGETS > 0).astype(np.int64)
    top_5 = 100 * sklearn_metrics.top_k_accuracy_score(CLASSES, LOGITS, k=5)
    assert mean_score("top1", LOGITS, CLASSES) == pytest.approx(
        100 * sklearn_metrics.accuracy_score(CLASSES, LOGITS.argmax(axis=1))
    )
    assert mean_score("top5", LOGITS, CLASSES) == pytest.approx(top_5)
    assert mean_score("mse", VALUES, TARGETS) == pytest.approx(sklearn_metrics.mean_squared_error(TARGETS, VALUES))
    assert mean_score("mae", VALUES, TARGETS) == pytest.approx(sklearn_metrics.mean_absolute_error(TARGETS, VALUES))
    assert mean_score("r2", VALUES, TARGETS) == pytest.approx(sklearn_metrics.r2_score(TARGETS, VALUES))
    similar = sklearn_metrics.pairwise.cosine_similarity(TARGETS.astype(np.float64), VALUES.astype(np.float64))
    assert mean_score("cosine", VALUES, TARGETS) == pytest.approx(np.diag(similar).mean())
    losses = [sklearn_metrics.log_loss(binary[:, column], logistic[:, column]) for column in range(3)]
    assert mean_score("bce", VALUES, binary) == pytest.approx(np.mean(losses))
    assert mean_score("bce", logistic.astype(np.float32), binary) == pytest.approx(np.mean(losses), rel=1e-6)


def test_a_metric_is_known_whatever_the_case_of_its_name():
    for name, key in (("R2", "r2"), ("MSE", "mse"), ("Cosine", "cosine")):
        assert choose_metric(name, {"y": VALUES}, {"labels": TARGETS}).key == key
        assert mean_score(name, VALUES, TARGETS) == mean_score(key, VALUES, TARGETS)


def test_iou_is_the_jaccard_index_of_each_sample():
    decided = MAPS.argmax(axis=1)
    wanted = [
        sklearn_metrics.jaccard_score(mask.ravel(), found.ravel(), labels=np.union1d(mask, found), average="macro")
        for mask, found in zip(MASKS, decided, strict=True)
    ]
    assert mean_score("iou", MAPS, MASKS) == pytest.approx(np.mean(wanted))
    one, binary = MAPS[:, :1], (MASKS == 0).astype(np.int64)
    wanted = [
        sklearn_metrics.jaccard_score(mask.ravel(), found.ravel(), zero_division=1)
        for mask, found in zip(binary, one[:, 0] > 0, strict=True)
    ]
    assert mean_score("iou", one, binary) == pytest.approx(np.mean(wanted))
    assert mean_score("iou", one - 100, np.zeros_like(binary)) == 1


@pytest.mark.parametrize("no_label", [-100, -1, 255])
def test_positions_without_a_label_count_for_nothing(no_label):
    given = RNG.random(MASKS.shape) < 0.7
    masks = np.where(given, MASKS, no_label)
    decided = MAPS.argmax(axis=1)
    right = [sklearn_metrics.accuracy_score(MASKS[i][given[i]], decided[i][given[i]]) for i in range(len(MASKS))]
    assert mean_score("top1", MAPS, masks) == pytest.approx(100 * np.mean(right))
    assert mean_score("top1", decided, masks) == pytest.approx(100 * np.mean(right))
    overlap = [
        sklearn_metrics.jaccard_score(mask[one], found[one], labels=np.union1d(mask[one], found[one]), average="macro")
        for mask, found, one in zip(MASKS, decided, given, strict=True)
    ]
    assert mean_score("iou", MAPS, masks) == pytest.approx(np.mean(overlap))
    binary = np.where(given, MASKS == 0, no_label)
    assert mean_score("iou", MAPS[:, :1], binary) == mean_score("iou", (MAPS[:, 0] > 0).astype(np.int64), binary)
    many = RNG.normal(size=(20, 9, 5, 4))
    other = np.where(given, MASKS, np.where(no_label == 255, -1, 255))
    assert mean_score("top5", many, masks) == mean_score("top5", many, other)
    told = choose_metric("iou", {"y": MAPS}, {"labels": masks})
    assert told.text(0.5) == "IoU of what is labelled 0.5"
    assert choose_metric("iou", {"y": MAPS}, {"labels": MASKS}).text(0.5) == "IoU 0.5"


def test_a_label_that_names_no_class_is_refused_all_the_same():
    for wrong in (-2, 3):
        with pytest.raises(DataError, match=f"label {wrong} names none of the 3 classes"):
            mean_score("iou", MAPS, np.where(MASKS == 2, wrong, MASKS))
    with pytest.raises(DataError, match="label -1 names none of the 7 classes"):
        mean_score("top1", LOGITS, np.where(CLASSES == 2, -1, CLASSES))  # of a whole sample
    empty = MASKS.copy()
    empty[3] = 255
    with pytest.raises(DataError, match="no position of sample 3 has a label"):
        mean_score("iou", MAPS, empty)
    large = RNG.normal(size=(2, 300, 4))
    assert mean_score("top1", large, np.full((2, 4), 255)) == 0  # the number of a class


def test_the_number_that_may_stand_for_no_label_is_a_class_where_the_output_gives_it():
    output = np.array([[255, 2, 3, 4], [5, 6, 7, 999]])
    labels = np.array([[255, 1, 1, 1], [5, 6, -1, 999]])
    assert mean_score("top1", output, labels) == pytest.approx(100 * np.mean([1 / 4, 3 / 3]))
    assert mean_score("top1", output % 100, np.where(labels == 999, 99, labels)) == pytest.approx(100 * (0 + 1) / 2)
    column = np.array([[255], [3], [7]])  # one label a sample, as tables have them: nothing is left out
    assert mean_score("top1", np.array([[255], [3], [1]]), column) == pytest.approx(100 * 2 / 3)
    named = choose_metric("top1", {"y": RNG.normal(size=(3, 300))}, {"labels": column})
    assert named.name == "top-1"


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64])
def test_the_overlap_of_a_sample_does_not_depend_on_those_beside_it(dtype):
    output = np.array([[0, 0, 0, 1], [2, 0, 1, 2]])
    labels = np.array([[0, 0, 1, 1], [1, 0, 1, 0]], dtype=dtype)
    metric = choose_metric("iou", {"y": output}, {"labels": labels})
    alone = [metric.scores({"y": output[[i]]}, {"labels": labels[[i]]})[0] for i in range(2)]
    assert alone[0] == pytest.approx((2 / 3 + 1 / 2) / 2)
    np.testing.assert_array_equal(metric.scores({"y": output}, {"labels": labels}), alone)


def test_r2_leaves_out_a_column_that_never_varies_whatever_its_value():
    constant = np.full((60, 1), 0.1)  # whose variance is not 0 in floating point
    targets, found = np.hstack([TARGETS, constant]), np.hstack([VALUES, constant + 0.01])
    assert mean_score("r2", found, targets) == pytest.approx(sklearn_metrics.r2_score(TARGETS, VALUES))
    with pytest.raises(DataError, match="the same for every sample"):
        mean_score("r2", found[:, 3:], constant)


def test_the_iou_of_numbers_of_classes_is_the_same_however_the_samples_are_cut():
    labels = np.concatenate([np.minimum(MASKS, 1), MASKS])  # the first half knows two of the three classes
    found = np.where(RNG.random(labels.shape) < 0.3, 0, labels)
    metric = choose_metric("iou", {"y": found}, {"labels": labels})
    whole = metric.scores({"y": found}, {"labels": labels})
    parts = [metric.scores({"y": found[row : row + 5]}, {"labels": labels[row : row + 5]}) for row in range(0, 40, 5)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    wanted = [
        sklearn_metrics.jaccard_score(mask.ravel(), one.ravel(), labels=np.union1d(mask, one), average="macro")
        for mask, one in zip(labels, found, strict=True)
    ]
    np.testing.assert_allclose(whole, wanted)
    two = np.minimum(MASKS, 1)
    metric = choose_metric("iou", {"y": np.ones_like(two)}, {"labels": two})
    np.testing.assert_allclose(metric.scores({"y": np.ones_like(two)}, {"labels": two}), two.mean(axis=(1, 2)))


@pytest.mark.parametrize(
    ("output", "labels"),
    [
        (LOGITS, CLASSES),
        (LOGITS, CLASSES[:, None]),
        (MAPS, MASKS),
        (np.moveaxis(MAPS, 1, -1), MASKS),
        (MAPS[:, :, 0].transpose(0, 2, 1), MASKS[:, 0]),
    ],
    ids=["classes", "column", "map", "channels last", "sequence"],
)
def test_the_classes_are_found_whatever_their_axis(output, labels):
    axis = {3: -1, 4: 1 if output.shape[1] == 3 else -1}.get(output.ndim, 1)
    right = output.argmax(axis=axis) == labels.reshape(output.argmax(axis=axis).shape)
    assert mean_score(None, output, labels) == pytest.approx(100 * right.mean())


def test_an_output_that_is_the_number_of_a_class_is_the_decision():
    decided = MAPS.argmax(axis=1)
    assert mean_score(None, decided, MASKS) == pytest.approx(100 * (decided == MASKS).mean())
    assert mean_score("iou", decided, MASKS) == pytest.approx(mean_score("iou", MAPS, MASKS))
    assert mean_score("top1", LOGITS.argmax(axis=1), CLASSES) == pytest.approx(mean_score("top1", LOGITS, CLASSES))
    with pytest.raises(DataError, match="is the number of one class; give top1"):
        mean_score("top5", LOGITS.argmax(axis=1), CLASSES)


def test_a_sequence_as_long_as_it_has_classes_has_its_classes_last():
    output, labels = RNG.normal(size=(9, 4, 4)), RNG.integers(0, 4, (9, 4))
    scores = class_scores(output, labels.shape)
    np.testing.assert_array_equal(scores, output)


@pytest.mark.parametrize("shape", [(60,), (60, 1)])
def test_one_number_decides_between_two_classes(shape):
    logits = LOGITS[:, 0].reshape(shape)
    labels = (LOGITS[:, 0] + RNG.normal(size=60) > 0).astype(np.int64)
    right = 100 * np.mean((LOGITS[:, 0] > 0) == labels)
    assert mean_score(None, logits, labels) == pytest.approx(right)
    assert mean_score("top1", 1 / (1 + np.exp(-logits)), labels) == pytest.approx(right)
    known = choose_metric("top1", {"y": logits}, {"labels": labels}, probabilities=frozenset({"y"}))
    assert known.threshold == 0.5


def test_a_sample_that_is_not_finite_has_the_worst_score_there_is():
    for key, worst in [("top1", 0), ("cosine", -1), ("mse", -np.inf), ("r2", -np.inf)]:
        output, target = (LOGITS.copy(), CLASSES) if key == "top1" else (VALUES.copy(), TARGETS)
        metric = choose_metric(key, {"y": output}, {"labels": target})
        sound = metric.scores({"y": output}, {"labels": target})
        output[3, 1] = np.nan
        found = metric.scores({"y": output}, {"labels": target})
        assert found[3] == worst
        np.testing.assert_array_equal(np.delete(found, 3), np.delete(sound, 3))


@pytest.mark.parametrize("key", METRICS)
def test_the_order_of_the_samples_and_how_they_are_cut_change_no_score(key):
    output, target = (LOGITS, CLASSES) if key in ("top1", "top5", "iou") else (VALUES, TARGETS)
    target = (target > 0).astype(np.float32) if key == "bce" else target
    metric = choose_metric(key, {"y": output}, {"labels": target})
    whole = metric.scores({"y": output}, {"labels": target})
    order = RNG.permutation(60)
    parts = [metric.scores({"y": output[rows]}, {"labels": target[rows]}) for rows in np.split(order, [7, 30])]
    np.testing.assert_allclose(np.concatenate(parts), whole[order], rtol=1e-12)


def test_the_output_with_a_target_of_its_name_is_judged():
    outputs = {"a": LOGITS, "b": VALUES}
    assert choose_metric(None, outputs, {"labels": CLASSES}).output == "a"
    named = choose_metric(None, outputs, {"labels": CLASSES, "b": TARGETS})
    assert (named.output, named.target, named.key) == ("b", "b", "mse")
    assert choose_metric(None, outputs, {"labels": CLASSES, "b": TARGETS}, output="a").target == "labels"
    with pytest.raises(InputError, match="--metric-output c: the model has a, b"):
        choose_metric(None, outputs, {"labels": CLASSES}, output="c")


def test_an_embedding_is_judged_by_no_decision():
    unit = LOGITS / np.linalg.norm(LOGITS, axis=1, keepdims=True)
    with pytest.raises(InputError, match="output 'y' is an embedding"):
        choose_metric(None, {"y": unit}, {"labels": CLASSES})
    assert choose_metric("cosine", {"y": unit}, {"labels": LOGITS}).key == "cosine"


@pytest.mark.parametrize(
    ("key", "output", "target", "words"),
    [
        ("f1", LOGITS, CLASSES, "--metric f1: choose one of top1, .*, or module:function"),
        ("Accuracy", LOGITS, CLASSES, r"--metric Accuracy: did you mean top1\? choose one of top1"),
        ("mIoU", LOGITS, CLASSES, r"did you mean iou\?"),
        ("cosin", LOGITS, CLASSES, r"did you mean cosine\?"),
        ("top1", LOGITS, TARGETS, "labels of 'y' are float32; it takes whole numbers"),
        ("top1", LOGITS[:, :3], CLASSES, "label 6 names none of the 3 classes"),
        ("top1", LOGITS[:, 0], CLASSES, "decides between 0 and 1, and the labels go up to 6"),
        ("top5", LOGITS[:, :4], CLASSES % 4, "has 4 classes; give top1"),
        ("mse", VALUES, TARGETS[:, :2], "'labels' of shape 2 a sample does not fit output 'y', 3; it takes values"),
        ("r2", VALUES, np.ones_like(TARGETS), "the same for every sample"),
        ("bce", VALUES, TARGETS, r"must lie in \[0, 1\]"),
        (None, VALUES, np.eye(3, dtype=np.float32)[CLASSES % 3], "one-hot"),
        (None, VALUES, None, "no array 'labels'"),
        ("nomodule_:f", VALUES, TARGETS, "can't be imported"),
        ("top1", CLASSES, CLASSES - 1, "label -1 names no class of 'y'"),
        (7, VALUES, TARGETS, "--metric 7: choose one of top1"),
    ],
)
def test_what_a_metric_says_nothing_of_is_refused_in_one_line(key, output, target, words):
    targets = {} if target is None else {"labels": target}
    with pytest.raises((DataError, InputError), match=words):
        choose_metric(key, {"y": output}, targets).scores({"y": output}, targets)


def test_a_function_of_ones_own_gets_everything_by_name_and_gives_a_score_for_each_sample():
    def nearest(outputs, targets):
        return -np.abs(outputs["y"] - targets["depth"]).max(axis=1)

    metric = choose_metric(nearest, {"y": VALUES}, {})
    assert metric.needs_all
    found = metric.scores({"y": VALUES}, {"depth": TARGETS})
    np.testing.assert_allclose(found, -np.abs(VALUES - TARGETS).max(axis=1))
    with pytest.raises(InputError, match=r"nearest: fails .KeyError: 'depth'"):
        metric.scores({"y": VALUES}, {})
    endless = np.where(np.arange(60) == 3, np.inf, 0)
    for wrong, words in [
        (lambda o, t: 1.0, "of shape"),
        (lambda o, t: np.full(60, np.nan), "gives NaN for sample 0"),
        (lambda o, t: endless, "gives inf for sample 3"),
    ]:
        with pytest.raises(DataError, match=words):
            choose_metric(wrong, {"y": VALUES}, {}).scores({"y": VALUES}, {})
