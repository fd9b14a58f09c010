"""How the tensors of a control-flow node and those of its bodies belong together.

    If      condition; the branches read the tensors around them       outputs: those of either branch
    Loop    count, condition, carried values                           outputs: carried values, then stacked ones
    Scan    carried values, then tensors that are cut into slices      outputs: carried values, then stacked ones

A body's carried outputs are its carried inputs of the next round. An operator that is not known connects everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from .nodes import bodies_of, is_standard
from .tensors import Tensor


@dataclass
class BodyLinks:
    """The connections, as ids of tensors.

    Attributes:
        bodies: the bodies.
        entering: pairs (tensor, input of a body): what the input holds in the first or in a later round.
        leaving: for each output of the node, what it can depend on.
        watched: the inputs of the bodies; when nothing changes there, another round changes nothing.
    """

    bodies: tuple[gs.Graph, ...]
    entering: list[tuple[int, int]] = field(default_factory=list)
    leaving: list[tuple[tuple[int, ...], int]] = field(default_factory=list)

    @property
    def watched(self) -> list[int]:
        """The ids of the inputs of all bodies."""
        return [id(tensor) for body in self.bodies for tensor in body.inputs]

    def enter(self, tensors: Iterable[Tensor], inputs: Iterable[Tensor]) -> None:
        """Connects tensors with the inputs of a body, one with one."""
        self.entering += [(id(tensor), id(target)) for tensor, target in zip(tensors, inputs, strict=False)]

    def leave(self, tensors: Iterable[Tensor], output: Tensor) -> None:
        """Says what an output of the node can depend on."""
        self.leaving.append((tuple(map(id, tensors)), id(output)))


def body_links(node: gs.Node) -> BodyLinks:
    """The connections of a control-flow node."""
    bodies = bodies_of(node)
    links = BodyLinks(bodies)
    known = {"If": _link_if, "Loop": _link_loop, "Scan": _link_scan}
    link = known.get(node.op, _link_all) if is_standard(node) else _link_all
    link(node, links)
    return links


def _link_if(node: gs.Node, links: BodyLinks) -> None:
    """Each output is that of one branch, and the condition says of which."""
    for position, output in enumerate(node.outputs):
        links.leave([node.inputs[0], *(body.outputs[position] for body in links.bodies)], output)


def _link_loop(node: gs.Node, links: BodyLinks) -> None:
    """The count and both conditions decide on how often the body runs, and so on every output."""
    (body,) = links.bodies
    links.enter(node.inputs[1:], body.inputs[1:])
    links.enter(body.outputs, body.inputs[1:])
    control = [*node.inputs[:2], body.outputs[0]]
    for position, output in enumerate(node.outputs):
        first = node.inputs[position + 2 : position + 3]  # the carried value after no round at all
        links.leave([*control, *first, body.outputs[position + 1]], output)


def _link_scan(node: gs.Node, links: BodyLinks) -> None:
    """Opset 8 has the lengths of the sequences in front of the other inputs."""
    (body,) = links.bodies
    values = list(node.inputs[len(node.inputs) - len(body.inputs) :])
    carried = len(body.inputs) - int(node.attrs["num_scan_inputs"])
    links.enter(values, body.inputs)
    links.enter(body.outputs[:carried], body.inputs)
    for position, output in enumerate(node.outputs):
        first = values[position : position + 1] if position < carried else []
        links.leave([*first, body.outputs[position]], output)


def _link_all(node: gs.Node, links: BodyLinks) -> None:
    """Everything depends on everything."""
    results = [tensor for body in links.bodies for tensor in body.outputs]
    for body in links.bodies:
        for target in body.inputs:
            links.entering += [(id(tensor), id(target)) for tensor in (*node.inputs, *results)]
    for output in node.outputs:
        links.leave([*node.inputs, *results], output)
