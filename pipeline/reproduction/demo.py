"""The whole chain on real images that come with scikit-learn, small enough for any machine.

The configuration was chosen so that the damage is plain: a PreResNet-20 with strong Dropout (ratio 0.8) directly in
front of the last BatchNorm of each block (site a of the paper), fifteen short epochs on 1,297 handwritten digits.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from vsfix.graph_passes.errors import CheckFailedError, InputError, OutputExistsError
from vsfix.graph_passes.io.model_file import read_model, write_model
from vsfix.graph_passes.ir.runtime import Array, Runner
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.noise_average.divergence import Meaning, OutputKind
from vsfix.graph_passes.noise_average.noise_average import NoiseAverage
from vsfix.graph_passes.noise_average.samples import SampleSet
from vsfix.graph_passes.progress import stage
from vsfix.graph_passes.statistics.batches import Batch
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner, open_for_small_runs
from vsfix.pipeline.backends.torch_runner import TorchRunner
from vsfix.pipeline.benchmark.latency import LatencyConfig, measure_latencies
from vsfix.pipeline.comparison.accuracy import AccuracyRow, accuracy_row, right_answers
from vsfix.pipeline.comparison.decisions import compare_decisions
from vsfix.pipeline.comparison.tensor_comparison import compare_tensors
from vsfix.pipeline.data.loading import load_samples
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.host.environment import describe_machine
from vsfix.pipeline.inspection.preparation import prepare_model
from vsfix.pipeline.pages.benchmark_page import latency_series
from vsfix.pipeline.pages.page import write_report
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig
from vsfix.pipeline.repair.repair_report import Repair
from vsfix.pipeline.report.sections import LatencySeries, Provenance, Report, StepRow
from vsfix.trainers.export.exporting import export_checkpoint
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig
from vsfix.trainers.training.checkpoint import Checkpoint, load_checkpoint
from vsfix.trainers.training.training_config import TrainingConfig
from vsfix.trainers.training.training_loop import TrainingOptions, train

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
PASSES = 16  # whose mean stands for the network that was trained
MIN_SNR_DB = 100.0
_BATCH_SIZE = 256
_TIMED_SECONDS = 0.5


@dataclass(frozen=True)
class Demo:
    """The result of the demonstration.

    Attributes:
        repair: the repair with few images.
        accuracies: as trained, matched with few images, re-estimated over all, and the mean of noisy passes.
        steps: each step against torch.
        verdict: one sentence with the numbers.
        status: PASS, or FAIL where a step differs from torch.
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
    """The network brought to its noise-averaged one with few images, and re-estimated with all."""

    matched: Repair
    exact: Repair


@stage("demo")
def run_demo(folder: Path, *, force: bool, say: Callable[[str], None], command: str = "vsfix demo") -> Demo:
    """Trains, exports, inspects, repairs, folds, verifies each step against torch, and writes the report.

    Args:
        folder: where everything is written; made where it is missing.
        force: what stands in the folder may be replaced.
        say: told what happens next.
        command: what made it, for the report.

    Raises:
        OutputExistsError: the folder holds something and `force` is not given.
        CheckFailedError: a step differs from torch; the report is written all the same.
    """
    _prepare(folder, force=force)
    say(f"train: {CONFIGURATION.network.model}, {CONFIGURATION.network.noise}")
    checkpoint = _train(folder)
    say("export: every BatchNorm kept, every noise layer marked")
    export_checkpoint(checkpoint, folder / "network.onnx", force=True)
    model = read_model(folder / "network.onnx")
    train_set, test_set = (_samples(checkpoint, model, split) for split in ("train", "test"))
    say(f"repair: match with {CALIBRATION_IMAGES} images; beside it, re-estimation over all {len(train_set)}")
    repairs = _repair(model, train_set)
    write_model(repairs.matched.model, folder / "repaired.onnx", force=True)
    say("verify: each step against PyTorch")
    accuracies = _accuracies(model, repairs, test_set, len(train_set))
    steps = _steps(checkpoint, model, repairs.matched, test_set)
    say("time: one image at a time, as trained and repaired in turn")
    status = "PASS" if all(step.status == "PASS" for step in steps) else "FAIL"
    verdict = _verdict(accuracies, len(train_set))
    demo = Demo(repairs.matched, accuracies, steps, verdict, status, folder / "report.html")
    _write_page(demo, _latencies(model, repairs.matched.model, test_set), command)
    if status == "FAIL":
        raise CheckFailedError(f"a step differs from torch by more than {MIN_SNR_DB:.0f} dB allows; see {demo.report}")
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


