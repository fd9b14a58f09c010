"""A machine with an NVIDIA GPU, TensorRT and cuda-python, all of them fakes, and engines for it."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

from .fake_cuda import FakeCuda
from .fake_engine import Profile, fake_plan
from .fake_tensorrt import VERSIONS, fake_tensorrt

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
PROFILE: Profile = {"x": ((1, 3), (2, 3), (4, 3))}


def model_of(body: str, weights: dict[str, Any] | None = None) -> onnx.ModelProto:
    """A model from ONNX text."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\nmain {body}')
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    model.graph.initializer.extend(tensors)
    return model


def eighths(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal values rounded to eighths: sums of their products are exact, so that no order of adding changes a bit."""
    return (np.round(8 * np.random.default_rng(seed).normal(size=shape)) / 8).astype(np.float32)


def linear_model() -> onnx.ModelProto:
    """A linear layer and a ReLU, (N, 3) -> (N, 5), and the sum of it, (N,)."""
    weights = {"w": eighths(3, 5), "b": eighths(5, seed=1)}
    body = """(float[N, 3] x) => (float[N, 5] y, float[N] s) {
        p = Gemm (x, w, b)
        y = Relu (p)
        s = ReduceSum <keepdims: int = 0> (y, axis)
    }"""
    return model_of(body, weights | {"axis": np.array([1])})


class Machine:
    """Puts the fakes in the place of the real modules.

    Attributes:
        cuda: the runtime of the GPU.
        library: the TensorRT that was installed last.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch, self._folder = monkeypatch, folder
        self.cuda, self.library = FakeCuda(), ModuleType("none")

    def install(self, version: str = "10", *, cuda: FakeCuda | None = None, gpu: bool = True) -> str:
        """Installs a version of TensorRT and a GPU, and returns the backend that runs its engines."""
        self.cuda = cuda or FakeCuda()
        self.library = fake_tensorrt(version, cuda=self.cuda, gpu=gpu)
        self._monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", self.cuda)
        self._monkeypatch.setitem(sys.modules, MODULES.get(version, "tensorrt"), self.library)
        return "tensorrt-rtx" if version == "rtx" else "tensorrt"

    def plan(self, model: onnx.ModelProto | None = None, profile: Profile = PROFILE, **odd: Any) -> bytes:
        """An engine of the version and for the GPU that are installed."""
        major, minor = self.cuda.capability or (8, 9)
        given = {"version": self.library.__version__, "capability": f"sm{major}{minor}"} | odd
        return fake_plan(model or linear_model(), profile, **given)

    def write(self, plan: bytes, name: str = "e.plan", **sidecar: Any) -> Path:
        """An engine with the sidecar that `vsfix build` would write; `sidecar` says what is other in it."""
        path = self._folder / name
        path.write_bytes(plan)
        document = {
            "runtime": "tensorrt",
            "version": VERSIONS["10"],
            "targets": ["current"],
            "gpu": "sm89",
            "plan": {"sha256": hashlib.sha256(plan).hexdigest()},
        }
        path.with_name(f"{name}.json").write_text(json.dumps(document | sidecar))
        return path
