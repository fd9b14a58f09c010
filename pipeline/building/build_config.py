"""How an engine is to be built, as a user says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vsfix.graph_passes.errors import InputError
from vsfix.pipeline.tensorrt.library import CURRENT, RUNTIMES
from vsfix.pipeline.tensorrt.shape_profile import ShapeOptions

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")


@dataclass(frozen=True)
class BuildConfig:
    """How an engine is to be built.

    Attributes:
        runtime: `tensorrt` or `tensorrt-rtx`.
        shapes: the shapes of the inputs with a dynamic axis.
        targets: compute capabilities as `sm89`, or `current`.
        precision: what must come out: `fp32`, `tf32` (float32 whose products may be rounded to TF32), `fp16`, `bf16`,
            `int8`, `fp8`; None for whatever the file says, TF32 off.
        workspace: the most scratch memory in bytes; None for TensorRT's own limit.
        timing_cache: where measured timings are kept; None for the user's cache folder.

    Raises:
        InputError: a value that there is not, or values that don't go together.
    """

    runtime: str = "tensorrt"
    shapes: ShapeOptions = field(default_factory=ShapeOptions)
    targets: tuple[str, ...] = (CURRENT,)
    precision: str | None = None
    workspace: int | None = None
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise InputError(f"runtime '{self.runtime}': unknown; there are {', '.join(RUNTIMES)}")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise InputError(f"precision '{self.precision}': unknown; there are {', '.join(PRECISIONS)}")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise InputError("target: name each once, as sm80,sm89, or current")
        if self.workspace is not None and self.workspace < 1:
            raise InputError("workspace: must be at least one byte")
        if self.timing_cache is not None and self.runtime == "tensorrt-rtx":
            raise InputError(
                "timing cache: TensorRT-RTX measures nothing while it builds and keeps none; leave --timing-cache out"
            )


def check_targets(config: BuildConfig, version: str, capabilities: tuple[str, ...]) -> None:
    """Refuses targets that a library does not build for.

    Args:
        config: what was asked for.
        version: of the library, for the message.
        capabilities: what it offers; none for a library that builds for the GPU of this machine only.

    Raises:
        InputError: naming the target and what there is.
    """
    for target in config.targets:
        if target == CURRENT or target in capabilities:
            continue
        if not capabilities:
            raise InputError(
                f"target '{target}': tensorrt builds for the GPU of this machine only; leave --target out, or take "
                "--runtime tensorrt-rtx"
            )
        other = "; an engine for it is built on such a GPU with --runtime tensorrt" if target == "sm90" else ""
        raise InputError(
            f"target '{target}': TensorRT-RTX {version} builds for {', '.join(capabilities)} and {CURRENT}{other}"
        )
