"""A small network with each kind of output."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import numpy_helper

from vsfix.trainers.differentiable.onnx_evaluation import OnnxModule
from vsfix.trainers.differentiable.refinement_target import Target

N, FEATURES, CLASSES = 48, 6, 4


HEADS = {
    "logits": "y = Identity(z)",
    "softmax": "y = Softmax<axis = 1>(z)",
    "log-softmax": "y = LogSoftmax<axis = 1>(z)",
    "probabilities": "y = Sigmoid(z)",
    "sigmoid-logits": "y = Identity(z)",
    "values": "y = Identity(z)",
}


KINDS = list(HEADS)


TRUE_SCALE = np.linspace(0.8, 1.25, FEATURES)


def network(kind: str, batch: str = "n", tail: str = "y") -> onnx.ModelProto:
    """Linear, BN with scale g and shift b, ReLU, marker of noise, linear with bias; then what the kind ends with."""
    rng = np.random.default_rng(1)
    model = onnx.parser.parse_model(f"""
    <ir_version: 9, opset_import: ["" : 18]>
    net (float[{batch}, {FEATURES}] x) => (float[{batch}, {CLASSES}] {tail}) <float half = {{0.5}}, bool off = {{0}}>
    {{
        h = MatMul(x, w0)
        n = BatchNormalization(h, g, b, mean, var)
        r = Relu(n)
        d = Dropout(r, half, off)
        p = MatMul(d, w1)
        z = Add(p, last)
        {HEADS[kind]}
    }}
    """)
    arrays = {
        "w0": rng.standard_normal((FEATURES, FEATURES)) / 2,
        "w1": rng.standard_normal((FEATURES, CLASSES)),
        "g": np.ones(FEATURES),
        "b": np.full(FEATURES, 0.5),
        "mean": rng.standard_normal(FEATURES) / 10,
        "var": np.ones(FEATURES),
        "last": np.zeros(CLASSES),
    }
    model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in arrays.items())
    return model


def with_values(model: onnx.ModelProto, **values: Any) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(values[tensor.name], np.float32), tensor.name))
    return changed


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    return {"x": np.random.default_rng(2).standard_normal((N, FEATURES)).astype(np.float32)}


def outputs_of(model: onnx.ModelProto, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return OnnxModule(model)({k: torch.from_numpy(v) for k, v in inputs.items()}).outputs["y"].double()


def target_of(kind: str, model: onnx.ModelProto, inputs: dict[str, Any], variance: float = 1.0) -> Target:
    """A target that the outputs of a model fulfil already."""
    y = outputs_of(model, inputs)
    forms = {"logits": lambda: y.softmax(1), "log-softmax": y.exp, "sigmoid-logits": y.sigmoid}
    mean = forms.get(kind, lambda: y)().numpy()
    return Target(kind, 1, mean, variance)
