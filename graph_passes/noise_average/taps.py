"""The shapes that tensors have in one run, and a fixed choice of positions of a tensor, given out by the runtime.

A tensor of a network holds, for each sample, C channels at a number of positions: (N, C, *positions) with the channels
on axis 1, (N, *positions, C) with the channels last, (N r, C, ...) where a network folds an axis of r into the batch.
A tap brings all of them into one form, (N, M, C), with M positions chosen under a seed, so that a thousand samples of
a large image take no more memory than a thousand of a small one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.io.model_file import export_subgraph
from vsfix.graph_passes.ir.graph import Tensor
from vsfix.graph_passes.ir.runtime import Array, OpenModel
from vsfix.graph_passes.ir.shapes import shapes_of_run
from vsfix.graph_passes.statistics.batches import Batch

# What they write is a sequence, a map, or perhaps nothing: it has no shape.
_NO_TENSORS = frozenset(
    "Optional SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceMap SplitToSequence ZipMap".split()
)


def concrete_shapes(graph: gs.Graph, batch: Batch, open_model: OpenModel) -> dict[str, tuple[int, ...]]:
    """The shape that each tensor of the main graph has when one batch runs, by its name.

    The batch is run only where inference does not tell them all.

    Args:
        graph: its markers are off; not changed.
        batch: what to run.
        open_model: the runtime.
    """
    tensors = [
        tensor
        for node in graph.nodes
        if node.op not in _NO_TENSORS
        for tensor in node.outputs
        if not tensor.is_empty() and tensor.name
    ]
    inputs = {tensor.name: tuple(np.shape(batch[tensor.name])) for tensor in graph.inputs}
    inferred = shapes_of_run(graph, inputs)
    if all(tensor.name in inferred for tensor in tensors):
        return inputs | {tensor.name: inferred[tensor.name] for tensor in tensors}
    readers, outputs = [], []
    for number, tensor in enumerate(tensors):
        shape = gs.Variable(f"vsfix.shape_{number}", dtype=np.int64)
        readers.append(gs.Node("Shape", inputs=[tensor], outputs=[shape]))
        outputs.append(shape)
    try:
        model = export_subgraph(graph, [*graph.nodes, *readers], graph.inputs, outputs)
    finally:
        for reader in readers:
            reader.inputs.clear()
    with open_model(model) as runner:
        found = runner.run({tensor.name: batch[tensor.name] for tensor in graph.inputs})
    return inputs | {
        tensor.name: tuple(int(side) for side in found[output.name])
        for tensor, output in zip(tensors, outputs, strict=True)
    }


@dataclass(frozen=True, eq=False)
class PositionTap:
    """Nodes that give out some positions of a tensor.

    Attributes:
        nodes: to be run with the nodes that compute the tensor.
        output: shape (N, C, M), or (N, M, C) where the channels come last.
        channels_last: which of the two.
    """

    nodes: tuple[gs.Node, ...]
    output: gs.Variable
    channels_last: bool

    def read(self, arrays: Mapping[str, Array]) -> Array:
        """The values, shape (N, M, C)."""
        found = arrays[self.output.name]
        return found if self.channels_last else np.moveaxis(found, 1, 2)


def positions_of(shape: tuple[int, ...], samples: int, axis: int) -> int:
    """How many positions a channel of one sample has, P.

    Raises:
        ModelError: the first axis is not that of the samples.
    """
    if len(shape) < 2 or shape[0] % samples:
        raise ModelError(f"a tensor of the shape {shape} does not hold {samples} samples on its first axis")
    return int(np.prod(shape, dtype=np.int64)) // (samples * shape[axis])


def tap_positions(
    tensor: Tensor,
    shape: tuple[int, ...],
    samples: int,
    axis: int,
    chosen: Sequence[int] | None,
    label: str = "",
) -> PositionTap:
    """Makes the nodes that give out some positions.

    Args:
        tensor: its readers are not changed.
        shape: that it has in a run of `samples` samples.
        samples: N.
        axis: of the channels, 1 or -1.
        chosen: which of the P positions of a sample; None for all.
        label: who asks, where several taps of one run may read the same tensor.
    """
    name = f"{tensor.name}#vsfix{label}"
    folded = shape[0] // samples  # r: rows of one sample
    channels = shape[axis]
    nodes: list[gs.Node] = []

    def behind(op: str, inputs: list[gs.Tensor], **attributes: object) -> gs.Variable:
        out = gs.Variable(f"{name}.{len(nodes)}", dtype=tensor.dtype)
        nodes.append(gs.Node(op, attrs=attributes, inputs=inputs, outputs=[out]))
        return out

    def reshaped(data: Tensor, *sides: int) -> gs.Variable:
        return behind("Reshape", [data, gs.Constant(f"{name}.sides_{len(nodes)}", np.array(sides, dtype=np.int64))])

    last = axis == -1 or folded > 1
    if axis == -1:
        rows = reshaped(tensor, -1, positions_of(shape, samples, axis), channels)
    elif folded > 1:
        parted = reshaped(tensor, -1, folded, channels, positions_of(shape, samples, axis) // folded)
        turned = behind("Transpose", [parted], perm=[0, 1, 3, 2])
        rows = reshaped(turned, -1, positions_of(shape, samples, axis), channels)
    else:
        rows = reshaped(tensor, -1, channels, positions_of(shape, samples, axis))
    if chosen is not None:
        indices = gs.Constant(f"{name}.chosen", np.asarray(chosen, dtype=np.int64))
        rows = behind("Gather", [rows, indices], axis=1 if last else 2)
    return PositionTap(tuple(nodes), rows, last)


def choose_positions(positions: int, wanted: int, seed: Sequence[int]) -> list[int] | None:
    """A seeded choice without replacement, in ascending order; None where all are taken."""
    if positions <= wanted:
        return None
    chosen = np.random.default_rng(seed).choice(positions, wanted, replace=False)
    return [int(number) for number in np.sort(chosen)]
