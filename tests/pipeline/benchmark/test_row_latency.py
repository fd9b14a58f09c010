from __future__ import annotations

import threading

from vsfix.pipeline.benchmark.row_latency import GpuWatch


def watch_of(reasons, sizes=(1, 64)):
    """The notes on two batch sizes by a driver that gives these throttle reasons, one a look."""
    answers = iter(reasons)
    watch = GpuWatch(lambda: {"GPU": "one", "SM clock": "1200 MHz", "throttle reasons": next(answers)})
    for size in sizes:
        watch.during(size, lambda: None)
    return watch


def test_the_gpu_is_looked_at_once_for_each_batch_size():
    watch = watch_of(["none", "software power cap"])
    assert watch.facts == {
        "running batch 1": "SM clock 1200 MHz, throttle reasons none",
        "running batch 64": "SM clock 1200 MHz, throttle reasons software power cap",
    }


def test_runs_go_on_for_as_long_as_the_driver_takes():
    ran, answered, beside = threading.Event(), threading.Event(), []

    def look():
        assert ran.wait(10)  # a driver that answers only once it has seen a run
        answered.set()
        return {}

    def run():
        beside.append(not answered.is_set())
        ran.set()

    GpuWatch(look).during(1, run)
    assert beside[0]


def test_what_slowed_the_gpu_down_is_told_and_an_idle_one_is_not_slow():
    assert watch_of(["GPU idle", "software power cap"]).notes() == (
        "the GPU was slowed down while batch 64 ran: software power cap",
    )


def test_where_there_is_no_gpu_nothing_is_told():
    watch = GpuWatch(dict)
    watch.during(1, lambda: None)
    assert (watch.facts, watch.notes()) == ({}, ())
