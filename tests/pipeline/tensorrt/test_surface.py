"""The fake of TensorRT beside the names of the real ones: it has none that they have not, so vsfix asks for none.

`surface.json` was read from the wheels of `tensorrt-cu13-bindings` 10.16.1.11 and 11.4.0.106 by `surface_of`: the
bindings load without a GPU where libraries of the names that they want are there, even empty ones. TensorRT-RTX is
asked itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from vsfix.pipeline.building.build_config import BuildConfig
from vsfix.pipeline.building.building import build_engine
from vsfix.pipeline.tensorrt.engine_layers import COMPUTING
from vsfix.pipeline.tensorrt.parsed_network import _NOT_PINNED, _VALUES
from vsfix.pipeline.tensorrt.shape_profile import ShapeOptions

from . import fake_engine, fake_tensorrt

ENUMERATIONS = (
    *("BuilderFlag", "NetworkDefinitionCreationFlag", "TacticSource", "MemoryPoolType", "ProfilingVerbosity"),
    *("LayerInformationFormat", "DataType", "LayerType", "TensorFormat", "TensorIOMode", "TensorLocation"),
    *("CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy", "ComputeCapability"),
)
CLASSES = (
    *("Builder", "IBuilderConfig", "INetworkDefinition", "ITensor", "ILayer", "IScaleLayer", "IConvolutionLayer"),
    *("IDeconvolutionLayer", "IConstantLayer", "OnnxParser", "ParserError", "IOptimizationProfile", "ITimingCache"),
    *("IProgressMonitor", "Runtime", "ICudaEngine", "IExecutionContext", "EngineInspector", "IRuntimeConfig"),
)
FAKES = {
    fake_tensorrt.Network: "INetworkDefinition",
    fake_tensorrt.Parser: "OnnxParser",
    fake_tensorrt.Config: "IBuilderConfig",
    fake_engine.Runtime: "Runtime",
    fake_engine.Engine: "ICudaEngine",
    fake_engine.Context: "IExecutionContext",
}
REMOVED_IN_11 = {
    "BuilderFlag": {"FP16", "BF16", "INT8", "FP8", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"},
    "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH"},
    "IBuilderConfig": {"int8_calibrator", "set_calibration_profile", "set_quantization_flag"},
    "ILayer": {"precision", "set_output_type"},
    "Builder": {"platform_has_fast_fp16", "platform_has_fast_int8"},
}
Surface = dict[str, list[str]]


def surface_of(library: Any) -> Surface:
    """The names of a TensorRT: members of its enumerations, attributes of its classes."""
    found = {name: sorted(getattr(library, name).__members__) for name in ENUMERATIONS if hasattr(library, name)}
    for name in CLASSES:
        if hasattr(library, name):
            found[name] = [member for member in dir(getattr(library, name)) if not member.startswith("_")]
    return found


def surface(version: str) -> Surface:
    if version == "rtx":
        reason = "tensorrt_rtx is not installed; run: pip install 'vsfix[rtx]'"
        return surface_of(pytest.importorskip("tensorrt_rtx", reason=reason))
    document: dict[str, Surface] = json.loads(Path(__file__).with_name("surface.json").read_text())
    return document[version]


REAL = ("10", "11", "rtx")


@pytest.mark.parametrize("version", REAL)
def test_the_fake_has_no_member_of_an_enumeration_that_the_real_one_has_not(version):
    fake, real = fake_tensorrt.fake_tensorrt(version), surface(version)
    for name in ENUMERATIONS:
        members = getattr(getattr(fake, name, None), "__members__", {})
        assert set(members) <= set(real.get(name, ())), name


def unknown(fake: type, owner: str, version: str) -> set[str]:
    """The methods of a fake that the real class has not; tactic sources are asked of 8.6 alone."""
    methods = {name for kind in fake.__mro__[:-1] for name in vars(kind) if not name.startswith("_")}
    return methods - {"get_tactic_sources", "set_tactic_sources"} - set(surface(version)[owner])


@pytest.mark.parametrize("version", REAL)
@pytest.mark.parametrize("fake", FAKES, ids=FAKES.values())
def test_the_fake_has_no_method_that_the_real_one_has_not(version, fake):
    assert not unknown(fake, FAKES[fake], version)


def test_a_method_that_11_removed_would_be_seen():
    class Calibrated(fake_tensorrt.Config):
        def set_calibration_profile(self, profile): ...

    assert not unknown(Calibrated, "IBuilderConfig", "10")
    assert unknown(Calibrated, "IBuilderConfig", "11") == {"set_calibration_profile"}


@pytest.mark.parametrize("version", REAL)
def test_what_a_build_sets_and_calls_is_there(parse, tmp_path, machine, version):
    real, own = surface(version), {"profiles", "limits", "sources", "cache"}  # what the fake keeps
    runtime = machine.install(version)
    path = tmp_path / "m.onnx"
    body = "(float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { [conv] y = Conv (x, w) }"
    onnx.save(parse(body, {"w": np.ones((4, 3, 3, 3), np.float32)}), path)
    config = BuildConfig(runtime, ShapeOptions("x:2x3x8x8"), workspace=1 << 20)
    build_engine(path, tmp_path / "m.plan", config)
    ((_, used),) = machine.library.builds
    assert set(vars(used)) - own <= set(real["IBuilderConfig"])
    assert set(vars(machine.library.Builder(None))) <= set(real["Builder"])
    assert {"set_shape"} <= set(real["IOptimizationProfile"])
    assert {"get_engine_information", "execution_context"} <= set(real["EngineInspector"])
    assert {"node", "desc", "node_name", "node_operator"} <= set(real["ParserError"])
    assert {"name", "type", "metadata", "num_outputs", "get_output"} <= set(real["ILayer"])
    assert {"name", "dtype", "shape", "is_shape_tensor"} <= set(real["ITensor"])


@pytest.mark.parametrize("version", REAL)
def test_the_kinds_of_layers_and_their_weights_are_there(version):
    real = surface(version)
    kinds = set(real["LayerType"])
    assert COMPUTING - {"FULLY_CONNECTED"} <= kinds  # which 8.6 has
    assert set(_VALUES) <= kinds
    assert kinds >= _NOT_PINNED
    for interface, names in _VALUES.values():
        assert set(names) <= set(real[interface])


def test_what_11_removed_is_asked_of_8_and_10_alone():
    ten, eleven = surface("10"), surface("11")
    for owner, names in REMOVED_IN_11.items():
        assert names <= set(ten[owner])
        assert names.isdisjoint(eleven[owner])
    assert "STRONGLY_TYPED" in ten["NetworkDefinitionCreationFlag"]
    assert "STRONGLY_TYPED" in eleven["NetworkDefinitionCreationFlag"]
