"""BatchNorms that are written as primitives: the nodes of each, and lookalikes.

    y = (x - mean) / sqrt(var + epsilon) * gamma + beta
    y = x * s + (beta - mean * s)                       with s = gamma / sqrt(var + epsilon), computed in the graph

A chain of Add, Sub, Mul and Div between x and constants is read as: a shift or none, scales, a shift or none. The
scales are one product of powers, in which (var + epsilon)^-1/2 stands once. Where it was merged into a constant c that
is divided by after a subtraction, var = c^2 and epsilon = 0 compute the same. Where more was merged, mean and variance
are no longer in the file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.constant_expression import (
    Chain,
    Factor,
    Step,
    constant_tensors,
    elementwise_chains,
    factors,
    look_through,
    terms,
    values_of,
)
from vsfix.graph_passes.ir.fold_constants import evaluate_constant
from vsfix.graph_passes.ir.graph import Tensor, is_graph_output, upstream_constant
from vsfix.graph_passes.ir.runtime import Float64Array

from .batch_norm import KEEPING_EXPORT

MERGED = (
    "its variance is merged into its scale, so that neither is known; Keras on torch exports that way unless its own "
    "exporter is left out: with KERAS_BACKEND=torch take torch.onnx.export(model.eval(), args, file, dynamo=True, "
    "optimize=False)"
)
PLAIN_AFFINE = (
    "it is a scale and a shift of each channel, as a frozen BatchNorm is: no mean and variance is in the file"
)
# Copies without arithmetic: downstream of them, an input of the graph is still what the user fed.
_COPIES = frozenset("Identity Cast Reshape Flatten Squeeze Unsqueeze Transpose".split())
# A scale and a shift after one of these belong to it: the affine part of a normalisation, not a merged BatchNorm.
_NORMALISES = frozenset(
    "BatchNormalization LayerNormalization InstanceNormalization GroupNormalization RMSNormalization LpNormalization "
    "MeanVarianceNormalization SimplifiedLayerNormalization Mul Div".split()
)
_FOLLOWS_BATCH_NORM = frozenset(
    "Relu LeakyRelu PRelu Elu Selu Celu Gelu Mish Sigmoid Tanh Softplus HardSigmoid HardSwish Clip Conv ConvTranspose "
    "Gemm MatMul MaxPool AveragePool GlobalAveragePool Transpose Dropout".split()
)


@dataclass(frozen=True, eq=False)
class BatchNormParameter:
    """A constant of the BatchNorm: its values, shape (C,) or (1,), and the tensor that holds them where one does."""

    values: Float64Array
    source: Tensor | None = None


@dataclass(frozen=True, eq=False)
class PrimitiveBatchNorm:
    """A BatchNorm in primitives.

    Attributes:
        steps: its nodes, in order.
        gamma, beta, mean, variance: its constants.
        epsilon: 0 where it was merged with the variance.
        merged: whether sqrt(var + epsilon) is one constant in the file.
    """

    steps: Chain
    gamma: BatchNormParameter
    beta: BatchNormParameter
    mean: BatchNormParameter
    variance: BatchNormParameter
    epsilon: float
    merged: bool


@dataclass(frozen=True, eq=False)
class Lookalike:
    """Steps that look like a BatchNorm but can't be written as one, with the reason."""

    steps: Chain
    reason: str


def find_primitive_batch_norms(graph: gs.Graph) -> list[PrimitiveBatchNorm | Lookalike]:
    """Everything that looks like a BatchNorm, in the order of the graph."""
    found: list[PrimitiveBatchNorm | Lookalike] = []
    for chain in elementwise_chains(graph, constant_tensors(graph)):
        start = 0
        while start < len(chain):
            match = _match(graph, chain[start:])
            if match is not None:
                found.append(match)
            start += 1 if match is None else len(match.steps)
    return found


def _match(graph: gs.Graph, chain: Chain) -> PrimitiveBatchNorm | Lookalike | None:
    """A BatchNorm at the beginning of a chain: a shift or none, scales, a shift or none."""
    first = 1 if chain[0].shifts else 0
    if first and not is_row(graph, chain[0]):
        return None
    end = first
    while end < len(chain) and not chain[end].shifts and is_row(graph, chain[end]):
        end += 1
    scales = chain[first:end]
    if not scales:
        return None
    center = chain[0] if first else None
    shift = chain[end] if end < len(chain) and chain[end].shifts and is_row(graph, chain[end]) else None
    steps = chain[: end + (shift is not None)]
    try:
        product = [factor for step in scales for factor in factors(graph, step.operand, step.sign)]
        roots = [factor for factor in product if factor.power == -0.5]
        if not roots:
            return _match_merged(graph, steps, center, product, shift)
        if len(roots) > 1:
            return Lookalike(steps, f"it divides by {len(roots)} square roots")
        return _match_root(graph, steps, center, product, shift)
    except ArithmeticError as error:
        return Lookalike(steps, f"a constant of it {error}")


def _match_root(
    graph: gs.Graph, steps: Chain, center: Step | None, product: list[Factor], shift: Step | None
) -> PrimitiveBatchNorm | Lookalike | None:
    """A BatchNorm whose square root stands in the graph."""
    root = next(factor for factor in product if factor.power == -0.5)
    gamma = _gamma([factor for factor in product if factor is not root])
    variance, epsilon = _variance(graph, root)
    moved = None if shift is None else _mean_in_shift(graph, shift, product)
    if moved is None and center is None:
        reason = f"no mean is subtracted just upstream; if it was merged with the shift, {KEEPING_EXPORT}"
        return Lookalike(steps, reason)
    if moved is not None and center is not None:
        return None  # the shift belongs to the upstream layer: the match begins after it
    mean, beta = moved or (_added(graph, center, -1), _added(graph, shift))
    return PrimitiveBatchNorm(steps, gamma, beta, mean, variance, epsilon or 0.0, merged=epsilon is None)


