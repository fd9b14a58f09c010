"""The benchmark without a GPU: every step up to the launch, on a CPU. Nothing that it prints is a measurement.

Every file of the kit is read and checked, every network that would become an engine is parsed and compiled by
TensorRT-RTX, torch computes a few outputs, and each step is taken with ONNX Runtime's CPU provider in the place of the
GPU: the same feeds, the same comparison, the same file of results.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import onnx
from measuring import Place
from results import Results
from steps import FORMS, Found, Step, missed, model_path, networks_of

from vsfix.graph_passes.errors import MissingComponentError, VsfixError
from vsfix.pipeline.benchmark.latency import LatencyConfig
from vsfix.pipeline.building.build_config import BuildConfig
from vsfix.pipeline.building.building import build_plan

LABEL = "CPU, no measurement"
STAND_IN = "onnxruntime"
IMAGES = 200
TARGET = "sm89"
LATENCY = LatencyConfig(seconds=0.02, min_runs=20, warm_up_seconds=0)
TRAINING = ("--models", "preresnet-8", "--batch", "8", "--block", "0.02", "--blocks", "3", "--images", "64")


def rehearse(place: Place, steps: Sequence[Step]) -> Results:
    """Takes every step on the CPU.

    Args:
        place: of the benchmark; its device, its number of images and its times are not taken.
        steps: those of the benchmark, of which the ones that differ on a GPU alone are one here.
    """
    place = replace(
        place,
        device="cpu",
        images=IMAGES,
        latency=LATENCY,
        training=(*TRAINING, "--no-compile"),
        results=place.results / "dry-run",
    )
    path = place.results / "results.json"
    path.unlink(missing_ok=True)
    results = Results(path, dry_run=True)
    networks = networks_of(place.kit)
    for file in files_of(place.kit, networks):
        onnx.checker.check_model(onnx.load(file), full_check=True)
    say(f"{len(list(files_of(place.kit, networks)))} files are read and valid")
    for precision, name, form in product(("fp32", "fp16"), networks, FORMS):
        line = compiled(place, model_path(place.kit, name, form, precision), precision)
        say(line)
        results.not_run += [line] if line.startswith(("SKIP", "FAIL")) else []
    try:
        place.make_references(networks)
        say(f"torch computed {IMAGES} images with both sets of parameters")
    except MissingComponentError as error:
        results.not_run.append(f"FAIL the outputs of torch: {error}")
    for step in on_cpu(steps):
        results.add(step, attempt(place, step))
        misses = failures(step, results.found[step])
        say("".join(f"FAIL {miss}" for miss in misses[:1]) or f"PASS {step}")
    results.save()
    return results


def on_cpu(steps: Sequence[Step]) -> list[Step]:
    """The steps with ONNX Runtime's CPU provider in the place of the GPU; TF32 is a thing of GPUs."""
    moved = (
        step if not step.backend else replace(step, backend=STAND_IN) for step in steps if step.precision != "tf32"
    )
    return list(dict.fromkeys(moved))


def files_of(kit: Path, networks: Sequence[str]) -> Iterator[Path]:
    """The ONNX files of a kit."""
    for name, form, precision in product(networks, FORMS, ("fp32", "fp16")):
        yield model_path(kit, name, form, precision)


def compiled(place: Place, model: Path, precision: str) -> str:
    """Whether TensorRT-RTX takes a file and compiles it in its own types, in one line."""
    try:
        _, report = build_plan(model, BuildConfig("tensorrt-rtx", place.shapes(), (TARGET,), precision))
    except MissingComponentError as error:
        return f"SKIP {model.parent.name}/{model.name}: {error}"
    except VsfixError as error:
        return f"FAIL {model.parent.name}/{model.name}: {error}"
    layers = sum(sum(types.values()) for types in report.precision.network.values())
    return (
        f"PASS {model.parent.name}/{model.name}: {layers} layers, compiled for {TARGET} by TensorRT-RTX "
        f"{report.version}, weights read back to {report.read_back.largest_error:.1e}"
    )


def attempt(place: Place, step: Step) -> Found:
    """A step, or why it can't be taken."""
    try:
        return place.measure(step)
    except VsfixError as error:
        return {"error": str(error)}


def failures(step: Step, found: Found) -> list[str]:
    """Why a step fails here: it can't be taken, or its numbers are wrong; times are none."""
    return missed(step, found) if "error" in found or step.kind == "numbers" else []


def say(line: str) -> None:
    print(f"[{LABEL}] {line}", file=sys.stderr, flush=True)
