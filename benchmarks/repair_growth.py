"""How the time of a repair grows with the nodes of a file, with the samples, and with its BatchNorms.

    python benchmarks/repair_growth.py --out growth.json

    nodes         8 BatchNorms behind Dropout, and more and more elementwise nodes; `--no-refine`, 32 rows
    samples       8 of them; `--method exact` over all of the rows
    BatchNorms    more and more of them, each behind Dropout; `--no-refine`, 32 rows

Networks of random weights, 16 wide, with statistics that are true under their noise. Seconds of the processor of one
call of `vsfix.optimize`, the sizes in turns, and the median of the turns. The exponent is that of the last two sizes: 1
is linear. Exit code 1 where one is over its bound.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import vsfix
from vsfix.pipeline.host.environment import describe_environment

WIDTH, FEW, ROWS = 16, 8, 32
SIZES = {
    "nodes": (200, 1000, 5000, 20_000),
    "samples": (1000, 10_000, 30_000, 100_000),
    "BatchNorms": (25, 50, 100, 200, 400),
}
LARGEST_EXPONENT = 1.15
RATIO, TRUE_ROWS = 0.2, 4000  # of the Dropout; the rows that the statistics are of

Facts = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--only", choices=sorted(SIZES), nargs="+", default=list(SIZES))
    parser.add_argument("--shrink", type=int, default=1, help="divides the sizes, to try it out (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    found: dict[str, Facts] = {}
    for what in options.only:
        sizes = [max(size // options.shrink, FEW) for size in SIZES[what]]
        turns = [[seconds(what, size) for size in sizes] for _ in range(options.repeat)]
        medians = [statistics.median(times) for times in zip(*turns, strict=True)]
        found[what] = {"sizes": sizes, "seconds": medians, "exponent": exponent(sizes[-2:], medians[-2:])}
        print(table(what, found[what]), flush=True)
    if options.out:
        options.out.write_text(json.dumps({"environment": describe_environment(), "found": found}, indent=1) + "\n")
    slow = [what for what, facts in found.items() if facts["exponent"] > LARGEST_EXPONENT]
    print("\n".join(f"MISS {what}: the time grows faster than they do" for what in slow) or "\nall grow in step")
    return 1 if slow else 0


def seconds(what: str, size: int) -> float:
    """The time of one repair, of the processor."""
    model = chain(size if what == "BatchNorms" else FEW, size if what == "nodes" else 0)
    rows = np.random.default_rng(1).normal(size=(size if what == "samples" else ROWS, WIDTH)).astype(np.float32)
    started = time.process_time()
    if what == "samples":
        vsfix.optimize(model, rows, method="exact")
    else:
        vsfix.optimize(model, rows, method="match", refine=False)
    return time.process_time() - started


def chain(batch_norms: int, nodes: int = 0) -> onnx.ModelProto:
    """MatMul, Dropout, BatchNorm and Relu, over and over, and between them the other nodes, shared out evenly."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(TRUE_ROWS, WIDTH))
    constants = {"ratio": np.array(RATIO, np.float32), "off": np.array(False), "step": np.full(WIDTH, 1e-3, np.float32)}
    made: list[onnx.NodeProto] = []
    name = "x"

    def add(operator: str, *inputs: str, **attributes: Any) -> str:
        made.append(helper.make_node(operator, inputs, [f"t{len(made)}"], f"n{len(made)}", **attributes))
        return made[-1].output[0]

    for index in range(batch_norms):
        constants[f"w{index}"] = (rng.normal(size=(WIDTH, WIDTH)) * (1.6 / WIDTH**0.5)).astype(np.float32)
        z = x @ constants[f"w{index}"] * (rng.random(x.shape) < 1 - RATIO) / (1 - RATIO)
        stored = {"gamma": np.ones(WIDTH), "beta": np.zeros(WIDTH), "mean": z.mean(axis=0), "var": z.var(axis=0)}
        x = np.maximum((z - stored["mean"]) / np.sqrt(stored["var"] + 1e-5), 0)
        constants |= {f"{part}{index}": values.astype(np.float32) for part, values in stored.items()}
        name = add("Dropout", add("MatMul", name, f"w{index}"), "ratio", "off")
        name = add("Relu", add("BatchNormalization", name, *(f"{part}{index}" for part in stored)))
        for number in range((nodes - 4 * batch_norms) // batch_norms):
            name = add("Neg", name) if number % 2 else add("Add", name, "step")
            x = -x if number % 2 else x + constants["step"]
    constants["head"] = rng.normal(size=(WIDTH, 4)).astype(np.float32)
    add("MatMul", name, "head")
    made[-1].output[0] = "y"
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ("n", c)) for n, c in (("x", WIDTH), ("y", 4))]
    initializers = [numpy_helper.from_array(values, key) for key, values in constants.items()]
    graph = helper.make_graph(made, "chain", sides[:1], sides[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def exponent(sizes: Sequence[int], times: Sequence[float]) -> float:
    """The power of the size that the time grows with, between two sizes."""
    return math.log(times[1] / times[0]) / math.log(sizes[1] / sizes[0])


def table(what: str, facts: Facts) -> str:
    """In Markdown."""
    sizes, times = facts["sizes"], facts["seconds"]
    lines = [f"\n| {what} | seconds | a thousand |", "| ---: | ---: | ---: |"]
    for size, taken in zip(sizes, times, strict=True):
        lines.append(f"| {size:,} | {taken:.2f} | {1000 * taken / size:.3f} |")
    return "\n".join([*lines, f"| exponent | {facts['exponent']:.2f} | |"])


if __name__ == "__main__":
    sys.exit(main())
