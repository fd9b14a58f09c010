"""The data sets that vsfix can train on, by the names that the command line takes.

digits                          scikit-learn's 1,797 handwritten digits, 8x8; 1,297 to train, 500 to test
fashion-mnist[:DIR]             idx files, gzipped or not; 60,000 to train, 10,000 to test, 28x28
cifar10:DIR, cifar100:DIR       binary or python version; 50,000 to train, 10,000 to test, 32x32
imagefolder:DIR                 image files, a folder for each class, as ImageNet
FILE.npz                        images and labels under the names of Keras or of MedMNIST
hf:NAME                         from the library `datasets`
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.errors import DataError, InputError, MissingComponentError
from vsfix.graph_passes.io.named_file import user_path

from .cifar import read_cifar
from .hub_dataset import read_hub_dataset
from .idx_file import find_idx_file, read_idx_file
from .image_folder import read_image_folder
from .images import Images
from .npz_file import read_labelled_npz

Split = Literal["train", "test"]

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES = tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(","))
DEFAULT_SIZE = (224, 224)
NAMES = ("digits", "fashion-mnist", "cifar10", "cifar100", "imagefolder", "hf")
KNOWN = "digits, fashion-mnist[:DIR], cifar10:DIR, cifar100:DIR, imagefolder:DIR, hf:NAME"
_DIGITS_TEST = 500
_DIGITS_SEED = 0
_IMAGES_AT_ONCE = 4096
_IMAGES_TO_DECODE = 2000


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images of one size.

    Attributes:
        name: the data set and the part of it, for messages and reports.
        images: uint8, shape (N, H, W, C), values 0 to 255; in memory, or decoded when rows are asked for.
        labels: int64, shape (N,), indices into `class_names`.
        class_names: the classes in the order of the network's outputs.

    Raises:
        DataError: empty, wrong shape or type, or a label that names no class.
    """

    name: str
    images: Images
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or len(self.images.shape) != 4 or 0 in self.images.shape:
            raise DataError(
                f"{self.name}: images are {self.images.dtype} of shape {self.images.shape};"
                " uint8 of shape (N, H, W, C), not empty, is needed"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != (len(self.images),):
            raise DataError(
                f"{self.name}: {len(self.images)} images, but labels are {self.labels.dtype}"
                f" of shape {self.labels.shape}; int64, one per image, is needed"
            )
        if self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            raise DataError(
                f"{self.name}: labels run from {self.labels.min()} to {self.labels.max()},"
                f" but there are {len(self.class_names)} classes"
            )


def load_dataset(spec: str, split: Split, *, size: tuple[int, int] = DEFAULT_SIZE) -> Dataset:
    """Loads one part of a data set.

    Args:
        spec: see the head of this module.
        split: which part, "train" or "test".
        size: (height, width) in pixels that image files, which have no common size, are brought to.

    Raises:
        InputError: an unknown data set or part, or its files are missing.
        DataError: a file that is damaged or holds something else.
        MissingComponentError: the library that brings the data is not installed.
    """
    if split not in ("train", "test"):
        raise InputError(f"split '{split}': must be train or test")
    name, colon, folder = spec.partition(":")
    if name == "digits" and not colon:
        return _digits(split)
    if name == "fashion-mnist":
        if colon and not folder:
            raise InputError(f"data '{spec}': the folder behind the colon is missing")
        return _fashion_mnist(user_path(folder) if folder else FASHION_MNIST_FOLDER, split)
    if name.endswith(".npz"):
        return Dataset(f"{Path(spec).name} ({split})", *read_labelled_npz(user_path(spec), split))
    if name in ("cifar10", "cifar100", "imagefolder", "hf"):
        if not folder:
            raise InputError(f"data '{spec}': write {name}:{'NAME' if name == 'hf' else 'DIR'}")
        return Dataset(f"{spec} ({split})", *_read_folder(name, folder, split, size))
    raise InputError(f"data '{spec}': unknown; known are {KNOWN}, and files that end in .npz")


def standardization(dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of x / 255 per channel, in float64; of images that are to be decoded, over 2,000 of them.

    Returns:
        (mean, std), one number per channel each. The deviation is at least one grey level, 1/255, so that a channel of
        one colour can be divided by it.
    """
    means, deviations = [], []
    levels = np.arange(256) / 255
    images = dataset.images
    if not isinstance(images, np.ndarray):
        images = images[np.linspace(0, len(images) - 1, min(len(images), _IMAGES_TO_DECODE)).astype(np.int64)]
    for channel in range(images.shape[3]):
        # A histogram of bytes holds all that mean and variance need, without a float64 copy of the images.
        counts = np.zeros(256, dtype=np.int64)
        for start in range(0, len(images), _IMAGES_AT_ONCE):
            part = images[start : start + _IMAGES_AT_ONCE, ..., channel]
            counts += np.bincount(part.ravel(), minlength=256)
        mean = float(np.average(levels, weights=counts))
        variance = float(np.average((levels - mean) ** 2, weights=counts))
        means.append(mean)
        deviations.append(max(variance**0.5, 1 / 255))
    return tuple(means), tuple(deviations)


def _read_folder(
    name: str, folder: str, split: Split, size: tuple[int, int]
) -> tuple[Images, npt.NDArray[np.int64], tuple[str, ...]]:
    """Images, labels and classes of what lies in a folder, or in the hub."""
    if name == "hf":
        return read_hub_dataset(folder, split, size)
    path = user_path(folder)
    if name == "imagefolder":
        return read_image_folder(path, split, size)
    return read_cifar(name, path, split)


def _digits(split: Split) -> Dataset:
    """The handwritten digits; the split is part of the data set's definition here and never changes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingComponentError(
            "data 'digits': scikit-learn is not installed; run: pip install 'vsfix[train]'"
        ) from None
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]  # (1797, 8, 8, 1)
    labels = bunch.target.astype(np.int64)
    rows = _stratified_rows(labels, _DIGITS_TEST, _DIGITS_SEED, split)
    return Dataset(f"digits ({split})", images[rows], labels[rows], tuple(str(digit) for digit in range(10)))


def _stratified_rows(labels: npt.NDArray[np.int64], test: int, seed: int, split: Split) -> npt.NDArray[np.int64]:
    """The rows of one part, in ascending order; every class has its share of the `test` rows, to within one."""
    # RandomState, not Generator: numpy promises that its stream never changes.
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[by_class[np.arange(test) * len(labels) // test]] = True
    return np.flatnonzero(is_test if split == "test" else ~is_test).astype(np.int64)


def _fashion_mnist(folder: Path, split: Split) -> Dataset:
    """Fashion-MNIST from its four files, of which one part needs two."""
    prefix = "train" if split == "train" else "t10k"
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    paths = [find_idx_file(folder, name) for name in names]
    missing = [f"{name}[.gz]" for name, path in zip(names, paths, strict=True) if path is None]
    image_path, label_path = paths
    if image_path is None or label_path is None:
        raise InputError(
            f"fashion-mnist: {folder} holds no {' and no '.join(missing)}; Debian's package dataset-fashion-mnist"
            f" puts the files in {FASHION_MNIST_FOLDER}, another folder is named by fashion-mnist:DIR"
        )
    images = read_idx_file(image_path, rank=3)  # (N, H, W)
    labels = read_idx_file(label_path, rank=1).astype(np.int64)
    return Dataset(f"fashion-mnist ({split})", images[..., np.newaxis], labels, FASHION_MNIST_CLASSES)
