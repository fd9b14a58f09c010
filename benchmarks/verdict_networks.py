"""The families of networks that the verdicts are held against, with noise at the places that were drawn.

    mlp               Linear [linear] BatchNorm ReLU [relu], four times
    mlp, ReLU before  Linear ReLU [relu] BatchNorm [norm], four times
    plain             Conv [convolution] BatchNorm ReLU [relu], three times; on rows of pixels where one-dimensional
    post-activation   Conv [convolution] BatchNorm ReLU [relu] Conv BatchNorm [branch], plus the shortcut, ReLU
    pre-activation    BatchNorm ReLU Conv [convolution] BatchNorm ReLU [relu] Conv [branch], plus the shortcut
    dense             BatchNorm ReLU Conv [first] BatchNorm ReLU Conv [second], beside the input
    tail              a plain network without noise, then BatchNorm [before] Linear [after] BatchNorm

Residual networks have two blocks in each of three stages, the DenseNet two layers. A classifier, or the last linear map
of a regressor, follows [head].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from verdict_draws import HEAD, Draw

from vsfix.graph_passes.noise.noise import NoiseKind
from vsfix.trainers.layers.noise_layers import make_noise_layer

WIDTHS = (16, 32, 48)
STAGES = len(WIDTHS)
HIDDEN = 64
LAYERS = 4  # of an MLP; the last two are one stage
GROWTH = 16


@dataclass(frozen=True)
class Parts:
    """The layers for inputs of so many axes, with the noise of one draw.

    Attributes:
        draw: where the noise is.
        axes: of space: 0 for tables, 1 for signals, 2 for images.
    """

    draw: Draw
    axes: int

    def noise(self, place: str, stage: int = 0) -> list[nn.Module]:
        """The noise layer of a place and a stage, or none."""
        for entry in self.draw.places:
            if entry.name == place and stage in entry.stages:
                is_signal = self.axes == 1 and entry.noise.kind is NoiseKind.FEATURE_DROPOUT
                return [nn.Dropout1d(entry.noise.value) if is_signal else make_noise_layer(entry.noise)]
        return []

    def norm(self, channels: int) -> nn.Module:
        """BatchNorm with the momentum that was drawn."""
        kind = nn.BatchNorm2d if self.axes == 2 else nn.BatchNorm1d
        return kind(channels, momentum=self.draw.momentum)

    def convolution(self, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Module:
        """Convolution without bias that keeps the size but for the stride."""
        kind = nn.Conv1d if self.axes == 1 else nn.Conv2d
        return kind(inputs, outputs, size, stride, padding=size // 2, bias=False)

    def pooled(self, channels: int, outputs: int) -> list[nn.Module]:
        """The mean over all positions and the last linear map."""
        pool = nn.AdaptiveAvgPool1d(1) if self.axes == 1 else nn.AdaptiveAvgPool2d(1)
        return [pool, nn.Flatten(), *self.noise(HEAD), nn.Linear(channels, outputs)]


def build_network(draw: Draw, shape: tuple[int, ...], outputs: int) -> nn.Module:
    """The network of a draw for inputs of a shape without the batch: (features,), (C, L) or (C, H, W)."""
    parts = Parts(draw, 0 if draw.family.startswith("mlp") else len(shape) - 1)
    if not parts.axes:
        return _mlp(parts, shape, outputs)
    builders = {"post-activation": _residual, "pre-activation": _residual, "dense": _dense, "tail": _tail}
    return builders.get(draw.family, _plain)(parts, shape, outputs)


def _mlp(parts: Parts, shape: tuple[int, ...], outputs: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = int(torch.Size(shape).numel())
    for number in range(LAYERS):
        stage = min(number, STAGES - 1)
        layers.append(nn.Linear(HIDDEN if number else inputs, HIDDEN))
        if parts.draw.family == "mlp":
            layers += [*parts.noise("linear", stage), parts.norm(HIDDEN), nn.ReLU(), *parts.noise("relu", stage)]
        else:
            layers += [nn.ReLU(), *parts.noise("relu", stage), parts.norm(HIDDEN), *parts.noise("norm", stage)]
    return nn.Sequential(*layers, *parts.noise(HEAD), nn.Linear(HIDDEN, outputs))


def _stages(parts: Parts, channels: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for stage, width in enumerate(WIDTHS):
        layers.append(parts.convolution(channels, width, stride=1 if stage == STAGES - 1 else 2))
        layers += [*parts.noise("convolution", stage), parts.norm(width), nn.ReLU(), *parts.noise("relu", stage)]
        channels = width
    return layers


def _plain(parts: Parts, shape: tuple[int, ...], outputs: int) -> nn.Module:
    return nn.Sequential(*_stages(parts, shape[0]), *parts.pooled(WIDTHS[-1], outputs))


def _tail(parts: Parts, shape: tuple[int, ...], outputs: int) -> nn.Module:
    body = nn.Sequential(*_stages(parts, shape[0]), parts.norm(WIDTHS[-1]))
    with torch.no_grad():
        features = int(body.eval()(torch.zeros(1, *shape)).numel())
    norm = nn.BatchNorm1d(HIDDEN, momentum=parts.draw.momentum)
    fully_connected = [nn.Linear(features, HIDDEN), *parts.noise("after"), norm]
    head = [*parts.noise(HEAD), nn.Linear(HIDDEN, outputs)]
    return nn.Sequential(body, *parts.noise("before"), nn.Flatten(), *fully_connected, *head)


class _Block(nn.Module):
    """The shortcut plus the branch, then ReLU in the form of post-activation."""

    def __init__(self, parts: Parts, inputs: int, outputs: int, stage: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        first, second = parts.convolution(inputs, outputs, stride=stride), parts.convolution(outputs, outputs)
        inner = [*parts.noise("convolution", stage), parts.norm(outputs), nn.ReLU(), *parts.noise("relu", stage)]
        branch = parts.noise("branch", stage)
        is_post = parts.draw.family == "post-activation"
        layers = [first, *inner, second, *([parts.norm(outputs)] if is_post else []), *branch]
        self.branch = nn.Sequential(*([] if is_post else [parts.norm(inputs), nn.ReLU()]), *layers)
        shortcut = parts.convolution(inputs, outputs, 1, stride)
        projected = nn.Sequential(shortcut, parts.norm(outputs)) if is_post else shortcut
        self.shortcut = nn.Identity() if stride == 1 else projected
        self.last = nn.ReLU() if is_post else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C_in, H, W) to (N, C_out, H, W) or half of it."""
        result: torch.Tensor = self.last(self.shortcut(x) + self.branch(x))
        return result


