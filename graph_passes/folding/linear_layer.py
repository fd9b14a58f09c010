"""A linear operator with constant weights: which axis of the weight holds which channels, and where its bias stands.

    Conv            (C_out, C_in / groups, *kernel)         channels on axis 1 of the data
    ConvTranspose   (C_in, C_out / groups, *kernel)         the same
    Gemm            (C_in, C_out), or transposed (transB)    the same; alpha A' B' + beta C
    MatMul          (C_in, C_out)                            channels on the last axis of the data

All of them are one thing, W of shape (groups, C_out / groups, C_in / groups, positions of the kernel): `_canonical`.
An Add of a constant directly downstream of the operator is its bias too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.graph import is_standard, upstream_constant
from vsfix.graph_passes.ir.runtime import Array, Float64Array
from vsfix.graph_passes.ir.stored_values import stored_values
from vsfix.graph_passes.ir.subgraphs import GraphTree

LINEAR_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FIRST_BROADCASTING_OPSET = 7


@dataclass(frozen=True, eq=False)
class Bias:
    """A constant that is added to every output.

    Attributes:
        node: the node that adds it: the operator itself or an Add downstream of it.
        index: at which input it stands.
        constant: None where there is none, but one could stand there.
    """

    node: gs.Node
    index: int
    constant: gs.Constant | None

    def values(self) -> Float64Array:
        """The addend, of a shape that broadcasts against (..., C_out); 0 where there is none."""
        if self.constant is None:
            return np.zeros(())
        values = stored_values(self.constant).astype(np.float64)
        if self.node.op == "Gemm":
            return np.asarray(values * float(self.node.attrs.get("beta", 1.0)))
        return values


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A linear operator.

    Attributes:
        node: the operator.
        last: the node that writes the result: the operator, or the Add of its bias.
        weight: its weight.
        biases: the addends, from the inside out; empty for a MatMul without an Add.
    """

    node: gs.Node
    last: gs.Node
    weight: gs.Constant
    biases: tuple[Bias, ...]

    @property
    def groups(self) -> int:
        """The number of groups of channels that do not see each other."""
        return int(self.node.attrs.get("group", 1)) if self.node.op.startswith("Conv") else 1

    @property
    def axis(self) -> int:
        """The axis of the channels, in the input and in the output."""
        return -1 if self.node.op == "MatMul" else 1

    @property
    def kernel(self) -> tuple[int, ...]:
        """The sides of the kernel, () for Gemm and MatMul."""
        return tuple(self.weight.shape[2:])

    @property
    def outputs(self) -> int:
        """C_out."""
        groups, out, _, _ = self._canonical().shape
        return int(groups * out)

    @property
    def inputs(self) -> int:
        """C_in."""
        groups, _, into, _ = self._canonical().shape
        return int(groups * into)

    def scaled_outputs(self, g: Float64Array) -> Float64Array:
        """The weight with output channel i multiplied by g[i], g of shape (C_out,); float64."""
        w = self._canonical()
        return self._stored(w * g.reshape(w.shape[0], w.shape[1], 1, 1))

    def scaled_inputs(self, g: Float64Array) -> Float64Array:
        """The weight with input channel i multiplied by g[i], g of shape (C_in,); float64."""
        w = self._canonical()
        return self._stored(w * g.reshape(w.shape[0], 1, w.shape[2], 1))

    def response(self, s: Float64Array) -> Float64Array:
        """The output, shape (C_out,), for an input that is s, shape (C_in,), everywhere."""
        w = self._canonical()
        alpha = float(self.node.attrs.get("alpha", 1.0)) if self.node.op == "Gemm" else 1.0
        return np.asarray(alpha * (w * s.reshape(w.shape[0], 1, w.shape[2], 1)).sum(axis=(2, 3)).reshape(-1))

    def by_output(self, weight: Float64Array) -> Float64Array:
        """A weight of the stored shape with the output channels first, shape (C_out, everything else)."""
        w = _canonical(self.node, weight, self.groups)
        return w.reshape(self.outputs, -1)

    def bias_values(self, bias: Bias) -> Float64Array:
        """The values of one of its biases with the channels on the last axis."""
        values = bias.values()
        return values.reshape(-1) if self.node.op.startswith("Conv") else values

    def write(self, tree: GraphTree, graph: gs.Graph, name: str, weight: Array, biases: list[Array]) -> None:
        """Puts a new weight and new biases into the graph; where there was no bias, the only one of `biases` is new.

        A constant that another node reads too is unchanged, and the new values become a constant of their own.

        Args:
            tree: the tree of graphs, for the names in it.
            graph: that of the operator.
            name: of the BatchNorm; new constants are called after it.
            weight: of the shape of the old one.
            biases: one for each of `biases`, channels on the last axis.
        """
        _put(tree, self.node, 1, self.weight, weight, f"{name}.folded_weight")
        for bias, values in zip(self.biases, biases, strict=False):
            if bias.node is not self.node and self.node.op.startswith("Conv"):
                values = values.reshape(-1, *(1 for _ in self.kernel))  # (C_out, 1, ..., 1)
            _put(tree, bias.node, bias.index, bias.constant, values, f"{name}.folded_bias")
        if self.node.op == "Gemm":
            self.node.attrs["beta"] = 1.0
        if biases and not self.biases and np.any(biases[0]):
            _append_add(tree, graph, self.node, gs.Constant(tree.unused_name(f"{name}.folded_bias"), biases[0]), name)

    def _canonical(self) -> Array:
        """The weight as stored, shape (groups, C_out / groups, C_in / groups, positions); a view of it."""
        return _canonical(self.node, stored_values(self.weight), self.groups)

    def _stored(self, w: Float64Array) -> Float64Array:
        """The opposite of `_canonical`."""
        if self.node.op == "ConvTranspose":
            w = w.transpose(0, 2, 1, 3)
        elif self.node.op != "Conv":
            w = w[0, :, :, 0]
            return w if self.node.attrs.get("transB", 0) else w.T
        return w.reshape(self.weight.shape)


