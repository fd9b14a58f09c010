"""A training step of vsfix's loop beside one of the plain loop of PyTorch's tutorials, on a CPU; Uout beside Dropout.

    python benchmarks/training_step.py --out training_step.json

    vsfix         `training_run`: its order of the images, its schedule, its watch over the losses
    torch eager   forward, cross-entropy, backward, torch.optim.SGD with the same settings
    vsfix, Uout   the first with Uout 0.1 in the place of Dropout 0.5

All take the same float32 images of Fashion-MNIST's shape, normalised and in memory, without augmentation, and the same
network with its noise upstream of the last BatchNorm of each block. The first step of vsfix and torch, from the same
weights on the same images, must lead to the same weights. Then the three advance in turn, block by block; a ratio is
the median over the blocks, with the interval that holds the true one with at least 95 %, or all of them where there are
few. Exit code 1 where the whole interval lies above the target, or where the first steps differ.

On one thread the time is that of the processor, which other work on the machine changes little; on several it is that
of the clock.

benchmarks/gpu/training_speed.py is the same on a GPU; the parts of the measurement are its.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu.training_speed import (
    Contender,
    endless_steps,
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
VSFIX, EAGER, UOUT = "vsfix", "torch eager", "vsfix, Uout"
RATIOS = {"over_eager": (VSFIX, EAGER), "uout_over_dropout": (UOUT, VSFIX)}
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
    """The three loops on one network."""
    pixels, classes = load_images(options.images)
    preprocessing = Preprocessing(1, (28, 28), (0.2860,), (0.3530,))
    images, labels = torch.from_numpy(preprocessing.apply(pixels)), torch.from_numpy(classes)
    with fabric_session("32") as fabric:
        source = TensorImages(images)
        data = TrainingData(source, labels, source, labels, preprocessing)
        config = TrainingConfig("fashion-mnist", network_config(model), epochs=10_000, batch_size=options.batch)
        run = TrainingRun(config, data, fabric, None)
        quiet = TrainingRun(replace(config, network=network_config(model, "a=uout:0.1")), data, fabric, None)
        module = build_network(config.network)
        module.load_state_dict(run.module.state_dict())
        optimizer = torch.optim.SGD(
            module.parameters(),
            lr=run.optimizer.param_groups[0]["lr"],
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        contenders = {
            VSFIX: steps_of(run),
            EAGER: stepping(module, batches(images, labels, config), optimizer, CPU, options),
            UOUT: steps_of(quiet),
        }
        for contender in contenders.values():
            torch.manual_seed(stream_seed(config.seed, Stream.NOISE, 1, 0))
            contender.advance()
        difference = largest_difference(run.module, module)
        advance_in_turn(contenders, options)
    seconds = {name: np.array(contender.seconds) for name, contender in contenders.items()}
    return {
        "milliseconds": {name: 1000 * float(np.median(values)) for name, values in seconds.items()},
        "images_per_second": {name: options.batch / float(np.median(values)) for name, values in seconds.items()},
        **{ratio: median_with_interval(seconds[one] / seconds[other]) for ratio, (one, other) in RATIOS.items()},
        "first_step": difference,
    }


def steps_of(run: TrainingRun) -> Contender:
    """The product's own loop."""
    steps = endless_steps(run)
    return Contender(lambda: next(steps) and None, run.config.batch_size)


def advance_in_turn(contenders: dict[str, Contender], options: argparse.Namespace) -> None:
    """Times blocks of steps, one contender after another; a block is as many steps as fit into its time."""
    clock = time.process_time if options.threads == 1 else time.perf_counter
    steps = {}
    for name, contender in contenders.items():
        contender.advance()
        started = clock()
        contender.advance()
        steps[name] = max(1, int(options.block / (clock() - started)))
    for _ in range(options.blocks):
        for name, contender in contenders.items():
            started = clock()
            for _ in range(steps[name]):
                contender.advance()
            contender.seconds.append((clock() - started) / steps[name])


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
    speed = (f"{name}, images/s" for name in (VSFIX, EAGER, UOUT))
    heads = ("network", *speed, "time, vsfix / torch eager", "time, Uout / Dropout", "weights after the first step")
    lines = ["| " + " | ".join(heads) + " |", "| --- " + "| ---: " * 5 + "| --- |"]
    for model, row in found["models"].items():
        speeds = " | ".join(f"{value:,.0f}" for value in row["images_per_second"].values())
        ratios = " | ".join(interval(row[ratio]) for ratio in RATIOS)
        first = "the same bits" if row["first_step"] == 0 else f"differ by {row['first_step']:.1e}"
        lines.append(f"| {model} | {speeds} | {ratios} | {first} |")
    return "\n".join(lines)


def missed(found: Facts) -> list[str]:
    """The networks that miss a target."""
    misses = []
    for model, row in found["models"].items():
        for ratio, (one, other) in RATIOS.items():
            _, low, high = row[ratio]
            if low > TARGET_RATIO:
                misses.append(
                    f"{model}: {one} takes {low:.3f} to {high:.3f} of {other}'s time, wanted {TARGET_RATIO:g}"
                )
        if row["first_step"] > 0:
            misses.append(f"{model}: the first steps differ by {row['first_step']:.1e}")
    return misses


if __name__ == "__main__":
    sys.exit(main())
