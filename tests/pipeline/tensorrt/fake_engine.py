"""Engines of the fake TensorRT. They compute: onnx's evaluator works on the memory of the fake CUDA.

A plan is JSON after the first bytes of a real one: the model, its profile, who built it for which GPU, and what the
inspector says. Names of 8.6.0 were read from its wheel, those of TensorRT-RTX 1.7 (as 10 and 11) from its module, and
the words of the log from issues of NVIDIA/TensorRT.
"""

from __future__ import annotations

import base64
import json
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.helper
from onnx.reference import ReferenceEvaluator

from .fake_cuda import FakeCuda

MAGIC = b"ftrt"
SPELLED = {"FLOAT16": "HALF", "BFLOAT16": "BF16"}
Profile = dict[str, tuple[tuple[int, ...], ...]]


def fake_plan(
    model: onnx.ModelProto,
    profile: Profile,
    *,
    version: str = "10.13.0",
    capability: str = "sm89",
    layers: tuple[Any, ...] | list[Any] = (),
    **tensors: dict[str, str],
) -> bytes:
    """A plan; `tensors` says what is odd about an input or output, as `x={"dtype": "FP8"}`."""
    document = {
        "model": base64.b64encode(model.SerializeToString()).decode(),
        "profile": profile,
        "version": version,
        "capability": capability,
        "Layers": list(layers),
        "tensors": tensors,
    }
    return MAGIC + json.dumps(document).encode()


