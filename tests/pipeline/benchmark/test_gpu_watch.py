from __future__ import annotations

from vsfix.pipeline.benchmark.gpu_watch import GpuWatch
from vsfix.pipeline.benchmark.latency import ROUNDS


def watch_of(reasons, sizes=(1, 64)):
    """What is seen in all rounds of two batch sizes by a driver that gives these throttle reasons, one a look."""
    answers = iter(reasons)
    watch = GpuWatch(lambda: {"GPU": "one", "SM clock": "1200 MHz", "throttle reasons": next(answers)})
    for size in sizes:
        for number in range(1, ROUNDS + 1):
            watch.after_round(size, number)
    return watch


def test_the_gpu_is_looked_at_once_in_each_batch_size_while_it_is_timed():
    watch = watch_of(["none", "software power cap"])
    assert watch.facts == {
        "while timing batch 1": "SM clock 1200 MHz, throttle reasons none",
        "while timing batch 64": "SM clock 1200 MHz, throttle reasons software power cap",
    }


def test_what_slowed_the_gpu_down_is_told_and_an_idle_one_is_not_slow():
    assert watch_of(["GPU idle", "software power cap"]).notes() == (
        "the GPU was slowed down while batch 64 was timed: software power cap",
    )


def test_where_there_is_no_gpu_nothing_is_told():
    watch = GpuWatch(dict)
    watch.after_round(1, ROUNDS // 2)
    assert (watch.facts, watch.notes()) == ({}, ())
