"""Where `exact` spends its time beside a plain forward: the runtime's own profile of both, by kind of operator.

    python benchmarks/exact_profile.py net.onnx --data fashion-mnist

Both go over the same --images images on one processor, so that their seconds add up. ONNX Runtime's profiler clocks its
kernels:

    convolutions    Conv, fused with what the runtime could fuse into it
    layouts         ReorderInput and ReorderOutput, between NCHW and the blocked layout in which it convolves
    BatchNorm       those that are not fused into a convolution
    moments         the nodes that measure each BatchNorm input
    other kernels   sums, activations, pooling, the classifier
    around them     what is left of the time by the clock: sessions, copies, the cache, moments merged in float64

The seconds of the processor count the system's work for this process too, as clearing pages that are taken from it; on
a machine that does other work they alone can be compared.

A profiled run takes a little longer than one that is not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.estimators.exact import exact
from vsfix.graph_passes.io.model_file import read_model
from vsfix.graph_passes.measurement.moment_taps import tap_moments
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner, open_for_small_runs
from vsfix.pipeline.data.calibration import calibration_batches
from vsfix.pipeline.inspection.preparation import prepare_model
from vsfix.trainers.export.onnxruntime_library import import_onnxruntime

BATCH_SIZE = 256
KINDS = {
    "Conv": "convolutions",
    "FusedConv": "convolutions",
    "ReorderInput": "layouts",
    "ReorderOutput": "layouts",
    "BatchNormalization": "BatchNorm",
}
CLOCKED = ("by the clock", "of the processor")
ROWS = ("convolutions", "layouts", "BatchNorm", "moments", "other kernels", "around them", *CLOCKED)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="what `vsfix export` wrote")
    parser.add_argument("--data", default="fashion-mnist", help="as vsfix takes it (default: %(default)s)")
    parser.add_argument("--images", type=int, default=7500, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    model = read_model(options.model)
    batches = calibration_batches(model, options.data, samples=options.images, batch_size=BATCH_SIZE, seed=0)
    graph = prepare_model(model).graph
    layers = [batch_norm.name for batch_norm in find_batch_norms(graph)]

    def forward() -> None:
        with OnnxRuntimeRunner(model) as runner:
            for batch in batches:
                runner.run(batch)

    own = {node.op_type for node in model.graph.node}
    measuring = {node.op for node in tap_moments(gs.Variable("x", np.float32), graph.opset).nodes} - own
    with one_processor():
        found = {
            "forward": profile(forward, measuring),
            "exact": profile(lambda: exact(graph, batches, open_for_small_runs, layers), measuring),
        }
    print(table(found, options.images))
    return 0


def profile(work: Callable[[], object], measuring: Collection[str]) -> dict[str, float]:
    """Seconds of each kind; `measuring` are the operators that only measure moments."""
    seconds = Counter(dict.fromkeys(ROWS, 0.0))
    with tempfile.TemporaryDirectory() as folder:
        with profiling(Path(folder) / "session"):
            started = time.perf_counter(), time.process_time()
            work()
            ended = time.perf_counter(), time.process_time()
            for name, start, end in zip(CLOCKED, started, ended, strict=True):
                seconds[name] = end - start
        for operator, duration in kernels(Path(folder)):
            kind = "moments" if operator in measuring else KINDS.get(operator, "other kernels")
            seconds[kind] += duration
            seconds["around them"] -= duration
    seconds["around them"] += seconds["by the clock"]
    return dict(seconds)


@contextmanager
def one_processor() -> Iterator[None]:
    """Keeps this process on one processor, where the system can."""
    if not hasattr(os, "sched_setaffinity"):  # not Linux
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def profiling(prefix: Path) -> Iterator[None]:
    """Every session that is opened meanwhile writes a profile, when it goes, to a file of that beginning."""
    onnxruntime = import_onnxruntime()
    plain = onnxruntime.SessionOptions

    def options() -> Any:
        made = plain()
        made.enable_profiling = True
        made.profile_file_prefix = str(prefix)
        return made

    onnxruntime.SessionOptions = options
    try:
        yield
    finally:
        onnxruntime.SessionOptions = plain


def kernels(folder: Path) -> Iterator[tuple[str, float]]:
    """The operator and the seconds of each run of a kernel, from all the profiles of a folder."""
    for path in sorted(folder.glob("*.json")):
        for event in json.loads(path.read_text()):
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                yield event["args"]["op_name"], event["dur"] / 1e6


def table(found: dict[str, dict[str, float]], images: int) -> str:
    """In Markdown."""
    lines = [f"| seconds, {images:,} images | forward | exact | of the difference |", "| --- | ---: | ---: | ---: |"]
    difference = {row: found["exact"][row] - found["forward"][row] for row in ROWS}
    for row in ROWS:
        share = f"{100 * difference[row] / difference['by the clock']:.0f} %"
        lines.append(f"| {row} | {found['forward'][row]:.2f} | {found['exact'][row]:.2f} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
