"""An ONNX graph as a torch module: differentiable in its inputs, with its noise on or off, and with every BN in reach.

A BN normalises with what it stores, or with the statistics of the batch at hand; either way it reports the mean and
the biased variance of its input, per channel and differentiable. Every floating point type of the graph is computed
in one type, so that half-precision files can be differentiated too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
import torch
from torch import nn

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm, find_batch_norms
from vsfix.graph_passes.errors import DataError, InputError, ModelError, VsfixError, first_line
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.ir.graph import is_batch_norm, is_standard, label_of
from vsfix.graph_passes.noise.marker import read_marker, require_switched_off
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.noise.sampling import draw_affine

from .onnx_call import Operator, OperatorCall, UnsupportedOperatorError, along
from .onnx_elementwise import ELEMENTWISE
from .onnx_reductions import REDUCTIONS
from .onnx_resizing import RESIZING
from .onnx_shapes import SHAPES, constant_tensor
from .onnx_windows import WINDOWS

OPERATORS: Mapping[str, Operator] = {**ELEMENTWISE, **REDUCTIONS, **WINDOWS, **SHAPES, **RESIZING}
"""By the name of the operator in the standard's domain."""
_OLDEST_OPSET = 7  # before it, broadcasting was an attribute
Statistics = Literal["stored", "batch"]
"""The statistics that a BN normalises with: those that it stores, or those of the batch at hand."""


