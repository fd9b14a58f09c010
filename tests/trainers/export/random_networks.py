"""Random networks with noise and BatchNorms, for the proof that the noise which reaches a BatchNorm is found.

A network is a list of layers, each of which reads earlier values: chains, branches, sums, products, concatenations. All
kinds of noise occur, from torch, from vsfix and written by hand, with ratios of 0 and on branches that lead nowhere or
give away nothing but their shape.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from vsfix.trainers.layers.noise_layers import DropPath as VsfixDropPath
from vsfix.trainers.layers.noise_layers import Uout

from .handmade_noise import DropPath, HandDropout, HandGaussianDropout, HandUout, StochasticDepth

_BATCH, _CHANNELS, _LENGTH = 5, 6, 6


class FunctionDropout(nn.Module):
    """Dropout as a call in a forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.3, self.training)


class Concat(nn.Module):
    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return torch.cat(values, 1)


class Sum(nn.Module):
    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return one + other


class Difference(nn.Module):
    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return one - 0.5 * other


class Product(nn.Module):
    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return one * torch.sigmoid(other)


class OnesOfShape(nn.Module):
    """Reads of its second input the shape alone."""

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return one + torch.ones_like(other).mean(tuple(range(1, other.dim()))).reshape(-1, *[1] * (one.dim() - 1))


class ReshapedAs(nn.Module):
    """Reads of its second input the shape alone."""

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return one.flatten(1).reshape(other.shape)


class Half(nn.Module):
    """The first half of the channels, and of the second one the shape alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, lost = x.split([x.shape[1] // 2, x.shape[1] - x.shape[1] // 2], 1)
        return torch.cat([kept, torch.zeros_like(lost)], 1)


class Padded(nn.Module):
    """The first channel, and nothing in the others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :1], [0, 0] * (x.dim() - 2) + [0, x.shape[1] - 1])


class Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(-1, -2) if x.dim() == 4 else x.flip(1)


class GlobalMean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).mean(2)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.linear(x.flatten(2).mean(2)))
        return x * gate.reshape(*gate.shape, *[1] * (x.dim() - 2))


