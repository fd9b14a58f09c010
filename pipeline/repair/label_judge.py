"""The judgement of labelled data: one score a sample, by one metric that is chosen once and holds for every model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from vsfix.graph_passes.errors import CheckFailedError, DataError
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.ir.runtime import Array, Float64Array, OpenModel, side_by_side
from vsfix.graph_passes.measurement.measurement import run_size
from vsfix.graph_passes.noise_average.divergence import recognise_outputs
from vsfix.graph_passes.statistics.batches import Batch, take_rows
from vsfix.pipeline.comparison.metric import Function, Metric, choose_metric
from vsfix.pipeline.comparison.score_difference import ScoreDifference, compare_scores
from vsfix.pipeline.data.calibration import fixed_batch_size
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.inspection.noise_study import MOST

_LOOKED_AT = 64  # samples of the whole set, which show what an output is


@dataclass(frozen=True)
class LabelScores(ScoreDifference):
    """The file as given and what is written, on labelled data.

    Attributes:
        max_loss: the largest loss that is accepted, in the unit of the metric; None accepts what may be chance.
        outputs: how many the model has.
        unjudged: the outputs that no label judges.
        kept: the share of the metric of the file as given that what is written keeps; None where there is no number.
        keep: the share that was to be kept, which accepts a loss too; None where that was not asked for.
    """

    max_loss: float | None = None
    outputs: int = 1
    unjudged: tuple[str, ...] = ()
    kept: float | None = None
    keep: float | None = None

    @property
    def subject(self) -> str:
        """The metric, with the output that is judged where the model has several."""
        return self.metric if self.output is None or self.outputs == 1 else f"{self.metric} of '{self.output}'"

    @property
    def sentence(self) -> str:
        """Both scores in the verdict."""
        return replace(self, metric=self.subject).arrow

    @property
    def allowed(self) -> str:
        """The option that allows a loss, as it is said after one; empty without."""
        if self.max_loss is not None:
            return f", within --max-loss {self.max_loss:g}"
        return "" if self.keep is None else f", within --keep-metric {self.keep:g}"

    def require_no_loss(self, data: str, advice: str) -> None:
        """Refuses a loss beyond `max_loss`; where none is given, one that is more than chance.

        Raises:
            CheckFailedError: with both scores, the interval and the test.
        """
        if self.max_loss is None:
            is_kept = self.keep is not None and self.kept is not None and self.kept >= self.keep
            if not self.is_worse or is_kept:
                return
            beyond = "" if self.keep is None else f" is beyond --keep-metric {self.keep:g}"
        elif not self.loses_more_than(self.max_loss):
            return
        else:
            beyond = f" is beyond --max-loss {self.max_loss:g}"
        raise CheckFailedError(
            f"refused: on {data} the repaired model has {self.subject} {self.value(self.after)}, the original "
            f"{self.value(self.before)}: {self.details}{beyond}; no model is written; {advice}"
        )


@dataclass(frozen=True, eq=False)
class LabelJudge:
    """Labelled samples, the metric, and the runtime that runs a model over them.

    Attributes:
        samples: with labels or other targets.
        metric: one for all models.
        open_model: the runtime.
        batch_size: samples per run, at most; large ones make small runs, so that a set of any size is streamed. Where
            the metric needs all outputs at once they are held.
        outputs: the names of those that the model has.
        max_loss: see `LabelScores`.
        keep: the share of the metric that a cast is to keep; None where that is not asked for.
        others: of each other output that has a target of its own name; none where a function has all outputs.
    """

    samples: Samples
    metric: Metric
    open_model: OpenModel
    batch_size: int
    outputs: tuple[str, ...] = ()
    max_loss: float | None = None
    keep: float | None = None
    others: tuple[Metric, ...] = ()

    @classmethod
    def of(
        cls,
        model: onnx.ModelProto,
        samples: Samples,
        open_model: OpenModel,
        batch_size: int,
        *,
        metric: str | Function | None = None,
        output: str | None = None,
        output_kinds: Mapping[str, str] | None = None,
        max_loss: float | None = None,
        keep: float | None = None,
    ) -> LabelJudge:
        """Chooses the metric from what the file as given computes on some of the samples.

        Args:
            model: the file as given, deployable.
            samples: see the class.
            open_model: see the class.
            batch_size: see the class.
            metric: see `choose_metric`.
            output: the one that is judged; None where the targets, or the first of them, tell.
            output_kinds: what outputs mean, by name, where a person says it.
            max_loss: see the class.
            keep: see the class.

        Raises:
            InputError, DataError: see `choose_metric`; also targets that are not finite.
        """
        outputs = _outputs_of_some(model, samples, open_model, batch_size)
        finite = {name: array for name, array in outputs.items() if np.isfinite(array).all()}
        told = {name: kind for name, kind in (output_kinds or {}).items() if name in finite}
        kinds = recognise_outputs(import_graph(model), finite, told)
        probabilities = frozenset(name for name, kind in kinds.items() if kind.form == "probabilities")
        targets = samples.all_targets

        def choose(wanted: str | Function | None, name: str | None) -> Metric:
            try:
                chosen = choose_metric(wanted, outputs, targets, output=name, probabilities=probabilities)
            except DataError as error:
                raise DataError(f"{samples.name}: {error}") from None
            if chosen.target is not None and not np.isfinite(targets[chosen.target]).all():
                raise DataError(f"{samples.name}: array '{chosen.target}' holds labels that are not finite")
            return chosen

        chosen = choose(metric, output)
        rest = [name for name in outputs if name in targets and name != chosen.output]
        others = () if chosen.needs_all else tuple(choose(None, name) for name in rest)
        return cls(samples, chosen, open_model, batch_size, tuple(outputs), max_loss, keep, others)

    @property
    def unjudged(self) -> tuple[str, ...]:
        """The outputs that no label judges."""
        judged = {metric.output for metric in (self.metric, *self.others)}
        return () if self.metric.needs_all else tuple(name for name in self.outputs if name not in judged)

    def scores(self, model: onnx.ModelProto) -> Float64Array:
        """One score a sample, the higher the better, shape (N,); see `all_scores`."""
        return self.all_scores(model)[0]

    def all_scores(self, model: onnx.ModelProto) -> tuple[Float64Array, ...]:
        """One score a sample by the metric and by each of `others`, the worst there is where an output is not finite.

        Raises:
            DataError: targets that do not fit the output.
            InputError: the user's own function fails.
        """
        targets = self.samples.all_targets
        fixed = fixed_batch_size(model)
        size = fixed or min(self.batch_size, run_size([self.samples.inputs]))
        with self.open_model(model) as runner:

            def run(start: int) -> Mapping[str, Array]:
                missing = start + size - len(self.samples) if fixed else 0
                if missing <= 0:
                    return runner.run(dict(take_rows(self.samples.inputs, slice(start, start + size))))
                # A batch of one size is filled up by the last sample, whose answers are then left out.
                rows = np.minimum(np.arange(start, start + size), len(self.samples) - 1)
                outputs = runner.run(dict(take_rows(self.samples.inputs, rows)))
                return {name: array[: size - missing] for name, array in outputs.items()}

            def score(start: int) -> list[Float64Array]:
                of_run, outputs = {name: array[start : start + size] for name, array in targets.items()}, run(start)
                return [metric.scores(outputs, of_run) for metric in (self.metric, *self.others)]

            starts = range(0, len(self.samples), size)
            if not self.metric.needs_all:
                found = zip(*side_by_side(score, starts, runner.concurrency), strict=True)
                return tuple(np.concatenate(parts) for parts in found)
            parts = list(side_by_side(run, starts, runner.concurrency))
        outputs = {name: np.concatenate([np.atleast_1d(part[name]) for part in parts]) for name in parts[0]}
        return (self.metric.scores(outputs, targets),)

    def compare(self, reference: Float64Array, found: Float64Array) -> LabelScores:
        """A model beside a reference.

        Args:
            reference: its scores, shape (N,).
            found: those of the model on the same samples.
        """
        return LabelScores(
            **vars(compare_scores(self.metric, reference, found)),
            max_loss=self.max_loss,
            outputs=len(self.outputs),
            unjudged=self.unjudged,
            kept=_finite(self.metric.kept(float(reference.mean()), float(found.mean()))),
            keep=self.keep,
        )

    def compare_others(
        self, reference: Sequence[Float64Array], found: Sequence[Float64Array]
    ) -> tuple[LabelScores, ...]:
        """The same for each of `others`, where a loss beyond chance is none that an option accepts.

        Args:
            reference: the scores of `all_scores`.
            found: those of the model.
        """
        return tuple(
            LabelScores(**vars(compare_scores(metric, before, after)), outputs=len(self.outputs))
            for metric, before, after in zip(self.others, reference[1:], found[1:], strict=True)
        )


def has_targets(model: onnx.ModelProto, samples: Samples) -> bool:
    """Whether data says what an output should be: by `labels`, or by an array with the name of an output."""
    return samples.labels is not None or any(tensor.name in samples.targets for tensor in model.graph.output)


def batches_of_some(samples: Samples, model: onnx.ModelProto, batch_size: int, seed: int) -> list[Batch]:
    """Some of the samples of a set, as many as a study takes, in batches that the model takes.

    Raises:
        DataError: too few for one batch of a prescribed size.
    """
    fixed = fixed_batch_size(model)
    count = min(len(samples), MOST)
    if fixed is None:
        return list(samples.subset(count, seed=seed).batches(batch_size))
    if len(samples) < fixed:
        raise DataError(f"{samples.name}: the model takes batches of {fixed}; {len(samples)} samples are too few")
    return list(samples.subset(max(count // fixed, 1) * fixed, seed=seed).batches(fixed))


def cross_fitted(scores: dict[str, Float64Array]) -> Float64Array:
    """The scores that a choice by labels reaches on samples that had no part in it, shape (N,).

    The even samples choose for the odd ones, and the other way round.
    """
    names = list(scores)
    table = np.stack([scores[name] for name in names])  # (candidates, N)
    reached = np.empty(table.shape[1])
    even = np.arange(table.shape[1]) % 2 == 0
    for choosing in (even, ~even):
        best = int(table[:, choosing].mean(axis=1).argmax()) if choosing.any() else 0
        reached[~choosing] = table[best, ~choosing]
    return reached


def _finite(value: float) -> float | None:
    """A number that JSON has; None for the others."""
    return value if np.isfinite(value) else None


def _outputs_of_some(
    model: onnx.ModelProto, samples: Samples, open_model: OpenModel, batch_size: int
) -> dict[str, Array]:
    """The outputs of a model over samples from all of the set, which may be ordered by class."""
    fixed = fixed_batch_size(model)
    size = fixed or min(batch_size, run_size([samples.inputs]))
    count = max(_LOOKED_AT // size, 1) * size
    count = count if fixed else min(len(samples), count)  # a batch of one size may hold a sample twice
    rows = np.linspace(0, len(samples) - 1, count).round().astype(np.int64)
    with open_model(model) as runner:
        parts = [runner.run(dict(take_rows(samples.inputs, rows[at : at + size]))) for at in range(0, count, size)]
    return {name: np.concatenate([np.atleast_1d(part[name]) for part in parts]) for name in parts[0]}