def _residual(parts: Parts, shape: tuple[int, ...], outputs: int) -> nn.Module:
    is_post = parts.draw.family == "post-activation"
    ends = [parts.norm(WIDTHS[0]), nn.ReLU()], [parts.norm(WIDTHS[-1]), nn.ReLU()]
    stride = 1 if shape[-1] < 10 else 2
    layers: list[nn.Module] = [parts.convolution(shape[0], WIDTHS[0], stride=stride), *(ends[0] if is_post else [])]
    channels = WIDTHS[0]
    for stage, width in enumerate(WIDTHS):
        layers += [_Block(parts, channels, width, stage), _Block(parts, width, width, stage)]
        channels = width
    return nn.Sequential(*layers, *([] if is_post else ends[1]), *parts.pooled(channels, outputs))


class _DenseLayer(nn.Module):
    """New channels beside those that came."""

    def __init__(self, parts: Parts, inputs: int, stage: int) -> None:
        super().__init__()
        first = [parts.norm(inputs), nn.ReLU(), parts.convolution(inputs, 2 * GROWTH, 1), *parts.noise("first", stage)]
        second = [parts.norm(2 * GROWTH), nn.ReLU(), parts.convolution(2 * GROWTH, GROWTH)]
        self.new = nn.Sequential(*first, *second, *parts.noise("second", stage))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C + GROWTH, H, W)."""
        return torch.cat([x, self.new(x)], dim=1)


def _dense(parts: Parts, shape: tuple[int, ...], outputs: int) -> nn.Module:
    channels = WIDTHS[0]
    layers: list[nn.Module] = [parts.convolution(shape[0], channels, stride=1 if shape[-1] < 10 else 2)]
    for stage in range(STAGES):
        for _ in range(2):
            layers.append(_DenseLayer(parts, channels, stage))
            channels += GROWTH
        if stage < STAGES - 1:
            half = channels // 2
            layers += [parts.norm(channels), nn.ReLU(), parts.convolution(channels, half, 1), nn.AvgPool2d(2)]
            channels = half
    return nn.Sequential(*layers, parts.norm(channels), nn.ReLU(), *parts.pooled(channels, outputs))
