"""Changes ONNX models at random: what hand-written attacks on a graph look like, single fields, and bytes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from message_mutation import mutate_bytes, mutate_message
from onnx import helper

_OPERATORS = (
    *("BatchNormalization", "Dropout", "Conv", "Gemm", "MatMul", "Mul", "Add", "Relu", "Reshape", "Concat"),
    *("Identity", "Cast", "ConstantOfShape", "Expand", "Tile", "Range", "RandomUniformLike", "Scan", "Pad"),
    *("QuantizeLinear", "Constant", "GlobalAveragePool", "Slice", "Transpose", "Resize", "Shape", "If", "Loop"),
    "NoSuchOperator",
)
_LOCATIONS = ("../loot", "/etc/passwd", "seed.onnx", "nothing", "", ".", "a/../../loot", "link", "/dev/zero")
_DEPTH = 60  # a reader of protobuf ends at 100 messages in messages, which are 33 bodies


def mutate_model(model: onnx.ModelProto, rng: np.random.Generator) -> tuple[bytes, list[str]]:
    """A file made of a model, and what was done to it.

    Args:
        model: changed in place.
        rng: decides everything.
    """
    done = []
    for _ in range(int(rng.geometric(0.75))):
        if rng.random() < 0.5:
            with suppress(DecodeError):  # part of what `_nest` made can't be copied
                done.append(mutate_message(model, rng))
        else:
            attack = ATTACKS[rng.integers(len(ATTACKS))]
            if model.graph.node:
                attack(model, rng)
                done.append(attack.__name__.strip("_"))
    content = model.SerializePartialToString()
    if rng.random() < 0.1:
        done.append("bytes")
        content = mutate_bytes(content, rng)
    return content, done


def _node(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.NodeProto:
    return model.graph.node[rng.integers(len(model.graph.node))]


def _rewire(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """An input of a node becomes any tensor, also one that is computed later."""
    node, other = _node(model, rng), _node(model, rng)
    names = [*other.output, *other.input, *(tensor.name for tensor in model.graph.initializer)]
    if node.input and names:
        node.input[rng.integers(len(node.input))] = names[rng.integers(len(names))]


def _rename(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Two nodes write one tensor."""
    node, other = _node(model, rng), _node(model, rng)
    if node.output and other.output:
        node.output[0] = other.output[0]


def _operate(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A node becomes another operator."""
    _node(model, rng).op_type = _OPERATORS[rng.integers(len(_OPERATORS))]


def _reshape_weight(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A weight claims dimensions that its values don't have."""
    if model.graph.initializer:
        tensor = model.graph.initializer[rng.integers(len(model.graph.initializer))]
        dims = [int(rng.choice([-1, 0, 1, 3, 7, 2**16, 2**31, 2**40, 2**62])) for _ in range(rng.integers(0, 6))]
        del tensor.dims[:]
        tensor.dims.extend(dims)


def _retype_weight(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A weight claims another element type."""
    if model.graph.initializer:
        tensor = model.graph.initializer[rng.integers(len(model.graph.initializer))]
        tensor.data_type = int(rng.integers(0, 30))


def _poison_weight(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Values that are no numbers, or too large."""
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == 1 and tensor.raw_data]
    if floats:
        tensor = floats[rng.integers(len(floats))]
        values = np.frombuffer(tensor.raw_data[: len(tensor.raw_data) // 4 * 4], np.float32).copy()
        if len(values):
            values[rng.integers(len(values))] = rng.choice([np.nan, np.inf, -np.inf, 3e38, -1.0, 0.0, 1e-40])
            tensor.raw_data = values.tobytes()


def _move_weight(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A weight stands in another file, by its own account."""
    if model.graph.initializer:
        tensor = model.graph.initializer[rng.integers(len(model.graph.initializer))]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entries = {"location": _LOCATIONS[rng.integers(len(_LOCATIONS))]}
        if rng.random() < 0.5:
            entries["offset"] = str(rng.choice([0, 1, -1, 2**40, "x"]))
        if rng.random() < 0.5:
            entries["length"] = str(rng.choice([0, 4, -4, 2**40, "x"]))
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)


def _recurse(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A local function that calls itself, or one that calls it."""
    calls = ["f", "f"] if rng.random() < 0.5 else ["g", "f"]
    for name, called in zip("fg", calls, strict=True):
        body = [helper.make_node(called, ["x"], ["y"], domain="own")]
        model.functions.append(helper.make_function("own", name, ["x"], ["y"], body, list(model.opset_import)))
    model.opset_import.append(helper.make_opsetid("own", 1))
    node = _node(model, rng)
    if node.input and node.output:
        node.op_type, node.domain = "f", "own"
        del node.input[1:], node.output[1:], node.attribute[:]


def _nest(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Bodies in bodies in bodies."""
    graph = model.graph
    for depth in range(int(rng.integers(2, _DEPTH))):
        node = graph.node.add(op_type="If", input=["c"], output=[f"o{depth}"])
        graph = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g
        graph.name = f"g{depth}"


def _annotate(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """What vsfix writes into a model, damaged."""
    node = _node(model, rng)
    entry = node.metadata_props.add() if rng.random() < 0.5 else model.metadata_props.add()
    node.name += str(rng.choice(["", "#vsfix.noise:uout=0.1", "#vsfix.noise:dropout=9e999", "#vsfix.noise:x=1"]))
    entry.key = str(rng.choice(["vsfix.noise_markers", "vsfix.preprocessing", "vsfix.repair"]))
    entry.value = str(rng.choice(["", "{", "[]", '{"kind": 1}', "dropout:2", "dropout:0.5", "nan", "9" * 400]))


def _grow(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A constant that is small in the file and large in memory."""
    shape = [int(rng.choice([2**10, 2**16, 2**20, 2**33])) for _ in range(rng.integers(1, 4))]
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge_shape"], ["huge"]))
    model.graph.initializer.append(helper.make_tensor("huge_shape", onnx.TensorProto.INT64, [len(shape)], shape))
    node = _node(model, rng)
    if node.input:
        node.input[rng.integers(len(node.input))] = "huge"


def _declare(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """An input or output of other dimensions."""
    values = [*model.graph.input, *model.graph.output]
    if values:
        shape = values[rng.integers(len(values))].type.tensor_type.shape
        if shape.dim:
            dim = shape.dim[rng.integers(len(shape.dim))]
            dim.dim_value = int(rng.choice([-1, 0, 1, 2, 64, 2**31, 2**62]))


Attack = Callable[[onnx.ModelProto, np.random.Generator], None]
ATTACKS: tuple[Attack, ...] = (
    *(_rewire, _rename, _operate, _reshape_weight, _retype_weight, _poison_weight, _move_weight, _recurse, _nest),
    *(_annotate, _grow, _declare),
)