def draw_noise(noise: Noise, x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Puts noise on x, as a training run does.

    Args:
        noise: its kind and parameter.
        x: floating point, shape (N, C, ...).
        rng: where the draws come from.

    Returns:
        A tensor of the shape and dtype of x; the draws are constants to the gradient.
    """
    scale, offset = draw_affine(noise, tuple(x.shape), rng)
    noisy = x * torch.from_numpy(scale).to(x)
    return noisy if offset is None else noisy + torch.from_numpy(offset).to(x)


@dataclass(frozen=True)
class BatchMoments:
    """The moments of the input of one BN in one evaluation.

    Attributes:
        mean: shape (C,), differentiable.
        variance: shape (C,), differentiable, biased.
        count: the values per channel that they were taken from.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    count: int


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: the graph's outputs by name, and the moments of each BN input by the name of the BN."""

    outputs: dict[str, torch.Tensor]
    batch_norms: dict[str, BatchMoments]


class OnnxModule(nn.Module):
    """The main graph of an ONNX model.

    Args:
        model: in inference form; not changed.
        dtype: the type in which every floating point type of the graph is computed.
        free: names of initializers that `forward` may be given other values for; nothing that depends on them is
            computed beforehand.

    Attributes:
        input_names: the inputs that must be fed.
        batch_norms: in the order of the graph.
        free: those names.

    Raises:
        UnsupportedOperatorError: an operator, or a variant of one, that can't be evaluated; names node and operator.
        ModelError: a BatchNorm or a marker that can't be read, or one that is in training mode.
        InputError: a name in `free` that is no initializer of the model.
    """

    def __init__(
        self, model: onnx.ModelProto, dtype: torch.dtype = torch.float32, *, free: Collection[str] = ()
    ) -> None:
        super().__init__()
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        graph = import_graph(model)
        require_supported(graph)
        self.dtype = dtype
        self.free = frozenset(free)
        self.batch_norms: tuple[BatchNorm, ...] = find_batch_norms(graph)
        self.input_names = [tensor.name for tensor in graph.inputs if isinstance(tensor, gs.Variable)]
        self._graph = graph
        self._names = {id(batch_norm.node): batch_norm for batch_norm in self.batch_norms}
        self._noise: dict[int, Noise] = {}
        for node in graph.nodes:
            noise = read_marker(node)
            if noise is not None:
                self._noise[id(node)] = noise
        self._buffers_of: dict[str, str] = {}
        self._fold_constants()

    def forward(
        self,
        inputs: Mapping[str, torch.Tensor],
        *,
        statistics: Statistics = "stored",
        noise: np.random.Generator | None = None,
        until: Collection[str] = (),
        parameters: Mapping[str, torch.Tensor] | None = None,
        moments: bool = True,
    ) -> Evaluation:
        """Evaluates the graph.

        Args:
            inputs: by name, batch first.
            statistics: what every BN normalises with.
            noise: where the draws come from; None leaves the noise off.
            until: names of BNs; where given, the evaluation ends with the last of them and has no outputs.
            parameters: other values for initializers in `free`, by name; the others keep those of the model.
            moments: whether the moments of BN inputs are wanted; without them the stored statistics cost less.

        Raises:
            DataError: an input is missing.
            InputError: a parameter that is not in `free`, or moments that are needed and not wanted.
            ModelError: a node can't be evaluated on these inputs.
        """
        missing = [name for name in self.input_names if name not in inputs]
        if missing:
            raise DataError(f"input '{missing[0]}' is missing")
        values = {name: self._as_computed(inputs[name]) for name in self.input_names}
        values |= {name: self.get_buffer(buffer) for name, buffer in self._buffers_of.items()}
        values |= self._free_values(parameters or {})
        if not moments and (until or statistics == "batch"):
            raise InputError("the moments of the BatchNorms are needed for the statistics of the batch and for `until`")
        found: dict[str, BatchMoments] = {}
        wanted = set(until)
        for node in self._remaining:
            batch_norm = self._names.get(id(node))
            if batch_norm is not None:
                x = values[node.inputs[0].name]
                if moments:
                    found[batch_norm.name] = _moments_of(x)
                own = found[batch_norm.name] if statistics == "batch" else None
                values[node.outputs[0].name] = _normalise(batch_norm, values, own)
            elif noise is not None and id(node) in self._noise:
                drawn = draw_noise(self._noise[id(node)], values[node.inputs[0].name], noise)
                values[node.outputs[0].name] = drawn
            else:
                self._evaluate(node, values)
            if wanted and wanted <= found.keys():
                return Evaluation({}, found)
        return Evaluation({tensor.name: values[tensor.name] for tensor in self._graph.outputs}, found)

    def _free_values(self, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The parameters in the type that is computed in."""
        for name in parameters:
            if name not in self.free:
                raise InputError(f"'{name}' is not among the free parameters")
        return {name: self._as_computed(tensor) for name, tensor in parameters.items()}

    def _as_computed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def _fold_constants(self) -> None:
        """Evaluates once what depends on no input, and keeps it."""
        values: dict[str, torch.Tensor] = {}
        for tensor in self._graph.tensors().values():
            if isinstance(tensor, gs.Constant):
                values[tensor.name] = constant_tensor(tensor.values, self.dtype)
        missing = sorted(self.free - values.keys())
        if missing:
            raise InputError(f"'{missing[0]}' is no initializer of the model")
        starts = {name: values.pop(name) for name in sorted(self.free)}
        self._remaining: list[gs.Node] = []
        for node in self._graph.nodes:
            known = all(tensor.is_empty() or tensor.name in values for tensor in node.inputs)
            if known and id(node) not in self._names and id(node) not in self._noise:
                self._evaluate(node, values)
            else:
                self._remaining.append(node)
        values |= starts
        read = {tensor.name for node in self._remaining for tensor in node.inputs}
        read |= {tensor.name for tensor in self._graph.outputs}
        for number, name in enumerate(name for name in values if name in read):
            self._buffers_of[name] = f"constant_{number}"
            self.register_buffer(f"constant_{number}", values[name])

    def _evaluate(self, node: gs.Node, values: dict[str, torch.Tensor]) -> None:
        """Adds what a node computes to the values."""
        inputs = tuple(None if tensor.is_empty() else values[tensor.name] for tensor in node.inputs)
        call = OperatorCall(node, int(self._graph.opset), inputs, self.dtype)
        try:
            result = OPERATORS[node.op].evaluate(call)
        except VsfixError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
            raise ModelError(f"{label_of(node)} can't be evaluated on these inputs: {first_line(error)}") from error
        results = result if isinstance(result, list) else [result]
        values.update((tensor.name, value) for tensor, value in zip(node.outputs, results, strict=False))


def _moments_of(x: torch.Tensor) -> BatchMoments:
    """Mean and biased variance of each channel of (N, C) or (N, C, *positions)."""
    rows = x.reshape(x.shape[0], x.shape[1], -1)  # (N, C, positions)
    count = rows.shape[0] * rows.shape[2]
    # By hand: on a CPU torch's var_mean over these axes takes several times as long.
    mean = rows.sum(2).sum(0) / count
    centred = rows - mean[:, None]
    return BatchMoments(mean, (centred * centred).sum(2).sum(0) / count, count)


def _normalise(batch_norm: BatchNorm, values: Mapping[str, torch.Tensor], moments: BatchMoments | None) -> torch.Tensor:
    """The output of a BN, normalised with the moments of its input, or with what it stores where there are none."""
    x, gamma, beta, mean, variance = (values[tensor.name] for tensor in batch_norm.node.inputs)
    if moments is not None:
        mean, variance = moments.mean, moments.variance
    scale = gamma * torch.rsqrt(variance + batch_norm.epsilon)  # (C,)
    shift = beta - mean * scale
    per_channel = along(1, x.dim())
    return torch.addcmul(shift.reshape(per_channel), x, scale.reshape(per_channel))


def require_supported(graph: gs.Graph) -> None:
    """Refuses a graph that can't be evaluated, before anything runs.

    Raises:
        UnsupportedOperatorError: names the first node that can't be, and its operator.
        ModelError: a Dropout in training mode.
    """
    if graph.opset < _OLDEST_OPSET:
        raise UnsupportedOperatorError(
            f"opset {graph.opset} can't be evaluated in torch; convert the model to opset {_OLDEST_OPSET} or newer"
        )
    for node in graph.nodes:
        require_switched_off(node)
        reason = _refusal(node, int(graph.opset))
        if reason is not None:
            raise UnsupportedOperatorError(f"{label_of(node)} can't be evaluated in torch: {reason}")


def _refusal(node: gs.Node, opset: int) -> str | None:
    """Why a node can't be evaluated, or None."""
    if not is_standard(node):
        return f"the domain '{node.domain}' is not the standard's"
    if is_batch_norm(node):
        return None  # find_batch_norms says what it refuses
    operator = OPERATORS.get(node.op)
    return "the operator is not supported" if operator is None else operator.refusal(node, opset)
