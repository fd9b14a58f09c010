"""Turns markers into noise that really happens when the graph runs, out of standard operators.

    dropout          u = RandomUniformLike(x) in [0, 1)       y = x * (u < p) / p
    feature-dropout  the same with one u per sample and channel, of shape (N, C, 1, ...)
    uout             r = RandomUniformLike(x) in [-beta, beta)  y = x * (1 + r)

The random operators carry a seed each, so that a session repeats itself from its first run on, while the runs within
one session differ. Nothing here is ever deployed: it is what the paired estimator runs.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from .marker import read_marker
from .noise import Noise, NoiseKind
from .tensors import Tensor


def inject_noise(graph: gs.Graph, seed: int) -> int:
    """Replaces every marker of `graph`, in place, by noise that happens.

    Args:
        graph: nodes in topological order; float32 data at the markers.
        seed: each marker takes a seed of its own from this one.

    Returns:
        The number of markers that were replaced.
    """
    seeds = np.random.SeedSequence(seed)
    nodes: list[gs.Node] = []
    injected = 0
    for node in graph.nodes:
        noise = read_marker(node)
        if noise is None:
            nodes.append(node)
            continue
        # The attribute is a float: 24 bits are what it holds exactly.
        node_seed = float(seeds.spawn(1)[0].generate_state(1)[0] & 0xFFFFFF)
        nodes.extend(_noise_nodes(node, noise, node_seed))
        injected += 1
    graph.nodes.clear()
    graph.nodes.extend(nodes)
    return injected


def _noise_nodes(marker: gs.Node, noise: Noise, seed: float) -> list[gs.Node]:
    """The nodes that take the place of one marker; they write the marker's output."""
    data, output = marker.inputs[0], marker.outputs[0]
    marker.inputs.clear()
    marker.outputs.clear()
    name = f"{output.name}.noise"
    draw = gs.Variable(f"{name}.draw", dtype=data.dtype)
    factor = gs.Variable(f"{name}.factor", dtype=data.dtype)
    if noise.kind is NoiseKind.UOUT:
        low, high = 1.0 - noise.value, 1.0 + noise.value
        uniform = gs.Node(
            "RandomUniformLike", f"{name}.uniform", {"seed": seed, "low": low, "high": high}, [data], [factor]
        )
        return [uniform, gs.Node("Mul", f"{name}.apply", inputs=[data, factor], outputs=[output])]
    keep = 1.0 - noise.value
    nodes, like = _draw_like(data, name, whole_channels=noise.kind is NoiseKind.FEATURE_DROPOUT)
    kept = gs.Variable(f"{name}.kept", dtype=np.dtype(bool))
    mask = gs.Variable(f"{name}.mask", dtype=np.dtype(np.float32))
    threshold = gs.Constant(f"{name}.p", np.array(keep, dtype=np.float32))
    nodes += [
        gs.Node("RandomUniformLike", f"{name}.uniform", {"seed": seed, "low": 0.0, "high": 1.0}, [like], [draw]),
        gs.Node("Less", f"{name}.keep", inputs=[draw, threshold], outputs=[kept]),
        gs.Node("Cast", f"{name}.cast", {"to": 1}, [kept], [mask]),  # 1 is FLOAT
        gs.Node("Div", f"{name}.scale", inputs=[mask, threshold], outputs=[factor]),
        gs.Node("Mul", f"{name}.apply", inputs=[data, factor], outputs=[output]),
    ]
    return nodes


def _draw_like(data: Tensor, name: str, *, whole_channels: bool) -> tuple[list[gs.Node], Tensor]:
    """The tensor whose shape the random draw takes: the data, or one value for each sample and channel."""
    if not whole_channels:
        return [], data
    pooled = gs.Variable(f"{name}.channels", dtype=data.dtype)  # (N, C, 1, ...)
    return [gs.Node("GlobalAveragePool", f"{name}.pool", inputs=[data], outputs=[pooled])], pooled
