"""Training on an NVIDIA GPU: images per second of vsfix's loop beside others, and what Uout costs beside Dropout.

    python benchmarks/gpu/training_speed.py results                       # WRN-28-10 and PreResNet-110, batch 128
    python benchmarks/gpu/training_speed.py results --only uout           # or: throughput
    python benchmarks/gpu/training_speed.py results --device cpu --only uout --models preresnet-20 --batch 64

Run from the root of the repository, with PYTHONPATH=.typing where vsfix is not installed. Fashion-MNIST where it is,
else random images of its shape: the speed does not depend on them. Writes results/training_speed.json and prints the
tables. Exit code 3 without a GPU, 1 where a target is missed:

    throughput    vsfix over torch eager at least 1.0
    Uout          time of a step over that with nn.Dropout at most 1.0 (missed where the whole interval of the median
                  lies above), memory kept for the backward pass at most nn.Dropout's

Throughput: the loops of one network are advanced in turn, in blocks, each with its own weights:

    vsfix         `training_run`: bf16, channels_last on a GPU, crop and flip on the device
    vsfix compiled    the same through torch.compile
    torch eager   the loop of PyTorch's tutorials: DataLoader with crop and flip in workers, autocast, no channels_last
    timm          timm's prefetching loader and its SGD around the same network, channels_last; where timm is installed

Uout: forward and backward of the layer alone on a (128, 160, 32, 32) tensor, (128, 16, 28, 28) on a CPU, and of a whole
training step of a network.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.errors import VsfixError
from vsfix.graph_passes.noise.noise import Noise
from vsfix.pipeline.host.environment import describe_environment
from vsfix.trainers.data.datasets import load_dataset
from vsfix.trainers.data.preprocessing import Preprocessing
from vsfix.trainers.layers.noise_layers import Uout, make_noise_layer
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig, build_network
from vsfix.trainers.training.augmentation import Augmentation
from vsfix.trainers.training.evaluation import EpochLosses
from vsfix.trainers.training.fabric_session import fabric_session
from vsfix.trainers.training.training_config import TrainingConfig
from vsfix.trainers.training.training_data import TensorImages, TrainingData
from vsfix.trainers.training.training_run import TrainingRun

MODELS = ("wrn-28-10", "preresnet-110")
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "nn.Dropout 0.5": lambda: nn.Dropout(0.5),
    "Uout 0.1": lambda: Uout(0.1),
    "Uout 0.1, bernoulli": lambda: Uout(0.1, "bernoulli"),
    "Uout 0.1, gaussian": lambda: Uout(0.1, "gaussian"),
}
NOISES = {"nn.Dropout 0.5": "dropout:0.5", "Uout 0.1": "uout:0.1", "Uout 0.1, bernoulli": "uout-bernoulli:0.1"}
CROP = 4


@dataclass
class Contender:
    """One loop, or one layer.

    Attributes:
        advance: makes one step.
        images: of a step.
        seconds: of a step, one entry for each block.
    """

    advance: Callable[[], None]
    images: int
    seconds: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("nothing was run: no GPU here; --device cpu tries the script out", file=sys.stderr)
        return 3
    options.results.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    found: dict[str, Any] = {"environment": describe_environment() | {"device": device_name(device)}}
    misses: list[str] = []
    if options.only != "uout":
        found["throughput"] = {model: throughput(model, device, options) for model in options.models}
        misses += missed_throughput(found["throughput"])
    if options.only != "throughput":
        found["uout"] = uout(device, options)
        misses += missed_uout(found["uout"])
    found["misses"] = misses
    (options.results / "training_speed.json").write_text(json.dumps(found, indent=2))
    print(report(found))
    print("\n".join(f"MISS {miss}" for miss in misses) or "every target is met")
    return 1 if misses else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", choices=["throughput", "uout"])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--block", type=float, default=1.0, help="seconds of a block")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled contender out")
    return parser.parse_args(arguments)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def throughput(model: str, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Images per second of each loop, and the ratios over torch eager block by block."""
    images, labels = load_images(options.images)
    with fabric_session("auto") as fabric:
        contenders = {"vsfix": vsfix_loop(model, images, labels, fabric, options, compiled=False)}
        if not options.no_compile:
            contenders["vsfix compiled"] = vsfix_loop(model, images, labels, fabric, options, compiled=True)
        contenders["torch eager"] = eager_loop(model, images, labels, device, options)
        if find_spec("timm") is not None:
            contenders["timm"] = timm_loop(model, images, labels, device, options)
        interleave(contenders, device, options)
    speeds = {name: options.batch / np.median(contender.seconds) for name, contender in contenders.items()}
    eager = np.array(contenders["torch eager"].seconds)
    ratios = {name: median_with_interval(eager / np.array(c.seconds)) for name, c in contenders.items()}
    return {"images_per_second": speeds, "over_eager": ratios, "timm": "timm" in contenders}


