"""The passes of vsfix beside those of its neighbours: time, nodes left, and what the output becomes.

    pip install onnxslim onnxsim onnxoptimizer onnxscript
    python benchmarks/pass_peers.py --models models --out pass_peers.json

    vsfix              what `vsfix optimize --method none` does to a graph: prepare, remove noise markers and
                       identities, simplify shapes, fold, export, the full ONNX checker (which sees the types
                       and sides of weights, not their values)
    vsfix, compared    `repair_model`, which that command calls: it then also runs both graphs in ONNX Runtime
    onnxslim           onnxslim.slim(model)
    onnxslim, compared the same with model_check=True, which runs both graphs in ONNX Runtime
    onnxsim            onnxsim.simplify(model)
    onnxoptimizer      every fuse and elimination pass
    onnxscript         onnxscript.optimizer.optimize(model)

What each leaves of exports that are not optimised stands in `pass_counts`.

All of them from a ModelProto in memory to another, in one process. The networks are vsfix's own, exported with their
BatchNorms, random weights, and the statistics of a random batch; those of small images with Dropout marked in front of
the last BatchNorm of each block, those of large ones (resnet, resnext-50, seresnet) without. The synthetic ones are
residual sums of Conv-Dropout-BatchNorm-Relu. --models keeps the files, which take longer to export than to optimise.
The tools take turns, and take turns in being first; the time is the median of --rounds. It is that of the processor,
all threads together, so that what else runs on the machine does not count; the JSON has the time of the clock too.

Each result is checked (onnx's full checker), run in ONNX Runtime without its own optimisations, and compared with the
model that went in. Then the growth: chains of Conv-Dropout-BatchNorm-Relu, and the exponent of the power law fitted
to the times; a tool is run once where it takes longer than --patience, and not at all where the times so far promise
more than --limit. Exit code 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx.checker
from onnx import helper, numpy_helper
from random_network import DROPOUT, export_random_network

from vsfix.graph_passes.cleaning.deployment import cleaning_passes
from vsfix.graph_passes.errors import first_line
from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.io.model_file import check_without_weights, export_model, read_model
from vsfix.graph_passes.ir.graph_pass import PassPipeline
from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs
from vsfix.pipeline.host.environment import describe_environment
from vsfix.pipeline.inspection.preparation import prepare_model
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig
from vsfix.trainers.export.onnxruntime_library import import_onnxruntime

MODELS = (
    *("preresnet-26", "wrn-28-2", "resnext-29-8x16d", "wrn-40-2", "densenet-40-12", "resnext-50-32x4d", "resnet-50"),
    *("preresnet-56", "seresnet-50", "resnet-101", "densenet-100-12", "preresnet-110", "preresnet-164", "resnet-200"),
    *("densenet-190-12", "seresnet-152", "synthetic-1000", "synthetic-2000", "preresnet-1001", "synthetic-5000"),
)
PLAIN = ("resnet-", "resnext-50-", "seresnet-")
SIZES = (100, 300, 1_000, 3_000, 10_000, 20_000)
TARGET_SECONDS, TARGET_NODES, TARGET_RATIO, TARGET_EXPONENT = 1.0, 1_000, 0.25, 1.1
LARGE = 90.0  # megabytes, from which on no single network may take longer than with onnxslim
PARAMETERS = ("weight", "bias", "running_mean", "running_var")

Model = onnx.ModelProto
Facts = dict[str, Any]


def vsfix_passes(model: Model) -> Model:
    prepared = prepare_model(model, needs_batch_norms=False)
    PassPipeline(cleaning_passes(FoldBatchNorm()))(prepared.graph)
    prepared.graph.cleanup()
    result = export_model(prepared.graph, model)
    check_without_weights(result, Path("result"))
    return result


def vsfix_compared(model: Model) -> Model:
    return repair_model(model, [], open_for_small_runs, RepairConfig(method="none")).model


def onnxslim(model: Model) -> Model:
    return import_module("onnxslim").slim(model)


def onnxslim_compared(model: Model) -> Model:
    return import_module("onnxslim").slim(model, model_check=True)


def onnxsim(model: Model) -> Model:
    return import_module("onnxsim").simplify(model)[0]


def onnxoptimizer(model: Model) -> Model:
    tool = import_module("onnxoptimizer")
    return tool.optimize(model, tool.get_fuse_and_elimination_passes())


def onnxscript(model: Model) -> Model:
    return import_module("onnxscript.optimizer").optimize(model)


# Each tool: the package that it wants, and its call.
TOOLS: dict[str, tuple[str, Callable[[Model], Model]]] = {
    "vsfix": ("vsfix", vsfix_passes),
    "onnxslim": ("onnxslim", onnxslim),
    "onnxsim": ("onnxsim", onnxsim),
    "onnxoptimizer": ("onnxoptimizer", onnxoptimizer),
    "onnxscript": ("onnxscript", onnxscript),
    "vsfix, compared": ("vsfix", vsfix_compared),
    "onnxslim, compared": ("onnxslim", onnxslim_compared),
}
GROWING = ("vsfix", "onnxslim")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    here = {tool: find_spec(package) is not None for tool, (package, _) in TOOLS.items()}
    tools = [tool for tool, found in here.items() if found]
    packages = {TOOLS[tool][0] for tool in tools}
    found: Facts = {
        "environment": describe_environment() | {name: version(name) for name in sorted(packages)},
        "skipped": [f"{tool}: not installed, pip install {TOOLS[tool][0]}" for tool in TOOLS if not here[tool]],
    }
    for tool in tools:
        timed(tool, chain(8))  # so that no import and no first call is timed
    found |= {"models": [], "growth": []}
    with TemporaryDirectory() as temporary:
        for name in options.networks:
            found["models"].append(compare(name, network(name, options.models or Path(temporary)), tools, options))
            write(options.out, found)
    for size in options.sizes:
        found["growth"].append(grow(size, [tool for tool in GROWING if here[tool]], found["growth"], options))
        write(options.out, found)
    print(report(found))
    misses = missed(found)
    print("\n" + "\n".join([f"MISS {miss}" for miss in misses] or ["every target that was measured is met"]))
    return 1 if misses else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=MODELS, help="(default: %(default)s)")
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES, help="of the chains (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--patience", type=float, default=20.0, help="seconds (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds (default: %(default)s)")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="of the exported networks")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    return parser.parse_args(arguments)


def write(path: Path | None, found: Facts) -> None:
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n")


def network(name: str, folder: Path) -> Model:
    """The model of a name; exported where the folder does not hold it yet."""
    if name.startswith("synthetic-"):
        return chain(int(name.removeprefix("synthetic-")), residual=True)
    path = folder / f"{name}.onnx"
    if not path.exists():
        print(f"exporting {name}", file=sys.stderr)
        export_random_network(name, path, () if name.startswith(PLAIN) else DROPOUT)
    return read_model(path)


def chain(nodes: int, *, residual: bool = False) -> Model:
    """Conv, Dropout, BatchNorm and Relu again and again on 4 channels; each block a residual sum where wanted."""
    rng = np.random.default_rng(0)
    blocks = nodes // (5 if residual else 4)
    weights = {"ratio": np.float32(0.5), "off": np.array(False)}
    made, data = [], "input"
    for block in range(blocks):
        name = f"layer{block}"
        kernel = rng.normal(0, 0.5 / math.sqrt(blocks) if residual else 0.5, (4, 4, 1, 1))
        rows = (rng.uniform(0.5, 1.5, 4), rng.normal(0, 0.2, 4), rng.normal(0, 0.2, 4), rng.uniform(0.5, 1.5, 4))
        scales = [1 / math.sqrt(blocks) if residual and kind < 2 else 1 for kind in range(4)]
        weights[f"{name}.conv.weight"] = kernel
        stored = [f"{name}.bn.{parameter}" for parameter in PARAMETERS]
        weights |= {key: row * scale for key, row, scale in zip(stored, rows, scales, strict=True)}
        made += [
            helper.make_node("Conv", [data, f"{name}.conv.weight"], [f"{name}.conv"], name=f"{name}.conv"),
            helper.make_node("Dropout", [f"{name}.conv", "ratio", "off"], [f"{name}.noise"], name=f"{name}.noise"),
            helper.make_node("BatchNormalization", [f"{name}.noise", *stored], [f"{name}.bn"], name=f"{name}.bn"),
            helper.make_node("Relu", [f"{name}.bn"], [f"{name}.relu"], name=f"{name}.relu"),
        ]
        if residual:
            made.append(helper.make_node("Add", [data, f"{name}.relu"], [f"{name}.sum"], name=f"{name}.sum"))
        data = made[-1].output[0]
    typed = {key: row if row.dtype == bool else row.astype(np.float32) for key, row in weights.items()}
    image = ["N", 4, 4, 4]
    values = [helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, image) for key in ("input", data)]
    tensors = [numpy_helper.from_array(np.asarray(row), key) for key, row in typed.items()]
    graph = helper.make_graph(made, "chain", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def timed(tool: str, model: Model) -> tuple[Model, Facts]:
    """What a tool makes of a copy of the model, for some edit their input, and its times."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    gc.collect()
    started, processor = time.perf_counter(), time.process_time()
    with redirect_stdout(sys.stderr):
        result = TOOLS[tool][1](copy)
    return result, {"seconds": time.process_time() - processor, "wall": time.perf_counter() - started}


