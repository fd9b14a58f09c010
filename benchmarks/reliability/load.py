"""Runs vsfix on more than usual: many samples, a large file, many nodes, many processes in one folder.

    python benchmarks/reliability/load.py -o load.json

samples     `optimize --method exact` over --samples samples under --max-memory: the peak of the process.
weights     `optimize` of a file with --gigabytes of weights beside it: the peak over the size.
nodes       `inspect` and `optimize` of a network of --nodes nodes.
processes   --processes times `optimize` of one model into one output in one folder, with --force.

Each runs as a process of its own; what it wrote is read again with onnx and run with ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper
from seeds import seed_models, seed_npz

from vsfix.graph_passes.ir.runtime import Array

PARTS = ("samples", "weights", "nodes", "processes")
SIDE = 8192  # of a weight of 256 MiB
_UNIT = 1 << 20
_CODE = """
import atexit, pathlib, re
def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    pathlib.Path("peak.txt").write_text(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
atexit.register(peak)
from vsfix.pipeline.cli.main import main
main()
"""
VSFIX = (sys.executable, "-c", _CODE)


@dataclass(frozen=True)
class Load:
    """One row of the table.

    Attributes:
        what: the command and its size.
        seconds: wall time.
        mebibytes: the peak of the process, the largest where there are several; None where it is not the question.
        limit: what the peak may be, in MiB; None where nothing is wanted.
        wrong: what must not be, in words.
    """

    what: str
    seconds: float
    mebibytes: float | None = None
    limit: float | None = None
    wrong: list[str] = field(default_factory=list)


def run_vsfix(arguments: list[str], folder: Path, wrong: list[str]) -> tuple[float, float]:
    """Runs `vsfix`; returns the seconds it took and its peak in MiB.

    It writes its peak down itself: what the system keeps of a process that has ended may be its parent's.
    """
    began = time.monotonic()
    (folder / "peak.txt").unlink(missing_ok=True)
    with (folder / "said.txt").open("wb") as said:
        code = subprocess.call([*VSFIX, *arguments], cwd=folder, stdout=said, stderr=said)
    seconds = time.monotonic() - began
    if code:
        wrong.append(f"exit {code}: " + (folder / "said.txt").read_text()[-300:])
    if not (folder / "peak.txt").exists():
        wrong.append("it ended without a word of its memory")
        return seconds, float("nan")
    return seconds, int((folder / "peak.txt").read_text()) / 1024


def check(path: Path, wrong: list[str], inputs: dict[str, Any] | None = None) -> None:
    """Reads a written model again, and runs it where there are inputs."""
    from vsfix.trainers.export.onnxruntime_library import import_onnxruntime

    try:
        onnx.checker.check_model(str(path))
        if inputs is not None:
            session = import_onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
            if not all(np.isfinite(array).all() for array in session.run(None, inputs)):
                wrong.append(f"{path.name}: its output is not finite")
    except Exception as error:  # whatever it is, it is what must not be
        wrong.append(f"{path.name}: {error}")


def many_samples(folder: Path, samples: int, limit: int) -> Load:
    """`optimize --method exact` on a PreResNet-8 and images of 8x8."""
    wrong: list[str] = []
    train = "train --model preresnet-8 --data digits --noise dropout:0.5 --epochs 1 --samples 256 -o run"
    for command in (train, "export run/checkpoint.pt -o net.onnx"):
        run_vsfix(command.split(), folder, wrong)
    images = np.random.default_rng(0).normal(size=(samples, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", input=images)
    command = "optimize net.onnx --data data.npz --method exact -o repaired.onnx --max-memory"
    seconds, peak = run_vsfix([*command.split(), f"{limit}M"], folder, wrong)
    check(folder / "repaired.onnx", wrong, {"input": images[:4]})
    return Load(f"optimize, {samples:,} samples, --max-memory {limit}M", seconds, peak, limit, wrong)


def large_file(folder: Path, gigabytes: float) -> Load:
    """`optimize` of a perceptron of 8,192 units a layer, its weights in one file beside the model."""
    wrong: list[str] = []
    rng = np.random.default_rng(0)
    size = write_perceptron(folder / "large.onnx", max(1, round(gigabytes * (1 << 30) / (4 * SIDE * SIDE))), rng)
    inputs = rng.normal(size=(64, SIDE)).astype(np.float32)
    np.savez(folder / "large.npz", x=inputs)
    command = "optimize large.onnx --data large.npz --method paired --samples 64 -o repaired.onnx"
    seconds, peak = run_vsfix(command.split(), folder, wrong)
    check(folder / "repaired.onnx", wrong, {"x": inputs[:2]})
    return Load(f"optimize, {size / (1 << 30):.2f} GiB of weights", seconds, peak, 2 * size / _UNIT, wrong)


def write_perceptron(path: Path, layers: int, rng: np.random.Generator) -> int:
    """Writes a perceptron whose BatchNorms store what training with Dropout 0.5 stores; the bytes of its weights."""
    block = (rng.normal(size=(SIDE, SIDE)) / np.sqrt(SIDE)).astype(np.float32)
    nodes: list[onnx.NodeProto] = []
    weights = [numpy_helper.from_array(np.float32(0.5), "ratio"), numpy_helper.from_array(np.array(False), "off")]
    with path.with_name(f"{path.name}.data").open("wb") as data:
        for layer in range(layers):
            rolled = np.roll(block, layer, axis=0)
            data.write(rolled.data)
            weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[SIDE, SIDE])
            weight.data_location = TensorProto.EXTERNAL
            place = {"location": f"{path.name}.data", "offset": layer * block.nbytes, "length": block.nbytes}
            for key, value in place.items():
                weight.external_data.add(key=key, value=str(value))
            weights += [weight, *_statistics(layer, rolled)]
            nodes += _layer(layer)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", SIDE]) for name in ("x", f"r{layers - 1}")]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)]), path)
    return layers * block.nbytes


def _statistics(layer: int, weight: Array) -> list[TensorProto]:
    """The parameters of the BatchNorm behind a weight.

    Of Relu(standard normal): mean 1 / sqrt(2 pi), second moment 1/2; Dropout 0.5 doubles the second moment.
    """
    second, mean = (2.0, 0.0) if layer == 0 else (1.0, 0.3989)
    values = {
        "gamma": np.ones(SIDE),
        "beta": np.zeros(SIDE),
        "mean": mean * weight.sum(1),
        "var": (weight**2).sum(1) * (second - mean**2),
    }
    return [numpy_helper.from_array(value.astype(np.float32), f"{name}{layer}") for name, value in values.items()]


def _layer(layer: int) -> list[onnx.NodeProto]:
    """Dropout, product, BatchNorm and ReLU."""
    front = f"r{layer - 1}" if layer else "x"
    parameters = [f"{name}{layer}" for name in ("gamma", "beta", "mean", "var")]
    return [
        helper.make_node("Dropout", [front, "ratio", "off"], [f"d{layer}"]),
        helper.make_node("Gemm", [f"d{layer}", f"w{layer}"], [f"g{layer}"], transB=1),
        helper.make_node("BatchNormalization", [f"g{layer}", *parameters], [f"b{layer}"]),
        helper.make_node("Relu", [f"b{layer}"], [f"r{layer}"]),
    ]


def many_nodes(folder: Path, nodes: int) -> list[Load]:
    """`inspect` and `optimize` of a chain of Conv, Dropout, BatchNormalization and Relu."""
    wrong: list[str] = []
    body, weights, rng = [], {}, np.random.default_rng(0)
    for block in range(nodes // 4):
        front = f"r{block - 1}" if block else "x"
        body.append(
            f"c{block} = Conv ({front}, w{block}) d{block} = Dropout (c{block}, ratio, off) "
            f"b{block} = BatchNormalization (d{block}, g{block}, e{block}, m{block}, v{block}) "
            f"r{block} = Relu (b{block})"
        )
        weights[f"w{block}"] = rng.normal(0, 0.7, (4, 4, 1, 1)).astype(np.float32)
        weights |= {
            f"{name}{block}": np.ones(4, np.float32) * value for name, value in zip("gemv", (1, 0, 0, 2), strict=True)
        }
    end = nodes // 4 - 1
    text = f"(float[N, 4, 4, 4] x) => (float[N, 4, 4, 4] r{end}) {{ {' '.join(body)} }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\nmain {text}')
    weights |= {"ratio": np.float32(0.5), "off": np.array(False)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in weights.items())
    onnx.save(model, folder / "deep.onnx")
    rows = []
    for command in ("inspect deep.onnx", "optimize deep.onnx --method analytic -o repaired.onnx"):
        seconds, peak = run_vsfix(command.split(), folder, wrong)
        rows.append(Load(f"{command.split()[0]}, {nodes:,} nodes", seconds, peak, None, wrong))
    check(folder / "repaired.onnx", wrong, {"x": np.ones((1, 4, 4, 4), np.float32)})
    return rows


def many_processes(folder: Path, processes: int) -> Load:
    """Several `optimize` into one output at once, each with a seed of its own: what stands there is one of theirs."""
    wrong: list[str] = []
    (folder / "net.onnx").write_bytes(seed_models()["plain"].SerializeToString())
    data = seed_npz()
    np.savez(folder / "data.npz", **data)
    base = [*VSFIX, "optimize", "net.onnx", "--data", "data.npz", "--force"]
    alone = []
    for seed in range(processes):
        subprocess.run(
            [*base, "--seed", str(seed), "-o", f"alone{seed}.onnx"], cwd=folder, check=True, capture_output=True
        )
        alone.append((folder / f"alone{seed}.onnx").read_bytes())
    began = time.monotonic()
    running = [
        subprocess.Popen(
            [*base, "--seed", str(seed), "-o", "shared.onnx"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(processes)
    ]
    for process in running:
        said = process.communicate()[1]
        if process.returncode:
            wrong.append(f"exit {process.returncode}: {said[-300:]}")
    seconds = time.monotonic() - began
    if (folder / "shared.onnx").read_bytes() not in alone:
        wrong.append("shared.onnx is none of the files that the processes write alone")
    left = [path.name for path in folder.iterdir() if ".part" in path.name]
    if left:
        wrong.append(f"left behind: {', '.join(left)}")
    return Load(f"{processes} times optimize into one file", seconds, None, None, wrong)


def is_over(row: Load) -> bool:
    """Whether a process held more than it may."""
    return row.limit is not None and row.mebibytes is not None and row.mebibytes > row.limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which of %(default)s")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--max-memory", type=int, default=512, help="MiB")
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("-o", "--output", type=Path, help="write what was seen as JSON")
    arguments = parser.parse_args()
    rows: list[Load] = []
    for part in arguments.parts.split(","):
        folder = Path(tempfile.mkdtemp())
        try:
            if part == "samples":
                rows.append(many_samples(folder, arguments.samples, arguments.max_memory))
            elif part == "weights":
                rows.append(large_file(folder, arguments.gigabytes))
            elif part == "nodes":
                rows += many_nodes(folder, arguments.nodes)
            elif part == "processes":
                rows.append(many_processes(folder, arguments.processes))
            else:
                parser.error(f"no part '{part}'; there are {', '.join(PARTS)}")
        finally:
            shutil.rmtree(folder)
    failed = False
    for row in rows:
        over = is_over(row)
        failed = failed or over or bool(row.wrong)
        peak = "" if row.mebibytes is None else f", {row.mebibytes:,.0f} MiB"
        limit = "" if row.limit is None else f" of {row.limit:,.0f}{': TOO MUCH' if over else ''}"
        print(f"{row.what}: {row.seconds:.1f} s{peak}{limit}" + "".join(f"\n  {text}" for text in row.wrong))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
