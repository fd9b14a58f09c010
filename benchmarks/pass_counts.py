"""What the passes of vsfix and of its neighbours leave of a graph: BatchNorms, constants, shape operators, nodes.

    pip install onnxslim onnxsim onnxscript timm torchvision   # builds that fit the installed torch
    python benchmarks/pass_counts.py --models models --out pass_counts.json

    vsfix              what `vsfix optimize --method none` does, as in `pass_peers`
    onnxslim, onnxsim, onnxscript     as there
    ORT basic          the file that ONNX Runtime writes at ORT_ENABLE_BASIC, for the CPU
    ORT extended       at ORT_ENABLE_EXTENDED, whose fused operators of its own no other runtime knows: its nodes are
                       not compared

The graphs are sixteen architectures of torchvision and timm as torch writes them by `dynamo=True, optimize=False` with
a batch of any size, and small ones with weights that are computed from constants. Counted are, bodies of If, Loop and
Scan included,

    BatchNorms         BatchNormalization
    constants          Constant, and what reads constants alone
    shape operators    what only moves, cuts or types elements: Shape, Reshape, Expand, Slice, Transpose, Cast and so on
    nodes              all

Each result is run in ONNX Runtime without its own optimisations against the graph that went in; what differs by more
than a thousandth of the largest output, or does not run, is no competitor. TensorRT-RTX's parser is asked about what
vsfix makes where it is installed. Exit code 1 where vsfix leaves more of one of the first three than the best of the
others, where its result is wrong, and where the parser refuses a file of an architecture.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
from pass_peers import Facts, Model, onnxscript, onnxsim, onnxslim, outputs, vsfix_passes, write

from vsfix.graph_passes.errors import first_line
from vsfix.graph_passes.io.model_file import read_model
from vsfix.pipeline.host.environment import describe_environment
from vsfix.pipeline.tensorrt.library import check_parser
from vsfix.trainers.export.onnxruntime_library import import_onnxruntime

ARCHITECTURES = (
    *("torchvision/resnet18", "torchvision/densenet121", "torchvision/mobilenet_v3_small"),
    *("torchvision/shufflenet_v2_x0_5", "torchvision/efficientnet_b0", "torchvision/googlenet"),
    *("torchvision/regnet_y_400mf", "timm/levit_128s", "timm/repvgg_a0", "timm/xcit_nano_12_p16_224"),
    *("timm/hrnet_w18_small", "timm/coatnet_pico_rw_224", "timm/ghostnet_050", "timm/botnet26t_256"),
    *("timm/edgenext_xx_small", "timm/efficientvit_b0"),
)
SHAPE_OPERATORS = frozenset(
    "Shape Size ConstantOfShape Expand Reshape Flatten Squeeze Unsqueeze Gather Slice Concat Split SplitToSequence "
    "SequenceAt Cast CastLike Range Tile Identity Transpose".split()
)
COMPARED = ("batch norms", "constants", "shape operators")
LARGEST_DIFFERENCE = 1e-3  # of the largest output; deep networks of random weights amplify the last digit

CONV = "h = Conv (x, w)\n y = BatchNormalization (h, g, b, m, v)"
BRANCHES = """<then_branch = t () => (float[6, 4, 3, 3] p) { p = Identity (W) },
    else_branch = e () => (float[6, 4, 3, 3] n) { n = Neg (W) }>"""
CHAINS = {
    "weight in float16": f"w = Cast <to: int = 1> (half)\n {CONV}",
    "weight norm": f"n = ReduceL2 <keepdims: int = 1> (W, places)\n d = Div (W, n)\n w = Mul (d, gain)\n {CONV}",
    "weight, transposed": f"w = Transpose <perm: ints = [1, 0, 2, 3]> (turned)\n {CONV}",
    "weight, reshaped": f"w = Reshape (flat, shape)\n {CONV}",
    "weight of one value": f"w = ConstantOfShape <value: tensor = float[1] {{0.5}}> (shape)\n {CONV}",
    "weight of a branch": f"w = If (yes) {BRANCHES}\n {CONV}",
    "weight of a compared branch": f"k = Less (one, two)\n w = If (k) {BRANCHES}\n {CONV}",
    "bias, squeezed": "q = Squeeze (row, zero)\n h = Conv (x, W, q)\n y = BatchNormalization (h, g, b, m, v)",
    "bias of zeros": "q = ConstantOfShape (six)\n h = Conv (x, W, q)\n y = BatchNormalization (h, g, b, m, v)",
    "no scale and shift": """s = Shape (m)\n c = CastLike (one, x)\n o = Expand (c, s)\n z = CastLike (zero, x)
        e = Expand (z, s)\n h = Conv (x, W)\n y = BatchNormalization (h, o, e, m, v)""",
    "dead nodes": f"w = Identity (W)\n {CONV}\n d1 = Exp (x)\n d2 = Abs (d1)",
    "a pool over computed axes": f"""{CONV.replace("y =", "r =").replace("(x, w)", "(x, W)")}
        a = Reshape (sides, six1)\n y = ReduceMean (r, a)""",
    "a body": """y = Loop (two, yes, x) <body = l (int64 i, bool ci, float[N, 4, 8, 8] c) =>
        (bool co, float[N, 4, 8, 8] r) { co = Identity (ci)\n d = Identity (c)\n s = Mul (gain, gain)
        u = ReduceSum <keepdims: int = 0> (s)\n r = Mul (d, u) }>""",
}


def ort(level: str) -> Callable[[Model], Model]:
    """ONNX Runtime, which writes what it would run."""

    def optimize(model: Model) -> Model:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.log_severity_level = 4
        with TemporaryDirectory() as folder:
            options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return onnx.load(options.optimized_model_filepath)

    return optimize


TOOLS: dict[str, tuple[str, Callable[[Model], Model]]] = {
    "vsfix": ("vsfix", vsfix_passes),
    "onnxslim": ("onnxslim", onnxslim),
    "onnxsim": ("onnxsim", onnxsim),
    "onnxscript": ("onnxscript", onnxscript),
    "ORT basic": ("onnxruntime", ort("ORT_ENABLE_BASIC")),
    "ORT extended": ("onnxruntime", ort("ORT_ENABLE_EXTENDED")),
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    tools = [tool for tool, (package, _) in TOOLS.items() if find_spec(package) is not None]
    packages = {TOOLS[tool][0] for tool in tools}
    found: Facts = {
        "environment": describe_environment() | {name: version(name) for name in sorted(packages)},
        "skipped": [f"{tool}: not installed, pip install {TOOLS[tool][0]}" for tool in TOOLS if tool not in tools],
        "graphs": [],
    }
    with TemporaryDirectory() as temporary:
        for name, model in graphs(options, Path(temporary), found["skipped"]):
            print(name, file=sys.stderr)
            found["graphs"].append(compare(name, model, tools))
            write(options.out, found)
    print(report(found, tools))
    misses = missed(found["graphs"])
    print("\n" + "\n".join([f"MISS {miss}" for miss in misses] or ["every target that was measured is met"]))
    return 1 if misses else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="*", default=ARCHITECTURES, help="(default: %(default)s)")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="of the exported architectures")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    return parser.parse_args(arguments)


def graphs(options: argparse.Namespace, temporary: Path, skipped: list[str]) -> Iterator[tuple[str, Model]]:
    """The graphs by name; what can't be made here is named in `skipped`."""
    for name in options.architectures:
        path = (options.models or temporary) / f"{name.replace('/', '-')}.onnx"
        if not path.exists():
            if find_spec("timm") is None or find_spec("torchvision") is None:
                skipped.append(f"{name}: pip install timm torchvision")
                continue
            export_plain(name, path)
        yield name, read_model(path)
    for name in CHAINS:
        yield name, chain(name)


