"""Stand-ins for data, where there is none and none can be distilled: handwritten digits, stretched to the model's size.

They come with scikit-learn and are unlike most training data. That is good enough for the paired method alone, since
what they lack is in both of its runs; every report that rests on them says so.
"""

from __future__ import annotations

import numpy as np
import onnx

from vsfix.graph_passes.batches import Batch
from vsfix.graph_passes.errors import MissingComponentError, ModelError
from vsfix.graph_passes.inference import Array

PROXY_SAMPLES = 64


def proxy_batch(model: onnx.ModelProto, seed: int) -> Batch:
    """One batch for every input of a model.

    Args:
        model: its inputs must be float images of known channels and size, or float vectors of known length.
        seed: which digits are taken.

    Raises:
        ModelError: an input that no image can stand in for.
        MissingComponentError: scikit-learn is not installed.
    """
    return {tensor.name: _proxy(tensor, seed) for tensor in model.graph.input}


def _proxy(tensor: onnx.ValueInfoProto, seed: int) -> Array:
    """Stand-ins for one input, each channel with mean 0 and deviation 1."""
    kind = tensor.type.tensor_type
    shape = [side.dim_value for side in kind.shape.dim][1:]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if dtype.kind != "f" or not shape or not all(shape) or len(shape) not in (1, 3):
        raise ModelError(
            f"input '{tensor.name}': no stand-in for its shape and type; give real data with --data, or take "
            "--method analytic"
        )
    images = _digits(seed)  # (PROXY_SAMPLES, 8, 8)
    if len(shape) == 1:
        flat = images.reshape(PROXY_SAMPLES, -1)
        return flat[:, np.arange(shape[0]) * flat.shape[1] // shape[0]].astype(dtype)
    channels, height, width = shape
    rows, columns = (np.arange(side) * 8 // side for side in (height, width))
    stretched = images[:, rows][:, :, columns]  # (PROXY_SAMPLES, height, width)
    return np.repeat(stretched[:, None], channels, axis=1).astype(dtype)


def _digits(seed: int) -> Array:
    """Handwritten digits with mean 0 and deviation 1, shape (PROXY_SAMPLES, 8, 8)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingComponentError(
            "stand-ins for data need scikit-learn; run: pip install 'vsfix[train]', or give --data"
        ) from None
    images: Array = load_digits().images.astype(np.float64)
    chosen = images[np.random.default_rng(seed).choice(len(images), PROXY_SAMPLES, replace=False)]
    standard: Array = (chosen - images.mean()) / images.std()
    return standard
