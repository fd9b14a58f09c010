"""What a repair of a ResNet-50 at 224 x 224 costs, in plain forwards of its own samples.

    python benchmarks/large_repair.py --methods auto exact paired --out large.json

The network has random weights, and statistics that are true under its noise: Dropout 0.2 upstream of the last BatchNorm
of each block of its last --noisy-groups groups of four. 32 images, `--no-refine`. Seconds of the processor, of the
repair and of ONNX Runtime over the same images, which run in turns. Exit code 1 where a repair takes more than its
target.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vsfix
from vsfix.graph_passes.io.model_file import read_model
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner
from vsfix.pipeline.host.environment import describe_environment
from vsfix.trainers.export.onnx_export import export_onnx

SAMPLES, SIDE, AT_ONCE = 32, 224, 8
TARGET = 12.0  # forwards
GROUPS = ((64, 3), (128, 4), (256, 6), (512, 3))


class Block(nn.Module):
    """A bottleneck of He et al. 2016, with Dropout upstream of its last BatchNorm."""

    def __init__(self, channels: int, width: int, stride: int, ratio: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 4 * width, 1, bias=False), nn.Dropout(ratio) if ratio else nn.Identity()),
            nn.BatchNorm2d(4 * width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if channels != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of both ways, (N, C, H, W)."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(noisy_groups: int) -> nn.Module:
    """The network, (N, 3, 224, 224) -> (N, 1000)."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = 64
    for group, (width, blocks) in enumerate(GROUPS):
        ratio = 0.2 if group >= len(GROUPS) - noisy_groups else 0.0
        for block in range(blocks):
            layers.append(Block(channels, width, 2 if group and not block else 1, ratio))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["auto"], help="(default: %(default)s)")
    parser.add_argument("--noisy-groups", type=int, default=2, help="from the last on (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    images = smooth_images()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet-50.onnx"
        export(options.noisy_groups, images, path)
        rows = compare(path, images.numpy(), options.methods, options.repeat)
    print("| method | seconds | a forward | forwards |\n| --- | ---: | ---: | ---: |")
    for row in rows:
        print(f"| {row['method']} | {row['seconds']:.1f} | {row['forward']:.2f} | {row['forwards']:.1f} |")
    if options.out:
        options.out.write_text(json.dumps({"environment": describe_environment(), "rows": rows}, indent=1) + "\n")
    missed = [row["method"] for row in rows if row["forwards"] > TARGET]
    print(f"MISS {', '.join(missed)}: {TARGET:g} forwards are wanted" if missed else "the target is met")
    return 1 if missed else 0


def smooth_images() -> torch.Tensor:
    """Images of random spots, (32, 3, 224, 224)."""
    torch.manual_seed(1)
    spots = nn.functional.interpolate(torch.randn(SAMPLES, 3, 14, 14), size=(SIDE, SIDE), mode="bicubic")
    return spots + 0.3 * torch.randn(SAMPLES, 3, SIDE, SIDE)


def export(noisy_groups: int, images: torch.Tensor, path: Path) -> None:
    """Writes the network with the statistics of the images under its noise."""
    torch.manual_seed(0)
    module = resnet(noisy_groups)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        module.train()(images)
    export_onnx(module.eval(), images[:2], path)


def compare(path: Path, images: Any, methods: Sequence[str], repeat: int) -> list[dict[str, Any]]:
    """Each method beside a forward that runs in turns with it."""
    model, found = read_model(path), []

    def forward() -> None:
        with OnnxRuntimeRunner(model) as runner:
            for first in range(0, SAMPLES, AT_ONCE):
                runner.run({"input": images[first : first + AT_ONCE]})

    for method in methods:
        times: list[tuple[float, float]] = []
        for _ in range(repeat):
            one = statistics.median(clocked(forward) for _ in range(3))

            def repair(method: str = method) -> object:
                return vsfix.optimize(model, {"input": images}, method=method, refine=False)

            times.append((clocked(repair), one))
        seconds, one = (statistics.median(column) for column in zip(*times, strict=True))
        found.append({"method": method, "seconds": seconds, "forward": one, "forwards": seconds / one})
    return found


def clocked(work: Callable[[], object]) -> float:
    """Seconds of the processor."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    sys.exit(main())
