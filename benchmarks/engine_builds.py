"""Engines of the ladder and of networks of the world: which file builds in which precision, and what stops the others.

    python benchmarks/ladder_train.py ladder                            # trains the networks, where that is not done
    python benchmarks/engine_builds.py engine-builds --ladder ladder    # builds what is missing, prints the table
    python benchmarks/engine_builds.py engine-builds --real real --only crepe
    python benchmarks/engine_builds.py engine-builds                    # prints what was built

Each file is repaired and folded (`match` without its refinement, 64 rows, of a network of the world 256), cast by
`vsfix optimize --precision`, and built by `vsfix build --runtime tensorrt-rtx` with `--precision`, which refuses a file
of other types: no GPU is needed. The shapes go from one sample to 64, or are those of the file. int8 and fp8 need
ModelOpt (`vsfix doctor --install quantizer`). The networks of the ladder are those of the first seed; those of the
world come from `real_networks.py` and need what that needs. What a step says is a line of engine-builds/results.jsonl,
and is not done again. Exit code 1 where something was not built.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import onnx
from real_entry import Missing, Network, Place

import vsfix
from vsfix.graph_passes.io.model_file import read_model

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
TARGETS = {"fp8": "sm89,sm120"}  # the others have no arithmetic for it
ALL_TARGETS = "sm80,sm86,sm89,sm120"
ROWS, LARGEST_BATCH = 64, 64
Rows = Mapping[str, npt.NDArray[Any]]
Found = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """One file: its name in the table; what loads it, unlabelled rows for it, and the noise that it does not show."""

    name: str
    load: Callable[[], tuple[onnx.ModelProto, Rows, Sequence[str]]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the results are kept")
    parser.add_argument("--ladder", type=Path, help="the folder of benchmarks/ladder.py")
    parser.add_argument("--real", type=Path, help="the folder of benchmarks/real_networks.py")
    parser.add_argument("--only", default="", help="files whose name contains this")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "results.jsonl"
    for subject in (*ladder_files(options.ladder), *real_files(options.real)):
        if options.only.lower() in subject.name.lower():
            done = read(path)
            wanted = [name for name in options.precisions if (subject.name, name) not in done]
            for found in build_all(subject, wanted):
                told = found.get("error") or f"{found['bytes']} bytes, {found['seconds']} s"
                print(f"{found['name']}, {found['precision']}: {told}", file=sys.stderr, flush=True)
                with path.open("a") as file:
                    file.write(json.dumps(found) + "\n")
    found = read(path)
    print(table(found))
    return 1 if any("error" in line for line in found.values()) else 0


def ladder_files(folder: Path | None) -> Iterator[Subject]:
    """The networks of the ladder that are trained, those of the first seed."""
    if folder is None:
        return
    from ladder_networks import NETWORKS, Rung
    from ladder_tasks import INPUT

    def load(rung: Rung) -> tuple[onnx.ModelProto, Rows, Sequence[str]]:
        model = read_model(folder / f"{rung.stem}.onnx")
        inputs = rung.data(model).inputs
        chosen = np.random.default_rng(0).permutation(len(inputs))[:ROWS]
        return model, {INPUT: inputs[chosen]}, ()

    for rung in NETWORKS:
        if rung.seed == 0 and (folder / f"{rung.stem}.onnx").exists():
            yield Subject(rung.name, lambda rung=rung: load(rung))  # type: ignore[misc]


def real_files(folder: Path | None) -> Iterator[Subject]:
    """The networks of `real_networks`."""
    if folder is None:
        return
    from real_networks import NETWORKS

    def load(network: Network) -> tuple[onnx.ModelProto, Rows, Sequence[str]]:
        case = network.make(Place(folder / "cache"))
        return case.model, case.rows, case.noise

    for network in NETWORKS:
        yield Subject(network.name, lambda network=network: load(network))  # type: ignore[misc]


def build_all(subject: Subject, precisions: Sequence[str]) -> Iterator[Found]:
    """A file repaired, folded, cast and built; what is refused is told in the words of who refused it."""
    if not precisions:
        return
    try:
        model, rows, noise = subject.load()
        repaired = vsfix.optimize(model, dict(rows), method="match", refine=False, noise=noise).model
    except Missing as missing:  # the wheel of a network of the world; the message is the line that fetches it
        print(f"{subject.name}: skipped: {missing}", file=sys.stderr, flush=True)
        return
    except vsfix.VsfixError as error:
        for precision in precisions:
            yield {"name": subject.name, "precision": precision, "step": "repair", "error": told(error)}
        return
    for precision in precisions:
        yield {"name": subject.name, "precision": precision} | build_one(repaired, rows, precision)


def build_one(repaired: onnx.ModelProto, rows: Rows, precision: str) -> Found:
    """One engine, or the step that failed and its words."""
    step, started = "cast", time.perf_counter()
    try:
        cast = repaired
        if precision != "fp32":
            cast = vsfix.optimize(repaired, dict(rows), method="none", precision=precision).model
        step = "build"
        shapes = shapes_of(cast, rows)
        targets = TARGETS.get(precision, ALL_TARGETS)
        engine = vsfix.build(cast, runtime="tensorrt-rtx", targets=targets, precision=precision, **shapes)
    except vsfix.VsfixError as error:
        return {"step": step, "error": told(error)}
    report = engine.report
    return {
        "version": report.version,
        "targets": list(report.targets),
        "status": engine.status,
        "warnings": len(engine.warnings),
        "bytes": len(engine.plan),
        "seconds": round(time.perf_counter() - started, 1),
        "network": report.precision.network,
        "read_back": [report.read_back.status, report.read_back.largest_error],
    }


def shapes_of(model: onnx.ModelProto, rows: Rows) -> dict[str, dict[str, tuple[int, ...]]]:
    """The smallest, usual and largest shapes of the inputs with a free side: 1 to 64 samples, shaped as the rows."""
    weights = {tensor.name for tensor in model.graph.initializer}
    sides = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.input
        if value.name not in weights
    }
    free = [name for name, found in sides.items() if found and not all(found)]
    if not free:
        return {}
    batches = {"min_shapes": 1, "opt_shapes": LARGEST_BATCH, "max_shapes": LARGEST_BATCH}
    return {
        key: {name: (sides[name][0] or batch, *rows[name].shape[1:]) for name in free} for key, batch in batches.items()
    }


def told(error: Exception) -> str:
    """An error in one line, without the names of temporary files."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def read(path: Path) -> dict[tuple[str, str], Found]:
    """What was done, the last word on each."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(line["name"], line["precision"]): line for line in lines}


def table(found: Mapping[tuple[str, str], Found]) -> str:
    """Markdown: a row for each file, a column for each precision; below it the words of each refusal, once."""
    shown = [name for name in PRECISIONS if any(key[1] == name for key in found)]
    lines = [f"| file | {' | '.join(shown)} |", "| --- " * (len(shown) + 1) + "|"]
    words: dict[str, int] = {}
    for name in dict.fromkeys(key[0] for key in found):
        cells = []
        for precision in shown:
            line = found.get((name, precision))
            if line is not None and "error" in line:
                number = words.setdefault(f"{line['step']}: {line['error']}", len(words) + 1)
                cells.append(f"no ({number})")
            else:
                cells.append("-" if line is None else f"{line['bytes'] / 2**20:.2f} MiB")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    built = [line for line in found.values() if "error" not in line]
    errors = [error for line in built if (error := line["read_back"][1]) is not None]
    worst = max(errors, default=float("nan"))
    versions = ", ".join(sorted({line["version"] for line in built}))
    lines += [
        "",
        f"{len(built)} of {len(found)} engines were built by TensorRT-RTX {versions}; read back from each: float64 to "
        f"{worst:.1e}.",
        "",
        *(f"{number}. {text}" for text, number in words.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
