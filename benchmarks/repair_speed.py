"""How fast a repair is, as ratios of whole processes and of plain forwards that run next to each other.

    python benchmarks/repair_speed.py run net.onnx --out speed.json       # the folder and the file of repair_peers.py

    a  `vsfix optimize --samples 32 --no-refine`, and the same with `--method paired`, against a process that loads the
       checkpoint and runs torch.optim.swa_utils.update_bn over --images training images, Dropout off; the first at
       least 20 times faster, and its accuracy at most 0.3 points lower
    b  `exact` over --images images against a plain ONNX Runtime forward of the same file over the same batches; at
       most 1.1 times slower. Its peak resident memory under --max-memory, for two numbers of images
    c  `vsfix --help` and `vsfix inspect MODEL.onnx`

Every run is a process of its own, the compared ones take turns, and medians are compared. In a, starting Python and
loading the libraries is counted; in b it is not. Exit code 1 where a target is missed.
"""

# The process that measures imports nothing large, and each task only what it needs itself: what is loaded is part of
# what is measured, and a process begins with the peak of memory of the one that started it.
from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

BATCH_SIZE = 256
SAMPLES = 32
MEMORY_LIMITS = {"256M": 256 << 20, "1G": 1 << 30, "2G": 2 << 30}
TARGET_SPEEDUP, TARGET_POINTS, TARGET_OVERHEAD = 20.0, 0.3, 1.1
PACKAGES = ("vsfix", "torch", "onnx", "onnxruntime", "numpy")
MEGABYTE = 1e6

Facts = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.task:
        print(json.dumps(TASKS[options.task](options)))
        return 0
    parts = {"a": compare_processes, "b": compare_forwards, "c": time_commands}
    found: Facts = {"environment": environment(options)}
    for part in options.parts:
        found[part] = parts[part](options)
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    print("\n\n".join(report(found)))
    misses = missed(found)
    print("\n" + "\n".join([f"MISS {miss}" for miss in misses] or ["every target is met"]))
    return 1 if misses else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="of `vsfix train`")
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="what `vsfix export` made of it")
    parser.add_argument("--images", type=int, default=30000, help="(default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--parts", default="abc", help="which of them (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--task", choices=sorted(TASKS), help="one run alone; prints its facts as JSON")
    parser.add_argument("--max-memory", choices=sorted(MEMORY_LIMITS), default="2G", help="of the task exact")
    parser.add_argument("--repaired", type=Path, help="of the tasks update-bn and top1: the state_dict or ONNX file")
    return parser.parse_args(arguments)


# ---- tasks: each is the whole work of one process


def task_update_bn(options: argparse.Namespace) -> Facts:
    """What a PyTorch user runs: the checkpoint, its training images, update_bn with Dropout off, the new state_dict."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.optim.swa_utils import update_bn

    from vsfix.trainers.data.datasets import load_dataset
    from vsfix.trainers.training.checkpoint import load_checkpoint

    class NoiseOff(torch.nn.Module):
        """A network of which nothing but the BatchNorms ever enters training mode."""

        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> Any:
            """The network's output."""
            return self.network(images)

        def train(self, mode: bool = True) -> Any:
            """Sets the mode of the BatchNorms."""
            super().train(False)
            for layer in self.network.modules():
                if isinstance(layer, _BatchNorm):
                    layer.train(mode)
            return self

    checkpoint = load_checkpoint(options.run / "checkpoint.pt")
    network = checkpoint.build()
    images = load_dataset(checkpoint.training.data, "train").images[: options.images]
    update_bn(torch.from_numpy(checkpoint.preprocessing.apply(images)).split(BATCH_SIZE), NoiseOff(network))
    torch.save(network.state_dict(), options.repaired)
    return {"images": len(images), "threads": torch.get_num_threads()}


def task_exact(options: argparse.Namespace) -> Facts:
    """`exact` over all BatchNorms."""
    from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
    from vsfix.graph_passes.estimators.exact import exact
    from vsfix.pipeline.backends.onnxruntime_runner import small_runs_within
    from vsfix.pipeline.inspection.preparation import prepare_model

    model, batches = inputs(options)
    graph = prepare_model(model).graph
    layers = [batch_norm.name for batch_norm in find_batch_norms(graph)]
    limit = MEMORY_LIMITS[options.max_memory]
    return clocked(lambda: exact(graph, batches, small_runs_within(limit), layers, max_memory=limit))


def task_forward(options: argparse.Namespace) -> Facts:
    """A plain forward of the file."""
    from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner

    model, batches = inputs(options)

    def forward() -> None:
        with OnnxRuntimeRunner(model) as runner:
            for batch in batches:
                runner.run(batch)

    return clocked(forward)


