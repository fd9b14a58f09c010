"""The estimates of a method of re-estimation: what each BatchNorm should store for its real statistics to agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vsfix.graph_passes.estimators.analytic import analytic
from vsfix.graph_passes.estimators.exact import exact
from vsfix.graph_passes.estimators.paired import PairedConfig, paired
from vsfix.graph_passes.ir.runtime import OpenModel
from vsfix.graph_passes.statistics.batches import Batch
from vsfix.graph_passes.statistics.estimate import Estimate
from vsfix.pipeline.inspection.preparation import PreparedModel

from .made_inputs import NO_USER_DATA, MadeInputs
from .repair_config import RepairConfig


@dataclass(frozen=True)
class Estimation:
    """What was estimated, and from what.

    Attributes:
        estimates: by the name of the BatchNorm.
        methods: what estimated each, by the same names.
        reasons: why a BatchNorm that was asked for has none, by its name.
        data: what it rests on, in words.
        batches: what it was run on; empty for the closed forms.
        warnings: what a person should know.
    """

    estimates: Mapping[str, Estimate]
    methods: Mapping[str, str]
    reasons: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    batches: Sequence[Batch] = ()
    warnings: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """The samples that the estimates took, at most."""
        return max((estimate.samples for estimate in self.estimates.values()), default=0)


def estimate_statistics(
    method: str,
    prepared: PreparedModel,
    batches: Sequence[Batch],
    open_model: OpenModel,
    layers: Sequence[str],
    config: RepairConfig,
    made: MadeInputs | None = None,
) -> Estimation:
    """Runs one method.

    Args:
        method: `paired`, `exact` or `analytic`.
        prepared: the model, its noise marked.
        batches: the data; for `analytic` it may be empty.
        open_model: the runtime.
        layers: names of the BatchNorms to estimate.
        config: how to run.
        made: what the data is where the user gave none.

    Raises:
        DataError: data that can't carry an estimate.
    """
    if method == "analytic":
        return _by_closed_forms(prepared, batches, layers)
    graph = prepared.graph
    if method == "paired":
        precision = 0.0 if made is not None else config.precision
        how = PairedConfig(config.seed, config.repeats, precision, config.max_memory)
        estimates = paired(graph, batches, open_model, layers, how)
    else:
        estimates = exact(graph, batches, open_model, layers, max_memory=config.max_memory)
    used = max((estimate.samples for estimate in estimates.values()), default=0)
    data = made.data if made is not None else f"{used} samples of the data"
    return Estimation(estimates, dict.fromkeys(estimates, method), data=data, batches=batches)


def _by_closed_forms(prepared: PreparedModel, batches: Sequence[Batch], layers: Sequence[str]) -> Estimation:
    """The closed forms; what they can't see is said, for a network that is half repaired may be worse than before."""
    closed, reasons = analytic(prepared.graph, layers)
    warnings: tuple[str, ...] = ()
    if reasons:
        warnings = (
            f"the closed forms say nothing of {len(reasons)} BatchNorms that noise reaches too; those keep statistics "
            "that no longer fit, which can cost more than it brings: take match or paired",
        )
    return Estimation(
        closed, dict.fromkeys(closed, "analytic"), reasons, NO_USER_DATA + "closed forms", batches, warnings
    )
