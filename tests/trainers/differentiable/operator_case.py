"""One operator as a graph, and what runs it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper

from vsfix.trainers.differentiable.onnx_evaluation import OnnxModule

Array = Any


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


IMAGE = normal(2, 4, 7, 6)


class Case:
    """One node: its operator, the values of its inputs (None where left out) and its attributes."""

    def __init__(self, op: str, *inputs: Array | None, opset: int = 18, outputs: int = 1, **attributes: Any) -> None:
        self.op, self.inputs, self.opset, self.outputs, self.attributes = op, inputs, opset, outputs, attributes

    def model(self) -> onnx.ModelProto:
        """The first input is fed, the others are initializers: what a converted network has."""
        names = [f"i{k}" if value is not None else "" for k, value in enumerate(self.inputs)]
        outs = [f"o{k}" for k in range(self.outputs)]
        node = helper.make_node(self.op, names, outs, name="the_node", **self.attributes)
        first = self.inputs[0]
        assert first is not None
        dtype = helper.np_dtype_to_tensor_dtype(first.dtype)
        graph = helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info(names[0], dtype, first.shape)],
            [helper.make_value_info(name, onnx.TypeProto()) for name in outs],
            [numpy_helper.from_array(v, n) for v, n in zip(self.inputs[1:], names[1:], strict=True) if v is not None],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)
        inferred = onnx.shape_inference.infer_shapes(model)
        types = {value.name: value for value in inferred.graph.output}
        for value in model.graph.output:
            value.CopyFrom(types[value.name])
        return model

    def __str__(self) -> str:
        words = [f"{name}={value}" for name, value in self.attributes.items()]
        return " ".join([self.op, f"opset{self.opset}", *words]).replace(" ", "_")


def run_torch(model: onnx.ModelProto, x: Array) -> list[Array]:
    evaluation = OnnxModule(model)({model.graph.input[0].name: torch.from_numpy(np.array(x))})
    return [tensor.detach().numpy() for tensor in evaluation.outputs.values()]


def run_onnxruntime(model: onnx.ModelProto, x: Array) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {model.graph.input[0].name: x}))


VECTOR, MATRIX, CUBE = normal(6), normal(3, 5), normal(2, 3, 4)


KERNEL = normal(6, 4, 3, 2)
