"""The passes that turn a file in any form of training into a deployable graph with noise markers."""

from __future__ import annotations

from .control_flow import InlineConstantIf
from .decomposed_noise import MarkDecomposedNoise
from .fold_constants import ResolveShapes
from .graph_pass import GraphPass
from .training_mode import LeaveTrainingMode


def deployment_passes() -> list[GraphPass]:
    """The passes, in the order in which they must run.

    What follows from known types and sides comes first, and then branches that are always taken, so that the others see
    what is in them. A Dropout keeps its training form until its mask is known not to be part of noise that is written
    as primitives.
    """
    return [ResolveShapes(), InlineConstantIf(), MarkDecomposedNoise(), LeaveTrainingMode()]
