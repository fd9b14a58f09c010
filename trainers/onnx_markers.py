"""The markers of an exported graph: one in the place of each opaque operator that `noise_tracing` left in it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_graphsurgeon as gs
import torch
from torch import nn

from vsfix.graph_passes.marker import write_marker
from vsfix.graph_passes.noise import Noise

from .noise_reach import reaches_deployment
from .noise_tracing import NOISE_DOMAIN, NoiseTracer


def describe_lost_noise(module: nn.Module, rows: torch.Tensor, tracer: NoiseTracer, graph: gs.Graph) -> list[str]:
    """Says so where noise that eval mode cuts off from the output matters in training mode.

    Args:
        module: what was exported.
        rows: an input, shape (N, ...).
        tracer: the noise that was seen.
        graph: with the opaque operators still in it.
    """
    lost = tracer.marked.keys() - {node.attrs["name"] for node in graph.nodes if node.domain == NOISE_DOMAIN}
    if not lost or not reaches_deployment(module, rows, [tracer.places[name] for name in lost]):
        return []
    return [f"{len(lost)} noise calls whose result the output depends on in training mode only"]


def write_markers(graph: gs.Graph, marked: Mapping[str, Noise]) -> tuple[tuple[str, Noise], ...]:
    """Puts the marker of its noise in the place of each opaque operator; returns them in the graph's order."""
    taken = {tensor.name for tensor in graph.tensors().values()} | {node.name for node in graph.nodes}
    markers: list[tuple[str, Noise]] = []
    for index, node in enumerate(graph.nodes):
        if node.domain != NOISE_DOMAIN:
            continue
        noise = marked[node.attrs["name"]]
        name = unused_name(node.attrs["name"], taken)
        data, output = node.inputs[0], node.outputs[0]
        node.inputs.clear()
        node.outputs.clear()
        graph.nodes[index] = write_marker(name, noise, data, output)
        markers.append((name, noise))
    graph.import_domains = [entry for entry in graph.import_domains if entry.domain != NOISE_DOMAIN]
    return tuple(markers)


def unused_name(label: str, taken: set[str]) -> str:
    """The label, with a number behind it where it or one of the tensors that would be named after it is taken."""
    name, number = label, 2
    while taken & {name, f"{name}.ratio", f"{name}.training_mode"}:
        name, number = f"{label}_{number}", number + 1
    taken.add(name)
    return name
