"""The marker of a noise layer in an ONNX file, by which the evidence of training survives the export.

The one encoding, for every kind of noise, is a standard `Dropout` node in inference form, which every runtime treats
as the identity and which needs no custom operator:

    Dropout(data, ratio, training_mode = false)        opset 12 and newer; ratio and training_mode are initializers
    name = "<any name>#vsfix.noise:<kind>=<value>"     for the kinds that ONNX has no operator for

A plain Dropout needs no tag: its ratio says everything. For the other kinds the tag at the end of the node's name is
the truth (names survive onnx-graphsurgeon and most other tools, node metadata does not), and `ratio` holds the Dropout
ratio whose noise has the same variance, s2 / (1 + s2): a reader that knows nothing of vsfix sees a Dropout that shifts
the variance by the same amount. The alpha kinds have no such variance; theirs is the ratio of what they drop.
"""

from __future__ import annotations

import re

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import InputError, ModelError
from vsfix.graph_passes.ir.graph import Tensor, is_standard, nodes_of, upstream_constant
from vsfix.graph_passes.ir.graph_pass import PassResult
from vsfix.graph_passes.ir.remove_identities import bypass_nodes

from .noise import UOUT_KINDS, Noise, NoiseKind

# An export that marks every noise layer says so under this key of metadata_props, with the number of its markers: a
# file with the key and without a marker is a network without noise, one without the key has lost its evidence.
EXPORT_METADATA_KEY = "vsfix.noise_markers"

# The entry of metadata_props in which a file says what vsfix repaired: the names under "repaired", and how.
REPAIR_KEY = "vsfix.repair"

_TAG = re.compile(r"#vsfix\.noise:(?P<kind>[a-z-]+)=(?P<value>[0-9.e+-]+)$")


def marker_node_name(name: str, noise: Noise) -> str:
    """The name of the marker for `noise` whose untagged name is `name`."""
    if noise.kind is NoiseKind.DROPOUT:
        return name
    return f"{name}#vsfix.noise:{noise.kind.value}={noise.value!r}"


def marker_ratio(noise: Noise) -> float:
    """The ratio of the Dropout whose noise has the variance of `noise`; for the alpha kinds their own ratio."""
    if noise.kind not in UOUT_KINDS:
        return noise.value  # all of them have the variance of the Dropout of the same ratio
    return noise.variance / (1 + noise.variance)


def write_marker(name: str, noise: Noise, data: Tensor, output: gs.Variable) -> gs.Node:
    """Makes the marker of `noise` between two tensors of the same shape.

    Args:
        name: a name that no other node of the graph has; the tensors of the marker derive theirs from it.
        noise: what the marker stands for.
        data: the tensor upstream of the noise.
        output: the tensor downstream of it.

    Returns:
        The node, not yet part of a graph (opset 12 or newer).
    """
    ratio = gs.Constant(f"{name}.ratio", np.array(marker_ratio(noise), dtype=np.float32))
    training_mode = gs.Constant(f"{name}.training_mode", np.array(False))
    return gs.Node(
        op="Dropout",
        name=marker_node_name(name, noise),
        inputs=[data, ratio, training_mode],
        outputs=[output],
    )


def read_marker(node: gs.Node) -> Noise | None:
    """The noise that `node` marks, or None where it is no marker.

    A ratio of 0 is no noise, and so no marker. Dropout before opset 12 (ratio as an attribute) is read too. One that is
    switched off and whose ratio is no constant marks nothing: at inference its ratio has no effect.

    Raises:
        ModelError: a Dropout whose ratio can't be read from the file, or a tag that can't be understood.
    """
    if not is_dropout(node):
        return None
    tag = _TAG.search(node.name or "")
    if tag is not None:
        try:
            noise = Noise.parse(f"{tag['kind']}:{tag['value']}")
        except InputError as error:
            raise ModelError(f"node '{node.name}': the noise tag can't be understood ({error})") from error
    elif is_switched_off(node) and has_open_ratio(node):
        return None
    else:
        noise = Noise(NoiseKind.DROPOUT, _ratio(node))
    return noise if noise.value else None


def has_open_ratio(node: gs.Node) -> bool:
    """Whether the ratio of a Dropout is an input of the graph or computed, so that nothing says how much it dropped."""
    return (
        "ratio" not in node.attrs
        and len(node.inputs) > 1
        and upstream_constant(node.inputs[1]) is None
        and (not node.inputs[1].is_empty())
    )


def is_dropout(node: gs.Node) -> bool:
    """Whether `node` is the standard's Dropout."""
    return node.op == "Dropout" and is_standard(node)


def is_switched_off(node: gs.Node) -> bool:
    """Whether a Dropout is the identity when the file runs: its training_mode is absent or false."""
    if len(node.inputs) < 3 or node.inputs[2].is_empty():
        return True
    training_mode = upstream_constant(node.inputs[2])
    return training_mode is not None and not np.asarray(training_mode.values).any()


def require_switched_off(node: gs.Node) -> None:
    """Refuses a Dropout that would drop when the file runs.

    Raises:
        ModelError: it is in training mode.
    """
    if is_dropout(node) and not is_switched_off(node):
        raise ModelError(
            f"Dropout '{marker_label(node)}' is in training mode and would drop at inference; "
            "export the model after model.eval()"
        )


def marker_label(node: gs.Node) -> str:
    """The name of a marker without its tag; the name of its output where it has none."""
    return _TAG.sub("", node.name or "") or str(node.outputs[0].name)


def _ratio(node: gs.Node) -> float:
    """The drop ratio of a Dropout of any opset; 0.5 is the default of the standard."""
    if "ratio" in node.attrs:
        return float(node.attrs["ratio"])
    if len(node.inputs) < 2 or node.inputs[1].is_empty():
        return 0.5
    tensor = upstream_constant(node.inputs[1])
    if tensor is None:
        raise ModelError(f"Dropout '{node.name}': its ratio is computed by the graph; give it with a constant")
    return float(np.asarray(tensor.values, dtype=np.float64).reshape(()))


class RemoveMarkers:
    """Removes every Dropout in inference form, whatever noise it marks."""

    name = "remove noise markers"

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place.

        Raises:
            ModelError: a Dropout that is switched on: the file drops at inference too.
        """
        for node in nodes_of(graph):
            require_switched_off(node)
        return bypass_nodes(graph, self.name, is_dropout, marker_label)
