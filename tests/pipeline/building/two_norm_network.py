"""A network of two BatchNorms, of which one folds into the convolution and one into nothing, and an engine of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from vsfix.pipeline.building.build_config import BuildConfig
from vsfix.pipeline.building.building import BuildReport, build_engine
from vsfix.pipeline.tensorrt.shape_profile import ShapeOptions

GRAPH = """(FLOAT[N, 3, 8, 8] x) => (FLOAT[N, 4, 6, 6] y) {
    [conv] c = Conv (x, w, b)
    [norm] n = BatchNormalization (c, g, s, m, v)
    [relu] r = Relu (n)
    [last] y = BatchNormalization (r, g2, s2, m2, v2)
}"""


def network_weights(**changed: np.ndarray) -> dict[str, np.ndarray]:
    """The weights, some of them changed; float64."""
    rng = np.random.default_rng(7)
    weights = {"w": rng.normal(size=(4, 3, 3, 3)), "b": rng.normal(size=4)}
    return weights | {name: rng.uniform(0.5, 1.5, 4) for name in "g s m v g2 s2 m2 v2".split()} | changed


def write_network(parse, path: Path, weights, dtype=np.float32, graph: str = GRAPH) -> Path:
    """Writes the network in one type."""
    name = {"float32": "float"}.get(np.dtype(dtype).name, np.dtype(dtype).name)
    stored = {key: np.asarray(values).astype(dtype) for key, values in weights.items()}
    onnx.save(parse(graph.replace("FLOAT", name), stored, 22), path)
    return path


def build_network(model: Path, engine: Path, **settings) -> BuildReport:
    """Builds an engine of the network with TensorRT."""
    shapes = ShapeOptions(minimum="x:1x3x8x8", optimum="x:2x3x8x8", maximum="x:4x3x8x8")
    return build_engine(model, engine, BuildConfig(shapes=shapes, **settings), force=True)
