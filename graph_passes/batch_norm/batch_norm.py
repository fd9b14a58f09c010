"""The BatchNormalization nodes of a graph: their names, their parameters, and how new statistics get into them.

Y = gamma (X - mean) / sqrt(var + epsilon) + beta          X of shape (N, C) or (N, C, *positions), the rest (C,)

A module that a network uses several times, as two-view networks do, is several nodes with the same parameters. It has
one mean and one variance, and measurements and repairs take all of its nodes together (`find_modules`); folds and casts
take them one by one (`find_batch_norms`). Where one use is downstream of another
the nodes count as BatchNorms of their own, for no single run shows what all of them would see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.ir.graph import Tensor, is_batch_norm, is_graph_output, name_of, subgraphs_of, upstream_constant
from vsfix.graph_passes.ir.graph_pass import Skipped
from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.ir.stored_values import stored_values

DEFAULT_EPSILON = float(np.float32(1e-5))  # an attribute is a float32, its default too
FOLD_TARGETS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
KEEPING_EXPORT = (
    "export it again with `vsfix export`, or with torch.onnx.export(model.eval(), args, file, dynamo=True, "
    "optimize=False), which loses only the noise"
)
_PARAMETER_NAMES = ("weight", "bias", "running_mean", "running_var")
_SCALE_AND_SHIFT = (1, 2)
Parameters = tuple[gs.Constant, gs.Constant, gs.Constant, gs.Constant]


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """One BatchNormalization in inference form.

    Attributes:
        name: unique in the graph: the module's name where the statistics are called `<module>.running_mean` and
            `<module>.running_var`, else the node's name, else the name of its output.
        node: the node itself.
        parameters: gamma, beta, mean and var as constants, each of shape (C,), in the node's order.
        others: the other uses of the same module; empty for a single node.
    """

    name: str
    node: gs.Node
    parameters: Parameters
    others: tuple[BatchNorm, ...] = ()

    @property
    def input(self) -> Tensor:
        """X, the tensor that is normalised."""
        tensor: Tensor = self.node.inputs[0]
        return tensor

    @property
    def uses(self) -> tuple[BatchNorm, ...]:
        """Every use of the module as a node of its own, this one first."""
        return (BatchNorm(self.name, self.node, self.parameters), *self.others)

    @property
    def output(self) -> Tensor:
        """Y, the normalised tensor."""
        tensor: Tensor = self.node.outputs[0]
        return tensor

    @property
    def epsilon(self) -> float:
        """The constant that is added to the variance."""
        return float(self.node.attrs.get("epsilon", DEFAULT_EPSILON))

    @property
    def channels(self) -> int:
        """C."""
        return prod(self.parameters[2].shape)

    @property
    def gamma(self) -> Float64Array:
        """Shape (C,)."""
        return _float64(self.parameters[0])

    @property
    def beta(self) -> Float64Array:
        """Shape (C,)."""
        return _float64(self.parameters[1])

    @property
    def mean(self) -> Float64Array:
        """The stored running mean, shape (C,)."""
        return _float64(self.parameters[2])

    @property
    def variance(self) -> Float64Array:
        """The stored running variance, shape (C,)."""
        return _float64(self.parameters[3])

    @property
    def is_new(self) -> bool:
        """Whether it stores what a new BatchNorm does: mean 0 and variance 1, to the digit."""
        return not self.mean.any() and bool((self.variance == 1).all())

    @property
    def scale(self) -> Float64Array:
        """gamma / sqrt(var + epsilon), the factor of X, shape (C,); not finite where the statistics do not allow it."""
        with np.errstate(all="ignore"):
            return np.asarray(self.gamma / np.sqrt(self.variance + self.epsilon))

    @property
    def shift(self) -> Float64Array:
        """beta - scale mean, the addend of the product, shape (C,)."""
        with np.errstate(all="ignore"):
            return np.asarray(self.beta - self.scale * self.mean)

    def with_statistics(self, mean: Float64Array, variance: Float64Array) -> BatchNorm:
        """Writes new statistics into the node, and into every other use of the module, and returns the new view.

        Each is rounded once, to the dtype that was stored. A tensor that something else reads too is unchanged,
        and a new one is made.

        Args:
            mean: shape (C,).
            variance: shape (C,), not negative.

        Raises:
            ModelError: a value that is not finite after rounding, or a negative variance.
        """
        return self.with_parameters(self.gamma, self.beta, mean, variance)

    def with_parameters(
        self, gamma: Float64Array, beta: Float64Array, mean: Float64Array, variance: Float64Array
    ) -> BatchNorm:
        """Writes all four parameters into the node and the other uses; equal ones, after rounding, are not touched.

        Raises:
            ModelError: a value that is not finite after rounding, or a negative variance.
        """
        if np.any(variance < 0):
            raise ModelError(f"BatchNorm '{self.name}': refusing to write a negative variance")
        written = [self._replace(index, values) for index, values in enumerate((gamma, beta, mean, variance), 1)]
        parameters = (written[0], written[1], written[2], written[3])
        others = tuple(BatchNorm(other.name, other.node, parameters) for other in self.others)
        return BatchNorm(self.name, self.node, parameters, others)

    def _replace(self, index: int, values: Float64Array) -> gs.Constant:
        """Puts `values` at input `index`, in place where the uses of this module are the only readers."""
        constant: gs.Constant = self.parameters[index - 1]
        stored = stored_values(constant)
        with np.errstate(over="ignore"):
            rounded = values.astype(stored.dtype).reshape(constant.shape)
        if index in _SCALE_AND_SHIFT and rounded.tobytes() == stored.tobytes():
            return constant
        if not np.isfinite(rounded.astype(np.float64)).all():
            raise ModelError(f"BatchNorm '{self.name}': refusing to write a parameter that is not finite")
        if self.is_only_reader(index):
            constant.values = rounded
        else:
            constant = gs.Constant(f"{self.name}.{_PARAMETER_NAMES[index - 1]}.own", rounded)
            for use in self.uses:
                use.node.inputs[index] = constant
        return constant

    def is_only_reader(self, index: int) -> bool:
        """Whether the uses of this module, and nothing else, read the constant of an input of the node."""
        constant = self.parameters[index - 1]
        return len(constant.outputs) == len(self.uses) and all(use.node.inputs[index] is constant for use in self.uses)


def find_batch_norms(graph: gs.Graph) -> tuple[BatchNorm, ...]:
    """The BatchNormalization nodes of the main graph whose parameters can be read, in its order.

    The others are those of `unreadable_batch_norms`.

    Raises:
        ModelError: one is in training form.
    """
    return read_batch_norms([(node, _read(graph, node)) for node in graph.nodes if is_batch_norm(node)])


def find_modules(graph: gs.Graph) -> tuple[BatchNorm, ...]:
    """The BatchNorms of the main graph; a module that is used several times is one, at the position of its first use.

    Raises:
        ModelError: one is in training form.
    """
    modules = _grouped(find_batch_norms(graph))
    return tuple(BatchNorm(first.name, first.node, first.parameters, tuple(others)) for first, *others in modules)


def read_batch_norms(readings: Sequence[tuple[gs.Node, Parameters | str]]) -> tuple[BatchNorm, ...]:
    """Those of the nodes whose parameters could be read, by names that are unique among them.

    The first use of a module that is used several times has the name of the module.
    """
    readable = [(node, constants) for node, constants in readings if not isinstance(constants, str)]
    found = [BatchNorm(_candidate_name(node, constants), node, constants) for node, constants in readable]
    modules = _grouped(found)
    later = {id(use.node) for _, *others in modules for use in others}
    repeated = {name for name, count in Counter(first.name for first, *_ in modules).items() if count > 1}
    return tuple(
        BatchNorm(use.node.outputs[0].name, use.node, use.parameters)
        if id(use.node) in later or use.name in repeated
        else use
        for use in found
    )


def _grouped(batch_norms: Sequence[BatchNorm]) -> list[list[BatchNorm]]:
    """The uses of each module, in the order of the first ones.

    Equal constants are one tensor after some exporters, so that new BatchNorms, of mean 0 and variance 1, share theirs
    without being one module.
    """
    groups: dict[tuple[int, int, int], list[BatchNorm]] = {}
    for number, use in enumerate(batch_norms):
        mean, variance = use.parameters[2:]
        shared = len(mean.outputs) > 1 and len(variance.outputs) > 1 and not use.is_new
        groups.setdefault((id(mean), id(variance), -1) if shared else (0, 0, number), []).append(use)
    modules: list[list[BatchNorm]] = []
    together: dict[int, list[gs.Node]] = {}
    for uses in groups.values():
        is_one = len(uses) > 1 and _is_one_module(uses, together)
        modules += [uses] if is_one else [[use] for use in uses]
        if is_one:
            nodes = [use.node for use in uses]
            together |= {id(node): nodes for node in nodes}
    position = {id(use.node): number for number, use in enumerate(batch_norms)}
    return sorted(modules, key=lambda uses: position[id(uses[0].node)])


def _is_one_module(uses: Sequence[BatchNorm], together: Mapping[int, Sequence[gs.Node]]) -> bool:
    """Whether nodes with the same statistics compute the same, none downstream of another; see `_follow_each_other`."""
    first = uses[0]
    alike = all(
        use.epsilon == first.epsilon and np.array_equal(use.gamma, first.gamma) and np.array_equal(use.beta, first.beta)
        for use in uses
    )
    return alike and not _follow_each_other([use.node for use in uses], together)


def _follow_each_other(nodes: Sequence[gs.Node], together: Mapping[int, Sequence[gs.Node]]) -> bool:
    """Whether one of some nodes reads, at whatever distance, what another one writes.

    `together` are the other nodes of modules by the id of each: all wait for what any of them reads.
    """
    sought, seen = {id(node) for node in nodes}, set[int]()
    pending = [tensor for node in nodes for tensor in node.outputs]
    while pending:
        for reader in pending.pop().outputs:
            if id(reader) in sought:
                return True
            if id(reader) not in seen:
                uses = together.get(id(reader), (reader,))
                seen.update(id(use) for use in uses)
                pending += [tensor for use in uses for tensor in use.outputs]
    return False


def unreadable_batch_norms(graph: gs.Graph) -> tuple[Skipped, ...]:
    """The BatchNormalization nodes that can't be measured or repaired, each with the reason.

    Those are BatchNorms whose parameters are no constants (`FoldConstants` computes the ones that can be),
    or are not one value a channel, and BatchNorms inside the subgraphs of If, Loop and Scan.

    Raises:
        ModelError: one of the main graph is in training form.
    """
    found: list[Skipped] = []
    for node in graph.nodes:
        reading = _read(graph, node) if is_batch_norm(node) else None
        if isinstance(reading, str):
            found.append(Skipped(name_of(node), reading))
        found += [
            Skipped(name_of(inner), f"it stands in the subgraph of {node.op} '{name_of(node)}', which is skipped")
            for subgraph in subgraphs_of(node)
            for inner in _batch_norms_inside(subgraph)
        ]
    return tuple(found)


def separate_statistics(graph: gs.Graph) -> None:
    """Gives each module whose statistics something else reads too its own copy, under its own name.

    Afterwards every BatchNorm keeps its name when new statistics are written.
    """
    for module in find_modules(graph):
        constants = module.parameters[2:]
        own = [
            module.is_only_reader(index) and not is_graph_output(graph, constant)
            for index, constant in zip((3, 4), constants, strict=True)
        ]
        if not all(own):
            for index, constant, kind in zip((3, 4), constants, ("mean", "var"), strict=True):
                copy = gs.Constant(f"{module.name}.running_{kind}", np.array(stored_values(constant)))
                for use in module.uses:
                    use.node.inputs[index] = copy


def require_batch_norms(graph: gs.Graph) -> tuple[BatchNorm, ...]:
    """The BatchNorms of the main graph, for a caller that needs at least one.

    Raises:
        ModelError: there is none; the message says how to export a model that keeps them.
    """
    batch_norms = find_batch_norms(graph)
    if batch_norms:
        return batch_norms
    unreadable = unreadable_batch_norms(graph)
    if unreadable:
        first, others = unreadable[0], len(unreadable) - 1
        more = f" ({others} more like it)" if others else ""
        raise ModelError(f"BatchNorm '{first.subject}' can't be read: {first.reason}{more}; {KEEPING_EXPORT}")
    operators = {node.op for node in graph.nodes}
    story = "they were folded into the upstream layers" if operators & FOLD_TARGETS else "it never had any"
    raise ModelError(
        f"the model has no BatchNormalization: most likely {story}; {KEEPING_EXPORT}; where a network never had "
        "any, say where its noise was, with --noise 'NODE=dropout:RATIO'"
    )


def is_in_training_form(graph: gs.Graph, node: gs.Node) -> bool:
    """Whether a BatchNormalization normalises with the statistics of its batch, or hands them on.

    Args:
        graph: the main graph, for its opset.
        node: a BatchNormalization.
    """
    by_batch = node.attrs.get("training_mode", 0) or (graph.opset < 7 and not node.attrs.get("is_test", 0))
    return bool(by_batch) or len([out for out in node.outputs if not out.is_empty()]) > 1


def _read(graph: gs.Graph, node: gs.Node) -> Parameters | str:
    """Gamma, beta, mean and var of a node, or the reason why they are unavailable."""
    if is_in_training_form(graph, node):
        raise ModelError(f"BatchNorm '{name_of(node)}' is in training form; export the model after model.eval()")
    return read_parameters(node)


def read_parameters(node: gs.Node) -> Parameters | str:
    """Gamma, beta, mean and var of a BatchNormalization in inference form, or the reason why they are unavailable."""
    gamma, beta, mean, variance = (upstream_constant(tensor) for tensor in node.inputs[1:5])
    if gamma is None or beta is None or mean is None or variance is None:
        computed = next(tensor.name for tensor in node.inputs[1:5] if upstream_constant(tensor) is None)
        return f"its parameters must be constants, but '{computed}' is computed by the graph"
    parameters = (gamma, beta, mean, variance)
    # spatial = 0 (before opset 9) means a statistic for each position; where there is one a channel, nothing.
    if node.attrs.get("spatial", 1) == 0 and any(len(constant.shape) > 1 for constant in parameters):
        return "it has a statistic for each position (spatial = 0)"
    if len({prod(constant.shape) for constant in parameters}) > 1:
        return "its parameters are not of the same length"
    return parameters


def _batch_norms_inside(subgraph: gs.Graph) -> Iterator[gs.Node]:
    """The BatchNormalization nodes of a subgraph and of those in it."""
    for node in subgraph.nodes:
        if is_batch_norm(node):
            yield node
        for inner in subgraphs_of(node):
            yield from _batch_norms_inside(inner)


def _candidate_name(node: gs.Node, parameters: Parameters) -> str:
    """The module's name, the node's name or the output's, whichever there is first."""
    mean, _, mean_tail = str(parameters[2].name).rpartition(".")
    variance, _, variance_tail = str(parameters[3].name).rpartition(".")
    if mean and mean == variance and (mean_tail, variance_tail) == ("running_mean", "running_var"):
        return mean
    return name_of(node)


def _float64(constant: gs.Constant) -> Float64Array:
    """The values of a parameter, shape (C,)."""
    return stored_values(constant).astype(np.float64).reshape(-1)
