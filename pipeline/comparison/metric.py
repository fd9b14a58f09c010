"""The metrics of labelled data: one score a sample, the higher the better, so that any two models make pairs.

    top1     1 where the decision is the label, else 0; of a map or a sequence the share of its positions
    top5     1 where the label is among the five largest scores
    mse      -mean (q - t)^2                                  mae      -mean |q - t|
    r2       mean over the columns that vary of 1 - (q - t)^2 / Var t, Var over the samples of the set
    cosine   <q, t> / (|q| |t|)
    iou      of each class in the label or the decision |both| / |either|, their mean; of two classes that of class 1
    bce      mean t log q + (1 - t) log(1 - q)

q is an output, t its target, mean the mean over what a sample holds. Errors are negative scores. The mean of the scores
over the samples is the metric itself, for R2 too. A decision is the largest score of a class; of a single number it is
whether that is over 0, or over 1/2 where it is a probability. A function of the user's own gets all outputs and all
targets by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TypeAlias

import numpy as np

from vsfix.graph_passes.errors import DataError, InputError, first_line
from vsfix.graph_passes.io.named_file import named_function
from vsfix.graph_passes.ir.runtime import Array, Float64Array
from vsfix.graph_passes.noise_average.divergence import are_directions

from .decisions import (
    class_overlap,
    class_ranks,
    class_scores,
    fitted_scores,
    known_classes,
    labelled,
    share_right,
)
from .tensor_comparison import as_float64, cosines, finite_rows

LABELS = "labels"
METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "mse": "mean squared error",
    "mae": "mean absolute error",
    "r2": "R2",
    "cosine": "cosine",
    "iou": "IoU",
    "bce": "binary cross-entropy",
}
_OTHER_NAMES = {"accuracy": "top1", "acc": "top1", "miou": "iou", "jaccard": "iou"}  # that others give them
LOSSES = ("mse", "mae", "bce")
SHARES = ("top1", "top5")
_WORST = {"top1": 0.0, "top5": 0.0, "iou": 0.0, "cosine": -1.0}  # of others no number is
_OF_CLASSES = ("top1", "top5", "iou")
_TINY = 1e-12  # of a probability
_BEST = 5

Named: TypeAlias = Mapping[str, Array]
Function: TypeAlias = Callable[[Named, Named], object]


@dataclass(frozen=True, eq=False)
class Metric:
    """One metric of one output.

    Attributes:
        key: one of `METRICS`, or the `module:function` of a function of the user's own.
        output: the output that is judged; None for a function, which has them all.
        target: the array that it is held against, by its name; None for a function.
        function: the user's own; None for one of `METRICS`.
        threshold: of a decision by a single number.
        is_decided: whether the output is the number of a class itself, as that of ArgMax.
        classes: of such an output, how many it and the labels of the whole set know, 2 at least.
        is_partly_labelled: whether some positions have no label, see `labelled`.
        variances: of the columns of the target over the set, shape (columns,); of `r2` alone.
    """

    key: str
    output: str | None = None
    target: str | None = None
    function: Function | None = field(default=None, repr=False)
    threshold: float = 0.0
    is_decided: bool = False
    classes: int = 2
    is_partly_labelled: bool = False
    variances: Float64Array | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The metric in words."""
        return METRICS.get(self.key, self.key) + (" of what is labelled" if self.is_partly_labelled else "")

    @property
    def is_loss(self) -> bool:
        """Whether a person reads it as an error, the lower the better."""
        return self.key in LOSSES

    @property
    def is_share(self) -> bool:
        """Whether a person reads it in percent."""
        return self.key in SHARES

    @property
    def unit(self) -> str:
        """The unit of a difference, in words; empty for a plain number."""
        return "percentage points" if self.is_share else ""

    @property
    def decides(self) -> bool:
        """Whether it judges decisions for classes."""
        return self.key in _OF_CLASSES

    @property
    def needs_all(self) -> bool:
        """Whether it must see the whole set at once."""
        return self.function is not None

    def shown(self, score: float) -> float:
        """A mean score as a person reads it: errors positive, shares in percent."""
        return (-1.0 if self.is_loss else 100.0 if self.is_share else 1.0) * score + 0.0  # no -0

    def text(self, score: float) -> str:
        """A mean score with the name of the metric."""
        shown = self.shown(score)
        return f"{self.name} {shown:.2f} %" if self.is_share else f"{self.name} {shown:.4g}"

    def kept(self, reference: float, found: float) -> float:
        """The share of the metric of a reference that a model keeps, 1 where nothing is lost.

        Args:
            reference: its mean score; of one that is not finite no share is known to be kept, minus infinity.
            found: that of the model.
        """
        if not np.isfinite(reference):
            return -np.inf
        if found == reference:
            return 1.0
        if self.is_loss:
            return reference / found if found < 0 else np.inf
        return 1 - (reference - found) / abs(reference) if reference else np.sign(found) * np.inf

    def scores(self, outputs: Named, targets: Named) -> Float64Array:
        """The score of each sample, shape (N,); the worst there is where an output is not finite.

        Args:
            outputs: of the model, by name, N samples first; all of the set where `needs_all`.
            targets: of the same samples, by name.

        Raises:
            DataError: an output and a target that do not fit, or a function that gives no score for each sample.
            InputError: the user's function fails.
        """
        if self.function is not None:
            return _own_scores(self.key, self.function, outputs, targets)
        assert self.output is not None
        assert self.target is not None
        if self.output not in outputs:
            raise InputError(f"--metric {self.key}: no output '{self.output}'; the model has {', '.join(outputs)}")
        output = as_float64(outputs[self.output], f"output '{self.output}'")
        found = self._scores(np.where(np.isfinite(output), output, 0.0), targets[self.target])
        return np.where(finite_rows(output), found, _WORST.get(self.key, -np.inf))

    def _scores(self, output: Float64Array, target: Array) -> Float64Array:
        """The scores of an output that is finite."""
        if self.key in _OF_CLASSES:
            return self._class_scores(output, target)
        wanted = target.astype(np.float64)
        rows, fit = output.reshape(len(output), -1), wanted.reshape(len(wanted), -1)
        if rows.shape != fit.shape:
            raise self._misfit(output, target)
        if self.key == "cosine":
            return cosines(fit, rows)
        if self.key == "bce":
            return -_cross_entropy(rows, fit, is_probability=self.threshold > 0)
        error = np.abs(rows - fit) if self.key == "mae" else (rows - fit) ** 2
        if self.variances is None:
            return np.asarray(-error.mean(axis=1))
        varies = self.variances > 0
        return np.asarray(1 - (error[:, varies] / self.variances[varies]).mean(axis=1))

    def _class_scores(self, output: Float64Array, labels: Array) -> Float64Array:
        """The scores of decisions."""
        scores = None
        if self.is_decided:
            if output.shape != labels.shape:
                raise self._misfit(output, labels)
            classes = 2 if self.classes == 2 else max(self.classes, 1 + int(output.max()))
            decided: Array = output
        else:
            scores, labels = fitted_scores(output, labels)
            if scores is None:
                raise self._misfit(output, labels)
            classes = max(2, scores.shape[-1])
            decided = scores.argmax(axis=-1) if scores.shape[-1] > 1 else scores[..., 0] > self.threshold
        counted = labelled(labels, self.classes if self.is_decided else classes)
        self._require_classes(labels, counted, classes)
        if self.key == "iou":
            return class_overlap(decided, labels, counted, classes)
        if self.key == "top5" and scores is not None:
            return share_right(class_ranks(scores, np.where(counted, labels, 0)) < _BEST, counted)
        return share_right(decided == labels, counted)

    def _require_classes(self, labels: Array, counted: Array, classes: int) -> None:
        """Refuses a label that names no class, and a sample without any."""
        bad = labels[counted & ((labels < 0) | (labels >= classes))]
        if bad.size:
            worst = bad.min() if bad.min() < 0 else bad.max()
            many = "no class" if self.is_decided else f"none of the {classes} classes"
            raise DataError(f"--metric {self.key}: label {worst} names {many} of '{self.output}'")
        empty = np.flatnonzero(~counted.reshape(len(counted), -1).any(axis=1))
        if empty.size:
            raise DataError(
                f"--metric {self.key}: no position of sample {empty[0]} has a label that names a class (so with "
                f"{len(empty)} of this batch); leave such samples out of the file"
            )

    def _misfit(self, output: Array, target: Array) -> DataError:
        """The error of a target of another shape."""
        wanted = "one class each" if self.key in _OF_CLASSES else "values of its shape"
        return DataError(
            f"--metric {self.key}: '{self.target}' of shape {_sides(target)} a sample does not fit output "
            f"'{self.output}', {_sides(output)}; it takes {wanted}"
        )


