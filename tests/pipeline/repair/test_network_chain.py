"""Every network: one training step, export, the noise that inspect finds, and the numbers of the file against torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.io.model_file import read_model
from vsfix.graph_passes.noise.noise import Noise
from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs
from vsfix.pipeline.inspection.inspection import inspect_model
from vsfix.trainers.export.onnx_export import export_onnx
from vsfix.trainers.layers.noise_layers import Uout
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig, build_network

HALF, TENTH = Noise.parse("dropout:0.5"), Noise.parse("uout:0.1")
SITES = {
    "a": NoiseSites(a=HALF),
    "b": NoiseSites(b=HALF),
    "last": NoiseSites(last=HALF),
    "all": NoiseSites(a=TENTH, b=HALF, last=TENTH),
}
FAMILIES = (
    "preresnet-8",
    "preresnet-11",
    "wrn-10-2",
    "densenet-10-4",
    "resnext-11-4x4d",
    "mlp-2",
    "resnet-18",
    "seresnext-50-4x2d",
)
PUBLISHED = (
    *("preresnet-20", "preresnet-56", "preresnet-110", "preresnet-164", "wrn-16-4", "wrn-28-10", "wrn-40-4"),
    *("densenet-40-12", "densenet-100-12", "densenet-190-40", "resnext-29-8x64d"),
    *("resnet-18", "resnet-50", "resnet-200", "resnext-50-32x4d", "resnext-101-64x4d", "seresnet-50", "senet-154"),
)


def image_size(model: str) -> int:
    large = ("resnet-", "seresnet", "seresnext", "senet", "resnext-50", "resnext-101")
    return 64 if model.startswith(large) else 32


def trained_one_step(model: str, sites: NoiseSites) -> tuple[nn.Module, torch.Tensor]:
    """A network after one step of SGD that changed every weight, and the images of the step."""
    size = image_size(model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build_network(NetworkConfig(model, 3, (size, size), 10, sites)).train()
        images, labels = torch.randn(4, 3, size, size), torch.arange(4)
        optimizer = torch.optim.SGD(module.parameters(), 0.01)
        before = [parameter.detach().clone() for parameter in module.parameters()]
        F.cross_entropy(module(images), labels).backward()
        optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())
    changed = [not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)  # a bias upstream of a BatchNorm has no gradient to speak of
    return module.eval(), images


@contextmanager
def only_the_noise_on(module: nn.Module) -> Iterator[None]:
    noisy = [part for part in module.modules() if isinstance(part, nn.Dropout | Uout)]
    for part in noisy:
        part.train()
    yield
    for part in noisy:
        part.eval()


def batch_norms_that_noise_reaches(module: nn.Module, images: torch.Tensor) -> list[bool]:
    """For each BatchNorm, in the order in which they run: does its input differ between two runs with the noise on?"""
    seen: list[list[torch.Tensor]] = [[], []]
    with only_the_noise_on(module), torch.no_grad(), torch.random.fork_rng():
        for run in seen:
            handles = [
                part.register_forward_pre_hook(lambda _, inputs, run=run: run.append(inputs[0].clone()))
                for part in module.modules()
                if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)
            ]
            module(images)
            for handle in handles:
                handle.remove()
    return [not torch.equal(one, other) for one, other in zip(*seen, strict=True)]


def require_chain(model: str, site: str, tmp_path) -> None:
    module, images = trained_one_step(model, SITES[site])
    result = export_onnx(module, images[:2], tmp_path / "m.onnx")
    assert result.snr_db > 100
    assert result.unmarked == ()
    noises = [part for part in module.modules() if isinstance(part, nn.Dropout | Uout)]
    assert len(result.markers) == len(noises)
    inspection = inspect_model(read_model(result.path), [], open_for_small_runs)
    reached = batch_norms_that_noise_reaches(module, images)
    assert [bool(row.distance) for row in inspection.rows] == reached
    direct = sum(
        name.startswith("noise") and isinstance(following, nn.BatchNorm1d | nn.BatchNorm2d)
        for part in module.modules()
        if isinstance(part, nn.Sequential)
        for (name, _), following in zip(part.named_children(), list(part.children())[1:], strict=False)
    )
    assert sum(row.distance == "direct" for row in inspection.rows) == direct
    assert (direct > 0) == (site in ("a", "all"))
    assert any(reached) == (site != "last")


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(
    "model", [FAMILIES[0], *(pytest.param(model, marks=pytest.mark.long) for model in FAMILIES[1:])]
)
def test_a_network_goes_the_whole_way(model, site, tmp_path):
    if model in ("resnet-18", "seresnext-50-4x2d") and site != "all":
        pytest.skip("one site says it all for the large ones; the others run with -m published")
    require_chain(model, site, tmp_path)


@pytest.mark.published
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("model", PUBLISHED)
def test_a_published_network_goes_the_whole_way(model, site, tmp_path):
    require_chain(model, site, tmp_path)
