"""Where a row departs from the first row of its model: the first layer, and the worst."""

from __future__ import annotations

from dataclasses import replace

from vsfix.pipeline.comparison.error_budget import pair_outputs
from vsfix.pipeline.comparison.layer_search import LayerSearch
from vsfix.pipeline.comparison.tolerance import GivenTolerance
from vsfix.pipeline.data.calibration import Samples
from vsfix.pipeline.verification.tappable import search_files
from vsfix.pipeline.verification.verification import worst_samples

from .measurement import Measured

_BUILT = "an engine that was built for this run is not searched; give it to `vsfix verify`"


def search_row(row: Measured, own: Measured, samples: Samples) -> LayerSearch:
    """Holds the inner tensors of a row against those of the first row of its model, on the samples that are worst.

    Args:
        row: one that departs; its file must still be there.
        own: the first row of its model.
        samples: that both ran on.

    Returns:
        The first tensor that departs and the worst, or the reason why none is known; without the other tensors.
    """
    pairs = pair_outputs(own.outputs, row.outputs, row.variant.label)
    worst = list(worst_samples(pairs))
    if row.variant.is_built or own.variant.is_built:
        return LayerSearch(own.variant.label, len(worst), (), None, None, _BUILT)
    inputs = {name: array[worst] for name, array in samples.inputs.items()}
    tolerance = GivenTolerance().resolve(own.variant.precision, row.variant.precision)
    sides = [(replace(side.variant.model, path=side.deployed.path), side.variant.backend, None) for side in (own, row)]
    return replace(search_files(sides, next(iter(inputs)), inputs, tolerance.min_snr_db), rows=())
