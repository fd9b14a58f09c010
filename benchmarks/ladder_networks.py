"""The networks of the ladder: how each is made, trained and exported, in the order in which they are trained.

Trained on 10,000 images for two epochs with batches of 64 (ResNeXt on 4,000), so that all of them take half an hour on
one core; the images are those of `ladder_tasks`. Regressors see 4,000 rows 40 times.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from ladder_modules import (
    Order,
    SmallUNet,
    TwoHeads,
    drop_path_network,
    normalized_network,
    plain_mlp,
    plain_network,
    regressor,
)
from ladder_tasks import KINDS, TRAINING_ROWS, Kind, Task, load_task, paper_task
from torch import nn
from torch.nn import functional

from vsfix.graph_passes.io.model_file import read_metadata, read_model
from vsfix.trainers.data.datasets import FASHION_MNIST_FOLDER
from vsfix.trainers.data.preprocessing import METADATA_KEY, Preprocessing
from vsfix.trainers.export.exporting import export_checkpoint
from vsfix.trainers.export.onnx_export import export_onnx
from vsfix.trainers.layers.noise_sites import NoiseSites, Site
from vsfix.trainers.networks.network import NetworkConfig
from vsfix.trainers.training.checkpoint import load_checkpoint
from vsfix.trainers.training.training_config import TrainingConfig
from vsfix.trainers.training.training_loop import train

RATE = 3e-3


@dataclass(frozen=True)
class Rung:
    """One network of the ladder.

    Attributes:
        name: as the table shows it.
        stem: of its files.
        task: the name of its data.
        make: trains it and writes it to a file.
        images: how many images `vsfix train` saw; 0 for a network of this folder, which saw all rows of its task.
        seed: of the training.
        healthy: whether a repair must leave it byte for byte.
    """

    name: str
    stem: str
    task: str
    make: Callable[[Path], None]
    images: int = 0
    seed: int = 0
    healthy: bool = False

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """What each of its outputs is, by the output's name."""
        return KINDS[self.task.rstrip("123")]

    def data(self, model: onnx.ModelProto) -> Task:
        """Its training and test rows in the form that it takes."""
        if not self.images:
            return load_task(self.task)
        preprocessing = Preprocessing.from_json(read_metadata(model)[METADATA_KEY])
        return paper_task(preprocessing, self.images, self.seed)

    def exported(self, folder: Path) -> onnx.ModelProto:
        """The network as a file of `folder`, trained where it is not there yet; the time stands in training.jsonl."""
        path = folder / f"{self.stem}.onnx"
        if not path.exists():
            started = time.perf_counter()
            self.make(path)
            line = {"stem": self.stem, "seconds": round(time.perf_counter() - started, 1)}
            with (folder / "training.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        return read_model(path)


def paper_rung(
    label: str, model: str, noise: str | None, site: Site, seed: int = 0, *, images: int = TRAINING_ROWS
) -> Rung:
    """A network of `vsfix train` on Fashion-MNIST."""
    name = f"{label}, {'no noise' if noise is None else f'{noise} at {site}'}" + (f", seed {seed}" if seed else "")
    stem = "-".join([model, *([noise.replace(":", "-"), site] if noise else ["none"]), str(seed)])
    make = partial(_train_paper, model=model, noise=noise, site=site, seed=seed, images=images)
    return Rung(name, stem, "fashion", make, images, seed, healthy=noise in (None, "uout:0.1"))


def _train_paper(path: Path, *, model: str, noise: str | None, site: Site, seed: int, images: int) -> None:
    """Trains as `vsfix train` does; 500 test images after each epoch instead of 10,000."""
    network = NetworkConfig(model, 1, (28, 28), 10, NoiseSites.parse([noise or "none"], site))
    data = f"fashion-mnist:{_short_test(path.parent)}"
    config = TrainingConfig(data, network, epochs=2, samples=images, batch_size=64, seed=seed)
    result = train(config, path.with_suffix(""))
    export_checkpoint(load_checkpoint(result.checkpoint), path, force=True)


def _short_test(folder: Path, count: int = 500) -> Path:
    """A folder with the training images and the first few test images."""
    short = folder / "short-test"
    if not short.exists():
        short.mkdir()
        for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
            (short / name).symlink_to(Path(FASHION_MNIST_FOLDER) / name)
        for name, header, size in (("t10k-images-idx3-ubyte", 16, 784), ("t10k-labels-idx1-ubyte", 8, 1)):
            values = gzip.decompress((Path(FASHION_MNIST_FOLDER) / f"{name}.gz").read_bytes())
            cut = values[:4] + count.to_bytes(4, "big") + values[8 : header + count * size]
            (short / name).write_bytes(cut)
    return short


def own_rung(
    name: str, stem: str, task: str, build: Callable[[], nn.Module], *, epochs: int = 3, healthy: bool = False
) -> Rung:
    """A network of `ladder_modules`."""
    return Rung(name, stem, task, partial(_train_own, build=build, task=task, epochs=epochs), healthy=healthy)


def _train_own(path: Path, *, build: Callable[[], nn.Module], task: str, epochs: int) -> None:
    """Trains with Adam and a rate that falls to nothing, and exports with BatchNorms and noise."""
    torch.manual_seed(0)
    data, module = load_task(task), build()
    fit(module, data, epochs, batch_size=100 if task.startswith("friedman") else 64)
    names = list(data.kinds)
    export_onnx(module, torch.from_numpy(data.inputs[:4]), path, force=True, output_name=names[0])
    if len(names) > 1:
        _split_outputs(path, names)


def fit(module: nn.Module, data: Task, epochs: int, batch_size: int) -> None:
    """Minimizes the sum of the losses of all outputs; the module is in eval mode afterwards."""
    inputs = torch.from_numpy(data.inputs)
    targets = {name: torch.from_numpy(np.ascontiguousarray(target)) for name, target in data.targets.items()}
    steps = epochs * (len(inputs) // batch_size)
    optimizer = torch.optim.Adam(module.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    module.train()
    for rows in _batches(len(inputs), epochs, batch_size):
        outputs = _outputs(module(inputs[rows]), data)
        loss = torch.stack([_loss(data, name, outputs[name], targets[name][rows]) for name in data.kinds]).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    module.eval()


def _batches(count: int, epochs: int, size: int) -> Iterator[torch.Tensor]:
    for _ in range(epochs):
        yield from torch.split(torch.randperm(count)[: count - count % size], size)


def _outputs(tensor: torch.Tensor, data: Task) -> dict[str, torch.Tensor]:
    """The outputs by name; those of several heads stand side by side in one tensor."""
    names = list(data.kinds)
    if len(names) == 1:
        return {names[0]: tensor}
    return dict(zip(names, torch.split(tensor, [10, tensor.shape[1] - 10], dim=1), strict=True))


def _loss(data: Task, name: str, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    kind = data.kinds[name]
    if kind == "classes":
        return functional.cross_entropy(output, target)
    return functional.binary_cross_entropy(output, target) if kind == "mask" else functional.mse_loss(output, target)


def _split_outputs(path: Path, names: list[str]) -> None:
    """Makes the parts of the last Concat outputs of their own: `vsfix export` takes modules of one output only."""
    model = onnx.load(path)
    graph = model.graph
    (concat,) = [node for node in graph.node if graph.output[0].name in node.output]
    parts, widths = list(concat.input), (10, 4)
    graph.node.remove(concat)
    del graph.output[:]
    for name, part, width in zip(names, parts, widths, strict=True):
        graph.node.append(onnx.helper.make_node("Identity", [part], [name], name=f"output_{name}"))
        graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", width]))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


ORDERS: tuple[Order, ...] = ("dropout-bn-relu", "relu-dropout-bn", "bn-relu-dropout")
TABLES = {2: ("friedman1",) * 3, 4: ("friedman1", "friedman2", "friedman3")}
COLUMNS = {"friedman1": 10, "friedman2": 4, "friedman3": 4}


def _regressors() -> Iterator[Rung]:
    """Each order of layers, both ratios, both depths."""
    for depth, tables in TABLES.items():
        for order, table in zip(ORDERS, tables, strict=True):
            for ratio in (0.2, 0.5):
                build = partial(regressor, COLUMNS[table], order, ratio, depth)
                stem = f"{table}-{order}-{depth}-{ratio:g}"
                yield own_rung(f"{table}, Linear-{order} x{depth}, {ratio:g}", stem, table, build, epochs=40)


WIDE, DENSE, RESNEXT = "wrn-16-1", "densenet-22-8", "resnext-11-4x4d"
DROPOUT = "dropout:0.5"
NETWORKS: tuple[Rung, ...] = (
    *_regressors(),
    own_rung(
        "friedman1, Linear-bn-relu x2, no noise",
        "friedman1-no-noise",
        "friedman1",
        partial(regressor, 10, "bn-relu-dropout", 0.0, 2),
        epochs=40,
        healthy=True,
    ),
    own_rung("MLP without BatchNorm, dropout:0.5", "plain-mlp", "fashion", plain_mlp),
    own_rung("plain CNN, no noise", "plain-cnn", "fashion", plain_network, healthy=True),
    own_rung("plain CNN, dropout:0.5 last", "last-dropout", "fashion", partial(plain_network, 0.5), healthy=True),
    paper_rung("MLP-5", "mlp-5", DROPOUT, "a"),
    own_rung("ConvNeXt-like, GroupNorm, dropout:0.5", "normalized", "fashion", normalized_network),
    own_rung("residual CNN, drop-path:0.4", "drop-path", "fashion", drop_path_network),
    own_rung("two heads, dropout:0.5", "two-heads", "boxes", TwoHeads, epochs=4),
    own_rung("U-Net, feature-dropout:0.3", "u-net", "shoes", SmallUNet, epochs=4),
    paper_rung("WRN-16-1", WIDE, DROPOUT, "b"),
    paper_rung("PreResNet-20", "preresnet-20", DROPOUT, "a"),
    paper_rung("PreResNet-20", "preresnet-20", None, "a"),
    paper_rung("PreResNet-20", "preresnet-20", "uout:0.1", "a"),
    paper_rung("PreResNet-20", "preresnet-20", "uout:0.3", "a"),
    paper_rung("PreResNet-20", "preresnet-20", DROPOUT, "b"),
    paper_rung("DenseNet-BC-22-8", DENSE, DROPOUT, "b"),
    paper_rung("ResNeXt-11 4x4d", RESNEXT, DROPOUT, "a", images=4000),
    *(paper_rung("PreResNet-20", "preresnet-20", DROPOUT, "a", seed) for seed in (1, 2)),
    *(paper_rung("WRN-16-1", WIDE, DROPOUT, "b", seed) for seed in (1, 2)),
    *(paper_rung("DenseNet-BC-22-8", DENSE, DROPOUT, "b", seed) for seed in (1, 2)),
    *(paper_rung("ResNeXt-11 4x4d", RESNEXT, DROPOUT, "a", seed, images=4000) for seed in (1, 2)),
)
