"""The steps of `vsfix build`: read, parse, check, build, prove, write the plan and its sidecar."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import BuildError, CheckFailedError
from vsfix.graph_passes.io.atomic_file import atomic_paths
from vsfix.graph_passes.io.external_data import external_data_files
from vsfix.graph_passes.io.model_file import import_graph, read_metadata, read_model
from vsfix.graph_passes.precision.typed_batch_norm import check_half_batch_norms
from vsfix.graph_passes.precision.value_scan import require_finite_values
from vsfix.pipeline.host.console import json_text
from vsfix.pipeline.host.environment import describe_environment
from vsfix.pipeline.host.output_file import require_outputs
from vsfix.pipeline.inspection.preparation import unrepaired_noise
from vsfix.pipeline.tensorrt.cuda import visible_capability
from vsfix.pipeline.tensorrt.engine_file import sidecar_path
from vsfix.pipeline.tensorrt.engine_readback import ReadBack, read_back, require_read_back
from vsfix.pipeline.tensorrt.library import BuildOptions, TensorRt, open_library
from vsfix.pipeline.tensorrt.log import BuildProgress
from vsfix.pipeline.tensorrt.parsed_network import NetworkTensor, ParsedNetwork
from vsfix.pipeline.tensorrt.shape_profile import ShapeRange, resolve_profile

from .build_config import BuildConfig, check_targets
from .engine_sidecar import describe_onnx_file, describe_plan
from .precision_proof import (
    PrecisionProof,
    prove_precision,
    require_float8_targets,
    require_precision,
    require_quantized_layers,
)
from .timing_cache import default_timing_cache, read_timing_cache, write_timing_cache

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildReport:
    """The report on an engine, which its sidecar holds.

    Attributes:
        runtime: `tensorrt` or `tensorrt-rtx`.
        version: of the runtime.
        targets: the GPUs that it is for.
        gpu: the compute capability of the GPU here, as `sm89`, which the target `current` means; None where it can't be
            told, for want of a GPU or of cuda-python.
        model: path, sha256 and bytes of the ONNX file, and of the files of its weights where it has such.
        plan: name, sha256 and bytes of the engine.
        inputs: name, type and shape in the network, -1 for a dynamic side.
        outputs: the same.
        metadata: what the ONNX file says about itself: preprocessing, class names, repair.
        profile: the shapes of each input.
        precision: in which types it computes.
        losses: channels of weights that hold values too small for all of their digits in their type.
        read_back: the weights that TensorRT holds, against float64.
        workspace: the limit of scratch memory in bytes; None for TensorRT's own.
        timing_cache: the file of timings; None where there is none.
        build_seconds: the builder alone.
        environment: versions, machine, command line, date.
        warning: that the file shows noise and was not repaired; empty where it does not, or was.
    """

    runtime: str
    version: str
    targets: tuple[str, ...]
    gpu: str | None
    model: Mapping[str, Any]
    plan: Mapping[str, Any]
    inputs: tuple[NetworkTensor, ...]
    outputs: tuple[NetworkTensor, ...]
    metadata: Mapping[str, str] = field(repr=False)
    profile: Mapping[str, ShapeRange]
    precision: PrecisionProof
    losses: tuple[str, ...]
    read_back: ReadBack = field(repr=False)
    workspace: int | None
    timing_cache: Path | None
    build_seconds: float
    environment: Mapping[str, str] = field(repr=False)
    warning: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the verdict of the weights and of each of them in words."""
        rows = [asdict(row) | {"status": row.status} for row in self.read_back.rows]
        verdict = {"status": self.read_back.status, "largest_error": self.read_back.largest_error, "rows": rows}
        return asdict(self) | {"read_back": verdict}


