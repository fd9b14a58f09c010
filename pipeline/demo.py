"""The whole chain on real images that come with scikit-learn, small enough for any machine.

The configuration was chosen so that the damage is plain: a PreResNet-20 with strong Dropout (ratio 0.8) directly in
front of the last BatchNorm of each block (site a of the paper), fifteen short epochs on 1,297 handwritten digits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from vsfix.graph_passes.batches import Batch
from vsfix.graph_passes.errors import CheckFailedError, InputError, OutputExistsError
from vsfix.graph_passes.inference import Runner
from vsfix.graph_passes.model_file import read_model, write_model
from vsfix.graph_passes.noise import Noise
from vsfix.trainers.checkpoint import Checkpoint, load_checkpoint
from vsfix.trainers.network import NetworkConfig
from vsfix.trainers.noise_sites import NoiseSites
from vsfix.trainers.training_config import TrainingConfig
from vsfix.trainers.training_loop import TrainingOptions, train

from .accuracy import AccuracyRow, accuracy_row, right_answers
from .backends.onnxruntime_runner import OnnxRuntimeRunner, open_for_small_runs
from .backends.torch_runner import TorchRunner, with_statistics
from .benchmark.benchmark_page import latency_series
from .benchmark.latency import LatencyConfig, measure_latencies
from .calibration import Samples, load_samples
from .decisions import compare_decisions
from .environment import describe_machine
from .exporting import export_checkpoint
from .repair import repair_model
from .repair_config import RepairConfig
from .repair_report import Repair
from .report.page import write_report
from .report.sections import LatencySeries, Origin, Report, StepRow
from .tensor_comparison import compare_tensors

CONFIGURATION = TrainingConfig(
    data="digits",
    network=NetworkConfig(
        model="preresnet-20",
        in_channels=1,
        image_size=(8, 8),
        num_classes=10,
        noise=NoiseSites(a=Noise.parse("dropout:0.8")),
    ),
    epochs=15,
    batch_size=32,
    learning_rate=0.1,
    seed=0,
)
CALIBRATION_IMAGES = 32
MIN_SNR_DB = 100.0
_BATCH_SIZE = 256
_TIMED_SECONDS = 0.5


@dataclass(frozen=True)
class Demo:
    """What the demonstration came to.

    Attributes:
        repair: the repair with few images.
        accuracies: as trained, repaired by each method, and the best that full re-estimation reaches.
        steps: each step against torch.
        verdict: one sentence with the numbers.
        status: PASS, or FAIL where a step departs from torch.
        report: the page.
    """

    repair: Repair
    accuracies: tuple[AccuracyRow, ...]
    steps: tuple[StepRow, ...]
    verdict: str
    status: str
    report: Path


@dataclass(frozen=True)
class _Repairs:
    """The same network repaired with few images by each method, and with all images."""

    paired: Repair
    exact_few: Repair
    exact_all: Repair


def run_demo(
    folder: Path, *, force: bool, progress: bool, say: Callable[[str], None], command: str = "vsfix demo"
) -> Demo:
    """Trains, exports, inspects, repairs, folds, verifies each step against torch, and writes the report.

    Args:
        folder: where everything is written; made where it is missing.
        force: what stands in the folder may be replaced.
        progress: show the training's progress bar.
        say: told what happens next.
        command: what made it, for the report.

    Raises:
        OutputExistsError: the folder holds something and `force` is not given.
        CheckFailedError: a step departs from torch; the report is written all the same.
    """
    _prepare(folder, force=force)
    say(f"train: {CONFIGURATION.network.model}, {CONFIGURATION.network.noise}")
    checkpoint = _train(folder, progress=progress)
    say("export: every BatchNorm kept, every noise layer marked")
    export_checkpoint(checkpoint, folder / "network.onnx", force=True)
    model = read_model(folder / "network.onnx")
    train_set, test_set = (_samples(checkpoint, model, split) for split in ("train", "test"))
    say(f"repair: paired and exact with {CALIBRATION_IMAGES} images, exact with all {len(train_set)}")
    repairs = _repair(model, train_set)
    write_model(repairs.paired.model, folder / "repaired.onnx", force=True)
    say("verify: each step against PyTorch")
    accuracies = _accuracies(model, repairs, test_set, len(train_set))
    steps = _steps(checkpoint, model, repairs.paired, test_set)
    say("time: one image at a time, as trained and repaired in turn")
    status = "PASS" if all(step.status == "PASS" for step in steps) else "FAIL"
    verdict = _verdict(accuracies, len(train_set))
    demo = Demo(repairs.paired, accuracies, steps, verdict, status, folder / "report.html")
    _write_page(demo, _latencies(model, repairs.paired.model, test_set), command)
    if status == "FAIL":
        raise CheckFailedError(f"a step departs from torch by more than {MIN_SNR_DB:.0f} dB allows; see {demo.report}")
    return demo


def _prepare(folder: Path, *, force: bool) -> None:
    """Makes the folder, or refuses to write into one that holds something."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder")
    if folder.exists() and any(folder.iterdir()) and not force:
        raise OutputExistsError(f"{folder}: holds files already; pass --force to replace them")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: can't be made ({error.strerror})") from error