def choose_metric(
    wanted: str | Function | None,
    outputs: Named,
    targets: Named,
    *,
    output: str | None = None,
    probabilities: frozenset[str] = frozenset(),
) -> Metric:
    """The metric of a set.

    Args:
        wanted: one of `METRICS`, `module:function`, a function; None for top1 where the target is whole numbers, and
            mse where it is not.
        outputs: what the model gives on some samples of the set, by name.
        targets: of the whole set, by the name of the output that each belongs to, or `labels`.
        output: the one that is judged; None for the one that has a target of its own name, else the first.
        probabilities: outputs that are known to be probabilities; of others the values tell.

    Raises:
        InputError: an unknown metric or output, or an output that the metric says nothing of.
        DataError: no target, or one that does not fit.
    """
    wanted = require_known(wanted)
    if callable(wanted):
        return Metric(getattr(wanted, "__name__", "function"), function=wanted)
    if wanted is not None and ":" in wanted:
        return Metric(wanted, function=named_function(wanted))
    judged = _judged(output, outputs, targets)
    target = judged if judged in targets else LABELS
    if target not in targets:
        raise DataError(
            f"no array '{LABELS}' and none with the name of an output ({', '.join(outputs)}): what an output should be"
        )
    values, labels = outputs[judged], targets[target]
    key = wanted or ("top1" if labels.dtype.kind in "iub" else "mse")
    _require_fitting(key, judged, values, labels, is_told=wanted is not None)
    told = judged in probabilities or bool(values.size and values.min() >= 0 and values.max() <= 1)
    is_decided = key in _OF_CLASSES and _is_decided(values, labels)
    if key == "r2":
        return Metric(key, judged, target, variances=_variances(labels, target))
    classes = known_classes(values, labels) if is_decided else 2
    scores, fit = (None, labels) if is_decided or key not in _OF_CLASSES else fitted_scores(values, labels)
    known = classes if is_decided else None if scores is None else max(2, scores.shape[-1])
    return Metric(
        key,
        judged,
        target,
        threshold=0.5 if told else 0.0,
        is_decided=is_decided,
        classes=classes,
        is_partly_labelled=key in _OF_CLASSES and not labelled(fit, known).all(),
    )