def build_plan(
    model_path: Path, config: BuildConfig, progress: BuildProgress | None = None
) -> tuple[bytes, BuildReport]:
    """Builds an engine and writes nothing but the timings that were measured.

    Args:
        model_path: the ONNX file; never written.
        config: how to build.
        progress: somebody who shows how far the build is.

    Returns:
        (the plan, what is known of it), the plan under the name of the model with `.plan` appended.

    Raises:
        InputError, ModelError: a file or an option that can't be used as it is.
        MissingComponentError: TensorRT or a GPU is missing.
        CheckFailedError: a BatchNorm that overflows in float16, or weights that TensorRT reads as something else.
        BuildError: TensorRT refuses the file, or computes in another type than was asked for.
    """
    model = read_model(model_path)
    network = _check_network(model_path, model, config)
    library = network.library
    cache = _cache_file(library, config)
    options = BuildOptions(
        profile=network.profile,
        targets=config.targets,
        tensor_float=config.precision == "tf32",
        workspace=config.workspace,
        timings=None if cache is None else read_timing_cache(cache),
    )
    started = time.perf_counter()
    try:
        engine = library.build(network.parsed, options, progress)
    except BuildError as error:
        raise BuildError(f"{model_path}: {error}") from error
    seconds = time.perf_counter() - started
    report = BuildReport(
        runtime=config.runtime,
        version=library.version,
        targets=config.targets,
        gpu=visible_capability(),
        model=describe_onnx_file(model_path),
        plan=describe_plan(model_path.with_suffix(".plan"), engine.plan),
        inputs=network.parsed.inputs,
        outputs=network.parsed.outputs,
        metadata=read_metadata(model),
        profile=network.profile,
        precision=prove_precision(library, network.parsed, engine.plan, config.precision, network.profile),
        losses=network.losses,
        read_back=network.weights,
        workspace=config.workspace,
        timing_cache=cache,
        build_seconds=round(seconds, 3),
        environment=describe_environment(),
        warning=unrepaired_noise(model),
    )
    if cache is not None and engine.timings is not None:
        write_timing_cache(cache, engine.timings)
    return engine.plan, report


def report_at(report: BuildReport, plan: bytes, output: Path) -> BuildReport:
    """The report of an engine that stands in another file."""
    return replace(report, plan=describe_plan(output, plan))


def write_engine(plan: bytes, report: BuildReport, output: Path, *, force: bool) -> BuildReport:
    """Writes a plan, and its report in `<output>.json` beside it; both appear or neither.

    Args:
        plan: the engine.
        report: what is known of it.
        output: its file.
        force: existing outputs may be replaced.

    Returns:
        The report as it was written, the plan under the name of its file.

    Raises:
        OutputExistsError, InputError: see `atomic_paths`.
    """
    report = report_at(report, plan, output)
    with atomic_paths([output, sidecar_path(output)], force=force) as (engine, sidecar):
        engine.write_bytes(plan)
        sidecar.write_text(json_text(report.to_dict()) + "\n", encoding="utf-8")
    return report


def build_engine(
    model_path: Path, output: Path, config: BuildConfig, *, force: bool = False, progress: BuildProgress | None = None
) -> BuildReport:
    """Builds an engine and writes it; see `build_plan` and `write_engine`.

    Raises:
        InputError, OutputExistsError: an output that may not be written; told before anything is built.
        VsfixError: see `build_plan`.
    """
    inputs = [model_path, *external_data_files(model_path)]
    require_outputs([output, sidecar_path(output)], force=force, inputs=inputs)
    return write_engine(*build_plan(model_path, config, progress), output, force=force)


@dataclass(frozen=True, eq=False)
class _Network:
    """The state of a file before it is built.

    Attributes:
        library: TensorRT.
        profile: the shapes of each input.
        parsed: the network as TensorRT reads it.
        losses: channels of weights that hold values too small for all of their digits.
        weights: those that TensorRT holds, against float64.
    """

    library: TensorRt
    profile: Mapping[str, ShapeRange]
    parsed: ParsedNetwork
    losses: tuple[str, ...]
    weights: ReadBack


def _check_network(path: Path, model: onnx.ModelProto, config: BuildConfig) -> _Network:
    """Parses a file and proves what can be proven before it is built."""
    profile = resolve_profile(model, config.shapes)
    library = open_library(config.runtime)
    check_targets(config, library.version, library.capabilities)
    parsed = library.parse(path, model)
    graph = import_graph(model)
    losses = _require_finite(path, graph)
    require_precision(path, parsed.layers, config.precision)
    require_quantized_layers(path, graph, config.precision)
    require_float8_targets(path, parsed.layers, config.targets)
    weights = read_back(graph, parsed.layers)
    require_read_back(weights)
    return _Network(library, profile, parsed, losses, weights)


def _require_finite(path: Path, graph: gs.Graph) -> tuple[str, ...]:
    """Refuses weights that are not finite, and a BatchNorm that TensorRT's parser, which folds it in float16, makes so.

    Returns:
        What has only lost digits, one line for each channel.
    """
    try:
        check_half_batch_norms(graph)
    except CheckFailedError as error:
        what = str(error).partition(";")[0]
        raise CheckFailedError(
            f"{path}: {what}: TensorRT would make it infinite without a word; cast the float32 file anew, with "
            "`vsfix optimize --precision bf16` or with this layer left in float32"
        ) from error
    try:
        return tuple(map(str, require_finite_values(graph)))
    except CheckFailedError as error:
        raise CheckFailedError(f"{path}: {error}") from error


def _cache_file(library: TensorRt, config: BuildConfig) -> Path | None:
    """Where timings are kept; None for a library that measures none."""
    if not library.keeps_timings:
        return None
    return config.timing_cache or default_timing_cache(library.version)
