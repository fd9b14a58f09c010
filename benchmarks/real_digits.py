"""Digits as identities: the tails of ArcFace and facenet; and a transformer without BatchNorm as a control."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from real_entry import Array, Case, Metric, Network, Outputs, Place, only
from real_training import ROWS, Data, classifier_case, trained_case
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

SIDE = 12


def digits(place: Place) -> Data:
    """Digits at random places of a 12x12 canvas of noise, (N, 1, 12, 12), and which digit each is."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    head, tail = order[:900], order[900:]
    shown = [_canvases(images[part], np.random.default_rng(seed)) for part, seed in ((head, 1), (head, 2), (tail, 3))]
    repeated = np.concatenate([_canvases(images[head], np.random.default_rng(10 + turn)) for turn in range(8)])
    count = place.count(len(tail))
    return Data(repeated, np.tile(labels[head], 8), shown[1][:ROWS], shown[2][:count], labels[tail][:count])


def _canvases(images: Array, rng: np.random.Generator) -> Array:
    canvases = rng.normal(0, 0.25, (len(images), 1, SIDE, SIDE))
    for canvas, image in zip(canvases, images, strict=True):
        top, left = rng.integers(0, SIDE - 8 + 1, size=2)
        canvas[0, top : top + 8, left : left + 8] += image.reshape(8, 8) / 8
    return np.asarray(canvases, dtype=np.float32)


class ResidualBlock(nn.Module):
    """insightface recognition/arcface_torch/backbones/iresnet.py, IBasicBlock: BN, conv, BN, PReLU, conv, BN."""

    def __init__(self, given: int, made: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(given),
            nn.Conv2d(given, made, 3, 1, 1, bias=False),
            nn.BatchNorm2d(made),
            nn.PReLU(made),
            nn.Conv2d(made, made, 3, stride, 1, bias=False),
            nn.BatchNorm2d(made),
        )
        self.side = nn.Sequential(nn.Conv2d(given, made, 1, stride, bias=False), nn.BatchNorm2d(made))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of both ways."""
        answer: torch.Tensor = self.layers(x) + self.side(x)
        return answer


def arcface() -> nn.Module:
    """IResNet.forward: bn2, flatten, dropout (0.4 as in fc_type E of the paper), fc, features (a BatchNorm)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.PReLU(16),
        ResidualBlock(16, 16, 2),
        ResidualBlock(16, 32, 2),
        nn.BatchNorm2d(32),
        nn.Dropout(0.4),
        nn.Flatten(),
        nn.Linear(32 * 9, 64),
        nn.BatchNorm1d(64),
    )


class Facenet(nn.Module):
    """facenet-pytorch models/inception_resnet_v1.py, InceptionResnetV1.forward: pool, dropout, last_linear, last_bn."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*self._conv(1, 24, 3), *self._conv(24, 32, 3, stride=2))
        self.near, self.wide = nn.Sequential(*self._conv(32, 16, 1)), nn.Sequential(*self._conv(32, 16, 3))
        self.join, self.last = nn.Conv2d(32, 32, 1), nn.Sequential(*self._conv(32, 128, 3, stride=2))
        self.dropout = nn.Dropout(0.6)
        self.last_linear = nn.Linear(128, 64, bias=False)
        self.last_bn = nn.BatchNorm1d(64, eps=0.001)

    @staticmethod
    def _conv(given: int, made: int, size: int, stride: int = 1) -> tuple[nn.Module, ...]:
        conv = nn.Conv2d(given, made, size, stride, size // 2, bias=False)
        return conv, nn.BatchNorm2d(made, eps=0.001), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embeddings of length 1, (N, 64)."""
        x = self.stem(x)
        x = torch.relu(x + 0.17 * self.join(torch.cat([self.near(x), self.wide(x)], 1)))
        x = self.dropout(self.last(x).mean((2, 3)))
        return functional.normalize(self.last_bn(self.last_linear(x)), dim=1)


