"""What `vsfix inspect` costs where the noise was lost, in forwards of the set.

    python benchmarks/inference_time.py LADDER [NETWORK...] [--model MODEL --data DATA] [--samples 500] [--profile]

A forward is one plain run of ONNX Runtime over the same samples, by the same threads, of the file as it is. LADDER is
the folder of `ladder_train.py`; a NETWORK that is not in it is trained. Of each the noise is taken out first.

    plain-cnn                       without noise, and so are the next
    preresnet-20-none-0
    preresnet-20-dropout-0.5-a-0    Dropout in front of the last BatchNorm of each block
    preresnet-20-dropout-0.5-b-0    in front of the last convolution of each block
    densenet-22-8-dropout-0.5-b-0
    drop-path                       DropPath on each branch
    chain                           20,000 nodes, residual blocks of Conv-BatchNorm-ReLU, without noise
    chain-2000, chain-6000          the same with fewer
    noisy-chain                     2,000 nodes, with Dropout in front of each BatchNorm

Times are those of the processor, so that they hold beside other work. `work` counts the convolutions and matrix
products of all sessions, samples times nodes, in those of a forward; `opening` is what ONNX Runtime needs to load what
it runs. The exit code is 1 where a target is missed: 10 forwards, or 10 seconds for 20,000 nodes.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
from ladder_measure import calibration
from ladder_networks import NETWORKS
from onnx import TensorProto, helper, numpy_helper

from vsfix.graph_passes.folding.linear_layer import LINEAR_OPERATORS
from vsfix.graph_passes.io.model_file import export_model, import_graph, read_model
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.noise.marker import RemoveMarkers
from vsfix.graph_passes.statistics.batches import Batch, count_samples, cut_batches, first_samples, samples_in
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner, open_for_small_runs
from vsfix.pipeline.data.calibration import calibration_batches
from vsfix.pipeline.inspection.inspection import inspect_model
from vsfix.pipeline.repair.plan import MATCHED

NAMES = (
    "plain-cnn preresnet-20-none-0 preresnet-20-dropout-0.5-a-0 preresnet-20-dropout-0.5-b-0 "
    "densenet-22-8-dropout-0.5-b-0 drop-path chain noisy-chain"
).split()
CHAINS = {
    "chain-2000": (2_000, 1.0),
    "chain-6000": (6_000, 1.0),
    "chain": (20_000, 1.0),
    "noisy-chain": (2_000, 0.5),
}  # nodes, and what the variances have of those stored
MOST_FORWARDS, MOST_SECONDS, MANY_NODES = 10.0, 10.0, 10_000
RUN = 64  # samples of one run of the forward
CHANNELS, STRENGTH = 8, 0.02  # of the chains


class Meter:
    """Opens models as a measurement does, and counts what they cost."""

    def __init__(self) -> None:
        self.sessions, self.opening, self.work = 0, 0.0, 0.0

    def open(self, model: onnx.ModelProto) -> OnnxRuntimeRunner:
        """A runner that counts its runs."""
        started = time.process_time()
        runner = open_for_small_runs(model)
        self.opening += time.process_time() - started
        self.sessions += 1
        nodes, run = _linear_nodes(model), runner.run

        def counted(inputs: Mapping[str, Array]) -> dict[str, Array]:
            self.work += nodes * samples_in(inputs)
            return run(inputs)

        runner.run = counted  # type: ignore[method-assign]
        return runner


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ladder", type=Path, metavar="LADDER")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="all of the list where none is named")
    parser.add_argument("--model", type=Path, help="a file of your own")
    parser.add_argument("--data", help="of it, as `vsfix inspect` takes it")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--profile", action="store_true", help="print where Python's time goes")
    options = parser.parse_args()
    if options.model:
        model = read_model(options.model)
        batches = calibration_batches(
            model, options.data, samples=options.samples, batch_size=RUN, at_most=True, seed=0
        )
        return 0 if measure(options.model.stem, model, batches, options.profile) else 1
    met = True
    for name in options.networks or NAMES:
        model, batches = made(name, options.ladder, options.samples)
        met &= measure(name, model, batches, options.profile)
    return 0 if met else 1


def measure(name: str, model: onnx.ModelProto, batches: Sequence[Batch], profile: bool) -> bool:
    """Prints one line; whether the target is met."""
    one = forward(model, batches)
    meter, profiler = Meter(), cProfile.Profile()
    started = time.process_time()
    if profile:
        profiler.enable()
    found = inspect_model(model, batches, meter.open, averaged_on=first_samples(batches, MATCHED))
    profiler.disable()
    seconds = time.process_time() - started
    nodes, work = len(model.graph.node), meter.work / max(_linear_nodes(model) * count_samples(batches), 1)
    print(
        f"{name}: {nodes} nodes, {len(found.rows)} BatchNorms: {seconds:.2f} s, {seconds / one:.1f} forwards of "
        f"{one:.3f} s; work {work:.1f}; opening {meter.opening:.2f} s of {meter.sessions} sessions; "
        f"{(found.inferred or str(found.noise_sources) or 'no noise')[:100]}",
        flush=True,
    )
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(60)
    return seconds <= (MOST_SECONDS if nodes >= MANY_NODES else MOST_FORWARDS * one)


def forward(model: onnx.ModelProto, batches: Sequence[Batch]) -> float:
    """The least seconds of three plain runs of the set."""
    times = []
    with open_for_small_runs(model) as runner:
        for _ in range(3):
            started = time.process_time()
            for batch in cut_batches(batches, RUN):
                runner.run(batch)
            times.append(time.process_time() - started)
    return min(times)


def made(name: str, ladder: Path, samples: int) -> tuple[onnx.ModelProto, Sequence[Batch]]:
    """A file that has lost its noise, and samples of its training data."""
    if name in CHAINS:
        return chain(*CHAINS[name]), list(cut_batches([{"x": images(samples)}], 256))
    rung = next(rung for rung in NETWORKS if rung.stem == name)
    model = rung.exported(ladder)
    batches = list(cut_batches(calibration(rung.data(model), samples, 0), 256))
    graph = import_graph(model)
    RemoveMarkers()(graph)
    model.ClearField("metadata_props")  # they say that all noise is marked
    return export_model(graph, model), batches


def images(count: int) -> Array:
    """Normal numbers, what the chain is fed with."""
    return np.random.default_rng(1).normal(size=(count, CHANNELS, 4, 4)).astype(np.float32)


def chain(nodes: int, ratio: float) -> onnx.ModelProto:
    """Residual blocks, each BatchNorm with the statistics of a batch, its variances divided by a ratio.

    The branches are weak and change their sign, so that rounding does not grow from block to block.
    """
    rng, entries, made_nodes, current = np.random.default_rng(0), [], [], "x"
    values = images(500).astype(np.float64)
    for number in range(nodes // 4):
        weight = rng.normal(size=(CHANNELS, CHANNELS, 1, 1)).astype(np.float32)
        outputs = [f"{layer}{number}" for layer in ("conv", "norm", "relu", "sum")]
        convolved = np.tensordot(weight[:, :, 0, 0], values, (1, 1)).swapaxes(0, 1)
        mean, variance = convolved.mean((0, 2, 3)), convolved.var((0, 2, 3))
        branch = STRENGTH * (convolved - mean[:, None, None]) / np.sqrt(variance + 1e-5)[:, None, None]
        values += (-1) ** number * np.maximum(branch, 0)
        named = {
            "w": weight,
            "g": np.full(CHANNELS, STRENGTH),
            "b": np.zeros(CHANNELS),
            "m": mean,
            "v": variance / ratio,
        }
        entries += [numpy_helper.from_array(one.astype(np.float32), f"{key}{number}") for key, one in named.items()]
        parameters = [f"{key}{number}" for key in "gbmv"]
        made_nodes += [
            helper.make_node("Conv", [current, f"w{number}"], outputs[:1], outputs[0]),
            helper.make_node("BatchNormalization", [outputs[0], *parameters], outputs[1:2], outputs[1]),
            helper.make_node("Relu", outputs[1:2], outputs[2:3], outputs[2]),
            helper.make_node("Sub" if number % 2 else "Add", [current, outputs[2]], outputs[3:], outputs[3]),
        ]
        current = outputs[3]
    shape = ["N", CHANNELS, 4, 4]
    given, output = (helper.make_tensor_value_info(one, TensorProto.FLOAT, shape) for one in ("x", current))
    graph = helper.make_graph(made_nodes, "chain", [given], [output], entries)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _linear_nodes(model: onnx.ModelProto) -> int:
    return sum(node.op_type in LINEAR_OPERATORS for node in model.graph.node)


if __name__ == "__main__":
    sys.exit(main())
