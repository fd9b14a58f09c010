"""Engines against PyTorch on an NVIDIA GPU, original and repaired networks: numbers, accuracy, latency.

    python benchmarks/gpu/run_all.py gpu-kit gpu-results                              # torch and TensorRT in one Python
    /opt/trt86/python3 benchmarks/gpu/run_all.py gpu-kit gpu-results --torch-python python3
    python benchmarks/gpu/run_all.py gpu-kit gpu-results --dry-run                    # says what would run

The kit is made by `prepare.py`. Run from the root of the repository, with PYTHONPATH=.typing where vsfix is not
installed. Every step writes a line of gpu-results/results.jsonl and is not done again: start the command anew where it
was cut off. Exit code 3 where no GPU is here, 1 where a target is missed:

    SNR against torch       fp32 80 dB, tf32 and fp16 50 dB
    top-1 agreement         fp32 99.9 %, tf32 and fp16 99.5 %
    accuracy                within 0.1 points of torch with the same statistics
    latency                 repaired over original at most 1.0, at batch 1 and 64: missed where the whole interval of
                            the median ratio lies above

Latency: both engines are open at once, and blocks of runs alternate between them; p50 of each over all blocks. Engines
are timed by CUDA events around the execution, recorded as a CUDA graph, other runtimes on the host with their copies.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from vsfix.graph_passes.errors import MissingComponentError, VsfixError
from vsfix.graph_passes.ir.runtime import Runner
from vsfix.pipeline.backends.opening import open_runner
from vsfix.pipeline.backends.tensorrt_runner import open_engine
from vsfix.pipeline.benchmark.latency import LatencyConfig, measure_latencies
from vsfix.pipeline.building.build_config import BuildConfig
from vsfix.pipeline.building.building import build_engine
from vsfix.pipeline.comparison.decisions import compare_decisions
from vsfix.pipeline.comparison.tensor_comparison import compare_tensors
from vsfix.pipeline.comparison.tolerance import TOLERANCES
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.host.environment import describe_environment, describe_gpu
from vsfix.pipeline.tensorrt.shape_profile import ShapeOptions
from vsfix.pipeline.verification.verification import pooled_outputs

FORMS = ("original", "repaired")
ENGINES = ("tensorrt", "tensorrt-rtx")
PRECISIONS = {"tensorrt": ("fp32", "tf32", "fp16"), "tensorrt-rtx": ("fp32", "tf32", "fp16"), "other": ("fp32", "fp16")}
BATCHES = (1, 64)
MAX_BATCH = 256
MAX_LATENCY_RATIO = 1.0


@dataclass(frozen=True)
class Step:
    """One thing to measure: `numbers` of one network in one form, or `latency` of both forms at one batch size."""

    kind: str
    network: str
    backend: str
    precision: str
    form: str = ""
    batch: int = 0

    def __str__(self) -> str:
        what = f"{self.form}" if self.kind == "numbers" else f"original and repaired, batch {self.batch}"
        return f"{self.kind}: {self.network}, {what}, {self.backend} {self.precision}"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    steps = list(plan(options.kit, options.backend))
    results = options.results / "results.jsonl"
    done = {Step(**line["step"]): line for line in read(results)}
    missing = [step for step in steps if step not in done]
    if options.dry_run:
        print("\n".join([f"{len(missing)} of {len(steps)} steps to do", f"torch: {reference_command(options)}"]))
        print("\n".join(map(str, missing)))
        return 0
    options.results.mkdir(parents=True, exist_ok=True)
    reason = unavailable(options.kit, options.backend, options.results)
    if reason:
        print(f"nothing was run: {reason}; --dry-run says what would be", file=sys.stderr)
        return 3
    if not all((options.results / step.network / f"{form}.npz").exists() for step in steps for form in FORMS):
        subprocess.run(reference_command(options), check=True)
    not_run = []
    for step in missing:
        print(step, file=sys.stderr, flush=True)
        try:
            line = {"step": vars(step), "found": attempt(step, options.kit, options.results)}
        except MissingComponentError as error:
            not_run.append(f"NOT RUN {step}: {error}")
            continue
        done[step] = line
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
    (options.results / "environment.json").write_text(json.dumps(describe_environment() | describe_gpu(), indent=2))
    print(table(done))
    misses = [miss for step, line in done.items() for miss in missed(step, line["found"])]
    print("\n".join(["", *not_run, *(f"MISS {miss}" for miss in misses)]))
    print(f"{len(done)} of {len(steps)} steps were run, {len(misses)} targets missed")
    return 1 if misses else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--backend", nargs="+", default=["tensorrt", "onnxruntime-cuda"])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with torch, for the reference")
    parser.add_argument("--torch-device", default="cuda")
    parser.add_argument("--dry-run", action="store_true")
    return parser.parse_args(arguments)


def reference_command(options: argparse.Namespace) -> list[str]:
    """What makes the outputs of torch."""
    script = Path(__file__).with_name("reference.py")
    return [options.torch_python, *map(str, (script, options.kit, options.results)), "--device", options.torch_device]


def plan(kit: Path, backends: Sequence[str]) -> Iterator[Step]:
    """Every step: all numbers first, since a table without latencies is worth more than the reverse."""
    networks = sorted(path.parent.name for path in kit.glob("*/checkpoint.pt"))
    for backend, network in product(backends, networks):
        precisions = PRECISIONS.get(backend, PRECISIONS["other"])
        for precision, form in product(precisions, FORMS):
            yield Step("numbers", network, backend, precision, form=form)
    for backend, network in product(backends, networks):
        precisions = PRECISIONS.get(backend, PRECISIONS["other"])
        for precision, batch in product(precisions, BATCHES):
            yield Step("latency", network, backend, precision, batch=batch)


def unavailable(kit: Path, backends: Sequence[str], results: Path) -> str:
    """Why none of the backends runs here; empty where one does."""
    reasons = []
    network = next(plan(kit, backends)).network
    for backend in backends:
        step = Step("numbers", network, backend, "fp32", form="original")
        try:
            with open_deployed(step, "original", kit, results):
                return ""
        except VsfixError as error:
            reasons.append(f"{backend}: {error}")
    return "; ".join(reasons)


def attempt(step: Step, kit: Path, results: Path) -> dict[str, Any]:
    """Runs a step; an error is a result too, but for a component that is not here."""
    try:
        return numbers(step, kit, results) if step.kind == "numbers" else latency(step, kit, results)
    except MissingComponentError:
        raise
    except VsfixError as error:
        return {"error": str(error)}


def numbers(step: Step, kit: Path, results: Path) -> dict[str, Any]:
    """One network on all images, against torch with the same statistics."""
    with np.load(kit / "images.npz") as arrays:
        samples = Samples("test images", {"input": arrays["input"]}, arrays["labels"])
    with np.load(results / step.network / f"{step.form}.npz") as arrays:
        expected = arrays["logits"]
    with open_deployed(step, step.form, kit, results) as runner:
        found = next(iter(pooled_outputs(runner, samples, MAX_BATCH).values()))
        name = runner.name
    tensors, decisions = compare_tensors(expected, found), compare_decisions(expected, found, samples.labels)
    assert decisions.task is not None
    return {
        "runner": name,
        "snr_db": tensors.snr_db,
        "max_rel": tensors.max_rel,
        "agreement": decisions.agreement,
        "flips": decisions.flips,
        "top1_torch": 100 * decisions.task.reference.value,
        "top1": 100 * decisions.task.output.value,
        "p_value": decisions.task.p_value,
        "samples": len(samples),
    } | engine_facts(step, step.form, results)


def latency(step: Step, kit: Path, results: Path) -> dict[str, Any]:
    """Both forms, in alternating blocks."""
    with np.load(kit / "images.npz") as arrays:
        inputs = {"input": arrays["input"][: step.batch]}
    with ExitStack() as stack:
        runners = [stack.enter_context(open_deployed(step, form, kit, results, use_graph=True)) for form in FORMS]
        original, repaired = measure_latencies(runners, inputs, LatencyConfig())
    return {
        "ratio": repaired.ratio,
        "interval": repaired.ratio_interval,
        "original": asdict(original),
        "repaired": asdict(repaired),
    }


def open_deployed(step: Step, form: str, kit: Path, results: Path, *, use_graph: bool = False) -> Runner:
    """A network on a backend; engines are built where that was not done yet."""
    half = "-fp16" if step.precision == "fp16" else ""
    model = kit / step.network / f"{form}{half}.onnx"
    if step.backend not in ENGINES:
        return open_runner(step.backend, model)
    plan_path = engine_path(step, form, results)
    if not plan_path.exists():
        plan_path.parent.mkdir(parents=True, exist_ok=True)
        shapes = ShapeOptions(None, "input:1x1x28x28", "input:64x1x28x28", f"input:{MAX_BATCH}x1x28x28")
        config = BuildConfig(step.backend, shapes, precision=step.precision, timing_cache=cache_of(step, results))
        build_engine(model, plan_path, config)
    return open_engine(plan_path, step.backend, use_graph=use_graph)


def engine_path(step: Step, form: str, results: Path) -> Path:
    """Where an engine stands."""
    return results / step.network / f"{form}-{step.backend}-{step.precision}.plan"


def cache_of(step: Step, results: Path) -> Path | None:
    """The timings of kernels, which the two forms of a network share, so that the same tactics are chosen."""
    return results / "timings" if step.backend == "tensorrt" else None


def engine_facts(step: Step, form: str, results: Path) -> dict[str, Any]:
    """What the sidecar of an engine says of its build."""
    if step.backend not in ENGINES:
        return {}
    path = engine_path(step, form, results)
    document = json.loads(path.with_name(path.name + ".json").read_text())
    return {key: document[key] for key in ("build_seconds", "precision", "version")} | {
        "bytes": document["plan"]["bytes"],
        "read_back": {key: document["read_back"][key] for key in ("status", "largest_error")},
    }


def missed(step: Step, found: dict[str, Any]) -> list[str]:
    """The targets that a step misses."""
    if "error" in found:
        return [f"{step}: {found['error']}"]
    if step.kind == "latency":
        low, high = found["interval"]
        worse = low > MAX_LATENCY_RATIO
        return [f"{step}: repaired/original {found['ratio']:.3f} ({low:.3f} to {high:.3f})"] if worse else []
    wanted = TOLERANCES[step.precision]
    misses = []
    if not found["snr_db"] >= wanted.min_snr_db:
        misses.append(f"{step}: SNR {found['snr_db']:.1f} dB, wanted {wanted.min_snr_db:g}")
    if not found["agreement"] >= wanted.min_agreement:
        misses.append(f"{step}: agreement {found['agreement']:.4%}, wanted {wanted.min_agreement:.2%}")
    if not abs(found["top1"] - found["top1_torch"]) <= wanted.max_accuracy_loss + 1e-9:
        misses.append(f"{step}: top-1 {found['top1']:.2f} %, torch {found['top1_torch']:.2f} %")
    return misses


def table(done: dict[Step, dict[str, Any]]) -> str:
    """Markdown: a row for each network, form, backend and precision; then the latencies."""
    lines = [
        "| network | form | backend | precision | SNR | agreement | top-1 torch | top-1 | build |",
        "| --- " * 9 + "|",
    ]
    for step, line in done.items():
        found = line["found"]
        if step.kind == "numbers" and "error" not in found:
            build = f"{found['build_seconds']:.1f} s" if "build_seconds" in found else "-"
            lines.append(
                f"| {step.network} | {step.form} | {step.backend} | {step.precision} | {found['snr_db']:.1f} dB | "
                f"{100 * found['agreement']:.2f} % | {found['top1_torch']:.2f} | {found['top1']:.2f} | {build} |"
            )
    lines += ["", "| network | backend | precision | batch | original p50 | repaired p50 | p99 | CV | ratio |"]
    lines.append("| --- " * 9 + "|")
    for step, line in done.items():
        found = line["found"]
        if step.kind == "latency" and "error" not in found:
            original, repaired = found["original"], found["repaired"]
            lines.append(
                f"| {step.network} | {step.backend} | {step.precision} | {step.batch} | {original['p50_ms']:.4f} ms | "
                f"{repaired['p50_ms']:.4f} ms | {repaired['p99_ms']:.4f} ms | {100 * repaired['cv']:.1f} % | "
                f"{found['ratio']:.3f} ({found['interval'][0]:.3f}-{found['interval'][1]:.3f}) |"
            )
    return "\n".join(lines)


def read(path: Path) -> list[dict[str, Any]]:
    """The steps that were done before."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
