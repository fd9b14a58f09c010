"""The row of a benchmark, made of what its model gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from vsfix.graph_passes.errors import MissingComponentError, VsfixError
from vsfix.graph_passes.statistics.batches import take_rows
from vsfix.pipeline.comparison.error_budget import pair_outputs
from vsfix.pipeline.comparison.judgement import Judge
from vsfix.pipeline.comparison.layer_search import LayerSearch
from vsfix.pipeline.comparison.score_difference import Score, score_of
from vsfix.pipeline.comparison.tolerance import GivenTolerance
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.verification.tappable import search_files
from vsfix.pipeline.verification.verification import missed_tolerances, worst_samples

from .latency import Latency
from .measurement import Measured, before_repair, budget_of, compare_rows
from .result import Comparison, Row
from .row_latency import reason_against_timing
from .variant import Variant

_ROUNDING = 1e-9
_BUILT = "an engine that was built for this run is not searched; give it to `vsfix verify`"


def make_row(
    variant: Variant,
    measured: Sequence[Measured],
    samples: Samples,
    judge: Judge,
    latencies: Sequence[Latency],
) -> Row:
    """A row that has run.

    Args:
        variant: one that was measured and judged.
        measured: all rows that have run; the first is the reference.
        samples: that they ran on.
        judge: of all rows.
        latencies: of this row.
    """
    found = next(other for other in measured if other.variant == variant)
    own = next(other for other in measured if other.variant.model == variant.model)

    @cache  # one row is often the first of the model, the reference and the one before the repair
    def against(baseline: Measured) -> Comparison | None:
        return None if baseline is found else compare_rows(found, baseline, judge)

    against_own = against(own)
    reasons = _departures(found, own, against_own)
    unrepaired = before_repair(found, measured)
    return Row(
        label=variant.label,
        model=variant.model.label,
        backend=variant.backend,
        precision=variant.precision,
        repaired=variant.model.repaired,
        status="WARN" if reasons else "PASS",
        reasons=reasons,
        runner=found.runner,
        size=found.deployed.size,
        build_seconds=found.deployed.build_seconds,
        cast=found.deployed.cast,
        score=_score(found, judge),
        top5=judge.top5(found.outputs),
        against_reference=against(measured[0]),
        against_own=against_own,
        against_unrepaired=None if unrepaired is None else against(unrepaired),
        retention_bar=None if against_own is None else against_own.retention_bar,
        layers=search_row(found, own, samples) if reasons and found is not own and own.not_finite is None else None,
        budget=budget_of(found, measured, judge),
        latencies=tuple(latencies),
        latency_note=reason_against_timing(variant),
    )


def _score(found: Measured, judge: Judge) -> Score | None:
    """The metric of a row; None without labels."""
    return None if judge.metric is None or found.scores is None else score_of(judge.metric, found.scores)


def failed_row(variant: Variant, error: VsfixError) -> Row:
    """A row that did not run: skipped where a component is missing here, else failed."""
    return Row(
        label=variant.label,
        model=variant.model.label,
        backend=variant.backend,
        precision=variant.precision,
        repaired=variant.model.repaired,
        status="SKIP" if isinstance(error, MissingComponentError) else "FAIL",
        reasons=(str(error),),
        latency_note="it did not run",
    )


def _departures(row: Measured, own: Measured, against_own: Comparison | None) -> tuple[str, ...]:
    """Where a row differs from the first row of its model by more than its precision explains."""
    if (bad := row.not_finite) is not None:
        return (f"its output '{bad}' holds NaN or infinity",)
    if row is own:
        return ()
    if against_own is None:
        return (f"{own.variant.label} is not finite: nothing can be compared with it",)
    tolerance = GivenTolerance().resolve(own.variant.precision, row.variant.precision)
    missed = missed_tolerances(against_own.outputs, against_own.decisions, tolerance)
    return (*missed, *_lost(against_own, tolerance.max_accuracy_loss))


def _lost(against_own: Comparison, allowed: float) -> tuple[str, ...]:
    """The loss of the metric, where it is larger than allowed.

    Args:
        against_own: the row against the first one of its model.
        allowed: percentage points of a share; of another metric, in percent, what need not be kept of it where the loss
            is more than chance.
    """
    found = against_own.difference
    if found is None:
        return ()
    after = f"{found.metric} {found.value(found.after)}"
    if found.unit:
        if -found.gain <= allowed + _ROUNDING:
            return ()
        return (f"{after}, {-found.gain:.2f} percentage points below the reference, allowed are {allowed:g}",)
    if against_own.retention is not None:
        kept = 100 * against_own.retention
    else:  # no ratio of what is 0 or below
        kept = 100 * (1 + found.gain / abs(found.before)) if found.before else -np.inf
    if not found.is_worse or kept >= 100 - allowed - _ROUNDING:
        return ()
    return (f"{after} after {found.value(found.before)}: {kept:.2f} % kept, wanted {100 - allowed:g} %",)


def search_row(row: Measured, own: Measured, samples: Samples) -> LayerSearch:
    """Holds the inner tensors of a row against those of the first row of its model, on the samples that are worst.

    Args:
        row: one that differs; its file must still be there.
        own: the first row of its model.
        samples: that both ran on.

    Returns:
        The first tensor that differs and the worst, or the reason why none is known; without the other tensors.
    """
    pairs = pair_outputs(own.outputs, row.outputs, row.variant.label)
    worst = np.array(worst_samples(pairs), dtype=np.intp)
    if row.variant.is_built or own.variant.is_built:
        return LayerSearch(own.variant.label, len(worst), (), None, None, _BUILT)
    inputs = dict(take_rows(samples.inputs, worst))
    tolerance = GivenTolerance().resolve(own.variant.precision, row.variant.precision)
    sides = [(replace(side.variant.model, path=side.deployed.path), side.variant.backend, None) for side in (own, row)]
    return replace(search_files(sides, next(iter(inputs)), inputs, tolerance.min_snr_db), rows=())