def _train(folder: Path, *, progress: bool) -> Checkpoint:
    """Trains the network of the demonstration from the start, on one thread.

    On images of 8x8 pixels a second thread brings next to nothing; on a machine that does other work the threads wait
    for each other at every operator, and the training takes ten times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = train(CONFIGURATION, folder / "training", TrainingOptions(force=True, progress=progress))
    finally:
        torch.set_num_threads(threads)
    return load_checkpoint(result.checkpoint)


def _samples(checkpoint: Checkpoint, model: onnx.ModelProto, split: str) -> Samples:
    """One part of the digits, as the network wants them."""
    names = [tensor.name for tensor in model.graph.input]
    return load_samples(
        CONFIGURATION.data,
        split=split,
        preprocessing=checkpoint.preprocessing,
        input_names=names,
        samples=None,
        seed=0,
    )


def _repair(model: onnx.ModelProto, train_set: Samples) -> _Repairs:
    """Repairs the same model three times; the shift of the first is judged on all images, as in the paper's figure."""
    everything = list(train_set.batches(_BATCH_SIZE))
    few = list(train_set.subset(CALIBRATION_IMAGES, seed=0).batches(_BATCH_SIZE))
    return _Repairs(
        paired=repair_model(model, few, open_for_small_runs, RepairConfig(method="paired"), judged_on=everything),
        exact_few=repair_model(model, few, open_for_small_runs, RepairConfig(method="exact")),
        exact_all=repair_model(model, everything, open_for_small_runs, RepairConfig(method="exact")),
    )


def _accuracies(model: onnx.ModelProto, repairs: _Repairs, test_set: Samples, images: int) -> tuple[AccuracyRow, ...]:
    """As trained, by each method, and the best that re-estimation over `images` training images reaches."""
    rows = (
        ("as trained", model, None),
        ("repaired, paired", repairs.paired.model, CALIBRATION_IMAGES),
        ("repaired, exact", repairs.exact_few.model, CALIBRATION_IMAGES),
        ("repaired, exact", repairs.exact_all.model, images),
    )
    right = []
    for _, candidate, _ in rows:
        with OnnxRuntimeRunner(candidate) as runner:
            right.append(right_answers(runner, test_set, batch_size=_BATCH_SIZE))
    return tuple(
        accuracy_row(what, answers, images=used, trained=None if used is None else right[0])
        for (what, _, used), answers in zip(rows, right, strict=True)
    )


def _steps(checkpoint: Checkpoint, model: onnx.ModelProto, repair: Repair, test_set: Samples) -> tuple[StepRow, ...]:
    """Each step against torch with the same statistics."""
    trained = checkpoint.build()
    repaired = with_statistics(trained, repair.statistics)
    return (
        _step("export", TorchRunner(trained), model, test_set),
        _step("repair", TorchRunner(repaired), repair.unfolded, test_set),
        _step("repair and fold", TorchRunner(repaired), repair.model, test_set),
    )


def _latencies(
    trained: onnx.ModelProto, repaired: onnx.ModelProto, test_set: Samples
) -> tuple[LatencySeries, LatencySeries]:
    """One image at a time through the network as trained and repaired, in turn."""
    with OnnxRuntimeRunner(trained) as before, OnnxRuntimeRunner(repaired) as after:
        config = LatencyConfig(seconds=_TIMED_SECONDS, max_seconds=10 * _TIMED_SECONDS)
        first, second = measure_latencies((before, after), next(test_set.batches(1)), config)
    return latency_series("as trained", first), latency_series("repaired, paired", second)


def _write_page(demo: Demo, latencies: tuple[LatencySeries, ...], command: str) -> None:
    """The report."""
    report = Report(
        title=f"vsfix demo: {CONFIGURATION.network.model} with {CONFIGURATION.network.noise} on handwritten digits",
        status=demo.status,
        verdict=demo.verdict,
        repair=demo.repair.report,
        accuracies=demo.accuracies,
        latencies=latencies,
        steps=demo.steps,
        origin=Origin(command, describe_machine() | {"configuration": json.dumps(CONFIGURATION.to_dict())}),
    )
    write_report(report, demo.report, force=True)


def _verdict(accuracies: tuple[AccuracyRow, ...], images: int) -> str:
    """The outcome in one sentence."""
    trained, repaired, _, best = (100 * row.accuracy for row in accuracies)
    return (
        f"Dropout in front of BatchNorm cost this network {best - trained:.1f} points: {trained:.1f} % as trained, "
        f"{repaired:.1f} % repaired with {CALIBRATION_IMAGES} unlabelled images, {best:.1f} % by re-estimation over "
        f"{images}."
    )


def _step(name: str, reference: Runner, model: onnx.ModelProto, test: Samples) -> StepRow:
    """Compares a model with torch on the test images."""
    with reference, OnnxRuntimeRunner(model) as candidate:
        expected, found = (_outputs(runner, list(test.batches(_BATCH_SIZE))) for runner in (reference, candidate))
    comparison = compare_tensors(expected, found)
    decisions = compare_decisions(expected, found, None)
    status = "PASS" if comparison.snr_db >= MIN_SNR_DB else "FAIL"
    return StepRow(name, status, comparison.snr_db, comparison.max_abs, decisions.agreement)


def _outputs(runner: Runner, batches: Sequence[Batch]) -> np.ndarray:
    """The first output over all batches."""
    return np.concatenate([next(iter(runner.run(batch).values())) for batch in batches])
