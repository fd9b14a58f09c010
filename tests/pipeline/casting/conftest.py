"""A network in which float16 breaks one layer, and the command that casts it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

X = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
# The squares of `big` pass 65504; the layer divides by their root, and what leaves it is small again.
OVERFLOW = """(float[N, 8] x) => (float[N, 4] y) {
    a = Gemm (x, wa)  ra = Relu (a)
    big = Gemm (ra, wb)  square = Mul (big, big)  mean = ReduceMean (square, axes)
    root = Sqrt (mean)  small = Div (big, root)
    c = Gemm (small, wc)  rc = Relu (c)
    y = Gemm (rc, wd)
}"""


def drawn(*shapes, seed=1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=shape) / shape[0] ** 0.5).astype(np.float32) for shape in shapes]


@pytest.fixture
def overflow(parse):
    a, b, c, d = drawn((8, 16), (16, 16), (16, 16), (16, 4))
    return parse(OVERFLOW, {"wa": a, "wb": 3000 * b, "wc": c, "wd": d, "axes": np.array([1])})


def cast_command(folder: Path, precision: str) -> tuple[object, ...]:
    """`vsfix optimize` of `net.onnx` into `cast.onnx`, which casts and repairs nothing."""
    repair = ("--method", "none", "--precision", precision)
    return ("optimize", folder / "net.onnx", "-o", folder / "cast.onnx", *repair)
