"""A fake of the module `tensorrt` of 8.6, 10 and 11, which can't be installed without a GPU host's packages.

What is there and what is not follows the Python API of each version: the names of 8.6.0 were read from its wheel, those
of 10 and 11 from NVIDIA's documentation; `rtx` is the module `tensorrt_rtx` as far as it differs when an engine runs.
Engines are those of `fake_engine`. This shows what vsfix asks of TensorRT, not what TensorRT does.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.shape_inference

from .fake_cuda import FakeCuda
from .fake_engine import Runtime, fake_plan

KINDS = {
    **{"Conv": "CONVOLUTION", "BatchNormalization": "SCALE", "Relu": "ACTIVATION", "Gemm": "MATRIX_MULTIPLY"},
    **{"Mul": "ELEMENTWISE", "Add": "ELEMENTWISE"},
}
DTYPES = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF", onnx.TensorProto.BFLOAT16: "BF16"}
FLAGS = {
    "8.6": "FP16 INT8 FP8 TF32 OBEY_PRECISION_CONSTRAINTS",
    "10": "FP16 BF16 INT8 FP8 TF32 OBEY_PRECISION_CONSTRAINTS",
    "11": "TF32",
    "rtx": "TF32",
}
NETWORK_FLAGS = {
    "8.6": "EXPLICIT_BATCH EXPLICIT_PRECISION",
    "10": "EXPLICIT_BATCH STRONGLY_TYPED",
    "11": "STRONGLY_TYPED",
    "rtx": "STRONGLY_TYPED",
}
SOURCES = {
    "8.6": "CUBLAS CUBLAS_LT CUDNN EDGE_MASK_CONVOLUTIONS JIT_CONVOLUTIONS",
    "10": "EDGE_MASK_CONVOLUTIONS",
    "11": "",
    "rtx": "",
}
VERSIONS = {"8.6": "8.6.0", "10": "10.13.0", "11": "11.4.0", "rtx": "1.7.1.116"}
SPELLED = {"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16"}


def members(name: str, text: str) -> Any:
    """An enumeration with values from 0 on."""
    return enum.IntEnum(name, {word: index for index, word in enumerate(text.split())})


def fake_tensorrt(
    version: str,
    *,
    gpu: bool = True,
    computes_in: str = "",
    tactic: str = "sm80_conv",
    on_step: Callable[[], None] | None = None,
    cuda: FakeCuda | None = None,
) -> ModuleType:
    """A module for `8.6`, `10`, `11` or `rtx`.

    Args:
        version: which.
        gpu: without one, no builder and no runtime can be made.
        computes_in: the type that engines compute in whatever was asked for; empty for what was.
        tactic: the kernel of each layer.
        on_step: called in the middle of a build.
        cuda: where engines run; None where they are only inspected.
    """
    trt: Any = ModuleType("tensorrt")
    trt.__version__ = VERSIONS[version]
    trt.builds, trt.configs, trt.deaths = [], [], []

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = members("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    trt.ILogger = ILogger
    trt.BuilderFlag = members("BuilderFlag", FLAGS[version])
    trt.NetworkDefinitionCreationFlag = members("NetworkDefinitionCreationFlag", NETWORK_FLAGS[version])
    trt.MemoryPoolType = members("MemoryPoolType", "WORKSPACE")
    trt.ProfilingVerbosity = members("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED")
    trt.LayerInformationFormat = members("LayerInformationFormat", "ONELINE JSON")
    trt.TacticSource = members("TacticSource", SOURCES[version])
    trt.DataType = members("DataType", "FLOAT HALF BF16")
    if version == "rtx":
        trt.DynamicShapesKernelSpecializationStrategy = members("Strategy", "LAZY EAGER NONE")
        trt.CudaGraphStrategy = members("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
    if version != "8.6":
        trt.IProgressMonitor = type("IProgressMonitor", (), {})
    for name in ("IScaleLayer", "IConvolutionLayer", "IDeconvolutionLayer", "IConstantLayer"):
        setattr(trt, name, type(name, (Layer,), {}))
    trt.Builder = lambda log: make_builder(
        trt, version, log, gpu=gpu, computes_in=computes_in, tactic=tactic, on_step=on_step
    )
    trt.OnnxParser = lambda network, log: Parser(trt, version, network, log)
    trt.Runtime = lambda log: Runtime(trt, version, log, cuda, gpu=gpu)
    return trt


class Layer:
    """A layer, of which only what every layer has can be asked until its class says more."""

    def __init__(self, trt: Any, name: str, kind: str, dtype: str, values: dict[str, Any]) -> None:
        self.name, self.metadata, self.type = name, f"[ONNX Layer: {name}]", SimpleNamespace(name=kind)
        self.num_outputs, self._dtype, self._values = 1, trt.DataType[dtype], values
        self.pinned: str | None = None

    def get_output(self, index: int) -> Any:
        return SimpleNamespace(dtype=self._dtype)

    def set_output_type(self, index: int, dtype: Any) -> None:
        self.pinned = dtype.name

    def __getattr__(self, name: str) -> Any:
        if name in ("scale", "shift", "power", "kernel", "bias", "weights") and type(self) is not Layer:
            return self._values.get(name, np.zeros(0, np.float32))
        raise AttributeError(name)


class Network:
    """Layers, inputs and outputs, weights by name and by layer, and the flags that it was created with."""

    def __init__(self, version: str, flags: int) -> None:
        self.flags, self.layers, self.dynamic, self.model = flags, [], [], onnx.ModelProto()
        self.inputs, self.outputs, self.weights = [], [], {}

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_output(self, index: int) -> Any:
        return self.outputs[index]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]

    def get_input(self, index: int) -> Any:
        return self.inputs[index]


class Parser:
    """Reads the operators of `KINDS`; refuses every other one."""

    def __init__(self, trt: Any, version: str, network: Any, log: Any) -> None:
        self._trt, self._version, self._network, self._log = trt, version, network, log
        self._errors: list[Any] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def parse_from_file(self, path: str) -> bool:
        assert Path(path).is_absolute()
        model = self._network.model = onnx.shape_inference.infer_shapes(onnx.load(path))
        weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
        for index, node in enumerate(model.graph.node):
            if node.op_type not in KINDS:
                self._errors.append(self._error(index, node))
                self._log.log(self._trt.ILogger.ERROR, "While parsing node number")
                continue
            values = [weights[name] for name in node.input[1:] if name in weights]
            arrays = dict(zip(("kernel", "bias"), values, strict=False)) if node.op_type == "Conv" else {}
            if node.op_type == "BatchNormalization":
                gamma, beta, mean, var = values
                scale = gamma / np.sqrt(var + np.array(1e-5, var.dtype))
                arrays = {"scale": scale, "shift": beta - scale * mean}
            dtype = DTYPES[types[node.output[0]]]
            self._network.layers.append(Layer(self._trt, node.name, KINDS[node.op_type], dtype, arrays))
        self._network.weights = weights
        self._network.inputs = [self._tensor(value) for value in model.graph.input]
        self._network.outputs = [self._tensor(value) for value in model.graph.output]
        self._network.dynamic = [tensor.name for tensor in self._network.inputs if -1 in tensor.shape]
        return not self._errors

    def _tensor(self, value: onnx.ValueInfoProto) -> Any:
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
        dtype = self._trt.DataType[DTYPES[tensor.elem_type]]
        return SimpleNamespace(name=value.name, dtype=dtype, shape=shape, is_shape_tensor=False)

    def _error(self, index: int, node: onnx.NodeProto) -> Any:
        error = SimpleNamespace(desc=lambda: "false", node=lambda: index, code=lambda: 8)
        if self._version != "8.6":
            error.node_name, error.node_operator = (lambda: node.name), (lambda: node.op_type)
        return error


class Config:
    """A builder's configuration; TF32 is on by default."""

    def __init__(self, trt: Any) -> None:
        self.flags, self.profiles, self.limits = {trt.BuilderFlag.TF32}, [], {}
        self.sources, self.cache = (1 << len(trt.TacticSource)) - 1, None

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def get_flag(self, flag: Any) -> bool:
        return flag in self.flags

    def get_tactic_sources(self) -> int:
        return self.sources

    def set_tactic_sources(self, sources: int) -> bool:
        self.sources = sources
        return True

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.limits[pool.name] = size

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> Any:
        return SimpleNamespace(data=data, serialize=lambda: self.cache.data)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache.data.startswith(b"another GPU"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


def make_builder(trt: Any, version: str, log: Any, **behaviour: Any) -> Any:
    if not behaviour["gpu"]:
        log.log(trt.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(flags: int = 0) -> Any:
        if version == "8.6":
            assert flags == 1 << trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
        return Network(version, flags)

    def build(network: Any, config: Any) -> bytes | None:
        trt.builds.append((network, config))
        if network.dynamic and not config.profiles[0].shapes:
            log.log(trt.ILogger.ERROR, "Error Code 4: no optimization profile has been defined")
            return None
        if not report_progress(config, behaviour["on_step"]):
            return None
        if config.cache is not None:
            config.cache.data += b"timed;"
        strong = version == "11" or (
            version in ("10", "rtx") and bool(network.flags & 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        )
        layers = [describe(layer, version, strong, config, trt, behaviour) for layer in network.layers]
        return fake_plan(network.model, config.profiles[0].shapes, version=trt.__version__, layers=layers)

    def create_profile() -> Any:
        profile = SimpleNamespace(shapes={})
        profile.set_shape = lambda name, *shapes: profile.shapes.__setitem__(name, shapes)
        return profile

    return SimpleNamespace(
        create_network=create_network,
        create_builder_config=lambda: Config(trt),
        create_optimization_profile=create_profile,
        build_serialized_network=build,
    )


def report_progress(config: Any, on_step: Callable[[], None] | None) -> bool:
    """Two steps; whether the build goes on."""
    monitor = getattr(config, "progress_monitor", None)
    if monitor is None:
        return True
    monitor.phase_start("Building engine", None, 2)
    goes_on = monitor.step_complete("Building engine", 0)
    if goes_on and on_step is not None:
        on_step()
        goes_on = monitor.step_complete("Building engine", 1)
    monitor.phase_finish("Building engine")
    return bool(goes_on)


def describe(layer: Layer, version: str, strong: bool, config: Any, trt: Any, behaviour: Any) -> dict[str, Any]:
    """A layer as the inspector of the version tells of it."""
    dtype = layer.get_output(0).dtype.name
    if not strong:  # a permission and a pin, or float32
        permitted = trt.BuilderFlag.FP16 in config.flags and trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS in config.flags
        dtype = dtype if dtype != "HALF" or (permitted and layer.pinned == "HALF") else "FLOAT"
    dtype = behaviour["computes_in"] or dtype
    text = {
        "DataType": {"FLOAT": "Float", "HALF": "Half", "BF16": "BFloat16"}[dtype],
        "Format": "Row major linear format (kLINEAR)",
    }
    if version != "11":
        text = {"Format/Datatype": f"Row major linear {SPELLED[dtype]} format"}
    tensor = {"Name": layer.name, **text}
    return {
        "Name": layer.name,
        "LayerType": layer.type.name.title(),
        "Outputs": [tensor],
        "TacticName": behaviour["tactic"],
    }
