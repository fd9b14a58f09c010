"""The values of constants: those in memory, and those that stay in the file of the model.

A tensor of a model past 2 GiB refers to its file by an absolute path. Whoever needs the numbers maps the file for as
long as the array is held.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from vsfix.graph_passes.errors import ModelError

from .runtime import Array


def stored_values(constant: gs.Constant) -> Array:
    """The values as stored. onnx-graphsurgeon knows the type of a bfloat16 tensor only once it is loaded, and warns.

    Values that stay in a file are mapped anew each time: the constant would hold on to them.
    """
    if isinstance(constant._values, FileValues):
        return constant._values.load()
    if isinstance(constant._values, np.ndarray):
        return constant._values
    with G_LOGGER.suppress(G_LOGGER.ERROR):
        return np.asarray(constant.values)


class FileValues(LazyValues):
    """The values of a constant of onnx-graphsurgeon that stay in a file; `load` maps them and copies nothing."""

    def __init__(self, tensor: onnx.TensorProto) -> None:
        super().__init__(tensor)  # type: ignore[no-untyped-call]

    def load(self) -> Array:
        """The values, read-only, as long as the array is held."""
        return values_of(self.tensor)


def values_of(tensor: onnx.TensorProto) -> Array:
    """The values of a tensor, wherever they are; those in a file are mapped, read-only.

    Raises:
        ModelError: the file is not what it was when the model was read.
    """
    file = file_of(tensor)
    if file is None:
        return onnx.numpy_helper.to_array(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    try:
        return np.memmap(file, dtype=dtype, mode="r", offset=offset_of(tensor), shape=tuple(tensor.dims))
    except (OSError, ValueError) as error:  # it was there, and as long as it has to be, when the model was read
        raise ModelError(f"{file}: the weights of '{tensor.name}' are gone ({error})") from error


def file_of(tensor: onnx.TensorProto) -> Path | None:
    """The file that the values of a tensor in memory stay in; None where memory holds them."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    files = (Path(entry.value) for entry in tensor.external_data if entry.key == "location")
    return next((file for file in files if file.is_absolute()), None)


def offset_of(tensor: onnx.TensorProto) -> int:
    """The byte of the file at which its values begin."""
    return next((int(entry.value) for entry in tensor.external_data if entry.key == "offset"), 0)
