"""The latencies of the rows of a benchmark: which can be timed here, and the times of those, in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from vsfix.graph_passes.errors import VsfixError
from vsfix.graph_passes.ir.runtime import Array
from vsfix.pipeline.comparison.tolerance import MAX_CV
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.host.environment import describe_gpu, load_of, throttling
from vsfix.pipeline.tensorrt.library import RUNTIMES

from .deployment import Deployments
from .latency import Latency, LatencyConfig, measure_latencies
from .variant import Variant

NO_RUNTIME = "onnx's evaluator is a reference, not a runtime"


@dataclass(frozen=True)
class Timings:
    """The latencies of a benchmark.

    Attributes:
        latencies: of each row that ran; none where it could not be timed.
        notes: what is to be said about them.
        conditions: of the GPU while it was timed, label by label.
    """

    latencies: Mapping[Variant, Sequence[Latency]]
    notes: tuple[str, ...]
    conditions: dict[str, str]


def time_batches(
    files: Deployments,
    variants: Sequence[Variant],
    samples: Samples,
    sizes: Sequence[int],
    config: LatencyConfig,
    advance: Callable[[str], None],
) -> Timings:
    """Times the rows that can be timed at each batch size.

    Args:
        files: opens them.
        variants: rows that have run.
        samples: the first of which make the batches.
        sizes: of the batches.
        config: how long.
        advance: called after each round with what is done.
    """
    latencies: dict[Variant, list[Latency]] = {variant: [] for variant in variants}
    notes, watch = [], GpuWatch()
    for size in sizes:
        timed = [variant for variant in variants if not reason_against_timing(variant) and takes(variant, size)]
        if not timed or size > len(samples):
            notes.append(f"batch {size} was not timed: " + ("no model takes it" if not timed else "too few samples"))
            continue
        try:
            found = time_rows(
                files, timed, next(samples.batches(size)), config, partial(advance, f"batch {size}"), watch
            )
        except VsfixError as error:  # the accuracies are there, and are worth having
            notes.append(f"batch {size} was not timed: {error}")
            continue
        for variant, times in found.items():
            latencies[variant] += times
    noisy = [time.cv for times in latencies.values() for time in times if time.cv > MAX_CV]
    if noisy:
        notes.append(
            f"the machine was not quiet: {len(noisy)} latencies vary by more than {MAX_CV:.1%}, up to "
            f"{max(noisy):.0%}; read the ratios, whose rows ran in turn"
        )
    return Timings(latencies, (*notes, *watch.notes()), watch.facts)


def reason_against_timing(variant: Variant) -> str:
    """Why a row is not timed; empty where it is."""
    return NO_RUNTIME if variant.backend == "reference" else ""


def takes(variant: Variant, batch_size: int) -> bool:
    """Whether a model takes batches of a size."""
    model = variant.model
    return model.smallest_batch <= batch_size <= (model.largest_batch or batch_size)


def time_rows(
    deployments: Deployments,
    variants: Sequence[Variant],
    inputs: Mapping[str, Array],
    config: LatencyConfig,
    advance: Callable[[], None] = lambda: None,
    watch: GpuWatch | None = None,
) -> dict[Variant, list[Latency]]:
    """Times rows at one batch size, all of them open at once.

    Args:
        deployments: opens them.
        variants: rows that have run, and take a batch of this size.
        inputs: one batch.
        config: how long.
        advance: called after each round.
        watch: looks at the GPU while the fastest of them goes on running.

    Returns:
        Of each row one latency; of an engine one with a CUDA graph, and one without. Its ratio is to the first model
        that ran on the same backend in the same precision.

    Raises:
        VsfixError: a row fails on this batch.
    """
    runs = [
        (variant, use_graph)
        for variant in variants
        for use_graph in ((True, False) if variant.backend in RUNTIMES else (None,))
    ]
    with ExitStack() as stack:
        runners = [
            stack.enter_context(deployments.open(variant, use_graph=bool(use_graph))) for variant, use_graph in runs
        ]
        found = measure_latencies(runners, inputs, config, baselines=_baselines(runs), advance=advance)
        if watch is not None:
            fastest = runners[min(range(len(found)), key=lambda index: found[index].p50_ms)]
            watch.during(found[0].batch_size, lambda: fastest.run(inputs))
    latencies: dict[Variant, list[Latency]] = {variant: [] for variant in variants}
    for (variant, use_graph), latency in zip(runs, found, strict=True):
        latencies[variant].append(replace(latency, cuda_graph=use_graph))
    return latencies


def _baselines(runs: Sequence[tuple[Variant, bool | None]]) -> list[int]:
    """For each run the first one on the same backend, in the same precision, with or without a graph like it."""
    keys = [(variant.backend, variant.precision, use_graph) for variant, use_graph in runs]
    return [keys.index(key) for key in keys]


@dataclass
class GpuWatch:
    """Looks at the GPU once for each batch size, after the runs that are timed, while more of them go on.

    Attributes:
        look: what the driver says; labels and values, nothing where there is no GPU.
        facts: clocks, throttle reasons, power, temperature and memory, by `running batch N`.
        slowed: batch sizes in which something slowed the GPU down, and what.
    """

    look: Callable[[], Mapping[str, str]] = describe_gpu
    facts: dict[str, str] = field(default_factory=dict)
    slowed: dict[int, str] = field(default_factory=dict)

    def during(self, batch_size: int, run: Callable[[], object]) -> None:
        """Looks, and calls `run` again and again for as long as that takes."""
        with ThreadPoolExecutor(1) as pool:
            looking = pool.submit(self.look)
            while not looking.done():
                run()
        found = dict(looking.result())
        if load := load_of(found):
            self.facts[f"running batch {batch_size}"] = load
        if reason := throttling(found):
            self.slowed[batch_size] = reason

    def notes(self) -> tuple[str, ...]:
        """The caveats of the times."""
        return tuple(
            f"the GPU was slowed down while batch {size} ran: {reason}" for size, reason in self.slowed.items()
        )
