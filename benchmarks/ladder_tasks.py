"""The ladder's data: training rows, test rows with their targets, and what each output is.

fashion         Fashion-MNIST, 28x28, ten classes
friedman1..3    scikit-learn's tables, columns and target standardized
boxes           one garment at a random place of a 40x40 canvas of weak noise: its class and its box
shoes           a shoe and another garment, half as large, on such a canvas: which pixels are the shoe
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn import datasets as sklearn_datasets

from vsfix.trainers.data.datasets import load_dataset
from vsfix.trainers.data.preprocessing import Preprocessing

Array = npt.NDArray[Any]
Kind = Literal["classes", "numbers", "mask"]
TRAINING_ROWS = 10_000
TABLE_ROWS = 4_000  # of a table, to train with
TEST_ROWS = 2_000
CANVAS = 40
SHOES = (5, 7, 9)  # sandal, sneaker, ankle boot
INPUT = "input"
KINDS: Mapping[str, Mapping[str, Kind]] = {
    "fashion": {"logits": "classes"},
    "friedman": {"value": "numbers"},
    "boxes": {"classes": "classes", "box": "numbers"},
    "shoes": {"mask": "mask"},
}


@dataclass(frozen=True, eq=False)
class Task:
    """One data set.

    Attributes:
        kinds: what each output of a network is, by the output's name.
        inputs: to train with, float32, shape (N, ...).
        targets: by output; int64 classes (N,), float32 numbers (N, k), or a float32 mask of the output's shape.
        test_inputs: never trained with, shape (M, ...).
        test_targets: as `targets`.
    """

    kinds: Mapping[str, Kind]
    inputs: Array
    targets: Mapping[str, Array]
    test_inputs: Array
    test_targets: Mapping[str, Array]


@lru_cache(maxsize=2)
def load_task(name: str) -> Task:
    """The data set of that name; equal rows in each call."""
    if name == "fashion":
        return _fashion()
    return _table(name) if name.startswith("friedman") else _canvases(name)


def fashion_images(split: Literal["train", "test"], rows: int, seed: int = 0) -> tuple[Array, Array]:
    """Images, uint8 of shape (N, 28, 28, 1), and their classes, int64; chosen as `vsfix train` does under a seed."""
    dataset = load_dataset("fashion-mnist", split)
    chosen = np.random.default_rng(seed).permutation(len(dataset.labels))[:rows]
    return dataset.images[chosen], np.asarray(dataset.labels[chosen], dtype=np.int64)


def paper_task(preprocessing: Preprocessing, rows: int, seed: int) -> Task:
    """The images on which a network of `vsfix train` was trained under a seed, and test images, as it takes them."""
    images, labels = fashion_images("train", rows, seed)
    test_images, test_labels = fashion_images("test", TEST_ROWS)
    inputs, test_inputs = preprocessing.apply(images), preprocessing.apply(test_images)
    return Task(KINDS["fashion"], inputs, {"logits": labels}, test_inputs, {"logits": test_labels})


def _fashion() -> Task:
    images, labels = fashion_images("train", TRAINING_ROWS)
    test_images, test_labels = fashion_images("test", TEST_ROWS)
    return Task(
        KINDS["fashion"], _standard(images), {"logits": labels}, _standard(test_images), {"logits": test_labels}
    )


def _standard(images: Array) -> Array:
    """uint8 (N, H, W, 1) to float32 (N, 1, H, W), about mean 0 and deviation 1."""
    return np.ascontiguousarray((images.astype(np.float32).transpose(0, 3, 1, 2) / 255 - 0.286) / 0.353)


def _table(name: str) -> Task:
    make = getattr(sklearn_datasets, f"make_{name}")
    x, y = make(TABLE_ROWS + TEST_ROWS, random_state=1)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    y = ((y - y.mean()) / y.std()).astype(np.float32)[:, None]
    head = slice(0, TABLE_ROWS)
    tail = slice(TABLE_ROWS, None)
    return Task(KINDS["friedman"], x[head], {"value": y[head]}, x[tail], {"value": y[tail]})


def _canvases(name: str) -> Task:
    parts = []
    for split, rows in (("train", TRAINING_ROWS), ("test", TEST_ROWS)):
        images, labels = fashion_images("train" if split == "train" else "test", rows)
        rng = np.random.default_rng(1 if split == "train" else 2)
        parts.append(_boxes(images, labels, rng) if name == "boxes" else _shoes(images, labels, rng))
    return Task(KINDS[name], *parts[0], *parts[1])


def _empty(count: int, rng: np.random.Generator) -> Array:
    """Canvases of weak noise, float32, values in [0, 0.3)."""
    return 0.3 * rng.random((count, CANVAS, CANVAS), dtype=np.float32)


def _boxes(images: Array, labels: Array, rng: np.random.Generator) -> tuple[Array, dict[str, Array]]:
    """Canvases (N, 1, 40, 40); the class (N,), and the box (N, 4): centre and size, standardized by fixed numbers."""
    canvases, boxes = _empty(len(images), rng), np.empty((len(images), 4), dtype=np.float32)
    for number, image in enumerate(images[..., 0].astype(np.float32) / 255):
        top, left = rng.integers(0, CANVAS - 28 + 1, size=2)
        part = canvases[number, top : top + 28, left : left + 28]
        np.maximum(part, image, out=part)
        rows, columns = np.nonzero(image.max(1) > 0.1)[0], np.nonzero(image.max(0) > 0.1)[0]
        low, high = np.array([rows[0] + top, columns[0] + left]), np.array([rows[-1] + top, columns[-1] + left])
        boxes[number] = [*((low + high) / 2 - CANVAS / 2) / 4, *((high - low) - 22) / 6]
    return _centred(canvases), {"classes": labels, "box": boxes}


def _shoes(images: Array, labels: Array, rng: np.random.Generator) -> tuple[Array, dict[str, Array]]:
    """Canvases (N, 1, 40, 40) and the mask of the shoe of each, of the same shape."""
    small = images[..., 0].astype(np.float32).reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 255
    is_shoe = np.isin(labels, SHOES)
    count = len(images) // 2
    canvases, masks = _empty(count, rng), np.zeros((count, CANVAS, CANVAS), dtype=np.float32)
    for number in range(count):
        for wanted in (False, True):  # the shoe lies on top
            image = small[rng.choice(np.flatnonzero(is_shoe == wanted))]
            top, left = rng.integers(0, CANVAS - 14 + 1, size=2)
            place = (number, slice(top, top + 14), slice(left, left + 14))
            inside = image > 0.1
            canvases[place] = np.where(inside, image, canvases[place])
            masks[place] = np.where(inside, np.float32(wanted), masks[place])
    return _centred(canvases), {"mask": masks[:, None]}


def _centred(canvases: Array) -> Array:
    return (canvases[:, None] - 0.25) / 0.25
