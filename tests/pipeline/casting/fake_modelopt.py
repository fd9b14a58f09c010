#!/usr/bin/env python
"""A fake of `python -I -m modelopt.onnx.quantization`; the variable FAKE_MODELOPT says what it does.

good        Q/DQ before every Conv and Gemm: activations by the scale 0.04, weights per output channel
per_tensor  the same with one scale for a weight
coarse      the same with the scale 40 for activations
entropy     good, but coarse by every other method
split       the same, and another pair before every BatchNormalization
nothing     the model as it is
renamed     the model with another name for its output
no_file     nothing is written
fails       an error
killed      the end by SIGKILL
"""

from __future__ import annotations

import os
import signal
import sys

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper


def main() -> int:
    assert sys.argv[1:4] == ["-I", "-m", "modelopt.onnx.quantization"]
    options = dict(zip(sys.argv[4::2], sys.argv[5::2], strict=True))
    behaviour = os.environ["FAKE_MODELOPT"]
    model = onnx.load(options["--onnx_path"])
    data = np.load(options["--calibration_data_path"])
    # As ModelOpt reads them: a name with a comma falls apart.
    shapes = dict(entry.rsplit(":", 1) for entry in options["--calibration_shapes"].split(","))
    assert list(shapes) == data.files == [tensor.name for tensor in model.graph.input]
    assert all(shapes[name].split("x")[1:] == [*map(str, data[name].shape[1:])] for name in shapes)
    if behaviour == "fails":
        print("INFO - all is well so far")
        print("Traceback (most recent call last):\nValueError: no quantiser for this operator", file=sys.stderr)
        return 1
    if behaviour == "entropy":
        behaviour = "good" if options["--calibration_method"] == "entropy" else "coarse"
    if behaviour == "killed":
        print("INFO - all is well so far", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "no_file":
        print("INFO - done")
        return 0
    if behaviour == "renamed":
        model.graph.node[-1].output[0] = model.graph.output[0].name = "other"
    if behaviour in ("good", "per_tensor", "coarse", "renamed", "split"):
        quantize(model, behaviour)
    onnx.helper.set_model_props(model, {})
    onnx.save(model, options["--output_path"])
    return 0


def quantize(model: onnx.ModelProto, behaviour: str) -> None:
    """Puts Q/DQ before the layers."""
    model.opset_import[0].version = 19
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weight = weights[node.input[1]]
            largest = np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127
            scale = np.float32(largest.max()) if behaviour == "per_tensor" else largest.astype(np.float32)
            activation = np.float32(40 if behaviour == "coarse" else 0.04)
            for index, value in ((0, activation), (1, scale)):
                nodes += pair(model, node, index, value)
        if node.op_type == "BatchNormalization" and behaviour == "split":
            nodes += pair(model, node, 0, np.float32(0.04))
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def pair(model: onnx.ModelProto, node: onnx.NodeProto, index: int, scale: np.ndarray) -> list[onnx.NodeProto]:
    """Q and DQ for one input of a node, which reads what DQ writes from then on."""
    label = f"{node.output[0]}_{index}"
    zero = np.zeros(np.shape(scale), np.int8)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(values), f"{label}_{name}")
        for name, values in (("scale", scale), ("zero", zero))
    )
    extra = [f"{label}_scale", f"{label}_zero"]
    axis = {"axis": 0} if np.ndim(scale) else {}
    quantizer = onnx.helper.make_node("QuantizeLinear", [node.input[index], *extra], [f"{label}_q"], **axis)
    dequantizer = onnx.helper.make_node("DequantizeLinear", [f"{label}_q", *extra], [f"{label}_d"], **axis)
    node.input[index] = f"{label}_d"
    return [quantizer, dequantizer]


if __name__ == "__main__":
    sys.exit(main())
