"""How long models take, the runs of one between those of the others, so that what else the machine does meets all.

Every model is open at once. After a warm-up of each, rounds follow in which each model has a block of runs; the order
turns from round to round. Engines are timed by CUDA events around the execution, everything else on the host with its
copies. A ratio is that of the medians of a model and its baseline in one round; its interval holds the median over the
rounds with 95.9 % (order statistics of a binomial).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.ir.runtime import Array, Float64Array, Runner
from vsfix.pipeline.backends.tensorrt_runner import TensorRtRunner

ROUNDS = 20
MEDIAN_RANKS = (5, 14)  # of 20 sorted ratios: P(6 <= Binomial(20, 1/2) <= 14) = 0.959
MOST_RUNS = 100_000
PHASE_RUNS = 100

Clock = Literal["cuda events", "host"]


@dataclass(frozen=True)
class LatencyConfig:
    """How long to measure.

    Attributes:
        seconds: of runs for each model and batch size, at least; 0 for no latencies.
        min_runs: of each, at least.
        max_seconds: of runs of each, at most; a slow model has fewer than `min_runs` then.
        warm_up_seconds: of each, before anything is timed.

    Raises:
        InputError: a value below 0, or a maximum below the minimum.
    """

    seconds: float = 3.0
    min_runs: int = 300
    max_seconds: float = 30.0
    warm_up_seconds: float = 0.2

    def __post_init__(self) -> None:
        if self.seconds < 0 or self.min_runs < ROUNDS or self.warm_up_seconds < 0:
            raise InputError(f"latency: seconds must not be negative, and runs at least {ROUNDS}")
        if self.max_seconds < self.seconds:
            raise InputError(f"latency: at most {self.max_seconds:g} s are fewer than at least {self.seconds:g} s")


@dataclass(frozen=True)
class Phases:
    """The parts of a run of an engine from host to host: medians in milliseconds; see `PhaseTimes`."""

    upload_ms: float
    compute_ms: float
    download_ms: float
    enqueue_ms: float


@dataclass(frozen=True)
class Latency:
    """The time of one model at one batch size.

    Attributes:
        batch_size: samples of a run.
        clock: what was timed: `cuda events` around the execution, or the `host` with its copies.
        runs: how many were timed.
        p50_ms: their median, in milliseconds; likewise the next three.
        cv: standard deviation over mean; past 0.025 the machine was not quiet.
        throughput: samples per second, at the median.
        ratio: to its baseline; 1 for a model that is its own.
        ratio_interval: of that ratio, 95.9 %.
        is_baseline: whether it is held against itself alone.
        percentiles: from the smallest to the largest in steps of one percent, shape (101,), in milliseconds.
        phases: of an engine, of `PHASE_RUNS` runs after the others; else None.
        cuda_graph: whether an engine ran as a CUDA graph; None for what is no engine.
    """

    batch_size: int
    clock: Clock
    runs: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    cv: float
    throughput: float
    ratio: float
    ratio_interval: tuple[float, float]
    is_baseline: bool
    percentiles: tuple[float, ...] = field(repr=False)
    phases: Phases | None = None
    cuda_graph: bool | None = None


def measure_latencies(
    runners: Sequence[Runner],
    inputs: Mapping[str, Array],
    config: LatencyConfig,
    *,
    baselines: Sequence[int] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Latency, ...]:
    """Times models that take the same batch.

    Args:
        runners: opened.
        inputs: one batch.
        config: how long.
        baselines: for each runner the index of the one that its ratio is to; the first where not given.
        advance: called after each of the `ROUNDS` rounds.

    Returns:
        One for each runner.

    Raises:
        DataError, ModelError: see `Runner.run`.
    """
    plans = [_runs_of_block(runner, inputs, config) for runner in runners]
    blocks: list[list[Float64Array]] = [[] for _ in runners]
    for turn in range(ROUNDS):
        for position in range(len(runners)):
            index = (position + turn) % len(runners)
            blocks[index].append(time_runs(runners[index], inputs, plans[index]))
        advance()
    samples = len(next(iter(inputs.values())))
    found = []
    for index, runner in enumerate(runners):
        baseline = blocks[0 if baselines is None else baselines[index]]
        summary = _summarize(blocks[index], baseline, samples, clock_of(runner))
        found.append(replace(summary, phases=_phases(runner, inputs)))
    return tuple(found)


def time_runs(runner: Runner, inputs: Mapping[str, Array], runs: int) -> Float64Array:
    """Times single runs, after one that is not counted.

    Returns:
        Milliseconds of each, shape (runs,).
    """
    if isinstance(runner, TensorRtRunner):
        return runner.time_executions(inputs, runs)
    runner.run(inputs)
    times = np.empty(runs)
    for index in range(runs):
        started = time.perf_counter()
        runner.run(inputs)
        times[index] = 1000 * (time.perf_counter() - started)
    return times


def clock_of(runner: Runner) -> Clock:
    """The clock of a runner."""
    return "cuda events" if isinstance(runner, TensorRtRunner) else "host"


def _phases(runner: Runner, inputs: Mapping[str, Array]) -> Phases | None:
    """The parts of a run of an engine."""
    if not isinstance(runner, TensorRtRunner):
        return None
    times = runner.time_phases(inputs, PHASE_RUNS)
    return Phases(*(float(np.median(part)) for part in (times.upload, times.compute, times.download, times.enqueue)))


def _runs_of_block(runner: Runner, inputs: Mapping[str, Array], config: LatencyConfig) -> int:
    """Warms a model up, and says how many runs fill its share of a round."""
    runner.run(inputs)
    started, runs = time.perf_counter(), 0
    while runs < 2 or time.perf_counter() - started < config.warm_up_seconds:
        runner.run(inputs)
        runs += 1
    seconds_of_run = (time.perf_counter() - started) / runs
    wanted = max(config.min_runs, config.seconds / seconds_of_run)
    allowed = min(config.max_seconds / seconds_of_run, MOST_RUNS)
    return max(1, math.ceil(min(wanted, allowed) / ROUNDS))


def _summarize(own: Sequence[Float64Array], other: Sequence[Float64Array], samples: int, clock: Clock) -> Latency:
    """The numbers of one model; its blocks and those of its baseline are of the same rounds."""
    times = np.concatenate(own)
    percentiles = np.percentile(times, np.arange(101))
    ratios = sorted(float(np.median(a) / np.median(b)) for a, b in zip(own, other, strict=True))
    low, high = (ratios[rank] for rank in MEDIAN_RANKS)
    return Latency(
        batch_size=samples,
        clock=clock,
        runs=len(times),
        p50_ms=float(percentiles[50]),
        p90_ms=float(percentiles[90]),
        p95_ms=float(percentiles[95]),
        p99_ms=float(percentiles[99]),
        cv=float(times.std() / times.mean()),
        throughput=1000 * samples / float(percentiles[50]),
        ratio=float(np.median(ratios)),
        ratio_interval=(low, high),
        is_baseline=own is other,
        percentiles=tuple(map(float, percentiles)),
    )
