"""Removes the clutter of torch's ONNX exporter, whose own optimizer, which would fold the BNs away, is off.

Nothing here changes a number, and no node with weights is merged with another:

    constants          what can be computed from constants is computed
    Identity           removed
    Conv bias          a bias of zeros that the exporter made up is left out
    Reshape            a shape [batch, c, ...] that is read from the input at run time becomes the constant [-1, c, ...]
    opset below 18     converted by onnx's own converter, since torch's exporter starts at 18
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import onnx.version_converter
import onnx_graphsurgeon as gs
import onnx_ir
import onnx_ir.passes.common as ir_passes
import onnxscript.optimizer
from onnx_graphsurgeon.logger import G_LOGGER

from vsfix.graph_passes.errors import InputError, first_line

EXPORTER_OPSET = 18  # torch's exporter writes this one and newer ones


def fold_constants(model: onnx_ir.Model) -> onnx.ModelProto:
    """The model with its constants computed and its identities removed."""
    onnxscript.optimizer.fold_constants(model)
    onnx_ir.passes.Sequential(
        ir_passes.IdentityEliminationPass(),
        ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        ir_passes.RemoveUnusedNodesPass(),
    )(model)
    return onnx_ir.to_proto(model)


def remove_clutter(graph: gs.Graph, parameters: Collection[str]) -> None:
    """Simplifies a graph in place.

    Args:
        graph: fresh from the exporter.
        parameters: the names of the tensors that the module owns; they stay, whatever their values.
    """
    for node in graph.nodes:
        if node.op == "Conv":
            _drop_zero_bias(node, parameters)
        elif node.op == "Reshape":
            _fix_shape(node)
    with G_LOGGER.suppress(G_LOGGER.ERROR):
        graph.cleanup()


def convert_down(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model at an opset below that of torch's exporter; at 18 and newer, the model itself.

    Raises:
        InputError: an operator of the model has no older form.
    """
    if opset >= EXPORTER_OPSET:
        return model
    for node in model.graph.node:
        # The converter keeps this attribute, which older opsets don't know; 0 is its default.
        known = [attribute for attribute in node.attribute if attribute.name != "noop_with_empty_axes" or attribute.i]
        del node.attribute[:]
        node.attribute.extend(known)
    try:
        return onnx.version_converter.convert_version(model, opset)
    except RuntimeError as error:
        raise InputError(
            f"opset {opset}: this model can't be written so low ({first_line(error)}); take {EXPORTER_OPSET} or newer"
        ) from error


def _drop_zero_bias(node: gs.Node, parameters: Collection[str]) -> None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if isinstance(bias, gs.Constant) and bias.name not in parameters and not np.any(bias.values):
        del node.inputs[2]


def _fix_shape(node: gs.Node) -> None:
    """Writes a run-time shape with one unknown length as a constant: the element count leaves one value for it."""
    shape, output = node.inputs[1], node.outputs[0]
    producer = shape.inputs[0] if isinstance(shape, gs.Variable) and len(shape.inputs) == 1 else None
    if producer is None or producer.op != "Concat" or output.shape is None:
        return
    pieces = [part.values.ravel() if isinstance(part, gs.Constant) else np.array([-1]) for part in producer.inputs]
    sizes = np.concatenate(pieces).astype(np.int64)
    unknown = sum(not isinstance(part, gs.Constant) for part in producer.inputs)
    if unknown == 1 and len(sizes) == len(output.shape) and (sizes > 0).sum() == len(sizes) - 1:
        node.inputs[1] = gs.Constant(f"{output.name}.shape", sizes)
