"""The file of a row of a benchmark: as it is, cast or quantised as `vsfix optimize` does it, or an engine of that.

What is made lies in a folder that goes with the benchmark; each file is made once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from typing_extensions import Self

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.io.model_file import read_model, write_model
from vsfix.graph_passes.ir.runtime import Runner
from vsfix.graph_passes.statistics.batches import Batch
from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs
from vsfix.pipeline.backends.opening import open_runner
from vsfix.pipeline.backends.tensorrt_runner import open_engine
from vsfix.pipeline.building.build_config import BuildConfig
from vsfix.pipeline.building.building import build_engine
from vsfix.pipeline.casting.casting import PrecisionReport
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import QUANTIZED, TENSOR_FLOAT, RepairConfig
from vsfix.pipeline.tensorrt.cuda import open_cuda
from vsfix.pipeline.tensorrt.library import RUNTIMES, open_library
from vsfix.pipeline.tensorrt.shape_profile import ShapeOptions
from vsfix.pipeline.verification.model_description import ModelDescription

from .variant import Variant


@dataclass(frozen=True)
class Deployed:
    """A file that a backend opens.

    Attributes:
        path: the file.
        size: of it, in bytes; weights in other files are not counted.
        cast: what the cast to its precision did; None where it runs as it is.
        build_seconds: of TensorRT's builder; None where nothing was built.
    """

    path: Path
    size: int
    cast: PrecisionReport | None = field(default=None, repr=False)
    build_seconds: float | None = None


class Deployments:
    """Makes and opens the files of a benchmark.

    Args:
        input_name: what the input of a checkpoint is called.
        batch_sizes: that engines are built for: the smallest, the usual and the largest.
        calibrate: the calibration set of a model, for int8 and fp8 alone.
    """

    def __init__(
        self,
        input_name: str,
        batch_sizes: tuple[int, int, int],
        calibrate: Callable[[ModelDescription], Sequence[Batch]],
    ) -> None:
        self._input_name, self._batch_sizes, self._calibrate = input_name, batch_sizes, calibrate
        self._made: dict[tuple[Path, str, str], Deployed] = {}
        self._folder = TemporaryDirectory(prefix="vsfix-benchmark-")

    def make(self, variant: Variant) -> Deployed:
        """The file of a row.

        Raises:
            VsfixError: what the cast, the quantisation or the build says.
        """
        key = (variant.model.path, variant.backend if variant.is_built else "", variant.precision)
        if key not in self._made:
            self._made[key] = self._build(variant) if variant.is_built else self._cast(variant)
        return self._made[key]

    def open(self, variant: Variant, *, use_graph: bool = False) -> Runner:
        """Opens a row.

        Args:
            variant: the row.
            use_graph: run an engine as a CUDA graph; other backends know none.

        Raises:
            VsfixError: see `make` and `open_runner`.
        """
        path = self.make(variant).path
        if variant.backend in RUNTIMES:
            return open_engine(path, variant.backend, use_graph=use_graph)
        return open_runner(variant.backend, path, input_name=self._input_name)

    def _cast(self, variant: Variant) -> Deployed:
        """The file in the precision of the row."""
        model, precision = variant.model, variant.precision
        if precision in (model.precision, TENSOR_FLOAT):
            return Deployed(model.path, model.path.stat().st_size)
        batches = self._calibrate(model) if precision in QUANTIZED else []
        config = RepairConfig(method="none", precision=precision)
        repair = repair_model(read_model(model.path), batches, open_for_small_runs, config)
        path = self._new_path(f"{precision}.onnx")
        write_model(repair.model, path, force=False)
        return Deployed(path, path.stat().st_size, repair.report.precision)

    def _build(self, variant: Variant) -> Deployed:
        """An engine; nothing is built where none could run."""
        open_library(variant.backend)
        open_cuda()
        source = self._cast(variant)
        path = self._new_path("plan")
        config = BuildConfig(variant.backend, self._shapes(variant.model), precision=variant.precision)
        report = build_engine(source.path, path, config)
        return Deployed(path, path.stat().st_size, source.cast, report.build_seconds)

    def _shapes(self, model: ModelDescription) -> ShapeOptions:
        """The batch sizes that an engine is built for; nothing is to be chosen where the file takes one alone."""
        if model.largest_batch is not None:
            return ShapeOptions()
        if None in model.input_shapes:
            raise InputError(f"{model.path}: does not say the shape of its input; build an engine with `vsfix build`")
        texts = [
            ",".join(
                f"{name}:{'x'.join(map(str, (size, *(shape or ()))))}"
                for name, shape in zip(model.input_names, model.input_shapes, strict=True)
            )
            for size in self._batch_sizes
        ]
        return ShapeOptions(None, *texts)

    def _new_path(self, suffix: str) -> Path:
        """A name that is not taken."""
        return Path(self._folder.name, f"{len(self._made)}-{suffix}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._folder.cleanup()
