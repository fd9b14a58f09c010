"""An engine in memory: deserialized, inspected, and made ready to run.

A plan holds code that runs here, and TensorRT trusts it: `engine_file` decides which one may be loaded. TensorRT's own
words where it refuses one differ from version to version; the first error in its log is quoted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from typing_extensions import Self

from vsfix.graph_passes.errors import BuildError, MissingComponentError, ModelError, first_line

from .engine_layers import EngineLayer, read_inspection
from .log import Log, first_error
from .shape_profile import ShapeRange

NO_GPU = re.compile(
    r"cudaError (35|100|101|999)\b|CUDA driver version|no CUDA-capable|CUDA initialization", re.IGNORECASE
)


class LoadedEngine:
    """An engine that a runtime of TensorRT holds. It is a context manager: what comes from it dies before it.

    Attributes:
        name: the runtime and its version, as `tensorrt 10.13.0`.
        engine: TensorRT's `ICudaEngine`.

    Args:
        library: the module `tensorrt` or `tensorrt_rtx`.
        log: what TensorRT writes its errors to.
        plan: the serialized engine; trusted.
        name: see above.

    Raises:
        MissingComponentError: there is no GPU and driver here.
        BuildError: TensorRT refuses the plan: another version, another GPU, or not a plan.
    """

    def __init__(self, library: Any, log: Log, plan: bytes, name: str) -> None:
        self.name = name
        self._trt, self._log = library, log
        log.forget()
        said = ""
        self._runtime: Any = None
        self.engine: Any = None
        try:
            self._runtime = library.Runtime(log)
            self.engine = self._runtime.deserialize_cuda_engine(plan)
        except Exception as error:  # without a GPU, pybind11 says that its factory returned a null pointer
            said = first_line(error)
        if self.engine is None:
            if any(NO_GPU.search(text) for text in log.errors):
                raise MissingComponentError("the engine can't be loaded on this machine: no GPU and driver for it here")
            raise BuildError(f"{name} refuses the engine: {self.first_error(said)}")

    @property
    def records_itself(self) -> bool:
        """Whether TensorRT keeps CUDA graphs of its own: TensorRT-RTX, which alone knows when its kernels are final."""
        return hasattr(self._trt, "CudaGraphStrategy")

    def create_context(self, *, use_graph: bool = False) -> Any:
        """An `IExecutionContext`, with the first profile.

        TensorRT-RTX, which compiles kernels while it runs, is made to do so before a new shape runs: by default the
        first runs take other kernels than later ones, with other numbers and other times.

        Args:
            use_graph: let it keep CUDA graphs, where it `records_itself`.

        Raises:
            ModelError: there is none, as where the memory of the GPU does not suffice.
        """
        self._log.forget()
        if self.records_itself:
            config = self.engine.create_runtime_config()
            kernels, graphs = self._trt.DynamicShapesKernelSpecializationStrategy, self._trt.CudaGraphStrategy
            config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER
            config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if use_graph else graphs.DISABLED
            context = self.engine.create_execution_context(config)
        else:
            context = self.engine.create_execution_context()
        if context is None:
            raise ModelError(f"{self.name} can't make the engine ready to run: {self.first_error()}")
        return context

    def inspect(self, profile: Mapping[str, ShapeRange]) -> tuple[EngineLayer, ...]:
        """Asks the inspector of the engine.

        Raises:
            BuildError: it says nothing.
        """
        return read_inspection(self._information(profile))

    def _information(self, profile: Mapping[str, ShapeRange]) -> str:
        """The inspector's JSON."""
        inspector = self.engine.create_engine_inspector()
        if any(not found.is_fixed for found in profile.values()):
            context = self.engine.create_execution_context()  # without one, 8.6 names no type where a shape is dynamic
            for name, found in profile.items():
                context.set_input_shape(name, found.optimum)
            inspector.execution_context = context
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def first_error(self, otherwise: str = "") -> str:
        """The first error in TensorRT's log, in one line."""
        return first_error(self._log, otherwise)

    def forget_errors(self) -> None:
        """Empties the log, so that the first error is one of what comes next."""
        self._log.forget()

    def close(self) -> None:
        """Lets go of the engine, then of its runtime."""
        self.engine = None
        self._runtime = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
