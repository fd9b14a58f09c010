"""`vsfix.build` and its result: an engine of TensorRT, proven as far as this machine can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from vsfix.graph_passes.progress import stage
from vsfix.pipeline.building.build_config import BuildConfig
from vsfix.pipeline.building.building import BuildReport, build_plan, report_at, write_engine
from vsfix.pipeline.host.console import View
from vsfix.pipeline.tensorrt.engine_file import sidecar_path
from vsfix.pipeline.tensorrt.log import BuildProgress
from vsfix.pipeline.tensorrt.shape_profile import ShapeOptions
from vsfix.pipeline.terminal.build_table import build_view, build_warnings, size_line

from .arguments import Model, files_read, model_file, parse_size, texts
from .results import Result

Shapes = str | Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Engine(Result):
    """An engine, and what is known of it.

    Attributes:
        plan: what TensorRT deserializes.
        report: what is known of it; the sidecar is this.
    """

    command: ClassVar[str] = "build"

    plan: bytes = field(repr=False)
    report: BuildReport

    @property
    def warnings(self) -> list[str]:
        """The caveats of the engine: digits that are lost, noise that was not repaired."""
        return build_warnings(self.report)

    @property
    def status(self) -> str:
        """PASS, or WARN where there are warnings; what fails is no engine."""
        return "WARN" if self.warnings else "PASS"

    @property
    def summary(self) -> str:
        """The runtime, what the engine is for, its size, and how long the build took."""
        return size_line(self.report)

    @property
    def verdict(self) -> str:
        """One sentence on the engine that was built."""
        return f"Built an engine ({self.summary})."

    def at(self, path: str | Path) -> Engine:
        """This engine, its report naming the file that it is to stand in."""
        return replace(self, report=report_at(self.report, self.plan, Path(path)))

    def save(self, path: str | Path, force: bool = False) -> None:
        """Writes the plan, and its report in `<path>.json` beside it; both appear or neither.

        Args:
            path: the engine (plan) file.
            force: existing files may be replaced.

        Raises:
            OutputExistsError, InputError: a file exists and `force` is not given, or it can't be written, or is the
                model that was read.
        """
        outputs = [Path(path), sidecar_path(Path(path))]
        self.require_outputs(*outputs, force=force)
        write_engine(self.plan, self.report, Path(path), force=force)

    def _judgement(self) -> tuple[str, str, Sequence[str]]:
        """The status word, the verdict and the warnings."""
        return self.status, self.verdict, self.warnings

    def _details(self) -> Mapping[str, Any]:
        """The fields of the JSON document beside the envelope."""
        return self.report.to_dict()

    def view(self) -> View:
        """The lines and tables of the terminal."""
        return build_view(self.report)


@stage("build")
def build(
    model: Model,
    *,
    runtime: str = "tensorrt",
    shapes: Shapes | None = None,
    min_shapes: Shapes | None = None,
    opt_shapes: Shapes | None = None,
    max_shapes: Shapes | None = None,
    targets: str | Sequence[str] = "current",
    precision: str | None = None,
    workspace: str | int | None = None,
    timing_cache: str | Path | None = None,
    progress: BuildProgress | None = None,
) -> Engine:
    """Builds an engine of a model. Nothing is written but the timings that were measured.

    Args:
        model: the path of an ONNX file, or an `onnx.ModelProto`.
        runtime: `tensorrt`, for the GPU of this machine, or `tensorrt-rtx`, for `targets` and without a GPU.
        shapes: of the inputs with a dynamic axis, as `{"input": (1, 3, 32, 32)}` or `input:1x3x32x32`; None for the
            model's own.
        min_shapes: the smallest; None for `shapes`, else the optimum.
        opt_shapes: what is tuned for; None for `shapes`, else the largest.
        max_shapes: the largest; None for `shapes`, else the optimum.
        targets: compute capabilities, as `sm80`, or `current`; for tensorrt-rtx.
        precision: what must come out: `fp32`, `tf32`, `fp16`, `bf16`, `int8` or `fp8`; None for what the file says.
        workspace: the most scratch memory, as `512M` or in bytes; None for all.
        timing_cache: the file of measured timings; None for one in the user's cache folder.
        progress: somebody who is told how far the build is.

    Returns:
        The engine; `save` writes it.

    Raises:
        InputError, ModelError: a file or an option that can't be used as it is.
        MissingComponentError: TensorRT or a GPU is missing.
        CheckFailedError: a BatchNorm that overflows in float16, or weights that TensorRT reads as something else.
        BuildError: TensorRT refuses the file, or computes in another type than was asked for.
    """
    config = BuildConfig(
        runtime=runtime,
        shapes=ShapeOptions(*(_shapes_text(given) for given in (shapes, min_shapes, opt_shapes, max_shapes))),
        targets=tuple(name.strip().lower() for text in texts("targets", targets) for name in text.split(",")),
        precision=precision,
        workspace=None if workspace is None else parse_size(workspace, "--workspace"),
        timing_cache=None if timing_cache is None else Path(timing_cache),
    )
    with model_file(model) as path:
        return Engine(*build_plan(path, config, progress), files_read=files_read([model]))


def _shapes_text(shapes: Shapes | None) -> str | None:
    """Shapes as the command line takes them."""
    if shapes is None or isinstance(shapes, str):
        return shapes
    return ",".join(f"{name}:{'x'.join(map(str, sides))}" for name, sides in shapes.items())