def inputs(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model, and the calibration set in memory."""
    from vsfix.graph_passes.io.model_file import read_model
    from vsfix.pipeline.data.calibration import calibration_batches

    model, data = read_model(options.model), json.loads((options.run / "config.json").read_text())["data"]
    return model, calibration_batches(model, data, samples=options.images, batch_size=BATCH_SIZE, seed=0)


def clocked(work: Callable[[], object]) -> Facts:
    """Seconds of wall and of processor time, and the peak of memory before and in the end, in bytes."""
    before, processor, started = peak_memory(), time.process_time(), time.perf_counter()
    work()
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    return {"seconds": seconds, "processor_seconds": processor, "peak_before": before, "peak": peak_memory()}


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def task_top1(options: argparse.Namespace) -> Facts:
    """Top-1 of a repaired file, or of the checkpoint with a repaired state_dict, on the test images, in per cent."""
    from vsfix.graph_passes.io.model_file import read_model
    from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner
    from vsfix.pipeline.comparison.accuracy import accuracy_of
    from vsfix.pipeline.data.calibration import labelled_samples
    from vsfix.trainers.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(options.run / "checkpoint.pt")
    labelled = labelled_samples(read_model(options.model), checkpoint.training.data, split="test", seed=0)
    if options.repaired.suffix == ".onnx":
        with OnnxRuntimeRunner(options.repaired) as runner:
            return {"top1": accuracy_of("", runner, labelled, batch_size=BATCH_SIZE).score.value}
    import torch

    network = checkpoint.build()
    network.load_state_dict(torch.load(options.repaired, weights_only=True))
    with torch.inference_mode():
        logits = [network(torch.from_numpy(next(iter(b.values())))) for b in labelled.batches(BATCH_SIZE)]
    found = torch.cat(logits).argmax(dim=1).numpy()
    return {"top1": 100 * float((found == labelled.labels).mean())}


TASKS: dict[str, Callable[[argparse.Namespace], Facts]] = {
    "update-bn": task_update_bn,
    "exact": task_exact,
    "forward": task_forward,
    "top1": task_top1,
}


# ---- the measuring process


def compare_processes(options: argparse.Namespace) -> Facts:
    """Part a."""
    data = json.loads((options.run / "config.json").read_text())["data"]
    runs: dict[str, list[float]] = {"vsfix": [], "paired": [], "update_bn": []}
    with tempfile.TemporaryDirectory() as folder:
        matched, paired, state = (Path(folder) / name for name in ("matched.onnx", "paired.onnx", "state.pt"))
        vsfix = [command("vsfix"), "optimize", str(options.model), "--data", data, "--samples", str(SAMPLES), "--force"]
        for _ in range(options.repeat):
            runs["vsfix"].append(wall([*vsfix, "--no-refine", "-o", str(matched)]))
            runs["paired"].append(wall([*vsfix, "--method", "paired", "-o", str(paired)]))
            runs["update_bn"].append(wall(task(options, "update-bn", "--repaired", str(state))))
        top1 = {
            name: facts(task(options, "top1", "--repaired", str(path)))["top1"]
            for name, path in (("vsfix", matched), ("paired", paired), ("update_bn", state))
        }
    ratio = statistics.median(runs["update_bn"]) / statistics.median(runs["vsfix"])
    return {"images": options.images, "seconds": runs, "top1": top1, "ratio": ratio}


def compare_forwards(options: argparse.Namespace) -> Facts:
    """Part b: the number of images, and a quarter of it for the memory."""
    rows: list[Facts] = []
    for repeat in range(options.repeat):
        for images in (options.images, *([options.images // 4] if repeat == 0 else [])):
            wanted = [("forward", ""), *(("exact", limit) for limit in MEMORY_LIMITS)]
            for name, limit in wanted:
                more = ["--max-memory", limit] if limit else []
                found = facts(task(options, name, "--images", str(images), *more))
                rows.append({"what": name, "max_memory": limit, "images": images, **found})
    plain = median(rows, "forward", "", options.images)
    ratios = {limit: median(rows, "exact", limit, options.images) / plain for limit in MEMORY_LIMITS}
    return {"images": options.images, "runs": rows, "ratios": ratios}


def time_commands(options: argparse.Namespace) -> Facts:
    """Part c."""
    commands = {
        "vsfix --help": [command("vsfix"), "--help"],
        f"vsfix inspect {options.model.name}": [command("vsfix"), "inspect", str(options.model)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(options.repeat):
        for name, line in commands.items():
            seconds[name].append(wall(line))
    return {"seconds": seconds}


def command(name: str) -> str:
    """The program of this Python's environment."""
    return str(Path(sys.executable).with_name(name))


def task(options: argparse.Namespace, name: str, *more: str) -> list[str]:
    """The command line of one task."""
    here = [sys.executable, __file__, str(options.run), str(options.model)]
    return [*here, "--images", str(options.images), "--task", name, *more]


def wall(line: Sequence[str]) -> float:
    """Seconds of one process.

    Raises:
        SystemExit: it failed.
    """
    started = time.perf_counter()
    run(line)
    return time.perf_counter() - started


def facts(line: Sequence[str]) -> Facts:
    """What a task printed."""
    found: Facts = json.loads(run(line))
    return found


def run(line: Sequence[str]) -> str:
    """The output of one process.

    Raises:
        SystemExit: it failed.
    """
    # A user's Python keeps its compiled modules; without them every start would compile all of vsfix anew.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(line, capture_output=True, text=True, env=variables)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def environment(options: argparse.Namespace) -> Facts:
    """What the numbers depend on."""
    return {
        "network": json.loads((options.run / "config.json").read_text())["network"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def select(rows: Sequence[Facts], what: str, limit: str, images: int) -> list[Facts]:
    """The runs of one kind."""
    return [row for row in rows if (row["what"], row["max_memory"], row["images"]) == (what, limit, images)]


def median(rows: Sequence[Facts], what: str, limit: str, images: int, fact: str = "seconds") -> float:
    """Of one kind of run."""
    return float(statistics.median(row[fact] for row in select(rows, what, limit, images)))


def report(found: Facts) -> list[str]:
    """The tables, in Markdown."""
    parts = {"a": processes_table, "b": forwards_table, "c": commands_table}
    return [table(found[part]) for part, table in parts.items() if part in found]


def processes_table(found: Facts) -> str:
    lines = ["| process | seconds | top-1, % |", "| --- | --- | --- |"]
    names = {
        "vsfix": f"vsfix optimize, {SAMPLES} images",
        "paired": f"vsfix optimize, paired, {SAMPLES} images",
        "update_bn": f"update_bn, {found['images']:,} images",
    }
    for key, name in names.items():
        lines.append(f"| {name} | {statistics.median(found['seconds'][key]):.2f} | {found['top1'][key]:.2f} |")
    return "\n".join([*lines, f"\nratio: {found['ratio']:.1f} (target: at least {TARGET_SPEEDUP:g})"])


def forwards_table(found: Facts) -> str:
    heads = ["run", "images", "seconds", "of the processor", "ratio", "peak memory, MB", "before the run, MB"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    rows = found["runs"]
    for what, limit, images in dict.fromkeys((row["what"], row["max_memory"], row["images"]) for row in rows):
        kind = (what, limit, images)
        seconds, peak, before = (median(rows, *kind, fact) for fact in ("seconds", "peak", "peak_before"))
        cells = [
            f"exact, --max-memory {limit}" if limit else "forward",
            f"{images:,}",
            f"{seconds:.2f}",
            f"{median(rows, *kind, 'processor_seconds'):.2f}",
            f"{seconds / median(rows, 'forward', '', images):.2f}",
            f"{peak / MEGABYTE:.0f}",
            f"{before / MEGABYTE:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, f"\ntarget: a ratio of at most {TARGET_OVERHEAD:g}"])


def commands_table(found: Facts) -> str:
    rows = [f"| `{name}` | {statistics.median(seconds):.2f} |" for name, seconds in found["seconds"].items()]
    return "\n".join(["| command | seconds |", "| --- | --- |", *rows])


def missed(found: Facts) -> list[str]:
    """The targets that are missed."""
    misses = []
    if "a" in found:
        below = found["a"]["top1"]["update_bn"] - found["a"]["top1"]["vsfix"]
        if found["a"]["ratio"] < TARGET_SPEEDUP:
            misses.append(f"a: {found['a']['ratio']:.1f} times faster, wanted {TARGET_SPEEDUP:g}")
        if below > TARGET_POINTS:
            misses.append(f"a: the accuracy is {below:.2f} points lower, wanted at most {TARGET_POINTS:g}")
    if "b" in found:
        best = found["b"]["ratios"]["2G"]  # the default
        if best > TARGET_OVERHEAD:
            misses.append(f"b: {best:.2f} times the time of a forward, wanted {TARGET_OVERHEAD:g}")
    return misses


if __name__ == "__main__":
    sys.exit(main())
