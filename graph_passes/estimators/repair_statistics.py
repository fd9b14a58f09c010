"""The pass that writes estimated statistics into BatchNorms."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import find_modules
from vsfix.graph_passes.ir.graph_pass import Change, PassResult, Skipped
from vsfix.graph_passes.statistics.estimate import Estimate


class RepairStatistics:
    """Writes each estimate into its BatchNorm; the BatchNorms without one are skipped, for the reason given.

    Args:
        estimates: by the name of the BatchNorm.
        reasons: why each other BatchNorm is skipped, by its name.
    """

    name = "repair statistics"

    def __init__(self, estimates: Mapping[str, Estimate], reasons: Mapping[str, str]) -> None:
        self._estimates = estimates
        self._reasons = reasons

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place.

        Raises:
            ModelError: a value that is not finite or negative; the statistics before it are written by then.
        """
        changed: list[Change] = []
        skipped: list[Skipped] = []
        for batch_norm in find_modules(graph):
            estimate = self._estimates.get(batch_norm.name)
            if estimate is None:
                skipped.append(Skipped(batch_norm.name, self._reasons.get(batch_norm.name, "no estimate was made")))
                continue
            if estimate.invalid.all():
                skipped.append(Skipped(batch_norm.name, "no channel has a variance that the data shows"))
                continue
            before = batch_norm.mean, batch_norm.variance
            after = batch_norm.with_statistics(estimate.mean, estimate.variance)
            if (before[0] != after.mean).any() or (before[1] != after.variance).any():
                changed.append(Change(batch_norm.name, _action(estimate)))
            else:
                skipped.append(Skipped(batch_norm.name, _no_evidence(estimate)))
        return PassResult(self.name, tuple(changed), tuple(skipped))


def _action(estimate: Estimate) -> str:
    """The action on one BatchNorm, for the report."""
    if not estimate.invalid_channels:
        return "repaired"
    size = estimate.invalid.size
    return (
        f"repaired in {size - estimate.invalid_channels} of {size} channels; the others have no valid variance and "
        "are unchanged"
    )


def _no_evidence(estimate: Estimate) -> str:
    """Why an estimate changed nothing."""
    if estimate.interval is None:
        return "the estimate equals the stored statistics"
    low, high = estimate.interval
    return f"the data shows no shift beyond chance: {low:.3f} to {high:.3f}, and its channels scatter no more"