def read_linear_layer(tree: GraphTree, node: gs.Node) -> LinearLayer | str:
    """The linear layer that `node` is the operator of, or the reason why its numbers are unavailable."""
    weight = upstream_constant(node.inputs[1])
    if weight is None:
        if node.op == "MatMul" and upstream_constant(node.inputs[0]) is not None:
            return "the weight of MatMul stands on the left"
        if any(producer.op == "DequantizeLinear" for producer in node.inputs[1].inputs):
            return f"the weight of {node.op} is quantised, and unchanged"
        return f"the weight of {node.op} is computed by the graph"
    if node.op in ("Gemm", "MatMul") and len(weight.shape) != 2:
        return f"the weight of {node.op} has {len(weight.shape)} axes, not 2"
    if node.op.startswith("Conv") and len(weight.shape) < 3:
        return f"the weight of {node.op} has {len(weight.shape)} axes, not 3 or more"
    if node.op in ("Gemm", "MatMul") and tree.root.opset < _FIRST_BROADCASTING_OPSET:
        return f"{node.op} of opset {tree.root.opset} broadcasts otherwise; convert the model to opset 7 or newer"
    own = _own_bias(node)
    if isinstance(own, str):
        return own
    layer = LinearLayer(node, node, weight, own)
    add = _added_constant(tree, layer)
    if add is None:
        return layer
    inner = tuple(bias for bias in own if bias.constant is not None)
    return LinearLayer(node, add.node, weight, (*inner, add))


def _canonical(node: gs.Node, w: Float64Array, groups: int) -> Float64Array:
    """A stored weight in the shape (groups, C_out / groups, C_in / groups, positions)."""
    if node.op == "Conv":
        return w.reshape(groups, w.shape[0] // groups, w.shape[1], -1)
    if node.op == "ConvTranspose":
        return w.reshape(groups, w.shape[0] // groups, w.shape[1], -1).transpose(0, 2, 1, 3)
    return (w if node.attrs.get("transB", 0) else w.T)[None, :, :, None]


def _own_bias(node: gs.Node) -> tuple[Bias, ...] | str:
    """The bias that the operator adds itself."""
    if node.op == "MatMul":
        return ()
    if len(node.inputs) <= 2 or node.inputs[2].is_empty():
        return (Bias(node, 2, None),)
    constant = upstream_constant(node.inputs[2])
    if constant is None:
        return f"the bias of {node.op} is computed by the graph"
    return (Bias(node, 2, constant),)


def _added_constant(tree: GraphTree, layer: LinearLayer) -> Bias | None:
    """The constant that an Add directly downstream of the operator adds to each channel."""
    tensor = layer.node.outputs[0]
    if tree.obstacle(tensor, "") is not None or tree.root.opset < _FIRST_BROADCASTING_OPSET:
        return None
    add = tensor.outputs[0]
    if add.op != "Add" or not is_standard(add):
        return None
    index = 1 if add.inputs[0] is tensor else 0
    constant = upstream_constant(add.inputs[index])
    if constant is None or not _is_bias(layer, tuple(constant.shape)):
        return None
    return Bias(add, index, constant)


def _is_bias(layer: LinearLayer, shape: tuple[int, ...]) -> bool:
    """Whether an addend differs between channels only; after Gemm and MatMul any broadcast keeps them apart."""
    if not layer.kernel:
        return len(shape) <= 2 and shape[-1:] in ((), (1,), (layer.outputs,))
    trailing = len(layer.kernel)
    if len(shape) > trailing + 2:
        return False
    channels = shape[-trailing - 1] if len(shape) > trailing else 1
    return channels in (1, layer.outputs) and int(np.prod(shape)) == channels


def _put(tree: GraphTree, node: gs.Node, index: int, old: gs.Constant | None, values: Array, name: str) -> None:
    """Puts `values` at an input: into the old constant where only this node reads it, else into a new one."""
    if old is not None and node.inputs[index] is old and tree.owns(node, old):
        old.values = values
        return
    fresh = gs.Constant(tree.unused_name(name), values)
    if index < len(node.inputs):
        node.inputs[index] = fresh
    else:
        node.inputs.append(fresh)


def _append_add(tree: GraphTree, graph: gs.Graph, node: gs.Node, constant: gs.Constant, name: str) -> None:
    """Adds a constant to the output of a node, under the name of that output."""
    result = node.outputs[0]
    between = gs.Variable(tree.unused_name(f"{name}.product"), dtype=result.dtype, shape=result.shape)
    node.outputs[0] = between
    tree.insert_after(graph, node, gs.Node("Add", f"{name}.add", inputs=[between, constant], outputs=[result]))
