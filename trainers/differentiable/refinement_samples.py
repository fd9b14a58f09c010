"""Samples for the refinement of an ONNX graph, and the graph as a function of them and of its free parameters."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
import torch

from vsfix.graph_passes.errors import DataError, ModelError
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.statistics.batches import prescribed_batch_size

from .onnx_evaluation import OnnxModule

Tensors = Mapping[str, torch.Tensor]
"""By the name of an input, of an output or of a free parameter."""


class Samples:
    """Inputs and the means of the targets, sample by sample.

    Args:
        inputs: by name, (N, ...); what has no axis is the same for all samples.
        means: by the name of the output, (N, ...), or (N rows, ...) where each sample has several rows, which are
            adjacent.

    Raises:
        DataError: other numbers of samples, fewer than 2, or a mean that is not finite.
    """

    def __init__(self, inputs: Mapping[str, Array], means: Mapping[str, Array]) -> None:
        self._inputs = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
        counts = {len(tensor) for tensor in self._inputs.values() if tensor.dim()}
        lengths = {len(mean) for mean in means.values()}
        count = max(counts, default=0)
        if len(counts) != 1 or count < 2 or any(length == 0 or length % count for length in lengths):
            found = sorted(counts | lengths)
            raise DataError(f"refinement: inputs and targets have {found} samples; all need one number, 2 at least")
        self._means = {name: torch.from_numpy(np.array(mean)) for name, mean in means.items()}
        if not all(bool(mean.isfinite().all()) for mean in self._means.values()):
            raise DataError("refinement: a target is not finite")
        self._count = count

    def __len__(self) -> int:
        return self._count

    def inputs_at(self, rows: Array) -> dict[str, torch.Tensor]:
        """The inputs of some samples."""
        return _at(self._inputs, rows)

    def means_at(self, rows: Array) -> dict[str, torch.Tensor]:
        """The means of the targets of some samples, all of their rows."""
        return {name: _rows_at(mean, rows, self._count) for name, mean in self._means.items()}


class SampledNetwork:
    """The graph, for any number of samples: one that takes a fixed number gets that many at once, again and again.

    Args:
        model: in inference form; evaluated with its noise off and its stored statistics.
        free: names of initializers that are given with each call.
        samples: some, to find out whether a fixed number is more than the model's word.

    Raises:
        UnsupportedOperatorError: the graph can't be evaluated.
    """

    def __init__(self, model: onnx.ModelProto, free: Collection[str], samples: Samples) -> None:
        self._module = OnnxModule(model, free=free)
        self._fixed = prescribed_batch_size(import_graph(model))
        if self._fixed is not None and self._mixes_nothing(
            samples.inputs_at(np.arange(2 * self._fixed) % len(samples))
        ):
            self._fixed = None

    def __call__(self, inputs: Tensors, parameters: Tensors) -> dict[str, torch.Tensor]:
        """The outputs by name."""
        if self._fixed is None:
            return self._run(inputs, parameters)
        count = max(len(tensor) for tensor in inputs.values() if tensor.dim())
        filled = np.arange(count + -count % self._fixed).clip(max=count - 1)  # the last sample fills the last run
        parts = [self._run(_at(inputs, rows), parameters) for rows in filled.reshape(-1, self._fixed)]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {name: y[: len(y) // len(filled) * count] for name, y in joined.items()}

    def _run(self, inputs: Tensors, parameters: Tensors) -> dict[str, torch.Tensor]:
        outputs: dict[str, torch.Tensor] = self._module(inputs, parameters=parameters, moments=False).outputs
        return outputs

    def _mixes_nothing(self, inputs: Tensors) -> bool:
        """Whether more samples than the graph prescribes give what they give apart: often only its header says so."""
        with torch.no_grad():
            apart = self(inputs, {})
            try:
                together = self._run(inputs, {})
            except ModelError:
                return False
        return all(
            together[name].shape == y.shape
            and torch.allclose(together[name].double(), y.double(), rtol=1e-4, atol=1e-5 * float(y.abs().max()))
            for name, y in apart.items()
        )


def _at(tensors: Tensors, rows: Array) -> dict[str, torch.Tensor]:
    """Some samples of each; what has no axis is the same for all of them."""
    indices = torch.from_numpy(rows)
    return {name: tensor[indices] if tensor.dim() else tensor for name, tensor in tensors.items()}


def _rows_at(tensor: torch.Tensor, samples: Array, count: int) -> torch.Tensor:
    """The rows of some of `count` samples, each of which has as many, one after another."""
    by_sample = tensor.reshape(count, len(tensor) // count, *tensor.shape[1:])
    return by_sample[torch.from_numpy(samples)].flatten(0, 1)
