"""The latencies of the rows of a benchmark: which can be timed here, and the times of those, in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from vsfix.graph_passes.inference import Array
from vsfix.pipeline.backends.tensorrt_library import RUNTIMES

from .deployment import Deployments
from .latency import Latency, LatencyConfig, measure_latencies
from .variant import Variant

NO_RUNTIME = "onnx's evaluator is a reference, not a runtime"


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
) -> dict[Variant, list[Latency]]:
    """Times rows at one batch size, all of them open at once.

    Args:
        deployments: opens them.
        variants: rows that have run, and take a batch of this size.
        inputs: one batch.
        config: how long.
        advance: called after each round.

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
    latencies: dict[Variant, list[Latency]] = {variant: [] for variant in variants}
    for (variant, use_graph), latency in zip(runs, found, strict=True):
        latencies[variant].append(replace(latency, cuda_graph=use_graph))
    return latencies


def _baselines(runs: Sequence[tuple[Variant, bool | None]]) -> list[int]:
    """For each run the first one on the same backend, in the same precision, with or without a graph like it."""
    keys = [(variant.backend, variant.precision, use_graph) for variant, use_graph in runs]
    return [keys.index(key) for key in keys]