def _train(folder: Path) -> Checkpoint:
    """Trains the network of the demonstration from the start, on one thread.

    On images of 8x8 pixels a second thread brings next to nothing; on a machine that does other work the threads wait
    for each other at every operator, and the training takes ten times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = train(CONFIGURATION, folder / "training", TrainingOptions(force=True))
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
    """Repairs the same model twice; the shift of the first is judged on all images, as in the paper's figure."""
    everything = list(train_set.batches(_BATCH_SIZE))
    few = list(train_set.subset(CALIBRATION_IMAGES, seed=0).batches(_BATCH_SIZE))
    match, exact = RepairConfig(method="match", refine=True), RepairConfig(method="exact")
    return _Repairs(
        matched=repair_model(model, few, open_for_small_runs, match, judged_on=everything),
        exact=repair_model(model, everything, open_for_small_runs, exact),
    )


def _accuracies(model: onnx.ModelProto, repairs: _Repairs, test_set: Samples, images: int) -> tuple[AccuracyRow, ...]:
    """As trained, matched, re-estimated over `images` training images, and the mean of noisy passes."""
    right = []
    for candidate in (model, repairs.matched.model, repairs.exact.model):
        with OnnxRuntimeRunner(candidate) as runner:
            right.append(right_answers(runner, test_set, batch_size=_BATCH_SIZE))
    trained, matched, exact = right
    return (
        accuracy_row("as trained", trained),
        accuracy_row(f"repaired, {repairs.matched.report.method}", matched, images=CALIBRATION_IMAGES, trained=trained),
        accuracy_row("re-estimated, exact", exact, images=images, trained=trained),
        accuracy_row(f"mean of {PASSES} noisy passes", _averaged_answers(model, test_set), trained=trained),
    )


def _averaged_answers(model: onnx.ModelProto, test_set: Samples) -> Array:
    """Which images the network that was trained gets right: the mean of its probabilities under the noise."""
    assert test_set.labels is not None
    batches = tuple(test_set.batches(_BATCH_SIZE))
    samples = SampleSet(batches, tuple((number,) for number in range(len(test_set))))
    average = NoiseAverage(prepare_model(model).graph, samples, open_for_small_runs)
    logits = OutputKind(Meaning.CLASSES, "logits", -1, "the network of the demonstration ends in them")
    total = np.zeros((len(test_set), CONFIGURATION.network.num_classes))
    for run in average.runs(range(PASSES)):
        found = logits.probabilities(next(iter(run.arrays.values())))
        total[run.first : run.first + len(found)] += found
    right: Array = total.argmax(axis=1) == test_set.labels
    return right


def _steps(checkpoint: Checkpoint, model: onnx.ModelProto, repair: Repair, test_set: Samples) -> tuple[StepRow, ...]:
    """Each step against torch with the same parameters."""
    trained = checkpoint.build()
    repaired = _with_parameters(trained, repair.statistics)
    return (
        _step("export", TorchRunner(trained), model, test_set),
        _step("repair", TorchRunner(repaired), repair.unfolded, test_set),
        _step("repair and fold", TorchRunner(repaired), repair.model, test_set),
    )


def _with_parameters(module: nn.Module, parameters: Mapping[str, Array]) -> nn.Module:
    """A copy of a module with what the repair changed."""
    changed = copy.deepcopy(module)
    state = changed.state_dict()
    changed.load_state_dict(
        {**state, **{name: torch.from_numpy(np.array(values)) for name, values in parameters.items()}}
    )
    return changed


def _latencies(
    trained: onnx.ModelProto, repaired: onnx.ModelProto, test_set: Samples
) -> tuple[LatencySeries, LatencySeries]:
    """One image at a time through the network as trained and repaired, in turn."""
    with OnnxRuntimeRunner(trained) as before, OnnxRuntimeRunner(repaired) as after:
        config = LatencyConfig(seconds=_TIMED_SECONDS, max_seconds=10 * _TIMED_SECONDS)
        first, second = measure_latencies((before, after), next(test_set.batches(1)), config)
    return latency_series("as trained", first), latency_series("repaired", second)


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
        provenance=Provenance(command, describe_machine() | {"configuration": json.dumps(CONFIGURATION.to_dict())}),
    )
    write_report(report, demo.report, force=True)


def _verdict(accuracies: tuple[AccuracyRow, ...], images: int) -> str:
    """The outcome in one sentence."""
    trained, repaired, exact, averaged = (row.score.value for row in accuracies)
    return (
        f"Without its noise this network computes something else than what was trained: top-1 is {trained:.1f} % as "
        f"deployed, {averaged:.1f} % as the mean of {PASSES} noisy passes; {repaired:.1f} % repaired with "
        f"{CALIBRATION_IMAGES} unlabelled images, {exact:.1f} % by re-estimation over {images}."
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
