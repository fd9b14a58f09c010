"""Points, skeletons and masks: PointNet, the MLP of 3d-pose-baseline, a U-Net with Dropout upstream of BatchNorm."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from real_entry import Array, Case, Metric, Network, Outputs, Place, only
from real_training import ROWS, Data, classifier_case, trained_case
from torch import nn
from torch.nn import functional

POINTS, SHAPES = 128, 8


class PointNet(nn.Module):
    """Pointnet_Pointnet2_pytorch models/pointnet_cls.py, get_model.forward: relu(bn2(dropout(fc2(x)))), p = 0.4."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 32, 64, 256)
        pairs = pairwise(sizes)
        self.convs = nn.ModuleList(nn.Sequential(nn.Conv1d(a, b, 1), nn.BatchNorm1d(b)) for a, b in pairs)
        self.fc1, self.bn1 = nn.Linear(256, 128), nn.BatchNorm1d(128)
        self.fc2, self.dropout, self.bn2 = nn.Linear(128, 64), nn.Dropout(0.4), nn.BatchNorm1d(64)
        self.fc3 = nn.Linear(64, SHAPES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of eight shapes, of points (N, 3, points)."""
        for number, conv in enumerate(self.convs):
            x = conv(x) if number == len(self.convs) - 1 else torch.relu(conv(x))
        x = torch.relu(self.bn1(self.fc1(x.amax(2))))
        return self.fc3(torch.relu(self.bn2(self.dropout(self.fc2(x)))))


def pointnet(place: Place) -> Case:
    """Surfaces seen with noise, turned about the vertical axis and stretched."""
    inputs, targets = _clouds(3000, 1)
    test, truth = _clouds(place.count(1500), 3)
    data = Data(inputs, targets, _clouds(ROWS, 2)[0], test, truth)
    return classifier_case(place, "pointnet", PointNet(), data, 500)


def _clouds(count: int, seed: int) -> tuple[Array, Array]:
    """Points (N, 3, 128) of eight kinds of surfaces, and which kind."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(SHAPES, size=count)
    u, v = rng.uniform(0, 2 * np.pi, (count, POINTS)), rng.uniform(-1, 1, (count, POINTS))
    side, ring = rng.integers(3, size=(count, POINTS)), np.sqrt(np.maximum(1 - v**2, 0))
    cube = np.stack(
        [np.where(side == axis, np.sign(rng.uniform(-1, 1, u.shape)), rng.uniform(-1, 1, u.shape)) for axis in range(3)]
    )
    made = [
        [ring * np.cos(u), ring * np.sin(u), v],  # sphere
        list(0.8 * cube),
        [0.7 * np.cos(u), 0.7 * np.sin(u), v],  # cylinder
        [0.5 * (1 - v) * np.cos(u), 0.5 * (1 - v) * np.sin(u), v],  # cone
        [
            (0.7 + 0.3 * np.cos(np.pi * v)) * np.cos(u),
            (0.7 + 0.3 * np.cos(np.pi * v)) * np.sin(u),
            0.3 * np.sin(np.pi * v),
        ],
        [0.7 * np.cos(2 * np.pi * v), 0.7 * np.sin(2 * np.pi * v), v + 0.05 * np.cos(u)],  # helix
        [np.cos(u) * np.abs(v), np.sin(u) * np.abs(v), 0.5 * (np.cos(u) ** 2 - np.sin(u) ** 2) * v**2],  # saddle
        [ring * np.cos(u) * 0.6, ring * np.sin(u) * 0.6, 1.3 * v],  # ellipsoid
    ]
    points = np.stack([np.stack(each) for each in made])[kinds, :, np.arange(count)]  # (N, 3, points)
    points = points * rng.uniform(0.6, 1.4, (count, 3, 1)) + rng.normal(0, 1, points.shape) * rng.uniform(
        0.02, 0.2, (count, 1, 1)
    )
    turn = rng.uniform(0, 2 * np.pi, count)
    cosine, sine = np.cos(turn)[:, None], np.sin(turn)[:, None]
    x, y = points[:, 0] * cosine - points[:, 1] * sine, points[:, 0] * sine + points[:, 1] * cosine
    return np.stack([x, y, points[:, 2]], 1).astype(np.float32), kinds


class PoseBlock(nn.Module):
    """3d-pose-baseline src/linear_model.py, two_linear: linear, batch normalisation, relu, dropout, twice; residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [[nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5)] for _ in range(2)]
        self.layers = nn.Sequential(*layers[0], *layers[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of both ways."""
        answer: torch.Tensor = x + self.layers(x)
        return answer


def pose_network(width: int = 256) -> nn.Module:
    """LinearModel.__init__: 32 numbers in, two blocks, 48 numbers out."""
    first = [nn.Linear(32, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*first, PoseBlock(width), PoseBlock(width), nn.Linear(width, 48))


def pose(place: Place) -> Case:
    """Joints of random skeletons from their projections; errors in millimetres."""
    seen, joints = _skeletons(12000, 1)
    test, truth = _skeletons(place.count(1500), 3)
    scale = float(joints.std())
    data = Data(seen, joints / scale, _skeletons(ROWS, 2)[0], test, truth)

    def score(answers: Outputs) -> tuple[Array, ...]:
        errors = (only(answers).astype(np.float64) * scale - truth).reshape(-1, 16, 3)
        return (np.linalg.norm(errors, axis=2).mean(1),)

    metric = Metric("mean joint error, mm", higher_is_better=False)
    return trained_case(place, "pose", pose_network(), data, functional.mse_loss, 2500, score, [metric])


# Of 16 joints of a body: its parent, and the bone from there in millimetres, in rest.
BONES = (
    (0, (0, 0, 0)), (0, (130, 0, 0)), (1, (0, -440, 0)), (2, (0, -440, 0)), (0, (-130, 0, 0)), (4, (0, -440, 0)),
    (5, (0, -440, 0)), (0, (0, 230, 0)), (7, (0, 250, 0)), (8, (0, 190, 0)), (8, (150, 0, 0)), (10, (0, -280, 0)),
    (11, (0, -250, 0)), (8, (-150, 0, 0)), (13, (0, -280, 0)), (14, (0, -250, 0)),
)  # fmt: skip


def _skeletons(count: int, seed: int) -> tuple[Array, Array]:
    """Standardised projections (N, 32) with the jitter of a detector, and the joints (N, 48) about the hip."""
    rng = np.random.default_rng(seed)
    turns = [_rotations(rng.normal(0, 0.25, (count, 3))) for _ in BONES]
    facing = np.zeros((count, 3))
    facing[:, 1] = rng.normal(0, 0.6, count)
    world, joints = [_rotations(facing)], [np.zeros((count, 3))]
    size = rng.uniform(0.85, 1.15, (count, 1))
    for number, (parent, bone) in enumerate(BONES[1:], 1):
        world.append(world[parent] @ turns[number])
        joints.append(joints[parent] + size * (world[number] @ np.asarray(bone, dtype=np.float64)))
    body = np.stack(joints, 1)  # (N, 16, 3)
    away = body + np.array([0, 0, 4500.0])
    flat = away[..., :2] / away[..., 2:] + rng.normal(0, 0.004, (count, 16, 2))
    return (flat.reshape(count, 32) / 0.12).astype(np.float32), body.reshape(count, 48).astype(np.float32)


def _rotations(axes: Array) -> Array:
    """Rodrigues' formula: matrices (N, 3, 3) of rotation vectors (N, 3)."""
    angle = np.linalg.norm(axes, axis=1)[:, None, None]
    x, y, z = (axes / np.maximum(angle[:, 0], 1e-12)).T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).reshape(-1, 3, 3)
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross))