def compare(name: str, model: Model, tools: Sequence[str], options: argparse.Namespace) -> Facts:
    """Every tool on one model."""
    inputs = {"input" if name.startswith("synthetic-") else model.graph.input[0].name: random_input(model)}
    expected = outputs(model, inputs)
    rows: dict[str, Facts] = {tool: {"runs": []} for tool in tools}
    for turn in range(options.rounds):
        for tool in [*tools[turn % len(tools) :], *tools[: turn % len(tools)]]:
            row = rows[tool]
            if "fails" in row:
                continue
            try:
                result, times = timed(tool, model)
            except Exception as error:  # each tool has its own errors
                row["fails"] = first_line(error)
                continue
            row["runs"].append(times)
            if turn == 0:
                row |= {"nodes": len(result.graph.node), **judge(result, inputs, expected)}
            print(f"{name} {turn + 1}/{options.rounds} {tool}: {times['seconds']:.3f} s", file=sys.stderr)
    for row in rows.values():
        row["seconds"] = statistics.median(run["seconds"] for run in row["runs"]) if row["runs"] else None
    return {"model": name, "nodes": len(model.graph.node), "megabytes": model.ByteSize() / 1e6, "tools": rows}


def random_input(model: Model) -> np.ndarray[Any, Any]:
    """Two images of the shape that the model states."""
    sides = [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return np.random.default_rng(1).standard_normal((2, *sides), dtype=np.float32)


def outputs(model: Model, inputs: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """The first output, of ONNX Runtime without optimisations of its own."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(inputs))[0], dtype=np.float64)


def judge(result: Model, inputs: Mapping[str, Any], expected: np.ndarray[Any, Any]) -> Facts:
    """The largest difference to the output of the model that went in, or what is wrong with the result."""
    try:
        onnx.checker.check_model(result, full_check=True)
        found = outputs(result, inputs)
    except Exception as error:  # the checker and ONNX Runtime have errors of their own
        return {"broken": first_line(error)}
    return {"difference": float(np.abs(found - expected).max()), "largest": float(np.abs(expected).max())}


def grow(size: int, tools: Sequence[str], before: Sequence[Facts], options: argparse.Namespace) -> Facts:
    """The time of each tool on a chain; `before` are those of the shorter chains."""
    model = chain(size)
    runs: dict[str, list[float]] = {tool: [] for tool in tools if not promised(before, tool, size) > options.limit}
    tools = list(runs)
    for turn in range(options.rounds):
        for tool in tools[:: -1 if turn % 2 else 1]:
            if not runs[tool] or runs[tool][0] <= options.patience:
                runs[tool].append(timed(tool, model)[1]["seconds"])
                print(f"chain {size} {tool}: {runs[tool][-1]:.3f} s", file=sys.stderr)
    medians = {tool: statistics.median(seconds) for tool, seconds in runs.items()}
    return {"nodes": len(model.graph.node), "runs": runs, "seconds": medians}


def power_law(rows: Sequence[Facts], tool: str) -> tuple[float, float]:
    """k and c of seconds = c nodes^k, by least squares of the logarithms; NaN where less than two sizes were run."""
    points = [(math.log(row["nodes"]), math.log(row["seconds"][tool])) for row in rows if tool in row["seconds"]]
    if len(points) < 2:
        return math.nan, math.nan
    slope, start = np.polyfit(*zip(*points, strict=True), 1)
    return float(slope), math.exp(start)


def promised(rows: Sequence[Facts], tool: str, size: int) -> float:
    """The seconds that the last two sizes that a tool was run on let expect of another."""
    slope, factor = power_law([row for row in rows if tool in row["seconds"]][-2:], tool)
    return factor * size**slope


def ratio(row: Facts, one: str, other: str) -> float | None:
    """The time of one tool over that of another."""
    times = [row["tools"].get(tool, {}).get("seconds") for tool in (one, other)]
    return times[0] / times[1] if all(times) else None


def report(found: Facts) -> str:
    """The tables, in Markdown."""
    parts = [seconds_table(found["models"]), results_table(found["models"])] if found["models"] else []
    parts += [growth_table(found["growth"])] if found["growth"] else []
    lines = [*(f"SKIP {line}" for line in found["skipped"]), *problems(found["models"])]
    return "\n\n".join([*parts, *lines])


def problems(rows: Sequence[Facts]) -> list[str]:
    """What stands behind each FAIL, where a tool gave up, and each BROKEN, where its result is no model that runs."""
    tools = [(f"{tool}, {row['model']}", found) for row in rows for tool, found in row["tools"].items()]
    failed = [f"FAIL {what}: {found['fails']}" for what, found in tools if "fails" in found]
    return failed + [f"BROKEN {what}: {found['broken']}" for what, found in tools if "broken" in found]


def seconds_table(rows: Sequence[Facts]) -> str:
    pairs = [("vsfix", "onnxslim"), ("vsfix, compared", "onnxslim, compared")]
    heads = ["seconds", "nodes", "MB", *TOOLS, *(f"{one} / {other}" for one, other in pairs)]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for row in rows:
        cells = [row["model"], f"{row['nodes']:,}", f"{row['megabytes']:.1f}"]
        cells += [seconds_cell(row["tools"].get(tool)) for tool in TOOLS]
        cells += ["-" if (value := ratio(row, *pair)) is None else f"{value:.2f}" for pair in pairs]
        lines.append("| " + " | ".join(cells) + " |")
    means = ["-" if (value := mean_ratio(rows, *pair)) is None else f"{value:.2f}" for pair in pairs]
    return "\n".join([*lines, "| geometric mean |" + " |" * (2 + len(TOOLS)) + " " + " | ".join(means) + " |"])


def mean_ratio(rows: Sequence[Facts], one: str, other: str) -> float | None:
    """The geometric mean over the models that both tools can do."""
    values = [value for row in rows if (value := ratio(row, one, other)) is not None]
    return statistics.geometric_mean(values) if values else None


def seconds_cell(row: Facts | None) -> str:
    if row is None:
        return "SKIP"
    return "FAIL" if "fails" in row else f"{row['seconds']:.3f}"


def results_table(rows: Sequence[Facts]) -> str:
    heads = ["nodes left (largest difference)", "largest output", *TOOLS]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for row in rows:
        largest = next((tool["largest"] for tool in row["tools"].values() if "largest" in tool), math.nan)
        cells = [row["model"], f"{largest:.3g}", *(result_cell(row["tools"].get(tool)) for tool in TOOLS)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def result_cell(row: Facts | None) -> str:
    if row is None:
        return "SKIP"
    if "fails" in row:
        return "FAIL"
    return f"{row['nodes']:,} ({row['difference']:.1e})" if "difference" in row else "BROKEN"


def growth_table(rows: Sequence[Facts]) -> str:
    tools = list(rows[0]["seconds"])
    heads = ["chain, nodes", *(f"{tool}, s" for tool in tools)]
    lines = ["| " + " | ".join(heads) + " |", "| ---: " * len(heads) + "|"]
    for row in rows:
        cells = [f"{row['seconds'][tool]:.3f}" if tool in row["seconds"] else "SKIP: too long" for tool in tools]
        lines.append(f"| {row['nodes']:,} | " + " | ".join(cells) + " |")
    powers = [f"{power_law(rows, tool)[0]:.2f}" for tool in tools]
    return "\n".join([*lines, "| exponent | " + " | ".join(powers) + " |"])


def missed(found: Facts) -> list[str]:
    """The targets that are missed, and each model that a tool of ours breaks."""
    misses = []
    mean = mean_ratio(found["models"], "vsfix", "onnxslim")
    if mean is not None and mean > TARGET_RATIO:
        misses.append(f"{mean:.2f} times the time of onnxslim, wanted {TARGET_RATIO:g}")
    for row in found["models"]:
        if row["megabytes"] >= LARGE and (value := ratio(row, "vsfix", "onnxslim") or 0) > 1:
            misses.append(f"{row['model']}: {value:.2f} times the time of onnxslim, wanted 1")
    for row in found["growth"]:
        if row["nodes"] == TARGET_NODES and row["seconds"]["vsfix"] > TARGET_SECONDS:
            misses.append(f"{row['seconds']['vsfix']:.2f} s for {TARGET_NODES:,} nodes, wanted {TARGET_SECONDS:g}")
    power = power_law(found["growth"], "vsfix")[0]
    if power > TARGET_EXPONENT:
        misses.append(f"the time grows with the power {power:.2f} of the nodes, wanted 1")
    broken = [row["model"] for row in found["models"] if "difference" not in row["tools"]["vsfix"]]
    return misses + [f"vsfix breaks {model}" for model in broken]


if __name__ == "__main__":
    sys.exit(main())
