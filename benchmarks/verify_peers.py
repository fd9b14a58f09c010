"""`vsfix verify` beside `polygraphy run --onnxrt`, for what both do: two ONNX models on the same random input.

    pip install polygraphy
    python benchmarks/verify_peers.py --out verify_peers.json

    the same     the model against a copy of it
    folded       against what `vsfix optimize --method none` makes of it: the same numbers, rounded otherwise
    wrong by E   against itself with E added to one number of the kernel in the middle
    fp16         against its cast by `vsfix optimize --precision fp16`

The model is a PreResNet with Dropout marked, random weights, and the statistics of a random batch. Polygraphy runs the
reference and saves its outputs, then runs the other model and compares: two processes, whose times are added. vsfix
does it in one; where the models differ it looks for the layer that differs, which --no-layers leaves out. Both keep
their own tolerances: Polygraphy 1e-5 for each element, absolute or relative; vsfix the signal to noise that the
precision of the files lets expect, and the share of decisions. The runs take turns; the times are medians of whole
processes, by the clock and of the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from random_network import IMAGE, export_random_network

from vsfix import optimize
from vsfix.graph_passes.errors import first_line
from vsfix.pipeline.host.environment import describe_environment

LOADER = """import numpy as np

def load_data():
    with np.load({path!r}) as arrays:
        yield dict(arrays)
"""
POLYGRAPHY = "polygraphy run --onnxrt"
TOOLS = ("vsfix verify", "vsfix verify --no-layers", POLYGRAPHY)

Facts = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    tools = [tool for tool in TOOLS if tool != POLYGRAPHY or find_spec("polygraphy")]
    facts: Facts = {"environment": describe_environment(), "model": options.model, "samples": options.samples}
    if POLYGRAPHY in tools:
        facts["environment"]["polygraphy"] = version("polygraphy")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cases = prepare(folder, options)
        runs = [
            run(folder, case, tool) for turn in range(options.repeat) for case in cases for tool in order(tools, turn)
        ]
    facts["rows"] = [summary(runs, case, tool) for case in cases for tool in tools]
    if options.out:
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(table(facts))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preresnet-26", help="a network of vsfix (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=256, help="(default: %(default)s)")
    parser.add_argument("--error", type=float, default=1e-2, help="what is added (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    return parser.parse_args(arguments)


def order(tools: Sequence[str], turn: int) -> list[str]:
    """The tools, another one first in each turn."""
    return [*tools[turn % len(tools) :], *tools[: turn % len(tools)]]


def prepare(folder: Path, options: argparse.Namespace) -> list[str]:
    """Writes the input, the reference and each case; returns the names of the cases."""
    rng = np.random.default_rng(0)
    np.savez(folder / "input.npz", input=rng.standard_normal((options.samples, *IMAGE), dtype=np.float32))
    (folder / "loader.py").write_text(LOADER.format(path=str(folder / "input.npz")))
    reference = folder / "reference.onnx"
    export_random_network(options.model, reference)
    model = onnx.load(reference)
    wrong = f"wrong by {options.error:g}"
    onnx.save(model, folder / "the same.onnx")
    onnx.save(planted(model, options.error), folder / f"{wrong}.onnx")
    for name, precision in (("folded", None), ("fp16", "fp16")):
        repaired = optimize(reference, method="none", precision=precision, batch_size=options.samples)
        repaired.save(folder / f"{name}.onnx")
    return ["the same", "folded", wrong, "fp16"]


def planted(model: onnx.ModelProto, error: float) -> onnx.ModelProto:
    """A copy in which one number of the kernel in the middle is wrong."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kernels = [tensor for tensor in copy.graph.initializer if len(tensor.dims) == 4]
    kernel = kernels[len(kernels) // 2]
    values = numpy_helper.to_array(kernel).copy()
    values[tuple(side // 2 for side in values.shape)] += error
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))
    return copy


def command(name: str) -> str:
    """The program of this Python's environment."""
    return str(Path(sys.executable).with_name(name))


def run(folder: Path, case: str, tool: str) -> Facts:
    """One comparison by one tool."""
    model, reference, data = (str(folder / name) for name in (f"{case}.onnx", "reference.onnx", "input.npz"))
    if tool != POLYGRAPHY:
        line = [*shlex.split(tool), model, "--against", reference, "--data", data, "--json", "-"]
        found = process(line)
        facts = {"says": of_vsfix(found)}
    else:
        loader, outputs = str(folder / "loader.py"), str(folder / "outputs.json")
        start = ["polygraphy", "run", "--onnxrt", "--data-loader-script", loader]
        first = process([*start, reference, "--save-outputs", outputs])
        found = process([*start, model, "--load-outputs", outputs])
        facts = {"says": of_polygraphy(found) if first["code"] == 0 else first["text"]}
        found |= {key: first[key] + found[key] for key in ("wall", "processor")}
    print(f"{case}, {tool}: {found['wall']:.2f} s, exit code {found['code']}", file=sys.stderr)
    return {"case": case, "tool": tool, **facts, **{key: found[key] for key in ("code", "wall", "processor")}}


def process(line: Sequence[str]) -> Facts:
    """One program of this environment: its exit code, output, and seconds by the clock and of the processor."""
    started, before = time.perf_counter(), os.times()
    done = subprocess.run([command(line[0]), *line[1:]], capture_output=True, text=True)
    wall, after = time.perf_counter() - started, os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "code": done.returncode,
        "text": done.stdout + done.stderr,
        "out": done.stdout,
        "wall": wall,
        "processor": processor,
    }