class Runtime:
    """Deserializes plans. `deaths` of the module gets the names of its objects as they go."""

    def __init__(self, trt: Any, version: str, log: Any, cuda: FakeCuda | None, *, gpu: bool = True) -> None:
        if not gpu:
            log.log(trt.ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._trt, self._version, self._log, self._cuda = trt, version, log, cuda
        weakref.finalize(self, trt.deaths.append, "runtime")

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        document = json.loads(plan[4:]) if plan[:4] == MAGIC else None
        here = "sm89" if self._cuda is None else "sm{}{}".format(*self._cuda.capability or ())
        if document is None:
            said = "Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed."
        elif document["version"] != self._trt.__version__:
            said = (
                "The engine plan file is not compatible with this version of TensorRT, expecting library version "
                f"{self._trt.__version__} got {document['version']}, please rebuild."
            )
        elif document["capability"] != here:
            said = (
                f"The engine plan file is generated on an incompatible device, expecting compute {here} got compute "
                f"{document['capability']}, please rebuild."
            )
        else:
            return Engine(self._trt, self._version, document, self._log, self._cuda)
        self._log.log(self._trt.ILogger.ERROR, said)
        self._log.log(self._trt.ILogger.ERROR, "Error Code 4: Internal Error (Engine deserialization failed.)")
        return None


class Engine:
    """A built engine. The inspector of 8.6 names no type of a dynamic tensor unless it is given a context."""

    def __init__(self, trt: Any, version: str, document: dict[str, Any], log: Any, cuda: FakeCuda | None) -> None:
        self._trt, self._version, self._document, self.log, self.cuda = trt, version, document, log, cuda
        self.model = onnx.ModelProto.FromString(base64.b64decode(document["model"]))
        graph = self.model.graph
        weights = {tensor.name for tensor in graph.initializer}
        self.inputs = {value.name: value for value in graph.input if value.name not in weights}
        self.outputs = {value.name: value for value in graph.output}
        weakref.finalize(self, trt.deaths.append, "engine")

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name="INPUT" if name in self.inputs else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Any:
        kind = onnx.TensorProto.DataType.Name(self._value(name).type.tensor_type.elem_type)
        return self._told(name, "dtype", SPELLED.get(kind, kind))

    def get_tensor_location(self, name: str) -> Any:
        return self._told(name, "location", "DEVICE")

    def get_tensor_format(self, name: str) -> Any:
        return self._told(name, "format", "LINEAR")

    def is_shape_inference_io(self, name: str) -> bool:
        return bool(self._told(name, "shape_io", "").name)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        dims = self._value(name).type.tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        return [tuple(shape) for shape in self._document["profile"][name]]

    def create_runtime_config(self) -> Any:
        self._trt.configs.append(SimpleNamespace())
        return self._trt.configs[-1]

    def create_execution_context(self, config: Any = None) -> Context:
        assert (config is None) == (self._version != "rtx")
        return Context(self._trt, self)

    def create_engine_inspector(self) -> Any:
        inspector = SimpleNamespace(execution_context=None)
        layers = self._document["Layers"]
        is_dynamic = any(-1 in self.get_tensor_shape(name) for name in self.inputs)

        def tell(form: Any) -> str:
            if self._version == "8.6" and is_dynamic and inspector.execution_context is None:
                for layer in layers:
                    layer["Outputs"][0]["Format/Datatype"] = "N/A due to dynamic shapes"
            return json.dumps({"Layers": layers})

        inspector.get_engine_information = tell
        return inspector

    def _value(self, name: str) -> onnx.ValueInfoProto:
        return self.inputs[name] if name in self.inputs else self.outputs[name]

    def _told(self, name: str, what: str, otherwise: str) -> Any:
        return SimpleNamespace(name=self._document["tensors"].get(name, {}).get(what, otherwise))


class Context:
    """Runs an engine. As TensorRT does, it wants one run with new shapes before it lets itself be recorded."""

    def __init__(self, trt: Any, engine: Engine) -> None:
        self._trt, self._engine = trt, engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._is_settled = False
        self._evaluator = ReferenceEvaluator(engine.model)
        weakref.finalize(self, trt.deaths.append, "context")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        self._is_settled = False
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        sides = self._engine.get_tensor_shape(name)
        if self._engine._told(name, "size", "").name == "of the values":
            return tuple(-1 for _ in sides)
        feeds = {name: np.zeros(shape, self._dtype(name)) for name, shape in self._shapes.items()}
        try:
            outputs = self._evaluator.run(None, feeds)
        except (TypeError, ValueError):
            self._engine.log.log(self._trt.ILogger.ERROR, "Error Code 4: Shape Error (broadcast dimensions must match)")
            raise ValueError("__len__() should return >= 0") from None
        return dict(zip(self._engine.outputs, outputs, strict=True))[name].shape

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory != 0

    def execute_async_v3(self, stream_handle: int) -> bool:
        cuda = self._engine.cuda
        assert cuda is not None
        if set(self._addresses) != {*self._engine.inputs, *self._engine.outputs}:
            self._engine.log.log(self._trt.ILogger.ERROR, "Error Code 3: API Usage Error (an address is not set)")
            return False
        if cuda.is_recording(stream_handle) and not self._is_settled:
            self._engine.log.log(self._trt.ILogger.ERROR, "Error Code 1: Cuda Runtime (operation not permitted)")
            return False
        cuda.calls["execute_async_v3"] += 1
        addresses, shapes = dict(self._addresses), dict(self._shapes)
        cuda.enqueue(stream_handle, lambda: self._compute(addresses, shapes))
        self._is_settled = True
        return True

    def _compute(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        assert self._engine.cuda is not None
        self._engine.cuda.calls["execute_async_v3 done"] += 1
        memory, feeds = self._engine.cuda.device, {}
        for name, shape in shapes.items():
            dtype = self._dtype(name)
            size = int(np.prod(shape)) * dtype.itemsize
            feeds[name] = np.frombuffer(bytes(memory[addresses[name]][:size]), dtype).reshape(shape)
        for name, output in zip(self._engine.outputs, self._evaluator.run(None, feeds), strict=True):
            data = np.asarray(output).astype(self._dtype(name)).tobytes()
            assert len(data) <= len(memory[addresses[name]])
            memory[addresses[name]][: len(data)] = data

    def _dtype(self, name: str) -> np.dtype[Any]:
        return onnx.helper.tensor_dtype_to_np_dtype(self._engine._value(name).type.tensor_type.elem_type)
