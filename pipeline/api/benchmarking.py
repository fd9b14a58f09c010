"""`vsfix.benchmark` and its result: models, backends and precisions side by side on one set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.progress import stage
from vsfix.pipeline.benchmark import benchmarking, result
from vsfix.pipeline.benchmark.latency import LatencyConfig
from vsfix.pipeline.benchmark.repair_trials import DEFAULT_TRIALS, parse_repair_trials
from vsfix.pipeline.comparison.metric import Function
from vsfix.pipeline.data.data_forms import Data, GivenData
from vsfix.pipeline.host.console import View
from vsfix.pipeline.report.benchmark_table import benchmark_view

from .arguments import (
    Model,
    Numbers,
    files_read,
    given_data,
    model_file,
    model_path,
    models_of,
    normalization_of,
    notes_of,
    require_split,
    run_numbers,
    texts,
    whole_numbers,
)
from .results import Result

_LEAST_SECONDS = 30.0  # that a row may take until it has the fewest runs


@dataclass(frozen=True)
class Benchmark(result.Benchmark, Result):
    """Accuracy, agreement and latency of every row.

    The attributes are those of `vsfix.pipeline.benchmark.result.Benchmark`.
    """

    command: ClassVar[str] = "benchmark"

    @property
    def missing(self) -> tuple[str, ...]:
        """The rows that a component is missing for here, each with the reason."""
        return tuple(f"{row.label}: {row.reasons[0]}" for row in self.rows if row.status == "SKIP")

    @property
    def failure(self) -> str:
        """Why the status is FAIL, with each row that failed."""
        failed = [f"{row.label}: {row.reasons[0]}" for row in self.rows if row.status == "FAIL"]
        return "; ".join([self.verdict.removesuffix("."), *failed])

    def to_html(self, path: str | Path, force: bool = False) -> None:
        """Writes the page.

        Raises:
            OutputExistsError, InputError: the file exists and `force` is not given, it can't be written, or was read.
        """
        from vsfix.pipeline.pages.benchmark_page import write_benchmark_page  # jinja2 takes its time

        self.require_outputs(path, force=force)
        write_benchmark_page(self, Path(path), force=force)

    def save_predictions(self, path: str | Path, force: bool = False) -> None:
        """Writes `predictions` into an `.npz` file: under the label of each row, and `labels`.

        Raises:
            OutputExistsError, InputError: see `to_html`.
        """
        self.require_outputs(path, force=force)
        result.write_predictions(self, Path(path), force=force)

    def _judgement(self) -> tuple[str, str, Sequence[str]]:
        """The status word, the verdict and the warnings."""
        return self.status, self.verdict, self.notes

    def _details(self) -> Mapping[str, Any]:
        """The fields of the JSON document beside the envelope."""
        return super().to_dict()

    def to_dict(self) -> dict[str, Any]:
        """The document that `--json` writes, which `vsfix compare` reads; see `Result`."""
        return Result.to_dict(self)

    def view(self) -> View:
        """The lines and tables of the terminal."""
        return benchmark_view(self)


@stage("benchmark")
def benchmark(
    models: Model | Sequence[Model],
    data: Data,
    *,
    backends: str | Sequence[str] = (),
    precisions: str | Sequence[str] = (),
    split: str = "test",
    samples: int | None = None,
    calibration: Data | None = None,
    repairs: str | Sequence[str] | None = None,
    batches: Sequence[int] = (1, 64),
    seconds: float = 3.0,
    batch_size: int = 256,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    size: int | Sequence[int] | None = None,
    seed: int = 0,
    metric: str | Function | None = None,
    metric_output: str | None = None,
) -> Benchmark:
    """Compares models on the same data: accuracy, agreement, latency; each on every backend in every precision.

    Args:
        models: paths of vsfix checkpoints, ONNX files and engines, or `onnx.ModelProto`s; the first is the reference.
        data: labelled data, as `--data` takes it or in any form that `vsfix.pipeline.data.data_forms` lists; without
            labels agreement and latency alone are measured.
        backends: none for the usual one of each model.
        precisions: for ONNX files in float32, which are cast; none for that of each file.
        split: `train` or `test`, of a named data set.
        samples: how many to take; None for all.
        calibration: samples for int8, fp8 and the repairs, in the forms of `data`; None for the training part of `data`
            where that is a named set.
        repairs: trials on the first model that is not repaired, each as `METHOD:IMAGES`; `none` for none; None for
            `auto:32`, `exact:32` and `exact:1000`.
        batches: the batch sizes whose latency is measured.
        seconds: how long each row and batch size is timed; 0 for no latencies.
        batch_size: samples per run where outputs are compared.
        mean: of the images of the training, between 0 and 1: one number, or one for each channel; for named data sets
            and images of bytes where the model does not say how they are normalised: (x / 255 - mean) / std.
        std: the deviation, likewise.
        size: (height, width) of the images of a folder, where the model takes any.
        seed: of every choice.
        metric: `top1`, `top5`, `mse`, `mae`, `r2`, `cosine`, `iou`, `bce`, `module:function`, or a function of all
            outputs and all targets, each by name, that returns one number for each sample, the higher the better. None
            for top-1 where the labels are whole numbers, else the mean squared error.
        metric_output: the name of the output that is judged, as the first model has it; None for the one that has a
            target of its own name, else the first.

    Returns:
        What was measured; a row that can't run here is SKIP, with the reason, and nothing is raised for it.

    Raises:
        InputError: models, data or an option that can't be used.
        DataError: labels that do not fit the output, or that the metric says nothing of.
        VsfixError: no row of the first model runs here.
    """
    samples, batch_size, seed = run_numbers(samples, batch_size, seed)
    require_split("split", split)
    given = models_of("models", models)
    if not given:
        raise InputError("models: there is none; give the path of one at least")
    if not isinstance(seconds, Real):
        raise InputError(f"seconds {seconds!r}: give a number; 0 measures no latencies")
    said = normalization_of(mean, std, size)
    labelled = GivenData(data, said)
    given_calibration = labelled if calibration is data else given_data(calibration, said)
    config = benchmarking.BenchmarkConfig(
        data=labelled,
        split=split,
        samples=samples,
        backends=texts("backends", backends),
        precisions=texts("precisions", precisions),
        calibration=given_calibration,
        repairs=DEFAULT_TRIALS if repairs is None else parse_repair_trials(texts("repairs", repairs)),
        batch_size=batch_size,
        latency=LatencyConfig(seconds=seconds, max_seconds=max(_LEAST_SECONDS, seconds)),
        latency_batches=whole_numbers("batches", batches),
        seed=seed,
        metric=metric,
        metric_output=metric_output,
    )
    with ExitStack() as stack:
        paths = [
            stack.enter_context(model_file(model, f"model-{number}")) for number, model in enumerate(given, start=1)
        ]
        names = ["" if model_path(model) else path.name for model, path in zip(given, paths, strict=True)]
        found = benchmarking.benchmark(paths, config, names)
    return Benchmark(
        **{part.name: getattr(found, part.name) for part in fields(found)},
        files_read=files_read(given, [data, calibration]),
        data_notes=notes_of(labelled, given_calibration),
    )