def load_images(count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Fashion-MNIST, or random images of its shape."""
    try:
        data = load_dataset("fashion-mnist", "train")
        return data.images[:count], data.labels[:count]
    except VsfixError:
        rng = np.random.default_rng(0)
        return rng.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8), rng.integers(0, 10, count)


def network_config(model: str, noise: str = "a=dropout:0.5") -> NetworkConfig:
    return NetworkConfig(model, 1, (28, 28), 10, NoiseSites.parse([noise]))


def vsfix_loop(
    model: str, images: Any, labels: Any, fabric: Any, options: argparse.Namespace, *, compiled: bool
) -> Contender:
    """The product's own loop."""
    augmentation = Augmentation(crop=CROP, flip=True)
    config = TrainingConfig(
        "fashion-mnist",
        network_config(model),
        epochs=10_000,
        batch_size=options.batch,
        augmentation=augmentation,
        compiled=compiled,
    )
    preprocessing = Preprocessing(1, (28, 28), (0.2860,), (0.3530,))
    source = TensorImages(torch.from_numpy(preprocessing.apply(images)).to(fabric.device))
    classes = torch.from_numpy(labels).to(fabric.device)
    run = TrainingRun(config, TrainingData(source, classes, source, classes, preprocessing), fabric, None)
    made = endless_steps(run)
    return Contender(lambda: next(made) and None, options.batch)


def endless_steps(run: TrainingRun) -> Iterator[int]:
    """The steps of one epoch after another, without the evaluations between them."""
    while True:
        yield from run.steps()
        run._losses = EpochLosses(run.steps_per_epoch, run.fabric)


def eager_loop(model: str, images: Any, labels: Any, device: torch.device, options: argparse.Namespace) -> Contender:
    """The loop of the tutorials."""
    loader = torch.utils.data.DataLoader(
        Cropped(images, labels),
        options.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers(),
        pin_memory=device.type == "cuda",
    )
    module = build_network(network_config(model)).to(device)
    return stepping(module, endless(loader), torch.optim.SGD(module.parameters(), 0.1, momentum=0.9), device, options)


def timm_loop(model: str, images: Any, labels: Any, device: torch.device, options: argparse.Namespace) -> Contender:
    """timm's loader and optimizer around the same network."""
    from timm.data.loader import PrefetchLoader, fast_collate
    from timm.optim import create_optimizer_v2

    loader = torch.utils.data.DataLoader(
        Cropped(images, labels, as_bytes=True),
        options.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers(),
        collate_fn=fast_collate,
        pin_memory=device.type == "cuda",
    )
    prefetching = PrefetchLoader(loader, mean=(0.2860,), std=(0.3530,), channels=1, device=device)
    module: Any = build_network(network_config(model)).to(device)
    module = module.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(module, opt="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4)
    return stepping(module, endless(prefetching), optimizer, device, options)


class Cropped(torch.utils.data.Dataset[Any]):
    """Images cropped and flipped one by one on the CPU."""

    def __init__(self, images: Any, labels: Any, *, as_bytes: bool = False) -> None:
        self.images = np.pad(images, ((0, 0), (CROP, CROP), (CROP, CROP), (0, 0))).transpose(0, 3, 1, 2)
        self.labels, self.as_bytes = labels, as_bytes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> Any:
        top, left, flip = torch.randint(2 * CROP + 1, ()), torch.randint(2 * CROP + 1, ()), torch.rand(()) < 0.5
        image = self.images[row, :, int(top) : int(top) + 28, int(left) : int(left) + 28]
        image = np.ascontiguousarray(image[:, :, ::-1] if flip else image)
        if self.as_bytes:
            return image, int(self.labels[row])
        return (torch.from_numpy(image).float() / 255 - 0.2860) / 0.3530, int(self.labels[row])


def workers() -> int:
    return min(8, os.cpu_count() or 1)


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def stepping(
    module: nn.Module, batches: Iterator[Any], optimizer: Any, device: torch.device, options: argparse.Namespace
) -> Contender:
    """A training step on the next batch, in bf16 on a GPU."""
    module.train()

    def advance() -> None:
        images, labels = next(batches)
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
            loss = F.cross_entropy(module(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return Contender(advance, options.batch)


def interleave(contenders: dict[str, Contender], device: torch.device, options: argparse.Namespace) -> None:
    """Advances the contenders in turn; each block is as many steps as fit into its time."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    steps = {}
    for name, contender in contenders.items():
        for _ in range(3):
            contender.advance()
        wait()
        started = time.perf_counter()
        contender.advance()
        wait()
        steps[name] = max(1, int(options.block / (time.perf_counter() - started)))
    for _ in range(options.blocks):
        for name, contender in contenders.items():
            wait()
            started = time.perf_counter()
            for _ in range(steps[name]):
                contender.advance()
            wait()
            contender.seconds.append((time.perf_counter() - started) / steps[name])


def median_with_interval(ratios: np.ndarray[Any, Any]) -> list[float]:
    """The median, and the two order statistics between which the true one lies with at least 95 % (binomial)."""
    ordered = np.sort(ratios)
    count = len(ordered)
    margin = max(0, int(np.floor(count / 2 - 0.98 * np.sqrt(count))))
    return [float(np.median(ordered)), float(ordered[margin]), float(ordered[count - 1 - margin])]


def uout(device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Times and memory of the noise layers, alone and in a training step."""
    shape = (options.batch, *((160, 32, 32) if device.type == "cuda" else (16, 28, 28)))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    found = {"layer alone": compare({n: layer_step(make(), x) for n, make in LAYERS.items()}, device, options)}
    found["layer alone"]["kept_bytes_per_element"] = {name: kept_bytes(make(), x) for name, make in LAYERS.items()}
    for model in options.models:
        steps = {name: network_step(model, noise, device, options) for name, noise in NOISES.items()}
        found[f"step of {model}"] = compare(steps, device, options)
    return found


def layer_step(layer: nn.Module, x: torch.Tensor) -> Contender:
    layer.train()
    gradient = torch.ones_like(x)
    return Contender(lambda: torch.autograd.grad(layer(x), x, gradient) and None, len(x))


def network_step(model: str, noise: str, device: torch.device, options: argparse.Namespace) -> Contender:
    module: Any = build_network(network_config(model, f"a={noise}")).to(device)
    module = module.to(memory_format=torch.channels_last)
    assert any(type(part) is type(make_noise_layer(Noise.parse(noise))) for part in module.modules())
    batch = torch.randn(options.batch, 1, 28, 28, device=device), torch.arange(options.batch, device=device) % 10
    optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9)
    return stepping(module, endless([batch]), optimizer, device, options)


def kept_bytes(layer: nn.Module, x: torch.Tensor) -> float:
    """What autograd keeps of a forward pass, for each element of the input."""
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer.train()(x)
    return sum(kept) / x.numel()


def compare(contenders: dict[str, Contender], device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a step, and its ratio over the first contender, block by block."""
    interleave(contenders, device, options)
    first = np.array(next(iter(contenders.values())).seconds)
    return {
        "milliseconds": {name: 1000 * float(np.median(c.seconds)) for name, c in contenders.items()},
        "over_dropout": {name: median_with_interval(np.array(c.seconds) / first) for name, c in contenders.items()},
    }


def missed_throughput(found: dict[str, Any]) -> list[str]:
    return [
        f"{model}: vsfix has {rows['over_eager']['vsfix'][0]:.2f} times the images/s of torch eager"
        for model, rows in found.items()
        if rows["over_eager"]["vsfix"][2] < 1
    ]


def missed_uout(found: dict[str, Any]) -> list[str]:
    misses = [
        f"{what}: {name} takes {low:.3f} to {high:.3f} times as long as nn.Dropout"
        for what, rows in found.items()
        for name, (_, low, high) in rows["over_dropout"].items()
        if low > 1
    ]
    kept = found["layer alone"]["kept_bytes_per_element"]
    allowed = kept["nn.Dropout 0.5"]
    return misses + [f"{name} keeps {size:g} bytes per element" for name, size in kept.items() if size > allowed]


def report(found: dict[str, Any]) -> str:
    """The tables in Markdown."""
    lines = [f"{found['environment']['device']}, torch {found['environment'].get('torch')}", ""]
    for model, rows in found.get("throughput", {}).items():
        lines += [f"| {model} | images/s | over torch eager |", "| --- | --- | --- |"]
        for name, speed in rows["images_per_second"].items():
            lines.append(f"| {name} | {speed:,.0f} | {interval(rows['over_eager'][name])} |")
        lines += ["" if rows["timm"] else "timm: NOT RUN, it is not installed", ""]
    for what, rows in found.get("uout", {}).items():
        lines += [f"| {what} | ms | over nn.Dropout | bytes kept per element |", "| --- | --- | --- | --- |"]
        kept = rows.get("kept_bytes_per_element", {})
        for name, milliseconds in rows["milliseconds"].items():
            size = f"{kept[name]:g}" if name in kept else "-"
            lines.append(f"| {name} | {milliseconds:.3f} | {interval(rows['over_dropout'][name])} | {size} |")
        lines.append("")
    return "\n".join(lines)


def interval(value: Sequence[float]) -> str:
    return f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"


if __name__ == "__main__":
    sys.exit(main())
