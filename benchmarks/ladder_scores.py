"""What the outputs of a network are worth: a score and a loss for each test row, and the intervals of differences.

    kind       score, whose mean is the metric                    loss
    classes    100 where the highest class is the right one       negative log-likelihood
    numbers    1 - |y - out|^2 / Var y, so that the mean is R2    |y - out|^2, summed over the numbers
    mask       100 intersection / union, at probability 0.5       binary cross-entropy, mean over the pixels

A class output is logits in a single run and probabilities in a mean over noisy runs; both come here as probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from ladder_tasks import INPUT, Array, Kind, Task

from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.noise_average.noise_average import NoiseAverage
from vsfix.graph_passes.noise_average.samples import SampleSet
from vsfix.graph_passes.statistics.batches import cut_batches, samples_in
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner, open_for_small_runs
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.verification.verification import pooled_outputs

ROWS_AT_ONCE = 250
DRAWS = 32
FIRST_SEED = 1_000_000
RESAMPLES = 2000
_LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class Scores:
    """One output of one network on the test rows.

    Attributes:
        score: float64, shape (M,); percentage points, or shares of the variance of numbers.
        loss: float64, shape (M,).
    """

    score: Array
    loss: Array


def judge(task: Task, outputs: Mapping[str, Array]) -> dict[str, Scores]:
    """Scores of each output; those of a class output are probabilities."""
    return {
        name: _judge_one(kind, outputs[name].astype(np.float64), task.test_targets[name])
        for name, kind in task.kinds.items()
    }


def _judge_one(kind: Kind, output: Array, target: Array) -> Scores:
    if kind == "classes":
        right = output[np.arange(len(target)), target]
        return Scores(100.0 * (output.argmax(1) == target), -np.log(np.maximum(right, _LEAST)))
    if kind == "numbers":
        errors = ((target - output) ** 2).sum(1)
        return Scores(1 - errors / target.astype(np.float64).var(0).sum(), errors)
    axes = tuple(range(1, target.ndim))
    found, wanted = output > 0.5, target > 0.5
    union = np.maximum((found | wanted).sum(axes), 1)
    chance = np.clip(np.where(wanted, output, 1 - output), _LEAST, 1)
    return Scores(100.0 * (found & wanted).sum(axes) / union, -np.log(chance).mean(axes))


def file_outputs(model: onnx.ModelProto, inputs: Mapping[str, Array], at_once: int = ROWS_AT_ONCE) -> dict[str, Array]:
    """The outputs of a file over all rows, noise off, by ONNX Runtime."""
    with OnnxRuntimeRunner(model) as runner:
        return pooled_outputs(runner, Samples("rows", inputs), at_once)


def sample_set(inputs: Mapping[str, Array], at_once: int = ROWS_AT_ONCE) -> SampleSet:
    """All rows, in their order and each a sample of its own, in batches."""
    return SampleSet(tuple(cut_batches([inputs], at_once)), tuple((row,) for row in range(samples_in(inputs))))


def plain_outputs(model: onnx.ModelProto, task: Task) -> dict[str, Array]:
    """The outputs of a file on the test rows, noise off; those of classes as probabilities."""
    found = file_outputs(model, {INPUT: task.test_inputs})
    return {name: _probabilities(kind, torch.from_numpy(found[name])).numpy() for name, kind in task.kinds.items()}


def noisy_scores(model: onnx.ModelProto, task: Task, seed: int) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """Scores with the noise on, by ONNX Runtime; the noise has seeds of its own, which no repair uses.

    Returns:
        Those of one noisy pass, as the mean over `DRAWS` of them, and those of the mean of their outputs.
    """
    samples = sample_set({INPUT: task.test_inputs})
    average = NoiseAverage(import_graph(model), samples, open_for_small_runs, FIRST_SEED + seed)
    draws: list[dict[str, list[Array]]] = [{name: [] for name in task.kinds} for _ in range(DRAWS)]
    for run in average.runs(range(DRAWS)):  # batches in their order within each draw
        for name, kind in task.kinds.items():
            draws[run.draw][name].append(_probabilities(kind, torch.from_numpy(run.arrays[name])).numpy())
    outputs = [{name: np.concatenate(parts) for name, parts in draw.items()} for draw in draws]
    singles = [judge(task, draw) for draw in outputs]
    single = {
        name: Scores(
            np.mean([each[name].score for each in singles], axis=0),
            np.mean([each[name].loss for each in singles], axis=0),
        )
        for name in task.kinds
    }
    return single, judge(task, {name: np.mean([draw[name] for draw in outputs], axis=0) for name in task.kinds})


def _probabilities(kind: Kind, output: torch.Tensor) -> torch.Tensor:
    """Softmax of class scores; anything else as it is."""
    return output.double().softmax(1) if kind == "classes" else output


def paired_interval(first: Array, second: Array) -> tuple[float, float, float]:
    """The mean of first - second over the test rows, and its 95 % bootstrap interval; always of the same resamples."""
    differences = first - second
    count = len(differences)
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    means = weights @ differences / count  # (RESAMPLES,)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(differences.mean()), float(low), float(high)
