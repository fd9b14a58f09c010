"""Looks for silent changes: `vsfix optimize` on random networks, compared byte by byte and output by output.

    python benchmarks/reliability/cross_check.py --networks 200 --seed 0 -o cross-check.json

Each network gets random weights and the statistics of training with its noise on, is exported, and repaired twice.
With --no-fold, each operator that an output depends on must be the one of the export, byte for byte, with its
attributes, its weights and its place, but for the markers of noise, which pass their input on, and for the running
means and variances of the BatchNorms that the report names as repaired. With the fold no output may move by more than
1e-5 of the largest value of that output. The comparison uses nothing of vsfix.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # the networks stand with the tests

from forked import load_libraries, run_command

from tests.trainers.export.random_networks import random_network
from vsfix.trainers.export.onnx_export import export_onnx
from vsfix.trainers.export.onnxruntime_library import import_onnxruntime

RESULTS = ("--json", "plain.json", "--statistics", "plain.npz")
METHODS = ("match", "paired", "exact", "analytic", "auto")
SAMPLES = 64
LARGEST_CHANGE = 1e-5
_MARKERS = ("Dropout", "Identity")


@dataclass(frozen=True)
class Check:
    """One network.

    Attributes:
        seed: of the network.
        method: of the repair.
        state: repaired, unchanged, or refused.
        repaired: how many BatchNorms.
        change: the largest change of an output by the fold, relative to the largest value of that output.
        wrong: what must not be; empty where all is well.
    """

    seed: int
    method: str
    state: str
    repaired: int = 0
    change: float = 0.0
    wrong: str = ""


def check_network(seed: int, folder: Path) -> Check:
    """Exports, repairs and compares one network, in a new folder."""
    rng = np.random.default_rng(seed)
    method = METHODS[seed % len(METHODS)]
    (folder / "scratch").mkdir(parents=True)
    module, example = random_network(seed)
    images = rng.normal(size=(SAMPLES, *example.shape[1:])).astype(np.float32)
    settle(module, torch.from_numpy(images), seed)
    export_onnx(module.eval(), example, folder / "net.onnx")
    np.savez(folder / "data.npz", **{onnx.load(folder / "net.onnx").graph.input[0].name: images})
    data = [] if method == "analytic" else ["--data", "data.npz"]
    command = ["optimize", "net.onnx", "--method", method, *data]
    code, said = run_command(
        [*command, "--no-fold", "-o", "plain.onnx", "--json", "plain.json", "--statistics", "plain.npz"], folder
    )
    if code:
        return Check(seed, method, "refused", wrong="" if "refused" in said or "error" in said else said[-500:])
    code, said = run_command([*command, "-o", "folded.onnx"], folder)
    report = json.loads((folder / "plain.json").read_text())
    named = [row["before"]["name"] for row in report["batch_norms"] if row["repaired"]]
    source, plain = onnx.load(folder / "net.onnx"), onnx.load(folder / "plain.onnx")
    others = set(np.load(folder / "plain.npz")) if method in ("auto", "match") else set()
    wrong = changed_beyond(source, plain, named, others) if code == 0 else f"with the fold: {said[-500:]}"
    change = largest_change(folder / "plain.onnx", folder / "folded.onnx", rng) if code == 0 else 0.0
    if not wrong and not change <= LARGEST_CHANGE:
        wrong = f"the fold changes an output by {change:.1e} of its largest value"
    return Check(seed, method, "repaired" if named else "unchanged", len(named), change, wrong)


def settle(module: nn.Module, images: torch.Tensor, seed: int) -> None:
    """Gives the BatchNorms weights at random, and the statistics of some passes with the noise on."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(seed)
        for layer in norms:
            layer.momentum = None  # the mean over all passes
            if layer.affine:
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.3)
        module.train()
        for _ in range(20):
            module(images)


def changed_beyond(
    source: onnx.ModelProto, found: onnx.ModelProto, repaired: list[str], others: Collection[str] = ()
) -> str:
    """What differs between two models besides markers and what was repaired; empty for nothing.

    Args:
        source: before the repair.
        found: after it.
        repaired: BatchNorms whose running mean and variance may be any.
        others: initializers that may be any.
    """
    norms = {name: [node for node in source.graph.node if is_called(node, name)] for name in repaired}
    missing = [name for name, nodes in norms.items() if len(nodes) != 1]
    if missing:
        return f"the report names {missing}, which the file does not have once"
    free = {nodes[0].output[0] for nodes in norms.values()}
    if [port.SerializeToString() for port in source.graph.input] != [p.SerializeToString() for p in found.graph.input]:
        return "the inputs differ"
    if [port.name for port in source.graph.output] != [port.name for port in found.graph.output]:
        return "the outputs differ"
    before, after = (fingerprints(model, free, others) for model in (source, found))
    wrong = [port.name for port in source.graph.output if before[port.name] != after[port.name]]
    return f"outputs {wrong} depend on something that was changed" if wrong else ""