def export_plain(name: str, path: Path) -> None:
    """Writes a network as torch does without optimisations, its BatchNorms with the statistics of random images."""
    import torch
    from architecture_catalogue import build
    from architecture_walk import fitting_shape, make_images, set_statistics

    torch.manual_seed(0)
    net = build(name)
    images = make_images(16, fitting_shape(net))
    set_statistics(net, images)
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        sides = {0: torch.export.Dim("batch")}
        program = torch.export.export(net.eval(), (images[:2],), dynamic_shapes=(sides,), strict=False)
        exported = torch.onnx.export(
            program, dynamo=True, optimize=False, verbose=False, dynamic_shapes=({0: "batch"},)
        )
    exported.save(path, external_data=False)


def chain(name: str) -> Model:
    """A small graph; constants that it does not read are left out."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, 4, 3, 3)).astype(np.float32)
    numbers = {"zero": [0], "one": 1, "two": 2, "six": [6], "six1": [-1], "shape": [6, 4, 3, 3], "places": [1, 2, 3]}
    stored: dict[str, Any] = {key: np.array(value) for key, value in numbers.items()}
    stored |= {"W": weight, "half": weight.astype(np.float16), "turned": weight.transpose(1, 0, 2, 3).copy()}
    stored |= {"flat": weight.reshape(6, -1), "yes": np.array(True), "sides": np.array([[2, 3]])}
    stored |= {"row": weight[:1, :, 0, 0].repeat(2, 1)[:, :6], "gain": weight[:, :1, :1, :1].copy()}
    stored |= {key: rng.uniform(0.5, 1.5, 6).astype(np.float32) for key in "gbmv"}
    shape = "float[N, 4, 8, 8]" if name == "a body" else "float[N, 6, A, B]"
    text = f"(float[N, 4, 8, 8] x) => ({shape} y) {{ {CHAINS[name]} }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\nmain {text}')
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    model.graph.initializer.extend(onnx.numpy_helper.from_array(stored[key], key) for key in stored if key in words)
    onnx.checker.check_model(model, full_check=True)
    return model


def compare(name: str, model: Model, tools: Sequence[str]) -> Facts:
    """Every tool on one graph."""
    sides = [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim][1:]
    images = np.random.default_rng(1).standard_normal((2, *sides), dtype=np.float32)
    inputs = {model.graph.input[0].name: images}
    expected = outputs(model, inputs)
    rows: dict[str, Facts] = {}
    for tool in tools:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        try:
            with redirect_stdout(sys.stderr):
                result = TOOLS[tool][1](copy)
            difference = float(np.abs(outputs(result, inputs) - expected).max() / np.abs(expected).max())
            rows[tool] = counts(result) | {"difference": difference}
        except Exception as error:  # each tool has its own errors
            rows[tool] = {"fails": first_line(error)}
            continue
        if tool == "vsfix" and (check := check_parser(result)) is not None:
            rows[tool]["parser"] = check.line
    return {"graph": name, "given": counts(model), "tools": rows}


def counts(model: Model) -> Facts:
    """What is counted."""
    known: set[str] = set()
    operators: Counter[str] = Counter()
    constants = 0
    for graph in bodies(model.graph):
        known.update(tensor.name for tensor in graph.initializer)
        for node in graph.node:
            operators[node.op_type] += 1
            nested = any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute)
            given = [name for name in node.input if name]
            if node.op_type == "Constant" or (given and not nested and all(name in known for name in given)):
                constants += 1
                known.update(node.output)
    shape = sum(count for operator, count in operators.items() if operator in SHAPE_OPERATORS)
    numbers = (operators["BatchNormalization"], constants, shape)
    return dict(zip(COMPARED, numbers, strict=True)) | {"nodes": operators.total()}


def bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from bodies(attribute.g)


def is_right(row: Mapping[str, Any]) -> bool:
    """Whether a result computes what the graph did."""
    return "difference" in row and row["difference"] <= LARGEST_DIFFERENCE


def report(found: Facts, tools: Sequence[str]) -> str:
    """The table in Markdown, and what stands behind each FAIL."""
    heads = ["BatchNorms, constants, shape operators; nodes", "as given", *tools]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for row in found["graphs"]:
        cells = [row["graph"], cell(row["given"]), *(cell(row["tools"][tool]) for tool in tools)]
        lines.append("| " + " | ".join(cells) + " |")
    said = [f"SKIP {line}" for line in found["skipped"]]
    for row in found["graphs"]:
        said += [f"FAIL {tool}, {row['graph']}: {of['fails']}" for tool, of in row["tools"].items() if "fails" in of]
    checks = [row["tools"]["vsfix"].get("parser") for row in found["graphs"]]
    if any(checks):
        taken = sum(check is not None and check.startswith("PASS") for check in checks)
        said.append(f"TensorRT's parser takes {taken} of the {len(checks)} files of vsfix")
    return "\n".join([*lines, "", *said])


def cell(row: Mapping[str, Any]) -> str:
    if "fails" in row:
        return "FAIL"
    numbers = ", ".join(str(row[key]) for key in COMPARED) + f"; {row['nodes']}"
    return numbers if "difference" not in row or is_right(row) else f"WRONG ({numbers})"


def missed(rows: Sequence[Facts]) -> list[str]:
    """The graphs on which something is left that another tool takes away, or on which vsfix is wrong."""
    misses = []
    for row in rows:
        ours, others = row["tools"]["vsfix"], [of for tool, of in row["tools"].items() if tool != "vsfix"]
        if not is_right(ours):
            misses.append(f"{row['graph']}: {ours.get('fails', 'vsfix gives other outputs')}")
            continue
        best = {key: min((of[key] for of in others if is_right(of)), default=ours[key]) for key in COMPARED}
        misses += [f"{row['graph']}: {ours[key]} {key}, best {best[key]}" for key in COMPARED if ours[key] > best[key]]
        if row["graph"] in ARCHITECTURES and ours.get("parser", "PASS").startswith("WARN"):
            misses.append(f"{row['graph']}: {ours['parser']}")
    return misses


if __name__ == "__main__":
    sys.exit(main())
