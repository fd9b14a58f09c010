"""Infers the lost noise of networks whose noise is known, and of statistics that something else has spoilt.

    python benchmarks/noise_inference.py MODEL... [--data fashion-mnist] [--samples 500] [--spoilt] [--repair]

Each MODEL marks its noise (`vsfix export` of a network of `vsfix train`). The markers are the truth; they are removed,
and the noise is inferred from the stored statistics. With --spoilt the same is done after the statistics or the images
of each model were changed in ways that no noise explains. With --repair the file without markers is repaired by match
with the inferred noise and 32 images, and its top-1 compared with that of the oracle, `exact` over 30,000; exit code 1
where it is more than 0.5 points below.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.io.model_file import export_model, import_graph, read_model
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.noise.insertion import InsertNoise
from vsfix.graph_passes.noise.marker import RemoveMarkers, read_marker
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.noise_inference.inference import infer_noise
from vsfix.graph_passes.noise_inference.verdict import NoiseInference
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner, open_for_small_runs
from vsfix.pipeline.comparison.accuracy import accuracy_of
from vsfix.pipeline.data.calibration import calibration_batches, labelled_samples
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig

Batches = list[dict[str, Array]]


REPAIR_IMAGES, ORACLE_IMAGES, BATCH_SIZE, NEAR_ORACLE = 32, 30000, 256, 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spoilt", action="store_true")
    parser.add_argument("--repair", action="store_true")
    options = parser.parse_args()
    misses = 0
    for path in options.models:
        model = read_model(path)
        batches = calibration_batches(
            model, options.data, samples=options.samples, batch_size=options.batch_size, seed=options.seed
        )
        cases: Mapping[str, Callable[[gs.Graph, Batches], Batches]] = {"as trained": _unchanged}
        cases |= SPOILT if options.spoilt else {}
        for name, spoil in cases.items():
            graph = import_graph(model)
            truth = _truth(graph)
            RemoveMarkers()(graph)
            images = spoil(graph, batches)
            wall, core = time.perf_counter(), time.process_time()
            answer = infer_noise(graph, images, open_for_small_runs)
            wall, core = time.perf_counter() - wall, time.process_time() - core
            _report(f"{path.stem}, {name}", truth, answer)
            print(f"    {wall:.1f} s, {core:.1f} s of one core", flush=True)
            if options.repair and name == "as trained" and answer.sites:
                misses += not _repair(model, answer, options.data)
    return 1 if misses else 0


def _repair(model: onnx.ModelProto, answer: NoiseInference, data: str) -> bool:
    """Repairs the file that has lost its noise; whether it comes near the oracle."""
    graph = import_graph(model)
    RemoveMarkers()(graph)
    stripped = export_model(graph, model)
    InsertNoise(answer.sites, tensors_only=True)(graph)
    inferred = export_model(graph, model)
    few = calibration_batches(model, data, samples=REPAIR_IMAGES, batch_size=BATCH_SIZE, seed=0)
    many = calibration_batches(model, data, samples=ORACLE_IMAGES, batch_size=BATCH_SIZE, seed=0)
    matched = repair_model(inferred, few, open_for_small_runs, RepairConfig("match")).model
    oracle = repair_model(stripped, many, open_for_small_runs, RepairConfig("exact", "all")).model
    labelled = labelled_samples(model, data, split="test", seed=0)
    top1 = []
    for candidate in (stripped, oracle, matched):
        with OnnxRuntimeRunner(candidate) as runner:
            top1.append(accuracy_of("", runner, labelled, batch_size=BATCH_SIZE).score.value)
    near = top1[1] - top1[2] <= NEAR_ORACLE
    print(
        f"    top-1 as trained {top1[0]:.2f}, oracle {top1[1]:.2f}, matched with {REPAIR_IMAGES} images {top1[2]:.2f}: "
        f"{'PASS' if near else 'MISS'}",
        flush=True,
    )
    return near


def _truth(graph: gs.Graph) -> dict[str, Noise]:
    """The noise by the name of the tensor in front of its marker."""
    found = ((node, read_marker(node)) for node in graph.nodes)
    return {node.inputs[0].name: noise for node, noise in found if noise is not None}


def _report(name: str, truth: Mapping[str, Noise], answer: NoiseInference) -> None:
    """One block of text for one inference."""
    kinds = Counter(str(noise) for noise in truth.values())
    expected = ", ".join(f"{noise} at {count} places" for noise, count in kinds.items()) or "no noise"
    place = "right place" if set(answer.sites) == set(truth) else "wrong place"
    print(f"{name}: truth {expected}; {answer.verdict.value}{', ' + place if answer.sites else ''}")
    print(f"    {answer.description}")
    print(f"    {answer.confidence}")


def _unchanged(graph: gs.Graph, batches: Batches) -> Batches:
    return batches


def _permuted(graph: gs.Graph, batches: Batches) -> Batches:
    """The statistics of each BatchNorm belong to other channels."""
    rng = np.random.default_rng(0)
    for batch_norm in find_batch_norms(graph):
        order = rng.permutation(batch_norm.channels)
        batch_norm.with_statistics(batch_norm.mean[order], batch_norm.variance[order])
    return batches


def _random_variances(graph: gs.Graph, batches: Batches) -> Batches:
    """Each variance is off by a random factor, e^0.5 in the typical case."""
    rng = np.random.default_rng(0)
    for batch_norm in find_batch_norms(graph):
        factor = np.exp(rng.normal(0, 0.5, batch_norm.channels))
        batch_norm.with_statistics(batch_norm.mean, batch_norm.variance * factor)
    return batches


def _inverted(graph: gs.Graph, batches: Batches) -> Batches:
    """The images are negatives."""
    highest = max(float(array.max()) for batch in batches for array in batch.values())
    lowest = min(float(array.min()) for batch in batches for array in batch.values())
    return [{name: highest + lowest - array for name, array in batch.items()} for batch in batches]


def _wrongly_scaled(graph: gs.Graph, batches: Batches) -> Batches:
    """The images are divided by a deviation once too often."""
    return [{name: np.asarray(array / 0.5, dtype=array.dtype) for name, array in batch.items()} for batch in batches]


def _blurred(graph: gs.Graph, batches: Batches) -> Batches:
    """The images lack half of their detail: the mean with those one pixel to the right and below."""
    return [
        {name: (array + np.roll(array, 1, axis=-1) + np.roll(array, 1, axis=-2)) / 3 for name, array in batch.items()}
        for batch in batches
    ]


def _other_digits(graph: gs.Graph, batches: Batches) -> Batches:
    """The images are handwritten digits, enlarged."""
    from sklearn.datasets import load_digits

    name, array = next(iter(batches[0].items()))
    side = -(-array.shape[-1] // 8)
    images = np.kron(load_digits().images, np.ones((1, side, side)))[:, None, : array.shape[-2], : array.shape[-1]]
    digits = ((images / 16 - 0.2863) / 0.3532).astype(np.float32)
    sizes = np.cumsum([0] + [len(batch[name]) for batch in batches])
    return [{name: digits[start:end]} for start, end in itertools.pairwise(sizes.tolist())]


SPOILT: Mapping[str, Callable[[gs.Graph, Batches], Batches]] = {
    "statistics permuted": _permuted,
    "random variances": _random_variances,
    "negative images": _inverted,
    "images scaled twice": _wrongly_scaled,
    "images blurred": _blurred,
    "digits instead": _other_digits,
}

if __name__ == "__main__":
    sys.exit(main())
