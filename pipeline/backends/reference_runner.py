"""The evaluator that comes with onnx itself: slow, written in numpy, the arbiter where two runtimes disagree."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import numpy as np
import onnx
import onnx.helper
from onnx.reference import ReferenceEvaluator
from typing_extensions import Self

from vsfix.graph_passes.errors import ModelError, first_line
from vsfix.graph_passes.ir.runtime import Array

from .feeds import InputSpec, check_feeds


class ReferenceRunner:
    """onnx's reference evaluator.

    Attributes:
        name: `reference (onnx)`.
        concurrency: 1, see `Runner.concurrency`.

    Raises:
        ModelError: the evaluator does not know an operator of the model.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.name = "reference (onnx)"
        self.concurrency = 1
        try:
            self._evaluator = ReferenceEvaluator(model)
        except Exception as error:  # the evaluator has no common class for what it refuses
            raise ModelError(f"{self.name} can't load the model: {first_line(error)}") from error
        weights = {tensor.name for tensor in model.graph.initializer}
        self._inputs = [_spec(tensor) for tensor in model.graph.input if tensor.name not in weights]
        self._outputs = [tensor.name for tensor in model.graph.output]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs one batch; see `Runner.run`.

        Raises:
            DataError: the arrays don't fit the model's inputs.
            ModelError: the model fails on them all the same.
        """
        check_feeds(self._inputs, inputs)
        try:
            with np.errstate(all="ignore"):
                # Copies, because the evaluator passes an array through where an operator is the identity.
                outputs = self._evaluator.run(None, {name: array.copy() for name, array in inputs.items()})
        except Exception as error:  # see `__init__`
            raise ModelError(f"{self.name} fails on this input: {first_line(error)}") from error
        return {name: np.array(output) for name, output in zip(self._outputs, outputs, strict=True)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    """The type and shape of an input of a graph."""
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return InputSpec(value.name, dtype, None)
    sides = tuple(side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim)
    return InputSpec(value.name, dtype, sides)
