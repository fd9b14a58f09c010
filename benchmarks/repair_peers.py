"""The repairs that a PyTorch user has at hand beside those of vsfix, on one network, over the number of images.

    vsfix train --model preresnet-20 --data fashion-mnist --noise dropout:0.5 --samples 30000 --epochs 2 -o run
    vsfix export run -o net.onnx
    python benchmarks/repair_peers.py run net.onnx --out peers.json --figure peers.svg

    update_bn             torch.optim.swa_utils.update_bn; it calls model.train(), and so Dropout is on
    update_bn, noise off  the same, with all but the BatchNorms kept in eval mode
    fvcore, noise off     fvcore.nn.precise_bn.update_bn_stats, all but the BatchNorms in eval mode (pip install fvcore)
    Dipoorlet's formula   what its --update_bn writes: BN after BN, a moving average over single images, the standard
                          deviation where the variance belongs; here without the fake quantisation that it runs under
    vsfix exact           over all BatchNorms of the exported file
    vsfix paired          over those that noise reaches; stops by itself when its intervals are narrow
    vsfix match           toward the noise-averaged network, closed form; what `vsfix optimize --no-refine` does

The noise-averaged network is no repair: it is what a repair is to reach. Its top-1 is that of the mean of the
probabilities of 32 passes with the noise on, once for each seed, at no image.

Each seed chooses other training images, the same for every method, in batches of 256. Top-1 is that of the 10,000 test
images. The time is that of the repair, from images in memory to the repaired model; for vsfix that takes in what
`vsfix optimize` does besides: the shifts before and after, the fold and its check. The methods take turns. With --out
the measurements that the file holds are not taken again, so that a run can be continued and a figure drawn anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import torch
from repair_peers_table import AS_TRAINED, AVERAGED, DIPOORLET, FVCORE, METHODS, Measurement, draw, table
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from typing_extensions import Self

from vsfix.graph_passes.io.model_file import read_model
from vsfix.graph_passes.statistics.batches import Batch
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner, open_for_small_runs
from vsfix.pipeline.comparison.accuracy import accuracy_of
from vsfix.pipeline.data.calibration import calibration_batches, labelled_samples
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig
from vsfix.trainers.training.checkpoint import Checkpoint, load_checkpoint

IMAGES = (4, 8, 16, 32, 64, 128, 256, 1024, 4096, 30000)
BATCH_SIZE = 256
WARM_UP_IMAGES = 32
PASSES = 32  # of the noise-averaged network
PACKAGES = ("vsfix", "torch", "fvcore", "onnx", "onnxruntime", "numpy")


class NoiseOff(nn.Module):
    """A network of which nothing but the BatchNorms ever enters training mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The network's output."""
        output: torch.Tensor = self.network(images)
        return output

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of the BatchNorms."""
        super().train(False)
        for layer in self.network.modules():
            if isinstance(layer, _BatchNorm):
                layer.train(mode)
        return self


class Bench:
    """One network in both its forms, and the images that its repairs are judged on."""

    def __init__(self, run: Path, exported: Path, test_images: int) -> None:
        self.checkpoint: Checkpoint = load_checkpoint(run / "checkpoint.pt")
        self.model: onnx.ModelProto = read_model(exported)
        self.data = self.checkpoint.training.data
        self.labelled: Samples = labelled_samples(self.model, self.data, split="test", seed=0, samples=test_images)

    @property
    def title(self) -> str:
        """The network in words."""
        network, training = self.checkpoint.network, self.checkpoint.training
        return f"{network.model}, noise {network.noise}, {training.data}"

    def measure(self, method: str, images: int, seed: int) -> Measurement:
        """Repairs in one way and counts."""
        batches = calibration_batches(self.model, self.data, samples=images, batch_size=BATCH_SIZE, seed=seed)
        if method.startswith("vsfix "):
            return self._measure_vsfix(method, batches, images, seed)
        tensors = [torch.from_numpy(next(iter(batch.values()))) for batch in batches]
        network = self.checkpoint.build()
        torch.manual_seed(seed)
        started = time.perf_counter()
        repair_in_torch(method, network, tensors)
        seconds = time.perf_counter() - started
        return Measurement(method, images, seed, self.top1_of_module(network), seconds, images)

    def top1_of_module(self, network: nn.Module) -> float:
        """In per cent."""
        return self._top1(network.eval())

    def average(self, seed: int) -> Measurement:
        """The mean of noisy passes, over the test images."""
        network = self.checkpoint.build().eval()
        for layer in network.modules():
            if not isinstance(layer, _BatchNorm) and not [*layer.children()]:
                layer.training = True
        torch.manual_seed(seed)
        started = time.perf_counter()
        top1 = self._top1(
            lambda images: torch.stack([network(images).softmax(dim=1) for _ in range(PASSES)]).mean(dim=0)
        )
        return Measurement(AVERAGED, 0, seed, top1, time.perf_counter() - started, 0)

    def _top1(self, scores: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """Of the test images, in per cent."""
        correct = 0
        with torch.inference_mode():
            for number, batch in enumerate(self.labelled.batches(BATCH_SIZE)):
                found = scores(torch.from_numpy(next(iter(batch.values())))).argmax(dim=1).numpy()
                assert self.labelled.labels is not None
                correct += int((found == self.labelled.labels[number * BATCH_SIZE :][: len(found)]).sum())
        return 100 * correct / len(self.labelled)

    def top1_of_file(self, model: onnx.ModelProto) -> float:
        """In per cent."""
        with OnnxRuntimeRunner(model) as runner:
            return accuracy_of("", runner, self.labelled, batch_size=BATCH_SIZE).score.value

    def _measure_vsfix(self, method: str, batches: Sequence[Batch], images: int, seed: int) -> Measurement:
        """A repair of the file."""
        name = method.removeprefix("vsfix ")
        config = RepairConfig(name, "all" if name == "exact" else "auto", refine=False, seed=seed)
        started = time.perf_counter()
        repair = repair_model(self.model, batches, open_for_small_runs, config)
        seconds = time.perf_counter() - started
        return Measurement(method, images, seed, self.top1_of_file(repair.model), seconds, repair.report.samples)


def repair_in_torch(method: str, network: nn.Module, images: Sequence[torch.Tensor]) -> None:
    """Re-estimates the statistics of `network` in place."""
    if method == "update_bn":
        update_bn(images, network)
    elif method == DIPOORLET:
        moving_averages(network, images)
    elif method == FVCORE:
        from fvcore.nn.precise_bn import update_bn_stats

        update_bn_stats(NoiseOff(network).train(), images, num_iters=len(images))
    else:
        update_bn(images, NoiseOff(network))


@torch.inference_mode()
def moving_averages(network: nn.Module, images: Sequence[torch.Tensor], momentum: float = 0.9) -> None:
    """Writes into each 2-D BatchNorm, in order, for one image after the other, x (C, H, W) what the BatchNorm sees:

        mean <- momentum mean + (1 - momentum) mean x        variance <- momentum variance + (1 - momentum) std x

    The formula, not the code: `update_bn_node` of Dipoorlet, with its momentum.
    """
    network.eval()
    for layer in [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]:
        found = [layer.running_mean.double(), layer.running_var.double()]

        def take(_: nn.Module, inputs: tuple[torch.Tensor], found: list[torch.Tensor] = found) -> None:
            x = inputs[0].double()  # (N, C, H, W)
            moments = x.mean(dim=(2, 3)), x.std(dim=(2, 3), correction=0)
            for one in zip(*moments, strict=True):
                found[:] = [momentum * before + (1 - momentum) * new for before, new in zip(found, one, strict=True)]

        hook = layer.register_forward_pre_hook(take)
        for batch in images:
            network(batch)
        hook.remove()
        layer.running_mean.copy_(found[0])
        layer.running_var.copy_(found[1])


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    bench = Bench(options.run, options.model, options.test_images)
    found = read(options.out, bench)
    methods = [method for method in METHODS if method != FVCORE or find_spec("fvcore")]
    if (AS_TRAINED, 0, 0) not in {key(m) for m in found}:
        top1 = bench.top1_of_file(bench.model), bench.top1_of_module(bench.checkpoint.build())
        if abs(top1[0] - top1[1]) > 0.1:
            raise SystemExit(
                f"{options.model}: top-1 {top1[0]:.2f} %, that of {options.run} {top1[1]:.2f} %: not the same"
            )
        found.append(Measurement(AS_TRAINED, 0, 0, top1[0], 0.0, 0))
    known = {key(measurement) for measurement in found}
    found += [bench.average(seed) for seed in range(options.seeds) if (AVERAGED, 0, seed) not in known]
    take_all(bench, plan(methods, options.images, options.seeds), found, lambda: write(options.out, bench, found))
    write(options.out, bench, found)
    print(f"{bench.title}; mean over {options.seeds} seeds, and the extremes\n\n{table(found, options.images)}")
    if options.figure:
        options.figure.write_text(draw(found, options.images, bench.title))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="of `vsfix train`")
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="what `vsfix export` made of it")
    parser.add_argument("--images", type=numbers, default=IMAGES, help="how many, as 4,8,16")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: %(default)s)")
    parser.add_argument("--test-images", type=int, default=10000, help="for the top-1 (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--figure", type=Path, metavar="FILE.svg")
    return parser.parse_args(arguments)


def numbers(text: str) -> tuple[int, ...]:
    """Reads `4,8,16`."""
    return tuple(int(part) for part in text.split(","))


def plan(methods: Sequence[str], images: Sequence[int], seeds: int) -> list[tuple[str, int, int]]:
    """Every measurement in its order: the methods take turns, and take turns in being first."""
    rounds = [(count, seed) for seed in range(seeds) for count in images]
    turned = [[*methods[i % len(methods) :], *methods[: i % len(methods)]] for i in range(len(rounds))]
    return [(method, *which) for which, order in zip(rounds, turned, strict=True) for method in order]


def take_all(
    bench: Bench, wanted: Sequence[tuple[str, int, int]], found: list[Measurement], save: Callable[[], None]
) -> None:
    """Takes what is missing, each method once for nothing before, so that no first call is timed."""
    done = {key(measurement) for measurement in found}
    missing = [which for which in wanted if which not in done]
    for method in sorted({method for method, _, _ in missing}):
        bench.measure(method, WARM_UP_IMAGES, 0)
    for number, (method, images, seed) in enumerate(missing, start=1):
        found.append(bench.measure(method, images, seed))
        save()
        last = found[-1]
        print(
            f"{number}/{len(missing)} {method}, {images} images, seed {seed}: {last.top1:.2f} %, {last.seconds:.2f} s",
            file=sys.stderr,
        )


def key(found: Measurement) -> tuple[str, int, int]:
    """What tells it from the others."""
    return found.method, found.images, found.seed


def environment(bench: Bench) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "network": bench.title,
        "test_images": len(bench.labelled),
        "batch_size": BATCH_SIZE,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch_threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),
        "python": platform.python_version(),
        "versions": {package: version_of(package) for package in PACKAGES},
    }


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def read(path: Path | None, bench: Bench) -> list[Measurement]:
    """The measurements that were taken before.

    Raises:
        SystemExit: those of another network, machine or version.
    """
    if path is None or not path.exists():
        return []
    content = json.loads(path.read_text())
    if content["environment"] != json.loads(json.dumps(environment(bench))):
        raise SystemExit(f"{path}: was measured on something else; name another file, or delete it")
    return [Measurement(**row) for row in content["measurements"]]


def write(path: Path | None, bench: Bench, found: Sequence[Measurement]) -> None:
    if path is not None:
        content = {"environment": environment(bench), "measurements": [asdict(m) for m in found]}
        path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