class RandomNetwork(nn.Module):
    """Layers that each read earlier values.

    Attributes:
        layers: by their names.
        reads: for each layer, the numbers of the values that it reads; 0 is the input, i the i-th layer.
        heads: the numbers of the values whose sum is the output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        self.reads: list[tuple[int, ...]] = []
        self.heads: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [x]
        for layer, reads in zip(self.layers.values(), self.reads, strict=True):
            values.append(layer(*[values[number] for number in reads]))
        return torch.stack([values[number] for number in self.heads]).sum(0)


class _Builder:
    """Adds layers to a network and keeps the value of each on one example, which knows the shapes."""

    def __init__(self, rng: random.Random, plain: bool) -> None:
        self.rng = rng
        self.plain = plain
        self.network = RandomNetwork().eval()
        self.example = torch.randn(_BATCH, _CHANNELS, *[_LENGTH] * rng.choice([0, 1, 2]))
        self.values = [self.example]
        self.dead: set[int] = set()

    def add(self, kind: str, layer: nn.Module, reads: Sequence[int]) -> int:
        """Appends a layer that reads some values; returns the number of its own value."""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, on Dropout2d of rank 3
            value = layer.eval()(*[self.values[number] for number in reads])
        self.network.layers[f"{kind}{len(self.values)}"] = layer
        self.network.reads.append(tuple(reads))
        self.values.append(value)
        return len(self.values) - 1

    def choose(self, like: torch.Tensor | None = None) -> int | None:
        """A value, one of the latest three times out of four; one of the shape of `like` where it is given."""
        numbers = [n for n in range(len(self.values)) if n not in self.dead]
        if like is not None:
            numbers = [n for n in numbers if self.values[n].shape == like.shape]
        if not numbers:
            return None
        return self.rng.choice(numbers[-2:] if self.rng.random() < 0.75 else numbers)


def random_network(seed: int, plain: bool = False) -> tuple[RandomNetwork, torch.Tensor]:
    """A network and an input for it; one seed gives the same ones. The state of torch's generator stays.

    Args:
        seed: of the layers, the connections and the weights.
        plain: only noise that torch's older exporter can write in training mode.
    """
    rng = random.Random(seed)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        builder = _Builder(rng, plain)
        for _ in range(rng.randint(8, 20)):
            rng.choices([_map, _noise, _batch_norm, _pair, _dead_end, _shape_only], [5, 6, 8, 4, 1, 1])[0](builder)
        if not any(name.startswith("bn") for name in builder.network.layers):
            _batch_norm(builder)
        _finish(builder)
    return builder.network, builder.example


def _map(builder: _Builder) -> None:
    """A layer with one input and no noise."""
    number = builder.choose() or 0
    x = builder.values[number]
    channels, rank = x.shape[1], x.dim()
    choices: list[Callable[[], nn.Module]] = [nn.ReLU, nn.Tanh, nn.LeakyReLU, nn.Hardswish, Half, Transposed]
    choices += [nn.GELU, lambda: nn.Softmax(1), lambda: nn.LayerNorm(list(x.shape[1:]))]
    if not builder.plain:
        choices += [Padded]  # the older exporter loses the shape of a padded tensor
    if rank == 2:
        choices += [lambda: nn.Linear(channels, _CHANNELS)] * 6
    else:
        conv, transposed = (nn.Conv1d, nn.ConvTranspose1d) if rank == 3 else (nn.Conv2d, nn.ConvTranspose2d)
        pools = (nn.MaxPool1d, nn.AvgPool1d) if rank == 3 else (nn.MaxPool2d, nn.AvgPool2d)
        choices += [lambda: conv(channels, _CHANNELS, 3, padding=1, bias=builder.rng.random() < 0.5)] * 4
        choices += [lambda: conv(channels, channels, 3, padding=1, groups=channels), GlobalMean, lambda: Gate(channels)]
        choices += [lambda: transposed(channels, _CHANNELS, 3, padding=1), lambda: nn.GroupNorm(1, channels)]
        choices += [partial(pool, 3, stride=1, padding=1) for pool in pools]
    builder.add("map", builder.rng.choice(choices)(), [number])


def _noise(builder: _Builder, number: int | None = None) -> int:
    """A layer with noise, of any kind that its input can have; one time out of eight of ratio 0."""
    number = builder.choose() or 0 if number is None else number
    ratio = 0.0 if builder.rng.random() < 1 / 8 else builder.rng.choice([0.2, 0.35, 0.5])
    choices: list[nn.Module] = [nn.Dropout(ratio), FunctionDropout(), DropPath(ratio), HandDropout(ratio)]
    choices += [HandGaussianDropout(ratio), StochasticDepth(ratio, "row"), HandDropout(ratio, channels=True)]
    choices += [HandUout(ratio / 2)]
    if not builder.plain:
        choices += [VsfixDropPath(ratio), nn.AlphaDropout(ratio), nn.FeatureAlphaDropout(ratio), Uout(0.2)]
        choices += [nn.Dropout1d(ratio), nn.Dropout2d(ratio)] if builder.values[number].dim() == 3 else []
        choices += [nn.Dropout2d(ratio)] * 2 if builder.values[number].dim() == 4 else []
    return builder.add("noise", builder.rng.choice(choices), [number])


def _batch_norm(builder: _Builder) -> None:
    number = builder.choose() or 0
    x = builder.values[number]
    kind = nn.BatchNorm2d if x.dim() == 4 else nn.BatchNorm1d
    layer: nn.Module = kind(x.shape[1], affine=builder.rng.random() < 0.8)
    if builder.rng.random() < 0.2:
        layer = nn.Sequential(layer, nn.ReLU())
    builder.add("bn", layer, [number])


def _pair(builder: _Builder) -> None:
    """A layer with two inputs: the residual sum, a gate, a concatenation."""
    one = builder.choose() or 0
    other = builder.choose(like=builder.values[one])
    layer = builder.rng.choice([Sum, Sum, Difference, Product, Concat])()
    if other is not None and builder.values[one].shape[1] <= 4 * _CHANNELS:
        builder.add("pair", layer, [one, other])


def _dead_end(builder: _Builder) -> None:
    """Noise whose result nobody reads."""
    number = _noise(builder)
    builder.dead.add(number)
    if builder.rng.random() < 0.5:
        builder.dead.add(builder.add("map", nn.ReLU(), [number]))


def _shape_only(builder: _Builder) -> None:
    """Noise of which the shape alone is read."""
    one = builder.choose() or 0
    noisy = _noise(builder, one)
    builder.dead.add(noisy)
    builder.add("shape", builder.rng.choice([OnesOfShape, ReshapedAs])(), [one, noisy])


def _finish(builder: _Builder) -> None:
    """Brings every value that nobody reads to the output, so that no BatchNorm is cut off."""
    read = set(builder.dead)
    for number, reads in enumerate(builder.network.reads, 1):
        read |= set() if number in builder.dead else set(reads)
    for number in [number for number in range(len(builder.values)) if number not in read]:
        flat = builder.add("mean", GlobalMean(), [number]) if builder.values[number].dim() > 2 else number
        linear = nn.Linear(builder.values[flat].shape[1], 3)
        builder.network.heads.append(builder.add("head", linear, [flat]))