def _match_merged(
    graph: gs.Graph, steps: Chain, center: Step | None, product: list[Factor], shift: Step | None
) -> PrimitiveBatchNorm | Lookalike | None:
    """A BatchNorm whose square root was merged into a constant."""
    if not any(factor.values.size > 1 for factor in product):
        return None
    data = steps[0].data
    divisors = [factor for factor in product if factor.power == -1 and factor.values.size > 1]
    if center is not None and center.node.op == "Sub":
        if _is_fed(graph, data):
            return Lookalike(steps, "it normalises an input of the graph, as preprocessing does")
        if len(divisors) != 1 or not (divisors[0].values > 0).all():
            return Lookalike(steps, MERGED)
        c = divisors[0]
        if not _is_vouched_for(graph, steps, shift):
            return Lookalike(steps, "it standardises a tensor, and neither a root nor what follows says BatchNorm")
        gamma = _gamma([factor for factor in product if factor is not c])
        variance = BatchNormParameter(c.values**2)
        return PrimitiveBatchNorm(steps, gamma, _added(graph, shift), _added(graph, center, -1), variance, 0, True)
    producer = look_through(data).inputs
    if shift is None or _is_fed(graph, data) or (producer and producer[0].op in _NORMALISES):
        return None
    if values_of(graph, shift.operand).size < 2:
        return None
    return Lookalike(steps, PLAIN_AFFINE)


def _is_vouched_for(graph: gs.Graph, steps: Chain, shift: Step | None) -> bool:
    """Whether more than (x - a) / c says that it was a BatchNorm: a shift downstream, or a layer that follows one."""
    output = steps[-1].node.outputs[0]
    if shift is not None:
        return True
    return not is_graph_output(graph, output) and any(reader.op in _FOLLOWS_BATCH_NORM for reader in output.outputs)


def _mean_in_shift(
    graph: gs.Graph, shift: Step, product: list[Factor]
) -> tuple[BatchNormParameter, BatchNormParameter] | None:
    """The mean and beta of a shift beta - mean * s, where s is the product that the data is multiplied by."""
    parts = terms(shift.operand, shift.sign)
    for number, (tensor, sign) in enumerate(parts):
        rest = factors(graph, tensor)
        for factor in product:
            same = next((candidate for candidate in rest if candidate.equals(factor)), None)
            rest = [candidate for candidate in rest if candidate is not same]
        if sign == -1 and len(rest) == 1 and rest[0].power == 1 and len(factors(graph, tensor)) == len(product) + 1:
            others = parts[:number] + parts[number + 1 :]
            beta = sum((sign * values_of(graph, other) for other, sign in others), np.zeros(1))
            single = others[0][0] if len(others) == 1 else None
            return BatchNormParameter(rest[0].values, rest[0].tensor), BatchNormParameter(beta, single)
    return None


def _variance(graph: gs.Graph, root: Factor) -> tuple[BatchNormParameter, float | None]:
    """The variance and epsilon under a square root; epsilon is None where both are one constant."""
    producers = root.tensor.inputs
    if len(producers) == 1 and producers[0].op == "Add":
        pair = [(tensor, values_of(graph, tensor)) for tensor in producers[0].inputs]
        pair.sort(key=lambda entry: (entry[1].size, float(np.max(entry[1]))))
        (_, small), (tensor, values) = pair
        if small.min() == small.max():
            return BatchNormParameter(values, look_through(tensor)), float(small[0])
    return BatchNormParameter(root.values, root.tensor), None


def _gamma(product: list[Factor]) -> BatchNormParameter:
    """The product of the other factors of the scales."""
    values = np.ones(1)
    for factor in product:
        values = values * factor.raised
    single = product[0].tensor if len(product) == 1 and product[0].power == 1 else None
    return BatchNormParameter(values, single)


def _added(graph: gs.Graph, step: Step | None, sign: int = 1) -> BatchNormParameter:
    """The addend of a shift, or with sign -1 the subtrahend; 0 where there is none."""
    if step is None:
        return BatchNormParameter(np.zeros(1))
    values = sign * step.sign * values_of(graph, step.operand)
    return BatchNormParameter(values + 0.0, look_through(step.operand))  # + 0.0: no negative zeros


def is_row(graph: gs.Graph, step: Step) -> bool:
    """Whether the operand has one value for each position of one axis at most."""
    shape = operand_shape(graph, step)
    return shape is not None and sum(side != 1 for side in shape) <= 1


def operand_shape(graph: gs.Graph, step: Step) -> tuple[int, ...] | None:
    """The shape of a constant expression, or None where it can't be computed."""
    constant = upstream_constant(step.operand)
    if constant is not None:
        return tuple(constant.shape)
    values = evaluate_constant(graph, step.operand)
    return None if isinstance(values, str) else values.shape


def _is_fed(graph: gs.Graph, tensor: Tensor) -> bool:
    """Whether a tensor holds an input of the graph as it was fed, in whatever shape and type."""
    while len(tensor.inputs) == 1 and tensor.inputs[0].op in _COPIES:
        tensor = tensor.inputs[0].inputs[0]
    return any(tensor is fed for fed in graph.inputs)
