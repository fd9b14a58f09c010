"""Engines against PyTorch on an NVIDIA GPU, original and repaired networks: numbers, latency, training, Uout's step.

    python benchmarks/gpu/run_all.py gpu-kit gpu-results                              # torch and TensorRT in one Python
    /opt/trt86/python3 benchmarks/gpu/run_all.py gpu-kit gpu-results --torch-python python3
    python benchmarks/gpu/run_all.py gpu-kit gpu-results --dry-run                    # all but the GPU, on a CPU

The kit is made by `prepare.py`. Run from the root of the repository, with PYTHONPATH=.typing where vsfix is not
installed. Everything is in gpu-results/results.json, written after each step and not measured again: start the command
anew where it was cut off, or where --seconds were used up, of which each kind of step has its share. `render.py` makes
the page of the guide of it. Exit code 3 where no GPU is here, 1 where a target is missed:

    SNR against torch       fp32 80 dB, tf32 and fp16 50 dB
    top-1 agreement         fp32 99.9 %, tf32 and fp16 99.5 %
    accuracy                within 0.1 percentage points of torch with the same parameters
    latency                 repaired over original at most 1.0, at batch 1 and 64: missed where the whole interval of
                            the median ratio lies above
    training                images per second at least those of torch eager
    uout                    a step no slower than with nn.Dropout

Latency: both engines are open at once, and blocks of runs alternate between them; p50 of each over all blocks. Engines
are timed by CUDA events around the execution, recorded as a CUDA graph, other runtimes on the host with their copies.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from measuring import Place
from rehearsal import LABEL, failures, rehearse
from render import tables
from results import Results
from steps import SHARES, Step, networks_of, plan

from vsfix.graph_passes.errors import MissingComponentError, VsfixError
from vsfix.pipeline.host.environment import describe_environment, describe_gpu


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    place = Place(options.kit, options.results, options.torch_python, options.torch_device)
    steps = plan(options.kit, options.backend)
    if not networks_of(options.kit):
        print(f"{options.kit}: holds no networks; make it with benchmarks/gpu/prepare.py", file=sys.stderr)
        return 2
    if options.dry_run:
        return report(rehearse(place, steps), len(steps))
    results = Results(options.results / "results.json")
    reason = unavailable(place, steps)
    if reason:
        print(f"nothing was run: {reason}; --dry-run does all but that", file=sys.stderr)
        return 3
    results.environment = describe_environment() | describe_gpu()
    results.not_run = []
    ends = {kind: time.monotonic() + share * options.seconds for kind, share in SHARES.items()}
    try:
        place.make_references(networks_of(options.kit))
    except MissingComponentError as error:
        print(f"nothing was run: {error}", file=sys.stderr)
        return 3
    take(steps, results, place, lambda kind: time.monotonic() > ends[kind])
    return report(results, len(steps))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--backend", nargs="+", default=["tensorrt", "onnxruntime-cuda"])
    parser.add_argument("--seconds", type=float, default=540, help="no step begins when they are over  [540]")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with torch, for all that it computes")
    parser.add_argument("--torch-device", default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="every step up to the launch, on a CPU")
    return parser.parse_args(arguments)


def take(steps: Sequence[Step], results: Results, place: Place, is_over: Callable[[str], bool]) -> None:
    """Takes what was not taken yet; an error is a result too, but for a component that is not here."""
    for step in steps:
        if step in results.found:
            continue
        if is_over(step.kind):
            results.not_run.append(f"{step}: its time was used up")
            continue
        print(step, file=sys.stderr, flush=True)
        try:
            results.add(step, place.measure(step))
        except MissingComponentError as error:
            results.not_run.append(f"{step}: {error}")
        except VsfixError as error:
            results.add(step, {"error": str(error)})
    results.save()


def unavailable(place: Place, steps: Sequence[Step]) -> str:
    """Why none of the backends runs here; empty where one does."""
    reasons = []
    for step in {step.backend: step for step in reversed(steps) if step.kind == "numbers"}.values():
        try:
            with place.open(step, step.form):
                return ""
        except VsfixError as error:
            reasons.append(f"{step.backend}: {error}")
    return "; ".join(reversed(reasons))


def report(results: Results, count: int) -> int:
    """Prints what was found; 0 where nothing is missed, of a dry run where every step could be taken."""
    print(f"[{LABEL}]\n" if results.dry_run else "", end="")
    print(tables(results))
    print("\n".join(["", *(f"NOT RUN {line}" for line in results.not_run)]))
    if results.dry_run:
        failed = [miss for step, found in results.found.items() for miss in failures(step, found)]
        failed += [line for line in results.not_run if line.startswith("FAIL")]
        taken = len(results.found)
        print(f"{taken} steps were taken on a CPU for the {count} of a GPU, {len(failed)} failures: {results.path}")
        return 1 if failed else 0
    print("\n".join(f"MISS {miss}" for miss in results.misses))
    print(f"{len(results.found)} of {count} steps were run, {len(results.misses)} targets missed: {results.path}")
    return 1 if results.misses else 0


if __name__ == "__main__":
    sys.exit(main())
