"""The row of a benchmark, made of what its model gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vsfix.graph_passes.errors import MissingComponentError, VsfixError
from vsfix.pipeline.comparison.decisions import compare_decisions
from vsfix.pipeline.comparison.error_budget import pair_outputs
from vsfix.pipeline.comparison.layer_search import LayerSearch
from vsfix.pipeline.comparison.tolerance import GivenTolerance
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.verification.tappable import search_files
from vsfix.pipeline.verification.verification import missed_tolerances, worst_samples

from .latency import Latency
from .measurement import Measured, before_repair, budget_of, compare_rows
from .result import Comparison, Row
from .row_latency import reason_against_timing
from .variant import Variant

_BUILT = "an engine that was built for this run is not searched; give it to `vsfix verify`"


def make_row(
    variant: Variant,
    measured: Sequence[Measured],
    samples: Samples,
    latencies: Sequence[Latency],
) -> Row:
    """A row that has run.

    Args:
        variant: one that was measured.
        measured: all rows that have run; the first is the reference.
        samples: that they ran on, with their labels.
        latencies: of this row.

    Raises:
        DataError: the reference is not finite, or the labels name no class.
    """
    labels = samples.labels
    assert labels is not None
    found = next(other for other in measured if other.variant == variant)
    own = next(other for other in measured if other.variant.model == variant.model)
    against_own = None if found is own else compare_rows(found, own, labels)
    reasons = _departures(found, own, against_own)
    own_task = None if against_own is None else against_own.decisions.task
    unrepaired = before_repair(found, measured)
    task = compare_decisions(measured[0].logits, found.logits, labels).task
    assert task is not None
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
        top1=task.output,
        top5=task.output_top5,
        against_reference=None if found is measured[0] else compare_rows(found, measured[0], labels),
        against_own=against_own,
        against_unrepaired=None if unrepaired is None else compare_rows(found, unrepaired, labels),
        difference_interval=None if found is measured[0] else task.difference_interval,
        retention_bar=None if own_task is None else own_task.retention_bar,
        layers=search_row(found, own, samples) if reasons and found is not own and own.is_finite else None,
        budget=budget_of(found, measured, labels),
        latencies=tuple(latencies),
        latency_note=reason_against_timing(variant),
    )


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
    if not row.is_finite:
        return ("its logits hold NaN or infinity",)
    if row is own:
        return ()
    if against_own is None:
        return (f"{own.variant.label} is not finite: nothing can be compared with it",)
    tolerance = GivenTolerance().resolve(own.variant.precision, row.variant.precision)
    return tuple(missed_tolerances(against_own.outputs, against_own.decisions, tolerance))


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
    worst = list(worst_samples(pairs))
    if row.variant.is_built or own.variant.is_built:
        return LayerSearch(own.variant.label, len(worst), (), None, None, _BUILT)
    inputs = {name: array[worst] for name, array in samples.inputs.items()}
    tolerance = GivenTolerance().resolve(own.variant.precision, row.variant.precision)
    sides = [(replace(side.variant.model, path=side.deployed.path), side.variant.backend, None) for side in (own, row)]
    return replace(search_files(sides, next(iter(inputs)), inputs, tolerance.min_snr_db), rows=())
