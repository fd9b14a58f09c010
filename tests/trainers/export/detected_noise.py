"""Which BatchNorms noise reaches: the truth, by running torch, and what the exported file says."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vsfix.graph_passes.cleaning.deployment import deployment_passes
from vsfix.graph_passes.io.model_file import import_graph, read_model
from vsfix.graph_passes.ir.graph_pass import PassPipeline
from vsfix.graph_passes.noise.analysis import analyse_noise
from vsfix.trainers.export.onnx_export import export_onnx

from .random_networks import random_network

_RUNS = 8


@dataclass(frozen=True)
class Detection:
    """The result of one network.

    Attributes:
        seed: of the network.
        batch_norms: the names of all its BatchNorms.
        truth: those whose input depends on the noise.
        found: those that the analysis of the file says noise reaches.
        exported: those that the file has.
        unmarked: the noise that the export could not mark.
    """

    seed: int
    batch_norms: frozenset[str]
    truth: frozenset[str]
    found: frozenset[str]
    exported: frozenset[str]
    unmarked: tuple[str, ...]


def truly_reached(module: nn.Module, x: torch.Tensor) -> dict[str, bool]:
    """For each BatchNorm whether its input differs between runs that differ in the noise alone.

    The BatchNorms run on their stored statistics, so that nothing but noise can tell one run from another.
    """
    names = {part: name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}
    module.train()
    for part in names:
        part.eval()
    first: dict[str, torch.Tensor] = {}
    reached: dict[str, bool] = {}

    def compare(part: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        name = names[part]
        reached[name] = reached.get(name, False) or not torch.equal(args[0], first.setdefault(name, args[0].clone()))

    handles = [part.register_forward_pre_hook(compare) for part in names]
    with torch.random.fork_rng(devices=()), torch.no_grad():
        for run in range(_RUNS):
            torch.manual_seed(run)
            module(x)
    for handle in handles:
        handle.remove()
    return reached


def export_marked(module: nn.Module, x: torch.Tensor, path: Path) -> tuple[str, ...]:
    """vsfix's own export; returns the noise that it could not mark."""
    return export_onnx(module, x, path, force=True).unmarked


def export_training(module: nn.Module, x: torch.Tensor, path: Path) -> tuple[str, ...]:
    """Torch's older exporter in training mode, where the noise stands in the graph as operators."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=()):
        warnings.simplefilter("ignore")  # it is deprecated
        torch.onnx.export(
            copy.deepcopy(module).train(),
            (x,),
            path,
            dynamo=False,
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
            opset_version=17,
            input_names=["input"],  # with a free batch size it loses the channels of a BatchNorm downstream of another
        )
    return ()


FORMS: Mapping[str, Callable[[nn.Module, torch.Tensor, Path], tuple[str, ...]]] = {
    "marked": export_marked,
    "training": export_training,
}
"""The exporters of a network."""


def detect(seed: int, folder: Path, form: str = "marked") -> Detection:
    """Makes the network of a seed, exports it, and compares what the file says with what torch does."""
    module, x = random_network(seed, plain=form == "training")
    reached = truly_reached(module, x)
    path = folder / f"network-{seed}.onnx"
    unmarked = FORMS[form](module, x, path)
    graph = import_graph(read_model(path))
    PassPipeline(deployment_passes())(graph)
    noise_map = analyse_noise(graph)
    path.unlink()
    return Detection(
        seed,
        frozenset(reached),
        frozenset(name for name, is_reached in reached.items() if is_reached),
        noise_map.reached,
        frozenset(noise_map.reaching),
        unmarked,
    )