def require_known(wanted: str | Function | None) -> str | Function | None:
    """A metric as it was named, one of `METRICS` in any case of its letters as its key; refuses the name of none.

    Raises:
        InputError: neither one of `METRICS` nor `module:function`, or one that can't be imported.
    """
    if wanted is None or callable(wanted):
        return wanted
    name = str(wanted).lower()
    if name in METRICS:
        return name
    if not isinstance(wanted, str) or ":" not in wanted:
        near = [_OTHER_NAMES[name]] if name in _OTHER_NAMES else get_close_matches(name, METRICS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"--metric {wanted}: {hint}choose one of {', '.join(METRICS)}, or module:function")
    named_function(wanted)
    return wanted


def _judged(output: str | None, outputs: Named, targets: Named) -> str:
    """The name of the output that is judged."""
    if output is not None and output not in outputs:
        raise InputError(f"--metric-output {output}: the model has {', '.join(outputs)}")
    own = [name for name in outputs if name in targets]
    return output or next(iter(own or outputs))


def _require_fitting(key: str, name: str, output: Array, labels: Array, *, is_told: bool) -> None:
    """Refuses a metric that says nothing of an output."""
    is_whole = labels.dtype.kind in "iub"
    if key in _OF_CLASSES and not is_whole:
        raise DataError(f"--metric {key}: the labels of '{name}' are {labels.dtype}; it takes whole numbers")
    if labels.ndim == 2 and labels.shape[1] > 1 and not is_told and _is_one_hot(labels):
        raise DataError("the labels are one-hot; give the number of each class, argmax(axis=1)")
    if key in _OF_CLASSES and are_directions(output):
        raise InputError(
            f"--metric {key}: output '{name}' is an embedding, vectors of length 1, of which the largest value decides "
            "nothing; give --metric module:function, or cosine with targets of its shape"
        )
    if key not in _OF_CLASSES:
        return
    if _is_decided(output, labels):
        if key == "top5":
            raise DataError(f"--metric top5: output '{name}' is the number of one class; give top1")
        return
    scores = class_scores(output, labels.shape)
    if scores is not None and scores.shape[-1] == 1 and labels[labelled(labels)].max(initial=0) > 1:
        raise DataError(
            f"--metric {key}: output '{name}' is one number for each label, which decides between 0 and 1, and the "
            f"labels go up to {labels.max()}; of a regression they are floats, or give --metric mse"
        )
    if key == "top5" and scores is not None and scores.shape[-1] <= _BEST:
        raise DataError(f"--metric top5: output '{name}' has {scores.shape[-1]} classes; give top1")


