"""TensorRT and TensorRT-RTX: an engine file on an NVIDIA GPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from typing_extensions import Self

from vsfix.graph_passes.errors import BuildError, DataError, ModelError, VsfixError
from vsfix.graph_passes.io.model_file import save_unchecked
from vsfix.graph_passes.ir.runtime import Array, Float64Array
from vsfix.pipeline.tensorrt.cuda import Capture, Cuda, Event, Graph, Stream, TensorBuffer, open_cuda
from vsfix.pipeline.tensorrt.engine_file import read_engine
from vsfix.pipeline.tensorrt.engine_loading import LoadedEngine
from vsfix.pipeline.tensorrt.library import BuildOptions, open_library
from vsfix.pipeline.tensorrt.shape_profile import ShapeRange

from .engine_tensors import check_engine_feeds, read_tensors

Shapes = dict[str, tuple[int, ...]]


def open_engine(path: Path, runtime: str, *, trust: bool = False, use_graph: bool = False) -> TensorRtRunner:
    """Opens an engine file.

    Args:
        path: the plan, with its sidecar beside it.
        runtime: `tensorrt` or `tensorrt-rtx`.
        trust: load it without a sidecar as well: a plan is code that runs here.
        use_graph: see `TensorRtRunner`.

    Raises:
        ModelError: the file is not there, is no engine or has no sidecar, or has an input that can't be fed.
        InputError: it is an engine of the other runtime.
        MissingComponentError: TensorRT, cuda-python or a GPU is not here.
        BuildError: it is corrupt, or an engine of another version or for another GPU.
    """
    file = read_engine(path, trust=trust)
    library = open_library(runtime)
    file.require_version(runtime, library.version)
    cuda = open_cuda()
    file.require_target(cuda.capability)
    try:
        return TensorRtRunner(library.load(file.plan), cuda, use_graph=use_graph)
    except BuildError as error:
        raise BuildError(f"{path}: {error}; build it anew with `vsfix build`") from error
    except VsfixError as error:
        raise type(error)(f"{path}: {error}") from error


def open_built(
    model: onnx.ModelProto, runtime: str, profile: Mapping[str, ShapeRange], *, tensor_float: bool = False
) -> TensorRtRunner:
    """Builds an engine of a graph for the GPU here and opens it; nothing is stored.

    Raises:
        MissingComponentError: TensorRT, cuda-python or a GPU is not here.
        BuildError: TensorRT refuses the graph.
    """
    library, cuda = open_library(runtime), open_cuda()
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        save_unchecked(model, path)
        parsed = library.parse(path, model)
    built = library.build(parsed, BuildOptions(profile, tensor_float=tensor_float))
    return TensorRtRunner(library.load(built.plan), cuda)


@dataclass(frozen=True, eq=False)
class PhaseTimes:
    """The parts of single runs, in milliseconds, shape (runs,) each.

    Attributes:
        upload: inputs to the GPU, by CUDA events.
        compute: the engine, by CUDA events.
        download: outputs to the host, by CUDA events.
        enqueue: the host's share of `compute`: putting it into the stream. Where it is the longer one, the GPU waits.
    """

    upload: Float64Array
    compute: Float64Array
    download: Float64Array
    enqueue: Float64Array


class TensorRtRunner:
    """An engine in a stream of its own.

    Buffers stay where they are until an input has another shape.

    Attributes:
        name: the runtime, its version and the GPU, as `tensorrt 10.13.0 (sm89)`.
        concurrency: 1, see `Runner.concurrency`.

    Args:
        engine: what is run; closed with the runner.
        cuda: the GPU that it was loaded on.
        use_graph: record the second run with each shape as a CUDA graph and replay it from then on, which saves the
            time that the host takes to launch each kernel. TensorRT-RTX does so by itself.

    Raises:
        ModelError: an input or output that can't be handed over, or TensorRT can't make the engine ready to run.
    """

    def __init__(self, engine: LoadedEngine, cuda: Cuda, *, use_graph: bool = False) -> None:
        self.name = f"{engine.name} ({cuda.capability})"
        self.concurrency = 1
        self._engine, self._cuda = engine, cuda
        self._records = use_graph and not engine.records_itself
        self._graph: Graph | None = None
        self._buffers: dict[str, TensorBuffer] = {}
        self._shapes: Shapes | None = None
        self._is_warm = False
        with ExitStack() as resources:  # given back from the last to the first: TensorRT wants that order
            resources.enter_context(engine)
            self._tensors = read_tensors(engine)
            self._stream = Stream(cuda)
            resources.callback(self._stream.close)
            self._context: Any = engine.create_context(use_graph=use_graph)
            resources.callback(self._drop_context)
            resources.callback(self._unbind)
            self._resources = resources.pop_all()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs one batch; see `Runner.run`.

        Raises:
            DataError: the arrays don't fit the engine's inputs, or the GPU's memory.
            BuildError: a shape outside the optimization profile.
            ModelError: the engine fails on them all the same, or gives an output whose size depends on the values.
        """
        check_engine_feeds(self._tensors, inputs)
        shapes = {name: array.shape for name, array in inputs.items()}
        if shapes != self._shapes:
            self._bind(shapes)
        for name, array in inputs.items():
            self._buffers[name].host[...] = array
            self._buffers[name].upload(self._stream)
        self._execute()
        outputs = {tensor.name: self._buffers[tensor.name] for tensor in self._tensors if not tensor.is_input}
        for buffer in outputs.values():
            buffer.download(self._stream)
        self._stream.synchronize()
        return {name: buffer.host.copy() for name, buffer in outputs.items()}

    def time_executions(self, inputs: Mapping[str, Array], runs: int) -> Float64Array:
        """Times the engine on the GPU, without the copies from and to the host.

        Args:
            inputs: one batch.
            runs: how many times; the inputs are copied once, before.

        Returns:
            Milliseconds of each run, shape (runs,), by a pair of CUDA events around it.

        Raises:
            DataError, ModelError: see `run`.
        """
        for _ in range(2):  # with a graph the second run records it
            self.run(inputs)
        with ExitStack() as events:
            marks = [[self._new_event(events), self._new_event(events)] for _ in range(runs)]
            for start, end in marks:
                start.record(self._stream)
                self._execute()
                end.record(self._stream)
            self._stream.synchronize()
            return np.array([end.milliseconds_since(start) for start, end in marks])

    def time_phases(self, inputs: Mapping[str, Array], runs: int) -> PhaseTimes:
        """Times single runs from the host's memory to the host's memory, part by part.

        Args:
            inputs: one batch.
            runs: how many times, each after the one before it has ended.

        Raises:
            DataError, ModelError: see `run`.
        """
        for _ in range(2):
            self.run(inputs)
        inward = [self._buffers[tensor.name] for tensor in self._tensors if tensor.is_input]
        outward = [self._buffers[tensor.name] for tensor in self._tensors if not tensor.is_input]
        times = np.empty((runs, 4))
        with ExitStack() as events:
            marks = [self._new_event(events) for _ in range(4)]
            for row in times:
                marks[0].record(self._stream)
                for buffer in inward:
                    buffer.upload(self._stream)
                marks[1].record(self._stream)
                started = time.perf_counter()
                self._execute()
                row[3] = 1000 * (time.perf_counter() - started)
                marks[2].record(self._stream)
                for buffer in outward:
                    buffer.download(self._stream)
                marks[3].record(self._stream)
                self._stream.synchronize()
                row[:3] = [after.milliseconds_since(before) for before, after in pairwise(marks)]
        return PhaseTimes(*times.T)

    def _new_event(self, events: ExitStack) -> Event:
        """An event that goes with the stack."""
        event = Event(self._cuda)
        events.callback(event.close)
        return event

    def _bind(self, shapes: Shapes) -> None:
        """Sets the shapes of the inputs, and gives every tensor a buffer of its size."""
        self._unbind()
        self._engine.forget_errors()
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise ModelError(f"{self.name} refuses input '{name}' {shape}: {self._engine.first_error()}")
        for tensor in self._tensors:
            shape = self._shape_of(tensor.name)
            if any(side < 0 for side in shape):
                raise ModelError(
                    f"output '{tensor.name}': its size depends on the values of the input, not only on its shape, "
                    "and vsfix runs no such engine; end the network before the operator that does it"
                )
            buffer = self._buffers[tensor.name] = TensorBuffer(self._cuda, shape, tensor.dtype)
            if not self._context.set_tensor_address(tensor.name, buffer.device):
                raise ModelError(f"{self.name} refuses the memory of '{tensor.name}': {self._engine.first_error()}")
        self._shapes = shapes

    def _shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor under the shapes of the inputs."""
        try:
            return tuple(self._context.get_tensor_shape(name))
        except ValueError:  # TensorRT's shape with -1 axes, for inputs that don't go together
            raise DataError(
                f"{self.name} finds no shape for '{name}' from these inputs: {self._engine.first_error()}"
            ) from None

    def _execute(self) -> None:
        """Puts one run into the stream; the first after a change of shapes never goes into a graph.

        TensorRT settles what depends on the shapes in that run, which must not be recorded.
        """
        if self._graph is None and self._records and self._is_warm:
            self._graph = self._record()
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue()
        self._is_warm = True

    def _enqueue(self) -> None:
        """Puts the kernels of the engine into the stream."""
        self._engine.forget_errors()
        if not self._context.execute_async_v3(self._stream.handle):
            raise ModelError(f"{self.name} fails on this input: {self._engine.first_error()}")

    def _record(self) -> Graph:
        """The kernels of the engine as a graph."""
        try:
            with Capture(self._cuda, self._stream) as capture:
                self._enqueue()
        except ModelError as error:
            raise ModelError(f"the engine does not go into a CUDA graph: {error}; run it without") from error
        return capture.graph

    def _unbind(self) -> None:
        """Gives back the graph and the buffers, which belong to the shapes so far."""
        self._shapes, self._is_warm = None, False
        self._stream.settle()
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers = {}

    def _drop_context(self) -> None:
        """Lets go of the context, which must be gone before its engine."""
        self._context = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._resources.close()
