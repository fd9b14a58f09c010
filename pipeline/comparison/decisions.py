"""The decisions of models on the same samples: how right they are, and how far apart. No model is run here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.ir.runtime import Array, Float64Array

from .proportion import Proportion, mcnemar_p_value, proportion
from .tensor_comparison import as_float64, finite_rows

RETENTION_BARS = (0.999, 0.99)  # as those of MLPerf Inference
# What stands where a position of a map or a sequence is to be left out: torch's `ignore_index`, scikit-learn's
# unlabelled, and the void of PASCAL VOC and Cityscapes.
NO_LABEL = (-100, -1, 255)
_SUM_ERROR = 1e-2  # of probabilities in float16, of which a thousand are added up
_LEAST = 1e-12  # probability: a narrow type makes smaller ones zero


@dataclass(frozen=True)
class Task:
    """How right two models are on labelled samples.

    Attributes:
        reference: top-1 of the reference.
        output: top-1 of the other.
        reference_top5: None where there are no more than five classes.
        output_top5: as `reference_top5`.
        retention: the output's top-1 over the reference's; None where the reference is never right.
        good_to_bad: the regressions, from the right class to a wrong one.
        bad_to_good: the fixes, from a wrong class to the right one.
        p_value: of McNemar's exact test on these two numbers: how likely they are where both models are equally good.
    """

    reference: Proportion
    output: Proportion
    reference_top5: Proportion | None
    output_top5: Proportion | None
    retention: float | None
    good_to_bad: int
    bad_to_good: int
    p_value: float


@dataclass(frozen=True)
class Decisions:
    """The decisions of two models on the same samples by their largest logit, the first one where several are equal.

    Attributes:
        samples: N.
        agreement: the share of samples on which both decide the same.
        flips: the number of samples on which they don't.
        divergence: the mean of KL(reference | output) in nats, of their softmax, or of the outputs themselves where
            those of the reference are probabilities already; infinite where an output is not finite, None where the
            outputs are the numbers of classes themselves.
        task: how right both are; None without labels.
    """

    samples: int
    agreement: float
    flips: int
    divergence: float | None
    task: Task | None = None


def bar_of(retention: float) -> float:
    """The highest of `RETENTION_BARS` that a retention reaches, 0 below all."""
    return next((bar for bar in RETENTION_BARS if retention >= bar), 0.0)


def compare_decisions(reference: Array, output: Array, labels: Array | None = None) -> Decisions:
    """Compares the top-1 decisions of two models.

    A sample whose output is not finite counts as a decision that differs and as a wrong answer.

    Args:
        reference: logits, shape (N, classes) with at least two classes, finite.
        output: logits of the same shape.
        labels: the right class of each sample, whole numbers of shape (N,); optional.

    Raises:
        DataError: nothing to compare, other shapes, or labels that name no class.
    """
    expected, found = as_float64(reference, "the reference"), as_float64(output, "the output")
    if expected.shape != found.shape or expected.ndim != 2 or len(expected) == 0 or expected.shape[1] < 2:
        raise DataError(
            f"logits of shape {expected.shape} and {found.shape}; decisions need (N, classes) twice, N of at least 1 "
            "and at least 2 classes"
        )
    bad = np.flatnonzero(~finite_rows(expected))
    if bad.size:
        raise DataError(f"the reference is not finite in sample {bad[0]}; it decides nothing there")
    first = expected.argmax(axis=1)
    # -1 is no class: it agrees with nothing.
    second = np.where(finite_rows(found), np.nan_to_num(found).argmax(axis=1), -1)
    flips = int(np.sum(first != second))
    n = len(expected)
    divergence = _divergence(expected, found)
    task = None if labels is None else _task(expected, found, _check_labels(labels, n, expected.shape[1]))
    return Decisions(n, (n - flips) / n, flips, divergence, task)


def compare_classes(reference: Array, output: Array) -> Decisions:
    """Compares decisions that two models give as the numbers of classes, as those of ArgMax.

    Args:
        reference: shape (N,), N of at least 1.
        output: of the same shape.
    """
    flips = int(np.sum(reference != output))
    return Decisions(len(reference), (len(reference) - flips) / len(reference), flips, divergence=None)


def labelled(labels: Array, classes: int | None = None) -> Array:
    """Which positions of maps and sequences have a label; a label of a whole sample is one whatever it says.

    Args:
        labels: whole numbers, shape (N, ...).
        classes: how many there are; None where that is not known.
    """
    if all(side == 1 for side in labels.shape[1:]):
        return np.ones(labels.shape, dtype=np.bool_)
    names_none = np.isin(labels, NO_LABEL)
    return ~names_none if classes is None else ~names_none | ((labels >= 0) & (labels < classes))


def class_scores(output: Array, labels: tuple[int, ...]) -> Array | None:
    """The scores of each decision, the classes last; one class for decisions by a single number; None where none fit.

    Args:
        output: shape (N, C), (N, C, ...), (N, ..., C), or that of the labels.
        labels: their shape, (N, ...); N is not looked at.
    """
    labels = (len(output), *labels[1:])
    last = output.ndim - 1
    for axis in (last, 1) if output.ndim == 3 else (1, last):  # a sequence has its classes last, a map first
        if 0 < axis < output.ndim and (*output.shape[:axis], *output.shape[axis + 1 :]) == labels:
            return np.moveaxis(output, axis, -1)
    return output[..., np.newaxis] if output.shape == labels else None


def known_classes(output: Array, labels: Array) -> int:
    """How many classes an output of their numbers has, from its values and those of the labels; 2 at least.

    The highest number that may stand for no label counts where the output gives it too, or the labels go beyond it.

    Args:
        output: whole numbers, shape (N, ...).
        labels: the same shape, but for N.
    """
    known = labels[(labels != max(NO_LABEL)) & (labels >= 0)]
    return 1 + max(int(output.max(initial=1)), int(known.astype(np.int64).max(initial=1)))


def fitted_scores(output: Array, labels: Array) -> tuple[Array | None, Array]:
    """The scores of each decision, see `class_scores`, and its label; labels of shape (N, 1) become (N,)."""
    scores = class_scores(output, labels.shape)
    if scores is None and labels.ndim > 1 and labels.shape[-1] == 1:  # as tables have them
        labels = labels[..., 0]
        scores = class_scores(output, labels.shape)
    return scores, labels


def class_ranks(scores: Array, labels: Array) -> Array:
    """How many classes stand before the right one; of equal scores the lower class stands first.

    Args:
        scores: shape (N, ..., classes).
        labels: the right class of each decision, whole numbers or bools of shape (N, ...).
    """
    labels = labels.astype(np.intp, copy=False)  # bools are no index
    own = np.take_along_axis(scores, labels[..., np.newaxis], -1)
    lower = np.arange(scores.shape[-1]) < labels[..., np.newaxis]
    return np.asarray(((scores > own) | ((scores == own) & lower)).sum(axis=-1))


def share_right(right: Array, counted: Array) -> Float64Array:
    """The share of each sample that is right, shape (N,).

    Args:
        right: shape (N, ...).
        counted: which positions are; of every sample at least one.
    """
    right, counted = (array.reshape(len(array), -1) for array in (right, counted))
    return np.asarray((right & counted).sum(axis=1) / counted.sum(axis=1))


def class_overlap(decided: Array, labels: Array, counted: Array, classes: int) -> Float64Array:
    """The mean over the classes of a sample of |both| / |either|, shape (N,); 1 where none is there.

    Args:
        decided: numbers of classes, shape (N, ...); of two classes that of class 1 alone.
        labels: the same shape.
        counted: the positions that are.
        classes: how many there are.
    """
    decided, labels, counted = (array.reshape(len(labels), -1) for array in (decided, labels, counted))
    total, present = np.zeros(len(labels)), np.zeros(len(labels))
    for one in range(1, 2) if classes == 2 else range(classes):
        either = (counted & ((decided == one) | (labels == one))).sum(axis=1)
        both = (counted & (decided == one) & (labels == one)).sum(axis=1)
        total += np.divide(both, either, out=np.zeros(len(labels)), where=either > 0)
        present += either > 0
    return np.divide(total, present, out=np.ones(len(labels)), where=present > 0)


def _task(expected: Float64Array, found: Float64Array, labels: Array) -> Task:
    """How right both are."""
    classes = expected.shape[1]
    # Of a sample that is not finite the right class stands behind all others.
    before, after = (
        np.where(finite_rows(logits), class_ranks(logits, labels), classes) for logits in (expected, found)
    )
    n, right, still_right = len(labels), before < 1, after < 1
    has_top5 = classes > 5
    good_to_bad, bad_to_good = int(np.sum(right & ~still_right)), int(np.sum(~right & still_right))
    return Task(
        reference=proportion(int(right.sum()), n),
        output=proportion(int(still_right.sum()), n),
        reference_top5=proportion(int(np.sum(before < 5)), n) if has_top5 else None,
        output_top5=proportion(int(np.sum(after < 5)), n) if has_top5 else None,
        retention=float(still_right.sum() / right.sum()) if right.any() else None,
        good_to_bad=good_to_bad,
        bad_to_good=bad_to_good,
        p_value=mcnemar_p_value(good_to_bad, bad_to_good),
    )


def _divergence(expected: Float64Array, found: Float64Array) -> float:
    """The mean over the samples of sum_k p_k (log p_k - log q_k), p and q the softmax of the logits, or given as such.

    With d = log p - log q it is the sum of p (d + exp(-d) - 1), since p and q both sum to 1: no term is below 0, and
    the rounding of a small d does not show.
    """
    if not finite_rows(found).all():
        return float("inf")
    # A network that ends in Softmax gives p itself, whose softmax would be nearly flat; rounding or a fault may have
    # moved the q of another precision off a sum of 1.
    log_of = _log_probabilities if _are_probabilities(expected) else _log_softmax
    log_p, log_q = log_of(expected), log_of(found)
    p, q, d = np.exp(log_p), np.exp(log_q), log_p - log_q  # (N, classes)
    terms = np.where(np.abs(d) < 1, p * (d + np.expm1(np.clip(-d, -1, 1))), p * d + q - p)
    return float(np.mean(np.sum(terms, axis=1)))


def _are_probabilities(output: Float64Array) -> bool:
    """Whether the values of each sample are shares of 1."""
    return bool((output >= 0).all() and (np.abs(output.sum(axis=1) - 1) <= _SUM_ERROR).all())


def _log_probabilities(output: Float64Array) -> Float64Array:
    """The logarithm of each sample's shares, which are made to sum to 1."""
    shares = np.maximum(output, _LEAST)
    return np.asarray(np.log(shares / shares.sum(axis=1, keepdims=True)), dtype=np.float64)


def _log_softmax(logits: Float64Array) -> Float64Array:
    """The logarithm of the softmax of each row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True)), dtype=np.float64)


def _check_labels(labels: Array, samples: int, classes: int) -> Array:
    """The labels, when each names a class."""
    if labels.shape != (samples,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"labels are {labels.dtype} of shape {labels.shape}; whole numbers of shape ({samples},) needed"
        )
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if bad.size:
        raise DataError(f"the label of sample {bad[0]} is {labels[bad[0]]}, but there are {classes} classes from 0 on")
    return labels