class Margin(nn.Module):
    """ArcFace's head without its angle: scaled cosines to a centre for each identity."""

    def __init__(self, scale: float = 16.0) -> None:
        super().__init__()
        self.scale, self.centres = scale, nn.Linear(64, 10, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of the ten identities."""
        unit = functional.normalize(x, dim=1)
        return self.scale * functional.linear(unit, functional.normalize(self.centres.weight, dim=1))


def embeddings(name: str, make: Callable[[], nn.Module], place: Place) -> Case:
    """A network whose answers are compared by their cosine."""
    data = digits(place)
    return trained_case(
        place,
        name,
        make(),
        data,
        functional.cross_entropy,
        900,
        partial(_same_identity, truth=data.test_targets),
        (Metric("verification, %"), Metric("nearest neighbour right, %")),
        head=Margin(),
    )


def _same_identity(answers: Outputs, truth: Array) -> tuple[Array, ...]:
    """Of each sample: its pairs with 40 of the others, told at the threshold of the other half; its neighbour."""
    vectors = only(answers).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = vectors @ vectors.T
    same = truth[:, None] == truth
    rng = np.random.default_rng(5)
    right = np.empty(len(truth))
    halves = np.arange(len(truth)) % 2 == 0
    partners = np.stack([_partners(number, same, rng) for number in range(len(truth))])
    for half in (halves, ~halves):
        own, told = np.flatnonzero(~half)[:, None], partners[~half]
        limits = np.quantile(cosine[own, told], np.linspace(0.01, 0.99, 99))
        share = [float(((cosine[own, told] > limit) == same[own, told]).mean()) for limit in limits]
        limit = limits[int(np.argmax(share))]
        own, told = np.flatnonzero(half)[:, None], partners[half]
        right[half] = 100.0 * ((cosine[own, told] > limit) == same[own, told]).mean(1)
    np.fill_diagonal(cosine, -2)
    return right, 100.0 * (truth[cosine.argmax(1)] == truth)


def _partners(number: int, same: Array, rng: np.random.Generator) -> Array:
    """Twenty of the same identity and twenty of others, with repetition where there are fewer."""
    alike = np.setdiff1d(np.flatnonzero(same[number]), [number])
    return np.concatenate([rng.choice(alike, 20), rng.choice(np.flatnonzero(~same[number]), 20)])


class Block(nn.Module):
    """timm vision_transformer.py, Block: LayerNorm, attention, Dropout; LayerNorm, MLP, Dropout."""

    def __init__(self, width: int = 48, drop: float = 0.1) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(drop), nn.Linear(2 * width, width), nn.Dropout(drop)
        )
        self.drops = nn.ModuleList(nn.Dropout(drop) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The next tokens, (N, tokens, width)."""
        q, k, v = self.qkv(self.norms[0](x)).chunk(3, 2)
        weights = self.drops[0]((q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(2))
        x = x + self.drops[1](self.proj(weights @ v))
        answer: torch.Tensor = x + self.mlp(self.norms[1](x))
        return answer


class Transformer(nn.Module):
    """A small ViT: patches of 3x3 pixels, three blocks, the mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 48, 3, 3)
        self.places = nn.Embedding(16, 48)
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.norm, self.last = nn.LayerNorm(48), nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of ten digits."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places.weight
        answer: torch.Tensor = self.last(self.norm(self.blocks(tokens)).mean(1))
        return answer


def transformer(place: Place) -> Case:
    """The control: noise, but no BatchNorm that could store it."""
    return classifier_case(place, "vit", Transformer(), digits(place), 1200)


NETWORKS = (
    Network(
        "ArcFace tail (fc_type E)",
        "identity of an image",
        "trained here",
        "Dropout 0.4 upstream of the linear layer of the last BatchNorm",
        (1, 11),
        "insightface recognition/arcface_torch/backbones/iresnet.py IResNet.forward",
        partial(embeddings, "arcface", arcface),
    ),
    Network(
        "facenet tail",
        "identity of an image",
        "trained here",
        "Dropout 0.6 upstream of the linear layer of the last BatchNorm",
        (1, 6),
        "facenet-pytorch models/inception_resnet_v1.py InceptionResnetV1.forward",
        partial(embeddings, "facenet", Facenet),
    ),
    Network(
        "ViT (LayerNorm)",
        "digits",
        "trained here",
        "Dropout 0.1 in attention and MLP",
        (0, 0),
        "timm/models/vision_transformer.py Block",
        transformer,
    ),
)
