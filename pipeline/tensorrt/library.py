"""TensorRT 8.6, 10 and 11 and TensorRT-RTX under one interface: what differs between them stands here and nowhere else.

                          8.6                     10               11              RTX 1
    types of the file     flags FP16, INT8, FP8   strongly typed   always so       strongly typed
                          and pinned layers       by a flag
    batch                 EXPLICIT_BATCH flag     always explicit  always          always
    progress              none                    IProgressMonitor IProgressMonitor IProgressMonitor
    node of an error      its index               index and name   index and name  index and name
    timing cache          yes                     yes              yes             none
    targets               this GPU                this GPU         this GPU        compute capabilities, no GPU needed

With 8.6 the tactics of cuBLAS and cuDNN stay off, as they do by default from 10 on: a host then needs neither.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import onnx
import onnx.checker

from vsfix.graph_passes.errors import BuildError, InputError, MissingComponentError, first_line
from vsfix.graph_passes.progress import stage

from .engine_layers import ParsedLayer
from .engine_loading import NO_GPU, LoadedEngine
from .log import BuildProgress, BuildStages, Interruption, Log, first_error, make_log, make_monitor, show_failure
from .parse_errors import ParseError, describe_build_failure, describe_parse_errors, describe_refusal
from .parsed_network import ParsedNetwork, permit_file_types, read_errors, read_network
from .shape_profile import ShapeRange

RUNTIMES = ("tensorrt", "tensorrt-rtx")
INSTALL_LINES = {"tensorrt": "pip install 'vsfix[tensorrt]'", "tensorrt-rtx": "pip install 'vsfix[rtx]'"}
CURRENT = "current"
_TENSOR_FLOAT = "NVIDIA_TF32_OVERRIDE"  # of the environment: 0 turns TF32 off whatever the builder is told
_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@dataclass(frozen=True)
class BuildOptions:
    """How a network becomes an engine.

    Attributes:
        profile: the shapes of each input.
        targets: compute capabilities as `sm89`, or `current` for the GPU of this machine.
        tensor_float: whether float32 may be rounded to TensorFloat-32 in products.
        workspace: the most scratch memory of a layer in bytes; None for TensorRT's own limit, the memory of the GPU.
        timings: a timing cache of earlier builds; None for no cache.
    """

    profile: Mapping[str, ShapeRange]
    targets: tuple[str, ...] = (CURRENT,)
    tensor_float: bool = False
    workspace: int | None = None
    timings: bytes | None = None


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine.

    Attributes:
        plan: what goes into the file.
        timings: the timing cache after the build; None where there is none.
    """

    plan: bytes = field(repr=False)
    timings: bytes | None = field(repr=False, default=None)


@dataclass(frozen=True)
class ParserCheck:
    """The parser's report on a model.

    Attributes:
        runtime: its name and version.
        refusal: the node and the reason; empty where the parser takes the model.
    """

    runtime: str
    refusal: str

    @property
    def line(self) -> str:
        """One line with a status word."""
        if self.refusal:
            return f"WARN TensorRT's parser does not take it ({self.runtime}): {self.refusal}"
        return f"PASS TensorRT's parser takes it ({self.runtime})"


@stage("asking TensorRT's parser")
def check_parser(model: onnx.ModelProto, runtime: str = "tensorrt-rtx") -> ParserCheck | None:
    """Parses a model and builds nothing; None where the runtime is not installed or the model is too large for that.

    Args:
        model: with its weights.
        runtime: one of `RUNTIMES`; TensorRT-RTX needs no GPU for it.
    """
    if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        return None
    try:
        library = open_library(runtime)
        return ParserCheck(f"{runtime} {library.version}", library.refusal(model))
    except MissingComponentError:
        return None


def open_library(runtime: str) -> TensorRt:
    """Loads one of `RUNTIMES`.

    Raises:
        InputError: another name.
        MissingComponentError: it is not installed here, or does not load.
    """
    if runtime not in RUNTIMES:
        raise InputError(f"runtime '{runtime}': unknown; there are {', '.join(RUNTIMES)}")
    module = _MODULES[runtime]
    try:
        library = importlib.import_module(module)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == module
        what = "is not installed" if absent else f"can't be loaded: {first_line(error)}"
        raise MissingComponentError(f"{module} {what}; run: {INSTALL_LINES[runtime]}") from error
    except Exception as error:  # the import of the stubs and the loading of the libraries raise what they like
        raise MissingComponentError(
            f"{module} can't be loaded: {first_line(error)}; run: {INSTALL_LINES[runtime]}"
        ) from error
    return _wrap(library, runtime)


