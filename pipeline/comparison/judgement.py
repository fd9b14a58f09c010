"""What is judged on a set: one output, by a metric where there are labels, and the decisions that it stands for.

output           decisions                                                  recognised by
scores           the largest of the classes, at each position               labels that are classes; else `kind`
class numbers    themselves                                                 whole numbers, as many as labels
one number       over 0, or over 1/2 where it is a probability              the same
anything else    none: values, embeddings                                   the same

A decision by one number z is one between the scores (0, z), of a probability p between (1 - p, p).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.graph_passes.ir.runtime import Array, Float64Array
from vsfix.graph_passes.noise_average.divergence import Meaning, OutputKind

from .decisions import class_scores
from .metric import Function, Metric, Named, choose_metric
from .score_difference import Score, score_of
from .tensor_comparison import as_float64, finite_rows

NO_CLASS = -1  # of a sample whose output is not finite
_OF_VALUES = ("mse", "mae", "r2", "cosine")
_BEST = 5


@dataclass(frozen=True, eq=False)
class Judge:
    """How the models of a set are judged.

    Attributes:
        outputs: of the reference, by name, in its order.
        output: the judged one of them.
        metric: None without labels.
        targets: what the outputs should be, of all samples, by name; empty without labels.
        kind: how the judged output is read where no labels say it; None where nothing is known.
    """

    outputs: tuple[str, ...]
    output: str
    metric: Metric | None
    targets: Named = field(repr=False)
    kind: OutputKind | None = None

    @property
    def judged_targets(self) -> Named:
        """The targets that the metric takes."""
        if self.metric is None or self.metric.target is None:
            return self.targets
        return {self.metric.target: self.targets[self.metric.target]}

    def named(self, outputs: Named) -> Named:
        """The outputs of a model by the names of the reference: its own where both have them, else by position."""
        if set(outputs) == set(self.outputs):
            return outputs
        return dict(zip(self.outputs, outputs.values(), strict=False))

    def name_in(self, outputs: Named) -> str:
        """The name of the judged output in a model."""
        return self.output if set(outputs) == set(self.outputs) else tuple(outputs)[self.outputs.index(self.output)]

    def scores(self, outputs: Named) -> Float64Array | None:
        """The score of each sample, shape (N,); None without labels.

        Raises:
            DataError, InputError: see `Metric.scores`.
        """
        return None if self.metric is None else self.metric.scores(self.named(outputs), self.targets)

    def top5(self, outputs: Named) -> Score | None:
        """Top-5 beside top-1, where each sample is one decision between more than five classes."""
        if self.metric is None or self.metric.key != "top1":
            return None
        decided = self.decision_scores(outputs)
        if decided is None or decided.ndim != 2 or decided.shape[1] <= _BEST:
            return None
        top5 = Metric("top5", self.metric.output, self.metric.target)
        return score_of(top5, top5.scores(self.named(outputs), self.targets))

    def decision_scores(self, outputs: Named) -> Float64Array | None:
        """The scores of each decision, shape (N, ..., classes); None where nothing decides.

        Of two classes at least; a single one holds the number of the class itself, where that is the output.
        """
        output = as_float64(self.named(outputs)[self.output], f"output '{self.output}'")
        if self.metric is not None and self.metric.is_decided:
            return output[..., np.newaxis]
        if self.metric is not None and self.metric.decides:
            return self._by_labels(output, self.metric)
        if self.kind is None or (self.metric is not None and self.metric.key in _OF_VALUES):
            return None
        if self.kind.meaning is Meaning.CLASSES:
            return np.moveaxis(output, self.kind.axis, -1)
        if self.kind.meaning is Meaning.PROBABILITIES:
            return _two_classes(output, is_probability=self.kind.form != "logits")
        return None

    def decisions(self, outputs: Named) -> Array | None:
        """The class of each decision, shape (N, ...); `NO_CLASS` throughout a sample that is not finite."""
        scores = self.decision_scores(outputs)
        if scores is None:
            return None
        if scores.shape[-1] == 1:
            return scores[..., 0].astype(np.int64)
        decided = np.nan_to_num(scores).argmax(axis=-1)
        decided[~finite_rows(scores)] = NO_CLASS
        return np.asarray(decided)

    def _by_labels(self, output: Float64Array, metric: Metric) -> Float64Array | None:
        """The scores that the labels are held against."""
        assert metric.target is not None
        shape = self.targets[metric.target].shape
        scores = class_scores(output, shape)
        if scores is None and shape[-1] == 1:  # (N, 1), as tables have them
            scores = class_scores(output, shape[:-1])
        if scores is not None and scores.shape[-1] == 1:
            return _two_classes(scores[..., 0], is_probability=metric.threshold > 0)
        return None if scores is None else scores.astype(np.float64)


def choose_judge(
    wanted: str | Function | None,
    outputs: Named,
    targets: Named,
    *,
    output: str | None,
    kinds: Mapping[str, OutputKind],
) -> Judge:
    """The judge of a set.

    Args:
        wanted: the metric, see `choose_metric`.
        outputs: of the reference over the set, by name.
        targets: of the same samples, by name; empty without labels.
        output: the one that is judged; None leaves it to `choose_metric`, and is the first without labels.
        kinds: how the outputs are read, as far as it is known.

    Raises:
        InputError, DataError: see `choose_metric`; also a metric without labels.
    """
    names = tuple(outputs)
    if not targets:
        if wanted is not None:
            raise DataError("--metric: the data has no array 'labels' that an output could be held against")
        if output is not None and output not in outputs:
            raise InputError(f"--metric-output {output}: the model has {', '.join(names)}")
        judged = output or names[0]
        return Judge(names, judged, None, {}, kinds.get(judged))
    probabilities = frozenset(name for name, kind in kinds.items() if kind.form == "probabilities")
    metric = choose_metric(wanted, outputs, targets, output=output, probabilities=probabilities)
    judged = metric.output or output or names[0]
    return Judge(names, judged, metric, targets, kinds.get(judged))


def _two_classes(values: Float64Array, *, is_probability: bool) -> Float64Array:
    """The scores of both sides of decisions by a single number, on a new last axis."""
    return np.stack([1 - values if is_probability else np.zeros_like(values), values], axis=-1)
