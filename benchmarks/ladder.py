"""The ladder: eight small networks, every method, no data to the whole training set, against the best there is.

    python benchmarks/ladder.py ladder                     # trains what is missing, measures what is missing, prints
    python benchmarks/ladder.py ladder --only mlp-5        # one network

Each network is trained on 30,000 images of Fashion-MNIST for two epochs (one trains on fewer, see NETWORKS), exported,
and repaired by each method with 0, 8, 32 and 256 images; paired and distill under several seeds of the choice of the
images and of the noise. The oracle is `exact` over the images that the network was trained on. Every measurement is a
line of ladder/results.jsonl and is not taken again; delete the file to start afresh. Exit code 1 where a target is
missed:

    32 images   within 0.5 points of the oracle (mean over the seeds), and no run more than 0.2 below as trained
    0 images    at least 90 % of the oracle's gain where that is over one point, never more than 0.2 below as trained
    no noise    left as it is
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from vsfix.graph_passes.batches import Batch
from vsfix.graph_passes.model_file import read_model
from vsfix.pipeline.accuracy import accuracy_of
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner, open_for_small_runs
from vsfix.pipeline.calibration import calibration_batches, labelled_samples
from vsfix.pipeline.exporting import export_checkpoint
from vsfix.pipeline.repair import repair_model
from vsfix.pipeline.repair_config import RepairConfig
from vsfix.trainers.checkpoint import load_checkpoint
from vsfix.trainers.network import NetworkConfig
from vsfix.trainers.noise_sites import NoiseSites, Site
from vsfix.trainers.training_config import TrainingConfig
from vsfix.trainers.training_loop import train

DATA = "fashion-mnist"
TRAINING_IMAGES = 30000
BATCH_SIZE = 256
IMAGES = (8, 32, 256)
NEAR_ORACLE, HARM, GAIN = 0.5, 0.2, 0.9  # points, points, share


@dataclass(frozen=True)
class Rung:
    """One network of the ladder."""

    name: str
    model: str
    noise: str | None
    site: Site
    images: int = TRAINING_IMAGES
    batch_size: int = 128

    def training(self) -> TrainingConfig:
        """How it is trained."""
        noise = NoiseSites.parse([self.noise or "none"], self.site)
        network = NetworkConfig(self.model, 1, (28, 28), 10, noise)
        return TrainingConfig(DATA, network, epochs=2, samples=self.images, batch_size=self.batch_size)


NETWORKS = (
    Rung("PreResNet-20, Dropout 0.5 at a", "preresnet-20", "dropout:0.5", "a"),
    Rung("PreResNet-20, Dropout 0.5 at b", "preresnet-20", "dropout:0.5", "b"),
    Rung("WRN-16-1, Dropout 0.5 at b", "wrn-16-1", "dropout:0.5", "b"),
    Rung("DenseNet-BC-22-8, Dropout 0.5 at b", "densenet-22-8", "dropout:0.5", "b"),
    Rung("ResNeXt-11 4x4d, Dropout 0.5 at a", "resnext-11-4x4d", "dropout:0.5", "a", images=6000, batch_size=64),
    Rung("MLP-5, Dropout 0.5 at a", "mlp-5", "dropout:0.5", "a"),
    Rung("PreResNet-20, Uout 0.1 at a", "preresnet-20", "uout:0.1", "a"),
    Rung("PreResNet-20, no noise", "preresnet-20", None, "a"),
)


@dataclass(frozen=True)
class Measurement:
    """One repair and the accuracy that it led to.

    Attributes:
        network: the name of the rung.
        method: `as trained`, `oracle`, or a method.
        images: of the user; 0 without data.
        seed: of the choice of the images, and of the noise.
        top1: in per cent, on the 10,000 test images.
        seconds: for the repair.
        repaired: how many BatchNorms changed.
    """

    network: str
    method: str
    images: int
    seed: int
    top1: float
    seconds: float
    repaired: int

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What tells it from the others."""
        return self.network, self.method, self.images, self.seed