@lru_cache(maxsize=8)
def _wrap(library: Any, runtime: str) -> TensorRt:
    """One wrapper for a library: TensorRT keeps the first logger that it is given for the whole process."""
    return TensorRt(library, runtime)


class TensorRt:
    """One TensorRT.

    Attributes:
        runtime: one of `RUNTIMES`.
        version: of the library.

    Args:
        library: the module `tensorrt` or `tensorrt_rtx`.
        runtime: which of them it is.
    """

    def __init__(self, library: Any, runtime: str) -> None:
        self._trt = library
        self.runtime = runtime
        self.version = str(getattr(library, "__version__", ""))
        self._log: Log = make_log(library)
        flags = library.NetworkDefinitionCreationFlag
        self.is_strongly_typed = hasattr(flags, "STRONGLY_TYPED") or not hasattr(flags, "EXPLICIT_BATCH")

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities that can be named as targets; none where engines are built for this GPU only."""
        members: Mapping[str, Any] = getattr(getattr(self._trt, "ComputeCapability", None), "__members__", {})
        return tuple(sorted((n.lower() for n in members if re.fullmatch(r"SM\d+", n)), key=lambda n: int(n[2:])))

    @property
    def keeps_timings(self) -> bool:
        """Whether builds measure kernels, so that a timing cache serves the next one."""
        return self.runtime == "tensorrt"

    def parse(self, path: Path, model: onnx.ModelProto) -> ParsedNetwork:
        """Parses a file.

        Args:
            path: the ONNX file.
            model: the same, for the names of its nodes in messages.

        Raises:
            MissingComponentError: no builder can be made here.
            BuildError: TensorRT refuses the file; names the node, its operator and the remedy.
            InputError: an input holds a shape.
        """
        builder, network, parser = self._make_parser()
        if not parser.parse_from_file(str(path.absolute())):
            raise BuildError(describe_parse_errors(path, self._errors(parser), model))
        return read_network(self._trt, builder, network, parser)

    def refusal(self, model: onnx.ModelProto) -> str:
        """Why the parser does not take a model; empty where it does.

        Raises:
            MissingComponentError: no builder can be made here.
        """
        _builder, _network, parser = self._make_parser()  # each lives as long as what was made of it
        return "" if parser.parse(model.SerializeToString()) else describe_refusal(self._errors(parser), model)

    def build(self, parsed: ParsedNetwork, options: BuildOptions, progress: BuildProgress | None = None) -> BuiltEngine:
        """Builds an engine.

        Raises:
            MissingComponentError: the build needs a GPU, and there is none.
            InputError: TF32 is wanted, and the environment forbids it.
            BuildError: TensorRT refuses the network or a setting.
        """
        builder, network, _ = parsed.handles
        self._log.forget()
        config = builder.create_builder_config()
        self._set_numerics(config, network, parsed.layers, options)
        self._set_targets(config, options.targets)
        self._set_profile(builder, config, options.profile)
        if options.workspace is not None:
            config.set_memory_pool_limit(self._trt.MemoryPoolType.WORKSPACE, options.workspace)
        cache = self._set_timings(config, options.timings)
        with Interruption() as interruption:
            monitor = make_monitor(self._trt, progress or BuildStages(), interruption)
            if monitor is not None:
                config.progress_monitor = monitor
            plan = builder.build_serialized_network(network, config)
            if plan is None and not interruption.came:
                raise self._failure("no engine could be built")
        timings = None if cache is None else bytes(config.get_timing_cache().serialize())
        return BuiltEngine(bytes(plan), timings)

    def load(self, plan: bytes) -> LoadedEngine:
        """Loads an engine; see `LoadedEngine`.

        Raises:
            MissingComponentError: there is no GPU and driver here.
            BuildError: TensorRT refuses the plan.
        """
        return LoadedEngine(self._trt, self._log, plan, f"{self.runtime} {self.version}")

    def _make_parser(self) -> tuple[Any, Any, Any]:
        """A builder, an empty network, and a parser that fills it."""
        self._log.forget()
        builder = self._make_builder()
        network = builder.create_network(self._network_flags())
        return builder, network, self._trt.OnnxParser(network, self._log)

    def _errors(self, parser: Any) -> list[ParseError]:
        """The errors of a parser that failed, or those in its log, or nothing."""
        return read_errors(parser) or [ParseError(text) for text in self._log.errors] or [ParseError("")]

    def _make_builder(self) -> Any:
        """A builder, or the reason why none can be made."""
        try:
            builder = self._trt.Builder(self._log)
        except Exception as error:  # without a GPU, pybind11 says that its factory returned a null pointer
            raise MissingComponentError(self._no_builder(first_line(error))) from error
        if not builder:
            raise MissingComponentError(self._no_builder("it says nothing"))
        return builder

    def _no_builder(self, said: str) -> str:
        """The message where no builder can be made."""
        return (
            f"{self.runtime} {self.version} can't build here ({first_error(self._log, said)}): it needs an NVIDIA GPU "
            "and its driver, check with nvidia-smi; --runtime tensorrt-rtx builds without either"
        )

    def _network_flags(self) -> int:
        """Strongly typed where that is a choice, and with an explicit batch where that must be said."""
        flags = self._trt.NetworkDefinitionCreationFlag
        name = "STRONGLY_TYPED" if self.is_strongly_typed else "EXPLICIT_BATCH"
        return 1 << int(getattr(flags, name)) if hasattr(flags, name) else 0

    def _set_numerics(self, config: Any, network: Any, layers: Sequence[ParsedLayer], options: BuildOptions) -> None:
        """The types of the file, TF32 on or off, and every detail for the inspector."""
        trt = self._trt
        if options.tensor_float and os.environ.get(_TENSOR_FLOAT) == "0":
            raise InputError(f"{_TENSOR_FLOAT}=0 is set, with which {self.runtime} takes no TF32; unset it")
        (config.set_flag if options.tensor_float else config.clear_flag)(trt.BuilderFlag.TF32)
        if bool(config.get_flag(trt.BuilderFlag.TF32)) != options.tensor_float:
            raise BuildError(f"{self.runtime} does not take TF32 {'on' if options.tensor_float else 'off'}")
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if not self.is_strongly_typed:
            permit_file_types(trt, config, network, layers)

    def _set_targets(self, config: Any, targets: Sequence[str]) -> None:
        """The GPUs that the engine is for. Without this setting an engine is for the GPU of this machine."""
        if self.capabilities:
            config.num_compute_capabilities = len(targets)
            for index, target in enumerate(targets):
                if not config.set_compute_capability(getattr(self._trt.ComputeCapability, target.upper()), index):
                    raise BuildError(f"{self.runtime} {self.version} refuses the target {target}")

    def _set_profile(self, builder: Any, config: Any, profile: Mapping[str, ShapeRange]) -> None:
        """One optimization profile with every input in it."""
        shapes = builder.create_optimization_profile()
        for name, found in profile.items():
            shapes.set_shape(name, found.minimum, found.optimum, found.maximum)
        if config.add_optimization_profile(shapes) < 0:
            raise self._failure("the shapes are refused")

    def _set_timings(self, config: Any, timings: bytes | None) -> Any:
        """Hands over the timings of earlier builds; starts anew where they are of another GPU."""
        if timings is None or not self.keeps_timings:
            return None
        cache = config.create_timing_cache(timings)
        if cache is None or not config.set_timing_cache(cache, False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        return cache

    def _failure(self, what: str) -> BuildError | MissingComponentError:
        """The error for something that TensorRT did not do."""
        if any(NO_GPU.search(text) for text in self._log.errors):
            advice = f"name the GPUs to build for with --target {','.join(self.capabilities[-3:])}"
            return MissingComponentError(
                f"{self.runtime} {self.version} finds no NVIDIA GPU and driver here: "
                f"{advice if self.capabilities else 'check with nvidia-smi'}"
            )
        name = f"{self.runtime} {self.version}"
        show_failure(self._log, name)
        return BuildError(f"{name}: {what}: {describe_build_failure(next(iter(self._log.errors), ''))}")
