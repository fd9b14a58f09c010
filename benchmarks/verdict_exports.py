"""The three documented exports of a network, and where its noise was in the file that has lost it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from ladder_tasks import INPUT, Array
from torch import nn

from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs
from vsfix.trainers.export.onnx_conversion import quiet_exporter
from vsfix.trainers.export.onnx_export import export_onnx

_SAME = 1e-4  # of the largest value, within which two tensors are one
# What noise of each width may be moved across without any difference to what follows.
_ELEMENTS = frozenset({"Identity", "Relu", "Reshape", "Flatten", "Squeeze"})
_CHANNELS = _ELEMENTS | {"GlobalAveragePool", "AveragePool", "MaxPool", "ReduceMean"}


def export_marked(module: nn.Module, example: torch.Tensor, path: Path, output: str) -> None:
    """As `vsfix export` does."""
    export_onnx(module.eval(), example, path, force=True, output_name=output)


def export_lost(module: nn.Module, example: torch.Tensor, path: Path, output: str) -> None:
    """Noise lost, BatchNorm kept."""
    _export_dynamo(module.eval(), example, path, output)


def export_training(module: nn.Module, example: torch.Tensor, path: Path, output: str) -> None:
    """Noise kept too."""
    _export_dynamo(module.train(), example, path, output)


def export_older(module: nn.Module, example: torch.Tensor, path: Path, output: str) -> None:
    """Noise kept too, by the older exporter."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = 0.0
    with quiet_exporter():
        torch.onnx.export(
            module,
            (example,),
            str(path),
            dynamo=False,
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
            input_names=[INPUT],
            output_names=[output],
            dynamic_axes={INPUT: {0: "batch"}},
        )


def _export_dynamo(module: nn.Module, example: torch.Tensor, path: Path, output: str) -> None:
    with quiet_exporter():
        torch.onnx.export(
            module,
            (example,),
            str(path),
            dynamo=True,
            optimize=False,
            verbose=False,
            external_data=False,
            input_names=[INPUT],
            output_names=[output],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )


def tensors_at(path: Path, rows: Array, wanted: Mapping[str, Array]) -> dict[str, list[str]]:
    """The tensors of a file that hold the wanted values on some rows, by the name of the wanted one.

    Args:
        path: a file without noise.
        rows: inputs, float32, shape (N, ...).
        wanted: what torch computes for them somewhere in the network.
    """
    model = onnx.load(path)
    names = [name for node in model.graph.node for name in node.output if name]
    types = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    given = {value.name for value in model.graph.output}
    tapped = [name for name in names if name in types and name not in given]
    model.graph.output.extend(types[name] for name in tapped)
    with open_for_small_runs(model) as runner:
        found = runner.run({INPUT: rows})
    values = {name: found[name] for name in tapped} | {INPUT: rows}
    return {key: [name for name, value in values.items() if _is_same(value, array)] for key, array in wanted.items()}


def _is_same(value: Array, wanted: Array) -> bool:
    if value.dtype.kind != "f" or value.shape != wanted.shape:
        return False
    return bool(np.abs(value - wanted).max() <= _SAME * np.abs(wanted).max())


def equivalents(path: Path, tensors: list[str], kind: str) -> list[str]:
    """The tensors at which noise of a kind does what it does at the given ones, these first.

    Between the two stand only operators that noise may be moved across, and nobody else reads what is between.
    """
    graph = onnx.load(path).graph
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    edges = [
        (node.input[0], node.output[0])
        for node in graph.node
        if _is_crossed(node, kind) and len(readers[node.input[0]]) == 1
    ]
    found = list(tensors)
    while new := [b for a, b in [*edges, *((b, a) for a, b in edges)] if a in found and b not in found]:
        found += [new[0]]
    return found


def _is_crossed(node: onnx.NodeProto, kind: str) -> bool:
    """Whether noise of a kind may be moved across a node: what drops whole samples also across maps without a bias."""
    if kind == "drop-path" and node.op_type in ("Conv", "Gemm"):
        return not any(node.input[2:])
    return node.op_type in (_CHANNELS if kind in ("feature-dropout", "drop-path") else _ELEMENTS)