def plan(rung: Rung, seeds: int) -> Iterator[tuple[str, int, int]]:
    """Method, images and seed of every measurement of one network."""
    yield "as trained", 0, 0
    yield "oracle", rung.images, 0
    yield "analytic", 0, 0
    for seed in range(seeds):
        yield "distill", 0, seed
        yield from (("paired", images, seed) for images in IMAGES)
    yield from ((method, images, 0) for images in IMAGES for method in ("exact", "stream"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the networks and the results are kept")
    parser.add_argument("--only", help="networks whose model name contains this")
    parser.add_argument("--skip", nargs="*", default=[], help="methods to leave out for now")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    results = options.folder / "results.jsonl"
    done = {found.key: found for found in read(results)}
    for rung in NETWORKS:
        if options.only and options.only not in rung.model:
            continue
        model = trained(rung, options.folder)
        for method, images, seed in plan(rung, options.seeds):
            if (rung.name, method, images, seed) in done or method in options.skip:
                continue
            found = measure(rung, model, method, images, seed)
            done[found.key] = found
            with results.open("a") as file:
                file.write(json.dumps(found.__dict__) + "\n")
            print(f"{found.network}: {method} {images} images, seed {seed}: {found.top1:.2f} %", file=sys.stderr)
    print(table(list(done.values())))
    misses = [miss for rung in NETWORKS for miss in missed(rung.name, list(done.values()))]
    print("\n".join(["", *(f"MISS {miss}" for miss in misses)] if misses else ["", "every target is met"]))
    return 1 if misses else 0


def read(path: Path) -> list[Measurement]:
    """The measurements that were taken before."""
    if not path.exists():
        return []
    return [Measurement(**json.loads(line)) for line in path.read_text().splitlines()]


def trained(rung: Rung, folder: Path) -> onnx.ModelProto:
    """The exported network; trained and exported where that was not done yet."""
    stem = rung.name.replace(" ", "-").replace(",", "").lower()
    exported = folder / f"{stem}.onnx"
    if not exported.exists():
        result = train(rung.training(), folder / stem)
        export_checkpoint(load_checkpoint(result.checkpoint), exported, force=True)
    return read_model(exported)


def measure(rung: Rung, model: onnx.ModelProto, method: str, images: int, seed: int) -> Measurement:
    """Repairs in one way and counts."""
    started, repaired, repairs = time.perf_counter(), model, 0
    if method != "as trained":
        name = "exact" if method == "oracle" else method
        layers = "all" if name in ("exact", "stream") else "auto"
        batches = calibration(model, images, seed) if images else []
        started = time.perf_counter()
        repair = repair_model(model, batches, open_for_small_runs, RepairConfig(name, layers, seed=seed))
        repaired, repairs = repair.model, len(repair.statistics) // 2
    seconds = time.perf_counter() - started
    labelled = labelled_samples(model, DATA, split="test", seed=0)
    with OnnxRuntimeRunner(repaired) as runner:
        top1 = 100 * accuracy_of(method, runner, labelled, batch_size=BATCH_SIZE).accuracy
    return Measurement(rung.name, method, images, seed, top1, seconds, repairs)


def calibration(model: onnx.ModelProto, images: int, seed: int) -> list[Batch]:
    """Training images, chosen under the seed."""
    return list(calibration_batches(model, DATA, samples=images, batch_size=BATCH_SIZE, seed=seed, at_most=False))


def select(found: Sequence[Measurement], network: str, method: str, images: int | None = None) -> list[Measurement]:
    """The measurements of one cell of the table; with any number of images where none is given."""
    cell = [m for m in found if (m.network, m.method) == (network, method)]
    return [m for m in cell if images is None or m.images == images]


def table(found: Sequence[Measurement]) -> str:
    """One row for each network, in Markdown."""
    columns: list[tuple[str, str, int | None]] = [("as trained", "as trained", 0), ("oracle", "oracle", None)]
    columns += [(f"{method}, 0", method, 0) for method in ("analytic", "distill")]
    columns += [(f"{method}, {n}", method, n) for n in IMAGES for method in ("paired", "exact", "stream")]
    lines = ["| network | " + " | ".join(name for name, _, _ in columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for rung in NETWORKS:
        cells = [cell(select(found, rung.name, method, images)) for _, method, images in columns]
        lines.append(f"| {rung.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(found: Sequence[Measurement]) -> str:
    """The mean over the seeds, and the extremes where there are several."""
    values = [m.top1 for m in found]
    if not values:
        return "-"
    mean = sum(values) / len(values)
    return f"{mean:.2f}" if len(values) == 1 else f"{mean:.2f} ({min(values):.2f}-{max(values):.2f})"


def missed(network: str, found: Sequence[Measurement]) -> list[str]:
    """The targets that one network misses."""
    start, best = select(found, network, "as trained", 0), select(found, network, "oracle")
    if not start or not best:
        return []
    before, oracle = start[0].top1, best[0].top1
    paired, distilled = select(found, network, "paired", 32), select(found, network, "distill", 0)
    misses = []
    if paired and sum(m.top1 for m in paired) / len(paired) < oracle - NEAR_ORACLE:
        misses.append(f"{network}: paired with 32 images is more than {NEAR_ORACLE} points below the oracle")
    if any(m.top1 < before - HARM for m in (*paired, *distilled)):
        misses.append(f"{network}: a repair lost more than {HARM} points against as trained")
    for m in distilled:
        if oracle - before > 1 and m.top1 - before < GAIN * (oracle - before):
            misses.append(
                f"{network}: without data, seed {m.seed}, {(m.top1 - before) / (oracle - before):.0%} of the gain"
            )
    if "no noise" in network and any(m.repaired for m in (*paired, *distilled)):
        misses.append(f"{network}: was not left as it is")
    return misses


if __name__ == "__main__":
    sys.exit(main())
