"""Random numbers for the inputs of a model: enough to compare two graphs on, and never a ground for accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.statistics.batches import Batch

_MOST_NUMBERS = 2**28  # of one input, 1 GiB


def stated_shape(model: onnx.ModelProto, name: str) -> tuple[int, ...] | None:
    """The shape of a float32 input without its batch axis, where every side is stated."""
    value = next(tensor for tensor in model.graph.input if tensor.name == name)
    tensor = value.type.tensor_type
    sides = [side.dim_value for side in tensor.shape.dim][1:]
    stated = tensor.HasField("shape") and len(tensor.shape.dim) > 0 and all(side > 0 for side in sides)
    return tuple(sides) if stated and tensor.elem_type == onnx.TensorProto.FLOAT else None


def draw_inputs(names: Sequence[str], shapes: Sequence[tuple[int, ...] | None], samples: int, seed: int) -> Batch:
    """Standard normal float32 inputs.

    Args:
        names: the inputs.
        shapes: the shape of each without the batch axis; None where it is unknown.
        samples: N.
        seed: of the numbers.

    Raises:
        InputError: a shape is unknown, or takes more than 1 GiB.
    """
    rng = np.random.default_rng(seed)
    inputs = {}
    for name, shape in zip(names, shapes, strict=True):
        if shape is None:
            raise InputError(
                f"input '{name}': can't be drawn at random (free sides, or no float32); give inputs with --data"
            )
        if samples * prod(shape) > _MOST_NUMBERS:
            sides = "x".join(map(str, shape))
            raise InputError(f"input '{name}': {samples} times {sides} random numbers are too many; give --data")
        inputs[name] = rng.standard_normal((samples, *shape), dtype=np.float32)
    return inputs
