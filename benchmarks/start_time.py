"""How long vsfix takes to start, and the memory for it, beside its neighbours and Python alone.

    pip install polygraphy onnxslim
    python benchmarks/start_time.py --out start_time.json

Whole processes, from their start to their end, one after the other in turns: the median time by the clock and of the
processor, and the peak of resident memory that the kernel counts for the process (getrusage). The model to inspect is
a PreResNet-20 with random weights. Exit code 1 where `vsfix --help` takes longer than its target.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from random_network import export_random_network

from vsfix.pipeline.host.environment import describe_environment

MODEL = "MODEL.onnx"
PYTHON = ("python", "-c", "pass")
COMMANDS = (
    PYTHON,
    ("vsfix", "--help"),
    ("onnxslim", "--help"),
    ("polygraphy", "--help"),
    ("vsfix", "inspect", MODEL),
    ("onnxslim", "--inspect", MODEL),
    ("polygraphy", "inspect", "model", MODEL),
)
PEERS = ("onnxslim", "polygraphy")
TARGET_SECONDS = 0.3  # of `vsfix --help`
# Linux counts for a process the peak of the one that started it, too: what starts them must be smaller than they are.
LAUNCHER = """import os, sys, time
null = os.open(os.devnull, os.O_RDWR)
streams = [(os.POSIX_SPAWN_DUP2, null, stream) for stream in (0, 1, 2)]
started = time.perf_counter()
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=streams)
_, status, usage = os.wait4(process, 0)
wall = time.perf_counter() - started
peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(wall, usage.ru_utime + usage.ru_stime, peak, os.waitstatus_to_exitcode(status))
"""

Facts = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    here = {name: Path(program(name)).exists() for name in ("python", "vsfix", *PEERS)}
    commands = [line for line in COMMANDS if here[line[0]]]
    with TemporaryDirectory() as temporary:
        model = options.model or Path(temporary) / "preresnet-20.onnx"
        if options.model is None:
            export_random_network("preresnet-20", model)
        lines = [[str(model) if word == MODEL else word for word in line] for line in commands]
        for line in lines:
            launch(line)  # so that no first look at a file is timed
        turns = [[launch(line) for line in lines] for _ in range(options.repeat)]
    rows = [summary(line, list(runs)) for line, runs in zip(commands, zip(*turns, strict=True), strict=True)]
    peers = {name: version(name) for name in PEERS if here[name]}
    skipped = [name for name in PEERS if not here[name]]
    found: Facts = {"environment": describe_environment() | peers, "rows": rows, "skipped": skipped}
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    seconds = next(row["wall"] for row in rows if row["command"] == "vsfix --help")
    missed = seconds > TARGET_SECONDS
    print(f"\n{'MISS' if missed else 'PASS'} vsfix --help: {seconds:.2f} s, wanted {TARGET_SECONDS:g}")
    return 1 if missed else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=9, help="(default: %(default)s)")
    parser.add_argument("--model", type=Path, metavar="FILE.onnx", help="to inspect")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    return parser.parse_args(arguments)


def program(name: str) -> str:
    """The program of this Python's environment."""
    return sys.executable if name == "python" else str(Path(sys.executable).with_name(name))


def launch(line: Sequence[str]) -> Facts:
    """One process.

    Raises:
        SystemExit: it failed.
    """
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, program(line[0]), *line[1:]]
    done = subprocess.run(launcher, capture_output=True, text=True, check=True)
    wall, processor, peak, code = done.stdout.split()
    if code != "0":
        raise SystemExit(f"{' '.join(line)}: exit code {code}")
    return {"wall": float(wall), "processor": float(processor), "peak": int(peak)}


def summary(line: Sequence[str], runs: Sequence[Facts]) -> Facts:
    """The medians of one command."""
    medians = {key: statistics.median(run[key] for run in runs) for key in ("wall", "processor", "peak")}
    return {"command": " ".join(line), **medians, "fastest": min(run["wall"] for run in runs), "runs": runs}


def table(found: Facts) -> str:
    """One row for each command, in Markdown."""
    lines = ["| command | seconds | fastest | of the processor | peak memory, MB |", "| --- " + "| ---: " * 4 + "|"]
    for row in found["rows"]:
        times = " | ".join(f"{row[key]:.2f}" for key in ("wall", "fastest", "processor"))
        lines.append(f"| `{row['command']}` | {times} | {row['peak'] / 1e6:.0f} |")
    return "\n".join([*lines, *(f"\nSKIP {name}: not installed, pip install {name}" for name in found["skipped"])])


if __name__ == "__main__":
    sys.exit(main())
