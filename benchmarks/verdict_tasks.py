"""The data of the networks that the verdicts are held against, and the ways in which it can be preprocessed wrongly.

fashion        4,000 images of Fashion-MNIST at half their size, 14x14; the rows as channels where one-dimensional
digits         scikit-learn's handwritten digits, 8x8
friedman1..3   scikit-learn's tables, 3,000 rows
skewed         a table of prices: columns of lognormal numbers, and a target that grows with their products, 3,000 rows
diabetes, breast_cancer, wine    scikit-learn's tables, 342, 398 and 124 rows to train with
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from ladder_tasks import Array, Kind, Task, fashion_images
from sklearn import datasets as sklearn_datasets

IMAGES, TEST_IMAGES = 4_000, 1_500
TABLE_ROWS, TEST_ROWS = 3_000, 1_500
SHARE = 0.7  # of the rows of a small set, to train with
_PIXEL_MEAN, _PIXEL_DEVIATION = 0.286, 0.353


@dataclass(frozen=True, eq=False)
class Source:
    """A task, and how its inputs came from raw numbers: (raw - mean) / deviation.

    Attributes:
        task: inputs preprocessed.
        mean: of the pixels between 0 and 1, or of each column.
        deviation: likewise.
        largest: what a raw pixel of 1 is in a file of images; 1 for tables, whose raw numbers are as they are.
    """

    task: Task
    mean: Array
    deviation: Array
    largest: float

    @property
    def output(self) -> str:
        """The name of the only output."""
        return next(iter(self.task.kinds))

    @property
    def outputs(self) -> int:
        """The number of classes, or of numbers."""
        target = self.task.targets[self.output]
        return int(target.max()) + 1 if self.task.kinds[self.output] == "classes" else int(target.shape[1])

    def preprocessed(self, inputs: Array, wrongly: str) -> Array:
        """The inputs as another preprocessing would have made them: `0..255`, `not centred`, `scaled twice`.

        Args:
            inputs: preprocessed as in training, shape (N, ...).
            wrongly: the way; any other text leaves them as they are.
        """
        ways = {
            "0..255": (inputs * self.deviation + self.mean) * self.largest,
            "not centred": inputs + self.mean / self.deviation,
            "scaled twice": (inputs - self.mean) / self.deviation,
        }
        return np.asarray(ways.get(wrongly, inputs), dtype=np.float32)


@lru_cache(maxsize=16)
def load_source(name: str, *, is_signal: bool = False) -> Source:
    """The data set of a name; equal rows in each call."""
    if name in ("fashion", "digits"):
        return _images(*(_fashion() if name == "fashion" else _digits()), is_signal=is_signal)
    rng = np.random.default_rng(1)
    kind: Kind = "classes" if name in ("breast_cancer", "wine") else "numbers"
    if name.startswith("friedman"):
        x, y = getattr(sklearn_datasets, f"make_{name}")(TABLE_ROWS + TEST_ROWS, random_state=1)
    elif name == "skewed":
        x = np.exp(rng.normal(0, 0.6, (TABLE_ROWS + TEST_ROWS, 8)))
        y = np.log(x[:, 0] * x[:, 1] + x[:, 2]) + 0.5 * x[:, 3] / (1 + x[:, 4]) + rng.normal(0, 0.2, len(x))
    else:
        x, y = getattr(sklearn_datasets, f"load_{name}")(return_X_y=True)
    order = rng.permutation(len(x))
    head = min(TABLE_ROWS, int(SHARE * len(x)))
    return _table(x[order], y[order], kind, head)


def _fashion() -> tuple[Array, Array, Array, Array]:
    images, labels = fashion_images("train", IMAGES)
    test_images, test_labels = fashion_images("test", TEST_IMAGES)
    return _halved(images), labels, _halved(test_images), test_labels


def _halved(images: Array) -> Array:
    """From (N, H, W, 1) to (N, H/2, W/2, 1), each pixel the mean of four."""
    count, height, width, _ = images.shape
    return np.asarray(images.reshape(count, height // 2, 2, width // 2, 2).mean((2, 4))[..., None])


def _digits() -> tuple[Array, Array, Array, Array]:
    images, labels = sklearn_datasets.load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8, 1) / 16 * 255)
    order = np.random.default_rng(1).permutation(len(labels))
    head, tail = np.split(order, [int(SHARE * len(labels))])
    return pixels[head], labels[head], pixels[tail], labels[tail]


def _images(images: Array, labels: Array, test_images: Array, test_labels: Array, *, is_signal: bool) -> Source:
    """From pixels up to 255, (N, H, W, 1), to (N, 1, H, W), or (N, H, W) where the rows of pixels are channels."""

    def standard(pixels: Array) -> Array:
        values = (pixels[..., 0].astype(np.float32) / 255 - _PIXEL_MEAN) / _PIXEL_DEVIATION
        return np.ascontiguousarray(values if is_signal else values[:, None], dtype=np.float32)

    targets, test_targets = {"logits": labels.astype(np.int64)}, {"logits": test_labels.astype(np.int64)}
    task = Task({"logits": "classes"}, standard(images), targets, standard(test_images), test_targets)
    return Source(task, np.float32(_PIXEL_MEAN), np.float32(_PIXEL_DEVIATION), 255.0)


def _table(x: Array, y: Array, kind: Kind, head: int) -> Source:
    """Columns standardized by the rows to train with; numbers too."""
    mean, deviation = x[:head].mean(0), x[:head].std(0)
    x = ((x - mean) / deviation).astype(np.float32)
    if kind == "classes":
        name, target = "logits", y.astype(np.int64)
    else:
        name, target = "value", ((y - y[:head].mean()) / y[:head].std()).astype(np.float32)[:, None]
    task = Task({name: kind}, x[:head], {name: target[:head]}, x[head:], {name: target[head:]})
    return Source(task, mean.astype(np.float32), deviation.astype(np.float32), 1.0)
