"""Takes the light models of the onnx package through every pass and compares their outputs with the original.

    python benchmarks/light_models.py [NAME...]

The light models are the graphs of nine well-known networks, opset 9, IR version 3, with most weights made in the graph
by ConstantOfShape: all alike, so that the outputs hardly depend on the input. Each is therefore walked twice, as it is
and with random weights; only the second row says much about the numbers. Exits 1 when a walk fails.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.numpy_helper

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms, unreadable_batch_norms
from vsfix.graph_passes.errors import VsfixError
from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.folding.recompose_batch_norm import RecomposeBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph, read_model
from vsfix.graph_passes.ir.fold_constants import FoldConstants
from vsfix.graph_passes.ir.graph_pass import PassPipeline
from vsfix.graph_passes.ir.remove_identities import RemoveIdentities
from vsfix.graph_passes.noise.analysis import analyse_noise
from vsfix.graph_passes.noise.marker import RemoveMarkers
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
LARGEST_ERROR = 1e-4  # of the largest output; float32 sums of thousands of terms, in another order


def light_models() -> list[Path]:
    """The models that the onnx package brings along, smallest first."""
    return sorted(FOLDER.glob("light_*.onnx"), key=lambda path: path.stat().st_size)


def random_inputs(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """One random batch for the inputs that are no weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    rng = np.random.default_rng(0)
    return {
        info.name: rng.normal(size=[side.dim_value or 1 for side in info.type.tensor_type.shape.dim]).astype(np.float32)
        for info in model.graph.input
        if info.name not in weights
    }


def with_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with random weights in the place of those that ConstantOfShape makes.

    Without the Softmax at its end, which large values would drive to 0 and 1 and so hide what happens in front.
    """
    rng = np.random.default_rng(0)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in stored:
            result.graph.node.append(node)
            continue
        shape = onnx.numpy_helper.to_array(stored[node.input[0]])
        # (C_out, C_in, ...): each layer keeps the size of its input; (C,): positive, as a variance must be
        deep = len(shape) > 1
        values = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape) if deep else rng.uniform(0.5, 1.5, shape)
        result.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), node.output[0]))
    if result.graph.node[-1].op_type == "Softmax":
        result.graph.node[-1].op_type = "Identity"
        del result.graph.node[-1].attribute[:]
    result.ir_version = 4  # the first in which a weight need not be listed among the inputs
    return result


def walk(name: str, model: onnx.ModelProto) -> str:
    """Takes one model through the passes.

    Returns:
        The row of the table.

    Raises:
        VsfixError: a pass, the reader or the runtime refuses.
        onnx.checker.ValidationError: the result is no valid model.
        ArithmeticError: the outputs differ.
    """
    started = time.perf_counter()
    graph = import_graph(model)
    before = len(graph.nodes)
    PassPipeline([RecomposeBatchNorm(), FoldConstants()])(graph)
    batch_norms, unreadable = find_batch_norms(graph), unreadable_batch_norms(graph)
    noise = analyse_noise(graph)
    PassPipeline([RemoveMarkers(), RemoveIdentities()])(graph)
    folded = FoldBatchNorm()(graph)
    result = export_model(graph, model)
    seconds = time.perf_counter() - started
    onnx.checker.check_model(result, full_check=True)
    snr, error = compare(model, result)
    nodes = f"{before:5} -> {len(result.graph.node):<5}"
    counts = f"{len(batch_norms):4} {len(unreadable):10} {len(noise.sources):6} {len(folded.changed):6}"
    return f"{name:28} {nodes} {counts} {snr:7.1f} dB {error:8.1e} {seconds:6.2f} s"


def compare(model: onnx.ModelProto, result: onnx.ModelProto) -> tuple[float, float]:
    """The SNR of all outputs together in dB, and the largest error relative to the largest output."""
    inputs = random_inputs(model)
    with OnnxRuntimeRunner(model) as first, OnnxRuntimeRunner(result) as second:
        pairs = zip(first.run(inputs).values(), second.run(inputs).values(), strict=True)
        expected, found = (
            np.concatenate([np.ravel(array).astype(np.float64) for array in arrays])
            for arrays in zip(*pairs, strict=True)
        )
    if not np.isfinite(expected).all():
        raise ArithmeticError("the original's outputs are not finite")
    noise = float(np.sum((found - expected) ** 2))
    snr = np.inf if noise == 0 else 10 * np.log10(float(np.sum(expected**2)) / noise)
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error <= LARGEST_ERROR:
        raise ArithmeticError(f"the outputs differ by {error:.1e} of the largest one")
    return float(snr), error


def main(names: list[str]) -> int:
    failures = 0
    print(f"{'model':28} nodes          BNs unreadable  noise folded        SNR    error    passes")
    for path in light_models():
        name = path.stem.removeprefix("light_")
        if names and name not in names:
            continue
        model = read_model(path)
        for title, change in ((name, None), (f"{name}, random weights", with_weights)):
            try:
                print(walk(title, model if change is None else change(model)), flush=True)
            except (VsfixError, ArithmeticError, onnx.checker.ValidationError) as problem:
                failures += 1
                print(f"{title:28} FAIL {problem}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
