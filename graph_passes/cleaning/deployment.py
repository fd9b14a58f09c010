"""The order of the passes: from a training export to noise markers, and from there to the deployed graph."""

from __future__ import annotations

from vsfix.graph_passes.folding.fold_affine import FoldAffine
from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.folding.recompose_batch_norm import LeaveChannelsLast
from vsfix.graph_passes.ir.fold_constants import ResolveShapes
from vsfix.graph_passes.ir.graph_pass import GraphPass
from vsfix.graph_passes.ir.remove_identities import RemoveIdentities
from vsfix.graph_passes.noise.marker import RemoveMarkers
from vsfix.graph_passes.training_export.decomposed_noise import MarkDecomposedNoise
from vsfix.graph_passes.training_export.training_mode import LeaveTrainingMode

from .control_flow import InlineConstantIf
from .simplify_shapes import SimplifyShapes
from .split_sequences import SplitSequences


def deployment_passes() -> list[GraphPass]:
    """The passes, in the order in which they must run.

    The consequences of known types and sides come first, then branches that are always taken, so that the others see
    their nodes; noise is not followed through a sequence. A Dropout keeps its training form until its mask is known
    not to be part of noise that is written as primitives.
    """
    return [ResolveShapes(), InlineConstantIf(), SplitSequences(), MarkDecomposedNoise(), LeaveTrainingMode()]


def cleaning_passes(fold: FoldBatchNorm | None) -> list[GraphPass]:
    """The passes from a repaired graph to the deployed one, in their order.

    Shapes come before the fold, since a convolution whose shape is asked for is read twice, and again after it, since
    BatchNorms stand between a Reshape and its opposite.

    Args:
        fold: how BatchNorms are folded; None where they stay.
    """
    folds: list[GraphPass] = [] if fold is None else [fold, LeaveChannelsLast(), FoldAffine(fold), SimplifyShapes()]
    return [RemoveMarkers(), RemoveIdentities(), SimplifyShapes(), *folds]