def _is_decided(output: Array, labels: Array) -> bool:
    """Whether an output is the number of a class for each label."""
    return output.dtype.kind in "iu" and output.shape[1:] == labels.shape[1:]


def _variances(target: Array, name: str) -> Float64Array:
    """The variance of each column over the set, shape (columns,); exactly 0 where a column never varies."""
    columns = target.astype(np.float64).reshape(len(target), -1)
    # Of a constant like 0.1 the mean is rounded, and the variance is next to 0, which is no divisor.
    found = np.where(np.ptp(columns, axis=0) > 0, columns.var(axis=0), 0.0)
    if not (found > 0).any():
        raise DataError(f"--metric r2: '{name}' is the same for every sample, of which R2 says nothing; give mse")
    return np.asarray(found)


def _own_scores(key: str, function: Function, outputs: Named, targets: Named) -> Float64Array:
    """The scores that a function of the user's gives."""
    samples = len(next(iter(outputs.values())))
    try:
        found = np.asarray(function(dict(outputs), dict(targets)))
    except Exception as error:  # the code of a user may raise anything
        raise InputError(f"--metric {key}: fails ({type(error).__name__}: {first_line(error)})") from error
    if found.shape != (samples,) or found.dtype.kind not in "fiub":
        raise DataError(
            f"--metric {key}: gives {found.dtype} of shape {found.shape}; one number for each of {samples} samples is "
            "needed, the higher the better"
        )
    scores = found.astype(np.float64)
    endless = np.isnan(scores) | (scores == np.inf)  # a mean with either tells nothing
    if endless.any():
        raise DataError(
            f"--metric {key}: gives {scores[endless][0]} for sample {int(endless.argmax())}".replace("nan", "NaN")
        )
    return scores


def _cross_entropy(output: Float64Array, target: Float64Array, *, is_probability: bool) -> Float64Array:
    """-mean (t log q + (1 - t) log(1 - q)) of each sample, from probabilities or logits; shape (N,)."""
    if target.size and (target.min() < 0 or target.max() > 1):
        raise DataError(f"--metric bce: targets from {target.min():g} to {target.max():g}; they must lie in [0, 1]")
    if is_probability:
        terms = -target * np.log(np.clip(output, _TINY, 1)) - (1 - target) * np.log(np.clip(1 - output, _TINY, 1))
    else:  # log(1 + exp(z)) - t z
        terms = np.logaddexp(0, output) - target * output
    return np.asarray(terms.mean(axis=1))


def _is_one_hot(labels: Array) -> bool:
    """Whether each row holds a single 1 beside zeros."""
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())


def _sides(array: Array) -> str:
    """The shape of one sample in words."""
    return "x".join(map(str, array.shape[1:])) or "one number"
