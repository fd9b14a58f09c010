"""What a model in another precision is held against: the same model in float32, on labels where there are some.

The share of a metric that a cast keeps, s the metric of the float32 model and c that of the cast one:

    what is better the higher      1 - (s - c) / |s|      which is c / s where s is positive, as R2 need not be
    errors                         s / c
    without labels                 the agreement with the float32 model (`comparison.agreement`)

Of several outputs the one that keeps least counts: the labels judge one, the agreement the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import onnx

from vsfix.graph_passes.errors import CheckFailedError
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.ir.runtime import Array, Float64Array, OpenModel
from vsfix.graph_passes.noise_average.divergence import OutputKind
from vsfix.graph_passes.statistics.batches import Batch, count_samples
from vsfix.pipeline.comparison.agreement import DECISIONS, compared_outputs, measure_of, output_agreement
from vsfix.pipeline.comparison.metric import Metric
from vsfix.pipeline.comparison.score_difference import FEWEST, ScoreDifference, compare_scores
from vsfix.pipeline.comparison.tensor_comparison import comparable, compare_tensors


class Labels(Protocol):
    """Labelled samples and their metric."""

    @property
    def metric(self) -> Metric:
        """One for all models."""

    @property
    def max_loss(self) -> float | None:
        """The largest loss that is accepted, in the unit of the metric; None accepts what may be chance."""

    def scores(self, model: onnx.ModelProto) -> Float64Array:
        """One score a sample, shape (N,)."""


@dataclass(frozen=True)
class Judgement:
    """The numbers of a cast that was accepted.

    Attributes:
        snr_db: the worst of its candidates; None where nothing differs, or nothing was run.
        scores: the worst on the labels; None without, or with too few.
        warnings: what a person should know.
    """

    snr_db: float | None = None
    scores: ScoreDifference | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class CastJudge:
    """The float32 model, and the samples that a cast one is compared with it on.

    Attributes:
        model: in float32.
        batches: the samples; may be empty.
        open_model: the runtime.
        labels: labelled samples; None without.
        output_kinds: what outputs mean, by name, where a person says it.
    """

    model: onnx.ModelProto
    batches: Sequence[Batch]
    open_model: OpenModel
    labels: Labels | None = None
    output_kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many there are."""
        return count_samples(self.batches)

    @property
    def runtime(self) -> str:
        """What runs the models, in words."""
        return self._before[0]

    @property
    def expected(self) -> dict[str, Array]:
        """The outputs of the float32 model."""
        return self._before[1]

    def outputs(self, model: onnx.ModelProto) -> dict[str, Array]:
        """The outputs of a model for all samples: a batch may hold a single one, whose ratio is unknown."""
        return self._run(model)[1]

    def snr_db(self, found: Mapping[str, Array], without: str | None = None) -> float:
        """The smallest signal to noise ratio of an output, in dB; infinite where nothing differs.

        Over the float outputs; whole numbers, as those of ArgMax, count only where there is nothing else.

        Args:
            found: the outputs of a cast model.
            without: an output that is not looked at.
        """
        names = [name for name, array in self.expected.items() if array.dtype.kind == "f"] or list(self.expected)
        compared = (comparable(self.expected[name], found[name]) for name in names if name != without)
        return min((compare_tensors(*pair).snr_db for pair in compared), default=np.inf)

    def scored(self, model: onnx.ModelProto) -> ScoreDifference | None:
        """A cast model beside the float32 one on the labels; None where they are too few to tell anything."""
        if self.labels is None or len(self._reference) < FEWEST:
            return None
        return compare_scores(self.labels.metric, self._reference, self.labels.scores(model))

    def kept(self, models: Sequence[onnx.ModelProto]) -> float:
        """The share that a cast model keeps, 1 where nothing is lost; minus infinity where an output is not finite.

        Args:
            models: that stand for it; the worst counts.
        """
        return min(self._kept(model) for model in models)

    @property
    def subject(self) -> str:
        """What is kept, in words."""
        if self.labels is not None:
            metric = self.labels.metric
            of = "" if metric.output is None else f" of '{metric.output}'"
            others = f", and the agreement of {', '.join(self._unjudged)} with float32" if self._unjudged else ""
            return f"{metric.name}{of} on the labels{others}"
        measures = {measure_of(kind) for kind in self._kinds.values()}
        said = " and ".join(sorted(measures)) or DECISIONS
        return f"agreement with float32 on {self.samples} samples ({said})"

    def judgement(
        self, candidates: Sequence[onnx.ModelProto], precision: str, gate: float, keep: float | None
    ) -> Judgement:
        """The worst SNR and scores of a cast; refuses what loses too much where no share is to be kept.

        Args:
            candidates: that stand for it.
            precision: as `--precision` takes it.
            gate: the least SNR of what no label judges.
            keep: the share of the metric that was kept; None where none was wanted.

        Raises:
            CheckFailedError: with the SNR and the metric.
        """
        worst, apart = np.inf, np.inf
        judged = None if self.labels is None else self.labels.metric.output
        for candidate in candidates:
            found = self.outputs(candidate)
            worst = min(worst, self.snr_db(found))
            apart = min(apart, self.snr_db(found, judged)) if judged is not None else np.inf
        scored = [told for candidate in candidates if (told := self.scored(candidate)) is not None]
        scores = min(scored, key=lambda told: told.gain, default=None)
        if keep is not None:
            warnings = self._doubts(worst, keep, precision, gate)
        else:
            warnings = self._require(worst, scores, apart, precision, gate)
        return Judgement(None if np.isinf(worst) else worst, scores, warnings)

    def _require(
        self, snr_db: float, scores: ScoreDifference | None, apart: float, precision: str, gate: float
    ) -> tuple[str, ...]:
        """Refuses a cast that loses too much; a warning where labels let pass what the gate would have refused.

        `apart` is the SNR of the outputs that no label judges.
        """
        if scores is None:
            if snr_db >= gate:
                return ()
            raise CheckFailedError(_refused(precision, f"SNR {snr_db:.1f} dB, wanted {gate:.0f}"))
        limit = None if self.labels is None else self.labels.max_loss
        told = f"SNR {snr_db:.1f} dB; on the labels {scores.arrow}: {scores.details}"
        if not snr_db > -np.inf or not apart >= gate:
            raise CheckFailedError(_refused(precision, f"{told}; outputs without labels {apart:.1f} dB"))
        is_lost = scores.is_worse if limit is None else scores.loses_more_than(limit)
        if is_lost:
            raise CheckFailedError(
                _refused(precision, told + ("" if limit is None else f", beyond --max-loss {limit:g}"))
            )
        if snr_db >= gate:
            return ()
        if limit is None and not scores.interval[0] >= -_RULED_OUT * abs(scores.before):
            few = f"the labels don't rule out that {100 * _RULED_OUT:g} % are lost: more of them may, or --max-loss"
            raise CheckFailedError(_refused(precision, f"{told}; wanted {gate:.0f} dB, for {few}"))
        said = (
            f"in {precision} the outputs differ from those in float32 (SNR {snr_db:.1f} dB, below {gate:.0f}), and the "
            f"labels show no loss that is more than chance: {scores.details}"
        )
        return (said,)

    def _doubts(self, snr_db: float, keep: float, precision: str, gate: float) -> tuple[str, ...]:
        """What a share that is kept leaves open: outputs below the gate, or too few labels or decisions to tell it."""
        warnings = []
        if not snr_db >= gate:
            warnings.append(
                f"in {precision} the outputs differ from those in float32 (SNR {snr_db:.1f} dB, below {gate:.0f}); the "
                f"share that was to be kept is that of {self.subject}"
            )
        count = self._decisions
        if self.labels is not None and len(self._reference) < FEWEST:
            warnings.append(
                f"{len(self._reference)} labelled samples can't tell whether {keep:g} is kept; give {FEWEST} or more"
            )
        elif count is not None and keep < 1 and count * (1 - keep) < 1:
            warnings.append(
                f"{count} decisions can't tell whether {keep:g} is kept, for one of them is {100 / count:.2g} %; give "
                f"{int(np.ceil(1 / (1 - keep)))} or more"
            )
        return tuple(warnings)

    @cached_property
    def _before(self) -> tuple[str, dict[str, Array]]:
        """The runtime, and the outputs of the float32 model."""
        return self._run(self.model)

    def _run(self, model: onnx.ModelProto) -> tuple[str, dict[str, Array]]:
        """The runtime and the outputs of a model."""
        with self.open_model(model) as runner:
            name, runs = runner.name, [runner.run(batch) for batch in self.batches]
        return name, {key: np.concatenate([np.atleast_1d(run[key]) for run in runs]) for key in runs[0]}

    @cached_property
    def _reference(self) -> Float64Array:
        """The scores of the float32 model."""
        assert self.labels is not None
        return self.labels.scores(self.model)

    @cached_property
    def _kinds(self) -> dict[str, OutputKind | None]:
        """How each output that is compared is read."""
        return compared_outputs(import_graph(self.model), self.expected, self.output_kinds)

    @property
    def _unjudged(self) -> list[str]:
        """The outputs that no label judges."""
        if self.labels is None:
            return list(self._kinds)
        judged = self.labels.metric.output
        return [] if judged is None else [name for name in self._kinds if name != judged]

    @property
    def _decisions(self) -> int | None:
        """How many decisions the share is counted in; None where it is of values."""
        if self.labels is not None:
            return len(self._reference) if self.labels.metric.is_share else None
        counts = []
        for name, kind in self._kinds.items():
            output = self.expected[name]
            decided = output if kind is None else kind.decisions(kind.probabilities(output))
            if decided is not None:
                counts.append(int(decided.size))
        return min(counts, default=None)

    def _kept(self, model: onnx.ModelProto) -> float:
        """The share that one model keeps."""
        found = self.outputs(model)
        if not all(np.isfinite(found[name]).all() for name in self._kinds):
            return -np.inf
        shares = []
        for name in self._unjudged:
            shares.append(output_agreement(self._kinds[name], self.expected[name], found[name]))
        if self.labels is not None:
            scores = self.labels.scores(model)
            shares.append(self.labels.metric.kept(float(self._reference.mean()), float(scores.mean())))
        return min(shares)


_RULED_OUT = 0.05  # of the metric: a larger loss must be out of the interval where the SNR is below its gate


def _refused(precision: str, told: str) -> str:
    """The message of a refusal."""
    advice = "or leave the precision as it is"
    if precision == "fp16":
        advice = "or try --precision bf16"
    elif precision in ("int8", "fp8"):
        advice = "or try --precision fp16, or more calibration data"
    return (
        f"refused: in {precision} the model differs from what it was ({told}); nothing is written; --keep-metric 0.99 "
        f"leaves the layers that lose most in float32, {advice}"
    )
