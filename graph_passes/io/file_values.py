"""Values that stay in a file: the weights of models past 2 GiB, which memory would otherwise hold several times over.

A tensor of such a model in memory refers to its file by an absolute path. Whoever needs the numbers maps the file for
as long as the array is held; the memory goes with the array. New values of that size go to a folder for temporary
files, once.
"""

from __future__ import annotations

import atexit
import itertools
import tempfile
import threading
from contextlib import ExitStack
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.ir.runtime import Array

from .stored_tensors import stored_bytes
from .temporary_files import scratch_folder

LARGE = 1 << 20  # bytes; smaller values are held in memory


def is_large(size: int) -> bool:
    """Whether values of so many bytes are better left in a file, where there are many of them."""
    return size >= LARGE


def can_stay_in_file(tensor: onnx.TensorProto) -> bool:
    """Whether an external tensor is large, and laid out as numpy would."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL or tensor.data_type == onnx.TensorProto.STRING:
        return False
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    size = int(prod(tensor.dims)) * dtype.itemsize
    return is_large(size) and size == stored_bytes(tensor)  # 4-bit types take less than numpy's bytes


def refer_to_file(tensor: onnx.TensorProto, path: Path, offset: int) -> None:
    """Makes a tensor refer to its values in a file, by the path as it is given."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", str(path)), ("offset", str(offset))):
        tensor.external_data.add(key=key, value=value)


def put_into_file(values: Array) -> onnx.TensorProto:
    """A tensor whose values were written to a temporary file, which goes at the end of the process.

    Raises:
        InputError: the disk does not take them.
    """
    tensor = onnx.TensorProto(data_type=onnx.helper.np_dtype_to_tensor_dtype(values.dtype), dims=values.shape)
    try:
        path = _scratch.new_path()
        with path.open("wb") as file:
            np.ascontiguousarray(values).view(np.uint8).tofile(file)
    except OSError as error:
        raise InputError(
            f"{tempfile.gettempdir()}: can't hold the weights ({error.strerror or error}); give another disk with "
            "TMPDIR"
        ) from error
    refer_to_file(tensor, path, 0)
    return tensor


class _Scratch:
    """The folder of this process, made when it is first needed."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._open = ExitStack()

    def new_path(self) -> Path:
        """A path that is not taken."""
        with self._lock:
            if self._folder is None:
                self._folder = self._open.enter_context(scratch_folder())
                atexit.register(self._open.close)
            return self._folder / f"{next(self._numbers)}.bin"


_scratch = _Scratch()
