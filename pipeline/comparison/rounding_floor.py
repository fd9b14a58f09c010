"""How far the outputs of a network move where its weights move in their last digit: what no folding can stay under.

A fold rounds every weight that it makes once. A network that amplifies such a rounding, deep and never trained, or with
outputs that are small differences of large numbers, gives other outputs then, and the fold is right all the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from vsfix.graph_passes.ir.runtime import Array, OpenModel
from vsfix.graph_passes.ir.stored_values import values_of
from vsfix.graph_passes.statistics.batches import Batch

from .tensor_comparison import comparable, compare_tensors

_TYPES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)


def rounding_floor(
    model: onnx.ModelProto, expected: Mapping[str, Array], inputs: Batch, open_model: OpenModel, seed: int
) -> float:
    """Runs the model with the weights of a neighbour.

    Each value of each initializer in float16, float32 or float64 becomes the next number of its type, up or down, or
    stays, with probabilities 1/4, 1/4, 1/2: 0.7 steps in the root mean square, where one rounding makes 0.3.

    Args:
        model: not changed.
        expected: its outputs on the inputs.
        inputs: one batch.
        open_model: the runtime.
        seed: of the directions.

    Returns:
        The smallest signal to noise ratio of the outputs, in dB.
    """
    neighbour = onnx.ModelProto()
    neighbour.CopyFrom(model)
    rng = np.random.default_rng(seed)
    for tensor in neighbour.graph.initializer:
        if tensor.data_type in _TYPES:
            moved = _moved(values_of(tensor), rng)
            tensor.CopyFrom(onnx.numpy_helper.from_array(moved, tensor.name))
    with open_model(neighbour) as runner:
        found = runner.run(inputs)
    return min(compare_tensors(*comparable(expected[name], found[name])).snr_db for name in expected)


def _moved(weights: Array, rng: np.random.Generator) -> Array:
    """The weights, about half of them one step away; zeros stay, whose steps are far smaller than a rounding."""
    toward = rng.choice(np.array([-np.inf, np.inf, np.nan, np.nan], dtype=weights.dtype), size=weights.shape)
    stay = np.isnan(toward) | (weights == 0)
    return np.where(stay, weights, np.nextafter(weights, np.where(stay, weights, toward))).astype(weights.dtype)
