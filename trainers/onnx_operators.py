"""Every ONNX operator that can be evaluated in torch, BatchNormalization apart."""

from __future__ import annotations

from collections.abc import Mapping

from .onnx_call import Operator
from .onnx_elementwise import ELEMENTWISE
from .onnx_reductions import REDUCTIONS
from .onnx_resizing import RESIZING
from .onnx_shapes import SHAPES
from .onnx_windows import WINDOWS

OPERATORS: Mapping[str, Operator] = {**ELEMENTWISE, **REDUCTIONS, **WINDOWS, **SHAPES, **RESIZING}
"""By the name of the operator in the standard's domain."""