def of_vsfix(found: Facts) -> str:
    """What `--json -` says of the candidate."""
    if not found["out"]:
        return first_line(RuntimeError(found["text"]))
    result = json.loads(found["out"])["results"][0]
    row, decisions = next(iter(result["outputs"].values())), result["decisions"]
    snr = "exact" if row["snr_db"] is None or row["snr_db"] == float("inf") else f"{row['snr_db']:.1f} dB"
    said = f"{result['status']}: {snr}, largest error {row['max_abs']:.2g}"
    if decisions is not None:
        said += f", {100 * decisions['agreement']:.2f} % agree"
    return said if result["layers"] is None else f"{said}; {departure(result['layers'])}"


def departure(layers: Facts) -> str:
    """The first layer that differs, as `--json` names it."""
    first = layers["first"]
    return f"first differs {first['operator']} '{first['node']}'" if first else layers["reason"]


def of_polygraphy(found: Facts) -> str:
    """The verdict, the tolerance that it would have passed with, and the largest difference."""
    required = re.search(r"Minimum Required Tolerance: elemwise error \| \[abs=(\S+)\] OR \[rel=(\S+)\]", found["text"])
    verdict = "PASSED" if found["code"] == 0 else "FAILED"
    if required is None:
        return f"{verdict}: {first_line(RuntimeError(found['text']))}"
    return f"{verdict}: needs a tolerance of {required[1]} absolute or {required[2]} relative"


def summary(runs: Sequence[Facts], case: str, tool: str) -> Facts:
    """The medians of one tool on one case, and what it said."""
    chosen = [row for row in runs if (row["case"], row["tool"]) == (case, tool)]
    medians = {key: statistics.median(row[key] for row in chosen) for key in ("wall", "processor")}
    return {"case": case, "tool": tool, "code": chosen[0]["code"], "says": chosen[0]["says"], **medians, "runs": chosen}


def table(facts: Facts) -> str:
    """One row for each case and tool, in Markdown."""
    lines = [
        "| model | tool | seconds | of the processor | exit code | says |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in facts["rows"]:
        cells = (
            row["case"],
            f"`{row['tool']}`",
            f"{row['wall']:.2f}",
            f"{row['processor']:.2f}",
            str(row["code"]),
            row["says"],
        )
        lines.append("| " + " | ".join(cells) + " |")
    if "polygraphy" not in facts["environment"]:
        lines.append(f"\nSKIP {POLYGRAPHY}: not installed, pip install polygraphy")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
