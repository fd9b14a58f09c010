"""The inputs and outputs of an engine, and whether arrays fit them.

TensorRT hands over plain tensors of the types that numpy has. What else an engine may take or give, vsfix does not
build: bfloat16 and narrower floats at the border, a shape as an input, channels in packs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.errors import BuildError, ModelError
from vsfix.graph_passes.ir.runtime import Array
from vsfix.pipeline.tensorrt.engine_loading import LoadedEngine

from .feeds import InputSpec, check_feeds

_DTYPES: Mapping[str, npt.DTypeLike] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class EngineTensor:
    """One input or output.

    Attributes:
        name: of the tensor.
        is_input: whether it is one.
        dtype: what it holds.
        minimum: the smallest shape that the engine was built for; empty for an output.
        maximum: the largest one; empty for an output.
    """

    name: str
    is_input: bool
    dtype: npt.DTypeLike
    minimum: tuple[int, ...] = ()
    maximum: tuple[int, ...] = ()

    def spec(self) -> InputSpec:
        """The type and shape of the input."""
        sides = zip(self.minimum, self.maximum, strict=True)
        return InputSpec(self.name, self.dtype, tuple(low if low == high else None for low, high in sides))


def read_tensors(loaded: LoadedEngine) -> tuple[EngineTensor, ...]:
    """The inputs and outputs of an engine, in its order.

    Raises:
        ModelError: one that vsfix can't feed or fetch.
    """
    names = [loaded.engine.get_tensor_name(index) for index in range(loaded.engine.num_io_tensors)]
    return tuple(_read(loaded, name) for name in names)


def check_engine_feeds(tensors: Sequence[EngineTensor], inputs: Mapping[str, Array]) -> None:
    """Refuses arrays that the engine does not take.

    Raises:
        DataError: naming the input, what was given, and what the engine takes.
        BuildError: a shape that the engine was not built for; another engine is needed.
    """
    taken = [tensor for tensor in tensors if tensor.is_input]
    check_feeds([tensor.spec() for tensor in taken], inputs)
    for tensor in taken:
        shape = inputs[tensor.name].shape
        sides = zip(tensor.minimum, shape, tensor.maximum, strict=True)
        if not all(low <= side <= high for low, side, high in sides):
            raise BuildError(
                f"input '{tensor.name}': {shape} was given, but the optimization profile of the engine goes from "
                f"{tensor.minimum} to {tensor.maximum}; give another batch size, or build with other --min-shapes and "
                "--max-shapes"
            )


def _read(loaded: LoadedEngine, name: str) -> EngineTensor:
    """One tensor."""
    is_input = loaded.engine.get_tensor_mode(name).name == "INPUT"
    label = f"{'input' if is_input else 'output'} '{name}'"
    kind = loaded.engine.get_tensor_dtype(name).name
    if kind not in _DTYPES:
        raise ModelError(
            f"{label}: the engine has it in {kind}, which can't be handed over as an array; build it with float32 "
            "inputs and outputs, as `vsfix optimize --precision` leaves them"
        )
    if loaded.engine.get_tensor_location(name).name != "DEVICE" or (
        is_input and loaded.engine.is_shape_inference_io(name)
    ):
        raise ModelError(f"{label}: holds a shape, which vsfix does not feed to engines; fix it in the ONNX file")
    if loaded.engine.get_tensor_format(name).name != "LINEAR":
        raise ModelError(f"{label}: lies in memory as {loaded.engine.get_tensor_format(name).name}; build it as LINEAR")
    if not is_input:
        return EngineTensor(name, False, _DTYPES[kind])
    shape = tuple(loaded.engine.get_tensor_shape(name))
    minimum, maximum = (shape, shape) if -1 not in shape else _profile(loaded, name)
    return EngineTensor(name, True, _DTYPES[kind], minimum, maximum)


def _profile(loaded: LoadedEngine, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The smallest and the largest shape in the first profile, which a new context starts with."""
    minimum, _, maximum = loaded.engine.get_tensor_profile_shape(name, 0)
    return tuple(minimum), tuple(maximum)
