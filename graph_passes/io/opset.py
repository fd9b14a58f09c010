"""The opset of a model, raised where an operator takes a float type only from a later one on.

Conv and pooling take bfloat16 from opset 22 on, If and Loop from 16, BatchNormalization from 15. float16 is taken from
the beginning. An operator that takes the type at no opset up to 22 (Range, NonMaxSuppression, TopK with bfloat16) is no
reason to raise it: it keeps float32. Neither is QuantizeLinear, whose scale has the type that the opset of the file
knows.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx.helper
import onnx.version_converter
import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import ModelError, first_line
from vsfix.graph_passes.ir.element_types import TYPE_NAMES, ElementTypes, Slot, input_slot, output_slot
from vsfix.graph_passes.ir.graph import graphs_of, is_standard, label_of, subgraphs_of

from .external_data import fits_one_file

HIGHEST = 22  # the last one at which operators of networks took a new float type; every current runtime reads it
_NO_REASON = frozenset({"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear"})


def lowest_opset(graph: gs.Graph, code: int) -> tuple[int, str]:
    """The lowest opset at which the operators of a graph take a float type, and the node that asks for it.

    Args:
        graph: not changed.
        code: the type, as a code of onnx.TensorProto.

    Returns:
        (opset, node); the opset of the graph and an empty name where nothing need be raised.
    """
    types = ElementTypes(graph)
    lowest, reason = int(graph.opset), ""
    for inner in graphs_of(graph):
        for node in inner.nodes:
            if not is_standard(node) or node.op in _NO_REASON:
                continue
            needed = [
                _taken_from(slot_of, node, index, int(graph.opset), code)
                # The outputs of a node without subgraphs follow from its inputs, or can be cast downstream.
                for slot_of, tensors in (
                    (input_slot, node.inputs),
                    (output_slot, node.outputs if subgraphs_of(node) else []),
                )
                for index, tensor in enumerate(tensors)
                if types.float_of(tensor)
            ]
            if max(needed, default=0) > lowest:
                lowest, reason = max(needed), label_of(node)
    return lowest, reason


def raise_opset(model: onnx.ModelProto, opset: int, code: int, reason: str) -> onnx.ModelProto:
    """The model at a higher opset, by onnx's converter.

    Args:
        model: not changed.
        opset: the opset to reach.
        code: the float type that asks for it.
        reason: the node that asks for it, for the message.

    Raises:
        ModelError: the converter can't; names the node.
    """
    wanted = f"{reason} takes {TYPE_NAMES[code]} only from opset {opset} on"
    if not fits_one_file(model):
        raise ModelError(f"{wanted}, and a model past 2 GiB can't be converted; export it at opset {opset}")
    try:
        converted = onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # the converter raises whatever its C++ code does
        raise ModelError(
            f"{wanted}, and onnx can't convert this model ({first_line(error)}); export it at opset {opset}"
        ) from error
    # A domain of the user's own stays in the list when its functions are inlined.
    lowest = onnx.helper.find_min_ir_version_for(converted.opset_import, ignore_unknown=True)
    converted.ir_version = max(converted.ir_version, lowest)
    return converted


def _taken_from(
    slot_of: Callable[[gs.Node, int, int], Slot | None], node: gs.Node, index: int, opset: int, code: int
) -> int:
    """The lowest opset from the graph's own on at which an input or output may have the type; 0 where there is none."""
    now = slot_of(node, index, opset)
    if now is None or len(now.types) == 1:  # one type by decree, as the scales of Resize
        return 0
    for version in range(opset, HIGHEST + 1):
        slot = slot_of(node, index, version)
        if slot is not None and code in slot.types:
            return version
    return 0
