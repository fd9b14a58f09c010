"""Repairs of one model by several methods and numbers of images, judged as the rows of a benchmark are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from vsfix.graph_passes.errors import InputError, ModelError, VsfixError
from vsfix.graph_passes.io.model_file import export_model, read_metadata, read_model
from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.noise.marker import REPAIR_KEY
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner, open_for_small_runs
from vsfix.pipeline.comparison.accuracy import accuracy_row
from vsfix.pipeline.comparison.judgement import Judge
from vsfix.pipeline.comparison.metric import Metric
from vsfix.pipeline.data.calibration import calibration_batches
from vsfix.pipeline.data.data_forms import Data
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.inspection.preparation import prepare_model
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import NEED_DATA, RepairConfig
from vsfix.pipeline.verification.model_description import ModelDescription
from vsfix.pipeline.verification.verification import pooled_outputs

from .result import RepairTrials

AS_TRAINED = "as trained"
_METHODS = ("auto", "match", *NEED_DATA)


@dataclass(frozen=True)
class RepairTrial:
    """One trial of a repair: a method, and how many calibration images it takes."""

    method: str
    images: int

    def __str__(self) -> str:
        return f"{self.method}:{self.images}"


DEFAULT_TRIALS = (RepairTrial("auto", 32), RepairTrial("exact", 32), RepairTrial("exact", 1000))


def parse_repair_trials(texts: Sequence[str]) -> tuple[RepairTrial, ...]:
    """Reads `METHOD:IMAGES`, as `paired:32`, once or several times; `none` alone stands for no repair.

    Raises:
        InputError: another method, no number of images, or the same trial twice.
    """
    if list(texts) == ["none"]:
        return ()
    if "none" in texts:
        raise InputError(f"--repair {', '.join(texts)}: none stands alone, without any METHOD:IMAGES beside it")
    trials = tuple(_parse(text) for text in texts)
    if len(set(trials)) < len(trials):
        raise InputError(f"--repair {', '.join(texts)}: name each trial once")
    return trials


def _parse(text: str) -> RepairTrial:
    """One trial."""
    method, _, images = text.partition(":")
    if method not in _METHODS or not images.isdecimal() or int(images) < 1:
        raise InputError(
            f"--repair {text}: write METHOD:IMAGES with a method of {', '.join(_METHODS)}, as match:32, or none alone"
        )
    return RepairTrial(method, int(images))


def choose_model(models: Sequence[ModelDescription]) -> ModelDescription | None:
    """The first ONNX file that has its BatchNorms and its noise as it was exported with them; None without one."""
    for model in models:
        # What `vsfix optimize` has written, a mere cast too, shows no noise any more.
        if model.kind != "onnx" or REPAIR_KEY in read_metadata(source := read_model(model.path)):
            continue
        try:
            prepare_model(source)
        except ModelError:
            continue
        return model
    return None


def try_repairs(
    model: ModelDescription,
    trials: Sequence[RepairTrial],
    calibration: Data,
    labelled: Samples,
    judge: Judge,
    *,
    batch_size: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> RepairTrials:
    """Repairs a model in each trial.

    Args:
        model: an ONNX file.
        trials: the methods, each with its number of images.
        calibration: see `load_samples`; the training part of a named data set.
        labelled: what the repairs are judged on.
        judge: by a metric.
        batch_size: samples per run.
        seed: of the choice of images and of the noise.
        advance: called before each.

    Raises:
        InputError, DataError: data that can't be used.
    """
    source = read_model(model.path)
    deployable = export_model(prepare_model(source).graph, source)
    metric, trained = _score(deployable, labelled, judge, batch_size)
    accuracies = [accuracy_row(AS_TRAINED, trained, metric=metric)]
    reports, refused = [], []
    for trial in trials:
        advance()
        batches = calibration_batches(deployable, calibration, samples=trial.images, batch_size=batch_size, seed=seed)
        try:
            repair = repair_model(source, batches, open_for_small_runs, RepairConfig(method=trial.method, seed=seed))
            _, scores = _score(repair.runnable, labelled, judge, batch_size)
        except VsfixError as error:
            refused.append(f"{trial}: {error}")
        else:
            reports.append(repair.report)
            method, images = repair.report.method, repair.report.samples
            accuracies.append(accuracy_row(method, scores, metric=metric, images=images, trained=trained))
    report = reports[0] if reports else None
    return RepairTrials(model.label, report, tuple(accuracies), tuple(refused))


def _score(model: onnx.ModelProto, labelled: Samples, judge: Judge, batch_size: int) -> tuple[Metric, Float64Array]:
    """The metric, and the score of each sample."""
    with OnnxRuntimeRunner(model) as runner:
        scores = judge.scores(pooled_outputs(runner, labelled, batch_size))
    assert judge.metric is not None
    assert scores is not None
    return judge.metric, scores