def is_called(node: onnx.NodeProto, name: str) -> bool:
    """Whether a BatchNorm has the name of a report: that of its node, its parameters or its output."""
    return node.op_type == "BatchNormalization" and name in (
        *(node.name, node.output[0]),
        *(entry.rpartition(".")[0] for entry in node.input[1:]),
    )


def fingerprints(model: onnx.ModelProto, free: set[str], others: Collection[str] = ()) -> dict[str, str]:
    """For each tensor a digest of all that it depends on: operators, attributes, weights, inputs.

    Args:
        model: without local functions.
        free: the outputs of the BatchNorms whose running mean and variance may be any.
        others: initializers that may be any.
    """
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.data_type == 7}
    known = {tensor.name: digest(weight_bytes(tensor)) for tensor in model.graph.initializer}
    known |= {name: digest(b"any") for name in others}
    known |= {port.name: digest(port.name.encode()) for port in model.graph.input if port.name not in known}
    known[""] = ""
    shapes, behind = inferred_shapes(model), dict[str, str]()
    for node in model.graph.node:  # in the order of their computation, as ONNX demands
        if node.op_type == "Reshape" and node.input[0] in behind:  # the last of several decides
            behind[node.output[0]] = behind[node.input[0]]
        elif node.op_type == "Reshape":
            behind[node.output[0]] = node.input[0]
        source = behind.get(node.output[0], "")
        if source and shapes.get(source) is not None and shapes.get(source) == shapes.get(node.output[0]):
            known[node.output[0]] = known[source]  # reshapes that cancel, which a repair removes
            continue
        if node.op_type in _MARKERS or takes_everything(node, values):
            known[node.output[0]] = known[node.input[0]]
            continue
        if node.op_type == "Constant":
            known[node.output[0]] = digest(weight_bytes(node.attribute[0].t))
            continue
        inputs = [
            known[behind[node.output[0]] if node.output[0] in behind and place == 0 else name]
            for place, name in enumerate(node.input)
        ]
        if node.op_type == "BatchNormalization" and node.output[0] in free:
            inputs[3:] = ["free", "free"]
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        head = f"{node.domain} {node.op_type} {inputs}".encode()
        for place, name in enumerate(node.output):
            known[name] = digest(head + b"|".join(attributes) + str(place).encode())
    return known


def inferred_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...] | None]:
    """The shape of each tensor by its name, sides as numbers or symbols; None where a side has neither."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    found = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        sides = [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        found[value.name] = tuple(sides) if all(sides) else None
    return found


def takes_everything(node: onnx.NodeProto, values: Mapping[str, Any]) -> bool:
    """Whether a Slice takes all there is, from the first to beyond the last; a repair removes it."""
    if node.op_type != "Slice" or not all(name in values for name in node.input[1:] if name):
        return False
    starts, ends = (values[name] for name in node.input[1:3])
    steps = values[node.input[4]] if len(node.input) > 4 and node.input[4] else [1]
    return bool((starts == 0).all() and (ends >= 2**31 - 1).all() and all(step == 1 for step in steps))


def weight_bytes(tensor: onnx.TensorProto) -> bytes:
    """The values of a tensor with their type and shape, wherever they stand in the message."""
    return f"{tensor.data_type} {list(tensor.dims)} ".encode() + numpy_helper.to_array(tensor).tobytes()


def digest(content: bytes) -> str:
    """Of anything."""
    return hashlib.sha256(content).hexdigest()


def largest_change(one: Path, other: Path, rng: np.random.Generator) -> float:
    """How far outputs of two models lie apart on new inputs, relative to the largest value of each output."""
    sessions = [open_plain(path) for path in (one, other)]
    (port,) = sessions[0].get_inputs()
    sides = [SAMPLES if not isinstance(side, int) else side for side in port.shape]
    feeds = {port.name: rng.normal(size=sides).astype(np.float32)}
    first, second = (session.run(None, feeds) for session in sessions)
    return max(
        float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)) if np.isfinite(b).all() else float("inf")
        for a, b in zip(first, second, strict=True)
    )


def open_plain(path: Path) -> Any:
    """A session of ONNX Runtime without optimisations of its own."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def table(checks: list[Check]) -> Mapping[str, Any]:
    """The counts."""
    return {
        "networks": len(checks),
        "states": dict(Counter(check.state for check in checks)),
        "batch_norms_repaired": sum(check.repaired for check in checks),
        "largest_change_by_fold": max(check.change for check in checks),
        "wrong": sum(bool(check.wrong) for check in checks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first network")
    parser.add_argument("-o", "--output", type=Path, help="write what was seen as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    load_libraries()
    checks = []
    with tempfile.TemporaryDirectory() as name:
        for seed in range(arguments.seed, arguments.seed + arguments.networks):
            checks.append(check_network(seed, Path(name, str(seed))))
            if checks[-1].wrong:
                print(f"network {seed}, {checks[-1].method}: {checks[-1].wrong}", flush=True)
    for key, value in table(checks).items():
        print(f"{key:24} {value}")
    if arguments.output is not None:
        document = {**table(checks), "checks": [asdict(check) for check in checks]}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    raise SystemExit(any(check.wrong for check in checks))


if __name__ == "__main__":
    main()
