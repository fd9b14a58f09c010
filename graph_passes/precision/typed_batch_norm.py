"""BatchNormalization in a narrow float type, with its parameters folded in float64.

    Y = gamma (X - mean) / sqrt(var + epsilon) + beta = g X + s
    g = gamma / sqrt(var + epsilon),  s = beta - g mean

A runtime computes g and s itself, in the type in which the parameters are *stored*. In float16 that loses digits (an
epsilon of 1e-5 is below its normal range) and overflows to infinity in silence where var + epsilon is small. Data in
float16 beside statistics in float32 are valid ONNX from opset 15 on, but TensorRT takes the BatchNorm apart for it,
into some 24 layers that fuse with nothing.

So g and s are computed here, in float64, rounded once, and the node stays a BatchNormalization:

    gamma = g,  beta = s,  mean = 0,  var = 1,  epsilon = 0

1 + 0, its root and the quotient are exact in every float type, so that whatever folds it arrives at g and s as they
are written. TensorRT makes one SCALE layer of it, which fuses with a convolution or an activation; Mul and Add would
be two element-wise layers with two constants. Price: the statistics are no longer in the file. Repair comes first.

Measured with TensorRT-RTX 1.7.1, a strongly typed network of Conv, Relu, BatchNormalization, Relu: 6 layers in this
form, and the SCALE that the parser made holds g and s to the bit; 9 with Mul and Add; 29 with float32 statistics. With
the statistics themselves in float16 the SCALE is off by up to 1e-3.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm, find_batch_norms, unreadable_batch_norms
from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.ir.element_types import FLOAT16, code_of
from vsfix.graph_passes.ir.graph import graphs_of
from vsfix.graph_passes.ir.graph_pass import Change
from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.ir.stored_values import stored_values

from .weight_rounding import RoundingLoss, round_weight


def type_batch_norms(graph: gs.Graph, code: int, loss: RoundingLoss, kept: Collection[int] = ()) -> list[Change]:
    """Folds the parameters of every BatchNorm of a graph and its subgraphs into g and s of a narrow float type.

    Args:
        graph: edited in place.
        code: FLOAT16 or BFLOAT16.
        loss: the losses of rounding are added to it.
        kept: the ids of nodes that stay as they are.

    Raises:
        ModelError: a BatchNorm whose parameters can't be read, or in training form.
        CheckFailedError: g or s of a channel is past the range of the type, or g below it; names BatchNorm and channel.
    """
    _require_readable(graph)
    changes = []
    for inner in graphs_of(graph):
        for batch_norm in find_batch_norms(inner):
            if id(batch_norm.node) not in kept and not _is_typed(batch_norm, code):
                _write(batch_norm, code, loss)
                changes.append(Change(batch_norm.name, "its parameters were folded in float64 and rounded once"))
    return changes


def require_statistics(graph: gs.Graph) -> None:
    """Refuses a graph whose BatchNorms hold their gain and shift in the place of statistics, or numbers that are none.

    A fold would hide them: 1 / sqrt(inf) is 0, and epsilon may outweigh a variance below 0.

    Raises:
        ModelError: names the first one.
    """
    for inner in graphs_of(graph):
        for batch_norm in find_batch_norms(inner):
            _require_numbers(batch_norm, "mean", batch_norm.mean, -np.inf)
            _require_numbers(batch_norm, "variance", batch_norm.variance, 0)
    for batch_norm in find_batch_norms(graph):
        if _is_plain(batch_norm):
            raise ModelError(
                f"BatchNorm '{batch_norm.name}' holds no statistics any more: the file was cast to another precision; "
                "take the float32 file that it was made from"
            )


def _require_numbers(batch_norm: BatchNorm, what: str, values: Float64Array, least: float) -> None:
    """Refuses a statistic that is not finite, or below its least value."""
    bad = np.flatnonzero(~np.isfinite(values) | (values < least))
    if bad.size:
        raise ModelError(
            f"BatchNorm '{batch_norm.name}', channel {bad[0]}: a running {what} of {values[bad[0]]:g} is none; train "
            "again, or take an earlier checkpoint"
        )


def check_half_batch_norms(graph: gs.Graph) -> None:
    """Refuses a BatchNorm in float16 whose gain a runtime that folds it in float16 makes infinite.

    Raises:
        CheckFailedError: names BatchNorm and channel.
        ModelError: one is in training form.
    """
    for inner in graphs_of(graph):
        for batch_norm in find_batch_norms(inner):
            if all(code_of(stored_values(constant).dtype) == FLOAT16 for constant in batch_norm.parameters):
                with np.errstate(all="ignore"):
                    g, s = _gain_and_shift(batch_norm)
                    # As the runtime does it: var + epsilon rounded to float16, which may be zero.
                    sums = (batch_norm.variance + batch_norm.epsilon).astype(np.float16).astype(np.float64)
                    stored_g = batch_norm.gamma / np.sqrt(sums)
                for values, what in ((g, "gain"), (stored_g, "gain"), (s, "shift")):
                    label = f"{what} of BatchNorm '{batch_norm.name}'"
                    round_weight(values, FLOAT16, label, 0, RoundingLoss(), channels=False)


def _require_readable(graph: gs.Graph) -> None:
    """Refuses a BatchNorm whose parameters are unavailable, here or in a subgraph."""
    for inner in graphs_of(graph):
        own = [entry for entry in unreadable_batch_norms(inner) if "stands in the subgraph" not in entry.reason]
        if own:
            raise ModelError(f"BatchNorm '{own[0].subject}' can't be cast: {own[0].reason}")


def _gain_and_shift(batch_norm: BatchNorm) -> tuple[Float64Array, Float64Array]:
    """g and s, shape (C,)."""
    g = batch_norm.gamma / np.sqrt(batch_norm.variance + batch_norm.epsilon)
    return g, batch_norm.beta - g * batch_norm.mean


def _is_typed(batch_norm: BatchNorm, code: int) -> bool:
    """Whether a BatchNorm has the parameters that `_write` gives it."""
    types = {code_of(stored_values(constant).dtype) for constant in batch_norm.parameters}
    return types == {code} and _is_plain(batch_norm)


def _is_plain(batch_norm: BatchNorm) -> bool:
    """Whether mean, variance and epsilon do nothing."""
    return not batch_norm.mean.any() and bool((batch_norm.variance == 1).all()) and batch_norm.epsilon == 0


def _write(batch_norm: BatchNorm, code: int, loss: RoundingLoss) -> None:
    """Puts g, s, 0 and 1 in the place of the parameters, in tensors of its own."""
    with np.errstate(all="ignore"):
        g, s = _gain_and_shift(batch_norm)
    label = f"BatchNorm '{batch_norm.name}'"
    gain = round_weight(g, code, f"gain of {label}", 0, loss)
    shift = round_weight(s, code, f"shift of {label}", 0, loss, channels=False)
    values = (gain, shift, np.zeros_like(gain), np.ones_like(gain))
    for index, (kind, array) in enumerate(zip(("gain", "shift", "zero", "one"), values, strict=True), start=1):
        batch_norm.node.inputs[index] = gs.Constant(f"{batch_norm.name}.typed_{kind}", array)
    batch_norm.node.attrs["epsilon"] = 0.0
