from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.pipeline.backends.tensorrt_runner import TensorRtRunner
from vsfix.pipeline.benchmark import latency
from vsfix.pipeline.benchmark.latency import ROUNDS, LatencyConfig, measure_latencies
from vsfix.pipeline.tensorrt.cuda import open_cuda
from vsfix.pipeline.tensorrt.library import open_library

INPUTS = {"input": np.zeros((4, 2), dtype=np.float32)}
QUICK = LatencyConfig(seconds=0.1, min_runs=100, max_seconds=0.5, warm_up_seconds=0.01)


class Clock:
    """Time that only the runs move; the machine may be slower from some moment on."""

    def __init__(self, slow_from=np.inf, slower=1.0):
        self.now, self.slow_from, self.slower = 0.0, slow_from, slower

    def perf_counter(self):
        return self.now

    def spend(self, seconds):
        self.now += seconds * (self.slower if self.now > self.slow_from else 1)


class Sleeper:
    """A runner that takes the times that it is given, one after the other, over and over."""

    name, concurrency = "sleeper", 1

    def __init__(self, clock, *milliseconds):
        self.clock, self.milliseconds, self.runs = clock, milliseconds, 0

    def run(self, inputs):
        self.clock.spend(self.milliseconds[self.runs % len(self.milliseconds)] / 1000)
        self.runs += 1
        return {"logits": inputs["input"]}


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", clock.perf_counter)
    return clock


def test_the_numbers_are_those_of_sorting_all_times(clock):
    times = np.random.default_rng(0).permutation(np.arange(1.0, 102.0))
    # 101 is prime to the runs of a block: over all blocks each time comes about equally often.
    (found,) = measure_latencies([Sleeper(clock, *times)], INPUTS, LatencyConfig(0.0, 101 * ROUNDS, 1e6, 0.0))
    assert found.runs == 101 * ROUNDS
    assert (found.p50_ms, found.percentiles[0], found.percentiles[100]) == pytest.approx((51, 1, 101), abs=1)
    assert (found.p90_ms, found.p95_ms, found.p99_ms) == pytest.approx((91, 96, 100), abs=1)
    assert found.cv == pytest.approx(times.std() / times.mean(), rel=0.02)
    assert (found.batch_size, found.clock) == (4, "host")
    assert found.throughput == pytest.approx(4000 / found.p50_ms)


def test_a_ratio_is_that_of_the_medians_to_the_baseline_that_was_named(clock):
    runners = [Sleeper(clock, 4.0), Sleeper(clock, 2.0), Sleeper(clock, 3.0)]
    found = measure_latencies(runners, INPUTS, QUICK, baselines=[0, 0, 1])
    assert [row.ratio for row in found] == pytest.approx([1, 0.5, 1.5])
    assert found[2].ratio_interval == pytest.approx((1.5, 1.5))
    assert [row.is_baseline for row in found] == [True, False, False]


def test_a_machine_that_becomes_slower_on_the_way_changes_no_ratio(clock):
    clock.slow_from, clock.slower = 0.27, 3.0
    runners = [Sleeper(clock, 2.0), Sleeper(clock, 2.0)]
    found = measure_latencies(runners, INPUTS, QUICK)
    assert found[1].ratio == pytest.approx(1)
    assert found[0].cv > 0.3
    # The mistake that the turns prevent: one model after the other.
    clock.now = 0.0
    alone = [measure_latencies([runner], INPUTS, QUICK)[0] for runner in runners]
    assert alone[1].p50_ms / alone[0].p50_ms > 1.5


@pytest.mark.parametrize(
    ("milliseconds", "runs"),
    [(0.5, 200), (5.0, 100), (50.0, 20)],
    ids=["by the seconds", "by the least number of runs", "not past the most seconds"],
)
def test_a_model_is_timed_long_and_often_enough_but_not_for_ever(clock, milliseconds, runs):
    (found,) = measure_latencies([Sleeper(clock, milliseconds)], INPUTS, QUICK)
    assert found.runs == pytest.approx(runs, abs=ROUNDS)


def test_every_round_is_told(clock):
    told = []
    measure_latencies([Sleeper(clock, 1.0)], INPUTS, QUICK, advance=lambda: told.append(1))
    assert len(told) == ROUNDS


@pytest.mark.parametrize("config", [{"seconds": -1.0}, {"min_runs": 3}, {"seconds": 40.0}])
def test_a_length_that_makes_no_sense_is_refused(config):
    with pytest.raises(InputError, match="latency: "):
        LatencyConfig(**config)


def test_an_engine_is_timed_by_events_and_in_its_parts(machine):
    machine.install()
    inputs = {"x": np.ones((2, 3), dtype=np.float32)}
    with TensorRtRunner(open_library("tensorrt").load(machine.plan()), open_cuda()) as runner:
        (found,) = measure_latencies([runner], inputs, LatencyConfig(0.0, ROUNDS, 1.0, 0.0))
    assert (found.clock, found.p50_ms, found.cv) == ("cuda events", 0.25, 0.0)
    assert found.phases is not None
    assert (found.phases.upload_ms, found.phases.compute_ms, found.phases.download_ms) == (0.0625, 0.25, 0.25)
