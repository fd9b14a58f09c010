"""A training step of vsfix's loop beside one of the plain loop of PyTorch's tutorials, on a CPU.

    python benchmarks/training_step.py --out training_step.json

    vsfix         `training_run`: its order of the images, its schedule, its watch over the losses
    torch eager   forward, cross-entropy, backward, torch.optim.SGD with the same settings

Both take the same float32 images of Fashion-MNIST's shape, normalised and in memory, without augmentation, and the same
network with Dropout in front of the last BatchNorm of each block. The first step of both, from the same weights on the
same images, must lead to the same weights. Then the two advance in turn, block by block; the ratio is the median over
the blocks, with the interval that holds the true one with at least 95 %. Exit code 1 where the whole interval lies
above the target, or where the first steps differ.

benchmarks/gpu/training_speed.py is the same on a GPU; the parts of the measurement are its.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu.training_speed import (
    Contender,
    endless_steps,
    interleave,
    interval,
    load_images,
    median_with_interval,
    network_config,
    stepping,
)

from vsfix.pipeline.host.environment import describe_environment
from vsfix.trainers.data.preprocessing import Preprocessing
from vsfix.trainers.networks.network import build_network
from vsfix.trainers.training.fabric_session import fabric_session
from vsfix.trainers.training.random_streams import Stream, batch_rows, stream_seed
from vsfix.trainers.training.training_config import TrainingConfig
from vsfix.trainers.training.training_data import TensorImages, TrainingData
from vsfix.trainers.training.training_run import TrainingRun

MODELS = ("preresnet-20", "wrn-16-2")
TARGET_RATIO = 1.0
CPU = torch.device("cpu")

Facts = dict[str, Any]
Batch = tuple[torch.Tensor, torch.Tensor]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if torch.cuda.is_available():
        print("nothing was run: hide the GPU with CUDA_VISIBLE_DEVICES= in front of the command", file=sys.stderr)
        return 3
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        models = {model: compare(model, options) for model in options.models}
    finally:
        torch.set_num_threads(before)
    settings = {name: getattr(options, name) for name in ("batch", "threads", "blocks", "block")}
    found: Facts = {"environment": describe_environment(), "settings": settings, "models": models}
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    misses = missed(found)
    print("\n" + "\n".join([f"MISS {miss}" for miss in misses] or ["every target is met"]))
    return 1 if misses else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=25, help="(default: %(default)s)")
    parser.add_argument("--block", type=float, default=1.0, help="seconds of a block (default: %(default)s)")
    parser.add_argument("--images", type=int, default=6400, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    return parser.parse_args(arguments)


def compare(model: str, options: argparse.Namespace) -> Facts:
    """Both loops on one network."""
    pixels, classes = load_images(options.images)
    preprocessing = Preprocessing(1, (28, 28), (0.2860,), (0.3530,))
    images, labels = torch.from_numpy(preprocessing.apply(pixels)), torch.from_numpy(classes)
    with fabric_session("32") as fabric:
        source = TensorImages(images)
        config = TrainingConfig("fashion-mnist", network_config(model), epochs=10_000, batch_size=options.batch)
        run = TrainingRun(config, TrainingData(source, labels, source, labels, preprocessing), fabric, None)
        module = build_network(config.network)
        module.load_state_dict(run.module.state_dict())
        optimizer = torch.optim.SGD(
            module.parameters(),
            lr=run.optimizer.param_groups[0]["lr"],
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        steps = endless_steps(run)
        contenders = {
            "vsfix": Contender(lambda: next(steps) and None, options.batch),
            "torch eager": stepping(module, batches(images, labels, config), optimizer, CPU, options),
        }
        for contender in contenders.values():
            torch.manual_seed(stream_seed(config.seed, Stream.NOISE, 1, 0))
            contender.advance()
        difference = largest_difference(run.module, module)
        interleave(contenders, CPU, options)
    seconds = {name: np.array(contender.seconds) for name, contender in contenders.items()}
    return {
        "milliseconds": {name: 1000 * float(np.median(values)) for name, values in seconds.items()},
        "over_eager": median_with_interval(seconds["vsfix"] / seconds["torch eager"]),
        "first_step": difference,
    }


def batches(images: torch.Tensor, labels: torch.Tensor, config: TrainingConfig) -> Iterator[Batch]:
    """The batches of one epoch after another, those of the first as vsfix orders them."""
    rows = batch_rows(len(labels), config.batch_size, stream_seed(config.seed, Stream.ORDER, 1), slice(None), 1)
    while True:
        yield from ((images[row], labels[row]) for (row,) in rows)
        rows = [(row,) for row in torch.randperm(len(labels)).split(config.batch_size) if len(row) == config.batch_size]


def largest_difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    """Of any two parameters or statistics."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def table(found: Facts) -> str:
    """One row for each network, in Markdown."""
    heads = ("ms a step", "vsfix", "torch eager", "vsfix / torch eager", "weights after the first step")
    lines = ["| " + " | ".join(heads) + " |", "| --- " + "| ---: " * 3 + "| --- |"]
    for model, row in found["models"].items():
        times = " | ".join(f"{value:.1f}" for value in row["milliseconds"].values())
        first = "the same bits" if row["first_step"] == 0 else f"differ by {row['first_step']:.1e}"
        lines.append(f"| {model} | {times} | {interval(row['over_eager'])} | {first} |")
    return "\n".join(lines)


def missed(found: Facts) -> list[str]:
    """The networks that miss a target."""
    misses = []
    for model, row in found["models"].items():
        _, low, high = row["over_eager"]
        if low > TARGET_RATIO:
            misses.append(f"{model}: {low:.3f} to {high:.3f} times the time of torch eager, wanted {TARGET_RATIO:g}")
        if row["first_step"] > 0:
            misses.append(f"{model}: the first steps differ by {row['first_step']:.1e}")
    return misses


if __name__ == "__main__":
    sys.exit(main())
