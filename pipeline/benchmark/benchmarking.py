"""The runs of `vsfix benchmark`: every model on every backend in every precision on one set, then their times.

The first row that runs is the reference. A row is compared with it, which says what a repair is worth, and with the
first row of its own model, which says what a backend or a precision costs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from vsfix.graph_passes.errors import InputError, VsfixError
from vsfix.graph_passes.io.model_file import read_model
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.noise_average.divergence import Meaning
from vsfix.graph_passes.progress import stage
from vsfix.graph_passes.statistics.batches import Batch
from vsfix.pipeline.comparison.judgement import Judge
from vsfix.pipeline.comparison.metric import Function, Named, require_known
from vsfix.pipeline.data.calibration import calibration_batches
from vsfix.pipeline.data.data_forms import Data, GivenData, data_text, hold_data, is_named_set
from vsfix.pipeline.data.fitting import ModelInput
from vsfix.pipeline.data.loading import load_samples
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.host.environment import describe_environment, describe_gpu, peak_memory
from vsfix.pipeline.repair.repair_config import QUANTIZED
from vsfix.pipeline.verification.model_description import ModelDescription, describe_model
from vsfix.pipeline.verification.shared_inputs import require_same_inputs, shared_batch_size, whole_batches

from .deployment import Deployments
from .latency import ROUNDS, LatencyConfig
from .measurement import Measured, judge_of, judged, measure_row, require_comparable
from .repair_trials import DEFAULT_TRIALS, RepairTrial, choose_model, try_repairs
from .result import Benchmark, JudgedBy, RepairTrials
from .row import failed_row, make_row
from .row_latency import time_batches
from .variant import Variant, plan_variants
from .verdict import verdict_of

CALIBRATION_SAMPLES = 500


@dataclass(frozen=True)
class BenchmarkConfig:
    """The configuration of a benchmark.

    Attributes:
        data: a set, labelled or not; see `load_samples`.
        split: part of a named data set.
        samples: how many of it to take; None for all.
        backends: none for the usual one of each model.
        precisions: none for that of each file.
        calibration: for int8, fp8 and the repairs; None for the training part of `data`, which a named set alone has.
        repairs: each a method and a number of images, tried on the first model that is not repaired; may be empty.
        batch_size: samples per run where outputs are compared.
        latency: how long to time.
        latency_batches: the batch sizes that are timed.
        seed: of every choice.
        metric: of the labels; None for top-1 of whole numbers, else for the mean squared error. See `choose_metric`.
        metric_output: the output that it judges; None leaves the choice open.

    Raises:
        InputError: a batch size below one, or the same one twice; an unknown metric.
    """

    data: Data
    split: str = "test"
    samples: int | None = None
    backends: Sequence[str] = ()
    precisions: Sequence[str] = ()
    calibration: Data | None = None
    repairs: Sequence[RepairTrial] = DEFAULT_TRIALS
    batch_size: int = 256
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    latency_batches: Sequence[int] = (1, 64)
    seed: int = 0
    metric: str | Function | None = None
    metric_output: str | None = None

    def __post_init__(self) -> None:
        require_known(self.metric)
        if min(self.latency_batches, default=1) < 1 or len(set(self.latency_batches)) < len(self.latency_batches):
            raise InputError("--batch: name each batch size once, from 1 on")

    @property
    def calibration_data(self) -> Data | None:
        """Where calibration images come from; None where nothing but the set is there."""
        if self.calibration is not None:
            return self.calibration
        return self.data if self.has_parts else None

    @property
    def has_parts(self) -> bool:
        """Whether the set is a named one, with a training part and a test part."""
        return is_named_set(self.data)

    @property
    def data_name(self) -> str:
        """The set in words."""
        return data_text(self.data) or "the data given"


def benchmark(paths: Sequence[Path], config: BenchmarkConfig, names: Sequence[str] = ()) -> Benchmark:
    """Measures models side by side.

    Args:
        paths: checkpoints, ONNX files, engines; the first is the reference.
        config: what to measure.
        names: what the result calls them; their paths where not given.

    Raises:
        InputError, DataError: models or data that can't be used, or can't be fed the same.
        VsfixError: no row of the first model runs here; another row that doesn't is skipped, with the reason.
    """
    models = _describe(paths, names)
    given, config = config, _held(models, config)
    variants = plan_variants(models, config.backends, config.precisions)
    _require_calibration(variants, config)
    batch_size = shared_batch_size(config.batch_size, models)
    samples = whole_batches(_load(models, config), batch_size, models)
    can_repair = config.repairs and config.calibration_data is not None and samples.all_targets
    source = choose_model(models) if can_repair else None
    sizes = config.latency_batches if config.latency.seconds else ()
    steps = len(variants) + ROUNDS * len(sizes) + (len(config.repairs) if source else 0)
    span = sorted({1, batch_size, *sizes})
    with (
        stage("measuring", steps) as stages,
        Deployments(next(iter(samples.inputs)), (1, span[len(span) // 2], span[-1]), _calibration(config)) as files,
    ):
        measured, errors, judge = _measure(files, variants, models, samples, batch_size, config, stages.next)
        repairs = None
        if source is not None and judge.metric is not None:
            repairs = _try_repairs(source, samples, judge, batch_size, config, stages.next)
        times = time_batches(files, [found.variant for found in measured], samples, sizes, config.latency, stages.next)
        rows = tuple(
            failed_row(variant, errors[variant])
            if variant in errors
            else make_row(variant, measured, samples, judge, times.latencies[variant])
            for variant in variants
        )
    status, verdict = verdict_of(rows, repairs)
    return Benchmark(
        status=status,
        verdict=verdict,
        data=samples.name,
        split=samples.split,
        samples=len(samples),
        digest=_digest(samples, judge.judged_targets, config.batch_size),
        metric=_judged_by(judge),
        output=judge.output,
        reference=measured[0].variant.label,
        rows=rows,
        repairs=repairs,
        notes=(
            *_replaced(variants[0], measured[0].variant),
            *_guessed(judge),
            *_notes(models, given, repairs, is_labelled=judge.metric is not None),
            *times.notes,
        ),
        environment=describe_environment() | describe_gpu() | times.conditions | _memory(),
        predictions={found.variant.label: _prediction(found, judge) for found in measured} | dict(judge.judged_targets),
    )


def _held(models: Sequence[ModelDescription], config: BenchmarkConfig) -> BenchmarkConfig:
    """This configuration with calibration data that can be drawn from more than once."""
    if config.calibration is None:
        return config
    most = max([CALIBRATION_SAMPLES, *(trial.images for trial in config.repairs)])
    names, inputs = _input_names(models), _inputs(models)
    return replace(config, calibration=hold_data(config.calibration, names, most, config.seed, inputs))


def _input_names(models: Sequence[ModelDescription]) -> Sequence[str]:
    """The inputs, by the names of the first model that has some."""
    return next((model.input_names for model in models if model.input_names), models[0].names)


def _inputs(models: Sequence[ModelDescription]) -> Sequence[ModelInput]:
    """What the first model says of its inputs, by the names of `_input_names`."""
    return models[0].inputs_called(_input_names(models))


def _describe(paths: Sequence[Path], names: Sequence[str]) -> list[ModelDescription]:
    """The descriptions of the files; they must differ by name, and take the same inputs."""
    shown = names or [""] * len(paths)
    models = [replace(describe_model(path), name=name) for path, name in zip(paths, shown, strict=True)]
    for index, model in enumerate(models[1:], start=1):
        require_same_inputs(model, models[0])
        for other in models[:index]:
            if other.path == model.path:
                raise InputError(f"{model.path}: is named twice")
    return models


def _load(models: Sequence[ModelDescription], config: BenchmarkConfig) -> Samples:
    """The set, preprocessed as the first model that says how wants it."""
    return load_samples(
        config.data,
        split=config.split,
        preprocessing=next((model.preprocessing for model in models if model.preprocessing is not None), None),
        input_names=_input_names(models),
        samples=config.samples,
        seed=config.seed,
        inputs=_inputs(models),
    )


def _prediction(row: Measured, judge: Judge) -> Array:
    """The classes of a row, by a metric without classes the score of each sample; without both the judged output."""
    values = row.scores if judge.metric is not None and not judge.metric.decides else judge.decisions(row.outputs)
    return judge.named(row.outputs)[judge.output] if values is None else values


def _judged_by(judge: Judge) -> JudgedBy | None:
    """The metric as plain data."""
    metric = judge.metric
    if metric is None:
        return None
    return JudgedBy(metric.key, metric.name, metric.output, "%" if metric.is_share else "", not metric.is_loss)


def _guessed(judge: Judge) -> tuple[str, ...]:
    """That the decisions of unlabelled data rest on a guess."""
    if judge.metric is not None or judge.kind is None or judge.kind.meaning is not Meaning.CLASSES:
        return ()
    return (f"output '{judge.output}' is read as {judge.kind.reason}",) if judge.kind.is_guessed else ()


def _memory() -> dict[str, str]:
    """The most memory that the run took, where the system says it."""
    return {"peak memory": peak} if (peak := peak_memory()) else {}


def _digest(samples: Samples, targets: Named, batch_size: int) -> str:
    """SHA-256 of the samples and their labels."""
    found = hashlib.sha256()
    for name in sorted(samples.inputs):
        for number, batch in enumerate(samples.batches(batch_size)):  # all may be larger than the memory
            array = batch[name]
            if number == 0:
                found.update(f"{name} {array.dtype} {(len(samples), *array.shape[1:])}".encode())
            found.update(np.ascontiguousarray(array).data)
    for name, array in sorted(targets.items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _require_calibration(variants: Sequence[Variant], config: BenchmarkConfig) -> None:
    """Quantisation must not see the images that judge it."""
    narrow = next((found for found in variants if found.precision in QUANTIZED and _is_cast(found)), None)
    if narrow is not None and config.calibration_data is None:
        raise InputError(
            f"--precision {narrow.precision}: needs images to find its ranges, other than those of {config.data_name}; "
            "give --calibration D"
        )


def _is_cast(variant: Variant) -> bool:
    """Whether the file is not in the precision of the row yet."""
    return variant.precision != variant.model.precision


def _calibration(config: BenchmarkConfig) -> Callable[[ModelDescription], Sequence[Batch]]:
    """The function that returns the calibration set of a model."""

    def calibrate(model: ModelDescription) -> Sequence[Batch]:
        assert config.calibration_data is not None
        return calibration_batches(
            read_model(model.path),
            config.calibration_data,
            samples=CALIBRATION_SAMPLES,
            at_most=True,
            batch_size=config.batch_size,
            seed=config.seed,
        )

    return calibrate


def _measure(
    files: Deployments,
    variants: Sequence[Variant],
    models: Sequence[ModelDescription],
    samples: Samples,
    batch_size: int,
    config: BenchmarkConfig,
    advance: Callable[[str], None],
) -> tuple[list[Measured], dict[Variant, VsfixError], Judge]:
    """The measurement of each row; the errors of those that can't run here; the judge, by the outputs of the first.

    The reference is the first row of the first model that runs; data that does not fit it ends the benchmark.
    """
    measured: list[Measured] = []
    errors: dict[Variant, VsfixError] = {}
    judge: Judge | None = None
    for variant in variants:
        advance(variant.label)
        try:
            found = measure_row(files, variant, samples, batch_size)
            if judge is None:
                chosen = judge_of(found, models, samples, config.metric, config.metric_output)
            else:
                require_comparable(found, measured[0])
                chosen = judge
            measured.append(judged(found, chosen))
            judge = chosen
        except VsfixError as error:
            if not measured and (isinstance(error, InputError) or _is_last_of_first(variant, variants)):
                raise
            errors[variant] = error
    assert judge is not None
    return measured, errors, judge


def _is_last_of_first(variant: Variant, variants: Sequence[Variant]) -> bool:
    """Whether no further row of the first model can be the reference."""
    return variant == [other for other in variants if other.model == variants[0].model][-1]


def _replaced(first: Variant, reference: Variant) -> tuple[str, ...]:
    """That the reference is not the first row."""
    return () if first == reference else (f"{first.label}: did not run; the reference is {reference.label}",)


def _try_repairs(
    source: ModelDescription,
    samples: Samples,
    judge: Judge,
    batch_size: int,
    config: BenchmarkConfig,
    advance: Callable[[str], None],
) -> RepairTrials:
    """The repairs of this run."""
    assert config.calibration_data is not None
    return try_repairs(
        source,
        config.repairs,
        config.calibration_data,
        samples,
        judge,
        batch_size=batch_size,
        seed=config.seed,
        advance=lambda: advance(f"repairs of {source.path.name}"),
    )


def _notes(
    models: Sequence[ModelDescription], config: BenchmarkConfig, repairs: RepairTrials | None, *, is_labelled: bool
) -> tuple[str, ...]:
    """The caveats of the numbers; the configuration is the one that was given."""
    notes = []
    for model in models:
        if config.precisions and model.precision not in config.precisions and model.kind == "onnx":
            notes.append(f"{model.label}: is in {model.precision} and was run in nothing else")
        elif config.precisions and model.kind != "onnx" and set(config.precisions) != {model.precision}:
            notes.append(f"{model.label}: was run in {model.precision} alone; --precision casts ONNX files in fp32")
    calibration, text = config.calibration_data, data_text(config.data)
    given = None if calibration is None else GivenData.of(calibration).data
    # An iterator gives nothing twice.
    is_same = given is GivenData.of(config.data).data and not isinstance(given, Iterator)
    seen = is_same or (text is not None and text == data_text(calibration))
    seen = seen and (config.split == "train" or not config.has_parts)
    if seen and (repairs is not None or set(config.precisions) & set(QUANTIZED)):
        notes.append("the images of repairs and quantisation are among those that judge them; give --calibration D")
    if len({model.preprocessing for model in models if model.preprocessing is not None}) > 1:
        notes.append("the models state different preprocessing; all were fed the images of the first that states one")
    if config.repairs and not is_labelled:
        notes.append("no repair was tried: without labels nothing judges it")
    elif config.repairs and config.calibration_data is None:
        notes.append(f"no repair was tried: {config.data_name} has no training part; give --calibration D")
    elif config.repairs and repairs is None:
        notes.append("no repair was tried: no ONNX file still has the BatchNorms as it was trained with them")
    if repairs is not None:
        notes += [f"refused: {reason}" for reason in repairs.refused]
    return tuple(notes)