class DoubleConv(nn.Module):
    """Convolution, Dropout, BatchNorm, ReLU, twice."""

    def __init__(self, given: int, made: int, drop: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(given, made, 3, 1, 1), nn.Dropout(drop), nn.BatchNorm2d(made), nn.ReLU()),
            *(nn.Conv2d(made, made, 3, 1, 1), nn.Dropout(drop), nn.BatchNorm2d(made), nn.ReLU()),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As wide as x."""
        answer: torch.Tensor = self.layers(x)
        return answer


class UNet(nn.Module):
    """Ronneberger's U with three levels; Dropout between convolution and BatchNorm, as many medical ones have it."""

    def __init__(self, drop: float = 0.3) -> None:
        super().__init__()
        self.down1, self.down2 = DoubleConv(1, 8, drop), DoubleConv(8, 16, drop)
        self.bottom = DoubleConv(16, 32, drop)
        self.up2, self.up1 = DoubleConv(48, 16, drop), DoubleConv(24, 8, drop)
        self.last = nn.Conv2d(8, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Probabilities of the mask, (N, 1, H, W)."""
        one = self.down1(x)
        two = self.down2(functional.max_pool2d(one, 2))
        deep = self.bottom(functional.max_pool2d(two, 2))
        two = self.up2(torch.cat([functional.interpolate(deep, scale_factor=2.0), two], 1))
        one = self.up1(torch.cat([functional.interpolate(two, scale_factor=2.0), one], 1))
        return torch.sigmoid(self.last(one))


def unet(place: Place) -> Case:
    """Which pixels belong to discs, among rectangles of the same brightness, under noise."""
    inputs, masks = _scenes(2000, 1)
    test, truth = _scenes(place.count(500), 3)
    data = Data(inputs, masks, _scenes(128, 2)[0], test, truth)

    def score(answers: Outputs) -> tuple[Array, ...]:
        probability = np.clip(only(answers).astype(np.float64), 1e-7, 1 - 1e-7)
        found, wanted = probability > 0.5, truth > 0.5
        union = np.maximum((found | wanted).sum((1, 2, 3)), 1)
        chance = np.where(wanted, probability, 1 - probability)
        return 100.0 * (found & wanted).sum((1, 2, 3)) / union, -np.log(chance).mean((1, 2, 3))

    metrics = [Metric("IoU, %"), Metric("binary cross-entropy", higher_is_better=False, digits=3)]
    return trained_case(place, "unet", UNet(), data, functional.binary_cross_entropy, 400, score, metrics)


def _scenes(count: int, seed: int, side: int = 32) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    images, masks = np.zeros((count, 1, side, side)), np.zeros((count, 1, side, side), dtype=np.float32)
    for image, mask in zip(images[:, 0], masks[:, 0], strict=True):
        for number in range(4):
            y, x = rng.uniform(4, side - 4, 2)
            high, wide = rng.uniform(2.5, 6, 2)
            if number % 2:
                inside = (rows - y) ** 2 + (columns - x) ** 2 < high**2
            else:
                inside = (np.abs(rows - y) < high) & (np.abs(columns - x) < wide)
            image[inside], mask[inside] = rng.uniform(0.5, 1.2), number % 2
    return (images + rng.normal(0, 0.35, images.shape)).astype(np.float32), masks


NETWORKS = (
    Network(
        "PointNet",
        "shape of a point cloud",
        "trained here",
        "Dropout 0.4 directly upstream of the last BatchNorm",
        (1, 5),
        "Pointnet_Pointnet2_pytorch models/pointnet_cls.py get_model.forward",
        pointnet,
    ),
    Network(
        "3d-pose-baseline",
        "joints in space",
        "trained here",
        "Dropout 0.5 after each of five layers",
        (4, 5),
        "3d-pose-baseline src/linear_model.py two_linear",
        pose,
    ),
    Network(
        "U-Net",
        "segmentation",
        "trained here",
        "Dropout 0.3 directly upstream of each BatchNorm",
        (10, 10),
        "convolution, Dropout, BatchNorm in each half of a block",
        unet,
        64,
    ),
)
